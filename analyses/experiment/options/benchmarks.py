"""The options of the benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from analyses.experiment.options.base import MaybeNumbers, Options, one_of
from hybridlens.errors import InputError
from hybridlens.results.cells import BOUNDARIES, SCOPES, SEMANTICS

LOCAL_TASKS = ("tiny_retrieval", "tiny_recite", "tiny_facts", "tiny_grammar")
"""The project's own: a needle among three others, the same said word by word, facts learned in training, agreement."""

VERSIONS = ("prefill", "generation")
"""The paper's names: heads are dropped in every forward pass, or while answering only."""


class BenchmarkConfig(Options):
    """Options of the benchmarks; scope, semantics and boundary as of a cell.

    Attributes:
        tasks: tasks, groups or tags by lm-eval's names: "glue", "mmlu", a local one.
        ks: heads kept in each layer; None for all, five and none (`default_ks`).
        untouched: the untouched model besides the k's given.
        limit: at most so many documents of each task; None for all.
        num_fewshot: examples before each question; None for what each task says.
        version: one of `VERSIONS`.
        apply_chat_template: wrap prompts in the tokenizer's chat template.
        fewshot_as_multiturn: give examples as turns of the conversation; needs the chat template.
        system_instruction: put before every prompt.
        max_length: tokens of the longest sequence; None for what the model states.
        seed: of the choice of examples.
        include: a folder with tasks of one's own (lm-eval's YAML files).
        batch_size: contexts run together. Changes no score but by rounding.
        verbose: let lm-eval log and print.
    """

    tasks: tuple[str, ...] = LOCAL_TASKS
    ks: MaybeNumbers = None
    untouched: bool = False
    limit: int | None = Field(None, ge=1)
    num_fewshot: int | None = Field(None, ge=0)
    version: Annotated[str, one_of(VERSIONS)] = "prefill"
    scope: Annotated[str, one_of(SCOPES)] = "layer"
    semantics: Annotated[str, one_of(SEMANTICS)] = "clean"
    boundary: Annotated[str, one_of(BOUNDARIES)] = "last_prompt_token"
    apply_chat_template: bool = False
    fewshot_as_multiturn: bool = False
    system_instruction: str | None = None
    max_length: int | None = Field(None, ge=2)
    seed: int = Field(1234, ge=0)
    include: Path | None = None
    batch_size: int = Field(8, ge=1)
    verbose: bool = False

    @model_validator(mode="after")
    def _turns_need_a_template(self) -> BenchmarkConfig:
        if self.fewshot_as_multiturn and not self.apply_chat_template:
            raise InputError("fewshot_as_multiturn given without apply_chat_template, which turns need; give both")
        return self

    def heads(self, n_heads: int) -> tuple[int, ...]:
        """The k's to run.

        Raises:
            InputError: one is above the model's heads.
        """
        ks = default_ks(n_heads) if self.ks is None else self.ks
        ks = tuple(sorted({n_heads, *ks}, reverse=True)) if self.untouched else ks
        if max(ks) > n_heads:
            raise InputError(
                f"k = {max(ks)} given, expected 0..{n_heads}: {self.model} has {n_heads} heads in each layer"
            )
        return ks


def default_ks(n_heads: int) -> tuple[int, ...]:
    """The paper's k: all heads, five, none; of a model with fewer than five, all and none."""
    return tuple(dict.fromkeys((n_heads, min(5, n_heads), 0)))
