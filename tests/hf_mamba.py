"""A Mamba mixer, and the layers of Mamba and Falcon-Mamba, under the names of the hook points, by plain loops.

Nothing of hybridlens is used here. What goes in is taken from the untouched model's projections and norms; what comes
out is held against what its own output projection was given.
"""

import torch
import torch.nn.functional as F
from bounds import LAYER, close
from hf_capture import norm


def mamba_layer(got, model, layer):
    """A norm and a mixer, and nothing else."""
    home, block = f"backbone.layers.{layer}", f"blocks.{layer}"
    out = {f"{block}.hook_resid_pre": got.inputs[home], f"{block}.hook_resid_post": got.outputs[home]}
    out |= norm(got, model, f"{home}.norm", f"{block}.ln1")
    return out | {f"{block}.{name}": value for name, value in mamba_mixer(got, model, f"{home}.mixer").items()}


def mamba_mixer(got, model, module):
    """Δ, B and C, the states they make of the convolved input, and what is read out; three norms where it has them."""
    mixer = model.get_submodule(module)
    u = got.inputs[f"{module}.x_proj"]
    x, z = got.outputs[f"{module}.in_proj"].chunk(2, dim=-1)
    if f"{module}.dt_layernorm" in got.outputs:
        rank, B, C = (got.outputs[f"{module}.{name}_layernorm"] for name in ("dt", "b", "c"))
    else:
        sizes = [mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size]
        rank, B, C = got.outputs[f"{module}.x_proj"].split(sizes, dim=-1)
    dt = F.softplus(rank @ mixer.dt_proj.weight.T + mixer.dt_proj.bias)
    decay = torch.exp(dt[..., None] * -torch.exp(mixer.A_log.float()))
    source = dt[..., None] * B[:, :, None, :]
    state, states = torch.zeros_like(decay[:, 0]), []
    for t in range(u.shape[1]):
        state = decay[:, t] * state + source[:, t] * u[:, t, :, None]
        states.append(state)
    states = torch.stack(states, dim=1)
    gate = F.silu(z)
    y = (states * C[:, :, None, :]).sum(-1) + mixer.D * u
    close(y * gate, got.inputs[f"{module}.out_proj"], LAYER)
    return {
        "ssm.hook_in": x,
        "ssm.hook_conv": u,
        "ssm.hook_gate": gate,
        "ssm.hook_dt": dt,
        "ssm.hook_B": B,
        "ssm.hook_C": C,
        "ssm.hook_decay": decay,
        "ssm.hook_write": source * u[..., None],
        "ssm.hook_state": states,
        "ssm.hook_y": y,
        "ssm.hook_pattern": hidden_attention(decay, source, C).mean(1, keepdim=True),
        "hook_ssm_out": got.outputs[f"{module}.out_proj"],
        "hook_mixer_out": got.outputs[f"{module}.out_proj"],
    }


def hidden_attention(decay, source, readout):
    """M[b, c, t, j] = Σ_n readout[t, n] · ∏_{j<s≤t} decay[s] · source[j], by three loops."""
    batch, length, channels, _ = decay.shape
    out = torch.zeros(batch, channels, length, length)
    for t in range(length):
        for j in range(t + 1):
            product = decay[:, j + 1 : t + 1].prod(dim=1)
            out[:, :, t, j] = (product * source[:, j] * readout[:, t, None, :]).sum(-1)
    return out
