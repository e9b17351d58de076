"""Small random hybrids for the tests, of the real Hugging Face classes, with every weight away from its default."""

import copy
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
            elif name.endswith("dt_bias"):
                weight.copy_(0.8 * noise - 2.0)
            elif weight.ndim == 1:
                weight.add_(0.2 * noise)
            elif "conv" in name:
                weight.copy_(0.5 * noise)
            else:
                weight.copy_(noise * (1.3 / weight.shape[-1] ** 0.5))


def calm(model, seed):
    """As `perturbed`, with smaller maps and embeddings: logits that bend little, for gradients and small steps."""
    perturbed(model, seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "conv" not in name and not name.endswith("A_log"):
                weight.mul_((0.4 * weight.shape[-1] ** 0.5 if "embed" in name else 0.9) / 1.3)


@dataclass(frozen=True)
class Row:
    """One family's small model."""

    kind: str
    """Of the classes in transformers: "Jamba" for JambaConfig and JambaForCausalLM."""
    fields: dict[str, Any]
    """Of the configuration, besides `vocab_size` and `hidden_size`."""
    draw: Callable[[Any, int], None] = perturbed
    """(model, seed): takes every weight away from its default."""
    attention: bool = True
    matrix: bool = True
    """Whether its states are matrices, one a head."""
    room: dict[str, Any] = field(default_factory=dict)
    """Changes with which it reads 400 tokens of a benchmark."""
    calm: dict[str, Any] = field(default_factory=dict)
    """Changes with which it has at least three layers; see `make_calm`."""


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
    }, shaken, matrix=False, room={"max_position_embeddings": 400, "num_hidden_layers": 6}),
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
    # Layers D A D; four value heads over two key heads; six experts but in layer 0.
    "qwen3_next": Row("Qwen3Next", SPECIAL | {
        "num_hidden_layers": 3, "full_attention_interval": 2, "intermediate_size": 40, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 6, "linear_value_head_dim": 5, "mlp_only_layers": [0], "num_experts": 6,
        "num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 20,
        "max_position_embeddings": 128,
    }, room={"max_position_embeddings": 400}, calm={
        "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
        "num_hidden_layers": 4, "head_dim": 8, "linear_value_head_dim": 10, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 24, "num_experts": 4, "mlp_only_layers": [2],
    }),
    # Layers S H H H: two shared blocks, the first used twice, with adapters of their own at each use.
    "zamba2": Row("Zamba2", SPECIAL | {
        "num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid", "hybrid", "hybrid"],
        "num_mem_blocks": 2, "intermediate_size": 40, "num_attention_heads": 4, "n_mamba_heads": 4,
        "mamba_ngroups": 2, "mamba_d_state": 5, "adapter_rank": 3, "use_shared_attention_adapter": True,
        "use_mem_rope": True, "add_bias_linear": True, "chunk_size": 4, "max_position_embeddings": 128,
    }, calm, room={"max_position_embeddings": 400}),
}  # fmt: skip
"""A new family is a row here; the contract test sees to it that none of `hybridlens.families` is missing."""
EVERY_FAMILY = tuple(ROWS)
WITH_ATTENTION = tuple(family for family, row in ROWS.items() if row.attention)
MATRIX = tuple(family for family, row in ROWS.items() if row.matrix)
MATRIX_WITH_ATTENTION = tuple(family for family in MATRIX if ROWS[family].attention)


def make(family: str, seed: int = 0, draw: Callable[[Any, int], None] | None = None, **changes):
    """A small random model of a family, its weights drawn by its row or by another function."""
    row = ROWS[family]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{row.kind}Config")
    sizes = {"vocab_size": VOCAB, "hidden_size": 32}
    model = getattr(transformers, f"{row.kind}ForCausalLM")(config(**{**sizes, **row.fields, **changes}))
    (draw or row.draw)(model, seed + 1)
    return model.eval()


def make_calm(family: str, seed: int = 0, **changes):
    """A small random model of a family with at least three layers, whose logits bend little."""
    row = ROWS[family]
    return make(family, seed, calm if row.matrix else None, **{**row.calm, **changes})


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
