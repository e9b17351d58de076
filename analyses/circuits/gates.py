"""How far a head's OV circuit is off where a gate multiplies what the head reads, or a norm's scale what it writes.

Weights alone know a gate at rest only, at its value for input 0, which is ½ without a bias; on real tokens it is
another number for each token and channel. Of a norm behind the layer's output they know the weight, which is in W_O,
and not its scale s, another number for each token. The error is ‖out − lin‖ ÷ ‖out‖ over real tokens, both about their
means: out is what a head writes, (z ⊙ g) W_O ÷ s, lin what it would write with the gate at rest and one scale for all
tokens, (z ⊙ g₀) W_O · mean(1 ÷ s). 0 is exact, 1 no better than a constant.

How it fails: it says how far off the written values are, not whether the gate opens for what the circuit is about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.circuits.sums import relative, sums
from hybridlens.blocks import Block
from hybridlens.model import HybridLens
from hybridlens.shapes import Lengths, Valid
from hybridlens.tokens import TokensLike
from hybridlens.weights import Weights


def gate_errors(
    lens: HybridLens, weights: Weights, tokens: TokensLike, lengths: Sequence[int] | Lengths | None = None
) -> Float[Tensor, "attn_layer head"]:
    """The error of gates at rest and of one scale for all tokens, for every head; float32, on the CPU.

    It is 0 in layers with neither. Arguments are those of `paths.measured_paths`.

    Raises:
        InputError: prompts that cannot be run.
    """
    cfg = lens.cfg
    found = torch.zeros(len(cfg.attention_layers), cfg.n_heads)
    rest = {layer: weights.attention(layer).gate_at_rest for layer in cfg.attention_layers}
    scale = {layer: _scale_point(lens, layer) for layer in cfg.attention_layers}
    points: dict[int, list[str]] = {}
    for layer in cfg.attention_layers:
        names = ["attn.hook_z", *(["attn.hook_z_gated"] if cfg.attention(layer).gated else []), scale[layer]]
        if len(names) > 2 or scale[layer]:
            points[layer] = [f"blocks.{layer}.{name}" for name in names if name]
    if not points:
        return found

    def terms(layer: int, seen: Mapping[str, Tensor], mask: Valid) -> dict[str, Tensor]:
        z, gate = seen["hook_z"][mask].double(), rest[layer]
        out = z if gate is None else seen["hook_z_gated"][mask].double()
        lin = z if gate is None else gate * z
        inverse = 1 / seen["hook_scale"][mask].double() if scale[layer] else torch.ones_like(z[:, 0, :1])
        out = out * inverse[:, None]
        moments = {name: torch.einsum("the,thf->hef", x, y) for name, x, y in _pairs(out, lin)}
        return {"out": out.sum(0), "lin": lin.sum(0), "inverse": inverse.sum(), **moments}

    for layer, total in sums(lens, lens.batch(tokens, lengths), weights.cfg.device, points, terms).items():
        W_O, n = weights.attention(layer).W_O.double(), total["tokens"]
        spread = {  # Σ (x W_O) · (y W_O) about the means, by head
            name: ((total[name] - torch.einsum("he,hf->hef", x, y) / n) * (W_O @ W_O.mT)).sum((1, 2))
            for name, x, y in _pairs(total["out"], total["lin"])
        }
        mean = total["inverse"] / n
        off = spread["out out"] - 2 * mean * spread["out lin"] + mean**2 * spread["lin lin"]
        found[cfg.attention_layers.index(layer)] = relative(off.clamp(min=0), spread["out out"].clamp(min=0)).cpu()
    return found


def _scale_point(lens: HybridLens, layer: int) -> str:
    """The point, in its layer, that holds the scale of a norm behind attention; empty for no norm."""
    heads = cast(Block, lens.blocks[layer]).head_writes("attn")
    return "" if heads is None else heads.scale_point


def _pairs(out: Tensor, lin: Tensor) -> tuple[tuple[str, Tensor, Tensor], ...]:
    return ("out out", out, out), ("out lin", out, lin), ("lin lin", lin, lin)
