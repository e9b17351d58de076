"""Each metric of `HeadCircuits` ranks the head planted for it first, and holds no other head for one (`planted`)."""

from functools import cache
from typing import NamedTuple

import planted
import pytest
import torch
from planted import MODELS, Plant, cases, made

from analyses.circuits import HeadCircuits, circuits
from hybridlens.errors import InputError

FEW = [MODELS[1], MODELS[6]]
"""A RecurrentGemma and a Jamba, with two key/value heads and with one."""
OFF = [m for m in MODELS if m[:2] == ("recurrentgemma", 0.0)]
ON = [m for m in MODELS if m not in OFF]


class Bounds(NamedTuple):
    """What a metric gives the heads that have what it measures, at least, and any other head, at most."""

    kinds: tuple[str, ...]
    found: float
    other: float


BOUNDS = {
    "copying": Bounds(("copying", "induction", "tap"), 0.95, 0.5),
    "copying_share": Bounds(("copying", "induction", "tap"), 0.95, 0.3),
    "matching": Bounds(planted.KINDS[3:6], 0.55, 0.4),  # the mean over distances falls where heads turn
    "matching_share": Bounds(planted.KINDS[3:6], 0.8, 0.3),
    "previous": Bounds(("previous",), 0.95, 0.1),
    "induction": Bounds(("induction", "tap"), 0.08, 0.02),
    "induction_match": Bounds(("induction", "tap"), 0.95, 0.5),
    "retrieval": Bounds(("induction", "tap"), 0.95, 0.5),
}


@cache
def scored(kind: str, model: tuple) -> tuple[Plant, HeadCircuits]:
    """A plant and its circuits, from weights alone."""
    p = made(kind, model)
    return p, circuits(p.lens)


def check(p: Plant, kind: str, found: HeadCircuits) -> None:
    """Every metric puts its heads first and above its bound, and all others below theirs."""
    rotary = "previous" in found.metrics
    for metric, (kinds, least, most) in BOUNDS.items():
        if metric not in found.metrics:
            continue
        heads = [p.head] if kind in kinds else []
        if metric in ("induction", "induction_match", "retrieval") and kind == "induction" and not rotary:
            heads = []
        if metric == "previous" and p.writer is not None:
            heads = [p.writer]
        scores = found.score(metric)
        mask = torch.zeros(scores.shape, dtype=torch.bool)
        for layer, head in heads:
            mask[found.layers.index(layer), head] = True
        assert (scores[mask] > least).all(), metric
        assert scores[~mask].max() < most, metric
        assert found.ranking(metric).order[: len(heads)] == heads, metric


ALL = cases(*planted.KINDS[:6], of=FEW) + cases("induction", "tap", of=ON) + cases("copying", "tap", of=OFF)


@pytest.mark.parametrize(("kind", "model"), ALL)
def test_every_metric_finds_its_head_and_no_other(kind, model):
    """The planted head is first in the ranking, above a bound that random heads stay well under; elsewhere none is.

    Without rotary embedding no head finds the previous token by itself. An induction pair whose writer gets it from
    a recurrent layer, by Q-composition, is a chain of three, which strengths made of one writer do not see: none of
    its heads is held for an induction head.
    """
    p, found = scored(kind, model)
    assert ("previous" in found.metrics) == bool(model[1])
    check(p, kind, found)


def test_the_previous_token_metric_is_refused_without_rotary_embedding():
    """One line that says what is missing and what there is instead."""
    _, found = scored("copying", FEW[1])
    with pytest.raises(InputError, match=r"needs rotary embedding, and jamba has none: .*; expected one of co"):
        found.score("previous")


@pytest.mark.parametrize(("kind", "model"), cases("induction", "tap", of=ON))
def test_the_induction_head_names_its_writer(kind, model):
    """The writer is the planted head or recurrent layer, with seeds of its own: one of 3 to 15 by chance."""
    p, found = scored(kind, model)
    if kind == "induction" and not model[1]:
        return
    name = f"L{p.recurrent} lag 1" if p.writer is None else f"L{p.writer[0]} H{p.writer[1]}"
    writer = int(found.induction_writer[found.layers.index(p.head[0]), p.head[1]])
    assert found.writers[writer] == name


@pytest.mark.parametrize(("kind", "model"), cases("tap", "induction", of=FEW))
def test_paths_and_means_from_real_tokens_find_the_same(kind, model):
    """Also with recurrent layers linearised, and attention's mean input taken, on tokens that were run."""
    p = made(kind, model)
    found = circuits(p.lens, planted.tokens(4, 40))
    assert found.linearised == "at the mean of 160 tokens"
    check(p, kind, found)
