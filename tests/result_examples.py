"""One result of every kind that analyses give, of small random models and synthetic studies, for the tests of displays.

`examples` makes them all; `gathered` finds every result inside these too.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from autoencoders import make as autoencoder
from models import make
from planted_memory import pairs as planted_pairs
from planted_memory import planted
from planted_training import a_run
from planted_zoo import a_member, a_zoo

import hybridlens as hl
from analyses import kv_cache, probe, states, steering
from analyses.experiment.running import Outcome
from analyses.heads.entropy import rank_heads
from analyses.heads.gathering import gather_scores, pairs
from analyses.heads.needle_heads import look
from analyses.heads.scores import head_scores
from analyses.heads.treatment import Treatment
from analyses.kv_cache.experiment import Crossed
from analyses.kv_cache.following import KEYS_AND_VALUES, following, layer_memories
from analyses.patching.agreement import agreement
from analyses.patching.alignment import differences
from analyses.patching.choosing import Measure
from analyses.patching.circuit_curves import circuit_curves
from analyses.patching.direct import direct_logit_attribution
from analyses.patching.edges import edge_attribution
from analyses.patching.effects import Patched, strongest
from analyses.patching.gradients import attribution_sweep
from analyses.patching.metrics import KullbackLeibler, LogitDifference, LogProbability, NeedleScore, OwnFunction, Rank
from analyses.patching.pairs import Pair
from analyses.patching.results import EdgeResult
from analyses.patching.running import activation_patch
from analyses.patching.sweeps import sweep, sweep_of
from analyses.states.found import Found, OfPrompt
from analyses.states.looking import look as look_hidden
from analyses.states.texts import Measurable
from analyses.stream import feature_attribution, fit_tuned_lens, loss_recovered, top_tokens, tuned_lens
from analyses.study import views
from analyses.study.benchmarks.results import BenchmarkResult
from analyses.study.claim_rules import ablated
from analyses.study.comparing.reading import StoredStudy
from analyses.study.comparing.results import comparison_of
from analyses.study.evidence import Evidence, ModelFacts
from analyses.study.groups import Base, accuracy, grouped
from analyses.study.overview import FoundPage, FoundRun, FoundZoo, Overview, Unread
from analyses.study.plan_types import Planned, StudyPlan
from analyses.study.rankings.retrieval import Looks
from analyses.study.rankings.sweep import Compared
from analyses.study.reduced.answering import Answers
from analyses.study.reduced.reductions import EVERYTHING, KeepHeads
from analyses.study.reduced.tuning import Tuned
from analyses.study.report import Judged
from analyses.study.training_curves.results import INTACT, STRENGTH, TrainingCurves
from analyses.study.training_curves.rules import answers
from analyses.study.training_curves.runs import Checkpoint, Training
from analyses.study.under_both import Split, UnderBoth
from analyses.study.zoo.of_study import RETRIEVAL
from analyses.study.zoo.rules import answers as zoo_answers
from analyses.study.zoo.stored import recomputed
from hybridlens.counting import MACHINES, Expense
from hybridlens.doctor import Agreement, Diagnosis
from hybridlens.doctor.scans import scan_choices
from hybridlens.engine import Tally
from hybridlens.niah import NEEDLES, Prompt
from tests.test_capacity import a_capacity, made
from tests.test_circuit_report import random_circuits
from tests.test_rankings_report import a_comparison, orders
from tests.test_reduced import some_modules
from tests.test_study_report import BASE, BENCHMARKS, VERDICTS, a_study, study_cells

IDS, OTHER = [3, 4, 5, 6, 7, 8, 9], [3, 4, 20, 6, 7, 8, 9]
METRIC = LogitDifference(3, 7)
SPANS, SEGMENTS = [(1, 3), (4, 5)], [(1, 3), (3, 6)]
HOSTILE = "<script>alert(1)</script>&amp;\n"


@cache
def lens() -> hl.HybridLens:
    """A small random model with both kinds of layers."""
    return hl.HybridLens(make("jamba", 3))


def a_pair() -> Pair:
    """Two prompts that differ in one token, whose text would be code if it were not escaped."""
    prompts = [
        Prompt("text", tuple(ids), 7, 50, (2, 3), ((2, 3),), "base", False, "clean", True) for ids in (IDS, OTHER)
    ]
    texts = [(*(f" t{i}" for i in ids[:-1]), HOSTILE) for ids in (IDS, OTHER)]
    return Pair("needle", *prompts, tuple(IDS), tuple(OTHER), (5, 6), (texts[0], texts[1]), (HOSTILE, "b"))


def of_heads() -> Iterator[Any]:
    """Circuits, rankings, looks."""
    yield from (random_circuits(), random_circuits(rotary=False, gate_error=torch.rand(2, 3), notes=("One.",)))
    yield rank_heads(lens(), [IDS, OTHER[:4]])
    yield look(lens(), IDS, [5, 6], [(1, 3)])
    yield Treatment(3)
    yield Looks([(1, 2), ()], torch.rand(2, 1, 4), torch.rand(2, 1, 4))


def of_attention() -> Iterator[Any]:
    """Scores of heads, and pairs of them."""
    yield head_scores(lens(), period=4, rows=1, draws=2)
    gather = gather_scores(lens(), [IDS], [SEGMENTS], of="recurrent")
    yield from (gather, gather_scores(lens(), [IDS], [SEGMENTS]))
    yield pairs(gather, replace(gather, of="attention", layers=tuple(layer + 1 for layer in gather.layers)), 2)


def of_circuits(edges: EdgeResult) -> Iterator[Any]:
    """Circuits of growing size, beside random ones and without."""
    for draws in (2, 0):
        yield circuit_curves(lens(), IDS, OTHER, METRIC, edges, sizes=[6, 12], draws=draws)


def of_streams() -> Iterator[Any]:
    """Lenses, a direction and what it does, a probe, and an autoencoder judged."""
    name, sae = "blocks.1.hook_resid_post", autoencoder(lens().cfg.d_model, "jumprelu")
    tuned = fit_tuned_lens(lens(), [IDS, OTHER[:5]], steps=1)
    yield from (tuned, replace(tuned, held_out=torch.full_like(tuned.held_out, torch.nan)))
    yield tuned_lens(lens(), tuned, [IDS, OTHER[:5]], best=2)
    direction = steering.difference(lens(), [(IDS, OTHER), (OTHER[:4], IDS[:4])], name)
    yield from (direction, steering.effect(lens(), direction, [IDS, OTHER], METRIC, (-1.0, 2.0), draws=2))
    prompts = torch.randint(3, 50, (8, 4), generator=torch.Generator().manual_seed(0))
    yield probe.fit(lens(), prompts, [i % 2 for i in range(8)], name, folds=2, shuffles=2)
    yield feature_attribution(lens(), sae, name, IDS, METRIC, (-1, 2))
    yield loss_recovered(lens(), sae, name, [IDS, OTHER[:5]])
    found = top_tokens(lens(), sae, name, [0, 3], [IDS, OTHER[:5]], 2)
    yield found
    yield replace(found.of(0)[0], token=HOSTILE, around=(HOSTILE, "b"), values=(1.0, 0.5))


def of_patching() -> Iterator[Any]:
    """Sweeps, estimates, edges, shares, metrics and a pair."""
    exact, guessed = (run(lens(), "z", IDS, OTHER, METRIC) for run in (sweep, attribution_sweep))
    by_place = activation_patch(lens(), IDS, OTHER, METRIC, ["blocks.1.hook_mlp_out", "hook_embed"], "p")
    edges, direct = edge_attribution(lens(), IDS, OTHER, METRIC), direct_logit_attribution(lens(), IDS, [5, METRIC])
    measure = Measure("logit difference", METRIC, tuple(IDS), tuple(OTHER))
    yield Patched(a_pair(), (" a", " b"), measure, {"z": exact}, {"z": guessed}, edges, direct)
    yield from of_circuits(edges)
    yield by_place
    yield activation_patch(lens(), IDS, OTHER, METRIC, targets=[[]])
    yield agreement(guessed, exact)
    yield from (strongest(exact)[0], differences(IDS, OTHER, None)[0], sweep_of(lens(), "z"))
    rubric = NEEDLES["paper"].rubric
    reference = torch.rand(53)
    yield from (
        LogProbability((3, 4)),
        Rank(3),
        KullbackLeibler(reference),
        NeedleScore(rubric),
        OwnFunction(torch.sum),
    )
    yield sweep(lens(), "z", [IDS, IDS[:5]], [OTHER, OTHER[:5]], METRIC)


def of_memories() -> Iterator[Any]:
    """Crossovers and maps of a planted model."""
    model, *_ = planted("jamba", "head", 1)
    pairs = planted_pairs(2, seed=1)
    found = kv_cache.crossover(model, pairs, max_new_tokens=1)
    yield Crossed(found, {"dropped": kv_cache.drop_map(model, pairs[0], block=4, max_new_tokens=0)})
    yield kv_cache.recurrent_map(model, pairs[0], every=8, max_new_tokens=0)
    yield from (pairs[0], kv_cache.contrast(pairs[0]), found.shares(found.mixes[0].name))
    yield following(found, KEYS_AND_VALUES)
    yield layer_memories(found.mixes)[0]
    state = model.prefill([list(pairs[0].a[:-1])]).state
    yield from (kv_cache.means(state), kv_cache.logprobs(model, state, pairs[:1]))
    yield from (kv_cache.retrieval(model, state, pairs[0], 0), kv_cache.attention_groups(model.cfg)[0])
    yield from (kv_cache.Surgery(kv_cache.reset, [0, 2]), kv_cache.needle_pairs()[0])


def of_states() -> Iterator[Any]:
    """Every measure of states."""
    rows = [IDS, OTHER[:5]]
    measured = OfPrompt(
        Measurable("a", "an own text", tuple(IDS)), states.spectrum(lens(), rows), states.sizes(lens(), rows),
        states.flow(lens(), rows), states.holding(lens(), rows, SPANS, range(5)),
    )  # fmt: skip
    knocked = states.knockout(lens(), IDS, METRIC, [(0, 0)], [1], controls=2)
    prompts = torch.randint(3, 50, (12, 6), generator=torch.Generator().manual_seed(0))
    probes = states.probe_states(lens(), prompts, [i % 2 for i in range(12)], folds=2, shuffles=2)
    hidden = look_hidden(lens(), IDS, [(0, 0)], [0, 2, 3], False)
    yield Found((measured,), hidden, {"write-1": knocked}, probes, 4)
    yield states.knockout_map(lens(), IDS, METRIC, blocks=3)
    yield states.linear_probe(torch.rand(12, 3), [i % 2 for i in range(12)], folds=2, shuffles=2)
    yield probes.at(0, 0)


def of_studies() -> Iterator[Any]:
    """Views, verdicts, benchmarks, comparisons."""
    cells = study_cells()
    for view in (
        views.fig2, views.jrt, views.table1, views.maps, views.needles, views.scopes, views.boundaries,
        views.semantics_difference,
    ):  # fmt: skip
        yield view(cells, BASE)
    yield from (BASE, Base(4), a_comparison(), a_comparison().ability)
    yield from (a_capacity(), a_capacity().recalls[0], *made("tiny", "best-thing", (1, 2), 1))
    yield accuracy(grouped(cells, BASE, lambda cell: cell.phase)["generation"])
    yield Compared(a_comparison(), orders())
    yield some_modules()
    yield from (Answers(("a", HOSTILE), torch.rand(2), torch.rand(2)), EVERYTHING, KeepHeads(((1, 2),)))
    yield Tuned(1, {"a": torch.rand(2)}, {}, {}, (1.5,))
    scores = BenchmarkResult("m", 4, tuple(BENCHMARKS), {})
    yield from (scores, scores.difference("alone", 2))
    yield Judged(a_study("fig2"), cells[:5], BENCHMARKS, VERDICTS)
    yield UnderBoth(VERDICTS[0], VERDICTS[1], VERDICTS[0].outcome, "clean")
    half = accuracy(grouped(cells, BASE, lambda cell: cell.k)[2])
    assert half is not None
    yield Split("k = 2", half, half, half, "published")
    yield comparison_of([a_stored_study(name) for name in ("m", "n")])
    yield ablated(Evidence(cells, BENCHMARKS, ModelFacts("m", "jamba", None, BASE)))
    yield Outcome(Path("a"), Path("a/report.html"), views.fig2(cells, BASE), {}, ())
    part = Planned("fig2", 12, 10, 3, 900, Tally(300, 300), 5, 2, Expense(300, 400, 10**15, 10**12, 90.0), (40.0, 50.0))
    yield StudyPlan("m", "bfloat16", MACHINES["h100"], 10**9, 2 * 10**9, 2, (part,), ("One.",))


def of_training() -> Iterator[Any]:
    """A run of training, its curves beside another's, and what rules say of them."""
    yield Training("a-run", Path("a-run"), "tiny-granite", 0, 1000, (Checkpoint(100, Path("a-run/step-00100")),), {})
    runs = a_run({INTACT: [0.2, 0.6], STRENGTH: [0.5, 1.5]}), a_run({INTACT: [0.1, 0.7]}, HOSTILE)
    yield TrainingCurves(runs)
    yield from answers(runs[0])
    zoo = a_zoo(a_member("a", {RETRIEVAL: (0.9, 0.8, 1.0), "facts": None}), a_member(HOSTILE, {RETRIEVAL: 0.5}))
    yield from (zoo, *zoo_answers(zoo), recomputed(zoo, zoo))


