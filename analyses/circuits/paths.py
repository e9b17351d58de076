"""Recurrent layers as linear maps: W_in diag(channels) W_out from the token `lag` back, for each convolution tap.

What is linearised, and how:

* the convolution is linear already: each lag is a path of its own;
* the activation after it: a slope for each channel. At rest that at 0; measured, the least-squares slope through the
  origin, Σ f(p) p / Σ p², over the pre-activations p = convolution(hook_in) + b_conv of real tokens;
* the recurrence: what a token's own input puts into the same token's readout, the gain. At rest every gate has its
  value for input 0; measured, the gain is its mean over real tokens. What the state carries over from earlier tokens
  is left out altogether, and so is what the input does to the gates;
* the norm between readout and output projection, where there is one: its weight is in W_out. Its scale is left out at
  rest, as those of all norms are in weights; measured, gain and scale are averaged as one product;
* the gate: 1, or its mean over real tokens.

So a path at rest is a matter of weights alone. In both, a token reaches the output through its convolution only, in
the few tokens that its taps span.

A delta rule passes nothing on at rest: its keys and queries are 0 there. Such a layer has no path from weights alone.

How it fails: the carry is often most of what a recurrent layer does, so the relative error of the measured paths
is often near 1 and can, where the mean gate or gain misleads, be above it. Then the paths say what the convolution can
pass on, not what the layer writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlens.errors import InputError
from hybridlens.hooks import Edit, HookPoint, reads_only
from hybridlens.model import HybridLens
from hybridlens.shapes import Channels, Lengths, Valid
from hybridlens.tokens import TokensLike
from hybridlens.weights import RecurrentWeights, Weights

ROWS = 8
"""Prompts run at a time."""

BAND = 512
"""Channels whose products with all others are held at once."""

OUT = "hook_ssm_out"
"""The point that a recurrence passes last: what it writes, not what attention beside it does."""

Take: TypeAlias = Callable[[int, Mapping[str, Tensor], Valid], None]
"""Given a layer, its activations by the last part of their points' names, float32, and which tokens are real."""


class LinearPath(NamedTuple):
    """A recurrent layer's linear path: at a lag it is W_in diag(channels[:, lag]) W_out."""

    layer: int
    channels: Float[Tensor, "channel lag"]
    share: Float[Tensor, "lag"]
    """Of the summed squared Frobenius norms of all lags; sums to 1, or 0 where the path is zero."""


def paths_at_rest(weights: Weights) -> list[LinearPath]:
    """Linear paths of all recurrent layers from weights alone: gates, gain and slope at input 0, output gate 1.

    Raises:
        InputError: a layer's recurrence passes nothing on at rest.
    """
    found = _at_rest(weights)
    silent = [layer for layer, path in found.items() if path is None]
    if silent:
        raise InputError(
            f"the recurrence of layer {', '.join(map(str, silent))} passes nothing on at rest, so it has no linear "
            "path from weights alone; give real text, on which its gain is measured"
        )
    return [path for path in found.values() if path is not None]


def passing_at_rest(weights: Weights) -> list[LinearPath]:
    """`paths_at_rest` of those layers whose recurrence passes something on at rest; the others are left out."""
    return [path for path in _at_rest(weights).values() if path is not None]


def _at_rest(weights: Weights) -> dict[int, LinearPath | None]:
    """By layer; None where nothing is passed on."""
    found: dict[int, LinearPath | None] = {}
    with torch.no_grad():
        for layer in weights.cfg.ssm_layers:
            recurrent = weights.recurrent(layer)
            found[layer] = _path(recurrent) if bool(recurrent.parts.gain_at_rest.any()) else None
    return found


