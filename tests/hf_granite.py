"""The layers of Granite 4 under the names of the hook points, by plain loops in float64.

Nothing of hybridlens is used here. What goes in is taken from the untouched model's modules; what comes out is held
against the stream that the model itself made of it.
"""

import torch
from hf_capture import attention, norm
from hf_matrix_states import CLOSE, mamba2, named


def granite_layer(got, model, layer):
    """A mixer and experts beside a shared MLP, or that alone; all that is added is multiplied by one number."""
    home, block, config = f"model.layers.{layer}", f"blocks.{layer}", model.config
    added = config.residual_multiplier
    if f"{home}.self_attn" in got.attention:
        mine = attention(got, model, f"{home}.self_attn", block, config.position_embedding_type == "rope", added)
    else:
        mine = named(block, mamba2(got, model, f"{home}.mamba", config.mamba_n_groups, added))
    mlp = _mlp(got, home, added)
    out = {
        "hook_resid_pre": got.inputs[home], "hook_resid_mid": got.inputs[f"{home}.post_attention_layernorm"],
        "hook_resid_post": got.outputs[home],
    } | mlp  # fmt: skip
    middle = out["hook_resid_pre"] + mine[f"{block}.hook_mixer_out"]
    torch.testing.assert_close(middle.float(), out["hook_resid_mid"], **CLOSE)
    torch.testing.assert_close(out["hook_resid_mid"] + out["hook_mlp_out"], out["hook_resid_post"], **CLOSE)
    mine |= norm(got, model, f"{home}.input_layernorm", f"{block}.ln1")
    mine |= norm(got, model, f"{home}.post_attention_layernorm", f"{block}.ln2")
    return mine | named(block, out)


def _mlp(got, home, added):
    shared = got.outputs[f"{home}.shared_mlp"] * added
    if f"{home}.block_sparse_moe" not in got.outputs:
        gate, up = got.outputs[f"{home}.shared_mlp.input_linear"].chunk(2, dim=-1)
        post = got.inputs[f"{home}.shared_mlp.output_linear"]
        return {"mlp.hook_pre": gate, "mlp.hook_pre_linear": up, "mlp.hook_post": post, "hook_mlp_out": shared}
    batch, length = got.inputs[home].shape[:2]
    logits, weights, indices = (t.unflatten(0, (batch, length)) for t in got.outputs[f"{home}.block_sparse_moe.router"])
    return {
        "mlp.hook_router_logits": logits, "mlp.hook_expert_weights": weights, "mlp.hook_expert_indices": indices,
        "mlp.hook_shared_out": shared, "hook_mlp_out": got.outputs[f"{home}.block_sparse_moe"] * added + shared,
    }  # fmt: skip
