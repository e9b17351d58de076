"""Every option of a study, a set of the paper's experiments over one model, checked as far as no model is needed.

How it fails: as `analyses.niah_config`, whose checks are used: an option that no model could run raises when the
config is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from analyses.niah_config import VERSIONS, NiahConfig
from hybridlens import niah
from hybridlens.engine.budget import DEFAULT
from hybridlens.errors import InputError, UnknownNameError, closest

PAPER = niah.PAPER_NEEDLE.name


@dataclass(frozen=True)
class StudyConfig:
    """Every option of a study.

    Attributes:
        model: what results call the model.
        experiments: names of `analyses.study.experiments.EXPERIMENTS`, each refused where the model, the phases or the
            semantics rule it out; None for all that they allow.
        lengths: tokens of the prompts; None for ten up to the model's context, at most 4096.
        depths: places of the needle, percent of the context.
        control: whether the prompts are also run with the needle left out, once per length.
        needles: what is hidden and asked for in the experiment of several needles; None for `niah.needle_set()`.
            The other experiments hide the paper's.
        haystack: the filler; None for the built-in essays of `seed`.
        template: "base" or "instruct".
        heads: the k's of the sweeps over k; None for 0 … n_heads, which is added, being the untouched model.
        phases: "generation", "prefill" or both; None for those that each experiment has.
        boundary: which rules read the last token of the prompt.
        semantics: "clean" or "published".
        batch_size: most rows that answer together; None for as many as fit. Changes no cell.
        memory: bytes that may be held beside the weights; None for a number that suits most machines. Changes no cell.
        seed: of the built-in essays.
        max_new_tokens: length of the answers.
        command: the command line, to be recorded.

    Raises:
        InputError: an option that no model could run.
        UnknownNameError: a template, phase, boundary or semantics that does not exist.
    """

    model: str
    experiments: tuple[str, ...] | None = None
    lengths: tuple[int, ...] | None = None
    depths: tuple[int, ...] = niah.DEFAULT_DEPTHS
    control: bool = True
    needles: tuple[niah.Needle, ...] | None = None
    haystack: niah.Haystack | None = None
    template: str = "base"
    heads: tuple[int, ...] | None = None
    phases: tuple[str, ...] | None = None
    boundary: str = "last_prompt_token"
    semantics: str = "clean"
    batch_size: int | None = None
    memory: int | None = None
    seed: int = 0
    max_new_tokens: int = 40
    command: str = ""

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        replace(self.prompts_of(), heads=self.heads, phases=VERSIONS if self.phases is None else self.phases)
        if self.memory is not None and self.memory < 1:
            raise InputError(f"--memory {self.memory} given, expected a number of bytes")
        names = [needle.name for needle in self.hidden]
        if not names:
            raise InputError("--needles is empty, expected at least one needle")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"--needles holds {twice!r} more than once; give each needle a name of its own")
        for needle in self.hidden:
            if needle.name == PAPER and needle != niah.PAPER_NEEDLE:
                raise InputError(
                    f"--needles holds a needle named {PAPER!r} that is not the paper's ({needle.sentence!r}); "
                    "give it another name"
                )

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
        if name == PAPER:
            return niah.PAPER_NEEDLE if semantics == "clean" else niah.PUBLISHED_NEEDLE
        for needle in self.hidden:
            if needle.name == name:
                return needle
        known = [PAPER, *(needle.name for needle in self.hidden)]
        raise UnknownNameError(f"needle {name!r} is not of this study{closest(name, known)}; there is {known}")

    def prompts_of(
        self,
        needle: str = PAPER,
        jrt: bool = False,
        semantics: str | None = None,
        lengths: Sequence[int] | None = None,
    ) -> NiahConfig:
        """The options of one set of this study's prompts; what is left out is the study's own.

        The condition that it names is k = 0 in the generation version, which stands for all.
        """
        rules = self.semantics if semantics is None else semantics
        return NiahConfig(
            model=self.model,
            lengths=self.lengths if lengths is None else tuple(lengths),
            depths=self.depths,
            control=self.control,
            needle=None if needle == PAPER else self.needle_of(needle, rules),
            haystack=self.haystack,
            template=self.template,
            jrt=jrt,
            heads=(0,),
            phases=("generation",),
            boundary=self.boundary,
            semantics=rules,
            batch_size=self.batch_size,
            memory=DEFAULT if self.memory is None else self.memory,
            seed=self.seed,
            max_new_tokens=self.max_new_tokens,
            command=self.command,
        )
