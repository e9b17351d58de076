"""What the untouched Hugging Face model computes, under the names of the hook points.

Nothing of hybridlens is used here. Values are taken from the model's own modules by PyTorch hooks where a
module has them, and otherwise made again from such values by the formulas of the papers, written as plain
loops over tokens.
"""

import torch
import torch.nn.functional as F
from hf_attention_only import gemma_layer, llama_layer
from hf_bamba import bamba_layer
from hf_capture import Capture, attention, dense_mlp, norm, residual
from hf_granite import granite_layer
from hf_kimi_linear import kimi_linear_layer
from hf_mamba import hidden_attention, mamba_layer, mamba_mixer
from hf_matrix_states import falcon_h1_layer, mamba2_layer, qwen3_next_layer
from hf_minimax import minimax_layer
from hf_nemotron_h import nemotron_h_layer
from hf_olmo_hybrid import olmo_hybrid_layer
from hf_qwen3_5 import qwen3_5_layer
from hf_short_conv import lfm2_layer
from hf_zamba import zamba_layer
from hf_zamba2 import zamba2_layer


def activations(model, tokens) -> dict[str, torch.Tensor]:
    """Every hook point's value in one forward pass of the untouched model."""
    got = Capture(model, tokens)
    layers, final, of_layer = FAMILIES[model.config.model_type]
    with torch.no_grad():
        out = {"hook_embed": got.inputs[f"{layers}.0"], "hook_logits": got.logits}
        out |= norm(got, model, final, "ln_final")
        for layer in range(model.config.num_hidden_layers):
            out |= of_layer(got, model, layer)
    return out


def _recurrentgemma_layer(got, model, layer):
    home, block = f"model.layers.{layer}", f"blocks.{layer}"
    out = residual(got, model, layer, "temporal_pre_norm", "channel_pre_norm", "mlp_block")
    out |= dense_mlp(got, f"{home}.mlp_block", block)
    module = f"{home}.temporal_block"
    if module in got.attention:
        return out | attention(got, model, module, block, rotary=True)
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
    hidden = hidden_attention(decay[..., None], source[..., None], torch.ones_like(source[:, :, :1]))
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
    out = residual(got, model, layer, "input_layernorm", "pre_ff_layernorm", "feed_forward")
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
        out |= dense_mlp(got, f"{home}.feed_forward", block)
    if f"{home}.self_attn" in got.attention:
        return out | attention(got, model, f"{home}.self_attn", block, rotary=False)
    mine = mamba_mixer(got, model, f"{home}.mamba")
    return out | {f"{block}.{name}": value for name, value in mine.items()}


FAMILIES = {
    "recurrent_gemma": ("model.layers", "model.final_norm", _recurrentgemma_layer),
    "jamba": ("model.layers", "model.final_layernorm", _jamba_layer),
    "llama": ("model.layers", "model.norm", llama_layer),
    "qwen3": ("model.layers", "model.norm", llama_layer),
    "gemma2": ("model.layers", "model.norm", gemma_layer),
    "gemma3_text": ("model.layers", "model.norm", gemma_layer),
    "mamba2": ("backbone.layers", "backbone.norm_f", mamba2_layer),
    "falcon_h1": ("model.layers", "model.final_layernorm", falcon_h1_layer),
    "qwen3_next": ("model.layers", "model.norm", qwen3_next_layer),
    "qwen3_5_text": ("model.layers", "model.norm", qwen3_5_layer),
    "qwen3_5_moe_text": ("model.layers", "model.norm", qwen3_5_layer),
    "mamba": ("backbone.layers", "backbone.norm_f", mamba_layer),
    "falcon_mamba": ("backbone.layers", "backbone.norm_f", mamba_layer),
    "bamba": ("model.layers", "model.final_layernorm", bamba_layer),
    "nemotron_h": ("model.layers", "model.norm_f", nemotron_h_layer),
    "granitemoehybrid": ("model.layers", "model.norm", granite_layer),
    "lfm2": ("model.layers", "model.embedding_norm", lfm2_layer),
    "lfm2_moe": ("model.layers", "model.embedding_norm", lfm2_layer),
    "kimi_linear": ("model.layers", "model.norm", kimi_linear_layer),
    "olmo_hybrid": ("model.layers", "model.norm", olmo_hybrid_layer),
    "zamba": ("model.layers", "model.final_layernorm", zamba_layer),
    "zamba2": ("model.layers", "model.final_layernorm", zamba2_layer),
    "minimax": ("model.layers", "model.norm", minimax_layer),
}
"""Where layers and the last norm are, and what gives a layer's values."""