def of_folders() -> Iterator[Any]:
    """What stands under a folder of results."""
    run = FoundRun("a", "niah", HOSTILE, "complete", "hybridlens niah", "2026-01-02T03:04:05+00:00", None, 9, 9,
                   (HOSTILE,), True)  # fmt: skip
    late = replace(run, status="stopped", finding=())
    zoo = FoundZoo("z", (late,), ("Yes.",), "", True)
    yield Overview(Path("r"), (run, late), (zoo,), (FoundPage("p", "t", "s"),), (Unread("u", HOSTILE),))


def a_stored_study(name: str) -> StoredStudy:
    """A study as a folder gives it."""
    facts = ModelFacts(name, "jamba", None, BASE)
    cells = [cell for cell in study_cells() if cell.phase == "generation" and cell.k in (0, 4)]
    record = {"facts": {"parameters": 9}, "arguments": {}, "seed": 0, "command": "", "weights_hash": "w"}
    return StoredStudy(name, Path(name), record, cells, (), facts)


@cache
def of_installations() -> tuple[Any, ...]:
    """A look at a machine on which something is broken."""
    fine = Agreement("tiny-jamba", "cpu", "float32", 1e-6, 2e-6, 1e-4)
    broken = Agreement("tiny-jamba", "cuda:0", "float32", math.nan, math.nan, math.nan, f"OSError: {HOSTILE}")
    scans = scan_choices(("cpu",)).families
    looked = Diagnosis("3.11.7", "Linux", 2, 1, "AVX2", {"torch": "2.13.0", "einops": None}, {"peft": None},
                       ("cpu", "cuda:0"), (), scans, (fine, broken), (HOSTILE,))  # fmt: skip
    return looked, fine, broken


def examples() -> tuple[Any, ...]:
    """All of them."""
    parts = (of_heads, of_attention, of_streams, of_patching, of_memories, of_states, of_studies, of_training,
             of_folders, of_installations)  # fmt: skip
    return tuple(one for part in parts for one in part())


def gathered(values: Iterable[Any]) -> dict[type, list[Any]]:
    """Class -> its instances among some values and everything inside them."""
    found: dict[type, list[Any]] = {}
    seen: set[int] = set()
    waiting = list(values)
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if dataclasses.is_dataclass(one) and not isinstance(one, type):
            found.setdefault(type(one), []).append(one)
            waiting += [getattr(one, field.name) for field in dataclasses.fields(one)]
        elif isinstance(one, tuple) and hasattr(one, "_fields"):
            found.setdefault(type(one), []).append(one)
            waiting += list(one)
        elif isinstance(one, (list, tuple, frozenset)):
            waiting += list(one)[:50]
        elif isinstance(one, dict):
            waiting += list(one.values())[:50]
    return found
