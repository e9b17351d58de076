"""Every result of analyses shows itself, and what hybridlens' public names give: a new one without a display fails.

What functions return is read off their annotations, by reflection; `result_examples` has one result of every kind.
Tables are compared with plain loops over the tensors.
"""

import dataclasses
import importlib
import inspect
import itertools
import math
import pkgutil
import re
import typing
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from result_examples import HOSTILE, examples, gathered, lens

import analyses
from analyses import states
from analyses.circuits.results import HeadCircuits
from analyses.experiment.per_prompt import PerPrompt
from analyses.heads.gathering import SCORES as GATHERING
from analyses.heads.gathering import GatherScores, HeadPair
from analyses.heads.needle_heads import Look
from analyses.heads.ranking import HeadRanking
from analyses.heads.scores import SCORES, HeadScores
from analyses.kv_cache import Crossover, DamageMap
from analyses.patching.circuit_curves import CircuitCurves
from analyses.patching.direct import DirectAttribution
from analyses.patching.pairs import Pair
from analyses.patching.results import EdgeResult, PatchResult
from analyses.stream import Direction, FeatureAttribution, FeatureExamples, SteeringEffect, StreamLens, TunedLens
from analyses.study import view_types
from analyses.study.benchmarks.results import BenchmarkResult
from analyses.study.plan_types import StudyPlan
from analyses.study.rankings.results import RankingComparison
from analyses.study.reduced.results import ReducedModules
from analyses.study.training_curves.results import TrainingCurves
from hybridlens.display import Displayed, Table
from hybridlens.viz.plotted import Plotted

INTERNAL = {
    "circuits.grams": "Gram matrices of one layer, in the middle of a sum",
    "circuits.paths.LinearPath": "what composition takes",
    "circuits.running.Measured": "what circuits puts into its result",
    "circuits.strength.Induction": "what circuits puts into its result",
    "circuits.vocabulary.Products": "what circuits puts into its result",
    "experiment.parts.Part": "work that processes share",
    "experiment.room.Room": "memory of a run",
    "heads.portions.Work": "for the engine",
    "heads.needle_slots": "masks inside hook functions",
    "kv_cache.places.KeyPlace": "masks of one function of surgery",
    "patching.over.Grid": "patches that a sweep plans",
    "patching.path_inputs": "two runs held for path patching",
    "patching.schedule": "batches that a sweep plans",
    "patching.slopes": "two runs held for gradients",
    "patching.targets": "what a user writes, and where it lies",
    "stream.linear_probe.Plan": "labels and folds inside a probe",
    "stream.places.Places": "what positions stand for, inside an edit",
    "stream.reading.Rows": "a batch of texts on its way",
    "experiment.options.prompts.OwnPair": "what a user writes in a file",
    "states.sections": "lines of a report",
    "states.watching": "rows and terms inside a measure",
    "study.benchmarks.tasks.Loaded": "lm-eval's tasks",
    "study.capacity.prompts.Laid": "facts on their way into prompts",
    "study.rankings.prompts.Needle": "tokens of a needle inside a ranking",
    "study.training_curves.measuring.Prompts": "what checkpoints are asked",
    "study.zoo.making": "processes, and what they make",
    "study.zoo.parts.Part": "a row of the experiments",
    "study.reduced.factors": "maps inside hook functions",
    "study.reduced.shapes": "sizes that a result's costs follow from",
    "study.evidence.Check": "one test of a claim",
    "study.groups.Group": "scores of one condition by their place",
    "experiment.artefacts": "files",
}
"""Modules or classes of what is never handed to a user -> why."""

PLAIN = {
    "caching.CachingHooks": "hooks to pass on, and the dict that they fill",
    "hook_handles.HookHandle": "what takes a hook off",
    "layer_config.RecurrentConfig": "plain values; the configuration shows them all",
    "layer_config.AttentionConfig": "plain values; the configuration shows them all",
    "network.Output": "what the Hugging Face model would give",
    "niah.rubric.Rule": "a text and its points; the needle shows them all",
    "padding.Layout": "where rows lie in a batch",
    "padding.TokenBatch": "tokens on their way into a run",
    "results.cells.CellKey": "plain values, to look cells up by",
    "results.statistics.Interval": "two numbers",
    "results.summary.AccuracyPoint": "seven numbers",
    "results.summary.Finding": "eight plain values",
    "results.summary.TippingInterval": "three plain values",
    "slot_plan.SlotPlan": "numbers of a state's slots, for who runs it",
    "slots.KeySlots": "masks inside hook functions",
    "splicing.Splice": "names of hook points while an autoencoder is in place",
    "viz.embedding.Html": "HTML already",
}
"""Classes that public names of hybridlens give, and whose plain `repr` is enough -> why."""

