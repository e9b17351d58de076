"""A block beside the residual stream: attention and an MLP that feed a mixer's input, and write nothing to the stream.

A model may have one or a few such blocks and use each in several layers (Zamba2, https://arxiv.org/abs/2411.15242).
With x the stream, e the embedding, and `attn`, `mlp` and `out` the block's own maps,

    t = out(mlp(norm(attn(norm([x; e])))))

without any residual connection inside; the layer's mixer then reads x + t through its norm, and x itself goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, cat, nn

from hybridlens.errors import InputError
from hybridlens.hooks import HookPoint
from hybridlens.memory import Memory
from hybridlens.mixers.attention import HookedAttention
from hybridlens.mlps import HookedMlp
from hybridlens.norms import HookedNorm
from hybridlens.passes import Pass
from hybridlens.projections import Projection
from hybridlens.shapes import Resid


class Fed(NamedTuple):
    """What a shared block gives in one layer."""

    added: Resid
    """To the input of the layer's mixer."""
    memory: Memory
    """Its attention's, of this layer."""


class SharedBlock:
    """A shared block, as one layer uses it; the layer (`hybridlens.blocks.Block`) holds its modules.

    Args:
        attn: reads stream and embedding, one behind the other.
        mlp: reads what the attention gives, through its norm.
        ln_attn: the norm before the attention, over both widths at once.
        ln_mlp: the norm before the MLP.
        out: what the layer makes of what the MLP gives.
        d_model: width of the residual stream.
    """

    def __init__(
        self,
        attn: HookedAttention,
        mlp: HookedMlp,
        ln_attn: HookedNorm,
        ln_mlp: HookedNorm,
        out: Projection,
        d_model: int,
    ) -> None:
        self.attn = attn
        self.mlp = mlp
        self.ln_attn = ln_attn
        self.ln_mlp = ln_mlp
        self.out = out
        self.hook_attn_out = HookPoint("b p d", d=d_model)
        self.hook_mlp_out = HookPoint("b p d", d=d_model)
        self.hook_shared_out = HookPoint("b p d", d=d_model)

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """What the layer holds of it, by name, in the order in which they run."""
        names = ("ln_attn", "attn", "hook_attn_out", "ln_mlp", "mlp", "hook_mlp_out", "hook_shared_out")
        return {name: getattr(self, name) for name in names}

    def __call__(self, resid: Resid, run: Pass, held: Memory | None) -> Fed:
        """What the mixer reads beside the stream, and what the attention remembers.

        Args:
            resid: the stream that enters the layer.
            run: the forward pass, with the embedding of its tokens.
            held: keys and values of earlier tokens in this layer.

        Raises:
            InputError: the pass began in the middle, and nobody gave the embedding.
        """
        out, memory = self.attn(self.ln_attn(self._with_embedding(resid, run)), run, held)
        out, _ = self.mlp(self.ln_mlp(self.hook_attn_out(out)), run, None)
        return Fed(self.hook_shared_out(self.out(self.hook_mlp_out(out))), memory)

    def _with_embedding(self, resid: Resid, run: Pass) -> Float[Tensor, "batch pos both"]:
        if run.embedded is None:
            raise InputError(
                "the shared blocks of this model read the embedding beside the stream, and none was given; give resume "
                "the tokens' hook_embed as embedded="
            )
        return cat([resid, run.embedded], dim=-1)
