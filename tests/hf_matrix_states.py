"""The layers of Mamba-2, Falcon-H1 and Qwen3-Next under the names of the hook points, by plain loops in float64.

Nothing of hybridlens is used here. What goes in is taken from the untouched model's projections; what comes out is held
against what its own modules were given.
"""

import torch
import torch.nn.functional as F
from hf_capture import attention, dense_mlp, norm, residual
from hf_delta import CLOSE, convolution, delta_rule, results, written_by_heads


def mamba2_layer(got, model, layer):
    """A norm and a mixer, and nothing else."""
    home, block = f"backbone.layers.{layer}", f"blocks.{layer}"
    out = {f"{block}.hook_resid_pre": got.inputs[home], f"{block}.hook_resid_post": got.outputs[home]}
    out |= norm(got, model, f"{home}.norm", f"{block}.ln1")
    return out | named(block, mamba2(got, model, f"{home}.mixer", model.config.n_groups))


def falcon_h1_layer(got, model, layer):
    """Both mixers on the same input, and an MLP; the multipliers are the configuration's."""
    home, block, config = f"model.layers.{layer}", f"blocks.{layer}", model.config
    out = residual(got, model, layer, "input_layernorm", "pre_ff_layernorm", "feed_forward")
    out |= dense_mlp(got, f"{home}.feed_forward", block, config.mlp_multipliers[0])
    out |= attention(
        got, model, f"{home}.self_attn", block, True, config.attention_out_multiplier, config.key_multiplier
    )
    mine = mamba2(got, model, f"{home}.mamba", config.mamba_n_groups, config.ssm_out_multiplier)
    mine["hook_mixer_out"] = mine["hook_ssm_out"] + out[f"{block}.hook_attn_out"]
    torch.testing.assert_close(
        out[f"{block}.hook_resid_pre"] + mine["hook_mixer_out"].float(), out[f"{block}.hook_resid_mid"], **CLOSE
    )
    return out | named(block, mine)


def qwen3_next_layer(got, model, layer, projected=None):
    """Gated attention or the delta rule, and an MLP or experts with a shared one.

    Args:
        got: the capture.
        model: what was captured.
        layer: its number.
        projected: (capture, mixer, its name) → what the delta rule takes in: q, k, v, z, b and a; None for
            Qwen3-Next's way.
    """
    home, block = f"model.layers.{layer}", f"blocks.{layer}"
    out = residual(got, model, layer, "input_layernorm", "post_attention_layernorm", "mlp")
    if f"{home}.mlp.gate" in got.outputs:
        batch, length = got.inputs[home].shape[:2]
        _, weights, indices = got.outputs[f"{home}.mlp.gate"]
        logits = got.inputs[f"{home}.mlp.gate"] @ model.get_parameter(f"{home}.mlp.gate.weight").T
        shared = torch.sigmoid(got.outputs[f"{home}.mlp.shared_expert_gate"]) * got.outputs[f"{home}.mlp.shared_expert"]
        names = ("router_logits", "expert_weights", "expert_indices", "shared_out")
        for name, value in zip(names, (logits, weights, indices, shared), strict=True):
            out[f"{block}.mlp.hook_{name}"] = value.unflatten(0, (batch, length))
    else:
        out |= dense_mlp(got, f"{home}.mlp", block)
    if f"{home}.linear_attn" in got.outputs:
        return out | named(block, _delta(got, model, f"{home}.linear_attn", projected))
    module = f"{home}.self_attn"
    out |= attention(got, model, module, block, rotary=True)
    heads, width = out[f"{block}.attn.hook_q"].shape[2:]
    gate = torch.sigmoid(got.outputs[f"{module}.q_proj"].unflatten(-1, (heads, -1))[..., width:])
    read = out[f"{block}.attn.hook_z"] * gate
    torch.testing.assert_close(read.flatten(2), got.inputs[f"{module}.o_proj"], **CLOSE)
    mine = {
        "attn.hook_q_normed": got.outputs[f"{module}.q_norm"],
        "attn.hook_k_normed": got.outputs[f"{module}.k_norm"],
        "attn.hook_gate": gate,
        "attn.hook_z_gated": got.inputs[f"{module}.o_proj"].unflatten(-1, (heads, width)),
    }
    return out | named(block, mine)


def named(block, values):
    return {f"{block}.{name}": value for name, value in values.items()}


