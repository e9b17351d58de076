"""Jamba: Mamba layers, attention without rotary, and mixtures of experts.

Mamba (Gu & Dao 2023): from the convolved input x_t come Δ_t, B_t and C_t (each with a norm of its own
in Jamba); the state decays by exp(Δ_t A), takes in Δ_t B_t x_t and is read out as C_t · h_t + D x_t.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import JambaConfig

from hybridlens import selective
from hybridlens.attention import AttentionParts, HookedAttention
from hybridlens.components import Block, ExpertWrite, HookedMlp, HookedNorm, Pass, resident
from hybridlens.families.layout import Layout, Read, RecurrentParts, taps_of
from hybridlens.families.spec import Family, LensConfig, check_fields, eos_ids, require
from hybridlens.hooks import HookPoint, wanted
from hybridlens.layer_state import RecurrentState
from hybridlens.recurrence import (
    causal_convolution,
    hidden_attention,
    hold_padding,
    hooked_selective_states,
    hooked_states,
    remember,
)
from hybridlens.shapes import Resid


class Mamba(nn.Module):
    """The recurrent mixer of a Jamba layer."""

    def __init__(self, mixer: Any) -> None:
        super().__init__()
        self.wrapped = (mixer,)
        self.hook_in = HookPoint("b p c")
        self.hook_conv = HookPoint("b p c")
        self.hook_gate = HookPoint("b p c")
        self.hook_dt = HookPoint("b p c")
        self.hook_B = HookPoint("b p n")
        self.hook_C = HookPoint("b p n")
        self.hook_decay = HookPoint("b p c n", lazy=True)
        self.hook_write = HookPoint("b p c n", lazy=True)
        self.hook_state = HookPoint("b p c n", lazy=True, gradient_read_only=True)
        self.hook_y = HookPoint("b p c")
        self.hook_pattern = HookPoint("b h p k", lazy=True, read_only=True, h=1)

    def forward(self, x: Resid, run: Pass, held: RecurrentState | None) -> tuple[Resid, RecurrentState]:
        """The layer's write to the residual stream, and its memory afterwards."""
        mixer = self.wrapped[0]
        with resident(mixer, mixer.conv1d):
            u, z = mixer.in_proj(x).chunk(2, dim=-1)
            u = self.hook_in(u)
            u, conv = causal_convolution(
                u, None if held is None else held.conv, mixer.conv1d.weight, mixer.conv1d.bias, run.valid
            )
            u = self.hook_conv(mixer.act(u))
            gate = self.hook_gate(F.silu(z))
            dt, B, C = mixer.x_proj(u).split([mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size], dim=-1)
            dt = self.hook_dt(F.softplus(mixer.dt_proj(mixer.dt_layernorm(dt))))
            B, C = self.hook_B(mixer.b_layernorm(B)), self.hook_C(mixer.c_layernorm(C))
            A = -torch.exp(mixer.A_log.float())
            y, final = self._recur(dt, A, B, C, u, u * mixer.D.float(), run, held)
        return mixer.out_proj((y * gate).to(x.dtype)), remember(conv, final)

    def _recur(
        self,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        u: Tensor,
        skip: Tensor,
        run: Pass,
        held: RecurrentState | None,
    ) -> tuple[Tensor, Tensor]:
        """Readout [b p c] and final state [b c n]; every token's decay, write and state only if hooked."""
        points = (self.hook_decay, self.hook_write, self.hook_state, self.hook_pattern)
        if not wanted(*points):
            if run.valid is not None:
                dt = dt.masked_fill(~run.valid[..., None], 0.0)
            y, final = selective.selective_scan(dt, A, B, C, u, None if held is None else held.recurrent)
            return self.hook_y(y + skip), final
        if not torch.is_grad_enabled() and not any(point.asked() for point in (*points[:2], self.hook_pattern)):
            return self._recur_in_parts(dt, A, B, C, u, skip, run, held)
        decay, write = selective.discretise(dt, A, B, u)
        decay, write = self.hook_decay(decay), self.hook_write(write)
        decay, write = hold_padding(decay, write, run.valid)
        states = hooked_states(decay, write, held, self.hook_state)
        y = self.hook_y(selective.read_out(states, C) + skip)
        hidden_attention(
            decay, lambda: dt.float()[..., None] * B.float()[..., None, :], C, 1, self.hook_pattern
        )
        return y, states[:, -1]

    def _recur_in_parts(
        self,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        u: Tensor,
        skip: Tensor,
        run: Pass,
        held: RecurrentState | None,
    ) -> tuple[Tensor, Tensor]:
        """The same where only the states are wanted: decays and writes are made a few tokens at a time."""
        wanted(self.hook_decay, self.hook_write)  # nobody does, which has to be counted
        if run.valid is not None:
            dt = dt.masked_fill(~run.valid[..., None], 0.0)
        states, read = hooked_selective_states(dt, A, B, C, u, held, self.hook_state)
        y = self.hook_y(read + skip)
        if wanted(self.hook_pattern):  # a trace may ask only once it has the states
            source = dt.float()[..., None] * B.float()[..., None, :]
            hidden_attention(selective.discretise(dt, A, B, u)[0], lambda: source, C, 1, self.hook_pattern)
        return y, states[:, -1]


