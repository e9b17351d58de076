"""Layers as most families build them: x += mixers(norm x), then x += mlp(norm x)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from hybridlens.blocks import Block, Branch
from hybridlens.config import LensConfig
from hybridlens.mlps import HookedMlp, HookedMoe, MlpParts, MoeParts
from hybridlens.norms import HookedNorm, Norm
from hybridlens.projections import Projection


def gated_mlp(mlp: Any) -> MlpParts:
    """An MLP of the usual names, `gate_proj`, `up_proj`, `down_proj` and `act_fn`."""
    return MlpParts(Projection(mlp, "gate_proj"), Projection(mlp, "up_proj"), Projection(mlp, "down_proj"), mlp.act_fn)


def pre_normed(
    hf: nn.Module,
    cfg: LensConfig,
    layer: int,
    mixers: Mapping[str, nn.Module],
    mlp: MlpParts | MoeParts,
    norms: tuple[Norm, Norm],
) -> Block:
    """A layer of two branches, each behind its norm.

    Args:
        hf: the family's layer.
        cfg: of the whole model.
        layer: its number.
        mixers: by name.
        mlp: an MLP or a mixture of experts, taken apart.
        norms: before the mixers, and before the MLP.
    """
    sizes = cfg.layers[layer].mlp
    assert sizes is not None
    treated = HookedMlp(sizes, mlp) if isinstance(mlp, MlpParts) else HookedMoe(sizes, mlp, cfg.d_model)
    before_mixers, before_mlp = (HookedNorm(norm, cfg.d_model) for norm in norms)
    branches = [Branch(mixers, before_mixers), Branch({"mlp": treated}, before_mlp)]
    return Block(branches, home=hf, d_model=cfg.d_model)