LOOKS = ("report", "sections", "composition_section", "benchmark_section", "explorer", "maps", "figure")
"""Modules that make pages."""


def modules() -> list[Any]:
    """All of analyses."""
    return [importlib.import_module(m.name) for m in pkgutil.walk_packages(analyses.__path__, "analyses.")]


def is_result(kind: Any) -> bool:
    return isinstance(kind, type) and (
        dataclasses.is_dataclass(kind) or (issubclass(kind, tuple) and hasattr(kind, "_fields"))
    )


def returned(fn: Any) -> set[type]:
    """The classes that a function's annotation says it returns, alone or in lists, tuples and mappings."""
    only_checked = {"Root": object, "HFModule": torch.nn.Module, "StudyPlan": StudyPlan}  # of type checkers
    typed = {"pandas": pd, "Plot": go.Figure, **only_checked}
    hints = typing.get_type_hints(fn, localns=typed)
    waiting, found = [hints.get("return")], set[type]()
    while waiting:
        one = waiting.pop()
        waiting += typing.get_args(one)
        one = typing.get_origin(one) or one
        if is_result(one):
            found.add(one)
    return found


def results() -> dict[type, str]:
    """Every dataclass and NamedTuple of analyses that some function or public method returns -> one that does."""
    found: dict[type, str] = {}
    for module in modules():
        own = [one for name, one in vars(module).items() if not name.startswith("_")]
        here = [one for one in own if getattr(one, "__module__", "") == module.__name__]
        methods = [
            value.fget if isinstance(value, property) else value
            for one in here
            if isinstance(one, type) and issubclass(one, Displayed)
            for name, value in vars(one).items()
            if not name.startswith("_")
        ]
        for fn in (*here, *methods):
            if inspect.isfunction(fn) and module.__name__.rpartition(".")[2] not in LOOKS:
                found |= dict.fromkeys(returned(fn), f"{module.__name__}.{fn.__name__}")
    ours = {kind: where for kind, where in found.items() if kind.__module__.startswith("analyses.")}

    def internal(kind: type) -> bool:
        name = f"{kind.__module__}.{kind.__name__}".removeprefix("analyses.")
        return any(name == one or name.startswith(f"{one}.") for one in INTERNAL)

    return {kind: where for kind, where in ours.items() if not internal(kind)}


def public_results() -> dict[type, str]:
    """What public names of hybridlens give, their methods, and those of the results found -> what gives it."""
    parts = ("", ".doctor", ".niah", ".results", ".tiny", ".viz")
    homes = [importlib.import_module(f"hybridlens{part}") for part in parts]
    waiting = [getattr(home, name) for home in homes for name in getattr(home, "__all__", vars(home))]
    found: dict[type, str] = {}
    seen = set[int]()
    while waiting:
        one = waiting.pop()
        if id(one) in seen or not getattr(one, "__module__", "").startswith("hybridlens"):
            continue
        seen.add(id(one))
        members = [vars(base) for base in one.__mro__] if isinstance(one, type) else [{"__call__": one}]
        for name, member in (pair for held in members for pair in held.items()):
            fn = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            public = not name.startswith("_") or name == "__call__"
            if public and inspect.isfunction(fn) and fn.__module__.startswith("hybridlens."):
                given = {kind for kind in returned(fn) if kind.__module__.startswith("hybridlens.")} - {Table}
                waiting += [kind for kind in given if issubclass(kind, Displayed)]
                found |= dict.fromkeys(given, fn.__qualname__)
    return found


def test_what_public_names_of_hybridlens_give_shows_itself() -> None:
    """By reflection likewise; what is called plain is so, and is given."""
    kinds = {kind: f"{kind.__module__}.{kind.__name__}".removeprefix("hybridlens.") for kind in public_results()}
    assert {"cache.readout.LogitLens", "generation.Generation", "results.cells.Cell"} <= set(kinds.values())
    assert sorted(name for kind, name in kinds.items() if not issubclass(kind, Displayed)) == sorted(PLAIN)


