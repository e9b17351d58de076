"""Every option of the needle experiment, checked as far as no model is needed, and the grid it stands for.

How it fails: an option that no model could run raises when the config is made; what depends on the model
(k above its heads, prompts longer than its context, a tokenizer without offsets) when the grid is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analyses.entropy import SEMANTICS, check_semantics
from analyses.runner import Grid
from hybridlens import niah
from hybridlens.decoding import BOUNDARIES
from hybridlens.engine.budget import DEFAULT
from hybridlens.errors import InputError, UnknownNameError, closest
from hybridlens.model import HybridLens
from hybridlens.niah.lengths import PAPER_MAX_LENGTH
from hybridlens.results import CellKey
from hybridlens.tokens import check_context

VERSIONS = ("generation", "prefill")
"""The paper's names: heads are dropped while answering only, or while reading the prompt too."""


@dataclass(frozen=True)
class NiahConfig:
    """Every option of the experiment.

    Attributes:
        model: what results call the model.
        lengths: tokens of the prompts; None for ten up to the model's context, at most 4096.
        depths: places of the needle, percent of the context.
        control: whether the prompts are also run with the needle left out, once per length.
        needle: what is hidden and asked for; None for the paper's.
        haystack: the filler; None for the built-in essays of `seed`.
        template: "base" or "instruct".
        jrt: whether context and question are given twice.
        heads: the k's; None for 0 … n_heads.
        phases: "generation" (heads are dropped while answering), "prefill" (while reading too), or both.
        boundary: which rules read the last token of the prompt.
        semantics: "clean" or "published": builder, rubric of the default needle, and entropy.
        batch_size: most rows that answer together; None for as many as fit. Changes no cell.
        memory: bytes that may be held beside the weights. Changes no cell.
        seed: of the built-in essays.
        max_new_tokens: length of the answers.
        command: the command line, to be recorded.

    Raises:
        InputError: an option that no model could run.
        UnknownNameError: a template, phase, boundary or semantics that does not exist.
    """

    model: str
    lengths: tuple[int, ...] | None = None
    depths: tuple[int, ...] = niah.DEFAULT_DEPTHS
    control: bool = True
    needle: niah.Needle | None = None
    haystack: niah.Haystack | None = None
    template: str = "base"
    jrt: bool = False
    heads: tuple[int, ...] | None = None
    phases: tuple[str, ...] = VERSIONS
    boundary: str = "last_prompt_token"
    semantics: str = "clean"
    batch_size: int | None = None
    memory: int = DEFAULT
    seed: int = 0
    max_new_tokens: int = 40
    command: str = ""

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        _known("template", self.template, tuple(niah.TEMPLATES))
        _known("boundary", self.boundary, BOUNDARIES)
        _known("semantics", self.semantics, SEMANTICS)
        for phase in self.phases:
            _known("phase", phase, VERSIONS)
        _distinct("--phase", self.phases)
        _distinct("--depths", self.depths)
        for name, values in (("--lengths", self.lengths), ("--heads", self.heads)):
            if values is not None:
                _distinct(name, values)
        if self.heads is not None and min(self.heads) < 0:
            raise InputError(f"--heads {min(self.heads)} given, expected 0..n_heads")
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"--batch-size {self.batch_size} given, expected at least 1")
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens {self.max_new_tokens} given, expected at least 1")

    @property
    def hidden(self) -> niah.Needle:
        """The needle: the one given, or the paper's with the rubric of the semantics."""
        default = niah.PAPER_NEEDLE if self.semantics == "clean" else niah.PUBLISHED_NEEDLE
        return self.needle or default


def _known(what: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        raise UnknownNameError(
            f"{what} {name!r} does not exist{closest(name, names)}; expected one of {', '.join(names)}"
        )


def _distinct(option: str, values: Sequence[int] | Sequence[str]) -> None:
    if not values:
        raise InputError(f"{option} is empty, expected at least one value")
    if len(set(values)) < len(values):
        twice = next(value for value in values if list(values).count(value) > 1)
        raise InputError(f"{option} holds {twice} more than once; give each value once")


def check_heads(heads: tuple[int, ...] | None, n_heads: int, model: str) -> tuple[int, ...]:
    """The k's to run: those given, or 0 … n_heads.

    Raises:
        InputError: one is above the model's heads.
    """
    if heads is None:
        return tuple(range(n_heads + 1))
    if max(heads) > n_heads:
        raise InputError(
            f"--heads {max(heads)} given, expected 0..{n_heads}: {model} has {n_heads} heads in each layer"
        )
    return heads


def make_grid(lens: HybridLens, config: NiahConfig) -> Grid:
    """The cells of a run and their prompts: phase by phase, length by length, the controls after the grid.

    Raises:
        InputError: the model has no tokenizer or too small a context, k is out of range, or the prompts
            cannot be made (see `hybridlens.niah.grid`).
    """
    if lens.tokenizer is None:
        raise InputError(
            f"{config.model} has no tokenizer, which the prompts are made with; add its files to the folder"
        )
    heads = check_heads(config.heads, lens.cfg.n_heads, config.model)
    check_semantics(config.semantics, lens.dtype)
    options: dict[str, Any] = {
        "depths": config.depths,
        "haystack": config.haystack,
        "needle": config.hidden,
        "template": config.template,
        "jrt": config.jrt,
        "semantics": config.semantics,
        "seed": config.seed,
    }
    room = None if lens.cfg.n_ctx is None else lens.cfg.n_ctx - config.max_new_tokens
    lengths = config.lengths
    if lengths is None:
        limits = [PAPER_MAX_LENGTH, int(lens.tokenizer.model_max_length), *([] if room is None else [room])]
        lengths = niah.default_lengths(min(limits), niah.shortest_length(lens.tokenizer, **options))
    elif room is not None and max(lengths) > room:
        raise InputError(
            f"--lengths {max(lengths)} given, expected at most {room}: with {config.max_new_tokens} new tokens "
            f"the context of {config.model} is full at {lens.cfg.n_ctx}"
        )
    prompts = niah.grid(lens.tokenizer, lengths, **options)
    if config.control:
        prompts += niah.controls(lens.tokenizer, lengths, **options)
    for prompt in prompts:  # the published builder's lengths are only near those asked for
        check_context(len(prompt.tokens) + config.max_new_tokens, lens.cfg.n_ctx)
    fixed: dict[str, Any] = {
        "needle": niah.PAPER_NEEDLE.name if config.needle is None else config.needle.name,
        "jrt": config.jrt,
        "semantics": config.semantics,
        "boundary": config.boundary,
    }
    order = {length: index for index, length in enumerate(lengths)}
    prompts.sort(key=lambda prompt: order[prompt.length])
    return {
        CellKey(config.model, phase, k, prompt.length, prompt.depth, prompt.control, **fixed): prompt
        for phase in config.phases
        for prompt in prompts
        for k in heads
    }
