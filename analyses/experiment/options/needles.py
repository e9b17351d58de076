"""The options that every experiment on needle prompts shares, and how needles are given on a command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from analyses.experiment.options.base import (
    MEMORY,
    Item,
    MaybeNumbers,
    Memory,
    Numbers,
    Options,
    Seed,
    once,
    one_of,
    typed,
    unknown,
)
from hybridlens import niah
from hybridlens.errors import InputError, UnknownNameError, closest
from hybridlens.results.cells import BOUNDARIES, SEMANTICS

VERSIONS = ("generation", "prefill")
"""The paper's names: heads are dropped while answering only, or while reading the prompt too."""

PAPER = niah.PAPER_NEEDLE.name


def _percent(values: tuple[int, ...]) -> tuple[int, ...]:
    wrong = next((value for value in values if not 0 <= value <= 100), None)
    if wrong is not None:
        raise InputError(f"--depths holds {wrong}, expected percentages from 0 to 100")
    return values


def _phases(name: str) -> tuple[str, ...]:
    """A name as one of several, or what "both" stands for."""
    known = (*VERSIONS, "both")
    if name not in known:
        raise unknown("phase", name, known)
    return VERSIONS if name == "both" else (name,)


def read_needle(needle: str | None, question: str | None, rubric: Path | None) -> niah.Needle | None:
    """The needle of the three options, or None when none of them was given.

    A needle can also be one of those built in, by name, which brings its question and rubric along.

    Raises:
        InputError: some of the three are missing, or the rubric does not fit the needle.
    """
    if needle in niah.NEEDLES and question is None and rubric is None:
        return niah.NEEDLES[str(needle)]
    given = {"--needle": needle, "--question": question, "--rubric": rubric}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return None
    if missing or needle is None or question is None or rubric is None:
        present = [name for name in given if name not in missing]
        raise InputError(
            f"{' and '.join(present)} given without {' and '.join(missing)}; an own needle needs all three, or give "
            f"--needle alone with a built-in name: {', '.join(sorted(niah.NEEDLES))}"
        )
    return niah.Needle("own", needle, question, niah.load_rubric(rubric, needle))


def read_needles(given: str) -> tuple[niah.Needle, ...]:
    """The needles that ``--needles`` asks for.

    Args:
        given: "all" for those of a study (`niah.needle_set`), built-in names with commas between them, or a
            JSON file (`niah.load_needles`). What is a built-in name is one; write ./NAME for a file so called.

    Raises:
        InputError: the file is refused.
        UnknownNameError: neither a file nor built-in names.
    """
    names = niah.needle_set() if given == "all" else tuple(name.strip() for name in given.split(","))
    unknown = [name for name in names if name not in niah.NEEDLES]
    if not unknown:
        return tuple(niah.NEEDLES[name] for name in names)
    if given.endswith(".json") or Path(given).is_file():
        return tuple(niah.load_needles(given))
    raise UnknownNameError(
        f"--needles {given!r} given, but {unknown[0]!r} is neither a file nor a built-in needle"
        f"{closest(unknown[0], niah.NEEDLES)}; expected a JSON file, all, or names of "
        f"{', '.join(sorted(niah.NEEDLES))}"
    )


def _filler(value: object) -> object:
    return niah.read_haystack(value) if isinstance(value, str | Path) else value


Named = Annotated[Item, typed(_phases), AfterValidator(once), one_of(VERSIONS, "phase")]
Phases = Named[tuple[str, ...]]
MaybePhases = Named[tuple[str, ...] | None]
Needles = Annotated[tuple[niah.Needle, ...] | None, typed(read_needles), AfterValidator(once)]
Depths = Annotated[Numbers, AfterValidator(_percent)]


class PromptOptions(Options):
    """Options of experiments on needle prompts; a field with a description is one of the command's."""

    lengths: MaybeNumbers = Field(None, description="Prompt lengths in tokens; ten up to the context, at most 4096.")
    depths: Depths = Field(niah.DEFAULT_DEPTHS, description="Needle depths in percent, 0 the start; ten from 0 to 100.")
    haystack: Annotated[niah.Haystack | None, BeforeValidator(_filler)] = Field(
        None, description="Folder of text files; built-in essays when left out."
    )
    template: Annotated[str, one_of(tuple(niah.TEMPLATES))] = Field("base", description="base or instruct.")
    batch_size: int | None = Field(None, ge=1, description="Most rows that answer together; changes no result.")
    memory: Memory = MEMORY
    seed: Seed = 0
    max_new_tokens: int = Field(40, ge=1, le=100_000)
    """Length of the answers."""


class SweepOptions(PromptOptions):
    """Options of experiments that sweep over heads kept by entropy."""

    control: bool = Field(True, description="Also run the prompts with the needle left out.")
    heads: MaybeNumbers = Field(None, description="Heads kept per layer, like 0,4,8 or 0..8; all when left out.")
    boundary: Annotated[str, one_of(BOUNDARIES)] = Field(
        "last_prompt_token", description="last_prompt_token or first_new_token."
    )
    semantics: Annotated[str, one_of(SEMANTICS)] = Field(
        "clean", description="clean, or published: what the authors' code did."
    )

    def paper_needle(self, semantics: str | None = None) -> niah.Needle:
        """The paper's needle, with the rubric of these semantics, or of the options' own."""
        return niah.PAPER_NEEDLE if (semantics or self.semantics) == "clean" else niah.PUBLISHED_NEEDLE


def arguments_of(options: PromptOptions) -> dict[str, Any]:
    """What of the prompts every manifest states."""
    haystack = options.haystack
    return {
        "haystack": "built-in essays" if haystack is None else f"sha256 {haystack.hash[:16]}",
        "template": options.template,
        "max_new_tokens": options.max_new_tokens,
    }