def measured_paths(
    lens: HybridLens,
    weights: Weights,
    tokens: TokensLike,
    lengths: Sequence[int] | Lengths | None = None,
) -> tuple[list[LinearPath], Float[Tensor, "ssm_layer"]]:
    """Linear paths at the mean of real tokens, and how far they are from what the layers do there.

    Prompts are run twice, a few at a time: for the means, and for the error.

    Args:
        lens: the model.
        weights: its weights.
        tokens: prompts, as the lens takes them.
        lengths: real tokens of each row of a tensor padded on the right; padding never counts.

    Returns:
        The paths, and for each ‖out − lin‖ / ‖out‖ over real tokens, both centred: out is what the layer writes, lin
        the sum over lags of (x W_in + b_in) diag(channels) W_out. Centring drops all constants, such as the bias of the
        output and that of the activation's line. 0 is exact, 1 no better than a constant.

    Raises:
        InputError: prompts that cannot be run, fewer than 2 real tokens, or weights of another model.
    """
    ours, theirs = weights.cfg, lens.cfg
    if (ours.layers, ours.d_model) != (theirs.layers, theirs.d_model):
        raise InputError("the weights are of another model than the lens; take Weights.of_model(lens)")
    batch = lens.batch(tokens, lengths)
    rows = batch.tokens
    real = torch.full(rows.shape[:1], rows.shape[1], device=rows.device) if batch.lengths is None else batch.lengths
    if int(real.sum()) < 2:
        raise InputError("1 real token given, expected at least 2: the error is relative to the output's spread")
    if not ours.ssm_layers:
        return [], torch.zeros(0)
    layers = ours.ssm_layers
    means = {layer: _Means() for layer in layers}
    errors = {layer: _Errors() for layer in layers}
    wanted = {layer: {"hook_in", "hook_conv", "hook_gate", *_points(weights, layer)} for layer in layers}

    def count(layer: int, seen: Mapping[str, Tensor], mask: Valid) -> None:
        means[layer].add(weights.recurrent(layer), seen, mask)

    def compare(layer: int, seen: Mapping[str, Tensor], mask: Valid) -> None:
        errors[layer].add(paths[layer], weights.recurrent(layer), seen, mask)

    with torch.no_grad():
        _run(lens, weights, rows, real, wanted, count)
        paths = {layer: means[layer].path(weights.recurrent(layer)) for layer in layers}
        _run(lens, weights, rows, real, {layer: {"hook_in"} for layer in layers}, compare)
    return list(paths.values()), torch.tensor([error.relative for error in errors.values()])


def _points(weights: Weights, layer: int) -> tuple[str, ...]:
    parts = weights.recurrent(layer).parts
    return (*parts.gain_points, *parts.norm_points)


class _Means:
    """Sums over real tokens of what a layer's linear path is made of, float64."""

    def __init__(self) -> None:
        self.tokens = 0
        self.gate: Tensor | float = 0.0
        self.gain: Tensor | float = 0.0
        self.product: Tensor | float = 0.0
        self.square: Tensor | float = 0.0

    def add(self, recurrent: RecurrentWeights, seen: Mapping[str, Tensor], mask: Valid) -> None:
        """Count the real tokens of a batch."""
        parts = recurrent.parts
        before = convolved(seen["hook_in"][..., parts.written], parts.taps)
        before = (before if parts.b_conv is None else before + parts.b_conv)[mask].double()
        self.tokens += int(mask.sum())
        self.gate = self.gate + seen["hook_gate"][mask].double().sum(0)
        gain = parts.gain(seen) if parts.norm is None else parts.gain(seen) * parts.norm(seen)
        self.gain = self.gain + gain[mask].double().sum(0)
        self.product = self.product + (seen["hook_conv"][..., parts.written][mask].double() * before).sum(0)
        self.square = self.square + before.square().sum(0)

    def path(self, recurrent: RecurrentWeights) -> LinearPath:
        """The linear path at the means; a channel whose pre-activations are all 0 has the slope at 0."""
        product, square = torch.as_tensor(self.product), torch.as_tensor(self.square)
        slope = torch.where(square > 0, product / square, recurrent.parts.slope).float()
        gain, gate = (torch.as_tensor(total / self.tokens).float() for total in (self.gain, self.gate))
        return _path(recurrent, gain, gate, slope)


