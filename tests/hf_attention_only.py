"""The layers of Llama, Qwen3, Gemma 2 and Gemma 3 under the names of the hook points.

Nothing of hybridlens is used here: values are those of the untouched model's own modules.
"""

import torch
from hf_capture import attention, dense_mlp, norm, residual

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""Between sums in another order: a few hundred roundings of values around 1."""


def llama_layer(got, model, layer):
    """Attention and an MLP, each behind a norm; queries and keys normalised where the model has such norms."""
    home, block = f"model.layers.{layer}", f"blocks.{layer}"
    out = residual(got, model, layer, "input_layernorm", "post_attention_layernorm", "mlp")
    out |= dense_mlp(got, f"{home}.mlp", block) | attention(got, model, f"{home}.self_attn", block, rotary=True)
    return out | _normed_heads(got, f"{home}.self_attn", block)


def gemma_layer(got, model, layer):
    """Attention and an MLP, each between two norms; heads' writes go through the second, its scale as it is."""
    home, block = f"model.layers.{layer}", f"blocks.{layer}"
    out = residual(got, model, layer, "input_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
    out |= norm(got, model, f"{home}.post_attention_layernorm", f"{block}.ln1_post")
    out |= norm(got, model, f"{home}.post_feedforward_layernorm", f"{block}.ln2_post")
    cap = model.config.attn_logit_softcapping
    out |= dense_mlp(got, f"{home}.mlp", block)
    out |= attention(got, model, f"{home}.self_attn", block, rotary=True, cap=cap)
    out |= _normed_heads(got, f"{home}.self_attn", block)
    written = got.outputs[f"{home}.post_attention_layernorm"]
    gain = 1 + model.get_parameter(f"{home}.post_attention_layernorm.weight")
    result = out[f"{block}.attn.hook_result"] / out[f"{block}.ln1_post.hook_scale"][:, :, None] * gain
    torch.testing.assert_close(result.sum(2), written, **CLOSE)
    torch.testing.assert_close(out[f"{block}.hook_resid_pre"] + written, out[f"{block}.hook_resid_mid"], **CLOSE)
    mine = {"attn.hook_result": result, "hook_attn_out": written, "hook_mixer_out": written}
    return out | {f"{block}.{name}": value for name, value in mine.items()}


def _normed_heads(got, module, block):
    """Queries and keys behind their norms, where there are any: [b p h e], whichever way the model has them."""
    q, k = got.outputs.get(f"{module}.q_norm"), got.outputs.get(f"{module}.k_norm")
    if q is None:
        return {}
    heads = got.attention[module][0].shape[1]
    if q.shape[1] == heads and q.shape[2] != heads:
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    return {f"{block}.attn.hook_q_normed": q, f"{block}.attn.hook_k_normed": k}
