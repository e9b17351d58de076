"""Lists of prompts: every function of one prompt gives of each what it gives of that prompt alone, in the same order.

The prompts differ in length, so that results cannot be mixed up without their shapes saying so.
"""

import dataclasses
import inspect

import numpy as np
import pytest
import torch
from models import VOCAB, make, tokens

import hybridlens as hl
from analyses import circuits, states
from analyses.experiment.per_prompt import PerPrompt
from analyses.heads.needle_heads import Look, look
from analyses.kv_cache import PromptPair, drop_map, recurrent_map
from analyses.patching.ablation import ablate
from analyses.patching.direct import direct_logit_attribution
from analyses.patching.edges import edge_attribution
from analyses.patching.gradients import attribution_patch, attribution_sweep
from analyses.patching.metrics import LogitDifference, Rank
from analyses.patching.paths import path_patch
from analyses.patching.running import activation_patch
from analyses.patching.sweeps import sweep
from analyses.patching.writers import Reader, Writer
from hybridlens.errors import InputError
from hybridlens.niah import Rule
from hybridlens.viz.patterns import PatternFigure

CLEAN = [[3, 4, 5, 6, 7], [8, 9, 10, 11, 12, 13, 14]]
CORRUPT = [[3, 4, 20, 6, 7], [8, 9, 10, 30, 12, 13, 14]]
METRICS = [LogitDifference(3, 7), LogitDifference(9, 11)]
HOOKS = "blocks.2.hook_mlp_out"


@pytest.fixture(scope="module")
def lens() -> hl.HybridLens:
    return hl.HybridLens(make("jamba", 3))