class HookedMoe(nn.Module):
    """Mixture of experts: each token goes to the experts with the highest router probability."""

    def __init__(self, moe: Any) -> None:
        super().__init__()
        self.wrapped = (moe,)
        self.hook_router_logits = HookPoint("b p x")
        self.hook_expert_weights = HookPoint("b p r")
        self.hook_expert_indices = HookPoint("b p r")

    def forward(self, x: Resid) -> Resid:
        """The mixture's write to the residual stream."""
        moe = self.wrapped[0]
        with resident(moe.router):
            logits = self.hook_router_logits(F.linear(x, moe.router.weight))
        probabilities = torch.softmax(logits, dim=-1, dtype=torch.float32)
        weights, indices = probabilities.topk(moe.router.top_k, dim=-1)
        weights = self.hook_expert_weights(weights.to(x.dtype)).flatten(0, 1)
        indices = self.hook_expert_indices(indices).flatten(0, 1)
        return moe.experts(x.flatten(0, 1), indices, weights).view(x.shape)

    def expert_writes(
        self,
        x: Float[Tensor, "token d_model"],
        indices: Int[Tensor, "token chosen"],
        weights: Float[Tensor, "token chosen"],
    ) -> Iterator[ExpertWrite]:
        """What each expert that has tokens adds; see `hybridlens.components.Mixture`."""
        experts = self.wrapped[0].experts
        with resident(experts):
            for expert in indices.unique().tolist():
                tokens, place = torch.where(indices == expert)
                gate, up = F.linear(x[tokens], experts.gate_up_proj[expert]).chunk(2, dim=-1)
                out = F.linear(experts.act_fn(gate) * up, experts.down_proj[expert])
                yield ExpertWrite(expert, tokens, out * weights[tokens, place, None])


