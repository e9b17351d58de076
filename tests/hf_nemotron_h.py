"""The layers of Nemotron-H under the names of the hook points, routing by a plain loop over tokens in float64.

Nothing of hybridlens is used here.
"""

import torch
from hf_capture import attention, norm
from hf_matrix_states import CLOSE, mamba2


def nemotron_h_layer(got, model, layer):
    """A norm and one of four kinds of mixers."""
    home, block = f"model.layers.{layer}", f"blocks.{layer}"
    module, kind = f"{home}.mixer", model.config.layers_block_type[layer]
    out = {f"{block}.hook_resid_pre": got.inputs[home], f"{block}.hook_resid_post": got.outputs[home]}
    out |= norm(got, model, f"{home}.norm", f"{block}.ln1")
    if kind == "full_attention":
        return out | attention(got, model, module, block, rotary=False)
    if kind == "linear_attention":
        mine = mamba2(got, model, module, model.config.n_groups)
    elif kind == "mlp":
        mine = {"mlp.hook_pre": got.outputs[f"{module}.up_proj"], "mlp.hook_post": got.inputs[f"{module}.down_proj"]}
        torch.testing.assert_close(mine["mlp.hook_pre"].clamp(min=0) ** 2, mine["mlp.hook_post"])
    else:
        mine = _experts(got, model, module)
    if kind in ("mlp", "moe"):
        mine["hook_mlp_out"] = got.outputs[module]
    return out | {f"{block}.{name}": value for name, value in mine.items()}


def _experts(got, model, module):
    """Choices, weights, and what the experts add: in the latent space one after the other, then widened."""
    config, moe = model.config, model.get_submodule(module)
    x = got.inputs[module].double()
    logits = x @ moe.gate.weight.double().T
    scores = torch.sigmoid(logits)
    choice = scores + moe.gate.e_score_correction_bias.double()
    size, batch, length = config.n_routed_experts // config.n_group, *x.shape[:2]
    weights = torch.zeros(batch, length, config.num_experts_per_tok, dtype=torch.float64)
    indices = torch.zeros(weights.shape, dtype=torch.long)
    narrow = x @ moe.fc1_latent_proj.weight.double().T
    added = torch.zeros_like(narrow)
    for row in range(batch):
        for t in range(length):
            of = choice[row, t].tolist()
            best = [sum(sorted(of[g * size : (g + 1) * size])[-2:]) for g in range(config.n_group)]
            groups = sorted(range(config.n_group), key=lambda g, best=best: -best[g])[: config.topk_group]
            among = [expert for expert in range(len(of)) if expert // size in groups]
            chosen = sorted(among, key=lambda expert, of=of: -of[expert])[: config.num_experts_per_tok]
            total = sum(float(scores[row, t, expert]) for expert in chosen)
            for place, expert in enumerate(chosen):
                indices[row, t, place] = expert
                weights[row, t, place] = scores[row, t, expert] / total * config.routed_scaling_factor
                inside = (moe.experts.up_proj[expert].double() @ narrow[row, t]).clamp(min=0) ** 2
                added[row, t] += weights[row, t, place] * (moe.experts.down_proj[expert].double() @ inside)
    _, theirs, where = got.outputs[f"{module}.gate"]
    order = indices.flatten(0, 1)[:, None, :] == where[:, :, None]  # the library's are in no order
    assert bool(order.any(-1).all())
    torch.testing.assert_close((order * weights.flatten(0, 1)[:, None, :]).sum(-1).float(), theirs, **CLOSE)
    shared = got.outputs[f"{module}.shared_experts"]
    torch.testing.assert_close(
        (added @ moe.fc2_latent_proj.weight.double().T).float() + shared, got.outputs[module], **CLOSE
    )
    return {
        "mlp.hook_router_logits": logits, "mlp.hook_expert_weights": weights, "mlp.hook_expert_indices": indices,
        "mlp.hook_shared_out": shared,
    }  # fmt: skip
