"""The layers of Mamba-2, Falcon-H1 and Qwen3-Next under the names of the hook points, by plain loops in float64.

Nothing of hybridlens is used here. What goes in is taken from the untouched model's projections; what comes out is held
against what its own modules were given.
"""

import torch
import torch.nn.functional as F
from hf_capture import attention, dense_mlp, norm, residual

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""Between a float64 loop and the model's float32: a few hundred roundings of values around 1."""


def mamba2_layer(got, model, layer):
    """A norm and a mixer, and nothing else."""
    home, block = f"backbone.layers.{layer}", f"blocks.{layer}"
    out = {f"{block}.hook_resid_pre": got.inputs[home], f"{block}.hook_resid_post": got.outputs[home]}
    out |= norm(got, model, f"{home}.norm", f"{block}.ln1")
    return out | _named(block, mamba2_mixer(got, model, f"{home}.mixer", model.config.n_groups))


def falcon_h1_layer(got, model, layer):
    """Both mixers on the same input, and an MLP; the multipliers are the configuration's."""
    home, block, config = f"model.layers.{layer}", f"blocks.{layer}", model.config
    out = residual(got, model, layer, "input_layernorm", "pre_ff_layernorm", "feed_forward")
    out |= dense_mlp(got, f"{home}.feed_forward", block, config.mlp_multipliers[0])
    out |= attention(
        got, model, f"{home}.self_attn", block, True, config.attention_out_multiplier, config.key_multiplier
    )
    mine = mamba2_mixer(got, model, f"{home}.mamba", config.mamba_n_groups, config.ssm_out_multiplier)
    mine["hook_mixer_out"] = mine["hook_ssm_out"] + out[f"{block}.hook_attn_out"]
    torch.testing.assert_close(
        out[f"{block}.hook_resid_pre"] + mine["hook_mixer_out"].float(), out[f"{block}.hook_resid_mid"], **CLOSE
    )
    return out | _named(block, mine)


def qwen3_next_layer(got, model, layer):
    """Gated attention or the delta rule, and an MLP or experts with a shared one."""
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
        return out | _named(block, _delta(got, model, f"{home}.linear_attn"))
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
    return out | _named(block, mine)


def _named(block, values):
    return {f"{block}.{name}": value for name, value in values.items()}


def _convolution(x, conv):
    """Of channels [b p c], by taps: the last one meets the token itself; SiLU after."""
    weight, taps = conv.weight[:, 0].double(), conv.weight.shape[-1]
    out = torch.zeros_like(x) if conv.bias is None else conv.bias.double().expand(x.shape).clone()
    for t in range(x.shape[1]):
        for back in range(min(taps, t + 1)):
            out[:, t] += x[:, t - back] * weight[:, taps - 1 - back]
    return F.silu(out)


def _results(got, model, module, heads, multiplier=1.0):
    """What each head's part of the output projection's input becomes."""
    read = got.inputs[module].unflatten(-1, (heads, -1))
    weight = model.get_parameter(f"{module}.weight").unflatten(-1, (heads, -1))
    return torch.stack([read[:, :, h] @ weight[:, h].T for h in range(heads)], dim=2) * multiplier


def mamba2_mixer(got, model, module, groups, multiplier=1.0):
    mixer = model.get_submodule(module)
    heads, width, size = mixer.num_heads, mixer.head_dim, mixer.ssm_state_size
    projected = got.outputs[f"{module}.in_proj"].double()
    if hasattr(mixer, "mup_vector"):
        projected = projected * mixer.mup_vector.double()
    z, inner, dt = projected.split([heads * width, heads * width + 2 * groups * size, heads], dim=-1)
    conv = _convolution(inner, mixer.conv1d)
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
        "ssm.hook_result": _results(got, model, f"{module}.out_proj", heads, multiplier), "ssm.hook_pattern": pattern,
        "hook_ssm_out": written, "hook_mixer_out": written,
    }  # fmt: skip


def _delta(got, model, module):
    mixer = model.get_submodule(module)
    keys, heads, size, width = mixer.num_k_heads, mixer.num_v_heads, mixer.head_k_dim, mixer.head_v_dim
    shared = heads // keys
    packed = got.outputs[f"{module}.in_proj_qkvz"].double().unflatten(-1, (keys, -1))
    q, k, v, z = packed.split([size, size, shared * width, shared * width], dim=-1)
    b, a = got.outputs[f"{module}.in_proj_ba"].double().unflatten(-1, (keys, -1)).split(shared, dim=-1)
    inner = torch.cat([t.flatten(2) for t in (q, k, v)], dim=-1)
    conv = _convolution(inner, mixer.conv1d)
    q, k, v = conv.split([keys * size, keys * size, heads * width], dim=-1)
    q, k = (t.unflatten(-1, (keys, size)) for t in (q, k))
    q, k = (t / (t.square().sum(-1, keepdim=True) + 1e-6).sqrt() for t in (q, k))
    q, k = (t.repeat_interleave(shared, dim=2) for t in (q / size**0.5, k))
    v, z, b, a = v.unflatten(-1, (heads, width)), z.flatten(2), b.flatten(2), a.flatten(2)
    beta = torch.sigmoid(b)
    decay = torch.exp(-mixer.A_log.double().exp() * F.softplus(a + mixer.dt_bias.double()))
    state = torch.zeros(v.shape[0], heads, width, size, dtype=torch.float64)
    recalls, writes, states = [], [], []
    for t in range(v.shape[1]):
        state = decay[:, t, :, None, None] * state
        recalls.append((state * k[:, t, :, None]).sum(-1))
        writes.append((beta[:, t, :, None] * (v[:, t] - recalls[-1]))[..., None] * k[:, t, :, None])
        state = state + writes[-1]
        states.append(state)
    states = torch.stack(states, dim=1)
    y = (states * q[..., None, :]).sum(-1)
    pattern = torch.zeros(v.shape[0], heads, v.shape[1], v.shape[1], dtype=torch.float64)
    for j in range(v.shape[1]):
        held = beta[:, j, :, None] * k[:, j]  # what a unit of v_j leaves at each address
        for t in range(j, v.shape[1]):
            if t > j:
                erased = beta[:, t, :, None] * (held * k[:, t]).sum(-1, keepdim=True) * k[:, t]
                held = decay[:, t, :, None] * (held - erased)
            pattern[:, :, t, j] = (held * q[:, t]).sum(-1)
    torch.testing.assert_close(torch.einsum("bspk,bksu->bpsu", pattern, v), y, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(y.flatten(0, 2).float(), got.inputs[f"{module}.norm"], **CLOSE)
    torch.testing.assert_close(z.unflatten(-1, (heads, width)).flatten(0, 2).float(), got.given[f"{module}.norm"][1])
    written = got.outputs[f"{module}.out_proj"]
    return {
        "ssm.hook_in": inner, "ssm.hook_conv": conv, "ssm.hook_v": v, "ssm.hook_k": k, "ssm.hook_q": q,
        "ssm.hook_beta": beta, "ssm.hook_decay": decay, "ssm.hook_recall": torch.stack(recalls, dim=1),
        "ssm.hook_write": torch.stack(writes, dim=1), "ssm.hook_state": states, "ssm.hook_y": y,
        "ssm.hook_gate": F.silu(z), "ssm.hook_normed": got.inputs[f"{module}.out_proj"],
        "ssm.hook_result": _results(got, model, f"{module}.out_proj", heads), "ssm.hook_pattern": pattern,
        "hook_ssm_out": written, "hook_mixer_out": written,
    }  # fmt: skip
