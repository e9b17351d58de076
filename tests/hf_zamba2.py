"""The layers of Zamba2 under the names of the hook points, from the untouched model's modules.

Nothing of hybridlens is used here.
"""

import torch
from bounds import LAYER, close
from hf_capture import attention, norm
from hf_matrix_states import mamba2


def zamba2_layer(got, model, layer):
    """A Mamba-2 mixer, whose input a shared block may add to."""
    home, block, config = f"model.layers.{layer}", f"blocks.{layer}", model.config
    shared = layer in config.hybrid_layer_ids
    out, decoder = {}, f"{home}.mamba_decoder" if shared else home
    if shared:
        out = _shared(got, model, home, block, config.hybrid_layer_ids.index(layer))
        fed = got.inputs[home] + out[f"{block}.hook_shared_out"]
        close(fed, got.inputs[f"{decoder}.input_layernorm"], LAYER)
    out |= {f"{block}.hook_resid_pre": got.inputs[home], f"{block}.hook_resid_post": got.outputs[home]}
    out |= norm(got, model, f"{decoder}.input_layernorm", f"{block}.ln1")
    mine = mamba2(got, model, f"{decoder}.mamba", config.mamba_ngroups)
    close(got.inputs[home] + mine["hook_ssm_out"], got.outputs[home], LAYER)
    return out | {f"{block}.{name}": value for name, value in mine.items()}


def _shared(got, model, home, block, use):
    """The shared block of a layer, its `use`-th: the adapters of that use are added by hand."""
    module, ff = f"{home}.shared_transformer.self_attn", f"{home}.shared_transformer.feed_forward"
    both = torch.cat([got.inputs[home], got.inputs["model.layers.0"]], dim=-1)
    assert torch.equal(both, got.inputs[f"{home}.shared_transformer.input_layernorm"])
    out = norm(got, model, f"{home}.shared_transformer.input_layernorm", f"{block}.ln_attn")
    out |= attention(got, model, module, block, rotary=True)
    for role in "qkv":
        added = _adapter(got.inputs[f"{module}.q_proj"], model, f"{module}.linear_{role}_adapter_list.{use}")
        name = f"{block}.attn.hook_{role}"
        out[name] = out[name] + added.unflatten(-1, out[name].shape[2:])
    out |= norm(got, model, f"{home}.shared_transformer.pre_ff_layernorm", f"{block}.ln_mlp")
    packed = got.outputs[f"{ff}.gate_up_proj"]
    packed = packed + _adapter(got.inputs[ff], model, f"{ff}.gate_up_proj_adapter_list.{use}")
    pre, linear = packed.chunk(2, dim=-1)
    post = 0.5 * pre * (1 + torch.erf(pre / 2**0.5)) * linear
    close(post, got.inputs[f"{ff}.down_proj"], LAYER)
    mine = {
        "mlp.hook_pre": pre,
        "mlp.hook_pre_linear": linear,
        "mlp.hook_post": got.inputs[f"{ff}.down_proj"],
        "hook_mlp_out": got.outputs[f"{ff}.down_proj"],
        "hook_shared_out": got.outputs[f"{home}.linear"],
    }
    return out | {f"{block}.{name}": value for name, value in mine.items()}


def _adapter(x, model, name):
    first, second = (model.get_parameter(f"{name}.{i}.weight") for i in range(2))
    return (x @ first.T) @ second.T
