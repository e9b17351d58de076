"""A tiny model that starts from another's weights: attention added midway, or recurrent layers.

Mechanism: the new model has the checkpoint's configuration (widths, heads, vocabulary) with the kinds of layers of the
shape that is named, and is drawn like any (`architectures`). Then every tensor that both have is copied: embedding,
norms, MLPs and the mixers of layers whose kind stays. What is left as drawn are the mixers of the others.

How it fails: `InputError` for a folder that is no checkpoint of a tiny model, for one of another class than the shape's
(a copy between classes would be a guess), for shapes whose layers are not listed by kind, and where no layer changes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from hybridlens.errors import InputError
from hybridlens.tiny.architectures import SHAPES, TinyModel, drawn

WEIGHTS = "model.safetensors"

KINDS = "layer_types"
"""The field of a configuration that lists the kinds of layers."""


class Start(NamedTuple):
    """Where a run starts from."""

    folder: Path
    words: str
    """Which model it was, with a digest of its weights, and without where it lay."""
    stage: int
    """Level of the curriculum that it had reached."""


def read_start(folder: Path) -> Start:
    """A checkpoint that a run kept.

    Raises:
        InputError: the folder is none.
    """
    try:
        account = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        weights = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()[:16]
        words = f"{account['name']}, seed {account['seed']}, step {account['steps_done']}, weights {weights}"
        stage = account.get("first_stage", 0) + len(account["stage_began_at_step"]) - 1
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--from {folder} is no checkpoint of a tiny model ({type(error).__name__}: {error}); give a folder that "
            "--keep-every kept, such as WORK/step-01000"
        ) from error
    return Start(folder, words, stage)


@torch.no_grad()
def build_from(name: str, start: Start, vocab_size: int, seed: int) -> tuple[TinyModel, tuple[int, ...]]:
    """The model of a shape's kinds of layers that starts from a checkpoint.

    Args:
        name: one of `SHAPES`, of the checkpoint's class.
        start: the checkpoint.
        vocab_size: number of tokens.
        seed: of what is drawn anew.

    Returns:
        the model in float32, and its layers whose mixer was drawn anew.

    Raises:
        InputError: see the module.
    """
    wanted = SHAPES[name].config(vocab_size)
    held: Any = AutoConfig.from_pretrained(start.folder, trust_remote_code=False)
    if type(held) is not type(wanted) or held.vocab_size != vocab_size:
        raise InputError(
            f"--from {start.folder} is a {held.model_type} model of {held.vocab_size} tokens, expected {name}'s "
            f"{wanted.model_type} of {vocab_size}: weights are copied inside one class"
        )
    before, after = (getattr(config, KINDS, None) for config in (held, wanted))
    if before is None or after is None:
        raise InputError(f"the layers of {name} are not listed by kind, so that none can change; train it from scratch")
    changed = tuple(i for i, (old, new) in enumerate(zip(before, after, strict=True)) if old != new)
    if not changed:
        raise InputError(
            f"--from {start.folder} has the very layers of {name}, so that none would be new; go on with it"
        )
    setattr(held, KINDS, list(after))
    held.use_cache = wanted.use_cache
    model = drawn(SHAPES[name], held, seed)
    weights, state = load_file(start.folder / WEIGHTS), model.state_dict()
    prefixes = tuple(f"model.layers.{layer}." for layer in changed)
    for key, tensor in state.items():
        if key in weights:
            tensor.copy_(weights[key])
        elif not key.startswith(prefixes) and key != "lm_head.weight":  # which is the embedding
            raise InputError(f"--from {start.folder} lacks {key}, which no new layer brings; give another checkpoint")
    return model, changed
