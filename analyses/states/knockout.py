"""What knocking recurrent heads out does to a metric, beside as many other heads drawn at random.

`knockout` measures one set of heads at some positions; `knockout_map` every head alone, at one block of positions after
the other. What is taken away is said in `analyses.states.silencing`. Rows of one batch are different knock-outs, and
what none of a batch can change is not computed again: the layers before the first head and the tokens before the first
position (`analyses.patching.snapshot`).

The control asks whether it matters which heads they are. Each random set has as many heads as were given, none of them
among these, and is knocked out at the same positions. With d the distance from the metric of the untouched run, and n
sets,

    p = (1 + #{sets: d_set ≥ d}) / (1 + n)

is a permutation p-value, which is never 0 (Phipson and Smyth 2010, "Permutation P-values should never be zero"). No
set is drawn twice, so that n is lower where fewer exist: a head that has 7 others to be compared with cannot be
surprising beyond 1/8.

How it fails: with few heads the p-value says little, whatever the effect. Zeros are not what a head that always writes
the same is used to, and several heads may stand in for each other, so that none of them shows alone. What a metric
reads on from the prompt is read with no knock-out. A run that begins behind the first positions rounds differently in
the last bits; distances that differ by less are the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import chain, combinations, product
from math import comb, prod
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.experiment.per_prompt import per_prompt
from analyses.patching.alignment import places_of
from analyses.patching.metrics import Metric, MetricLike, as_metric, measured
from analyses.patching.running import BATCH
from analyses.patching.snapshot import Snapshot
from analyses.states.knocked import Knockout, KnockoutMap, Pool
from analyses.states.silencing import RecurrentHead, Silenced, What, head_states, knock_out_rows, recurrent_heads
from hybridlens.boundary import Natural, Positive, Seed, public
from hybridlens.errors import InputError
from hybridlens.model import HybridLens
from hybridlens.progress import counted
from hybridlens.shapes import Tokens
from hybridlens.tokens import TokensLike

if TYPE_CHECKING:
    pass

BLOCKS = 16
"""Blocks of positions of a map."""


@per_prompt("tokens", shared={"metric": 1, "positions": 2})
@public
def knockout(
    lens: HybridLens,
    tokens: TokensLike,
    metric: MetricLike,
    heads: Sequence[tuple[int, int]],
    positions: Sequence[int] | None = None,
    what: What = "write",
    *,
    controls: Positive = 20,
    seed: Seed = 0,
    batch_size: Positive = BATCH,
    progress: Callable[[int], None] | None = None,
) -> Knockout:
    """Knock recurrent heads out of a run, then as many others at random, and measure what that does.

    Args:
        lens: the model.
        tokens: one prompt, or a list of them.
        metric: a `Metric`, or a function from logits [b p v] to [b]; of a list, one for all prompts or for each.
        heads: (layer, head) pairs, knocked out together.
        positions: of the prompt, counted from its end where below 0; None for all. A list of lists is one for each.
        what: "write" or "read"; see `silencing`.
        controls: random sets. They are drawn from the other heads of the same layers, as many of each layer, where
            that gives so many different sets; else from all other heads of the model, and if these give fewer, every
            set is taken once.
        seed: of the draws.
        batch_size: knock-outs in one forward pass.
        progress: called with the number of knock-outs done after each forward pass.

    Raises:
        InputError: several prompts, no heads or heads that the model does not have, no positions or ones outside the
            prompt, no other heads to draw from, or a metric that gives no finite number.
        UnknownNameError: something to knock out that does not exist.
    """
    prompt, length = _prompt(lens, tokens)
    chosen = sorted(set(heads))
    if not chosen:
        raise InputError("no head was given, expected at least one (layer, head) to knock out")
    if positions is not None and not positions:
        raise InputError("no position was given, expected at least one, or None for all")
    places = None if positions is None else tuple(sorted(set(places_of(positions, length))))
    knock_out_rows(lens, [Silenced(tuple(chosen))], what)  # refuses heads that are not there
    pool, drawn = _drawn(recurrent_heads(lens), chosen, controls, seed)
    cases = [Silenced(some, places) for some in (tuple(chosen), *drawn)]
    with counted(len(cases), "knock-outs", progress) as done:
        found = _measured(lens, prompt, as_metric(metric), cases, what, batch_size, done)
    return Knockout(
        value=float(found.values[0]),
        random=found.values[1:],
        heads=tuple(chosen),
        drawn=tuple(drawn),
        pool=pool,
        positions=places,
        seed=seed,
        untouched=found.untouched,
        what=what,
        metric=as_metric(metric).words,
        model=lens.network.signature,
        tokens=tuple(prompt[0].tolist()),
        forwards=found.forwards,
    )


@per_prompt("tokens", shared={"metric": 1})
@public
def knockout_map(
    lens: HybridLens,
    tokens: TokensLike,
    metric: MetricLike,
    what: What = "write",
    *,
    layers: Sequence[Natural] | None = None,
    blocks: Positive = BLOCKS,
    batch_size: Positive = BATCH,
    progress: Callable[[int], None] | None = None,
) -> KnockoutMap:
    """Knock every recurrent head out alone, at one block of positions after the other.

    Args not named here are those of `knockout`.

    Args:
        layers: whose heads; None for all layers with a state.
        blocks: blocks of positions, of as equal length as may be; of a shorter prompt every position is one.

    Raises:
        InputError: as `knockout`, or layers without a state.
        UnknownNameError: something to knock out that does not exist.
    """
    prompt, length = _prompt(lens, tokens)
    if layers is not None:
        for layer in layers:
            head_states(lens, layer)  # refuses layers without a state
    heads = [head for head in recurrent_heads(lens) if layers is None or head[0] in layers]
    if not heads:
        raise InputError("no layer was given, expected at least one, or None for all")
    n = min(blocks, length)
    ranges = [(length * i // n, length * (i + 1) // n) for i in range(n)]
    columns: list[_Found] = []
    with counted(len(heads) * n, "knock-outs", progress) as done:
        for start, stop in ranges:
            cases = [Silenced((head,), tuple(range(start, stop))) for head in heads]
            columns.append(_measured(lens, prompt, as_metric(metric), cases, what, batch_size, done))
    return KnockoutMap(
        values=torch.stack([found.values for found in columns], dim=1),
        heads=tuple(heads),
        blocks=tuple(ranges),
        untouched=columns[0].untouched,
        what=what,
        metric=as_metric(metric).words,
        model=lens.network.signature,
        tokens=tuple(prompt[0].tolist()),
        forwards=sum(found.forwards for found in columns),
    )


def _prompt(lens: HybridLens, tokens: TokensLike) -> tuple[Tokens, int]:
    """One prompt [1 p] and its length; several, and models without states, are refused."""
    lens.cfg.need_states("knocking out heads")
    prompt = lens.batch(tokens).tokens
    if prompt.shape[0] != 1:
        raise InputError(f"{prompt.shape[0]} prompts were given as one, expected one, or a list of them")
    return prompt, prompt.shape[1]


def _drawn(
    everyone: Sequence[RecurrentHead], heads: Sequence[RecurrentHead], controls: int, seed: int
) -> tuple[Pool, list[tuple[RecurrentHead, ...]]]:
    """Different sets of as many other heads, and where they are from."""
    others = [head for head in everyone if head not in heads]
    layers = sorted({layer for layer, _ in heads})
    of_layers = [([o for o in others if o[0] == layer], sum(h[0] == layer for h in heads)) for layer in layers]
    whole = [(others, len(heads))]
    near = prod(comb(len(some), k) for some, k in of_layers) >= controls
    pool: Pool = "layers" if near else "model"
    parts = of_layers if near else whole
    there = prod(comb(len(some), k) for some, k in parts)
    if there == 0:
        raise InputError(
            f"{len(heads)} of the model's {len(everyone)} recurrent heads were given, which leaves {len(others)} to "
            "draw as many others from; knock out fewer, or use knock_out, which needs no others"
        )
    if there <= controls:
        return pool, [tuple(chain(*sets)) for sets in product(*(combinations(some, k) for some, k in parts))]
    rng, found = random.Random(seed), dict[tuple[RecurrentHead, ...], None]()
    while len(found) < controls:
        found[tuple(chain(*(sorted(rng.sample(some, k)) for some, k in parts)))] = None
    return pool, list(found)


class _Found(NamedTuple):
    """The metric of the untouched run, and under each knock-out."""

    untouched: float
    values: Float[Tensor, "case"]
    forwards: int


@torch.no_grad()
def _measured(
    lens: HybridLens,
    prompt: Tokens,
    metric: Metric,
    cases: Sequence[Silenced],
    what: What,
    batch_size: int,
    done: Callable[[int], None],
) -> _Found:
    """The metric under knock-outs at the same positions, those that begin in the same layers in one batch."""
    cut = min(cases[0].positions or (0,))
    first = [min(layer for layer, _ in case.heads) for case in cases]
    order = sorted(range(len(cases)), key=first.__getitem__)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    run = Snapshot(lens, prompt, [first[batch[0]] for batch in batches], [cut], metric.last_only)
    untouched = float(measured(metric, lens, run.output, ["the untouched run"])[0])
    values = torch.empty(len(cases), dtype=torch.float64)
    for batch in batches:
        edits = knock_out_rows(lens, [cases[case] for case in batch], what)
        with lens.hooks([(edit.hook, edit.fn) for edit in edits]):
            output = run.go_on(len(batch), first[batch[0]], cut)
        words = [f"the run without {', '.join(f'L{a} head {b}' for a, b in cases[case].heads)}" for case in batch]
        values[batch] = measured(metric, lens, output, words)
        done(len(batch))
    return _Found(untouched, values, run.forwards)
