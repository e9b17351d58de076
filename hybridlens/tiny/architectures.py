"""The shapes of the two tiny hybrids and the state they start training from.

Mechanism: `build` makes a randomly initialised Hugging Face model of the real class. The library's own
initialisation does not train at this size (RecurrentGemma's logits start far too large, Jamba's recurrence
starts with steps of 0.7), so every matrix is drawn again at ``fan_in ** -0.5``, smaller on the matrices that
write to the residual stream, and Mamba's step sizes start log-uniform in 0.001 to 0.1 as in its paper.

How it fails: sizes are chosen so that the float32 checkpoint stays under 8 MB with a vocabulary of about
1,300 words; a much larger vocabulary breaks that bound, which a test checks on the checked-in files.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import JambaConfig, JambaForCausalLM, RecurrentGemmaConfig, RecurrentGemmaForCausalLM

from hybridlens.errors import UnknownNameError, closest
from hybridlens.tiny.tokenizer import BOS_ID, EOS_ID, PAD_ID

RESIDUAL_GAIN = 0.35
"""Factor on the initial matrices that write to the residual stream."""

TinyModel = RecurrentGemmaForCausalLM | JambaForCausalLM


def recurrent_gemma_config(vocab_size: int) -> RecurrentGemmaConfig:
    """Configuration of tiny-recurrentgemma: R R A R R A, 8 heads over one key-value head, window 256."""
    return RecurrentGemmaConfig(
        vocab_size=vocab_size,
        num_hidden_layers=6,
        hidden_size=128,
        intermediate_size=2 * 256,
        num_attention_heads=8,
        num_key_value_heads=1,
        lru_width=128,
        attention_window_size=256,
        conv1d_width=4,
        block_types=["recurrent", "recurrent", "attention"],
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )


def jamba_config(vocab_size: int) -> JambaConfig:
    """Configuration of tiny-jamba: attention at layers 2 and 6 of 8, four experts on odd layers."""
    return JambaConfig(
        vocab_size=vocab_size,
        num_hidden_layers=8,
        hidden_size=128,
        intermediate_size=128,
        num_attention_heads=8,
        num_key_value_heads=2,
        attn_layer_period=4,
        attn_layer_offset=2,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=4,
        num_experts_per_tok=2,
        mamba_d_state=8,
        mamba_d_conv=4,
        mamba_expand=2,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )


def _normal(weight: Tensor, std: float) -> None:
    weight.normal_(0.0, std)


def _initialise_linear(model: nn.Module, residual: tuple[str, ...]) -> None:
    """Draw every linear layer and convolution again; `residual` names the layers that write to the stream."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.endswith("lm_head"):
            gain = RESIDUAL_GAIN if name.rsplit(".", 1)[-1] in residual else 1.0
            _normal(module.weight, gain * module.in_features**-0.5)
            if "bias" in dict(module.named_parameters()):
                module.bias.zero_()
        elif isinstance(module, nn.Conv1d):
            _normal(module.weight, 0.5)
            if module.bias is not None:
                module.bias.zero_()


@torch.no_grad()
def build_recurrent_gemma(vocab_size: int) -> RecurrentGemmaForCausalLM:
    """A fresh tiny-recurrentgemma in float32, drawn from torch's global generator."""
    model = RecurrentGemmaForCausalLM(recurrent_gemma_config(vocab_size))
    _initialise_linear(model, ("o_proj", "linear_out", "down_proj"))
    _normal(model.model.embed_tokens.weight, model.config.hidden_size**-0.5)
    for module in model.modules():
        if type(module).__name__ == "RecurrentGemmaRglru":
            width = module.get_parameter("input_gate_weight").shape[-1]
            _normal(module.get_parameter("input_gate_weight"), width**-0.5)
            _normal(module.get_parameter("recurrent_gate_weight"), width**-0.5)
    return model


@torch.no_grad()
def build_jamba(vocab_size: int) -> JambaForCausalLM:
    """A fresh tiny-jamba in float32, drawn from torch's global generator."""
    model = JambaForCausalLM(jamba_config(vocab_size))
    _initialise_linear(model, ("o_proj", "out_proj", "down_proj"))
    d_model = model.config.hidden_size
    _normal(model.model.embed_tokens.weight, 1.0)
    model.model.final_layernorm.weight.fill_(d_model**-0.5)
    for module in model.modules():
        kind = type(module).__name__
        if kind == "JambaMambaMixer":
            bias = module.get_parameter("dt_proj.bias")
            step = torch.exp(torch.empty_like(bias).uniform_(math.log(1e-3), math.log(1e-1)))
            bias.copy_(step + torch.log(-torch.expm1(-step)))
        elif kind == "JambaExperts":
            down = module.get_parameter("down_proj")
            _normal(module.get_parameter("gate_up_proj"), d_model**-0.5)
            _normal(down, RESIDUAL_GAIN * down.shape[-1] ** -0.5)
        elif kind == "JambaTopKRouter":
            _normal(module.get_parameter("weight"), d_model**-0.5)
    return model


BUILDERS: dict[str, Callable[[int], TinyModel]] = {
    "tiny-recurrentgemma": build_recurrent_gemma,
    "tiny-jamba": build_jamba,
}
"""How each embedded model is made, by name."""


def build(name: str, vocab_size: int, seed: int) -> TinyModel:
    """A freshly initialised tiny model.

    Args:
        name: "tiny-recurrentgemma" or "tiny-jamba".
        vocab_size: number of tokens.
        seed: sets torch's global generator, the only source of chance here.

    Raises:
        UnknownNameError: for another name.
    """
    if name not in BUILDERS:
        raise UnknownNameError(
            f"no tiny model is called {name!r}{closest(name, BUILDERS)}; choose one of {', '.join(BUILDERS)}"
        )
    torch.manual_seed(seed)
    return BUILDERS[name](vocab_size)
