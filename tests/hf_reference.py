"""What the untouched Hugging Face model computes, under the names of the hook points.

Nothing of hybridlens is used here. Values are taken from the model's own modules by PyTorch hooks where a
module has them, and otherwise made again from such values by the formulas of the papers, written as plain
loops over tokens.
"""

import torch
import torch.nn.functional as F
from bounds import LAYER, close
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.models.jamba.modeling_jamba import eager_attention_forward


class Capture:
    """First input and output of every module of a model in one forward pass, and attention's arguments."""

    def __init__(self, model, tokens):
        self.inputs, self.outputs, self.attention = {}, {}, {}
        names = {module: name for name, module in model.named_modules()}

        def attend(module, q, k, v, mask, scaling, **kwargs):
            out, pattern = eager_attention_forward(module, q, k, v, mask, scaling)
            self.attention[names[module]] = (q, k, v, mask, scaling, pattern)
            return out, pattern

        AttentionInterface.register("hybridlens_test_capture", attend)
        AttentionMaskInterface.register("hybridlens_test_capture", eager_mask)
        before = model.config._attn_implementation
        model.set_attn_implementation("hybridlens_test_capture")
        handles = [
            module.register_forward_hook(self._keeper(name), with_kwargs=True) for module, name in names.items()
        ]
        try:
            with torch.no_grad():
                self.logits = model(tokens, use_cache=False).logits
        finally:
            for handle in handles:
                handle.remove()
            model.set_attn_implementation(before)

    def _keeper(self, name):
        def keep(module, args, kwargs, output):
            given = args or tuple(kwargs.values())
            self.inputs[name] = given[0] if given else None
            whole = not isinstance(output, tuple) or name.endswith(".router")
            self.outputs[name] = output if whole else output[0]

        return keep


def activations(model, tokens) -> dict[str, torch.Tensor]:
    """Every hook point's value in one forward pass of the untouched model."""
    got = Capture(model, tokens)
    kind = model.config.model_type
    with torch.no_grad():
        out = {"hook_embed": got.inputs["model.layers.0"], "hook_logits": got.logits}
        gemma = kind == "recurrent_gemma"
        out |= _norm(got, model, "model.final_norm" if gemma else "model.final_layernorm", "ln_final")
        for layer in range(model.config.num_hidden_layers):
            out |= (_recurrentgemma_layer if gemma else _jamba_layer)(got, model, layer)
    return out


def _norm(got, model, module, name):
    x = got.inputs[module].float()
    norm = model.get_submodule(module)
    eps = getattr(norm, "eps", None) or norm.variance_epsilon
    weight = norm.weight if hasattr(norm, "variance_epsilon") else 1 + norm.weight
    return {
        f"{name}.hook_scale": torch.sqrt((x * x).mean(-1, keepdim=True) + eps),
        f"{name}.hook_normalized": got.outputs[module] / weight,
    }


