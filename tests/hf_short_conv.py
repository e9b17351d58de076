"""The layers of LFM2, with and without experts, under the names of the hook points, by plain loops in float64.

Nothing of hybridlens is used here. What goes in is taken from the untouched model's projections; what comes out is held
against what its own modules were given.
"""

import torch
from hf_capture import attention, dense_mlp, residual

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""Between a float64 loop and the model's float32: a few dozen roundings of values around 1."""


def lfm2_layer(got, model, layer):
    """A short convolution or attention with norms of queries and keys, and an MLP or experts."""
    home, block = f"model.layers.{layer}", f"blocks.{layer}"
    out = residual(got, model, layer, "operator_norm", "ffn_norm", "feed_forward")
    mlp = f"{home}.feed_forward"
    if f"{mlp}.gate" in got.outputs:
        out |= _experts(got, model, mlp, block)
    else:
        out |= dense_mlp(got, mlp, block, names=("w1", "w3", "w2"))
    if f"{home}.conv" in got.outputs:
        return out | {f"{block}.{name}": value for name, value in _short_conv(got, model, f"{home}.conv").items()}
    module = f"{home}.self_attn"
    out |= attention(got, model, module, block, rotary=True, output="out_proj")
    out[f"{block}.attn.hook_q_normed"] = got.outputs[f"{module}.q_layernorm"]
    out[f"{block}.attn.hook_k_normed"] = got.outputs[f"{module}.k_layernorm"]
    return out


def _experts(got, model, mlp, block):
    """The router by the paper's words, held against what the model's own gave its experts."""
    batch, length = got.inputs[mlp].shape[:2]
    x, config = got.inputs[f"{mlp}.gate"], model.config
    logits = x @ model.get_parameter(f"{mlp}.gate.weight").T
    scores, bias = torch.sigmoid(logits), model.get_buffer(f"{mlp}.expert_bias")
    rows = []
    for token in range(len(scores)):
        ranked = sorted(range(scores.shape[1]), key=lambda e, token=token: -float(scores[token, e] + bias[e]))
        rows.append(ranked[: config.num_experts_per_tok])
    indices = torch.tensor(rows)
    weights = scores.gather(1, indices)
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-6) * config.routed_scaling_factor
    _, theirs, given = got.given[f"{mlp}.experts"]
    assert torch.equal(indices, theirs)
    torch.testing.assert_close(weights, given, **CLOSE)
    found = {"router_logits": logits, "expert_weights": weights, "expert_indices": indices}
    return {f"{block}.mlp.hook_{name}": value.unflatten(0, (batch, length)) for name, value in found.items()}


def _short_conv(got, model, module):
    mixer = model.get_submodule(module)
    gate_in, gate_out, v = got.outputs[f"{module}.in_proj"].double().chunk(3, dim=-1)
    taps, inner = mixer.conv.weight[:, 0].double(), gate_in * v
    y = torch.zeros_like(v) if mixer.conv.bias is None else mixer.conv.bias.double().expand(v.shape).clone()
    batch, length, channels = v.shape
    pattern = torch.zeros(batch, channels, length, length, dtype=torch.float64)
    for t in range(length):
        for back in range(min(taps.shape[1], t + 1)):
            y[:, t] += taps[:, taps.shape[1] - 1 - back] * inner[:, t - back]
            pattern[:, :, t, t - back] = taps[:, taps.shape[1] - 1 - back] * gate_in[:, t - back]
    bias = 0.0 if mixer.conv.bias is None else mixer.conv.bias.double()
    read = torch.einsum("bcpk,bkc->bpc", pattern, v) + bias
    torch.testing.assert_close(read, y, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close((gate_out * y).float(), got.inputs[f"{module}.out_proj"], **CLOSE)
    written = got.outputs[f"{module}.out_proj"]
    return {
        "ssm.hook_input_gate": gate_in, "ssm.hook_v": v, "ssm.hook_in": inner, "ssm.hook_conv": y, "ssm.hook_y": y,
        "ssm.hook_gate": gate_out, "ssm.hook_pattern": pattern.mean(1, keepdim=True),
        "hook_ssm_out": written, "hook_mixer_out": written,
    }  # fmt: skip
