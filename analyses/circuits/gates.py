"""How far a head's OV circuit is off where an output gate multiplies what the head reads.

Weights alone know a gate at rest only, at its value for input 0, which is ½ without a bias; on real tokens it is
another number for each token and channel. The error is ‖out − lin‖ ÷ ‖out‖ over real tokens, both about their means:
out is what a head writes, (z ⊙ g) W_O, lin what it would write with the gate at rest, (z ⊙ g₀) W_O. 0 is exact, 1 no
better than a constant.

How it fails: it says how far off the written values are, not whether the gate opens for what the circuit is about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.circuits.sums import relative, sums
from hybridlens.model import HybridLens
from hybridlens.shapes import Lengths, Valid
from hybridlens.tokens import TokensLike
from hybridlens.weights import Weights


def gate_errors(
    lens: HybridLens, weights: Weights, tokens: TokensLike, lengths: Sequence[int] | Lengths | None = None
) -> Float[Tensor, "attn_layer head"]:
    """The error of the gate at rest for every head; 0 in layers without a gate, float32, on the CPU.

    Arguments are those of `paths.measured_paths`.

    Raises:
        InputError: prompts that cannot be run.
    """
    cfg = lens.cfg
    rest = {
        layer: gate
        for layer in cfg.attention_layers
        if cfg.attention(layer).gated and (gate := weights.attention(layer).gate_at_rest) is not None
    }

    def terms(layer: int, seen: Mapping[str, Tensor], mask: Valid) -> dict[str, Tensor]:
        out = seen["hook_z_gated"][mask]
        off = out - rest[layer] * seen["hook_z"][mask]
        found: dict[str, Tensor] = {}
        for name, x in (("out", out.double()), ("off", off.double())):
            found |= {name: x.sum(0), f"{name} squared": torch.einsum("the,thf->hef", x, x)}
        return found

    def spread(total: Mapping[str, Tensor], name: str, W_O: Tensor) -> Float[Tensor, "head"]:
        """Σ ‖x W_O‖² about the mean, by head."""
        mean = torch.einsum("he,hf->hef", total[name], total[name]) / total["tokens"]
        return ((total[f"{name} squared"] - mean) * (W_O @ W_O.mT)).sum((1, 2)).clamp(min=0)

    points = {layer: [f"blocks.{layer}.attn.{point}" for point in ("hook_z", "hook_z_gated")] for layer in rest}
    found = torch.zeros(len(cfg.attention_layers), cfg.n_heads)
    if not rest:
        return found
    for layer, total in sums(lens, lens.batch(tokens, lengths), weights.cfg.device, points, terms).items():
        W_O = weights.attention(layer).W_O.double()
        off, out = spread(total, "off", W_O), spread(total, "out", W_O)
        found[cfg.attention_layers.index(layer)] = relative(off, out).cpu()
    return found
