"""The options that every experiment on needle prompts shares, and how needles are given on a command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from analyses.experiment.options.base import (
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
    words_of,
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

    Args:
        needle: a built-in name or a file's needle, which bring question and rubric along (`read_needles`), or a
            sentence of one's own.
        question: of a sentence of one's own.
        rubric: of the same, a JSON file.

    Raises:
        InputError: some of the three are missing, the rubric does not fit the needle, or a file holds several.
    """
    named = None if needle is None or question is not None or rubric is not None else named_needle(needle)
    if named is not None:
        return named
    given = {"--needle": needle, "--question": question, "--rubric": rubric}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return None
    if missing or needle is None or question is None or rubric is None:
        present = [name for name in given if name not in missing]
        near = "" if needle is None else closest(needle, niah.NEEDLES)
        raise InputError(
            f"{' and '.join(present)} given without {' and '.join(missing)}{near}; an own needle needs all "
            "three, or give --needle alone, a needle of a file (FILE.json:NAME) or a built-in name: "
            f"{', '.join(sorted(niah.NEEDLES))}"
        )
    return niah.Needle("own", needle, question, niah.load_rubric(rubric, needle))


def named_needle(given: str) -> niah.Needle | None:
    """The built-in needle of a name, or the one of a file; None where it is neither.

    Raises:
        InputError: the file is refused, or holds several.
        UnknownNameError: a name that the file lacks.
    """
    if given not in niah.NEEDLES and _file(given) is None:
        return None
    first, *others = read_needles(given)
    if others:
        names = ", ".join(one.name for one in (first, *others))
        raise InputError(f"--needle {given!r} holds {names}; choose one, as in {given}:{first.name}")
    return first


def read_needles(given: str) -> tuple[niah.Needle, ...]:
    """The needles that ``--needles`` asks for, or the one of ``--needle``.

    Args:
        given: "all" for those of a study (`niah.needle_set`), built-in names with commas between them, a JSON file
            (`niah.load_needles`), or some of a file, ``FILE.json:NAME,NAME``. What is a built-in name is one; write
            ./NAME for a file so called.

    Raises:
        InputError: the file is refused.
        UnknownNameError: neither a file nor built-in names, or a name that the file lacks.
    """
    names = niah.needle_set() if given == "all" else words_of(given)
    unknown = [name for name in names if name not in niah.NEEDLES]
    if not unknown:
        return tuple(niah.NEEDLES[name] for name in names)
    file = _file(given)
    if file is None:
        raise UnknownNameError(
            f"--needles {given!r} given, but {unknown[0]!r} is neither a file nor a built-in needle"
            f"{closest(unknown[0], niah.NEEDLES)}; expected a JSON file, all, or names of "
            f"{', '.join(sorted(niah.NEEDLES))}"
        )
    path, chosen = file
    held = {needle.name: needle for needle in niah.load_needles(path)}
    for name in chosen:
        if name not in held:
            raise UnknownNameError(
                f"needle {name!r} of {str(path)!r} does not exist{closest(name, held)}; it holds {', '.join(held)}"
            )
    return tuple(held[name] for name in chosen or held)


def _file(given: str) -> tuple[Path, tuple[str, ...]] | None:
    """The file, and the names asked for in it, none for all; None where no file is meant."""
    if given.endswith(".json") or Path(given).is_file():
        return Path(given), ()
    path, colon, names = given.rpartition(":")
    return (Path(path), words_of(names)) if colon and path.endswith(".json") else None


def identity_of(needle: niah.Needle) -> str | list[Any]:
    """A needle as a manifest states it: its name where it is built in, else all that it is."""
    if niah.NEEDLES.get(needle.name) == needle:
        return needle.name
    return [needle.name, needle.sentence, needle.question, [list(rule) for rule in needle.rubric]]


def _filler(value: object) -> object:
    return niah.read_haystack(value) if isinstance(value, str | Path) else value


Filler = Annotated[niah.Haystack | None, BeforeValidator(_filler)]
FILLER = "Folder of text files; built-in essays when left out."
Named = Annotated[Item, typed(_phases), AfterValidator(once), one_of(VERSIONS, "phase")]
Phases = Named[tuple[str, ...]]
MaybePhases = Named[tuple[str, ...] | None]
Needles = Annotated[tuple[niah.Needle, ...] | None, typed(read_needles), AfterValidator(once)]
Depths = Annotated[Numbers, AfterValidator(_percent)]


class AnswerOptions(Options):
    """Options of experiments that have prompts answered; a field with a description is one of the command's."""

    haystack: Filler = Field(None, description=FILLER)
    template: Annotated[str, one_of(tuple(niah.TEMPLATES))] = Field(
        "base", description="base; unspaced, without the space at its end; or instruct."
    )
    batch_size: int | None = Field(None, ge=1, description="Most rows that answer together; changes no result.")
    memory: Memory = None
    seed: Seed = 0
    max_new_tokens: int = Field(40, ge=1, le=100_000)
    """Length of the answers."""


class GridOptions(Options):
    """How long prompts are, and where in them the needle stands."""

    lengths: MaybeNumbers = Field(None, description="Prompt lengths in tokens; ten up to the context, at most 4096.")
    depths: Depths = Field(niah.DEFAULT_DEPTHS, description="Needle depths in percent, 0 the start; ten from 0 to 100.")


class PromptOptions(AnswerOptions, GridOptions):
    """Options of experiments on needle prompts."""


class NeedleOptions(Options):
    """Options of experiments on one needle, given by name or as sentence, question and rubric."""

    needle: niah.Needle | None = Field(
        None,
        description="A built-in needle by name, one of a file (FILE.json:NAME), or a sentence with --question and "
        "--rubric.",
        json_schema_extra={"typed": None},
    )
    question: str | None = Field(None, description="The question of an own needle.")
    rubric: Path | None = Field(None, description="JSON file: a list of [phrase, points, add or set].")

    @model_validator(mode="before")
    @classmethod
    def _one_needle(cls, given: Any) -> Any:
        """The needle of three options, as one value."""
        needle = given.get("needle")
        if isinstance(needle, niah.Needle):
            return given
        read = read_needle(needle, given.get("question"), given.get("rubric"))
        return {**given, "needle": read, "question": None, "rubric": None}

    @property
    def hidden(self) -> niah.Needle:
        """The needle: the one given, or the paper's."""
        return self.needle or niah.PAPER_NEEDLE


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


def arguments_of(options: AnswerOptions) -> dict[str, Any]:
    """What of the prompts every manifest states."""
    haystack = options.haystack
    return {
        "haystack": "built-in essays" if haystack is None else f"sha256 {haystack.hash[:16]}",
        "template": options.template,
        "max_new_tokens": options.max_new_tokens,
    }
