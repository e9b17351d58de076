"""What most families build alike, from modules under the names that transformers mostly gives them.

A row takes these where its modules follow the custom, and states the names or numbers that differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from hybridlens.blocks import Block, Branch
from hybridlens.config import AttentionConfig, LayerConfig, LensConfig, RecurrentConfig
from hybridlens.families.spec import eos_ids, require
from hybridlens.mixers.attention import AttentionParts, HookedAttention
from hybridlens.mixers.gated_norm import GatedNorm
from hybridlens.mixers.mamba2 import Mamba2, Mamba2Parts
from hybridlens.mixers.rotary import Rotary, Turning
from hybridlens.mlps import HookedMlp, HookedMoe, MlpParts, MoeParts
from hybridlens.norms import HookedNorm, Norm, NormStyle
from hybridlens.projections import Projection


@dataclass(frozen=True)
class Norms:
    """A family's norms.

    Attributes:
        style: how they treat their weight.
        eps: the attribute under which a module keeps ε.
    """

    style: NormStyle = field(default_factory=NormStyle)
    eps: str = "variance_epsilon"

    def of(self, owner: Any, name: str) -> Norm:
        """The norm that `owner` holds under `name`."""
        return Norm(owner, name, getattr(getattr(owner, name), self.eps), self.style)

    def hooked(self, owner: Any, name: str, cfg: LensConfig) -> HookedNorm:
        """The same, of the residual stream, with hook points."""
        return HookedNorm(self.of(owner, name), cfg.d_model)


def model_sizes(
    family: str, config: Any, layers: Iterable[LayerConfig], act_fn: str | None = None, endless: bool = False
) -> LensConfig:
    """What a model is made of, from the fields that most configurations have.

    Args:
        family: as `LensConfig.family` has it.
        config: the model's configuration.
        layers: what each layer has.
        act_fn: the MLPs' activation; None for `hidden_act`.
        endless: the configuration limits no length.
    """
    return LensConfig(
        family=family,
        layers=tuple(layers),
        d_model=config.hidden_size,
        d_vocab=config.vocab_size,
        n_ctx=None if endless else config.max_position_embeddings,
        act_fn=config.hidden_act if act_fn is None else act_fn,
        eos_token_ids=eos_ids(config),
    )


def attention_sizes(config: Any, **others: Any) -> AttentionConfig:
    """The sizes of grouped-query attention, from the fields that most configurations have.

    Args:
        config: the model's configuration.
        **others: fields of `AttentionConfig` besides.
    """
    heads = config.num_attention_heads
    return AttentionConfig(
        n_heads=heads,
        n_kv_heads=config.num_key_value_heads or heads,
        d_head=getattr(config, "head_dim", None) or config.hidden_size // heads,
        **others,
    )


def delta_sizes(config: Any) -> RecurrentConfig:
    """The sizes of a gated delta rule, from fields that start with ``linear_``.

    Raises:
        CheckpointError: value heads do not share key heads in equal groups.
    """
    heads, keys = config.linear_num_value_heads, config.linear_num_key_heads
    expected = f"a divisor of linear_num_value_heads = {heads}"
    require(heads % keys == 0, type(config).__name__, "linear_num_key_heads", keys, expected)
    values = heads * config.linear_value_head_dim
    return RecurrentConfig(
        kind="gated_delta",
        state_shape=(heads, config.linear_value_head_dim, config.linear_key_head_dim),
        d_channels=values,
        d_conv_channels=values + 2 * keys * config.linear_key_head_dim,
        d_conv=config.linear_conv_kernel_dim,
        n_heads=heads,
    )


def attention(
    attn: Any,
    sizes: AttentionConfig,
    d_model: int,
    turning: Turning | None = None,
    embedding: nn.Module | None = None,
    kind: str | None = None,
    **others: Any,
) -> HookedAttention:
    """Attention of a module with `q_proj`, `k_proj`, `v_proj` and `o_proj`, its scores scaled by 1/√d_head.

    Args:
        attn: the module.
        sizes: of it.
        d_model: width of the residual stream.
        turning: its rotary embedding as numbers; None for none.
        embedding: the model's module that makes its cosines and sines.
        kind: of the layer, where that module asks for it.
        **others: fields of `AttentionParts` that differ.
    """
    parts = {role: Projection(attn, f"{role}_proj") for role in "qkvo"}
    rotary = None if turning is None or embedding is None else Rotary(embedding, turning, kind)
    given: dict[str, Any] = {**parts, "scale": sizes.d_head**-0.5, "rotary": rotary, **others}
    return HookedAttention(sizes, AttentionParts(**given), d_model)


def windows(config: Any) -> tuple[int | None, ...]:
    """What each layer's attention sees, from `layer_types` and `sliding_window`; None for all.

    Raises:
        CheckpointError: a layer type of another name, or a window that is asked for and not said.
    """
    whose, sizes = type(config).__name__, {"full_attention": None, "sliding_attention": config.sliding_window}
    for kind in config.layer_types:
        require(kind in sizes, whose, "layer_types", kind, " or ".join(map(repr, sizes)))
        said = kind == "full_attention" or config.sliding_window is not None
        require(said, whose, "sliding_window", None, "a number, since layer_types has sliding_attention")
    return tuple(sizes[kind] for kind in config.layer_types)


def mamba2_sizes(
    heads: int, width: int, state: int, groups: int, taps: int, family: str, field: str = "mamba_n_groups"
) -> RecurrentConfig:
    """The sizes of a Mamba-2 mixer.

    Args:
        heads: how many.
        width: of a head.
        state: address width of a head's state.
        groups: of heads that share B and C.
        taps: of the convolution.
        family: for the message.
        field: of the groups, for the message.

    Raises:
        CheckpointError: heads do not fall into equal groups.
    """
    require(heads % groups == 0, family, field, groups, f"a divisor of {heads} recurrent heads")
    wide = heads * width + 2 * groups * state
    return RecurrentConfig("mamba2", (heads, width, state), heads * width, wide, taps, heads)


def mamba2(mixer: Any, sizes: RecurrentConfig, d_model: int, scale: float = 1.0) -> Mamba2:
    """Mamba-2 of a module with `in_proj`, `norm` (the gate comes before it) and `out_proj`.

    Args:
        mixer: the module.
        sizes: of it.
        d_model: width of the residual stream.
        scale: of what it writes.
    """
    low, high = mixer.time_step_limit
    parts = Mamba2Parts(
        mixer=mixer,
        project=Projection(mixer, "in_proj"),
        groups=mixer.n_groups,
        limit=(float(low), float(high)),
        norm=GatedNorm(mixer, "norm", mixer.norm.variance_epsilon, "gate_first", mixer.n_groups),
        out=Projection(mixer, "out_proj", scale=scale),
    )
    return Mamba2(sizes, parts, d_model)


def gated_mlp(mlp: Any, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj") -> MlpParts:
    """A gated MLP of a module with three projections and `act_fn`."""
    return MlpParts(Projection(mlp, up), Projection(mlp, down), mlp.act_fn, Projection(mlp, gate))


def hooked_mlp(cfg: LensConfig, layer: int, parts: MlpParts | MoeParts) -> nn.Module:
    """A layer's MLP or mixture of experts, with its hook points."""
    sizes = cfg.layers[layer].mlp
    assert sizes is not None
    return HookedMlp(sizes, parts) if isinstance(parts, MlpParts) else HookedMoe(sizes, parts, cfg.d_model)


