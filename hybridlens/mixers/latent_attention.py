"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): all heads' keys and values come from one latent a token.

A token's latent is normalised; each head unfolds it to a key and a value. A part of every key is the same for all heads
and comes from the stream itself. What is held of a token is the latent and that shared part, and nothing turns with
positions.

An edit of `hook_kv_latent` or `hook_k_shared` goes on to later steps through what is held. One of `hook_k` or `hook_v`
does too: from then on keys and values are held beside the latents, as large as plain attention's (`memory.Latents`). So
they are where a hook only reads them while gradients are followed: those of later steps come back through them.

How it fails: as `hybridlens.mixers.attention` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hybridlens.config import AttentionConfig, LatentConfig
from hybridlens.hooks import HookPoint, unchanged
from hybridlens.memory import Latents, Memory
from hybridlens.mixers.attention import AttentionParts, HookedAttention
from hybridlens.mixers.writing import written
from hybridlens.norms import HookedNorm, Norm
from hybridlens.passes import Pass
from hybridlens.shapes import Keys, Resid
from hybridlens.stream import HeadReads


@dataclass(frozen=True, eq=False, kw_only=True)
class LatentParts(AttentionParts):
    """A family's latent attention, taken apart: `k` gives latents and shared keys, `v` unfolds normalised latents.

    Attributes:
        norm: of the latents.
    """

    norm: Norm


class LatentAttention(HookedAttention):
    """Attention whose keys and values are unfolded from latents.

    Args:
        cfg: its sizes, with those of the latents.
        parts: the family's module, taken apart.
        d_model: width of the residual stream.
    """

    parts: LatentParts  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, cfg: AttentionConfig, parts: LatentParts, d_model: int) -> None:
        nn.Module.__init__(self)
        assert cfg.latent is not None
        self.cfg, self.parts, self.latent = cfg, parts, cfg.latent
        h, g, e, w, latent = cfg.n_heads, cfg.n_kv_heads, cfg.d_head, cfg.d_value, cfg.latent
        self.hook_q = HookPoint("b p h e", h=h, e=e)
        self.hook_kv_latent = HookPoint("b p l", l=latent.d_latent)
        self.hook_k_shared = HookPoint("b p y", y=latent.d_shared)
        self.hook_k = HookPoint("b p g e", g=g, e=e)
        self.hook_v = HookPoint("b p g w", g=g, w=w)
        self.hook_attn_scores = HookPoint("b h p k", lazy=True, h=h)
        self.hook_pattern = HookPoint("b h p k", lazy=True, h=h)
        self.hook_z = HookPoint("b p h w", h=h, w=w)
        self.hook_result = HookPoint("b p h d", lazy=True, h=h, d=d_model)

    def forward(
        self, x: Resid, run: Pass, held: Memory | None, after: HookedNorm | None = None
    ) -> tuple[Resid, Memory]:
        """The write to the residual stream, and the latents and shared keys held afterwards.

        Args:
            x: the normalised residual stream.
            run: the forward pass.
            held: latents and shared keys of earlier tokens.
            after: the norm that the write goes through; None for none.
        """
        q = self.hook_q(self.parts.q(x).unflatten(-1, (-1, self.cfg.d_head)))
        latent, shared = self.folded(x)
        latent, shared = self.hook_kv_latent(latent), self.hook_k_shared(shared)
        made = self.unfolded(latent, shared)
        followed = made[0].requires_grad and (self.hook_k.asked() or self.hook_v.asked())
        k, v = self.hook_k(made[0]), self.hook_v(made[1])
        edited = followed or not (unchanged(made[0], k) and unchanged(made[1], v))
        before = None if held is None else cast(Latents, held)
        memory = Latents(latent[:, None], shared[:, None])
        if before is not None:
            memory = cast(Latents, before.append(latent[:, None], shared[:, None]))
        keys, values = k.transpose(1, 2), v.transpose(1, 2)
        if memory.fixed:
            assert not edited  # such hooks keep steps from being captured (`fixed_steps.why_not`)
            keys, values = (t.transpose(1, 2) for t in self.unfolded(memory.k[:, 0], memory.v[:, 0]))
        elif before is not None and before.k.shape[2]:
            old_k, old_v = before.unfolded_k, before.unfolded_v
            if old_k is None or old_v is None:
                old_k, old_v = (t.transpose(1, 2) for t in self.unfolded(before.k[:, 0], before.v[:, 0]))
            else:
                edited = True
            keys, values = torch.cat([old_k, keys], dim=2), torch.cat([old_v, values], dim=2)
        memory = memory.unfolding(keys, values) if edited else memory
        slots = run.slots(self.cfg.window, memory.slots)
        if memory.kept is not None:
            slots = slots.without(memory.kept, self.cfg.n_heads)
        z = self.hook_z(self._mix(q, keys, values, slots))
        return written(self.parts.o, z, self.hook_result, after), memory

    def folded(
        self, x: Float[Tensor, "*batch d_model"]
    ) -> tuple[Float[Tensor, "*batch latent"], Float[Tensor, "*batch shared_key"]]:
        """The latents, normalised, and the shared parts of keys, given the normalised stream."""
        latent, shared = self.parts.k(x).split([self.latent.d_latent, self.latent.d_shared], dim=-1)
        return self.parts.norm(latent), shared

    def unfolded(
        self, latent: Float[Tensor, "batch pos latent"], shared: Float[Tensor, "batch pos shared_key"]
    ) -> tuple[Keys, Float[Tensor, "batch pos kv_head d_value"]]:
        """Every head's key, the shared part last, and its value."""
        by_head = self.parts.v(latent).unflatten(-1, (self.cfg.n_kv_heads, -1))
        own, v = by_head.split([self.cfg.d_head - self.latent.d_shared, self.latent.d_value], dim=-1)
        return torch.cat([own, shared[:, :, None].expand(-1, -1, own.shape[2], -1)], dim=-1), v

    @property
    def head_reads(self) -> dict[str, HeadReads]:
        """What its heads read; the slope of keys and values leaves out the norm inside."""
        cfg = self.cfg

        def query(x: Tensor) -> Tensor:
            return self.parts.q(x).unflatten(-1, (-1, cfg.d_head))

        return {
            "q": HeadReads(cfg.n_heads, "attn.hook_q", query, torch.ones_like),
            "k": HeadReads(cfg.n_kv_heads, "attn.hook_k", lambda x: self.unfolded(*self.folded(x))[0], torch.ones_like),
            "v": HeadReads(cfg.n_kv_heads, "attn.hook_v", lambda x: self.unfolded(*self.folded(x))[1], torch.ones_like),
        }

    def empty(self, batch: int, dtype: torch.dtype, device: torch.device) -> Memory:
        """What `batch` rows hold that have read nothing."""
        sizes: LatentConfig = self.latent
        latent, shared = (
            torch.zeros(batch, 1, 0, width, dtype=dtype, device=device) for width in (sizes.d_latent, sizes.d_shared)
        )
        return Latents(latent, shared)
