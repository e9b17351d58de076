"""What single heads added to the stream, of attention and of recurrences alike.

Matrix states (Mamba-2, the delta rules, lightning attention) write by heads as attention does. What a head adds is what
the output projection makes of its own part; a norm behind the projection is gone through with its scale as it was. A
run whose ``hook_result`` was kept has it; else it is computed from what the projection read.

How it fails: a mixer that writes as a whole (Mamba, RG-LRU, short convolutions) has no heads, and none are listed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlens.cache.held import Held
from hybridlens.cache.residual import PartOf
from hybridlens.devices import execution_device
from hybridlens.peers import Slice
from hybridlens.stream import HeadWrites

HeadMode: TypeAlias = Literal["all", "attn", "ssm"]
"""Heads of which mixers."""

LETTERS = {"head": "H", "ssm_head": "S"}
"""What stands between layer and number in a head's label."""


def heads_of(held: Held, part: PartOf) -> HeadWrites | None:
    """What the heads of a part write; None where it writes as a whole."""
    return held.block(part.layer).head_writes(part.part)


def head_labels(held: Held, part: PartOf) -> list[str]:
    """Of a part's heads, in order: ``L2H0``, ``L1S3``; none where it writes as a whole."""
    heads = heads_of(held, part)
    return [] if heads is None else [f"L{part.layer}{LETTERS[heads.kind]}{i}" for i in range(heads.n)]


def result_name(part: PartOf) -> str:
    """The hook point that holds what a part's heads add."""
    return f"blocks.{part.layer}.{part.part}.hook_result"


def is_kept(held: Held, part: PartOf) -> bool:
    """Whether what a part's heads add was kept, a row for each; whatever else stands there is not taken for it."""
    value, heads = held.tensors.get(result_name(part)), heads_of(held, part)
    sample = held.tensors[held.sample]
    lead = sample.ndim - len(held.network.points[held.sample].axes) + 2
    return value is not None and heads is not None and value.ndim == lead + 2 and value.shape[-2] == heads.n


def needed(held: Held, part: PartOf) -> list[str]:
    """The hook points that hold what a part's heads add, or what it is computed from."""
    heads = heads_of(held, part)
    if heads is None or is_kept(held, part):
        return [result_name(part)]
    return [f"blocks.{part.layer}.{point}" for point in heads.points]


def added_by_heads(held: Held, part: PartOf, pos: Slice) -> Float[Tensor, "batch pos head d_model"]:
    """What each head of a part added at some positions.

    Raises:
        NotCachedError: neither that nor what it is computed from was kept.
    """
    heads = heads_of(held, part)
    if heads is None or is_kept(held, part):
        return held.rows(result_name(part), pos)
    held.need(needed(held, part), f"heads of layer {part.layer}")
    seen = {point: held.rows(f"blocks.{part.layer}.{point}", pos) for point in heads.points}
    terms = heads.terms(seen)
    home = execution_device(heads.project.module, terms.device)
    return heads.written(terms.to(home, _dtype(held))).to(terms.device)


def compute_results(held: Held, parts: Iterable[PartOf]) -> dict[str, Tensor]:
    """What heads added at every position that was kept, of those parts whose ``hook_result`` was not.

    Raises:
        NotCachedError: what it is computed from was not kept either, saying what.
    """
    parts = [part for part in parts if heads_of(held, part) is not None and not is_kept(held, part)]
    held.need([name for part in parts for name in needed(held, part)], "compute_head_results")
    made: dict[str, Tensor] = {}
    for part in parts:
        heads = cast(HeadWrites, heads_of(held, part))
        like, every = f"blocks.{part.layer}.{heads.point}", Slice(None)
        made[result_name(part)] = held.handed(added_by_heads(held, part, every), like, every, axis=0)
    return made


def _dtype(held: Held) -> torch.dtype:
    return cast(torch.dtype, held.network.wrapped[0].dtype)