def same(one: object, other: object) -> None:
    """Equal in every field, tensors to the bit: a prompt of a list is run as it is alone."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one.nan_to_num(-7), other.nan_to_num(-7))
    elif isinstance(one, np.ndarray):
        assert np.array_equal(one, other)
    elif isinstance(one, tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same(a, b)
    elif dataclasses.is_dataclass(one):
        assert type(one) is type(other)
        for field in dataclasses.fields(one):
            same(getattr(one, field.name), getattr(other, field.name))
    else:
        assert one == other


OVER = {
    "activation_patch": lambda lens, a, b, m: activation_patch(lens, a, b, m, HOOKS, "p"),
    "sweep": lambda lens, a, b, m: sweep(lens, "z", a, b, m),
    "ablate": lambda lens, a, b, m: ablate(lens, a, m, HOOKS, "p", corrupt=b),
    "ablate without a corrupt prompt": lambda lens, a, b, m: ablate(lens, a, m, HOOKS, "p"),
    "attribution_patch": lambda lens, a, b, m: attribution_patch(lens, a, b, m, HOOKS, "p"),
    "attribution_sweep": lambda lens, a, b, m: attribution_sweep(lens, "z", a, b, m),
    "edge_attribution": lambda lens, a, b, m: edge_attribution(lens, a, b, m, readers=[Reader("logits")]),
    "path_patch": lambda lens, a, b, m: path_patch(lens, a, b, m, [Writer("embed")], [Reader("logits")]),
    "direct_logit_attribution": lambda lens, a, b, m: direct_logit_attribution(lens, a, _asked(m), [0, -1]),
    "knockout": lambda lens, a, b, m: states.knockout(lens, a, m, [(0, 0)], [1], controls=2),
    "knockout_map": lambda lens, a, b, m: states.knockout_map(lens, a, m, blocks=2),
    "hidden_figure": lambda lens, a, b, m: states.hidden_figure(lens, a, 0, positions=[0, -1]),
}


def _asked(metric):
    return [[one, 5] for one in metric] if isinstance(metric, list) else [metric, 5]


@pytest.mark.parametrize("name", OVER)
def test_each_prompt_of_a_list_is_as_alone(lens: hl.HybridLens, name: str) -> None:
    """Metrics and questions of their own for each prompt, and one for all of them."""
    call = OVER[name]
    for metric in (METRICS, METRICS[0]):
        found = call(lens, CLEAN, CORRUPT, metric)
        assert isinstance(found, PerPrompt)
        assert len(found) == 2
        assert found.names == ("prompt 0", "prompt 1")
        for i, one in enumerate(found):
            assert one is found[i]
            own = metric[i] if isinstance(metric, list) else metric
            same(one, call(lens, CLEAN[i], CORRUPT[i], own))
    alone = call(lens, CLEAN[:1], CORRUPT[:1], METRICS[:1])
    same(alone[0], call(lens, torch.tensor(CLEAN[:1]), torch.tensor(CORRUPT[:1]), METRICS[0]))


def test_looks_and_damage_maps_take_lists(lens: hl.HybridLens) -> None:
    given = list(zip(CLEAN, ([15, 16], []), ([(1, 2)], [(2, 4), (5, 6)]), strict=True))
    found = look(lens, *(list(part) for part in zip(*given, strict=True)))
    for one, own in zip(found, given, strict=True):
        assert isinstance(one, Look)
        alone = look(lens, *own)
        same((one.ranking, one.patterns), (alone.ranking, alone.patterns))
        assert (one.tokens, one.shown) == (alone.tokens, alone.shown)
    rule = (Rule("x", 5.0, "set"),)
    two = [
        PromptPair(f"pair {i}", tuple(a), tuple(b), ((at, at + 1),), rule, rule)
        for i, (a, b, at) in enumerate(zip(CLEAN, CORRUPT, (2, 3), strict=True))
    ]
    for measure in (drop_map, recurrent_map):
        maps = measure(lens, two, max_new_tokens=0)
        assert maps.names == tuple(pair.name for pair in two)
        for one, pair in zip(maps, two, strict=True):
            same(one, measure(lens, pair, max_new_tokens=0))


def test_results_stack_where_their_shapes_agree(lens: hl.HybridLens) -> None:
    by_head = sweep(lens, "z", CLEAN, CORRUPT, METRICS)
    assert torch.equal(by_head.stack("change"), torch.stack([one.change for one in by_head]))
    assert by_head.stack("clean").tolist() == [one.clean for one in by_head]
    by_position = activation_patch(lens, CLEAN, CORRUPT, METRICS, HOOKS, "p")
    with pytest.raises(InputError, match=r"'raw' of prompt 0 has shape \[1, 5\] and of prompt 1 \[1, 7\], exp"):
        by_position.stack("raw")
    with pytest.raises(
        AttributeError, match=r"'normalised' asked of the results of 2 prompts, .* take found\[0\]\.norm"
    ):
        _ = by_head.normalised
    with pytest.raises(AttributeError, match="'PerPrompt' object has no attribute 'results_'"):
        _ = by_head.results_
    with pytest.raises(InputError, match="'rwa' asked for, but a PatchResult has no such value"):
        by_position.stack("rwa")


def test_what_does_not_fit_is_one_clear_line(lens: hl.HybridLens) -> None:
    for call, message in (
        (lambda: sweep(lens, "z", CLEAN, CORRUPT[:1], METRICS), "2 prompts were given as clean and 1 as corrupt, exp"),
        (lambda: sweep(lens, "z", CLEAN, "a", METRICS), "2 prompts were given as clean and one as corrupt, expected a"),
        (lambda: sweep(lens, "z", CLEAN, CORRUPT, METRICS * 2), "2 prompts were given as clean and 4 as metric"),
        (lambda: sweep(lens, "z", [], [], Rank(3)), "no clean prompt was given, expected at least one"),
        (lambda: sweep(lens, "z", CLEAN, [CORRUPT[0], [1]], Rank(3)), "^prompt 1: the clean prompt has 7 tokens and"),
        (lambda: sweep(lens, "z", tokens(2, 4), tokens(2, 4), Rank(3)), "2 clean prompts were given as one, exp"),
        (lambda: states.knockout(lens, CLEAN, Rank(VOCAB), [(0, 0)]), "^prompt 0: the metric's token 53 is outside"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match="missing"):
        activation_patch(lens, CLEAN)


def test_signatures_are_those_of_one_prompt() -> None:
    assert list(inspect.signature(activation_patch).parameters)[:4] == ["lens", "clean", "corrupt", "metric"]
    assert list(inspect.signature(look).parameters) == ["lens", "prompt", "answer", "needles"]


def test_circuits_read_any_prompts(lens: hl.HybridLens) -> None:
    """Lists of unequal length equal the same rows as a tensor with their lengths."""
    rows = torch.zeros(2, 7, dtype=torch.long)
    for row, ids in zip(rows, CLEAN, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    one, other = circuits.circuits(lens, CLEAN), circuits.circuits(lens, rows, torch.tensor([5, 7]))
    assert one.linearised == other.linearised == "at the mean of 12 tokens"
    assert torch.equal(one.path_error, other.path_error)
    assert torch.equal(one.retrieval, other.retrieval)


def test_a_pattern_figure_of_each(lens: hl.HybridLens) -> None:
    assert all(isinstance(one, PatternFigure) for one in states.hidden_figure(lens, CLEAN, 0))
