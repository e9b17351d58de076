"""The options of the needle experiment and of a study, the paper's experiments over one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from analyses.experiment.options.base import MaybeWords
from analyses.experiment.options.benchmarks import BenchmarkConfig
from analyses.experiment.options.needles import (
    PAPER,
    VERSIONS,
    MaybePhases,
    NeedleOptions,
    Needles,
    Phases,
    SweepOptions,
)
from hybridlens import niah
from hybridlens.errors import InputError, UnknownNameError, closest

BENCHMARKS = "benchmarks"


class NiahConfig(SweepOptions, NeedleOptions):
    """Options of the needle experiment."""

    jrt: bool = Field(False, description="Just read twice: context and question given twice.")
    phases: Phases = Field(VERSIONS, description="generation, prefill (both stages sparsified), or both.",
                           json_schema_extra={"typed": "both"})  # fmt: skip

    @property
    def hidden(self) -> niah.Needle:
        """The needle: the one given, or the paper's with the rubric of the semantics."""
        return self.needle or self.paper_needle()


class StudyConfig(SweepOptions):
    """Options of a study.

    The experiments are those of `analyses.study.experiments`, each refused where the model, the phases or the semantics
    rule it out; None for all that they allow. Sweeps over k add all heads, the untouched model, to the k's given. The
    needles are those of the experiment of several; the others hide the paper's.
    """

    experiments: tuple[str, ...] | None = Field(
        None,
        description="fig2, fig3-jrt, table1, maps, benchmarks, needles, scope, boundary, semantics, or all.",
    )
    needles: Needles = Field(
        None, description="Of the experiment `needles`: a JSON file, built-in names like oslo,code, or all."
    )
    phases: MaybePhases = Field(
        None, description="generation, prefill, or both; what each experiment has when left out."
    )

    @model_validator(mode="after")
    def _the_papers_own(self) -> StudyConfig:
        for needle in self.hidden:
            if needle.name == PAPER and needle != niah.PAPER_NEEDLE:
                raise InputError(
                    f"--needles holds a needle named {PAPER!r} that is not the paper's ({needle.sentence!r}); "
                    "give it another name"
                )
        return self

    @property
    def wanted(self) -> tuple[str, ...] | None:
        """The experiments that are cells; None for all."""
        return None if self.experiments is None else tuple(n for n in self.experiments if n != BENCHMARKS)

    @property
    def benchmarks(self) -> BenchmarkConfig | None:
        """Those that are run beside the cells."""
        return None

    @property
    def hidden(self) -> tuple[niah.Needle, ...]:
        """The needles of the experiment of several: those given, or those built in."""
        if self.needles is not None:
            return self.needles
        return tuple(niah.NEEDLES[name] for name in niah.needle_set())

    def needle_of(self, name: str, semantics: str) -> niah.Needle:
        """The needle that a cell names, with the rubric of the cell's semantics.

        Raises:
            UnknownNameError: it is none of this study.
        """
        found = {**{needle.name: needle for needle in self.hidden}, PAPER: self.paper_needle(semantics)}
        if name not in found:
            raise UnknownNameError(
                f"needle {name!r} is not of this study{closest(name, found)}; there is {list(found)}"
            )
        return found[name]


class ReproduceConfig(StudyConfig):
    """Options of a study with its benchmarks."""

    tasks: MaybeWords = Field(
        None, description="lm-eval tasks of the benchmarks, like glue,mmlu; embedded models: the project's own."
    )
    include: Path | None = Field(None, description="Folder with lm-eval tasks of one's own.")
    limit: int | None = Field(None, ge=1, description="At most so many documents of each benchmark task.")
    num_fewshot: int | None = Field(None, ge=0, description="Examples before each benchmark question.")
    apply_chat_template: bool = Field(False, description="Benchmarks: use the tokenizer's chat template.")
    fewshot_as_multiturn: bool = Field(False, description="Benchmarks: examples as turns of a chat.")
    max_length: int | None = Field(None, ge=2, description="Benchmarks: tokens of the longest sequence.")

    @model_validator(mode="before")
    @classmethod
    def _named_once(cls, given: Any) -> Any:
        names = tuple(given.get("experiments") or ("all",))
        if "all" in names and len(names) > 1:
            raise InputError(f"{' '.join(names)} given; all stands for every experiment, name it alone")
        if len(set(names)) < len(names):
            raise InputError(f"{' '.join(names)} given, which names an experiment twice; name each once")
        return {**given, "experiments": None if "all" in names else names}

    @model_validator(mode="after")
    def _benchmarks_too(self) -> ReproduceConfig:
        _ = self.benchmarks
        return self

    @property
    def benchmarks(self) -> BenchmarkConfig | None:
        """Those that are run beside the cells."""
        if self.experiments is not None and BENCHMARKS not in self.experiments:
            return None
        names = ("limit", "num_fewshot", "semantics", "boundary", "apply_chat_template", "fewshot_as_multiturn",
                 "max_length", "include")  # fmt: skip
        return BenchmarkConfig(
            model=self.model,
            tasks=self.tasks or default_tasks(self.model),
            ks=self.heads,
            untouched=True,
            **({} if self.batch_size is None else {"batch_size": self.batch_size}),
            **{name: getattr(self, name) for name in names},
        )


def default_tasks(model: str) -> tuple[str, ...]:
    """The benchmark tasks where none are named: the project's own for an embedded model, the paper's for others."""
    from hybridlens.tiny import names

    return BenchmarkConfig.model_fields["tasks"].default if model in names() else ("glue", "mmlu")
