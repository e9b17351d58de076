"""Every option of the benchmarks, checked as far as no model is needed.

How it fails: an option that no model could run raises when the config is made; a k above the model's heads when
the model is known (`BenchmarkConfig.heads`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from analyses.entropy import SEMANTICS
from analyses.local_tasks import FOLDER, NAMES
from analyses.ranking import SCOPES
from hybridlens.decoding import BOUNDARIES
from hybridlens.errors import InputError, UnknownNameError, closest
from hybridlens.hooks import Phase
from hybridlens.model import HybridLens

VERSIONS = ("prefill", "generation")
"""The paper's names: heads are dropped in every forward pass, or while answering only."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """Every option of the experiment.

    Attributes:
        model: what results call the model.
        tasks: tasks, groups or tags by lm-eval's names: "glue", "mmlu", a local one.
        ks: heads kept in each layer; None for all, five and none (`default_ks`).
        limit: at most so many documents of each task; None for all.
        num_fewshot: examples before each question; None for what each task says.
        version: "prefill" (heads are dropped in every forward pass) or "generation" (while answering only).
        scope: where heads compete, see `analyses.sparsification.top_k`.
        semantics: of the entropy that ranks heads.
        boundary: which rules read the last token of a context in the generation version.
        apply_chat_template: wrap prompts in the tokenizer's chat template.
        fewshot_as_multiturn: give examples as turns of the conversation; needs the chat template.
        system_instruction: put before every prompt.
        max_length: tokens of the longest sequence; None for what the model states.
        seed: of the choice of examples.
        include: a folder with tasks of one's own (lm-eval's YAML files).
        batch_size: contexts run together. Changes no score but by rounding.
        verbose: let lm-eval log and print.

    Raises:
        InputError: an option that no model could run.
        UnknownNameError: a version, scope, semantics or boundary that does not exist.
    """

    model: str
    tasks: tuple[str, ...] = NAMES
    ks: tuple[int, ...] | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    version: str = "prefill"
    scope: str = "layer"
    semantics: str = "clean"
    boundary: str = "last_prompt_token"
    apply_chat_template: bool = False
    fewshot_as_multiturn: bool = False
    system_instruction: str | None = None
    max_length: int | None = None
    seed: int = 1234
    include: Path | None = None
    batch_size: int = 8
    verbose: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        for what, name, names in (
            ("version", self.version, VERSIONS),
            ("scope", self.scope, SCOPES),
            ("semantics", self.semantics, SEMANTICS),
            ("boundary", self.boundary, BOUNDARIES),
        ):
            if name not in names:
                known = ", ".join(names)
                raise UnknownNameError(f"{what} {name!r} does not exist{closest(name, names)}; expected one of {known}")
        if self.ks is not None:
            _check_ks(self.ks)
        for what, value, least in (
            ("limit", self.limit, 1),
            ("num_fewshot", self.num_fewshot, 0),
            ("batch size", self.batch_size, 1),
            ("max_length", self.max_length, 2),
        ):
            if value is not None and value < least:
                raise InputError(f"{what} {value} given, expected at least {least}")
        if self.fewshot_as_multiturn and not self.apply_chat_template:
            raise InputError("fewshot_as_multiturn given without apply_chat_template, which turns need; give both")

    def compared(self, lens: HybridLens, weights_hash: str) -> dict[str, Any]:
        """Name -> JSON value of all that can change a score, but for tasks and k: a file can grow by those."""
        names = ("model", "limit", "num_fewshot", "version", "scope", "semantics", "boundary", "apply_chat_template",
                 "fewshot_as_multiturn", "system_instruction", "max_length", "seed")  # fmt: skip
        return {
            **{name: getattr(self, name) for name in names},
            "the local tasks (their hash)": local_hash(),
            "dtype": str(lens.dtype).removeprefix("torch."),
            "the model's weights (their hash)": weights_hash,
            "the version of lm-eval": metadata.version("lm-eval"),
        }


    @property
    def phase(self) -> Phase:
        """When heads are dropped, as edits have it."""
        return "both" if self.version == "prefill" else "decode"

    def heads(self, n_heads: int) -> tuple[int, ...]:
        """The k's to run.

        Raises:
            InputError: one is above the model's heads.
        """
        ks = default_ks(n_heads) if self.ks is None else self.ks
        if max(ks) > n_heads:
            raise InputError(
                f"k = {max(ks)} given, expected 0..{n_heads}: {self.model} has {n_heads} heads in each layer"
            )
        return ks


def default_ks(n_heads: int) -> tuple[int, ...]:
    """The paper's k: all heads, five, none; of a model with fewer than five, all and none."""
    return tuple(dict.fromkeys((n_heads, min(5, n_heads), 0)))


def local_hash() -> str:
    """SHA-256 (64 hex digits) of the local tasks: their YAML files and items."""
    digest = hashlib.sha256()
    for file in sorted(FOLDER.glob("tiny_*")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _check_ks(ks: Sequence[int]) -> None:
    if not ks:
        raise InputError("no k given, expected at least one, such as 5")
    twice = next((k for k in ks if list(ks).count(k) > 1), None)
    if twice is not None:
        raise InputError(f"k = {twice} given more than once; give each k once")
    if min(ks) < 0:
        raise InputError(f"k = {min(ks)} given, expected 0..n_heads")
