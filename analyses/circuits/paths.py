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

A delta rule passes nothing on at rest: its keys and queries are 0 there. Nor does a short convolution without biases,
whose input gate is 0 there; measured, that gate is its gain, though it stands before the convolution and so belongs to
the token that is heard. Such layers have no path from weights alone.

How it fails: the carry is often most of what a recurrent layer does, so the relative error of the measured paths
is often near 1 and can, where the mean gate or gain misleads, be above it. Then the paths say what the convolution can
pass on, not what the layer writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.circuits.sums import real_lengths, relative, sums
from hybridlens.errors import InputError
from hybridlens.model import HybridLens
from hybridlens.shapes import Channels, Lengths, Valid
from hybridlens.tokens import TokensLike
from hybridlens.weights import RecurrentWeights, Weights

BAND = 512
"""Channels whose products with all others are held at once."""

OUT = "hook_ssm_out"
"""The point that a recurrence passes last: what it writes, not what attention beside it does."""


class LinearPath(NamedTuple):
    """A recurrent layer's linear path: at a lag it is W_in diag(channels[:, lag]) W_out."""

    layer: int
    channels: Float[Tensor, "channel lag"]
    share: Float[Tensor, "lag"]
    """Of the summed squared Frobenius norms of all lags; sums to 1, or 0 where the path is zero."""


def paths_at_rest(weights: Weights, leave_out: bool = False) -> list[LinearPath]:
    """Linear paths of recurrent layers from weights alone: gates, gain and slope at input 0, output gate 1.

    Args:
        leave_out: whether layers whose recurrence passes nothing on at rest are left out, not refused.

    Raises:
        InputError: a layer's recurrence passes nothing on at rest.
    """
    silent: list[int] = []
    found: list[LinearPath] = []
    with torch.no_grad():
        for recurrent in map(weights.recurrent, weights.cfg.ssm_layers):
            if bool(recurrent.parts.gain_at_rest.any()):
                found.append(_path(recurrent))
            else:
                silent.append(recurrent.layer)
    if silent and not leave_out:
        raise InputError(
            f"the recurrence of layer {', '.join(map(str, silent))} passes nothing on at rest, so it has no linear "
            "path from weights alone; give real text, on which its gain is measured"
        )
    return found


def measured_paths(
    lens: HybridLens, weights: Weights, tokens: TokensLike, lengths: Sequence[int] | Lengths | None = None
) -> tuple[list[LinearPath], Float[Tensor, "ssm_layer"]]:
    """Linear paths at the mean of real tokens, and how far they are from what the layers do there.

    Prompts are run twice, a few at a time: for the means, and for the error.

    Args:
        lengths: real tokens of each row of a tensor padded on the right; padding never counts.

    Returns:
        The paths, and for each ‖out − lin‖ / ‖out‖ over real tokens, both centred: out is what the layer writes, lin
        the sum over lags of (x W_in + b_in) diag(channels) W_out. Centring drops all constants, such as the bias of the
        output and that of the activation's line. 0 is exact, 1 no better than a constant.

    Raises:
        InputError: prompts that cannot be run, fewer than 2 real tokens, weights of another model, or a recurrence
            without a convolution.
    """
    ours, theirs = weights.cfg, lens.cfg
    if (ours.layers, ours.d_model) != (theirs.layers, theirs.d_model):
        raise InputError("the weights are of another model than the lens; take Weights.of_model(lens)")
    batch = lens.batch(tokens, lengths)
    if int(real_lengths(batch).sum()) < 2:
        raise InputError("1 real token given, expected at least 2: the error is relative to the output's spread")
    layers, device = ours.ssm_layers, ours.device
    if not layers:
        return [], torch.zeros(0)
    bare = [layer for layer in layers if layer not in ours.conv_layers]
    if bare:
        raise InputError(
            f"linear paths are measured between what enters a convolution and what leaves it, but the recurrence of "
            f"layer {', '.join(map(str, bare))} has none"
        )

    def named(layer: int, points: Iterable[str]) -> list[str]:
        return [*(f"blocks.{layer}.ssm.{point}" for point in points), f"blocks.{layer}.{OUT}"]

    def means(layer: int, seen: Mapping[str, Tensor], mask: Valid) -> dict[str, Tensor]:
        parts = weights.recurrent(layer).parts
        before = convolved(seen["hook_in"][..., parts.written], parts.taps)
        before = (before if parts.b_conv is None else before + parts.b_conv)[mask].double()
        after = seen["hook_conv"][..., parts.written][mask].double()
        gain = parts.gain(seen) if parts.norm is None else parts.gain(seen) * parts.norm(seen)
        gain, gate = gain[mask].double(), seen["hook_gate"][mask].double()
        values = {"gain": gain, "gate": gate, "product": after * before, "square": before.square()}
        return {name: value.sum(0) for name, value in values.items()}

    def sources(layer: int) -> list[str]:
        return named(layer, [weights.recurrent(layer).parts.source])

    def misses(layer: int, seen: Mapping[str, Tensor], mask: Valid) -> dict[str, Tensor]:
        parts = weights.recurrent(layer).parts
        linear = convolved(seen[parts.source][..., parts.written], paths[layer].channels)[mask] @ parts.W_out
        found: dict[str, Tensor] = {}
        for name, x in (("out", seen[OUT][mask]), ("off", seen[OUT][mask] - linear)):
            found |= {name: x.double().sum(0), f"{name} squared": x.double().square().sum()}
        return found

    def spread(total: Mapping[str, Tensor], name: str) -> Float[Tensor, ""]:
        return (total[f"{name} squared"] - total[name].square().sum() / total["tokens"]).clamp(min=0)

    wanted: dict[int, list[str]] = {}
    for layer in layers:
        parts = weights.recurrent(layer).parts
        wanted[layer] = named(layer, {"hook_in", "hook_conv", "hook_gate", *parts.gain_points, *parts.norm_points})
    with torch.no_grad():
        totals = sums(lens, batch, device, wanted, means)
        paths = {layer: _at_means(weights.recurrent(layer), total) for layer, total in totals.items()}
        totals = sums(lens, batch, device, {layer: sources(layer) for layer in layers}, misses)
    errors = [relative(spread(total, "off"), spread(total, "out")) for total in totals.values()]
    return list(paths.values()), torch.stack(errors).cpu()


def convolved(u: Channels, taps: Float[Tensor, "channel lag"]) -> Channels:
    """Σ over lags of a token's and its predecessors' `u`, times the lag's taps; nothing stands before the first."""
    out = torch.zeros_like(u)
    for lag in range(min(taps.shape[1], u.shape[1])):
        out[:, lag:] += u[:, : u.shape[1] - lag] * taps[:, lag]
    return out


def _at_means(recurrent: RecurrentWeights, total: Mapping[str, Tensor]) -> LinearPath:
    """The linear path at the means of real tokens; a channel whose pre-activations are all 0 has the slope at 0."""
    slope = torch.where(total["square"] > 0, total["product"] / total["square"], recurrent.parts.slope)
    gain, gate = ((total[name] / total["tokens"]).float() for name in ("gain", "gate"))
    return _path(recurrent, gain, gate, slope.float())


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
