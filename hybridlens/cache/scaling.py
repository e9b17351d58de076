"""Norms over terms of the stream: what a term is of what a layer, or the unembedding, reads.

A norm divides the stream by its scale and multiplies it by its weight (1 + w in some families). With the scale held as
it was in the run it is linear, so that terms of the stream become terms of what is read, and add up to it: the weight
is in them, and a token's direction (`hybridlens.cache.directions`) is the unembedding's own. A projection after the
norm is linear too, so that what is only wanted along a few directions is never made in full.

How it fails: a stack whose rows or positions are not the scale's is refused, since the two would be paired wrongly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlens.boundary_words import shown
from hybridlens.cache.held import Held, taken
from hybridlens.cache.residual import check_mlp_input
from hybridlens.devices import execution_device
from hybridlens.errors import InputError
from hybridlens.norms import HookedNorm
from hybridlens.peers import Slice


def norm_before(held: Held, layer: int, mlp_input: bool) -> tuple[HookedNorm, str] | None:
    """The norm that a layer reads the stream through, and its name; None where it reads the stream itself.

    Args:
        held: the cache.
        layer: which; the number of layers for the unembedding.
        mlp_input: the norm before its MLP, not the one before its mixers. Of a layer with an MLP alone they are one.

    Raises:
        InputError: a shared block's output is added to the stream before the norm, so that the stream is not all it
            reads.
    """
    check_mlp_input(held, layer, mlp_input)
    if layer == held.n_layers:
        return held.network.ln_final, "ln_final"
    block = held.block(layer)
    number = block.number_of("mlp") if mlp_input else 1
    if block.shared is not None and number == 1:
        raise InputError(
            f"apply_ln was asked for at layer {layer}, whose norm reads a shared block's output beside the stream, so "
            "that terms of the stream are not all it reads; leave apply_ln out, or take layer=-1, the unembedding"
        )
    norm = block.branches[number - 1].norm
    return None if norm is None else (norm, f"blocks.{layer}.ln{number}")


def renormed(norm: HookedNorm, stack: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
    """What a norm makes of each entry by itself, its scale computed anew."""
    return norm.unhooked(beside(norm, stack)).to(stack.device)


def beside(norm: HookedNorm, value: Tensor) -> Tensor:
    """A tensor where a norm's weight is."""
    return value.to(execution_device(norm.norm.module, value.device))


@dataclass(frozen=True, eq=False)
class Through:
    """What is done to every term of a stack: a norm, its scale held, then a projection; either may be missing.

    Attributes:
        norm: the norm; None for none.
        scale: its scale as it was in the run, [batch pos 1].
        onto: what the result is projected onto, [d_model output]; None to leave it as it is.
    """

    norm: HookedNorm | None = None
    scale: Tensor | None = None
    onto: Float[Tensor, "d_model output"] | None = None

    def __call__(self, terms: Float[Tensor, "*entry batch pos d_model"]) -> Float[Tensor, "*entry batch pos output"]:
        """Terms of the stream as terms of what comes out."""
        if self.norm is not None and self.scale is not None:
            terms = self.norm.at(beside(self.norm, terms), beside(self.norm, self.scale)).to(terms.device)
        return projected(terms, self.onto)

    def rows(self, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row output"]:
        """What is done to vectors that terms are multiples of, the same at all positions."""
        if self.norm is not None:
            rows = self.norm.norm.weighted(beside(self.norm, rows).float(), rows.dtype).to(rows.device)
        return projected(rows, self.onto)

    def over(self, factors: Float[Tensor, "batch pos row"]) -> Float[Tensor, "batch pos row"]:
        """What is done to the multiples, at each position."""
        return factors if self.scale is None else factors / self.scale.to(factors.device)


def through(held: Held, layer: int, mlp_input: bool, pos: Slice, apply_ln: bool, onto: Tensor | None) -> Through:
    """What is done to terms of the stream that a layer reads.

    Raises:
        InputError: `onto` is no projection of the stream.
        NotCachedError: the norm's scale was not kept.
    """
    d_model = held.network.cfg.d_model
    if onto is not None and (onto.ndim not in (1, 2) or onto.shape[0] != d_model or not onto.is_floating_point()):
        raise InputError(
            f"project_output_onto has shape {list(onto.shape)} and dtype {onto.dtype}, expected numbers [{d_model}] or "
            f"[{d_model}, outputs]"
        )
    onto = onto[:, None] if onto is not None and onto.ndim == 1 else onto
    found = norm_before(held, layer, mlp_input) if apply_ln else None
    if found is None:
        return Through(onto=onto)
    norm, name = found
    held.need([f"{name}.hook_scale"], "apply_ln")
    return Through(norm, held.rows(f"{name}.hook_scale", pos), onto)


def scaled(
    held: Held,
    stack: Float[Tensor, "entry *rest"],
    norm: HookedNorm,
    name: str,
    pos: Slice,
    rows: Slice,
    has_batch_dim: bool,
) -> Float[Tensor, "entry *rest"]:
    """A stack that somebody has made, through a norm with its scale held.

    Args:
        held: the cache.
        stack: of the rows and positions that `rows` and `pos` choose, the axes that they drop dropped.
        norm: the norm.
        name: its name.
        pos: the positions that the stack is at.
        rows: the rows that it is of.
        has_batch_dim: whether it has an axis of rows.

    Raises:
        InputError: the stack has other rows or positions than the scale.
        NotCachedError: the scale was not kept.
    """
    point = f"{name}.hook_scale"
    held.need([point], "apply_ln")
    scale = held.rows(point, pos)
    scale = scale.squeeze(1) if held.drops_pos(point, pos) else scale
    if not held.has_batch:
        scale = scale[0]
        if rows.mode != "identity":
            raise InputError("batch_slice was given for a cache of one prompt without an axis of rows; leave it out")
    else:
        scale = taken(scale, rows, 0, "batch_slice")
        if not has_batch_dim and rows.mode == "identity" and scale.shape[0] == 1:
            scale = scale[0]
    has, wants = stack.shape[1:-1], scale.shape[:-1]
    if len(has) != len(wants) or any(a not in (b, 1) for a, b in zip(has, wants, strict=True)):
        raise InputError(
            f"the stack is of {_axes(has)}, but the norm's scale of {_axes(wants)}; give the pos_slice and batch_slice "
            "that the stack was made with, and has_batch_dim=False if it has no axis of rows"
        )
    out = norm.at(beside(norm, stack), beside(norm, scale))
    return out.to(stack.device)


def projected(x: Float[Tensor, "*batch d_model"], onto: Tensor | None) -> Float[Tensor, "*batch output"]:
    """`x` along some directions; as it is where there are none."""
    if onto is None:
        return x
    dtype = torch.promote_types(x.dtype, onto.dtype)
    return x.to(dtype) @ onto.to(x.device, dtype)


def _axes(sizes: torch.Size) -> str:
    return f"shape {shown(list(sizes))} beside its entries and the stream's width"
