"""What an attention module holds and multiplies, counted from its shape alone.

A `LayerShape` is one layer's attention as it is left: heads, widths of what is held of a key and of a value, their
bits, the keys that a query sees and those of which it sums values. A reduction makes a smaller one of it.

Bytes: keys and values of key heads that a remaining query head reads, at their bits, each head's codes rounded up to
whole bytes. Of 2 bits and more a head's vector has its least value and its step beside it, of 1 bit one scale, 16 bits
each. A window holds so many tokens, whatever the context; `top` keys are chosen among all, which are all held.

Multiplications, for one token that is decoded: projections (of a packed gate too), scores, the weighted sum, and what
the reduction itself adds (see `LayerShape.multiplications`). Norms, rotary embedding, the scaling of scores, softmax
and the product with a gate, which all grow with the width alone or with the number of keys times 1, are left out, as
are additions.

How it fails: layers that hold latents, of which keys and values are made, are refused by `shapes_of`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from hybridlens.config import AttentionConfig
from hybridlens.errors import InputError
from hybridlens.model import HybridLens

COSTS = ("bytes", "multiplications")
"""By which a knee is sought: bytes held a token of context, multiplications a token decoded."""

KINDS = {
    "all": "all of it", "heads": "fewer heads", "width": "narrower heads", "bits": "fewer bits", "window": "a window",
    "keys": "the best keys alone", "together": "several at once",
}  # fmt: skip
"""Of modules, in the order in which they are shown, and in words."""

SCALE = 2
"""Bytes of a scale, a step or a least value: float16."""


class KeyParts(NamedTuple):
    """How the numbers that are held of one head's key lie in it."""

    flat: int
    """Components of what does not turn with positions."""
    single: int
    """Pairs of dimensions that turn, of which one direction is held, as it was before turning."""
    double: int
    """Pairs that are held whole, turned."""

    @property
    def width(self) -> int:
        """Numbers held."""
        return self.flat + self.single + 2 * self.double

    @property
    def read(self) -> int:
        """Numbers that a query is multiplied with."""
        return self.flat + 2 * (self.single + self.double)


