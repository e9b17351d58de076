"""A forward pass over the Hugging Face weights that is quick enough to train on two CPU cores.

Mechanism: the library runs both recurrences as a Python loop whose every step autograd records; here each is
one function with its own backward pass (`hybridlens.tiny.training_scans`), and activations keep time as their
first axis throughout. The experts of Jamba are all computed and weighted with zeros, which for four small
experts is quicker than sorting the tokens among them. Everything else is the library's arithmetic on the
library's own modules, so gradients land in the model that is saved; a test holds logits and gradients to it.

How it fails: only whole sequences from position 0, no cache, no padding on the left (padding on the right
is harmless, as nothing looks ahead), no hooks. It knows the two families and the options that the tiny models
use; `logits` raises `CheckpointError` for any other model.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import JambaForCausalLM, PreTrainedModel, RecurrentGemmaForCausalLM
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import SqrtBoundDerivative

from hybridlens.errors import CheckpointError
from hybridlens.tiny.training_scans import linear_scan, selective_scan


def _causal_convolution(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """Depthwise causal convolution over [pos, batch, width], as shifted sums."""
    weight, kernel = conv.weight, conv.weight.shape[-1]
    out = x * weight[:, 0, kernel - 1]
    for shift in range(1, kernel):
        shifted = F.pad(x[:-shift], (0, 0, 0, 0, shift, 0))
        out = torch.addcmul(out, shifted, weight[:, 0, kernel - 1 - shift])
    return out if conv.bias is None else out + conv.bias


def _heads(x: Tensor, n_heads: int) -> Tensor:
    """[pos, batch, head * d] to [batch, head, pos, d]."""
    pos, batch, _ = x.shape
    return x.view(pos, batch, n_heads, -1).permute(1, 2, 0, 3)


def _attend(q: Tensor, k: Tensor, v: Tensor, window: int | None, scaling: float) -> Tensor:
    """Causal attention, in a sliding window when one is given; back in [pos, batch, head * d]."""
    pos, groups = q.shape[2], q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    if window is None or pos <= window:
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
    else:
        index = torch.arange(pos)
        allowed = (index[None] <= index[:, None]) & (index[None] > index[:, None] - window)
        mask = torch.zeros(pos, pos).masked_fill_(~allowed, float("-inf"))
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
    return z.permute(2, 0, 1, 3).reshape(pos, q.shape[0], -1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding on the first dimensions of each head, as many as `cos` has."""
    dims = cos.shape[-1]
    rotated, rest = x[..., :dims], x[..., dims:]
    half = torch.cat((-rotated[..., dims // 2 :], rotated[..., : dims // 2]), -1)
    return torch.cat((rotated * cos + half * sin, rest), -1)


def _gate(block: Any, kind: str, x: Tensor) -> Tensor:
    """A block-diagonal sigmoid gate of the RG-LRU over [pos, batch, width]."""
    weight, bias = getattr(block, f"{kind}_gate_weight"), getattr(block, f"{kind}_gate_bias")
    blocks = x.reshape(-1, weight.shape[0], weight.shape[1]).permute(1, 0, 2)
    return torch.sigmoid(torch.baddbmm(bias[:, None], blocks, weight).permute(1, 0, 2).reshape(x.shape))


def _rg_lru(block: Any, x: Tensor) -> Tensor:
    """The RG-LRU over [pos, batch, width], reset at position 0 (De et al. 2024, equations 1 to 4)."""
    log_a = -8.0 * _gate(block, "recurrent", x) * F.softplus(block.recurrent_param)
    first = torch.zeros(x.shape[0], 1, 1, dtype=torch.bool)
    first[0] = True
    root = SqrtBoundDerivative.apply(1 - torch.exp(2 * log_a))
    assert isinstance(root, Tensor)
    written = x * _gate(block, "input", x) * root.masked_fill(first, 1.0)
    return linear_scan(torch.exp(log_a).masked_fill(first, 0.0), written)


def recurrent_gemma_logits(
    model: RecurrentGemmaForCausalLM, tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "pos batch vocab"]:
    """Logits of RecurrentGemma, time first."""
    config: Any = model.config
    body: Any = model.model
    x = body.embed_tokens(tokens.t()) * body.normalizer.float()
    angles = torch.arange(tokens.shape[1])[:, None].float() * body.layers[-1].temporal_block.rotary_emb.inv_freq[None]
    cos, sin = torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()
    for layer, kind in zip(body.layers, config.layers_block_type, strict=True):
        block, normed = layer.temporal_block, layer.temporal_pre_norm(x)
        if kind == "linear_attention":
            gate = block.act_fn(block.linear_y(normed))
            inner = _causal_convolution(block.linear_x(normed), block.conv_1d)
            out = block.linear_out(_rg_lru(block.rg_lru, inner) * gate)
        else:
            q = _rotate(_heads(block.q_proj(normed), config.num_attention_heads), cos, sin)
            k = _rotate(_heads(block.k_proj(normed), config.num_key_value_heads), cos, sin)
            v = _heads(block.v_proj(normed), config.num_key_value_heads)
            out = block.o_proj(_attend(q, k, v, config.attention_window_size, block.scaling))
        x = x + out
        x = x + layer.mlp_block(layer.channel_pre_norm(x))
    raw = F.linear(body.final_norm(x), model.lm_head.weight)
    return torch.tanh(raw / config.logits_soft_cap) * config.logits_soft_cap


def _mamba(block: Any, x: Tensor) -> Tensor:
    """Jamba's Mamba mixer over [pos, batch, d_model], with its norms on delta, B and C."""
    inner, gate = block.in_proj(x).chunk(2, -1)
    inner = F.silu(_causal_convolution(inner, block.conv1d))
    n_state, rank = block.ssm_state_size, block.time_step_rank
    step, b, c = torch.split(block.x_proj(inner), [rank, n_state, n_state], -1)
    delta = F.softplus(block.dt_proj(block.dt_layernorm(step)))
    a = -torch.exp(block.A_log).t().contiguous()
    y = selective_scan(inner, delta, a, block.b_layernorm(b), block.c_layernorm(c))
    return block.out_proj((y + inner * block.D) * F.silu(gate))


def _experts(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Every expert, weighted by the router's top-k probabilities (as they are); and all probabilities."""
    _, weights, index = block.router(x)
    probabilities = torch.softmax(F.linear(x, block.router.weight), -1)
    sparse = torch.zeros_like(probabilities).scatter(-1, index, weights)
    n_experts, _, d_model = block.experts.gate_up_proj.shape
    both = F.linear(x, block.experts.gate_up_proj.reshape(-1, d_model)).unflatten(-1, (n_experts, 2, -1))
    hidden = F.silu(both[..., 0, :]) * both[..., 1, :] * sparse.unsqueeze(-1)
    down = block.experts.down_proj.permute(0, 2, 1).reshape(-1, d_model)
    return hidden.flatten(-2) @ down, probabilities


def jamba_logits(
    model: JambaForCausalLM, tokens: Int[Tensor, "batch pos"]
) -> tuple[Float[Tensor, "pos batch vocab"], list[Tensor]]:
    """Logits of Jamba, time first; and the router probabilities of every expert layer."""
    config: Any = model.config
    body: Any = model.model
    x = body.embed_tokens(tokens.t())
    routers: list[Tensor] = []
    for layer, kind in zip(body.layers, config.layers_block_type, strict=True):
        normed = layer.input_layernorm(x)
        if kind == "mamba":
            x = x + _mamba(layer.mamba, normed)
        else:
            attention = layer.self_attn
            q = _heads(attention.q_proj(normed), config.num_attention_heads)
            k = _heads(attention.k_proj(normed), config.num_key_value_heads)
            v = _heads(attention.v_proj(normed), config.num_key_value_heads)
            x = x + attention.o_proj(_attend(q, k, v, None, attention.scaling))
        normed = layer.pre_ff_layernorm(x)
        if hasattr(layer.feed_forward, "experts"):
            out, probabilities = _experts(layer.feed_forward, normed)
            routers.append(probabilities)
        else:
            out = layer.feed_forward(normed)
        x = x + out
    return F.linear(body.final_layernorm(x), model.lm_head.weight), routers


def balance_loss(probabilities: list[Tensor], n_used: int) -> Float[Tensor, ""]:
    """Load-balancing loss of the experts, 1 when they are used evenly (Fedus et al. 2021, equation 4).

    Args:
        probabilities: router probabilities [pos, batch, expert] of each expert layer, at least one.
        n_used: experts per token.
    """
    losses: list[Tensor] = []
    for layer in probabilities:
        n_experts = layer.shape[-1]
        flat = layer.reshape(-1, n_experts)
        chosen = torch.zeros_like(flat).scatter(-1, flat.topk(n_used, -1).indices, 1.0 / n_used)
        losses.append(n_experts * (chosen.mean(0) * flat.mean(0)).sum())
    return torch.stack(losses).mean()


def forward(
    model: PreTrainedModel, tokens: Int[Tensor, "batch pos"]
) -> tuple[Float[Tensor, "pos batch vocab"], Float[Tensor, ""]]:
    """Logits, time first, and the balance loss of the experts (0 where there are none).

    Raises:
        CheckpointError: for a model of another class.
    """
    if isinstance(model, RecurrentGemmaForCausalLM):
        return recurrent_gemma_logits(model, tokens), torch.zeros(())
    if isinstance(model, JambaForCausalLM):
        logits, routers = jamba_logits(model, tokens)
        return logits, balance_loss(routers, model.config.num_experts_per_tok)
    raise CheckpointError(
        f"got a {type(model).__name__}, expected RecurrentGemmaForCausalLM or JambaForCausalLM; "
        "use HybridLens(model)(tokens) for anything else"
    )
