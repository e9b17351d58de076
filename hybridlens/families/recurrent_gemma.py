"""RecurrentGemma (Griffin): RG-LRU layers and sliding-window attention.

The RG-LRU (De et al. 2024, "Griffin", eq. 1-4): r_t and i_t are sigmoids of block-diagonal maps of the
convolved input x_t; a_t = exp(-8 · softplus(Λ) · r_t) and h_t = a_t h_{t-1} + √(1 - a_t²) (i_t ⊙ x_t). At
position 0 a document starts: a is 0 and the multiplier 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel, RecurrentGemmaConfig
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import SqrtBoundDerivative, apply_rotary_pos_emb

from hybridlens.attention import AttentionParts, HookedAttention
from hybridlens.components import Block, HookedMlp, HookedNorm, Pass, resident
from hybridlens.families.fields import OneOf
from hybridlens.families.layout import Layout, Read, RecurrentParts, Rotary, taps_of
from hybridlens.families.spec import Family, LensConfig, check_fields, eos_ids, require
from hybridlens.hooks import HookPoint
from hybridlens.layer_state import RecurrentState
from hybridlens.recurrence import causal_convolution, hidden_attention, hold_padding, hooked_states, remember
from hybridlens.shapes import Channels, Keys, Positions, Queries, Resid


class RgLru(nn.Module):
    """The recurrent mixer of a RecurrentGemma layer."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.wrapped = (block,)
        self.hook_in = HookPoint("b p c")
        self.hook_conv = HookPoint("b p c")
        self.hook_gate = HookPoint("b p c")
        self.hook_input_gate = HookPoint("b p c")
        self.hook_recurrence_gate = HookPoint("b p c")
        self.hook_decay = HookPoint("b p c")
        self.hook_write = HookPoint("b p c")
        self.hook_state = HookPoint("b p c", lazy=True, gradient_read_only=True)
        self.hook_y = HookPoint("b p c")
        blocks = block.rg_lru.num_attention_heads
        self.hook_pattern = HookPoint("b h p k", lazy=True, read_only=True, blocks=blocks)

    def forward(self, x: Resid, run: Pass, held: RecurrentState | None) -> tuple[Resid, RecurrentState]:
        """The layer's write to the residual stream, and its memory afterwards."""
        block, lru = self.wrapped[0], self.wrapped[0].rg_lru
        with resident(block.conv_1d, lru):
            u = self.hook_in(block.linear_x(x))
            u, conv = causal_convolution(
                u, None if held is None else held.conv, block.conv_1d.weight, block.conv_1d.bias, run.valid
            )
            u = self.hook_conv(u)
            gate = self.hook_gate(block.act_fn(block.linear_y(x)))
            i = self.hook_input_gate(block_sigmoid(u, lru.input_gate_weight, lru.input_gate_bias))
            r = self.hook_recurrence_gate(block_sigmoid(u, lru.recurrent_gate_weight, lru.recurrent_gate_bias))
            starts = (run.positions == 0)[..., None]
            decay, multiplier = decay_and_multiplier(r, lru.recurrent_param, starts)
        write = (u * i) * multiplier
        decay, write = self.hook_decay(decay.float()), self.hook_write(write.float())
        decay, write = hold_padding(decay, write, run.valid)
        states = hooked_states(decay, write, held, self.hook_state)
        y = self.hook_y(states.to(x.dtype))
        hidden_attention(
            decay, lambda: (i * multiplier).float(), None, lru.num_attention_heads, self.hook_pattern
        )
        return block.linear_out(y * gate), remember(conv, states[:, -1])


def block_sigmoid(
    x: Channels, weight: Float[Tensor, "block inner outer"], bias: Float[Tensor, "block outer"]
) -> Channels:
    """σ(W x + b) with a block-diagonal W."""
    blocks = x.reshape(-1, weight.shape[0], weight.shape[1]).transpose(0, 1)
    out = torch.baddbmm(bias[:, None, :], blocks, weight)
    return torch.sigmoid(out.transpose(0, 1).reshape(x.shape))


def decay_and_multiplier(
    r: Channels, param: Float[Tensor, "channel"], starts: Tensor
) -> tuple[Channels, Channels]:
    """a_t and √(1 - a_t²); 0 and 1 where a document starts.

    The square root's gradient is bounded as in the reference, since a_t near 1 would blow it up.

    Args:
        r: the recurrence gate.
        param: Λ.
        starts: bool [b p 1], True at position 0.
    """
    log_a = -8.0 * r * F.softplus(param)
    square = 1 - torch.exp(2 * log_a)
    root = cast(Tensor, SqrtBoundDerivative.apply(square)) if square.requires_grad else square.sqrt()
    return torch.exp(log_a).masked_fill(starts, 0.0), root.masked_fill(starts, 1.0).to(r.dtype)


def configure(config: RecurrentGemmaConfig) -> LensConfig:
    """Sizes of a RecurrentGemma; refuses what the family was not built for."""
    check_fields(RECURRENT_GEMMA, config)
    kind = (config.rope_parameters or {}).get("rope_type")
    require(kind in (None, "default"), "RecurrentGemma", "rope_type", kind, "'default'")
    return LensConfig(
        family="recurrentgemma",
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads or config.num_attention_heads,
        d_head=config.head_dim,
        d_mlp=config.intermediate_size // 2,
        d_vocab=config.vocab_size,
        window=config.attention_window_size,
        n_ctx=None,
        layer_types=tuple("attention" if kind == "sliding_attention" else "ssm" for kind in config.layers_block_type),
        d_channels=config.lru_width or config.hidden_size,
        d_state=None,
        d_conv=config.conv1d_width,
        n_experts=None,
        n_experts_per_token=None,
        moe_layers=(),
        act_fn=config.hidden_activation,
        eos_token_ids=eos_ids(config),
    )


