"""Steering: directions that tell two kinds of prompts apart, put into a run as edits, and what they do there.

* `difference`: the mean difference of the activations of pairs (Rimsky et al. 2023, "Steering Llama 2 via Contrastive
  Activation Addition"; Marks and Tegmark 2023, "The Geometry of Truth").
* `pca`: the first principal component of the pairs' differences and their opposites, which is the right singular vector
  of the differences as they are (Zou et al. 2023, "Representation Engineering"); its sign is that of the first sides.
* `steer`: edits that add a multiple of a direction, at any hook point: streams, parts' writes, recurrent states.
* `effect`: what that does to a metric over several multiples, beside random directions of the same length.

At ``ssm.hook_write`` and ``ssm.hook_state`` what is added goes on to later states as the recurrence carries it; a state
that is added to at every position gathers it up, so a few positions are mostly what is meant there.

How it fails: a metric moves under any large enough push, so that an effect no larger than that of random directions
says nothing; `SteeringEffect.p_value` says how often they do as much. Positions are absolute; those counted from a
row's end need the rows' `lengths`, since an edit does not know the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeAlias

import torch
from annotated_types import MinLen
from jaxtyping import Float
from torch import Tensor

from analyses.patching.metrics import MetricLike, as_metric, measured
from analyses.stream.directions import Direction, measured_along
from analyses.stream.places import Places, places_of
from analyses.stream.reading import BATCH, activations, batches, rows_of, token_point
from analyses.stream.steering_effect import SteeringEffect
from hybridlens.boundary import Positive, Seed, public
from hybridlens.errors import HookFunctionError, InputError
from hybridlens.hooks import Edit, HookFunction, HookPoint, Phase, check_phase, reads_only
from hybridlens.model import HybridLens
from hybridlens.running import PosSlice
from hybridlens.tokens import TokensLike

Pair: TypeAlias = tuple[TokensLike, TokensLike]
"""A prompt that has what the direction is to stand for, and one that lacks it."""

Pairs: TypeAlias = Annotated[Sequence[Pair], MinLen(1)]

SCALES = (-2.0, -1.0, 0.0, 1.0, 2.0)


@public
def difference(
    lens: HybridLens, pairs: Pairs, name: str, position: int = -1, *, batch_size: Positive = BATCH
) -> Direction:
    """The mean difference between the two sides of pairs of prompts.

    Args:
        lens: the model.
        pairs: (prompt with, prompt without), of any lengths.
        name: the hook point.
        position: of each prompt, counted from the end where below 0.
        batch_size: prompts in one forward pass.

    Raises:
        UnknownNameError: there is no such point.
        InputError: a point without numbers for each token, a position outside a prompt, several prompts given as one,
            or pairs whose sides do not differ.
    """
    name, found, shape = _differences(lens, pairs, name, position, batch_size)
    return measured_along(name, found.mean(dim=0), found, shape, "difference", position, lens.network.signature)


@public
def pca(lens: HybridLens, pairs: Pairs, name: str, position: int = -1, *, batch_size: Positive = BATCH) -> Direction:
    """The direction along which the two sides of pairs differ most; arguments and errors as `difference`."""
    name, found, shape = _differences(lens, pairs, name, position, batch_size)
    main = torch.linalg.svd(found, full_matrices=False).Vh[0]
    main = main if float((found @ main).mean()) >= 0 else -main
    main = main if bool(found.any()) else torch.zeros_like(main)
    return measured_along(name, main, found, shape, "pca", position, lens.network.signature)


@public
def steer(
    name: str,
    direction: Direction | Float[Tensor, "*axes"],
    scale: float = 1.0,
    positions: PosSlice = None,
    phase: Phase = "both",
    *,
    lengths: Sequence[Positive] | None = None,
) -> list[Edit]:
    """Edits that add a multiple of a direction to the activations of a hook point.

    Args:
        name: the hook point; another one than the direction's will do, where it fits.
        direction: what is added once: a direction by its size (`Direction.vector`), or a tensor as it is, in the shape
            of an activation at one token.
        scale: how many times.
        positions: absolute, from the first token of the text, decode steps counted on: one, a slice as a tuple, a list;
            None for all. Those counted from the end need `lengths`.
        phase: "prefill", "decode" or "both".
        lengths: tokens of each row's prompt; positions are then counted among these, as in `pos_slice`.

    Raises:
        UnknownNameError: for a phase that does not exist; a name that the model lacks, when it is used.
        InputError: positions counted from the end without `lengths`, or outside a prompt; a direction that is not
            finite.
        HookFunctionError: when it is used: a direction of another shape than the activations, or other rows than
            `lengths` has.
    """
    check_phase(phase)
    vector = direction.vector if isinstance(direction, Direction) else direction
    if not bool(vector.isfinite().all()):
        raise InputError("the direction holds NaN or infinity, expected finite numbers")
    places = None if positions is None else places_of(positions, lengths)
    return [Edit(name, _adding(vector * scale, places), phase)]


@public
def effect(
    lens: HybridLens,
    direction: Direction,
    prompts: TokensLike,
    metric: MetricLike,
    scales: Annotated[Sequence[float], MinLen(1)] = SCALES,
    *,
    name: str | None = None,
    positions: PosSlice = None,
    draws: Positive = 8,
    seed: Seed = 0,
    batch_size: Positive = BATCH,
) -> SteeringEffect:
    """What steering by a direction does to a metric, beside random directions of the same length.

    The prompts are read steered; what a metric reads on (a needle's answer) it reads unsteered, from what was left.

    Args:
        lens: the model.
        direction: what is added.
        prompts: of any lengths.
        metric: of a run over a prompt: `analyses.patching.metrics`, or a function of logits [b p v].
        scales: how many times the direction is added.
        name: the hook point; None for the direction's own.
        positions: of each prompt, among its own tokens; None for all.
        draws: random directions, of normal numbers.
        seed: of these.
        batch_size: prompts in one forward pass.

    Raises:
        UnknownNameError: there is no such point.
        InputError: positions outside a prompt, or a metric that gives no finite number for each prompt.
    """
    name = token_point(lens, direction.name if name is None else name, "steering")
    rows, rng = rows_of(lens, prompts), torch.Generator().manual_seed(seed)
    length = float(direction.vector.norm())
    drawn = torch.randn(draws, *direction.unit.shape, generator=rng)
    drawn = drawn * (length / drawn.flatten(1).norm(dim=1)).view(-1, *[1] * direction.unit.ndim)

    def values(vector: Float[Tensor, "*axes"] | None, scale: float) -> Float[Tensor, "prompt"]:
        return _values(lens, rows, name, vector, scale, positions, metric, batch_size)

    untouched = values(None, 0.0)
    return SteeringEffect(
        torch.stack([untouched if scale == 0 else values(direction.vector, scale) for scale in scales]),
        torch.stack(
            [
                torch.stack([untouched if scale == 0 else values(vector, scale) for scale in scales])
                for vector in drawn
            ]
        ),
        untouched, tuple(map(float, scales)), length, as_metric(metric).words, name, seed, lens.network.signature,
    )  # fmt: skip


@torch.no_grad()
def _values(
    lens: HybridLens,
    rows: Sequence[Sequence[int]],
    name: str,
    vector: Float[Tensor, "*axes"] | None,
    scale: float,
    positions: PosSlice,
    metric: MetricLike,
    batch_size: int,
) -> Float[Tensor, "prompt"]:
    """The metric of each prompt under a push; prompts of one length are read together."""
    asked, found = as_metric(metric), torch.full((len(rows),), torch.nan, dtype=torch.float64)
    lengths: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        lengths.setdefault(len(row), []).append(number)
    for length, numbers in lengths.items():
        for read in batches(lens, [rows[number] for number in numbers], batch_size):
            own = numbers[read.first : read.first + len(read.batch.tokens)]
            edits = [] if vector is None else steer(name, vector, scale, positions, lengths=[length] * len(own))
            with lens.editing(edits, "prefill") as forward:
                output = forward(*read.batch, None, asked.last_only)
            found[own] = measured(asked, lens, output, [f"prompt {number}" for number in own])
    return found


def _differences(
    lens: HybridLens, pairs: Sequence[Pair], name: str, position: int, batch_size: int
) -> tuple[str, Float[Tensor, "pair number"], torch.Size]:
    """The hook point, what each pair differs in there (float64), and the shape of an activation at one token."""
    name = token_point(lens, name, "a direction")
    sides: list[list[int]] = []
    for number, pair in enumerate(pairs):
        for side in pair:
            rows = rows_of(lens, side)
            if len(rows) != 1:
                raise InputError(f"pair {number} has {len(rows)} prompts on one side, expected one; give several pairs")
            sides += rows
    held = activations(lens, sides, [name], position, batch_size)[0][name]
    first, second = held[0::2].double(), held[1::2].double()
    return name, (first - second).flatten(1), held.shape[1:]


def _adding(push: Float[Tensor, "*axes"], places: Places | None) -> HookFunction:
    """A hook function that adds to activations, at some positions or at all."""

    @reads_only
    def add(x: Tensor, hook: HookPoint) -> Tensor:
        if tuple(x.shape[2:]) != tuple(push.shape):
            raise HookFunctionError(
                f"steering '{hook.name}': the direction has shape {list(push.shape)}, expected {list(x.shape[2:])}, "
                "that of an activation at one token"
            )
        added = push.to(x.device, x.dtype).expand_as(x)
        if places is None:
            return x + added
        assert hook.positions is not None
        here = places.mask(hook.positions, len(x)).to(x.device)
        return torch.where(here.view(*here.shape, *[1] * push.ndim), x + added, x)

    return add
