"""Checkpoints at full size, written to disk once: published configurations, random bfloat16 weights, in shards.

RecurrentGemma-2B whole, and one period (eight layers) of Jamba-Mini, whose sizes are Jamba-v0.1's, of whose experts as
many as asked for: all sixteen of four layers are 22.5 GB. Tensors bear the names that the published files have, one for
each expert, which the library stacks when it opens them. A small tokenizer of this project stands beside them, so that
commands run.

Weights are drawn tensor by tensor, so that a checkpoint of any size takes the memory of its largest tensor and a shard.
Projections have variance 1 / inputs, norms scale by about 1, decays are those that the papers start from.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import JambaConfig, JambaForCausalLM, RecurrentGemmaConfig, RecurrentGemmaForCausalLM

from hybridlens import tiny
from tests.published import PUBLISHED

SHARD = 2_000_000_000
"""Bytes of a shard."""
CONTEXT = 8192
"""Tokens that the tokenizer says a prompt may have."""
INDEX = "model.safetensors.index.json"


class FullSize(NamedTuple):
    """A model of the benchmark."""

    config: type[Any]
    model: type[Any]
    tokenizer: str
    """The embedded checkpoint whose tokenizer it is given."""
    fields: dict[str, Any]
    """As its published config.json has them, quirks included."""
    smallest: dict[str, Any]
    """Changes for a trial of the benchmark itself."""


MODELS = {
    "recurrentgemma-2b": FullSize(
        RecurrentGemmaConfig, RecurrentGemmaForCausalLM, "tiny-recurrentgemma",
        PUBLISHED["RecurrentGemma-2B"].fields,
        {
            "num_hidden_layers": 3, "vocab_size": 800, "hidden_size": 32, "intermediate_size": 64, "lru_width": 32,
            "num_attention_heads": 4, "head_dim": 8, "attention_window_size": 64,
        },
    ),
    "jamba-mini-8": FullSize(
        JambaConfig, JambaForCausalLM, "tiny-jamba",
        PUBLISHED["Jamba-v0.1"].fields | {"num_hidden_layers": 8, "torch_dtype": "bfloat16"},
        {
            "vocab_size": 800, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
            "num_key_value_heads": 2, "mamba_dt_rank": 4, "mamba_d_state": 4,
        },
    ),
}  # fmt: skip


def fields_of(name: str, smallest: bool = False, experts: int | None = None) -> dict[str, Any]:
    """A model's config.json; `experts` where it has any."""
    one = MODELS[name]
    fields = one.fields | (one.smallest if smallest else {})
    return fields | ({"num_experts": experts} if experts is not None and "num_experts" in fields else {})


def written(folder: Path, name: str, fields: dict[str, Any], moved: Callable[[int], object]) -> Path:
    """The checkpoint's folder, made where it is not there yet or is of another configuration.

    Args:
        folder: of all checkpoints.
        name: of `MODELS`.
        fields: its config.json.
        moved: told of bytes as they are written.
    """
    one, where = MODELS[name], folder / name
    said = json.dumps(fields, indent=1)
    config = where / "config.json"
    if (where / INDEX).exists() and config.exists() and config.read_text() == said:
        return where
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir(parents=True)
    config.write_text(said)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny.path(one.tokenizer) / file, where / file)
    told = json.loads((where / "tokenizer_config.json").read_text()) | {"model_max_length": CONTEXT}
    (where / "tokenizer_config.json").write_text(json.dumps(told))
    places: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(_shards(_tensors(one, one.config(**fields))), 1):
        file = f"model-{number:05d}.safetensors"
        save_file(shard, where / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
        size = sum(tensor.nbytes for tensor in shard.values())
        total += size
        moved(size)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    part = where / f"{INDEX}.part"
    part.write_text(json.dumps(index))
    part.replace(where / INDEX)  # last of all: without it the checkpoint is not there
    return where


def size_of(name: str, fields: dict[str, Any]) -> int:
    """Bytes of the checkpoint's weights."""
    one = MODELS[name]
    return 2 * sum(math.prod(shape) for _, shape in _shapes(one, one.config(**fields)))


def _shapes(one: FullSize, config: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of each tensor of the published files."""
    with torch.device("meta"):
        model = one.model(config)
    tied = config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue
        if name.endswith("experts.gate_up_proj"):  # the library's; published files have each expert's apart
            experts, both, width = tensor.shape
            for expert in range(experts):
                for part in ("gate_proj", "up_proj"):
                    yield f"{name.removesuffix('gate_up_proj')}{expert}.{part}.weight", (both // 2, width)
        elif name.endswith("experts.down_proj"):
            for expert in range(tensor.shape[0]):
                yield f"{name.removesuffix('down_proj')}{expert}.down_proj.weight", tuple(tensor.shape[1:])
        else:
            yield name, tuple(tensor.shape)


def _tensors(one: FullSize, config: Any) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for name, shape in _shapes(one, config):
        yield name, _drawn(name, shape, one.model is RecurrentGemmaForCausalLM, generator).bfloat16()


def _drawn(name: str, shape: tuple[int, ...], around_zero: bool, generator: torch.Generator) -> Tensor:
    """One tensor; norms' weights lie around zero where the model adds 1."""
    last = name.rsplit(".", 1)[-1]
    noise = torch.randn(shape, generator=generator)
    if "norm" in name:
        return noise * 0.1 + (0.0 if around_zero else 1.0)
    if last == "A_log":
        return torch.arange(1.0, shape[1] + 1).log().expand(shape).contiguous()
    if last == "D":
        return torch.ones(shape)
    if name.endswith("dt_proj.bias"):  # steps from 0.001 to 0.1 in size, through softplus
        steps = torch.exp(torch.rand(shape, generator=generator) * math.log(100.0) + math.log(1e-3))
        return steps + torch.log(-torch.expm1(-steps))
    if last == "recurrent_param":  # decays from 0.9 to 0.999 where the gate is open
        decays = torch.rand(shape, generator=generator) * 0.099 + 0.9
        return torch.log(torch.expm1(-torch.log(decays) / 8.0))
    if last.endswith("bias"):
        return noise * 0.1
    inputs = shape[-2] if last.endswith("gate_weight") else shape[-1]
    return noise * inputs**-0.5


def _shards(tensors: Iterator[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    held: dict[str, Tensor] = {}
    for name, tensor in tensors:
        held[name] = tensor
        if sum(one.nbytes for one in held.values()) >= SHARD:
            yield held
            held = {}
    if held:
        yield held
