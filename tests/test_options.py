"""Configurations that the small models of the contract do not have: each is the untouched model.

Biases, groups, head counts, norms and their order, clamps, tied embeddings, dense and sparse layers.
"""

import pytest
import torch
from models import make, rounding, tokens
from torch.testing import assert_close

from hybridlens import HybridLens
from hybridlens.errors import CheckpointError, InputError
from hybridlens.fingerprint import Fingerprint

CASES = {
    "mamba2 with biases": ("mamba2", {"use_bias": True}),
    "mamba2 without a convolution's bias": ("mamba2", {"use_conv_bias": False}),
    "mamba2 in one group": ("mamba2", {"n_groups": 1}),
    "mamba2 with a group a head": ("mamba2", {"n_groups": 4}),
    "mamba2 with small heads": ("mamba2", {"num_heads": 16, "head_dim": 4, "n_groups": 8}),
    "mamba2 clamped": ("mamba2", {"time_step_limit": (0.08, 0.2)}),
    "mamba2 tied": ("mamba2", {"tie_word_embeddings": True}),
    "mamba2 with a plain stream": ("mamba2", {"residual_in_fp32": False}),
    "mamba2 with short taps": ("mamba2", {"conv_kernel": 2}),
    "falcon_h1 normed before the gate": ("falcon_h1", {"mamba_rms_norm": True, "mamba_norm_before_gate": True}),
    "falcon_h1 gated before the norm": ("falcon_h1", {"mamba_rms_norm": True, "mamba_norm_before_gate": False}),
    "falcon_h1 with biases": (
        "falcon_h1", {"attention_bias": True, "mlp_bias": True, "mamba_proj_bias": True, "projectors_bias": True},
    ),
    "falcon_h1 without a convolution's bias": ("falcon_h1", {"mamba_conv_bias": False}),
    "falcon_h1 clamped": ("falcon_h1", {"time_step_limit": (0.08, 0.2)}),
    "falcon_h1 in one group": ("falcon_h1", {"mamba_n_groups": 1, "num_key_value_heads": 4}),
    "falcon_h1 with wide heads": ("falcon_h1", {"head_dim": 16, "num_key_value_heads": 1}),
    "falcon_h1 tied": ("falcon_h1", {"tie_word_embeddings": True}),
    "qwen3_next dense": ("qwen3_next", {"num_experts": 0}),
    "qwen3_next sparse in every second layer": (
        "qwen3_next", {"mlp_only_layers": [], "decoder_sparse_step": 2, "num_hidden_layers": 4},
    ),
    "qwen3_next with weights as the router gives them": ("qwen3_next", {"norm_topk_prob": False}),
    "qwen3_next with a key head a value head": ("qwen3_next", {"linear_num_key_heads": 4}),
    "qwen3_next with one key head": ("qwen3_next", {"linear_num_key_heads": 1}),
    "qwen3_next with biases": ("qwen3_next", {"attention_bias": True}),
    "qwen3_next turned whole": (
        "qwen3_next", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}},
    ),
    "qwen3_5 tied": ("qwen3_5", {"tie_word_embeddings": True, "linear_num_key_heads": 4}),
    "qwen3_5 with biases": ("qwen3_5", {"attention_bias": True, "num_key_value_heads": 1}),
    "qwen3_5_moe with one expert a token": ("qwen3_5_moe", {"num_experts_per_tok": 1}),
    "qwen3_next with one head of keys": ("qwen3_next", {"num_key_value_heads": 1, "head_dim": 8}),
    "granitemoehybrid without experts": ("granitemoehybrid", {"num_local_experts": 0, "num_experts_per_tok": 0}),
    "granitemoehybrid turned": (
        "granitemoehybrid",
        {"position_embedding_type": "rope", "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
    ),
    "granitemoehybrid with biases": ("granitemoehybrid", {"attention_bias": True, "mamba_proj_bias": True}),
    "granitemoehybrid without a convolution's bias": ("granitemoehybrid", {"mamba_conv_bias": False}),
    "granitemoehybrid clamped": ("granitemoehybrid", {"time_step_limit": (0.08, 0.2)}),
    "granitemoehybrid in one group": ("granitemoehybrid", {"mamba_n_groups": 1, "num_key_value_heads": 4}),
    "granitemoehybrid tied": ("granitemoehybrid", {"tie_word_embeddings": True}),
    "granitemoehybrid without attention": ("granitemoehybrid", {"layer_types": ["linear_attention"] * 3}),
    "granitemoehybrid with attention alone": ("granitemoehybrid", {"layer_types": ["full_attention"] * 3}),
    "kimi_linear in one group, weights as the router gives them": (
        "kimi_linear", {"n_group": 1, "topk_group": 1, "norm_topk_prob": False},
    ),
    "kimi_linear with biases": ("kimi_linear", {"attention_bias": True}),
    "kimi_linear with values as wide as keys": ("kimi_linear", {"v_head_dim": 9}),
    "kimi_linear dense and tied": ("kimi_linear", {"mlp_layer_types": ["dense"] * 3, "tie_word_embeddings": True}),
    "olmo_hybrid without positions": (
        "olmo_hybrid", {"rope_parameters": {"rope_type": "default", "rope_theta": None}},
    ),
    "olmo_hybrid with strengths up to 1": ("olmo_hybrid", {"linear_allow_neg_eigval": False}),
    "olmo_hybrid with a key head a value head": ("olmo_hybrid", {"linear_num_key_heads": 4}),
    "olmo_hybrid with biases": ("olmo_hybrid", {"attention_bias": True, "num_key_value_heads": 4}),
    "minimax with the published factors": (
        "minimax", {f"{kind}_{part}_factor": value for kind in ("full_attn", "linear_attn", "mlp")
                    for part, value in (("alpha", 3.5565588200778455), ("beta", 1.0))},
    ),
    "minimax in one block": ("minimax", {"block_size": 256, "num_key_value_heads": 4}),
    "minimax with attention first": (
        "minimax", {"layer_types": ["full_attention", "linear_attention", "linear_attention"], "head_dim": None},
    ),
    "minimax without attention": ("minimax", {"layer_types": ["linear_attention"] * 3}),
    "minimax with attention alone": ("minimax", {"layer_types": ["full_attention"] * 3}),
    "minimax in one layer": ("minimax", {"layer_types": ["linear_attention"], "num_hidden_layers": 1}),
    "minimax tied": ("minimax", {"tie_word_embeddings": True, "num_experts_per_tok": 1}),
    "zamba as published, without biases of projections": (
        "zamba", {"num_key_value_heads": 4, "attention_head_dim": None, "mamba_proj_bias": False},
    ),
    "zamba without biases": ("zamba", {"mamba_proj_bias": False, "mamba_conv_bias": False}),
    "zamba with one head of channels": ("zamba", {"n_mamba_heads": 1}),
    "zamba with many heads of channels, one of keys": ("zamba", {"n_mamba_heads": 16, "num_key_value_heads": 1}),
    "zamba with other activations": ("zamba", {"hidden_act": "silu", "hidden_mamba_act": "gelu"}),
    "zamba with narrow mixers, untied": ("zamba", {"mamba_expand": 1, "tie_word_embeddings": False}),
    "zamba with layers as they are counted": (
        "zamba", {"layers_block_type": None, "num_hidden_layers": 6, "attn_layer_period": 2, "attn_layer_offset": 1},
    ),
    "zamba with layers named as in files": ("zamba", {"layers_block_type": ["hybrid", "mamba", "mamba", "hybrid"]}),
    "zamba without attention": ("zamba", {"layers_block_type": ["linear_attention"] * 4}),
    "olmo_hybrid tied": ("olmo_hybrid", {"tie_word_embeddings": True, "rope_parameters": None}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_option_is_the_untouched_model(case):
    """Logits at once, read in pieces of 5, 1, 4 and 2, and of a shorter row in a ragged batch; heads add up.

    Of mixers that write by head.
    """
    family, changes = CASES[case]
    model, ids = make(family, 1, **changes), tokens(2, 12)
    lens = HybridLens(model)
    close = {"rtol": 1e-4, "atol": max(1e-5, 8 * rounding(model, ids))}
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        assert_close(lens(ids), expected, **close)
        state, parts = None, []
        for part in ids.split([5, 1, 4, 2], dim=1):
            state, logits = lens.prefill(part) if state is None else lens.extend(state, part)
            parts.append(logits)
        assert_close(torch.cat(parts, dim=1), expected, **close)
        ragged = lens([ids[0].tolist(), ids[1, :7].tolist()])
        assert_close(ragged[1, :7], expected[1, :7], **close)
        cache = lens.run_with_cache(ids)[1]
        for layer, has in enumerate(lens.cfg.layers):
            for mixer in [name for name, there in (("ssm", has.ssm), ("attn", has.attn)) if there is not None]:
                if f"blocks.{layer}.{mixer}.hook_result" not in lens.hook_points:  # a state that is no matrix a head
                    continue
                bias = lens.blocks[layer].mixers[mixer].out_bias()
                after = lens.blocks[layer].branches[0].norm_after
                if bias is not None and after is not None:
                    bias = after.at(bias, cache[f"blocks.{layer}.ln1_post.hook_scale"])
                total = cache[f"blocks.{layer}.{mixer}.hook_result"].sum(2) + (0 if bias is None else bias)
                assert_close(total, cache[f"blocks.{layer}.hook_{mixer}_out"], **close)


@pytest.mark.parametrize("family", ["mamba2", "falcon_h1", "granitemoehybrid"])
def test_steps_stay_within_finite_limits(family):
    """Read by hooks in prefill and in decode, where the library itself clamps only the former; both limits are met."""
    lens, seen = HybridLens(make(family, 1, time_step_limit=(0.08, 0.2))), []
    with torch.no_grad(), lens.hooks([("blocks.0.ssm.hook_dt", lambda x, hook: seen.append(x.clone()))]):
        state = lens.prefill(tokens(2, 12)).state
        lens.extend(state, tokens(2, 1, seed=3))
    assert [x.shape[1] for x in seen] == [12, 1]
    low, high = torch.tensor(0.08), torch.tensor(0.2)
    assert all(bool(((x >= low) & (x <= high)).all()) for x in seen)
    assert bool((seen[0] == low).any())
    assert bool((seen[0] == high).any())


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("mamba2", {"hidden_act": "relu"}, "Mamba-2: hidden_act is 'relu', expected 'silu'"),
        ("falcon_h1", {"hidden_act": "gelu"}, "Falcon-H1: hidden_act is 'gelu', expected 'silu'"),
        ("qwen3_next", {"hidden_act": "gelu"}, "Qwen3NextConfig: hidden_act is 'gelu', expected 'silu'"),
        ("mamba2", {"n_groups": 3}, "Mamba-2: n_groups is 3, expected a divisor of 4 recurrent heads"),
        ("nemotron_h", {"n_groups": 3}, "Nemotron-H: n_groups is 3, expected a divisor of 4 recurrent heads"),
        ("falcon_h1", {"mamba_n_groups": 3}, "Falcon-H1: mamba_n_groups is 3, expected a divisor of 4 recurrent heads"),
        ("bamba", {"mamba_n_groups": 3}, "Bamba: mamba_n_groups is 3, expected a divisor of 4 recurrent heads"),
        ("granitemoehybrid", {"mamba_n_groups": 3}, "Granite: mamba_n_groups is 3, expected a divisor of 4 recurrent"),
        ("zamba2", {"mamba_ngroups": 3}, "Zamba2: mamba_ngroups is 3, expected a divisor of 4 recurrent heads"),
        ("zamba", {"attention_hidden_size": 32}, "Zamba: attention_hidden_size is 32, expected 64, stream and emb"),
        ("zamba", {"layers_block_type": ["full_attention"] * 4}, "Zamba: layers_block_type is .*, expected linear"),
        ("zamba", {"sliding_window": 8}, "field sliding_window = 8, expected one of None"),
        ("zamba", {"lora_rank": 8}, "field lora_rank = 8, expected no such field"),
        ("granitemoehybrid", {"hidden_act": "gelu"}, "Granite: hidden_act is 'gelu', expected 'silu'"),
        ("granitemoehybrid", {"position_embedding_type": "alibi"}, "position_embedding_type is 'alibi', expected"),
        ("granitemoehybrid", {"num_experts_per_tok": 7}, "num_experts_per_tok is 7, expected at most"),
        ("granitemoehybrid", {"num_experts_per_tok": 0}, "num_experts_per_tok is 0, expected at least 1 of num_local"),
        ("granitemoehybrid", {"logits_scaling": 0}, "logits_scaling is 0, expected a number above 0"),
        ("granitemoehybrid", {"time_step_limit": None}, "time_step_limit is None, expected two numbers"),
        (
            "granitemoehybrid",
            {"layer_types": ["full_attention", "sliding_attention", "linear_attention"]},
            "a layer of layer_types is 'sliding_attention', expected one of linear_attention, full_attention",
        ),
        (
            "granitemoehybrid",
            {"position_embedding_type": "rope", "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor is 0.5, expected 1",
        ),
        ("kimi_linear", {"q_lora_rank": 8}, "Kimi-Linear: q_lora_rank is 8, expected None"),
        ("kimi_linear", {"num_key_value_heads": 2}, "Kimi-Linear: num_key_value_heads is 2, expected 4"),
        ("kimi_linear", {"mla_use_nope": False}, "configuration field mla_use_nope = False, expected one of True"),
        ("kimi_linear", {"moe_layer_freq": 2}, "configuration field moe_layer_freq = 2, expected one of 1"),
        (
            "kimi_linear",
            {"linear_attn_config": {"gate_lower_bound": -5.0}},
            "Kimi-Linear: linear_attn_config is 'gate_lower_bound', expected nothing but full_attn_layers",
        ),
        ("minimax", {"hidden_act": "gelu"}, "MiniMax: hidden_act is 'gelu', expected 'silu'"),
        ("minimax", {"sliding_window": 8}, "MiniMax: sliding_window is 8, expected None"),
        ("minimax", {"num_experts_per_tok": 5}, "MiniMax: num_experts_per_tok is 5, expected 1 to num_local_experts"),
        ("minimax", {"rotary_dim": 4}, "MiniMax: rotary_dim is 4, expected 6: transformers turns whole heads"),
        ("minimax", {"attn_type_list": [0, 0, 1]}, r"MiniMax: attn_type_list is .*, expected \[0, 1, 0\], as layer_"),
        ("minimax", {"postnorm": False}, "configuration field postnorm = False, expected one of True"),
        ("minimax", {"shared_intermediate_size": 8}, "field shared_intermediate_size = 8, expected one of 0"),
        ("minimax", {"layernorm_mlp_alpha": 3.5}, "field layernorm_mlp_alpha = 3.5, expected no such field"),
        ("minimax", {"mlp_alpha_factor": -1.0}, "mlp_alpha_factor is -1.0, expected a number"),
        ("minimax", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "rope_type is 'li"),
        (
            "minimax",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor is 0.5, expected 1.0: whole heads turn",
        ),
        ("olmo_hybrid", {"hidden_act": "gelu"}, "OLMo-Hybrid: hidden_act is 'gelu', expected 'silu'"),
        (
            "olmo_hybrid",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "OLMo-Hybrid: partial_rotary_factor is 0.5, expected 1",
        ),
    ],
)
def test_what_a_family_was_not_built_for_is_refused_in_one_line(family, changes, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        HybridLens(make(family, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["mamba2", "falcon_h1", "qwen3_next"])
def test_states_of_other_sizes_and_other_weights_are_refused(family, monkeypatch):
    """Same family, another state size; same sizes, other weights: one line each, before anything runs."""
    monkeypatch.setattr(
        Fingerprint, "now", lambda self, fresh=False: str(float(self.model.get_input_embeddings().weight.sum()))
    )
    other = {"mamba2": {"state_size": 6}, "falcon_h1": {"mamba_d_state": 6}, "qwen3_next": {"linear_key_head_dim": 7}}
    lens = HybridLens(make(family))
    with torch.no_grad():
        state = lens.prefill(tokens(1, 4)).state
        for changed, message in (
            (make(family, **other[family]), "the state is of a model"),
            (make(family, 1), "the state was made by other weights"),
        ):
            with pytest.raises(InputError, match=message) as caught:
                HybridLens(changed).extend(state, tokens(1, 1))
            assert "\n" not in str(caught.value)
