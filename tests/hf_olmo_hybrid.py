"""OLMo-Hybrid's layers under the names of the hook points, from the untouched model's modules and plain loops.

Nothing of hybridlens is used here.
"""

import torch
import torch.nn.functional as F
from hf_capture import attention, dense_mlp, norm, residual
from hf_delta import CLOSE, delta_rule, written_by_heads


def olmo_hybrid_layer(got, model, layer):
    """The delta rule with norms before, or attention with norms after its branches and over all heads.

    Heads write through the norm after them, its scale as it is.
    """
    home, block = f"model.layers.{layer}", f"blocks.{layer}"
    if f"{home}.linear_attn" in got.outputs:
        out = residual(got, model, layer, "input_layernorm", "post_attention_layernorm", "mlp")
        mine = _delta(got, model, f"{home}.linear_attn")
        return out | dense_mlp(got, f"{home}.mlp", block) | {f"{block}.{name}": value for name, value in mine.items()}
    module, first, second = (
        f"{home}.{name}" for name in ("self_attn", "post_attention_layernorm", "post_feedforward_layernorm")
    )
    out = attention(got, model, module, block, rotary=True) | dense_mlp(got, f"{home}.mlp", block)
    out |= norm(got, model, first, f"{block}.ln1_post") | norm(got, model, second, f"{block}.ln2_post")
    mid = got.inputs[home] + got.outputs[first]
    torch.testing.assert_close(mid, got.inputs[f"{home}.mlp"])
    weight = model.get_parameter(f"{first}.weight")
    result = out[f"{block}.attn.hook_result"] / out[f"{block}.ln1_post.hook_scale"][:, :, None] * weight
    torch.testing.assert_close(result.sum(2), got.outputs[first], **CLOSE)
    mine = {
        "hook_resid_pre": got.inputs[home], "hook_resid_mid": mid, "hook_resid_post": got.outputs[home],
        "hook_mixer_in": got.inputs[home], "hook_mlp_in": mid, "attn.hook_result": result,
        "hook_attn_out": got.outputs[first], "hook_mixer_out": got.outputs[first], "hook_mlp_out": got.outputs[second],
    }  # fmt: skip
    for role in "qk":
        raw = out[f"{block}.attn.hook_{role}"]
        scale = (raw.flatten(2).square().mean(-1) + model.config.rms_norm_eps).rsqrt()[..., None, None]
        weight = model.get_parameter(f"{module}.{role}_norm.weight").view(raw.shape[2:])
        mine[f"attn.hook_{role}_normed"] = raw * scale * weight
        torch.testing.assert_close(mine[f"attn.hook_{role}_normed"].flatten(2), got.outputs[f"{module}.{role}_norm"])
    return out | {f"{block}.{name}": value for name, value in mine.items()}


def _delta(got, model, module):
    mixer = model.get_submodule(module)
    q, k, v, z, b, a = (got.outputs[f"{module}.{name}_proj"].double() for name in "qkvgba")
    decay = torch.exp(-mixer.A_log.double().exp() * F.softplus(a + mixer.dt_bias.double()))
    beta = torch.sigmoid(b) * (2 if model.config.linear_allow_neg_eigval else 1)
    inner = torch.cat([q, k, v], dim=-1)
    values = delta_rule(inner, mixer.conv1d, mixer.num_k_heads, beta, decay, mixer.head_v_dim)
    y = values["ssm.hook_y"].flatten(0, 2).float()
    torch.testing.assert_close(y, got.inputs[f"{module}.o_norm"], **CLOSE)
    written = written_by_heads(got, model, f"{module}.o_proj", mixer.num_v_heads)
    return values | {"ssm.hook_gate": F.silu(z)} | written
