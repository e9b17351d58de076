"""How far a head's OV circuit is off where an output gate multiplies what the head reads.

Weights alone know a gate at rest only, at its value for input 0, which is ½ without a bias; on real tokens it is
another number for each token and channel. The error is ‖out − lin‖ ÷ ‖out‖ over real tokens, both about their means:
out is what a head writes, (z ⊙ g) W_O, lin what it would write with the gate at rest, (z ⊙ g₀) W_O. 0 is exact, 1 no
better than a constant.

How it fails: it says how far off the written values are, not whether the gate opens for what the circuit is about.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlens.hooks import HookPoint, reads_only
from hybridlens.model import HybridLens
from hybridlens.shapes import Lengths
from hybridlens.tokens import TokensLike
from hybridlens.weights import Weights

ROWS = 8
"""Prompts run at a time."""


class _Moments:
    """Sums of vectors and of their outer products over real tokens, head by head, float64."""

    def __init__(self) -> None:
        self.tokens = 0
        self.total: Tensor | float = 0.0
        self.outer: Tensor | float = 0.0

    def add(self, x: Float[Tensor, "token head d_head"]) -> None:
        """Count some tokens."""
        wide = x.double()
        self.tokens += len(wide)
        self.total = self.total + wide.sum(0)
        self.outer = self.outer + torch.einsum("the,thf->hef", wide, wide)

    def written(self, W_O: Float[Tensor, "head d_head d_model"]) -> Float[Tensor, "head"]:
        """Σ ‖x W_O‖² about the mean, by head."""
        total, wide = torch.as_tensor(self.total), W_O.double()
        centred = torch.as_tensor(self.outer) - torch.einsum("he,hf->hef", total, total) / self.tokens
        return (centred * (wide @ wide.mT)).sum((1, 2)).clamp(min=0)


def gate_errors(
    lens: HybridLens,
    weights: Weights,
    tokens: TokensLike,
    lengths: Sequence[int] | Lengths | None = None,
) -> Float[Tensor, "attn_layer head"]:
    """The error of the gate at rest for every head; 0 in layers without a gate, float32, on the CPU.

    Args:
        lens: the model.
        weights: its weights.
        tokens: prompts, as the lens takes them.
        lengths: real tokens of each row of a tensor padded on the right; padding never counts.

    Raises:
        InputError: prompts that cannot be run.
    """
    cfg = lens.cfg
    gated = [layer for layer in cfg.attention_layers if cfg.attention(layer).gated]
    found = torch.zeros(len(cfg.attention_layers), cfg.n_heads)
    if not gated:
        return found
    batch = lens.batch(tokens, lengths)
    rows = batch.tokens
    real = torch.full(rows.shape[:1], rows.shape[1], device=rows.device) if batch.lengths is None else batch.lengths
    written, missed = ({layer: _Moments() for layer in gated} for _ in range(2))
    rest: dict[int, Float[Tensor, "head d_head"]] = {}
    for layer in gated:
        gate = weights.attention(layer).gate_at_rest
        assert gate is not None
        rest[layer] = gate
    for start in range(0, rows.shape[0], ROWS):
        part, reals = rows[start : start + ROWS], real[start : start + ROWS]
        inside = torch.arange(part.shape[1], device=reals.device) < reals[:, None]
        ungated: dict[int, Tensor] = {}

        @reads_only
        def keep(x: Tensor, hook: HookPoint, inside: Tensor = inside, ungated: dict[int, Tensor] = ungated) -> None:
            _, number, _, point = str(hook.name).split(".")
            layer, seen = int(number), x[inside.to(x.device)].to(weights.cfg.device, torch.float32)
            if point == "hook_z":
                ungated[layer] = seen
                return
            written[layer].add(seen)
            missed[layer].add(seen - rest[layer] * ungated.pop(layer))

        names = [f"blocks.{layer}.attn.{point}" for layer in gated for point in ("hook_z", "hook_z_gated")]
        with torch.no_grad():
            lens.run_with_hooks(part, [(names, keep)], lengths=reals)
    for layer in gated:
        W_O = weights.attention(layer).W_O
        of, off = written[layer].written(W_O), missed[layer].written(W_O)
        relative = torch.where(off > 0, (off / of).sqrt(), 0.0)  # infinite where only what is missed varies
        found[cfg.attention_layers.index(layer)] = relative.float().cpu()
    return found
