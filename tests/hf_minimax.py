"""MiniMax's layers under the names of the hook points, from the untouched model's modules and plain loops.

Nothing of hybridlens is used here. What goes in is taken from the untouched model's projections; what comes out is held
against what its own modules were given, and against the stream that the model itself made of it.
"""

import torch
import torch.nn.functional as F
from bounds import LAYER, close
from hf_capture import attention, norm
from hf_delta import written_by_heads
from transformers import DynamicCache
from transformers.models.minimax.modeling_minimax import MiniMaxCache


def new_cache(model):
    """An empty cache of the library's that a model takes: MiniMax takes none but its own kind."""
    own = model.config.model_type == "minimax"
    return MiniMaxCache() if own else DynamicCache(config=model.config)


def minimax_layer(got, model, layer):
    """A mixer and experts; what both write is multiplied, and added to a multiple of what the norm before it gave."""
    home, block, config = f"model.layers.{layer}", f"blocks.{layer}", model.config
    first, second, module = (f"{home}.{name}" for name in ("input_layernorm", "post_attention_layernorm", "self_attn"))
    full = config.layer_types[layer] == "full_attention"
    kind = "full_attn" if full else "linear_attn"
    kept, added = getattr(config, f"{kind}_alpha_factor"), getattr(config, f"{kind}_beta_factor")
    out = norm(got, model, first, f"{block}.ln1") | norm(got, model, second, f"{block}.ln2")
    if full:
        out |= attention(got, model, module, block, True, added)
    else:
        out |= {f"{block}.{name}": value for name, value in _lightning(got, model, module, layer, added).items()}
    batch, length = got.inputs[home].shape[:2]
    logits, weights, indices = (t.unflatten(0, (batch, length)) for t in got.outputs[f"{home}.mlp.gate"])
    mine = {
        "hook_resid_pre": got.inputs[home], "hook_resid_mid": got.inputs[second], "hook_resid_post": got.outputs[home],
        "mlp.hook_router_logits": logits, "mlp.hook_expert_weights": weights, "mlp.hook_expert_indices": indices,
        "hook_mlp_out": got.outputs[f"{home}.mlp"] * config.mlp_beta_factor,
    }  # fmt: skip
    middle = got.outputs[first] * kept + out[f"{block}.hook_mixer_out"]
    close(middle, mine["hook_resid_mid"], LAYER)
    close(got.outputs[second] * config.mlp_alpha_factor + mine["hook_mlp_out"], mine["hook_resid_post"], LAYER)
    return out | {f"{block}.{name}": value for name, value in mine.items()}


def _lightning(got, model, module, layer, added):
    """The slopes are the paper's formula, not the buffers of the model."""
    heads, layers = model.config.num_attention_heads, model.config.num_hidden_layers
    packed = F.silu(got.outputs[f"{module}.qkv_proj"].double()).unflatten(-1, (heads, -1))
    q, k, v = packed.chunk(3, dim=-1)
    batch, length = q.shape[:2]
    slope = torch.tensor([2 ** (-8 * (h + 1) / heads) for h in range(heads)], dtype=torch.float64)
    decay = torch.exp(-slope * (1 - layer / (layers - 1 + 1e-5) + 1e-5))
    write = v[..., None] * k[..., None, :]
    state, states = torch.zeros_like(write[:, 0]), []
    for t in range(length):
        state = decay[:, None, None] * state + write[:, t]
        states.append(state)
    states = torch.stack(states, dim=1)
    y = (states * q[..., None, :]).sum(-1)
    pattern = torch.zeros(batch, heads, length, length, dtype=torch.float64)
    for t in range(length):
        for j in range(t + 1):
            pattern[:, :, t, j] = decay ** (t - j) * (q[:, t] * k[:, j]).sum(-1)
    torch.testing.assert_close(torch.einsum("bspk,bksu->bpsu", pattern, v), y, rtol=1e-9, atol=1e-9)
    close(y.flatten(2).float(), got.inputs[f"{module}.norm"], LAYER)
    gate = torch.sigmoid(got.outputs[f"{module}.output_gate"])
    close(gate * got.outputs[f"{module}.norm"], got.inputs[f"{module}.out_proj"], LAYER)
    return {
        "ssm.hook_v": v, "ssm.hook_k": k, "ssm.hook_q": q, "ssm.hook_decay": decay.expand(batch, length, heads),
        "ssm.hook_write": write, "ssm.hook_state": states, "ssm.hook_y": y, "ssm.hook_gate": gate,
        "ssm.hook_pattern": pattern,
    } | written_by_heads(got, model, f"{module}.out_proj", heads, added)  # fmt: skip
