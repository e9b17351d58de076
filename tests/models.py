"""Small random hybrids for the tests, of the real Hugging Face classes, with every weight away from its default."""

import copy

import torch
from transformers import (
    FalconH1Config,
    FalconH1ForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

VOCAB = 53
FAMILIES = ("recurrentgemma", "jamba")
"""Those of the embedded models, for tests that need no more."""


def recurrentgemma(seed: int = 0, **changes) -> RecurrentGemmaForCausalLM:
    """Four layers (R R A R), one key/value head, a window of 7."""
    fields = {
        "num_hidden_layers": 4, "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 96,
        "num_attention_heads": 4, "num_key_value_heads": 1, "attention_window_size": 7, "lru_width": 24,
        "w_init_variance_scale": 1.0,
    }  # fmt: skip
    torch.manual_seed(seed)
    return _shaken(RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**{**fields, **changes})))


def jamba(seed: int = 0, **changes) -> JambaForCausalLM:
    """Four layers (M A M M), two key/value heads, four experts on odd layers."""
    fields = {
        "num_hidden_layers": 4, "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 40,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 4, "attn_layer_period": 4,
        "attn_layer_offset": 1, "mamba_d_state": 5, "mamba_dt_rank": 3, "initializer_range": 0.15,
        "max_position_embeddings": 128,
    }  # fmt: skip
    torch.manual_seed(seed)
    return _shaken(JambaForCausalLM(JambaConfig(**{**fields, **changes})))


def mamba2(seed: int = 0, **changes) -> Mamba2ForCausalLM:
    """Two layers, four heads in two groups; neither attention nor MLP."""
    fields = {
        "num_hidden_layers": 2, "vocab_size": VOCAB, "hidden_size": 32, "expand": 2, "num_heads": 4, "head_dim": 16,
        "state_size": 5, "n_groups": 2, "chunk_size": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(seed)
    return _perturbed(Mamba2ForCausalLM(Mamba2Config(**{**fields, **changes})), seed + 1)


def falcon_h1(seed: int = 0, **changes) -> FalconH1ForCausalLM:
    """Two layers of both mixers, two key/value heads, two groups of recurrent heads, no multiplier at 1."""
    fields = {
        "num_hidden_layers": 2, "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 40,
        "num_attention_heads": 4, "num_key_value_heads": 2, "mamba_d_ssm": 24, "mamba_n_heads": 4, "mamba_d_head": 6,
        "mamba_n_groups": 2, "mamba_d_state": 5, "mamba_chunk_size": 4, "max_position_embeddings": 128,
        "embedding_multiplier": 1.3, "lm_head_multiplier": 0.7, "mlp_multipliers": [0.8, 1.2], "key_multiplier": 0.6,
        "attention_in_multiplier": 1.1, "attention_out_multiplier": 0.9, "ssm_in_multiplier": 1.2,
        "ssm_out_multiplier": 0.85, "ssm_multipliers": [0.9, 1.1, 0.8, 1.2, 0.7],
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(seed)
    return _perturbed(FalconH1ForCausalLM(FalconH1Config(**{**fields, **changes})), seed + 1)


def qwen3_next(seed: int = 0, **changes) -> Qwen3NextForCausalLM:
    """Layers D A D, and so on by threes; four value heads over two key heads; six experts but in layer 0."""
    layers = changes.get("num_hidden_layers", 3)
    kinds = ["full_attention" if layer % 3 == 1 else "linear_attention" for layer in range(layers)]
    fields = {
        "num_hidden_layers": layers, "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 40,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "linear_key_head_dim": 6, "linear_value_head_dim": 5, "mlp_only_layers": [0],
        "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 20,
        "layer_types": kinds, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(seed)
    return _perturbed(Qwen3NextForCausalLM(Qwen3NextConfig(**{**fields, **changes})), seed + 1)


MAKERS = {
    "recurrentgemma": recurrentgemma, "jamba": jamba, "mamba2": mamba2, "falcon_h1": falcon_h1,
    "qwen3_next": qwen3_next,
}  # fmt: skip
"""By family; the contract test sees to it that no row of `hybridlens.families` is missing."""
EVERY_FAMILY = tuple(MAKERS)
WITH_ATTENTION = tuple(family for family in MAKERS if family != "mamba2")


def make(family: str, seed: int = 0, **changes):
    """A small random model of a family."""
    return MAKERS[family](seed, **changes)


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


def _shaken(model):
    """Biases, norms and per-channel parameters start at 0 or 1, where a wrong sign or offset would not show."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim <= 2 and (weight.ndim == 1 or weight.unique().numel() < 20):
                weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


def _perturbed(model, seed):
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
    return model.eval()
