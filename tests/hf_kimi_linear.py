"""Kimi-Linear's layers under the names of the hook points, from the untouched model's modules and plain loops.

Nothing of hybridlens is used here.
"""

import torch
from hf_capture import dense_mlp, residual
from hf_delta import CLOSE, delta_rule, results, written_by_heads


def kimi_linear_layer(got, model, layer):
    """A delta rule with decays by channel or latent attention, and an MLP or experts in groups."""
    home, block = f"model.layers.{layer}", f"blocks.{layer}"
    out = residual(got, model, layer, "input_layernorm", "post_attention_layernorm", "mlp")
    if f"{home}.mlp.gate" in got.outputs:
        mine = _experts(got, model, f"{home}.mlp")
    else:
        out, mine = out | dense_mlp(got, f"{home}.mlp", block), {}
    module = f"{home}.self_attn"
    mine |= (_latent if model.config.layer_types[layer] == "full_attention" else _delta)(got, model, module)
    return out | {f"{block}.{name}": value for name, value in mine.items()}


def _experts(got, model, module):
    """The strongest of the groups whose two best sum highest, one token at a time."""
    x, gate, config = got.inputs[module], model.get_submodule(f"{module}.gate"), model.config
    logits = x @ gate.weight.T
    scores, groups, each = torch.sigmoid(logits), config.n_group, config.num_local_experts // config.n_group
    weights, indices = (torch.zeros(*x.shape[:2], config.num_experts_per_tok) for _ in range(2))
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            choice = (scores[b, t] + gate.e_score_correction_bias).tolist()
            best = [sum(sorted(choice[g * each : (g + 1) * each])[-2:]) for g in range(groups)]
            kept = sorted(range(groups), key=lambda g, best=best: -best[g])[: config.topk_group]
            among = [e for e in range(len(choice)) if e // each in kept]
            chosen = sorted(among, key=lambda e, choice=choice: -choice[e])[: config.num_experts_per_tok]
            indices[b, t] = torch.tensor(chosen)
            own = scores[b, t, chosen]
            weights[b, t] = own / (own.sum() if config.norm_topk_prob else 1) * config.routed_scaling_factor
    _, theirs, which = (value.unflatten(0, x.shape[:2]) for value in got.outputs[f"{module}.gate"])
    torch.testing.assert_close(indices.long().sort().values, which.sort().values)
    torch.testing.assert_close(weights.sort().values, theirs.sort().values)
    names = ("router_logits", "expert_weights", "expert_indices", "shared_out")
    values = (logits, weights, indices.long(), got.outputs[f"{module}.shared_experts"])
    return {f"mlp.hook_{name}": value for name, value in zip(names, values, strict=True)}


def _latent(got, model, module):
    q, k, v, mask, scaling, pattern = got.attention[module]
    heads, config = q.shape[1], model.config
    folded = got.outputs[f"{module}.kv_a_proj_with_mqa"]
    raw, shared = folded[..., : config.kv_lora_rank], folded[..., config.kv_lora_rank :]
    latent = got.outputs[f"{module}.kv_a_layernorm"].view(raw.shape)
    weight = model.get_parameter(f"{module}.kv_a_layernorm.weight")
    torch.testing.assert_close(raw * (raw.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight, latent)
    own, width = config.qk_nope_head_dim, config.v_head_dim
    by_head = (latent @ model.get_parameter(f"{module}.kv_b_proj.weight").T).unflatten(-1, (heads, own + width))
    keys = torch.stack([torch.cat([by_head[:, :, h, :own], shared], dim=-1) for h in range(heads)], dim=2)
    torch.testing.assert_close(keys, k.transpose(1, 2), **CLOSE)
    torch.testing.assert_close(by_head[..., own:], v.transpose(1, 2), **CLOSE)
    scores = torch.stack([q[:, h] @ k[:, h].mT for h in range(heads)], dim=1) * scaling
    forbidden = pattern.eq(0) & (mask < -1e30).expand_as(pattern)
    written = got.outputs[f"{module}.o_proj"]
    return {
        "attn.hook_q": got.outputs[f"{module}.q_proj"].unflatten(-1, (heads, -1)), "attn.hook_kv_latent": latent,
        "attn.hook_k_shared": shared, "attn.hook_k": keys, "attn.hook_v": by_head[..., own:],
        "attn.hook_attn_scores": scores.masked_fill(forbidden, float("-inf")), "attn.hook_pattern": pattern,
        "attn.hook_z": (pattern @ v).transpose(1, 2), "hook_attn_out": written, "hook_mixer_out": written,
        "attn.hook_result": results(got, model, f"{module}.o_proj", heads),
    }  # fmt: skip


def _delta(got, model, module):
    mixer, gate = model.get_submodule(module), model.get_submodule(f"{module}.forget_gate")
    heads, width = mixer.num_heads, mixer.head_dim
    q, k, v, z, b = (got.outputs[f"{module}.{name}_proj"].double() for name in ("q", "k", "v", "g_b", "b"))
    a = got.outputs[f"{module}.forget_gate.f_b_proj"].double() + gate.dt_bias.double()
    step = torch.log1p(a.exp()).unflatten(-1, (heads, width))
    decay = torch.exp(-gate.A_log.double().exp().view(heads, 1) * step)
    values = delta_rule(torch.cat([q, k, v], dim=-1), mixer.conv1d, heads, torch.sigmoid(b), decay, width)
    torch.testing.assert_close(values["ssm.hook_y"].float(), got.inputs[f"{module}.o_norm"], **CLOSE)
    written = written_by_heads(got, model, f"{module}.o_proj", heads)
    return values | {"ssm.hook_gate": torch.sigmoid(z)} | written


def of_latents(attention, config, kind, x, width):
    """Queries, keys or values of every head of latent attention, by its own modules, of a normalised stream [b p d]."""
    if kind == "q":
        return attention.q_proj(x).unflatten(-1, (-1, width))
    raw, shared = attention.kv_a_proj_with_mqa(x).split([config.kv_lora_rank, config.qk_rope_head_dim], dim=-1)
    by_head = attention.kv_b_proj(attention.kv_a_layernorm(raw)).unflatten(-1, (config.num_attention_heads, -1))
    own = by_head[..., : config.qk_nope_head_dim]
    if kind == "v":
        return by_head[..., config.qk_nope_head_dim :]
    return torch.cat([own, shared[:, :, None].expand(*own.shape[:3], -1)], dim=-1)


def as_latent(lens, layer: int, x: torch.Tensor, view, made: torch.Tensor, point: str) -> torch.Tensor:
    """Keys or values with the scale of each token's own latent in the place of the one that weights stand for."""
    config, attn = lens.hf_model.config, lens.hf_model.model.layers[layer].self_attn
    weight = lens.hf_model.get_parameter(f"model.layers.{layer}.input_layernorm.weight")
    latent = attn.kv_a_proj_with_mqa(x * weight)[..., : config.kv_lora_rank]
    scale = (latent.square().mean(-1, keepdim=True) + 1e-6).sqrt()[..., None]
    own = made * view.latent_scale / scale
    shared = config.qk_rope_head_dim if point == "k" else 0
    return torch.cat([own[..., : own.shape[-1] - shared], made[..., made.shape[-1] - shared :]], dim=-1)