@pytest.fixture(scope="module")
def shown() -> dict[type, list[Any]]:
    return gathered(examples())


def test_every_result_has_a_display_and_an_example(shown: dict[type, list[Any]]) -> None:
    """By reflection over all functions of analyses; a list that is not empty names what lacks a display."""
    kinds = results()
    assert len(kinds) > 60
    assert [f"{k.__name__} of {where}" for k, where in kinds.items() if not issubclass(k, Displayed)] == []
    assert [f"{k.__name__} of {where}" for k, where in kinds.items() if k not in shown] == []


def test_what_is_called_internal_is_there() -> None:
    for name in INTERNAL:
        module, _, kind = f"analyses.{name}".rpartition(".")
        if kind[0].isupper():
            assert hasattr(importlib.import_module(module), kind), name
        else:
            importlib.import_module(f"analyses.{name}")


def displayed(shown: dict[type, list[Any]]) -> list[Any]:
    return [one for kind, some in shown.items() if issubclass(kind, Displayed) for one in some[:3]]


def test_each_shows_itself_in_a_line_and_a_few_kilobytes(shown: dict[type, list[Any]]) -> None:
    for one in displayed(shown):
        line, html, page = repr(one), one._repr_html_(), one.to_html()
        assert "\n" not in line
        assert len(line) < 200, line
        assert line.startswith(f"<{type(one).__name__}: "), line
        assert len(html.encode()) < 30_000, (type(one), len(html))
        assert HOSTILE.strip() not in html
        assert "<script" not in page
        assert not re.search(r"(src|href)\s*=\s*['\"]?\s*(https?:)?//", page)
        assert page.startswith("<!DOCTYPE html>")
        frame = one.to_pandas()
        assert isinstance(frame, pd.DataFrame)
        assert all(isinstance(name, str) for name in frame.columns)


FIGURES = (
    HeadCircuits, HeadRanking, PatchResult, EdgeResult, DirectAttribution, Crossover, DamageMap, states.Flow,
    states.Sizes, states.Spectrum, states.Holding, states.Knockout, states.KnockoutMap, states.StateProbes,
    view_types.Fig2, view_types.Table1, view_types.JrtResult, view_types.Maps, view_types.NeedlesResult,
    view_types.Contrast, view_types.SemanticsDifference, RankingComparison, BenchmarkResult, PerPrompt, HeadScores,
    GatherScores, CircuitCurves, ReducedModules, StreamLens, TunedLens, SteeringEffect, FeatureAttribution,
    TrainingCurves,
)  # fmt: skip
"""Results that draw themselves, in a figure whose axes are named."""


def test_those_with_a_figure_draw_it(shown: dict[type, list[Any]]) -> None:
    """A Plotly figure with something in it and axes that are named; whatever has `plot` gives a figure."""
    assert [kind.__name__ for kind in FIGURES if not shown.get(kind)] == []
    for one in displayed(shown):
        if isinstance(one, (Plotted, *FIGURES)):
            figure = one.plot()
            assert isinstance(figure, go.Figure), type(one)
            if isinstance(one, FIGURES):
                assert figure.data, type(one)
                titles = [figure.layout.xaxis.title.text, figure.layout.yaxis.title.text]
                assert any(titles), type(one)
                assert all("<script" not in (text or "") for text in titles)


def long(axes: dict[str, Any], values: dict[str, torch.Tensor]) -> list[tuple[Any, ...]]:
    """Rows of a long table, entry by entry."""
    sizes = [range(n) for n in next(iter(values.values())).shape]
    labels = [list(labels) if labels is not None else None for labels in axes.values()]
    rows = []
    for place in itertools.product(*sizes):
        named = [i if names is None else names[i] for i, names in zip(place, labels, strict=True)]
        rows.append((*named, *(value[place].item() for value in values.values())))
    return rows


def alike(one: Any, other: Any) -> bool:
    both = isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other)
    return both or one == other


def same_rows(frame: pd.DataFrame, rows: list[tuple[Any, ...]], columns: list[str]) -> None:
    got = list(frame[columns].itertuples(index=False, name=None))
    assert len(got) == len(rows)
    for one, other in zip(got, rows, strict=True):
        assert all(alike(a, b) for a, b in zip(one, other, strict=True)), (one, other)


