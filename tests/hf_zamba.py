"""The layers of Zamba under the names of the hook points, from the untouched model's modules and plain loops.

Nothing of hybridlens is used here. What goes in is taken from the untouched model's projections; what comes out is held
against what its own output projection was given.
"""

import torch
import torch.nn.functional as F
from bounds import LAYER, close
from hf_capture import attention, dense_mlp, norm
from hf_mamba import hidden_attention


def zamba_layer(got, model, layer):
    """A Mamba mixer in heads, whose input the shared block may add to."""
    home, block = f"model.layers.{layer}", f"blocks.{layer}"
    shared = model.config.layer_types[layer] == "hybrid"
    out, decoder = {}, f"{home}.mamba_decoder" if shared else home
    if shared:
        out = _shared(got, model, layer)
        fed = got.inputs[home] + out[f"{block}.hook_shared_out"]
        close(fed, got.inputs[f"{decoder}.input_layernorm"], LAYER)
    out |= {f"{block}.hook_resid_pre": got.inputs[home], f"{block}.hook_resid_post": got.outputs[home]}
    out |= norm(got, model, f"{decoder}.input_layernorm", f"{block}.ln1")
    mine = _mamba_heads(got, model, f"{decoder}.mamba")
    close(got.inputs[home] + mine["hook_ssm_out"], got.outputs[home], LAYER)
    return out | {f"{block}.{name}": value for name, value in mine.items()}


def _shared(got, model, layer):
    """The shared block of a layer, whose modules are the layer's own and whose weights are those of all."""
    home, block = f"model.layers.{layer}", f"blocks.{layer}"
    module, ff = f"{home}.shared_transf.self_attn", f"{home}.shared_transf.feed_forward"
    both = torch.cat([got.inputs[home], got.inputs["model.layers.0"]], dim=-1)
    assert torch.equal(both, got.inputs[f"{home}.shared_transf.input_layernorm"])
    out = norm(got, model, f"{home}.shared_transf.input_layernorm", f"{block}.ln_attn")
    out |= attention(got, model, module, block, rotary=False)
    out |= norm(got, model, f"{home}.shared_transf.pre_ff_layernorm", f"{block}.ln_mlp")
    out |= dense_mlp(got, ff, block)
    mine = {"hook_mlp_out": got.outputs[f"{ff}.down_proj"], "hook_shared_out": got.outputs[f"{home}.linear"]}
    return out | {f"{block}.{name}": value for name, value in mine.items()}


def _mamba_heads(got, model, module):
    """One head after the other, one channel after the other in the projection: what is convolved, then its gate."""
    mixer = model.get_submodule(module)
    packed = got.outputs[f"{module}.in_proj"]
    x, gate = packed[..., 0::2], F.silu(packed[..., 1::2])
    batch, length = x.shape[:2]
    taps, conv = mixer.conv1d.kernel_size[0], torch.zeros_like(x)
    for t in range(length):
        for back in range(min(taps, t + 1)):
            conv[:, t] += mixer.conv1d.weight[:, 0, taps - 1 - back] * x[:, t - back]
    u = F.silu(conv + mixer.conv1d.bias)
    heads, width = mixer.n_mamba_heads, mixer.mamba_head_dim
    made = {"dt": [], "B": [], "C": [], "decay": [], "source": [], "state": [], "y": [], "pattern": []}
    for h in range(heads):
        own = u[..., h * width : (h + 1) * width]
        rank, n = mixer.time_step_rank, mixer.ssm_state_size
        low, B, C = (own @ mixer.x_proj_weight[h].T).split([rank, n, n], dim=-1)
        dt = F.softplus(low @ mixer.dt_proj_weight[h].T + mixer.dt_proj_bias[h])
        decay = torch.exp(dt[..., None] * -torch.exp(mixer.A_log[h]))
        source = dt[..., None] * B[:, :, None, :]
        state, states = torch.zeros(batch, width, n), []
        for t in range(length):
            state = decay[:, t] * state + source[:, t] * own[:, t, :, None]
            states.append(state)
        states = torch.stack(states, dim=1)
        y = (states * C[:, :, None, :]).sum(-1) + mixer.D[h] * own
        pattern = hidden_attention(decay, source, C).mean(1)
        mine = {"dt": dt, "B": B, "C": C, "decay": decay, "source": source, "state": states, "y": y, "pattern": pattern}
        for name, value in mine.items():
            made[name].append(value)
    joined = {name: torch.cat(made[name], dim=2) for name in ("dt", "decay", "source", "state", "y")}
    close(joined["y"] * gate, got.inputs[f"{module}.out_proj"], LAYER)
    return {
        "ssm.hook_in": x,
        "ssm.hook_conv": u,
        "ssm.hook_gate": gate,
        "ssm.hook_dt": joined["dt"],
        "ssm.hook_B": torch.stack(made["B"], dim=2),
        "ssm.hook_C": torch.stack(made["C"], dim=2),
        "ssm.hook_decay": joined["decay"],
        "ssm.hook_write": joined["source"] * u[..., None],
        "ssm.hook_state": joined["state"],
        "ssm.hook_y": joined["y"],
        "ssm.hook_pattern": torch.stack(made["pattern"], dim=1),
        "hook_ssm_out": got.outputs[f"{module}.out_proj"],
        "hook_mixer_out": got.outputs[f"{module}.out_proj"],
    }