def configure(config: JambaConfig) -> LensConfig:
    """Sizes of a Jamba; refuses what the family was not built for."""
    check_fields(JAMBA, config)
    experts, used = config.num_experts, config.num_experts_per_tok
    require(used <= experts, "Jamba", "num_experts_per_tok", used, f"at most num_experts = {experts}")
    moe_layers = tuple(i for i, n in enumerate(config.layers_num_experts) if n > 1)
    return LensConfig(
        family="jamba",
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads,
        d_head=getattr(config, "head_dim", config.hidden_size // config.num_attention_heads),
        d_mlp=config.intermediate_size,
        d_vocab=config.vocab_size,
        window=None,
        n_ctx=config.max_position_embeddings,
        layer_types=tuple("attention" if kind == "attention" else "ssm" for kind in config.layers_block_type),
        d_channels=config.mamba_expand * config.hidden_size,
        d_state=config.mamba_d_state,
        d_conv=config.mamba_d_conv,
        n_experts=config.num_experts if moe_layers else None,
        n_experts_per_token=config.num_experts_per_tok if moe_layers else None,
        moe_layers=moe_layers,
        act_fn=config.hidden_act,
        eos_token_ids=eos_ids(config),
    )


def _norm(norm: Any) -> HookedNorm:
    return HookedNorm(norm, eps=norm.variance_epsilon, offset=0.0)


def _attention(module: Any, cfg: LensConfig) -> HookedAttention:
    return HookedAttention(
        AttentionParts(
            q=module.q_proj, k=module.k_proj, v=module.v_proj, o=module.o_proj,
            n_heads=cfg.n_heads, n_kv_heads=cfg.n_kv_heads, d_head=module.head_dim, rotary=None,
        )
    )


def _block(model: Any, cfg: LensConfig, layer: int) -> Block:
    hf = model.model.layers[layer]
    mixer = _attention(hf.self_attn, cfg) if cfg.layer_types[layer] == "attention" else Mamba(hf.mamba)
    mlp = hf.feed_forward
    dense = layer not in cfg.moe_layers
    return Block(
        ln1=_norm(hf.input_layernorm),
        mixer=mixer,
        ln2=_norm(hf.pre_ff_layernorm),
        mlp=HookedMlp(mlp.gate_proj, mlp.up_proj, mlp.down_proj, mlp.act_fn) if dense else HookedMoe(mlp),
        home=hf,
    )


def _embed(model: Any, tokens: Tensor) -> Tensor:
    return model.model.embed_tokens(tokens)


def _final_norm(model: Any) -> HookedNorm:
    return _norm(model.model.final_layernorm)


def _unembed(model: Any, resid: Tensor) -> Tensor:
    return model.lm_head(resid)


def _recurrent_parts(config: JambaConfig, read: Read) -> RecurrentParts:
    """A recurrent layer's maps. At rest nothing is written into the state, and D alone passes the input on."""
    name = "mamba."
    W_in, W_gate = read(f"{name}in_proj.weight").T.chunk(2, dim=1)
    b_in, b_gate = read(f"{name}in_proj.bias").chunk(2) if config.mamba_proj_bias else (None, None)
    D = read(f"{name}D")

    def gain(seen: Mapping[str, Tensor]) -> Tensor:
        """D + Δ_t B_t · C_t: what y_t holds of x_t."""
        dt, B, C = (seen[point].float() for point in ("hook_dt", "hook_B", "hook_C"))
        return D.to(dt.device) + dt * (B * C).sum(dim=-1, keepdim=True)

    return RecurrentParts(
        W_in=W_in,
        b_in=b_in,
        W_gate=W_gate,
        b_gate=b_gate,
        taps=taps_of(read(f"{name}conv1d.weight")),
        b_conv=read(f"{name}conv1d.bias") if config.mamba_conv_bias else None,
        W_out=read(f"{name}out_proj.weight").T,
        b_out=read(f"{name}out_proj.bias") if config.mamba_proj_bias else None,
        activation=F.silu,
        slope=0.5,
        gain_at_rest=D,
        gain_points=("hook_dt", "hook_B", "hook_C"),
        gain=gain,
    )


def _embed_scale(config: JambaConfig) -> float:
    return 1.0


def _qkv_bias(config: JambaConfig) -> bool:
    return False


def _no_rotary(config: JambaConfig) -> None:
    return None


def _inactive(model: Any) -> int:
    """Parameters of the experts that a token is not sent to."""
    idle = 0
    for layer in model.model.layers:
        experts = getattr(layer.feed_forward, "experts", None)
        if experts is not None:
            total = sum(weight.numel() for weight in experts.parameters())
            idle += total - total // model.config.num_experts * model.config.num_experts_per_tok
    return idle


JAMBA = Family(
    name="jamba",
    architecture="JambaForCausalLM",
    other_fields={
        "mamba_inner_layernorms": (True,),
        "sliding_window": (None,),
        "n_ctx": (),
        "calc_logits_for_entire_prompt": (),
        "num_logits_to_keep": (),
        "attn_implementation": (),
    },
    configure=configure,
    embed=_embed,
    block=_block,
    final_norm=_final_norm,
    unembed=_unembed,
    inactive_expert_parameters=_inactive,
    layout=Layout(
        final_norm="model.final_layernorm.weight",
        ln1="input_layernorm.weight",
        attention="self_attn.",
        norm_offset=0.0,
        embed_scale=_embed_scale,
        qkv_bias=_qkv_bias,
        o_bias=False,
        rotary=_no_rotary,
        recurrent=_recurrent_parts,
        mlp_bias=None,
    ),
)