def test_tables_hold_every_number_in_its_place(shown: dict[type, list[Any]]) -> None:
    """Exactly: not one digit is lost, and no axis is turned."""
    (flow,), (sizes,), (spectrum,), (holding,) = (shown[k] for k in (states.Flow, states.Sizes, states.Spectrum,
                                                                     states.Holding))  # fmt: skip
    by_prompt = {"layer": flow.layers, "prompt": None, "head": None}
    moves = {name: getattr(flow, name) for name in ("kept", "wrote", "already", "erased")}
    ranks = {name: getattr(sizes, name) for name in ("norm", "effective_rank", "stable_rank")}
    decays = {name: getattr(spectrum, name) for name in ("log_decay", "spread", "half_life")}
    held = {"share": torch.cat([holding.share, holding.rest[..., None, :]], dim=-2)}
    spans = ["1..3", "4..5", "rest"]
    circuits = shown[HeadCircuits][0]
    metrics = {name: circuits.score(name) for name in circuits.metrics}
    direct = shown[DirectAttribution][0]
    asked = {"writer": [w.words for w in direct.writers], "position": direct.positions, "question": direct.questions}
    fig2 = shown[view_types.Fig2][0]
    ranked = shown[RankingComparison][0]
    scores = {name: getattr(ranked, name) for name in ("accuracy", "low", "high")}
    cells = shown[states.KnockoutMap][0]
    scored, gather, read, tuned = (shown[k][0] for k in (HeadScores, GatherScores, StreamLens, TunedLens))
    stream = {"entropy": read.entropy, "divergence": read.divergence, "target_logit": read.target_logits,
              "target_probability": read.target_probabilities, "target_rank": read.target_ranks}  # fmt: skip
    losses = {name: getattr(tuned, name) for name in ("held_out", "held_out_logit_lens")}
    features, direction = shown[FeatureAttribution][0], shown[Direction][0]
    added = {"activation": features.activations, "share": features.shares}
    for one, axes, values in (
        (flow, {**by_prompt, "position": None}, moves),
        (sizes, {**by_prompt, "position": sizes.positions}, ranks),
        (spectrum, {"layer": spectrum.layers, "head": None, "entry": None}, decays),
        (holding, {**by_prompt, "span": spans, "position": holding.positions}, held),
        (circuits, {"layer": circuits.layers, "head": None}, metrics),
        (direct, asked, {"share": direct.shares}),
        (fig2, {"phase": fig2.phases, "k": fig2.ks}, vars(fig2.accuracy)),
        (ranked, {"ranking": ranked.names, "heads_kept": ranked.counts}, scores),
        (cells, {"row": None, "block": None}, {"value": cells.values, "change": cells.change}),
        (scored, {"layer": scored.layers, "head": None}, {name: scored.mean(name) for name in SCORES}),
        (gather, {"layer": gather.layers, "head": None}, {name: getattr(gather, name) for name in GATHERING}),
        (read, {"place": read.places, "prompt": None, "pos": None}, stream),
        (tuned, {"place": tuned.places}, losses),
        (features, {"pos": features.positions, "feature": features.features}, added),
        (direction, {"entry": None}, {"unit": direction.unit}),
    ):
        frame = one.to_pandas()
        same_rows(frame, long(axes, values), [*axes, *values])
        assert set(frame.attrs["meanings"]) <= set(frame.columns)