@dataclass(frozen=True)
class LayerShape:
    """One layer's attention.

    Attributes:
        layer: which.
        cfg: as the model has it.
        d_in: width of what is projected.
        d_out: width of what is written.
        turning: dimensions of a key that turn with positions.
        itemsize: bytes of a number of the model's dtype.
        heads: query heads that are left.
        keys: of each key head, what is held of a key; None for all of it.
        value_width: numbers held of a value.
        bits: of each number held; None for those of the dtype.
        window: keys that a query sees, its own included; None for all.
        top: keys of which a query sums values; None for all that it sees.
    """

    layer: int
    cfg: AttentionConfig
    d_in: int
    d_out: int
    turning: int
    itemsize: int
    heads: tuple[int, ...]
    keys: tuple[KeyParts, ...] | None
    value_width: int
    bits: int | None
    window: int | None
    top: int | None

    @property
    def kv_heads(self) -> tuple[int, ...]:
        """Key heads that a remaining query head reads."""
        group = self.cfg.n_heads // self.cfg.n_kv_heads
        return tuple(sorted({head // group for head in self.heads}))

    @property
    def token_bytes(self) -> int:
        """Bytes held of one token."""
        return sum(
            self._vector_bytes(self.cfg.d_head if self.keys is None else self.keys[head].width)
            + self._vector_bytes(self.value_width)
            for head in self.kv_heads
        )

    def held(self, context: int) -> int:
        """Bytes held after so many tokens."""
        return self.token_bytes * self._seen(context)

    def multiplications(self, context: int) -> int:
        """Those of one token decoded, with which there are `context` tokens.

        * Narrow keys: what is held of a key before turning is a map of it, and so a part of its projection; where a
          norm of queries and keys stands between, it is a map of its own, and all of both is projected for the norm.
          At each step a pair of which one direction is held is turned into two numbers, once a key head.
        * Narrow values: narrowing is a part of their projection, and widening of the output's; where a gate stands
          between, z is widened before it.
        * Bits: a multiplication for each number that is rounded; for each key that a head sees one by its scale, two
          where there is a least value as well; likewise for each value that it sums.
        """
        cfg, heads, kv_heads = self.cfg, len(self.heads), self.kv_heads
        seen = self._seen(context)
        summed = seen if self.top is None else min(seen, self.top)
        gate = heads * self.d_in * cfg.d_value if cfg.gated else 0
        values = len(kv_heads) * self.d_in * self.value_width
        narrow = self.value_width < cfg.d_value
        out = heads * (cfg.d_value if cfg.gated or not narrow else self.value_width) * self.d_out
        widened = heads * self.value_width * cfg.d_value if narrow and cfg.gated else 0
        queries, keys, scores = self._of_keys(seen)
        total = gate + queries + keys + values + out + widened + scores + heads * summed * self.value_width
        return total + self._of_bits(seen, summed)

    def _of_keys(self, seen: int) -> tuple[int, int, int]:
        """Multiplications of queries' and keys' projections, and of scores."""
        cfg, heads, kv_heads = self.cfg, len(self.heads), self.kv_heads
        if self.keys is None:
            return heads * self.d_in * cfg.d_head, len(kv_heads) * self.d_in * cfg.d_head, heads * seen * cfg.d_head
        group = cfg.n_heads // cfg.n_kv_heads
        queries = keys = scores = 0
        for head in kv_heads:
            part, mine = self.keys[head], sum(own // group == head for own in self.heads)
            if cfg.qk_norm:
                flat = cfg.d_head - self.turning
                queries += mine * (self.d_in * cfg.d_head + flat * part.flat)
                keys += self.d_in * cfg.d_head + flat * part.flat + 2 * part.single
            else:
                queries += mine * self.d_in * part.read
                keys += self.d_in * part.width
            scores += seen * (mine * part.read + 2 * part.single)
        return queries, keys, scores

    def _of_bits(self, seen: int, summed: int) -> int:
        """Multiplications that rounding and scales take."""
        if self.bits is None:
            return 0
        widths = [self.cfg.d_head if self.keys is None else self.keys[head].width for head in self.kv_heads]
        rounded = sum(widths) + len(widths) * self.value_width
        return rounded + len(self.heads) * (seen + summed) * (1 if self.bits == 1 else 2)

    def _vector_bytes(self, width: int) -> int:
        if self.bits is None:
            return width * self.itemsize
        return -(-width * self.bits // 8) + SCALE * (1 if self.bits == 1 else 2)

    def _seen(self, context: int) -> int:
        return context if self.window is None else min(context, self.window)


def shapes_of(lens: HybridLens) -> tuple[LayerShape, ...]:
    """The module as the model has it, layer by layer.

    Raises:
        InputError: no layer has attention, or some hold latents.
    """
    lens.cfg.need_attention("replacing attention by less")
    return tuple(_shape_of(lens, layer) for layer in lens.cfg.attention_layers)


def mixer_of(lens: HybridLens, layer: int) -> Any:
    """A layer's attention, with its hook points, weights by name and parts."""
    return cast(Any, lens.blocks[layer]).attn


def _shape_of(lens: HybridLens, layer: int) -> LayerShape:
    cfg = lens.cfg.attention(layer)
    if cfg.latent is not None:
        raise InputError(
            f"attention in layer {layer} of this {lens.cfg.family} model holds latents, of which keys and values are "
            "made; replacing it by less needs attention that holds keys and values"
        )
    mixer = mixer_of(lens, layer)
    rotary = mixer.parts.rotary
    turning = 0 if rotary is None else rotary.turning.dims
    return LayerShape(
        layer, cfg, mixer.W_Q.shape[1], lens.cfg.d_model, turning, lens.dtype.itemsize, tuple(range(cfg.n_heads)),
        None, cfg.d_value, None, cfg.window, None,
    )  # fmt: skip


class Cost(NamedTuple):
    """What a module costs at one context."""

    token_bytes: float
    """Bytes held, by token of the context."""
    multiplications: int
    """Of one token decoded."""


def cost_of(layers: Sequence[LayerShape], context: int) -> Cost:
    """What all layers of a module cost together.

    Args:
        layers: of the module.
        context: tokens read, that which is decoded included.
    """
    held = sum(layer.held(context) for layer in layers)
    return Cost(held / context, sum(layer.multiplications(context) for layer in layers))