def pre_normed(
    hf: Any,
    cfg: LensConfig,
    layer: int,
    mixers: Mapping[str, nn.Module],
    mlp: MlpParts | MoeParts,
    norms: Norms,
    names: tuple[str, str] = ("input_layernorm", "post_attention_layernorm"),
    after: tuple[str, str] | None = None,
) -> Block:
    """A layer x += mixers(norm x); x += mlp(norm x), or with norms around either.

    Args:
        hf: the family's layer.
        cfg: of the whole model.
        layer: its number.
        mixers: by name.
        mlp: an MLP or a mixture of experts, taken apart.
        norms: the family's.
        names: of the norm before the mixers, and of that before the MLP.
        after: of the norms after them; None for none.
    """
    first, second = (norms.hooked(hf, name, cfg) for name in names)
    behind = (None, None) if after is None else tuple(norms.hooked(hf, name, cfg) for name in after)
    branches = [Branch(mixers, first, behind[0]), Branch({"mlp": hooked_mlp(cfg, layer, mlp)}, second, behind[1])]
    return Block(branches, home=hf, d_model=cfg.d_model)


def last_norm(norms: Norms, name: str, model: Any, cfg: LensConfig) -> HookedNorm:
    """The norm before the unembedding, which the model without its head holds under `name`."""
    return norms.hooked(model.base_model, name, cfg)
