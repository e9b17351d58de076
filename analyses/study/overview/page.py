"""`index.html`, the start page of a folder of results: the findings in the order of the paper's questions, with links.

How it fails: an old page stays where the new one cannot be written whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

from analyses.study.overview.questions import OTHERS, QUESTIONS, Question
from analyses.study.overview.results import FoundRun, FoundZoo, Overview
from hybridlens.display import count, listed, many
from hybridlens.results.provenance import environment
from hybridlens.results.record import now
from hybridlens.viz.article import REPORT, Article, write_article
from hybridlens.viz.blocks import Block, ReportLine, Reports, Section, Table, Words

PAGE = "index.html"

FIRST = 2
"""Questions whose findings stand above all sections."""
LEADING = 4
"""Sentences that do."""


def write_overview(found: Overview, command: str = "") -> Path:
    """Write the page into the folder that it is about; returns its path.

    Args:
        found: what it shows.
        command: what was typed.

    Raises:
        ResultsError: it cannot be written.
    """
    record = {
        "model": f"What was found in {found.folder.resolve().name or found.folder}",
        "command": command,
        "created": now(),
        "finished": now(),
        "sessions": [{"settings": {}, "environment": environment()}],
    }
    return write_article(found.folder, overview_page(found), record, PAGE)


def overview_page(found: Overview) -> Article:
    """The page's contents."""
    asked = [(question, list(_answering(question, found.runs))) for question in QUESTIONS]
    known = {run.place for _, runs in asked for run in runs}
    asked.append((OTHERS, [run for run in found.runs if run.place not in known]))
    sections = [_question(question, runs) for question, runs in asked if runs]
    sections += [_zoo(one, number) for number, one in enumerate(found.zoos)]
    if found.pages:
        pages = Reports(tuple(ReportLine(one.title, _link(one.place), (one.says,), one.place) for one in found.pages))
        sections.append(Section("pages", "Other reports", (pages,)))
    if found.unfinished or found.unread:
        sections.append(_open(found))
    runs = list(found.every())
    open_ones = [f"{count(len(found.unfinished))} not finished"] if found.unfinished else []
    return Article(
        subject="start page",
        over="“Some Attention is All You Need for Retrieval”, asked of these models",
        origin=(many(len(runs), "run"), many(len(found.models), "model"), *open_ones),
        finding=tuple(_leading(asked, found.zoos)),
        notes=_notes(found),
        sections=tuple(sections),
    )


def _answering(question: Question, runs: Iterable[FoundRun]) -> Iterator[FoundRun]:
    """The runs of a question: its commands in their order, models by name."""
    mine = [run for run in runs if run.job in question.jobs]
    order = list(question.jobs)
    yield from sorted(mine, key=lambda run: (order.index(run.job), run.model, run.place))


def _leading(asked: Iterable[tuple[Question, list[FoundRun]]], zoos: Iterable[FoundZoo]) -> list[str]:
    """The sentences above all sections: what the first questions' runs say first; of a zoo alone, its answers."""
    said: list[str] = []
    answered = [[run for run in runs if run.complete and run.finding] for _, runs in asked]
    for runs in [runs for runs in answered if runs][:FIRST]:
        said += [_named(run) for run in runs if run.job == runs[0].job]
    said += [] if said else [sentence for one in zoos for sentence in one.answers]
    return said[:LEADING]


def _named(run: FoundRun) -> str:
    """Its first sentence; the model before it, where that does not name it."""
    first = run.finding[0]
    return first if run.model in first else f"{run.model}: {first[:1].lower()}{first[1:]}"


def _notes(found: Overview) -> tuple[str, ...]:
    said = [
        many(len(found.unfinished), "run is not finished", "runs are not finished") if found.unfinished else "",
        many(len(found.unread), "folder shows nothing", "folders show nothing") if found.unread else "",
    ]
    parts = [part for part in said if part]
    return (f"{', and '.join(parts)}: see the end of this page.",) if parts else ()


def _question(question: Question, runs: Iterable[FoundRun]) -> Section:
    lines = tuple(_line(run, f"{run.model}: {question.jobs.get(run.job, run.job)}") for run in runs)
    return Section(question.name, question.title, (Words(question.words), Reports(lines)))


def _line(run: FoundRun, title: str) -> ReportLine:
    cells = f"{many(run.done, 'cell')}" if run.done and run.complete else ""
    when = f"finished {_time(run.finished)}" if run.finished else f"started {_time(run.started)}"
    about = " · ".join(part for part in (run.command, when, cells) if part)
    return ReportLine(title, _link(run.place) if run.report else "", run.finding, about, run.state)


def _zoo(one: FoundZoo, number: int) -> Section:
    """What the models say together, then each model's runs, folded."""
    title = f"The same questions of many models: {one.place}"
    size = f"{one.place}: {many(len(one.runs), 'run')}."
    whole = ReportLine(
        f"{many(len(one.models), 'model')} side by side",
        _link(one.place) if one.report else "",
        (" ".join(one.answers),) if one.answers else (),
        f"{size} {one.note}".strip() if one.answers else size,
        "" if one.answers else one.note,
    )
    blocks: list[Block] = [Reports((whole,))]
    jobs = {job: words for question in QUESTIONS for job, words in question.jobs.items()}
    for model, runs in one.models.items():
        lines = tuple(_line(run, f"{model}: {jobs.get(run.job, run.job)}") for run in runs)
        names = listed([run.place.rpartition("/")[2] for run in runs], 9)
        blocks.append(Reports(lines, f"{model}: {names}"))
    return Section(f"zoo-{number}", title, tuple(blocks))


def _open(found: Overview) -> Section:
    """What is not finished, and where nothing was found."""
    rows = [(run.place, run.state) for run in found.unfinished]
    rows += [(one.place, one.why) for one in found.unread]
    words = Words(
        "Nothing of it is lost: what a run has stored stays, and the command that began it goes on from there."
    )
    return Section("open", "Not finished, or not shown", (words, Table(("folder", "what is the matter"), tuple(rows))))


def _link(place: str) -> str:
    """The report of a folder, as a link from the start page; "." is its own folder."""
    return quote(REPORT if place == "." else f"{place}/{REPORT}")


def _time(when: str | None) -> str:
    """A time in UTC to the minute."""
    return f"{when[:10]} {when[11:16]} UTC" if when else "at an unknown time"
