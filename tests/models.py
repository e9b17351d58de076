"""Small random hybrids for the tests, of the real Hugging Face classes, with every weight away from its default."""

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

VOCAB = 53
FAMILIES = ("recurrentgemma", "jamba")
"""Those of the embedded models, for tests that need no more."""
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def shaken(model, seed):
    """Biases, norms and per-channel parameters start at 0 or 1, where a wrong sign or offset would not show."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim <= 2 and (weight.ndim == 1 or weight.unique().numel() < 20):
                weight.add_(0.1 * torch.randn_like(weight))


def perturbed(model, seed):
    """Every weight drawn anew: decays from 0.1 to 1, step sizes around 0.1, nothing at the value it starts from."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if name.endswith("A_log"):
                weight.copy_(0.7 * noise - 0.5)
            elif name.endswith(("dt_bias", "dt_proj.bias", "dt_proj_bias")):
                weight.copy_(0.8 * noise - 2.0)
            elif weight.ndim == 1 or of_channels(name):
                weight.add_(0.2 * noise)
            elif of_taps(name, weight):
                weight.copy_(0.5 * noise)
            else:
                weight.copy_(noise * (1.3 / weight.shape[-1] ** 0.5))
        for name, buffer in model.named_buffers():
            if name.endswith(("correction_bias", "expert_bias")):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))