def test_tables_of_other_shapes(shown: dict[type, list[Any]]) -> None:
    """Patches by their labels, heads by rank, edges without those that are not there, damage by place, maps by cell."""
    for found in shown[PatchResult]:
        values = {"value": found.raw, "change": found.raw - found.untouched}
        axes = {axis.name: axis.labels for axis in found.axes}
        if axes:
            same_rows(found.to_pandas(), long(axes, values), [*axes, *values])
    ranking = shown[HeadRanking][0]
    rows = [(i, layer, head, ranking.score(layer, head)) for i, (layer, head) in enumerate(ranking.order, 1)]
    same_rows(ranking.to_pandas(), rows, ["place", "layer", "head", "score"])
    (looked,) = shown[Look]
    assert looked.queries == [6, 7]  # the last of seven tokens, and the first of two of the answer
    frame = looked.to_pandas()
    for row, pattern in zip(frame.itertuples(), looked.patterns.flatten(0, 1).tolist(), strict=True):
        both = [(a + b) / 2 for a, b in zip(pattern[6], pattern[7], strict=True)]
        assert (row.key, row.weight) == (both.index(max(both)), pytest.approx(max(both)))
        assert row.needle == pytest.approx(both[1] + both[2], rel=1e-5)
        assert looked.ranking.order[row.place - 1] == (row.layer, row.head)
    edges = shown[EdgeResult][0]
    there = [
        (w.words, r.words, edges.scores[i, j].item())
        for i, w in enumerate(edges.writers)
        for j, r in enumerate(edges.readers)
        if not edges.scores[i, j].isnan()
    ]
    same_rows(edges.to_pandas(), there, ["writer", "reader", "score"])
    for found in shown[DamageMap]:
        lost = long({"group": found.groups, "place": found.places}, {"damage": found.damage, "score": found.score})
        rows = [(group, *place, held, *more) for (group, place, *more), held in zip(
            lost, found.held * len(found.groups), strict=True)]  # fmt: skip
        same_rows(found.to_pandas(), rows, ["group", "start", "stop", "held", "damage", "score_a"])
    for curves in shown[CircuitCurves]:
        held = [curves.faithfulness.tolist(), curves.completeness.tolist()]
        same_rows(curves.to_pandas(), list(zip(curves.sizes, *held, strict=True)),
                  ["edges", "faithfulness", "completeness"])  # fmt: skip
    (pushed,) = shown[SteeringEffect]
    changes = (pushed.values - pushed.untouched).mean(dim=1).tolist()
    same_rows(pushed.to_pandas(), list(zip(pushed.scales, changes, strict=True)), ["scale", "change"])
    best = shown[FeatureExamples][0]
    tops = [(number, one.position, one.activation) for number in best.features for one in best.of(number)]
    same_rows(best.to_pandas(), tops, ["feature", "pos", "activation"])
    assert shown[HeadPair][0].to_pandas()["value"].tolist()[2] == shown[HeadPair][0].product
    (maps,) = shown[view_types.Maps]
    want = [
        (*condition, length, depth, value.item())
        for i, condition in enumerate(maps.conditions)
        for j, length in enumerate(maps.lengths)
        for depth, value in zip([*maps.depths, math.nan], [*maps.score[i, j], maps.chance[i, j]], strict=True)
    ]
    same_rows(maps.to_pandas(), want, ["phase", "k", "reading", "answering", "length", "depth", "score"])


def test_lists_of_results_stack_as_one_table(shown: dict[type, list[Any]]) -> None:
    (found,) = shown[PerPrompt]
    frame = found.to_pandas()
    assert list(frame["prompt"]) == [i for i, one in enumerate(found) for _ in range(one.raw.numel())]
    assert list(frame["value"]) == [value for one in found for value in one.raw.flatten().tolist()]
    assert found.plot(1).data[0].z.tolist() if hasattr(found.plot(1).data[0].z, "tolist") else found.plot(1).data[0].z
    assert repr(lens())  # the model that made them is still there


def test_texts_of_a_pair_are_escaped(shown: dict[type, list[Any]]) -> None:
    (pair,) = shown[Pair]
    html = pair._repr_html_()
    assert "&lt;script&gt;alert(1)" in html
    assert "<script" not in html
    assert list(pair.to_pandas()["differs"]) == [False, False, True, False, False, False, False]


def test_unpacking_and_files_are_as_before(tmp_path: Any, shown: dict[type, list[Any]]) -> None:
    """NamedTuples that show themselves are still tuples, and what holds them is read back as the same class."""
    for kind, some in shown.items():
        if issubclass(kind, tuple):
            one = some[0]
            assert tuple(one) == tuple(getattr(one, name) for name in kind._fields)
            assert type(one._replace()) is kind
            assert len(one) == len(kind._fields)
    circuits = shown[HeadCircuits][0]
    again = HeadCircuits.load(circuits.save(tmp_path / "circuits.safetensors"))
    assert type(again.composition) is type(circuits.composition)
    assert torch.equal(again.composition.heads.nan_to_num(-1), circuits.composition.heads.nan_to_num(-1))
    damage = shown[DamageMap][0]
    assert torch.equal(DamageMap.load(damage.save(tmp_path / "map.json")).damage, damage.damage)