def _norm(norm: Any) -> HookedNorm:
    return HookedNorm(norm, eps=norm.eps, offset=1.0)


@dataclass(frozen=True)
class PartialRotary:
    """Rotary position embedding on the first half of each head."""

    embedding: nn.Module

    def __call__(self, q: Queries, k: Keys, positions: Positions) -> tuple[Queries, Keys]:
        """Queries and keys, rotated by their positions."""
        cos, sin = self.embedding(q, positions)
        return apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2)


def _attention(module: Any) -> HookedAttention:
    return HookedAttention(
        AttentionParts(
            q=module.q_proj, k=module.k_proj, v=module.v_proj, o=module.o_proj,
            n_heads=module.num_attention_heads, n_kv_heads=module.num_key_value_heads,
            d_head=module.head_dim, rotary=PartialRotary(module.rotary_emb),
        )
    )


def _block(model: Any, cfg: LensConfig, layer: int) -> Block:
    hf = model.model.layers[layer]
    mixer = _attention(hf.temporal_block) if cfg.layer_types[layer] == "attention" else RgLru(hf.temporal_block)
    mlp = hf.mlp_block
    return Block(
        ln1=_norm(hf.temporal_pre_norm),
        mixer=mixer,
        ln2=_norm(hf.channel_pre_norm),
        mlp=HookedMlp(mlp.gate_proj, mlp.up_proj, mlp.down_proj, mlp.act_fn),
        home=hf,
    )


def _embed(model: Any, tokens: Tensor) -> Tensor:
    embedded = model.model.embed_tokens(tokens)
    return embedded * model.model.normalizer.to(device=embedded.device, dtype=embedded.dtype)


def _unembed(model: Any, resid: Tensor) -> Tensor:
    cap = model.config.logits_soft_cap
    return torch.tanh(model.lm_head(resid) / cap) * cap


def _final_norm(model: Any) -> HookedNorm:
    return _norm(model.model.final_norm)


def _recurrent_parts(config: RecurrentGemmaConfig, read: Read) -> RecurrentParts:
    """A recurrent layer's maps. At rest both gates are the sigmoids of their biases."""
    name = "temporal_block."
    i = torch.sigmoid(read(f"{name}rg_lru.input_gate_bias").flatten())
    r = torch.sigmoid(read(f"{name}rg_lru.recurrent_gate_bias").flatten())
    nowhere = torch.zeros((), dtype=torch.bool, device=r.device)
    _, multiplier = decay_and_multiplier(r[None, None], read(f"{name}rg_lru.recurrent_param"), nowhere)
    return RecurrentParts(
        W_in=read(f"{name}linear_x.weight").T,
        b_in=read(f"{name}linear_x.bias"),
        W_gate=read(f"{name}linear_y.weight").T,
        b_gate=read(f"{name}linear_y.bias"),
        taps=taps_of(read(f"{name}conv_1d.weight")),
        b_conv=read(f"{name}conv_1d.bias"),
        W_out=read(f"{name}linear_out.weight").T,
        b_out=read(f"{name}linear_out.bias"),
        activation=_identity,
        slope=1.0,
        gain_at_rest=i * multiplier[0, 0],
        gain_points=("hook_input_gate", "hook_decay"),
        gain=_gain,
    )


def _identity(x: Tensor) -> Tensor:
    return x


def _gain(seen: Mapping[str, Tensor]) -> Channels:
    """i_t √(1 - a_t²): what h_t holds of x_t."""
    return seen["hook_input_gate"].float() * (1 - seen["hook_decay"].square()).clamp(min=0).sqrt()


def _rotary(config: RecurrentGemmaConfig) -> Rotary | None:
    rope: Mapping[str, Any] = dict(config.rope_parameters or {})
    dims = int(config.head_dim * rope.get("partial_rotary_factor", 1.0))
    return Rotary(dims, float(rope.get("rope_theta", 10000.0))) if dims else None


def _embed_scale(config: RecurrentGemmaConfig) -> float:
    """√d, which the model holds in bfloat16."""
    return float(torch.tensor(config.hidden_size**0.5, dtype=torch.bfloat16))


def _qkv_bias(config: RecurrentGemmaConfig) -> bool:
    return config.attention_bias


def _no_experts(model: PreTrainedModel) -> int:
    return 0


RECURRENT_GEMMA = Family(
    name="recurrentgemma",
    architecture="RecurrentGemmaForCausalLM",
    other_fields={
        "embeddings_scale_by_sqrt_dim": (True,),
        "final_w_init_variance_scale": (),
        "_block_types": (),
        "rope_theta": (10000, 10000.0),
        "partial_rotary_factor": (0.5,),
        "block_type": (),
    },
    configure=configure,
    embed=_embed,
    block=_block,
    final_norm=_final_norm,
    unembed=_unembed,
    inactive_expert_parameters=_no_experts,
    layout=Layout(
        final_norm="model.final_norm.weight",
        ln1="temporal_pre_norm.weight",
        attention="temporal_block.",
        norm_offset=1.0,
        embed_scale=_embed_scale,
        qkv_bias=_qkv_bias,
        o_bias=True,
        rotary=_rotary,
        recurrent=_recurrent_parts,
        mlp_bias="mlp_block.down_proj.bias",
    ),
    limits={"partial_rotary_factor": OneOf((0.5,))},
)