def calm(model, seed):
    """As `perturbed`, with smaller maps and embeddings: logits that bend little, for gradients and small steps."""
    perturbed(model, seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and not of_taps(name, weight) and not of_channels(name):
                weight.mul_((0.4 * weight.shape[-1] ** 0.5 if "embed" in name else 0.9) / 1.3)


@dataclass(frozen=True)
class Row:
    """One family's small model."""

    kind: str
    """Of the class in transformers: "Jamba" for JambaForCausalLM."""
    fields: dict[str, Any]
    """Of the configuration, besides `vocab_size` and `hidden_size`."""
    draw: Callable[[Any, int], None] = perturbed
    """(model, seed): takes every weight away from its default."""
    attention: bool = True
    recurrence: bool = True
    matrix: bool = True
    """Whether its states are matrices, one a head."""
    state: bool = True
    """Whether its recurrent layers hold a state; if not, only their convolutions remember."""
    convolution: bool = True
    """Whether its recurrent layers have a convolution; if not, only their states remember."""
    shared: bool = False
    """Whether its attention and MLPs are shared blocks', which write nothing to the stream: no heads to follow."""
    bends: bool = False
    """Whether metrics bend sooner than others': slopes go a fifth as far, and integrals take four times the steps."""
    latent: bool = False
    """Whether its attention holds latents, of which keys and values of all heads are made."""
    delta: bool = False
    """Whether its states follow a delta rule."""
    unclamped: dict[str, Any] = field(default_factory=dict)
    """Changes without limits of step sizes, which transformers keeps to in passes of several tokens alone."""
    room: dict[str, Any] = field(default_factory=dict)
    """Changes with which it reads 400 tokens of a benchmark."""
    calm: dict[str, Any] = field(default_factory=dict)
    """Changes with which it has at least three layers; see `make_calm`."""
    smooth: dict[str, Any] = field(default_factory=dict)
    """Changes beside these with which all experts are in use; see `make_smooth`."""


def of_taps(name, weight):
    """Whether a weight is a convolution's, not a linear map's beside it."""
    return "conv" in name and weight.ndim == 3


def of_channels(name):
    """Whether a weight is a number a channel or a state, however many axes it has, and no linear map."""
    return name.endswith(("A_log", "dt_proj_bias", ".D"))


ROWS = {
    # Four layers (R R A R), one key/value head, a window of 7; with room, attention is in layers 2 and 5.
    "recurrentgemma": Row("RecurrentGemma", {
        "num_hidden_layers": 4, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 1,
        "attention_window_size": 7, "lru_width": 24, "w_init_variance_scale": 1.0,
    }, shaken, matrix=False, room={"attention_window_size": 64, "num_hidden_layers": 6}),
    # Four layers (M A M M), two key/value heads, four experts on odd layers; with room, attention in layers 1 and 5.
    "jamba": Row("Jamba", {
        "num_hidden_layers": 4, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_experts": 4, "attn_layer_period": 4, "attn_layer_offset": 1, "mamba_d_state": 5, "mamba_dt_rank": 3,
        "initializer_range": 0.15, "max_position_embeddings": 128,
    }, shaken, matrix=False, room={"max_position_embeddings": 400, "num_hidden_layers": 6}, smooth={
        "num_experts_per_tok": 4,
    }),
    # Two layers, four heads in two groups; neither attention nor MLP.
    "mamba2": Row("Mamba2", SPECIAL | {
        "num_hidden_layers": 2, "expand": 2, "num_heads": 4, "head_dim": 16, "state_size": 5, "n_groups": 2,
        "chunk_size": 4,
    }, attention=False, calm={"num_hidden_layers": 3, "state_size": 6, "chunk_size": 8}),
    # Two layers of both mixers, two key/value heads, two groups of recurrent heads, no multiplier at 1.
    "falcon_h1": Row("FalconH1", SPECIAL | {
        "num_hidden_layers": 2, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2,
        "mamba_d_ssm": 24, "mamba_n_heads": 4, "mamba_d_head": 6, "mamba_n_groups": 2, "mamba_d_state": 5,
        "mamba_chunk_size": 4, "max_position_embeddings": 128, "embedding_multiplier": 1.3,
        "lm_head_multiplier": 0.7, "mlp_multipliers": [0.8, 1.2], "key_multiplier": 0.6,
        "attention_in_multiplier": 1.1, "attention_out_multiplier": 0.9, "ssm_in_multiplier": 1.2,
        "ssm_out_multiplier": 0.85, "ssm_multipliers": [0.9, 1.1, 0.8, 1.2, 0.7],
    }, room={"max_position_embeddings": 400}, calm={
        "num_hidden_layers": 3, "mamba_d_ssm": 48, "mamba_d_head": 12, "mamba_d_state": 6, "mamba_chunk_size": 8,
    }),
    # Two layers, four query heads to two key/value heads, biases everywhere, positions stretched as Llama 3's are.
    "llama": Row("Llama", SPECIAL | {
        "num_hidden_layers": 2, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 128, "attention_bias": True, "mlp_bias": True, "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
        },
    }, matrix=False, recurrence=False, room={"max_position_embeddings": 400}, calm={"num_hidden_layers": 3}),
    # Three layers, of which the last two see a window of 5; heads wider than d_model allows, positions stretched.
    "qwen3": Row("Qwen3", SPECIAL | {
        "num_hidden_layers": 3, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 12, "max_position_embeddings": 128, "use_sliding_window": True, "sliding_window": 5,
        "max_window_layers": 1, "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    }, matrix=False, recurrence=False, room={"max_position_embeddings": 400, "sliding_window": 64}),
    # Three layers (a window of 5, all, a window of 5), norms on both sides, both caps low enough to bend.
    "gemma2": Row("Gemma2", SPECIAL | {
        "num_hidden_layers": 3, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 12, "max_position_embeddings": 128, "sliding_window": 5, "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 2.0, "final_logit_softcapping": 4.0,
    }, matrix=False, recurrence=False, room={"max_position_embeddings": 400, "sliding_window": 64}),
    # Three layers (a window of 5, all, a window of 5), each kind with a rotary embedding of its own.
    "gemma3": Row("Gemma3", SPECIAL | {
        "num_hidden_layers": 3, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 12, "max_position_embeddings": 128, "sliding_window": 5, "query_pre_attn_scalar": 20,
        "final_logit_softcapping": 4.0, "sliding_window_pattern": 2, "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 4.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    }, matrix=False, recurrence=False, room={"max_position_embeddings": 400, "sliding_window": 64}),
    # Layers D A D; four value heads over two key heads; six experts but in layer 0.
    "qwen3_next": Row("Qwen3Next", SPECIAL | {
        "num_hidden_layers": 3, "full_attention_interval": 2, "intermediate_size": 40, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 6, "linear_value_head_dim": 5, "mlp_only_layers": [0], "num_experts": 6,
        "num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 20,
        "max_position_embeddings": 128,
    }, bends=True, delta=True, room={"max_position_embeddings": 400}, calm={
        "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
        "num_hidden_layers": 4, "head_dim": 8, "linear_value_head_dim": 10, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 24, "num_experts": 4, "mlp_only_layers": [2],
    }, smooth={"num_experts_per_tok": 4}),
    # Layers D A D; four value heads over two key heads, rotary embedding in three parts.
    "qwen3_5": Row("Qwen3_5", SPECIAL | {
        "num_hidden_layers": 3, "full_attention_interval": 2, "intermediate_size": 48, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 24, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 6, "linear_value_head_dim": 5, "max_position_embeddings": 128,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [2, 2, 2],
            "mrope_interleaved": True,
        },
    }, calm, delta=True, room={"max_position_embeddings": 400}, calm={
        "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
        "num_hidden_layers": 4, "linear_value_head_dim": 10, "rms_norm_eps": 0.1,
    }),
    # The same with six experts in every layer.
    "qwen3_5_moe": Row("Qwen3_5Moe", SPECIAL | {
        "num_hidden_layers": 3, "full_attention_interval": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6,
        "linear_value_head_dim": 5, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 20, "max_position_embeddings": 128,
    }, calm, delta=True, room={"max_position_embeddings": 400}, calm={
        "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
        "num_hidden_layers": 4, "linear_value_head_dim": 10, "moe_intermediate_size": 16, "num_experts": 4,
        "rms_norm_eps": 0.1,
    }, smooth={"num_experts_per_tok": 4}),
    # Two layers, biases wherever there may be one.
    "mamba": Row("Mamba", SPECIAL | {
        "num_hidden_layers": 2, "state_size": 5, "time_step_rank": 3, "conv_kernel": 3, "use_bias": True,
    }, attention=False, matrix=False, calm={"num_hidden_layers": 3}),
    # Two layers, the width stated beside an `expand` that gives another, as in the published file; nothing tied.
    "falcon_mamba": Row("FalconMamba", SPECIAL | {
        "num_hidden_layers": 2, "state_size": 5, "time_step_rank": 3, "expand": 16, "intermediate_size": 48,
        "tie_word_embeddings": False, "mixer_rms_eps": 1e-3,
    }, attention=False, matrix=False, calm={
        "num_hidden_layers": 3, "state_size": 8, "time_step_rank": 8, "mixer_rms_eps": 0.1,
    }),
    # Layers M * E -: four recurrent heads in two groups, eight experts in four groups of which two are kept, a latent
    # space, and a floor under step sizes that half of them would fall below.
    "nemotron_h": Row("NemotronH", SPECIAL | {
        "layers_block_type": ["linear_attention", "full_attention", "moe", "mlp"], "intermediate_size": 40,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "mamba_num_heads": 4, "mamba_head_dim": 6,
        "n_groups": 2, "ssm_state_size": 5, "chunk_size": 4, "time_step_min": 0.1, "n_routed_experts": 8,
        "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "moe_intermediate_size": 24, "moe_latent_size": 16,
        "moe_shared_expert_intermediate_size": 20, "routed_scaling_factor": 1.7, "max_position_embeddings": 128,
    }, unclamped={"time_step_min": 1e-9}, room={"max_position_embeddings": 400}, calm={
        "layers_block_type": ["linear_attention", "full_attention", "linear_attention", "moe", "mlp"],
        "mamba_head_dim": 12, "ssm_state_size": 6, "chunk_size": 8, "time_step_min": 0.01, "n_routed_experts": 4,
        "num_experts_per_tok": 4, "n_group": 2,
    }),
    # Layers R A R; four recurrent heads in two groups, two key/value heads, step sizes kept within narrow limits.
    "bamba": Row("Bamba", SPECIAL | {
        "num_hidden_layers": 3, "attn_layer_indices": [1], "intermediate_size": 40, "num_attention_heads": 4,
        "num_key_value_heads": 2, "mamba_expand": 1, "mamba_n_heads": 4, "mamba_n_groups": 2, "mamba_d_state": 5,
        "mamba_chunk_size": 4, "time_step_limit": (0.06, 0.8), "max_position_embeddings": 128,
    }, unclamped={"time_step_limit": (0.0, float("inf"))}, room={"max_position_embeddings": 400}, calm={
        "mamba_d_state": 6, "mamba_chunk_size": 8, "time_step_limit": (0.0, 2.0),
    }),
    # Layers M A M; four recurrent heads in two groups, two key/value heads, six experts; no multiplier at 1.
    "granitemoehybrid": Row("GraniteMoeHybrid", SPECIAL | {
        "num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "intermediate_size": 24, "shared_intermediate_size": 20, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_local_experts": 6, "num_experts_per_tok": 2, "mamba_n_heads": 4, "mamba_n_groups": 2, "mamba_d_state": 5,
        "mamba_chunk_size": 4, "max_position_embeddings": 128, "embedding_multiplier": 1.3, "logits_scaling": 1.4,
        "residual_multiplier": 0.6, "attention_multiplier": 0.5,
    }, room={"max_position_embeddings": 400}, calm={
        "mamba_d_state": 6, "mamba_chunk_size": 8, "num_experts_per_tok": 6,
    }),
    # Layers C A C, two key/value heads; an MLP of 48 by rounding two thirds of 66, times 1.1, up to a multiple of 8.
    "lfm2": Row("Lfm2", SPECIAL | {
        "num_hidden_layers": 3, "full_attn_idxs": [1], "intermediate_size": 66, "block_multiple_of": 8,
        "block_ffn_dim_multiplier": 1.1, "num_attention_heads": 4, "num_key_value_heads": 2, "conv_L_cache": 4,
        "max_position_embeddings": 128,
    }, matrix=False, state=False, room={"max_position_embeddings": 400}),
    # Layers C A C, with biases; six experts, two a token, behind one dense layer; a bias in the choice, weights scaled.
    "lfm2_moe": Row("Lfm2Moe", SPECIAL | {
        "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"], "intermediate_size": 40,
        "moe_intermediate_size": 24, "num_experts": 6, "num_experts_per_tok": 2, "num_dense_layers": 1,
        "routed_scaling_factor": 1.3, "num_attention_heads": 4, "num_key_value_heads": 2, "conv_bias": True,
        "max_position_embeddings": 128,
    }, draw=calm, matrix=False, state=False, room={"max_position_embeddings": 400}, smooth={"num_experts_per_tok": 6}),
    # Layers D A D; four value heads over two key heads, write strengths up to 2; norms after the branches of
    # attention, and so calm, since these read a stream of any size.
    "olmo_hybrid": Row("OlmoHybrid", SPECIAL | {
        "num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2, "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "linear_key_head_dim": 6, "linear_value_head_dim": 5,
        "max_position_embeddings": 128, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    }, calm, bends=True, delta=True, room={"max_position_embeddings": 400}, calm={
        "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
        "num_hidden_layers": 4, "linear_key_head_dim": 12, "linear_value_head_dim": 10,
    }),
    # Layers K A K; values narrower than keys; an MLP, then six experts in three groups, and two shared ones as one.
    "kimi_linear": Row("KimiLinear", SPECIAL | {
        "num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse"], "intermediate_size": 40, "moe_intermediate_size": 24,
        "num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 14, "qk_nope_head_dim": 6,
        "qk_rope_head_dim": 3, "v_head_dim": 7, "linear_head_dim": 5, "linear_num_heads": 4, "num_local_experts": 6,
        "num_experts_per_tok": 2, "n_shared_experts": 2, "n_group": 3, "topk_group": 2, "routed_scaling_factor": 1.7,
        "max_position_embeddings": 128,
    }, latent=True, bends=True, delta=True, room={"max_position_embeddings": 400}, calm={
        "linear_head_dim": 10,
    }, smooth={"num_experts_per_tok": 6, "topk_group": 3}),
    # Layers S H S H: one shared block, used twice; two recurrent heads, two key/value heads, heads wider than the
    # stream and embedding have for each.
    "zamba": Row("Zamba", SPECIAL | {
        "num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2, "attention_head_dim": 18,
        "n_mamba_heads": 2, "mamba_d_state": 5, "mamba_dt_rank": 3, "mamba_d_conv": 3, "mamba_proj_bias": True,
        "max_position_embeddings": 128,
    }, calm, matrix=False, shared=True, room={"max_position_embeddings": 400}),
    # Layers S H H H: two shared blocks, the first used twice, with adapters of their own at each use.
    "zamba2": Row("Zamba2", SPECIAL | {
        "num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid", "hybrid", "hybrid"],
        "num_mem_blocks": 2, "intermediate_size": 40, "num_attention_heads": 4, "n_mamba_heads": 4,
        "mamba_ngroups": 2, "mamba_d_state": 6, "adapter_rank": 3, "use_shared_attention_adapter": True,
        "use_mem_rope": True, "add_bias_linear": True, "chunk_size": 4, "max_position_embeddings": 128,
    }, calm, shared=True, bends=True, room={"max_position_embeddings": 400}),
    # Layers L A L, blocks of 4; two key/value heads, no factor at 1; three of four experts a token, and rounding to
    # bfloat16 chooses no others.
    "minimax": Row("MiniMax", SPECIAL | {
        "num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "block_size": 4,
        "num_local_experts": 4, "num_experts_per_tok": 3, "max_position_embeddings": 128,
        "linear_attn_alpha_factor": 1.3, "linear_attn_beta_factor": 0.8, "full_attn_alpha_factor": 0.7,
        "full_attn_beta_factor": 1.2, "mlp_alpha_factor": 1.1, "mlp_beta_factor": 0.9,
    }, convolution=False, room={"max_position_embeddings": 400}, smooth={"num_experts_per_tok": 4}),
}  # fmt: skip
"""A new family is a row here; the contract test sees to it that none of `hybridlens.families` is missing."""
EVERY_FAMILY = tuple(ROWS)
"""For the contract: its tests are run on all of them, other tests on one of each kind."""
WITH_RECURRENCE = tuple(family for family, row in ROWS.items() if row.recurrence)
"""Of all families."""
OF_A_KIND = (
    *FAMILIES, "mamba2", "falcon_h1", "qwen3_next",  # states of each kind, alone, beside attention and in turn with it
    "kimi_linear",  # latents, decays by channel
    "llama", "lfm2",  # attention alone, convolutions
)  # fmt: skip
KINDS = tuple(os.environ.get("HYBRIDLENS_KINDS", "").split()) or tuple(kind for kind in OF_A_KIND if kind in ROWS)
"""One family of each kind of layer, for whatever is tested beside the contract. Whoever adds a family runs those tests
on it once: `HYBRIDLENS_KINDS="lfm3 minimax" pytest tests/test_patching.py`."""
WITH_ATTENTION = tuple(family for family in KINDS if ROWS[family].attention)
WITH_STATE = tuple(family for family in KINDS if ROWS[family].recurrence and ROWS[family].state)
PATCHED = KINDS if os.environ.get("HYBRIDLENS_KINDS") else WITH_STATE
"""For patching and its gradients: those with states stand for the others, unless families are named."""
MATRIX = tuple(family for family in KINDS if ROWS[family].matrix)
CONVOLVED = tuple(family for family in MATRIX if ROWS[family].convolution)
DELTA = tuple(family for family in KINDS if ROWS[family].delta)
MATRIX_WITH_ATTENTION = tuple(family for family in MATRIX if ROWS[family].attention)
MATRIX_WITH_KEYS = tuple(family for family in MATRIX_WITH_ATTENTION if not ROWS[family].latent)
MATRIX_WITH_LATENTS = tuple(family for family in MATRIX_WITH_ATTENTION if ROWS[family].latent)
ATTENDING = WITH_ATTENTION if os.environ.get("HYBRIDLENS_KINDS") else MATRIX_WITH_ATTENTION
"""For what is done to heads: those beside matrix states stand for the others, unless families are named."""
WITH_HEADS = tuple(family for family in WITH_ATTENTION if not ROWS[family].shared)
"""Those whose heads read the stream and write to it."""
MATRIX_WITH_HEADS = tuple(family for family in MATRIX if family in WITH_HEADS)


