"""The state that tiny models start training from.

Mechanism: `build` makes a randomly initialised Hugging Face model of the real class. The library's own initialisation
does not train at this size (RecurrentGemma's logits start far too large, Jamba's recurrence starts with steps of 0.7),
so every matrix is drawn again at ``fan_in ** -0.5``, smaller on the matrices that write to the residual stream, and
steps of recurrences start log-uniform in 0.001 to 0.1, as in Mamba's paper (Gu and Dao 2023, section 3.6). What a kind
of module needs beside that is a row of `DRAWN`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from hybridlens.errors import UnknownNameError, closest
from hybridlens.tiny import shapes

RESIDUAL_GAIN = 0.35
"""Factor on the initial matrices that write to the residual stream."""

WRITERS = frozenset(("o_proj", "out_proj", "linear_out", "down_proj", "output_linear", "w2"))
"""Names of the linear layers that write to the residual stream."""

STEPS = (1e-3, 1e-1)
"""Least and largest step of a recurrence at the start."""

TinyModel = PreTrainedModel


class Shape(NamedTuple):
    """A tiny model: its configuration, and the scale of its two ends."""

    config: Callable[[int], PreTrainedConfig]
    """Of the number of tokens."""
    embedding: float = 1.0
    """Standard deviation of the embedding, which is also what reads the logits."""
    norm: str | None = None
    """The final norm, whose factor starts at ``d_model ** -0.5``, so that logits do at 1; None to leave it at 1."""


SHAPES: dict[str, Shape] = {
    # Its embedding is multiplied by the root of d_model as it is read.
    "tiny-recurrentgemma": Shape(shapes.recurrent_gemma, shapes.WIDTH**-0.5),
    "tiny-jamba": Shape(shapes.jamba, norm="model.final_layernorm"),
    "tiny-granite": Shape(shapes.granite, norm="model.norm"),
    "tiny-qwen3.5": Shape(shapes.qwen3_5, norm="model.norm"),
    "tiny-falcon-h1": Shape(shapes.falcon_h1, norm="model.final_layernorm"),
    "tiny-lfm2": Shape(shapes.lfm2, norm="model.embedding_norm"),
    "tiny-qwen3": Shape(shapes.qwen3, norm="model.norm"),
    "tiny-mamba2": Shape(shapes.mamba2, norm="model.norm"),
    "tiny-deltanet": Shape(shapes.deltanet, norm="model.norm"),
    "tiny-gated-attention": Shape(shapes.gated_attention, norm="model.norm"),
}
"""How each tiny model is made, by name."""


def _normal(weight: Tensor, std: float) -> None:
    weight.normal_(0.0, std)


def _steps(bias: Tensor) -> None:
    """Biases of which softplus makes steps, log-uniform in `STEPS`."""
    step = torch.exp(torch.empty_like(bias).uniform_(math.log(STEPS[0]), math.log(STEPS[1])))
    bias.copy_(step + torch.log(-torch.expm1(-step)))


def _rg_lru(module: Any, width: int) -> None:
    inner = module.input_gate_weight.shape[-1]
    _normal(module.input_gate_weight, inner**-0.5)
    _normal(module.recurrent_gate_weight, inner**-0.5)


def _mamba(module: Any, width: int) -> None:
    _steps(module.dt_proj.bias)


def _by_head(module: Any, width: int) -> None:
    """One step and one rate of decay a head, the rate uniform in 1 to 16 (Dao and Gu 2024, appendix D)."""
    _steps(module.dt_bias)
    module.A_log.copy_(torch.log(torch.empty_like(module.A_log).uniform_(1.0, 16.0)))


def _jamba_experts(module: Any, width: int) -> None:
    _normal(module.gate_up_proj, width**-0.5)
    _normal(module.down_proj, RESIDUAL_GAIN * module.down_proj.shape[-1] ** -0.5)


def _router(module: Any, width: int) -> None:
    _normal(module.weight, width**-0.5)


DRAWN: dict[str, Callable[[Any, int], None]] = {
    "RecurrentGemmaRglru": _rg_lru,
    "JambaMambaMixer": _mamba,
    "JambaExperts": _jamba_experts,
    "JambaTopKRouter": _router,
    "GraniteMoeHybridMambaLayer": _by_head,
    "FalconH1Mixer": _by_head,
    "Qwen3_5GatedDeltaNet": _by_head,
}
"""What is drawn again in modules of a class, beside their linear layers and convolutions; given d_model."""


def _initialise_linear(model: nn.Module) -> None:
    """Draw every linear layer and convolution again."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.endswith("lm_head"):
            gain = RESIDUAL_GAIN if name.rsplit(".", 1)[-1] in WRITERS else 1.0
            _normal(module.weight, gain * module.in_features**-0.5)
            if "bias" in dict(module.named_parameters()):
                module.bias.zero_()
        elif isinstance(module, nn.Conv1d):
            _normal(module.weight, 0.5)
            if module.bias is not None:
                module.bias.zero_()


def _one(norm: nn.Module) -> float:
    """What a norm's factor is at rest less its weight: 0, or 1 where the factor is ``1 + weight``."""
    weight = norm.get_parameter("weight")
    return 1.0 - weight.mean().item()


def build(name: str, vocab_size: int, seed: int) -> TinyModel:
    """A freshly initialised tiny model in float32.

    Args:
        name: one of `SHAPES`.
        vocab_size: number of tokens.
        seed: sets torch's global generator, the only source of chance here.

    Raises:
        UnknownNameError: for another name.
    """
    if name not in SHAPES:
        raise UnknownNameError(
            f"no tiny model is called {name!r}{closest(name, SHAPES)}; choose one of {', '.join(SHAPES)}"
        )
    return drawn(SHAPES[name], SHAPES[name].config(vocab_size), seed)


@torch.no_grad()
def drawn(shape: Shape, config: PreTrainedConfig, seed: int) -> TinyModel:
    """A freshly initialised model of a configuration in float32.

    Args:
        shape: the scale of its two ends.
        config: of the model.
        seed: as in `build`.
    """
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _initialise_linear(model)
    _normal(model.get_input_embeddings().weight, shape.embedding)
    if shape.norm is not None:
        norm = model.get_submodule(shape.norm)
        norm.get_parameter("weight").fill_(shapes.WIDTH**-0.5 - _one(norm))
    for module in model.modules():
        if (draw := DRAWN.get(type(module).__name__)) is not None:
            draw(module, shapes.WIDTH)
    return model
