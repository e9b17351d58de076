"""The residual stream, layer by layer, and what is added to it.

What enters a layer is the sum of the embedding and of all that the parts of earlier layers added. The hook points
``hook_attn_out``, ``hook_ssm_out`` and ``hook_mlp_out`` hold what is really added: multipliers, and norms behind a
part, are in it. A layer adds once for each of its parts: attention and a recurrence may stand side by side, and either,
or the MLP, may be missing.

How it fails: a model whose stream is no sum of what is written to it (MiniMax) is refused by what decomposes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlens.cache.held import Held
from hybridlens.errors import InputError
from hybridlens.peers import Slice

Mode: TypeAlias = Literal["all", "attn", "ssm", "mlp"]
"""Which parts of layers."""


class PartOf(NamedTuple):
    """A part of a layer that writes to the stream."""

    layer: int
    part: str
    """"attn", "ssm" or "mlp"."""

    @property
    def point(self) -> str:
        """The hook point that holds what it adds."""
        return f"blocks.{self.layer}.hook_{self.part}_out"

    @property
    def label(self) -> str:
        """As ``0_attn_out``."""
        return f"{self.layer}_{self.part}_out"


def check_mlp_input(held: Held, layer: int, mlp_input: bool) -> None:
    """Refuse the input of an MLP that is none.

    Raises:
        InputError: saying which layers have one.
    """
    if mlp_input and (layer == held.n_layers or "mlp" not in held.block(layer).parts):
        layers = ", ".join(str(i) for i in range(held.n_layers) if "mlp" in held.block(i).parts)
        has = f"layers {layers} have one that reads the stream" if layers else "no layer has one that reads the stream"
        what = "the unembedding" if layer == held.n_layers else f"layer {layer}"
        raise InputError(f"mlp_input=True was given with {what}, which has no such MLP; {has}")


def parts_before(held: Held, layer: int, mlp_input: bool, mode: Mode = "all") -> list[PartOf]:
    """The parts that have added to the stream that a layer reads, in the order in which they do.

    Args:
        held: the cache.
        layer: which; the number of layers for the unembedding.
        mlp_input: what its MLP reads is meant, and not what its mixers do.
        mode: which parts.
    """
    check_mlp_input(held, layer, mlp_input)
    found = [PartOf(i, part) for i in range(layer) for part in held.block(i).parts]
    if mlp_input:
        found += [PartOf(layer, part) for part in held.block(layer).parts if part != "mlp"]
    return [found for found in found if mode in ("all", found.part)]


def stream_before(held: Held, layer: int, mlp_input: bool, what: str) -> str:
    """The hook point of the stream that a layer reads, or of the one before it, which holds the same.

    Args:
        held: the cache.
        layer: which; the number of layers for the unembedding.
        mlp_input: what its MLP reads is meant.
        what: what it is for.

    Raises:
        NotCachedError: neither was kept.
    """
    last = held.n_layers - 1
    if mlp_input and len(held.block(layer).branches) > 1:
        name = f"blocks.{layer}.hook_resid_mid"
    elif layer > last:
        name = f"blocks.{last}.hook_resid_post"
    else:
        name = f"blocks.{layer}.hook_resid_pre"
        same = f"blocks.{layer - 1}.hook_resid_post"
        name = same if name not in held.tensors and same in held.tensors else name
    held.need([name], what)
    return name


def streams(
    held: Held, layer: int, incl_mid: bool, mlp_input: bool, pos: Slice
) -> tuple[Float[Tensor, "entry batch pos d_model"], list[str]]:
    """The stream at each layer up to the one that `layer` reads, and the labels.

    Args:
        held: the cache.
        layer: which; the number of layers for the unembedding.
        incl_mid: between mixers and MLPs too, of the layers that have both.
        mlp_input: up to what its MLP reads.
        pos: at which positions.

    Raises:
        NotCachedError: some were not kept.
    """
    check_mlp_input(held, layer, mlp_input)
    found: list[tuple[str, str]] = []
    for i in range(layer + 1):
        if i == held.n_layers:
            found.append(("final_post", stream_before(held, i, False, "accumulated_resid")))
            break
        found.append((f"{i}_pre", stream_before(held, i, False, "accumulated_resid")))
        has_mid = len(held.block(i).branches) > 1
        if has_mid and ((incl_mid and i < layer) or (mlp_input and i == layer)):
            found.append((f"{i}_mid", stream_before(held, i, True, "accumulated_resid")))
    names = [name for _, name in found]
    return stacked([held.rows(name, pos) for name in names]), [label for label, _ in found]


def added(
    held: Held, parts: Sequence[PartOf], incl_embeds: bool, pos: Slice, what: str
) -> tuple[Float[Tensor, "entry batch pos d_model"], list[str]]:
    """What parts added to the stream, the embedding first, and the labels.

    Args:
        held: the cache.
        parts: which.
        incl_embeds: whether the embedding is among them.
        pos: at which positions.
        what: what it is for.

    Raises:
        InputError: the stream is no sum of what is written to it.
        NotCachedError: some were not kept.
    """
    held.network.cfg.need_sum(what)
    names = [*(["hook_embed"] if incl_embeds else []), *(part.point for part in parts)]
    held.need(names, what)
    labels = [*(["embed"] if incl_embeds else []), *(part.label for part in parts)]
    stack = stacked([held.rows(name, pos) for name in names]) if names else nothing(held, pos)
    return stack, labels


def nothing(held: Held, pos: Slice) -> Float[Tensor, "entry batch pos d_model"]:
    """A stack of no entries, shaped as others would be."""
    like = held.rows(held.sample, pos)
    dtype = like.dtype if like.is_floating_point() else torch.float32
    return torch.zeros(0, *like.shape[:2], held.network.cfg.d_model, dtype=dtype, device=like.device)


def stacked(found: Sequence[Tensor]) -> Tensor:
    """Tensors in one, on the first's device and in the widest dtype among them."""
    dtype = found[0].dtype
    for tensor in found[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return torch.stack([tensor.to(found[0].device, dtype) for tensor in found])