def make(family: str, seed: int = 0, draw: Callable[[Any, int], None] | None = None, **changes):
    """A small random model of a family, its weights drawn by its row or by another function."""
    row = ROWS[family]
    torch.manual_seed(seed)
    model_class = getattr(transformers, f"{row.kind}ForCausalLM")
    fields = {"vocab_size": VOCAB, "hidden_size": 32, **row.fields, **changes}
    layers = fields.get("num_hidden_layers")
    for name in ("layer_types", "layers_block_type", "mlp_layer_types"):
        if layers is not None and fields.get(name) is not None:  # with other numbers of layers the same ones come again
            fields[name] = (fields[name] * layers)[:layers]
    model = model_class(model_class.config_class(**fields))
    (draw or row.draw)(model, seed + 1)
    return model.eval()


def make_calm(family: str, seed: int = 0, **changes):
    """A small random model of a family with at least three layers, whose logits bend little."""
    row = ROWS[family]
    return make(family, seed, calm if row.draw is perturbed else None, **{**row.calm, **changes})


def make_smooth(family: str, seed: int = 0, **changes):
    """A small model as `make_calm` makes it, with all experts in use: where one changes hands, a metric jumps."""
    return make_calm(family, seed, **{**ROWS[family].smooth, **changes})


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Random token ids [batch, length]."""
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def rounding(model, ids: torch.Tensor) -> float:
    """How far a model's logits go when every weight changes by half a unit in its last place of float32.

    No two ways of computing the same model can be asked to agree better, and some models (norms of short vectors)
    amplify rounding tenfold.
    """
    with torch.no_grad():
        return float((nudged(model)(ids, use_cache=False).logits - model(ids, use_cache=False).logits).abs().max())


def nudged(model):
    """The model with every weight half a unit in its last place of float32 away."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1 + 2.0**-24 * (2 * torch.randint(0, 2, weight.shape, generator=generator) - 1).double())
    return other