def _attention(got, model, module, block, rotary):
    q, k, _, mask, scaling, pattern = got.attention[module]
    heads, groups, width = q.shape[1], k.shape[1], q.shape[3]
    o_proj = model.get_submodule(f"{module}.o_proj")
    z = got.inputs[f"{module}.o_proj"].unflatten(-1, (heads, width))
    shared = k.repeat_interleave(heads // groups, dim=1)
    scores = torch.stack([q[:, h] @ shared[:, h].transpose(1, 2) for h in range(heads)], 1) * scaling
    forbidden = pattern.eq(0) & (mask < -1e30).expand_as(pattern)
    result = torch.stack(
        [z[:, :, h] @ o_proj.weight[:, h * width : (h + 1) * width].T for h in range(heads)], dim=2
    )
    out = {
        "attn.hook_q": got.outputs[f"{module}.q_proj"].unflatten(-1, (heads, width)),
        "attn.hook_k": got.outputs[f"{module}.k_proj"].unflatten(-1, (groups, width)),
        "attn.hook_v": got.outputs[f"{module}.v_proj"].unflatten(-1, (groups, width)),
        "attn.hook_attn_scores": scores.masked_fill(forbidden, float("-inf")),
        "attn.hook_pattern": pattern,
        "attn.hook_z": z,
        "attn.hook_result": result,
        "hook_attn_out": got.outputs[f"{module}.o_proj"],
        "hook_mixer_out": got.outputs[f"{module}.o_proj"],
    }
    if rotary:
        out |= {"attn.hook_rot_q": q.transpose(1, 2), "attn.hook_rot_k": k.transpose(1, 2)}
    return {f"{block}.{name}": value for name, value in out.items()}


def _dense_mlp(got, module, block):
    return {
        f"{block}.mlp.hook_pre": got.outputs[f"{module}.gate_proj"],
        f"{block}.mlp.hook_pre_linear": got.outputs[f"{module}.up_proj"],
        f"{block}.mlp.hook_post": got.inputs[f"{module}.down_proj"],
    }


def _residual(got, model, layer, norm1, norm2, mlp):
    home, block = f"model.layers.{layer}", f"blocks.{layer}"
    out = {
        f"{block}.hook_resid_pre": got.inputs[home],
        f"{block}.hook_resid_mid": got.inputs[f"{home}.{norm2}"],
        f"{block}.hook_mlp_out": got.outputs[f"{home}.{mlp}"],
        f"{block}.hook_resid_post": got.outputs[home],
    }
    out |= _norm(got, model, f"{home}.{norm1}", f"{block}.ln1")
    return out | _norm(got, model, f"{home}.{norm2}", f"{block}.ln2")


def _recurrentgemma_layer(got, model, layer):
    home, block = f"model.layers.{layer}", f"blocks.{layer}"
    out = _residual(got, model, layer, "temporal_pre_norm", "channel_pre_norm", "mlp_block")
    out |= _dense_mlp(got, f"{home}.mlp_block", block)
    module = f"{home}.temporal_block"
    if module in got.attention:
        return out | _attention(got, model, module, block, rotary=True)
    mixer = model.get_submodule(module)
    lru, x = mixer.rg_lru, got.inputs[f"{module}.rg_lru"]
    width = lru.block_width
    gates = {}
    for gate in ("input_gate", "recurrent_gate"):
        weight, bias = getattr(lru, f"{gate}_weight"), getattr(lru, f"{gate}_bias")
        parts = [x[..., h * width : (h + 1) * width] @ weight[h] + bias[h] for h in range(lru.num_attention_heads)]
        gates[gate] = torch.sigmoid(torch.cat(parts, dim=-1))
    decay = torch.exp(-8 * F.softplus(lru.recurrent_param) * gates["recurrent_gate"])
    multiplier = torch.sqrt(1 - decay**2)
    decay, multiplier = decay.clone(), multiplier.clone()
    decay[:, 0], multiplier[:, 0] = 0, 1
    source = gates["input_gate"] * multiplier
    states = got.outputs[f"{module}.rg_lru"]
    hidden = _hidden_attention(decay[..., None], source[..., None], torch.ones_like(source[:, :, :1]))
    mine = {
        "ssm.hook_in": got.outputs[f"{module}.linear_x"],
        "ssm.hook_conv": x,
        "ssm.hook_gate": mixer.act_fn(got.outputs[f"{module}.linear_y"]),
        "ssm.hook_input_gate": gates["input_gate"],
        "ssm.hook_recurrence_gate": gates["recurrent_gate"],
        "ssm.hook_decay": decay,
        "ssm.hook_write": source * x,
        "ssm.hook_state": states,
        "ssm.hook_y": states,
        "ssm.hook_pattern": hidden.unflatten(1, (lru.num_attention_heads, -1)).mean(2),
        "hook_ssm_out": got.outputs[f"{module}.linear_out"],
        "hook_mixer_out": got.outputs[f"{module}.linear_out"],
    }
    return out | {f"{block}.{name}": value for name, value in mine.items()}


def _jamba_layer(got, model, layer):
    home, block = f"model.layers.{layer}", f"blocks.{layer}"
    out = _residual(got, model, layer, "input_layernorm", "pre_ff_layernorm", "feed_forward")
    router = f"{home}.feed_forward.router"
    if router in got.outputs:
        batch, length = got.inputs[home].shape[:2]
        logits, weights, indices = (value.unflatten(0, (batch, length)) for value in got.outputs[router])
        out |= {
            f"{block}.mlp.hook_router_logits": logits,
            f"{block}.mlp.hook_expert_weights": weights,
            f"{block}.mlp.hook_expert_indices": indices,
        }
    else:
        out |= _dense_mlp(got, f"{home}.feed_forward", block)
    if f"{home}.self_attn" in got.attention:
        return out | _attention(got, model, f"{home}.self_attn", block, rotary=False)
    module = f"{home}.mamba"
    mixer = model.get_submodule(module)
    u = got.inputs[f"{module}.x_proj"]
    x, z = got.outputs[f"{module}.in_proj"].chunk(2, dim=-1)
    normed = got.outputs[f"{module}.dt_layernorm"]
    dt = F.softplus(normed @ mixer.dt_proj.weight.T + mixer.dt_proj.bias)
    B, C = got.outputs[f"{module}.b_layernorm"], got.outputs[f"{module}.c_layernorm"]
    A = -torch.exp(mixer.A_log.float())
    decay = torch.exp(dt[..., None] * A)
    source = dt[..., None] * B[:, :, None, :]
    state, states = torch.zeros_like(decay[:, 0]), []
    for t in range(u.shape[1]):
        state = decay[:, t] * state + source[:, t] * u[:, t, :, None]
        states.append(state)
    states = torch.stack(states, dim=1)
    gate = F.silu(z)
    y = (states * C[:, :, None, :]).sum(-1) + mixer.D * u
    close(y * gate, got.inputs[f"{module}.out_proj"], LAYER)
    mine = {
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
        "ssm.hook_pattern": _hidden_attention(decay, source, C).mean(1, keepdim=True),
        "hook_ssm_out": got.outputs[f"{module}.out_proj"],
        "hook_mixer_out": got.outputs[f"{module}.out_proj"],
    }
    return out | {f"{block}.{name}": value for name, value in mine.items()}


def _hidden_attention(decay, source, readout):
    """M[b, c, t, j] = Σ_n readout[t, n] · ∏_{j<s≤t} decay[s] · source[j], by three loops."""
    batch, length, channels, _ = decay.shape
    out = torch.zeros(batch, channels, length, length)
    for t in range(length):
        for j in range(t + 1):
            product = decay[:, j + 1 : t + 1].prod(dim=1)
            out[:, :, t, j] = (product * source[:, j] * readout[:, t, None, :]).sum(-1)
    return out
