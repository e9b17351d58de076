"""The page of the zoo, and its lines for a terminal: the questions answered by rule first, then model beside model.

How it fails: see `analyses.study.comparing.report.refuse_a_run` for where it may be written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

from analyses.experiment.text import columns
from analyses.study.comparing.report import refuse_a_run
from analyses.study.zoo import sections
from analyses.study.zoo.of_study import RETRIEVAL, SILENT
from analyses.study.zoo.results import Zoo
from analyses.study.zoo.rules import ZooAnswer, answers, said
from hybridlens.display import many
from hybridlens.results.provenance import environment, usable
from hybridlens.results.record import now
from hybridlens.viz.article import REPORT, Article, write_article
from hybridlens.viz.blocks import Section, Table
from hybridlens.viz.words import DASH

NOTES = (
    "Intervals over prompts say how other prompts might come out, not other models or other seeds of training; each is "
    "made at 95 %, with no correction for there being several models.",
)


def zoo_table(zoo: Zoo) -> Iterable[str]:
    """The answers, then every model's retrieval, for a terminal."""
    for one in answers(zoo):
        yield f"{one.question} {one.outcome}{f': {one.reason}' if one.reason else ''}"
    rows = [["model", "kind", "retrieval, %", "without attention, %"]]
    rows += [
        [
            one.name,
            one.kind,
            *(DASH if one.of(name).value is None else said(one.of(name)) for name in (RETRIEVAL, SILENT)),
        ]
        for one in zoo.members
    ]
    yield columns(rows, left=2)


def write_zoo(zoo: Zoo, folder: Path, command: str = "", notes: tuple[str, ...] = ()) -> Path:
    """Write the page; returns its path.

    Args:
        zoo: what it shows.
        folder: made when it does not exist.
        command: what was typed.
        notes: what a reader has to know beside `NOTES`.

    Raises:
        InputError: the folder holds a run, or is a file.
        ResultsError: it cannot be written.
    """
    refuse_a_run(folder)
    with usable(folder):
        folder.mkdir(parents=True, exist_ok=True)
    record = {
        "model": many(len(zoo.members), "model"),
        "command": command,
        "created": now(),
        "finished": now(),
        "growing": {f"weights of {one.name}, SHA-256": one.weights for one in zoo.members},
        "sessions": [{"settings": {}, "environment": environment()}],
    }
    return write_article(folder, zoo_page(zoo, notes, _pages(zoo, folder)), record)


def _pages(zoo: Zoo, folder: Path) -> dict[str, dict[str, str]]:
    """The reports of single experiments that stand in a folder, by model and experiment."""
    return {
        one.name: {
            asked.part: f"{quote(one.name)}/{asked.part}/{REPORT}"
            for asked in one.asked
            if (folder / one.name / asked.part / REPORT).is_file()
        }
        for one in zoo.members
    }


def zoo_page(
    zoo: Zoo, notes: tuple[str, ...] = (), pages: Mapping[str, dict[str, str]] = MappingProxyType({})
) -> Article:
    """The page's contents; `pages` as in `sections.each`."""
    found = answers(zoo)
    made = (
        _questions(found),
        sections.models(zoo),
        sections.retrieval(zoo),
        sections.manipulated(zoo),
        sections.twice(zoo),
        sections.memories(zoo),
        sections.capacity(zoo),
        sections.inside(zoo),
        sections.each(zoo, pages),
    )
    return Article(
        subject="the zoo",
        over="The same questions of many models",
        origin=(many(len(zoo.members), "model"), ", ".join(zoo.parts)),
        finding=tuple(sentence(one) for one in found),
        notes=(*notes, *NOTES),
        sections=tuple(section for section in made if section is not None),
    )


def sentence(one: ZooAnswer) -> str:
    """A question with its answer, and why it is open where it is."""
    why = f": {one.reason}" if one.outcome == "open" else ""
    return f"{one.question} {one.outcome.capitalize()}{why}."


def _questions(found: tuple[ZooAnswer, ...]) -> Section:
    rows = tuple(
        ((one.question, one.rule), (one.outcome, one.reason), "; ".join(one.measured) or DASH) for one in found
    )
    return Section("questions", "The questions, by rule", (Table(("question and rule", "answer", "measured"), rows),))
