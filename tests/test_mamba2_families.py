"""Nemotron-H, Bamba and Granite: what their rows refuse, and where transformers' own cached run is not its full run."""

import pytest
import torch
from bounds import FORWARD, apart, close
from models import make, rounding, tokens
from transformers import DynamicCache

from hybridlens import HybridLens
from hybridlens.errors import CheckpointError

REFUSED = {
    "nemotron_h": [
        ({"sliding_window": 8}, "Nemotron-H: sliding_window is 8, expected None"),
        ({"attention_bias": True}, "Nemotron-H: attention_bias is True, expected False"),
        ({"residual_in_fp32": True}, "Nemotron-H: residual_in_fp32 is True, expected False"),
        ({"tie_word_embeddings": True}, "Nemotron-H: tie_word_embeddings is True, expected False"),
        ({"time_step_limit": (0.1, 1.0)}, r"Nemotron-H: time_step_limit is \(0.1, 1.0\), expected \(0.0, inf\)"),
        ({"n_shared_experts": 2}, "Nemotron-H: n_shared_experts is 2, expected 1"),
        ({"attention_head_dim": 16}, "Nemotron-H: attention_head_dim is 16, expected head_dim = 12"),
        ({"norm_eps": 1e-3}, "Nemotron-H: norm_eps is 0.001, expected layer_norm_epsilon = 1e-05"),
        ({"mamba_hidden_act": "gelu"}, "Nemotron-H: mamba_hidden_act is 'gelu', expected 'silu'"),
        ({"n_group": 8}, "Nemotron-H: n_group is 8, expected a divisor of n_routed_experts = 8, with at least 2"),
        ({"topk_group": 5}, "Nemotron-H: topk_group is 5, expected at most n_group = 4"),
        ({"num_experts_per_tok": 5}, "Nemotron-H: num_experts_per_tok is 5, expected at most 4"),
        ({"moe_pairs": 2}, "NemotronHForCausalLM: configuration field moe_pairs = 2, expected no such field"),
        ({"conv_kernel": 1}, "NemotronHForCausalLM: conv_kernel is 1, expected a whole number from 2"),
    ],
    "bamba": [
        ({"hidden_act": "gelu"}, "Bamba: hidden_act is 'gelu', expected 'silu'"),
        ({"attn_layer_indices": [1, 3]}, r"an entry of attn_layer_indices is 3, expected one of the layers 0\.\.2"),
        ({"attn_rotary_emb": 8}, "Bamba: attn_rotary_emb is 8, expected 4, what rope_parameters turn of a head"),
        ({"time_step_limit": None}, "Bamba: time_step_limit is None, expected two numbers"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope_type is 'linear'"),
    ],
    "granitemoehybrid": [
        ({"shared_intermediate_size": 0}, "Granite: shared_intermediate_size is 0, expected at least 1"),
    ],
}  # fmt: skip
CASES = [(family, changes, line) for family, cases in REFUSED.items() for changes, line in cases]


@pytest.mark.parametrize(("family", "changes", "line"), CASES)
def test_what_a_row_was_not_built_for_is_refused_by_field_and_value(family, changes, line):
    model = make(family)
    for field, value in changes.items():
        setattr(model.config, field, value)
    with pytest.raises(CheckpointError, match=line) as caught:
        HybridLens(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes", [{"moe_latent_size": None}, {"norm_topk_prob": False}, {"n_group": 1, "topk_group": 1},
                {"use_bias": True, "mlp_bias": True, "use_conv_bias": False}, {"mlp_hidden_act": "silu"}],
)  # fmt: skip
def test_what_a_nemotron_may_have_otherwise(changes):
    """Each option changes the model, and the lens with it."""
    model, ids = make("nemotron_h", 2, **changes), tokens(2, 9)
    with torch.no_grad():
        close(HybridLens(model)(ids), model(ids, use_cache=False).logits, FORWARD, extra=8 * rounding(model, ids))


@pytest.mark.parametrize("changes", [{"rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 1.0}},
                                     {"mamba_proj_bias": True, "attention_bias": True, "mlp_bias": True}])  # fmt: skip
def test_what_a_bamba_may_have_otherwise(changes):
    model, ids = make("bamba", 2, **changes), tokens(2, 9)
    with torch.no_grad():
        close(HybridLens(model)(ids), model(ids, use_cache=False).logits, FORWARD, extra=8 * rounding(model, ids))


@pytest.mark.parametrize("family", ["nemotron_h", "bamba"])
def test_reading_on_gives_what_the_model_gives_for_the_whole(family):
    """Token by token the library's own cache forgets the limits of Δ, and Bamba's positions; the lens does not."""
    model, ids = make(family, 5), tokens(2, 12)
    lens = HybridLens(model)
    with torch.no_grad():
        full = model(ids, use_cache=False).logits
        state, out = lens.prefill(ids[:, :4])
        cache = DynamicCache(config=model.config)
        ours, theirs = [out], [model(ids[:, :4], past_key_values=cache).logits]
        for t in range(4, 12):
            state, logits = lens.extend(state, ids[:, t : t + 1])
            ours.append(logits)
            theirs.append(model(ids[:, t : t + 1], past_key_values=cache).logits)
        dt = lens.run_with_cache(ids, "blocks.0.ssm.hook_dt")[1]["blocks.0.ssm.hook_dt"]
    low = model.get_submodule("model.layers.0." + ("mixer" if family == "nemotron_h" else "mamba")).time_step_limit[0]
    assert 0.05 < (dt == low).float().mean() < 0.95
    close(torch.cat(ours, dim=1), full, FORWARD, extra=8 * rounding(model, ids))
    assert apart(torch.cat(theirs, dim=1), full)