def mamba2(got, model, module, groups, multiplier=1.0):
    mixer = model.get_submodule(module)
    heads, width, size = mixer.num_heads, mixer.head_dim, mixer.ssm_state_size
    projected = got.outputs[f"{module}.in_proj"].double()
    if hasattr(mixer, "mup_vector"):
        projected = projected * mixer.mup_vector.double()
    z, inner, dt = projected.split([heads * width, heads * width + 2 * groups * size, heads], dim=-1)
    conv = convolution(inner, mixer.conv1d)
    x, B, C = conv.split([heads * width, groups * size, groups * size], dim=-1)
    x = x.unflatten(-1, (heads, width))
    B, C = (t.unflatten(-1, (groups, size)).repeat_interleave(heads // groups, dim=2) for t in (B, C))
    dt = F.softplus(dt + mixer.dt_bias.double()).clamp(*mixer.time_step_limit)
    decay = torch.exp(-mixer.A_log.double().exp() * dt)
    write = dt[..., None, None] * x[..., None] * B[..., None, :]
    state, states = torch.zeros_like(write[:, 0]), []
    for t in range(x.shape[1]):
        state = decay[:, t, :, None, None] * state + write[:, t]
        states.append(state)
    states = torch.stack(states, dim=1)
    y = (states * C[..., None, :]).sum(-1) + mixer.D.double()[:, None] * x
    pattern = torch.zeros(*y.shape[:1], heads, y.shape[1], y.shape[1], dtype=torch.float64)
    for t in range(y.shape[1]):
        for j in range(t + 1):
            kept = decay[:, j + 1 : t + 1].prod(dim=1) * dt[:, j]
            pattern[:, :, t, j] = kept * (C[:, t] * B[:, j]).sum(-1)
    torch.testing.assert_close(
        torch.einsum("bspk,bksu->bpsu", pattern, x) + mixer.D.double()[:, None] * x, y, rtol=1e-9, atol=1e-9
    )
    if got.given.get(f"{module}.norm"):
        torch.testing.assert_close(y.flatten(2).float(), got.inputs[f"{module}.norm"], **CLOSE)
    else:
        torch.testing.assert_close((y.flatten(2) * F.silu(z)).float(), got.inputs[f"{module}.out_proj"], **CLOSE)
    written = got.outputs[f"{module}.out_proj"] * multiplier
    return {
        "ssm.hook_in": inner, "ssm.hook_conv": conv, "ssm.hook_v": x, "ssm.hook_k": B, "ssm.hook_q": C,
        "ssm.hook_dt": dt, "ssm.hook_decay": decay, "ssm.hook_write": write, "ssm.hook_state": states,
        "ssm.hook_y": y, "ssm.hook_gate": F.silu(z), "ssm.hook_normed": got.inputs[f"{module}.out_proj"],
        "ssm.hook_result": results(got, model, f"{module}.out_proj", heads, multiplier), "ssm.hook_pattern": pattern,
        "hook_ssm_out": written, "hook_mixer_out": written,
    }  # fmt: skip


def _by_key_head(got, mixer, module):
    """Queries, keys, values, gates, strengths and decays of Qwen3-Next's two projections."""
    keys, size, shared = mixer.num_k_heads, mixer.head_k_dim, mixer.num_v_heads // mixer.num_k_heads
    width = shared * mixer.head_v_dim
    packed = got.outputs[f"{module}.in_proj_qkvz"].double().unflatten(-1, (keys, -1))
    b, a = got.outputs[f"{module}.in_proj_ba"].double().unflatten(-1, (keys, -1)).split(shared, dim=-1)
    return *packed.split([size, size, width, width], dim=-1), b, a


def _delta(got, model, module, projected=None):
    mixer = model.get_submodule(module)
    keys, heads, width = mixer.num_k_heads, mixer.num_v_heads, mixer.head_v_dim
    q, k, v, z, b, a = (projected or _by_key_head)(got, mixer, module)
    inner = torch.cat([t.flatten(2) for t in (q, k, v)], dim=-1)
    z, b, a = z.flatten(2), b.flatten(2), a.flatten(2)
    torch.testing.assert_close(z.unflatten(-1, (heads, width)).flatten(0, 2).float(), got.given[f"{module}.norm"][1])
    decay = torch.exp(-mixer.A_log.double().exp() * F.softplus(a + mixer.dt_bias.double()))
    values = delta_rule(inner, mixer.conv1d, keys, torch.sigmoid(b), decay, width)
    torch.testing.assert_close(values["ssm.hook_y"].flatten(0, 2).float(), got.inputs[f"{module}.norm"], **CLOSE)
    return values | {"ssm.hook_gate": F.silu(z)} | written_by_heads(got, model, f"{module}.out_proj", heads)
