"""Small random hybrids for the tests, of the real Hugging Face classes, with every weight away from its default."""

import torch
from transformers import JambaConfig, JambaForCausalLM, RecurrentGemmaConfig, RecurrentGemmaForCausalLM

VOCAB = 53
FAMILIES = ("recurrentgemma", "jamba")


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


MAKERS = {"recurrentgemma": recurrentgemma, "jamba": jamba}


def make(family: str, seed: int = 0, **changes):
    """A small random model of a family."""
    return MAKERS[family](seed, **changes)


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Random token ids [batch, length]."""
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def _shaken(model):
    """Biases, norms and per-channel parameters start at 0 or 1, where a wrong sign or offset would not show."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim <= 2 and (weight.ndim == 1 or weight.unique().numel() < 20):
                weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()
