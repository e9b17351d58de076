"""The embedded checkpoints: small models of the real Hugging Face classes, trained by this project.

There are hybrids of every kind of recurrence, and models of attention, Mamba-2 and gated DeltaNet alone. `names`,
`path` and `describe` read the files that are checked in and import nothing heavy; how the models are made is in the
other modules of this package (``python -m hybridlens.tiny.train``).

How it fails: an installation without its package data has no checkpoints, which `path` says.

Modules:
    words: word lists that facts are made of
    facts: facts with their questions: what the models are asked to find and repeat
    tokenizer: word-level tokenizer
    documents: training documents
    shapes: a configuration for each model of the zoo
    architectures: initial weights
    starting: a model that starts from another's weights, some of its layers new
    recipes: curriculum and settings, as data
    forward: the lens's forward pass, with the experts' balance
    probe: a quick look at retrieval while training
    train: the training command
    card: model cards, filled from measured files
    checkpoints: weights, tokenizer, configuration and card of each model
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from hybridlens.display import Displayed
from hybridlens.display.markup import Plain
from hybridlens.errors import CheckpointError, UnknownNameError, closest

_NAMES = (
    "tiny-recurrentgemma",
    "tiny-jamba",
    "tiny-granite",
    "tiny-qwen3.5",
    "tiny-falcon-h1",
    "tiny-lfm2",
    "tiny-qwen3",
    "tiny-mamba2",
    "tiny-deltanet",
)
_LETTERS = {"attention": "A", "ssm": "R", "attention+ssm": "B"}
_FOLDER = Path(__file__).parent / "checkpoints"


class _Fields(NamedTuple):
    name: str
    path: Path
    architecture: str
    """The Hugging Face class."""
    parameters: int
    layers: tuple[str, ...]
    """``"attention"``, ``"ssm"`` or ``"attention+ssm"`` for each layer."""
    n_heads: int
    """Attention heads of a layer; 0 where no layer has attention, and likewise below."""
    n_kv_heads: int
    window: int | None
    """Sliding window of the attention in tokens; None when it reaches everything."""
    context: int
    """Longest prompt that the model was trained for, in tokens."""
    n_bytes: int
    """Size of the weights file."""


class TinyModelInfo(Displayed, _Fields):
    """What `hybridlens models` prints of one embedded model."""

    __slots__ = ()

    def summary(self) -> str:
        """Name, size and layers."""
        kinds = ", ".join(f"{self.layers.count(kind)} {kind}" for kind in sorted(set(self.layers)))
        return f"{self.name}: {self.architecture}, {self.parameters:,} parameters, layers: {kinds}"

    @property
    def pattern(self) -> str:
        """A letter a layer: A for attention, R for a recurrence or a convolution, B for both: "R R A R R A"."""
        return " ".join(_LETTERS[kind] for kind in self.layers)

    def row(self) -> dict[str, Plain]:
        """All of it, the layers in a word each."""
        return {**super().row(), "path": str(self.path), "layers": " ".join(self.layers)}


def names() -> tuple[str, ...]:
    """The names of the embedded models."""
    return _NAMES


def path(name: str) -> Path:
    """The folder of an embedded model, as `from_pretrained` takes it.

    Raises:
        UnknownNameError: when no embedded model has this name.
        CheckpointError: when its files are missing from the installation.
    """
    if name not in _NAMES:
        raise UnknownNameError(
            f"no embedded model is called {name!r}{closest(name, _NAMES)}; choose one of {', '.join(_NAMES)}"
        )
    folder = _FOLDER / name
    if not (folder / "model.safetensors").is_file():
        raise CheckpointError(
            f"the files of {name!r} are not in {folder}; install hybridlens again with its package data, "
            f"or make them: python -m hybridlens.tiny.train {name} --out {folder}"
        )
    return folder


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def training(name: str) -> dict[str, Any]:
    """How an embedded model was trained (``training.json``): seed, steps, seconds, versions, sizes."""
    return _read(path(name) / "training.json")


def info(name: str) -> TinyModelInfo:
    """One embedded model with its sizes, read from its files.

    Raises:
        UnknownNameError: when no embedded model has this name.
        CheckpointError: when its files are missing from the installation.
    """
    folder, made = path(name), training(name)
    attention = any("attention" in kind for kind in made["layers"])
    config, tokenizer = _read(folder / "config.json"), _read(folder / "tokenizer_config.json")
    return TinyModelInfo(
        name=name,
        path=folder,
        architecture=config["architectures"][0],
        parameters=made["parameters"],
        layers=tuple(made["layers"]),
        n_heads=config["num_attention_heads"] if attention else 0,
        n_kv_heads=config["num_key_value_heads"] if attention else 0,
        window=made["window"],
        context=tokenizer["model_max_length"],
        n_bytes=(folder / "model.safetensors").stat().st_size,
    )


def describe() -> tuple[TinyModelInfo, ...]:
    """Every embedded model, as `info` gives it."""
    return tuple(info(name) for name in _NAMES)
