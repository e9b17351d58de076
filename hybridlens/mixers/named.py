"""The weights of mixers under names, for `hybridlens.named_weights`: attention's by head, recurrent layers' by branch.

Where query heads share keys and values, `W_K` and `W_V` have them once for each query head, as TransformerLens'
HookedTransformer has, so that ``W_V[h] @ W_O[h]`` is head h's whichever h: heads paired in another way would give
numbers without a word. At `hook_k` and `hook_v` they stand once, and in ``lens.weights().attention(layer)``; query head
h reads number h // (n_heads // n_kv_heads) of those.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from hybridlens.config import AttentionConfig
from hybridlens.errors import AbsentError
from hybridlens.habit_parts import ATTENTION, RECURRENCE
from hybridlens.mixers.linear import RecurrentParts
from hybridlens.named_weights import NamedWeight, NamedWeights, or_zeros
from hybridlens.projections import Projection, Read, in_memory


class AttentionByName(NamedWeights):
    """The weights of attention; `parts` are a family's (`AttentionParts`)."""

    cfg: AttentionConfig
    parts: Any

    habits = ATTENTION

    W_Q = NamedWeight("W_Q", "Queries [head d_in d_head].")
    W_K = NamedWeight("W_K", "Keys, of each query head [head d_in d_head].")
    W_V = NamedWeight("W_V", "Values, of each query head [head d_in d_value].")
    W_O = NamedWeight("W_O", "What each head's value adds to the stream [head d_value d_model].")
    b_Q = NamedWeight("b_Q", "Of queries [head d_head].")
    b_K = NamedWeight("b_K", "Of keys [head d_head].")
    b_V = NamedWeight("b_V", "Of values [head d_value].")
    b_O = NamedWeight("b_O", "Of what is written [d_model].")
    W_gate = NamedWeight("W_gate", "Logits of the gate on what heads read [head d_in d_value].")
    b_gate = NamedWeight("b_gate", "Of the gate's logits [head d_value].")

    def named_weight(self, name: str) -> Tensor:
        """See `NamedWeights`."""
        cfg, parts, which = self.cfg, self.parts, name[2:]
        if which == "O":
            matrix, bias = parts.o.from_heads(in_memory, cfg.n_heads)
            return matrix if name[0] == "W" else or_zeros(bias, matrix, matrix.shape[-1])
        if which == "gate" and not parts.packed_gate:
            raise AbsentError(f"there is no {name}: what these heads read is not gated")
        if which in ("K", "V") and cfg.latent is not None:
            raise AbsentError(without_matrices(name))
        heads, width = cfg.n_kv_heads if which in ("K", "V") else cfg.n_heads, cfg.d_head
        project: Projection = {"Q": parts.q, "gate": parts.q, "K": parts.k, "V": parts.v}[which]
        packed = which in ("Q", "gate") and parts.packed_gate
        matrix, bias = project.heads(in_memory, heads, 2 * width if packed else width)
        if name[0] == "b":
            matrix = or_zeros(bias, matrix, heads, matrix.shape[-1])
        if heads < cfg.n_heads:
            matrix = matrix.repeat_interleave(cfg.n_heads // heads, dim=0)
        return matrix[..., width:] if which == "gate" else matrix[..., :width]


def without_matrices(name: str) -> str:
    """What is said of keys and values that no matrix gives."""
    return (
        f"there is no {name}: keys and values here are made of latents through a norm, which no matrix does; "
        "lens.weights(folded=True) has the maps up to that norm's scale"
    )


class RecurrenceByName(NamedWeights):
    """The linear maps of a recurrent layer, those that `RecurrentParts` has, of values alone where addresses are apart.

    A norm between readout and output projection is in `W_out`.
    """

    out: Projection
    habits = RECURRENCE

    W_in = NamedWeight("W_in", "What enters the convolution, or the recurrence [d_model channel].")
    b_in = NamedWeight("b_in", "Of the same [channel].")
    W_gate = NamedWeight("W_gate", "The gate on the readout, before its activation [d_model channel].")
    b_gate = NamedWeight("b_gate", "Of the same [channel].")
    taps = NamedWeight("taps", "The convolution, by tokens back [channel lag].")
    b_conv = NamedWeight("b_conv", "Of the convolution [channel].")
    W_out = NamedWeight("W_out", "What the gated readout adds to the stream [channel d_model].")
    b_out = NamedWeight("b_out", "Of the same [d_model].")

    @abstractmethod
    def linear_parts(self, read: Read) -> RecurrentParts:
        """The layer's linear maps."""

    def named_weight(self, name: str) -> Tensor:
        """See `NamedWeights`."""
        dtypes: set[torch.dtype] = set()

        def wide(module: nn.Module, place: str) -> Tensor:
            tensor = in_memory(module, place)
            dtypes.add(tensor.dtype)
            return tensor.float()

        parts = self.linear_parts(wide)
        found: Tensor | None = getattr(parts, name)
        if found is None:
            matrix = {"b_in": parts.W_in, "b_gate": parts.W_gate, "b_conv": parts.W_in, "b_out": parts.W_out}[name]
            found = matrix.new_zeros(matrix.shape[1])
        return found.to(min(dtypes, key=lambda dtype: dtype.itemsize))