class _Errors:
    """Sums over real tokens of what a layer writes and of what its linear path misses, float64."""

    def __init__(self) -> None:
        self.tokens = 0
        self.sums: list[Tensor | float] = [0.0, 0.0]
        self.squares = [0.0, 0.0]

    def add(self, path: LinearPath, recurrent: RecurrentWeights, seen: Mapping[str, Tensor], mask: Valid) -> None:
        """Count the real tokens of a batch."""
        inner = seen["hook_in"][..., recurrent.parts.written]
        linear = convolved(inner, path.channels)[mask] @ recurrent.parts.W_out
        out = seen[OUT][mask]
        self.tokens += len(out)
        for i, x in enumerate(((out - linear).double(), out.double())):
            self.sums[i] = self.sums[i] + x.sum(0)
            self.squares[i] += float(x.square().sum())

    @property
    def relative(self) -> float:
        """‖out − lin‖ / ‖out‖, both centred; infinite where only the output never varies."""
        missed, written = (
            max(square - float(torch.as_tensor(total).square().sum()) / self.tokens, 0.0)
            for square, total in zip(self.squares, self.sums, strict=True)
        )
        if missed == 0:
            return 0.0
        return (missed / written) ** 0.5 if written > 0 else float("inf")


def convolved(u: Channels, taps: Float[Tensor, "channel lag"]) -> Channels:
    """Σ over lags of a token's and its predecessors' `u`, times the lag's taps; nothing stands before the first."""
    out = torch.zeros_like(u)
    for lag in range(min(taps.shape[1], u.shape[1])):
        out[:, lag:] += u[:, : u.shape[1] - lag] * taps[:, lag]
    return out


def _path(
    recurrent: RecurrentWeights,
    gain: Float[Tensor, "channel"] | None = None,
    gate: Float[Tensor, "channel"] | None = None,
    slope: Float[Tensor, "channel"] | None = None,
) -> LinearPath:
    channels = torch.stack([recurrent.path(lag, gain, gate, slope) for lag in range(recurrent.n_lags)], dim=1)
    squared = _squared_norms(recurrent.parts.W_in, channels, recurrent.parts.W_out)
    total = squared.sum()
    return LinearPath(recurrent.layer, channels, (squared / torch.where(total > 0, total, 1.0)).float())


def _squared_norms(
    W_in: Float[Tensor, "d_model channel"],
    channels: Float[Tensor, "channel lag"],
    W_out: Float[Tensor, "channel d_model"],
) -> Float[Tensor, "lag"]:
    """‖W_in diag(channels[:, lag]) W_out‖² for every lag at once, float64.

    It is Σ_ij c_i c_j (W_inᵀ W_in)_ij (W_out W_outᵀ)_ij, whose matrix is symmetric and shared by all lags.
    """
    total = torch.zeros(channels.shape[1], dtype=torch.float64, device=channels.device)
    for start in range(0, channels.shape[0], BAND):
        here = slice(start, start + BAND)
        both = (W_in[:, here].T @ W_in[:, start:]) * (W_out[here] @ W_out[start:].T)
        both[:, BAND:] *= 2
        total += (channels[here] * (both @ channels[start:])).sum(dim=0, dtype=torch.float64)
    return total.clamp(min=0)


def _run(
    lens: HybridLens, weights: Weights, rows: Tensor, real: Tensor, wanted: Mapping[int, set[str]], take: Take
) -> None:
    """Run prompts a few at a time and give each recurrent layer's activations to `take` as it is left behind."""
    names = {f"blocks.{layer}.{OUT}" for layer in wanted}
    names |= {f"blocks.{layer}.ssm.{point}" for layer, points in wanted.items() for point in points}
    for start in range(0, rows.shape[0], ROWS):
        lengths = real[start : start + ROWS]
        width = int(lengths.max())
        mask = (torch.arange(width, device=lengths.device) < lengths[:, None]).to(weights.cfg.device)
        held: dict[str, Tensor] = {}

        @reads_only
        def keep(x: Tensor, hook: HookPoint, mask: Tensor = mask, held: dict[str, Tensor] = held) -> None:
            _, layer, *_, point = str(hook.name).split(".")
            held[point] = x.to(weights.cfg.device, torch.float32)
            if point == OUT:
                take(int(layer), held, mask)
                held.clear()

        edits = [Edit(lambda name: name in names, keep)]
        lens.prefill(rows[start : start + ROWS, :width], edits, lengths=lengths, last_only=True)
