"""`report.html` made of sections: a heading, what was found, links, the sections, and what made it.

What is shown comes as plain values (`Article`); nothing here knows an experiment. The page is one file that works with
the network off, and shows any text as it stands. How it fails: an old report stays where the new one cannot be written
whole.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridlens.results import write_atomic
from hybridlens.viz.blocks import Section
from hybridlens.viz.gathered import Gathered
from hybridlens.viz.templating import render

REPORT = "report.html"


@dataclass(frozen=True)
class Article:
    """What stands on the page beside the record of the run, which has the model and the day.

    Attributes:
        subject: what the page is about, in the window's title, behind the model's name.
        over: the line above the heading: what kind of page this is.
        origin: how much was run, under which rules: parts of one line, empty ones left out.
        finding: the first sentences.
        notes: what a reader has to know before the rest.
        sections: the rest, in order.
    """

    subject: str
    over: str
    origin: tuple[str, ...]
    finding: tuple[str, ...]
    notes: tuple[str, ...]
    sections: tuple[Section, ...]


def write_article(folder: Path, article: Article, record: Mapping[str, Any], name: str = REPORT) -> Path:
    """Write a page into a folder, atomically; returns its path.

    Args:
        record: its `run.json`; "model" is all that it has to hold.
        name: the page's.
    """
    return write_atomic(folder / name, render_article(article, record).encode("utf-8"))


def render_article(article: Article, record: Mapping[str, Any]) -> str:
    """The page as text; arguments as in `write_article`."""
    day = str(record.get("finished") or record.get("created") or "")[:10]
    return render(
        "article.html",
        article=article,
        model=record["model"],
        origin=" · ".join(part for part in (*article.origin, day) if part),
        unfinished=_unfinished(record),
        recorded="weights_hash" in record,
        provenance=[(name, _plain(value)) for name, value in _provenance(record)],
        gathered=Gathered(),
    )


def _unfinished(record: Mapping[str, Any]) -> str:
    """A line that says so when the run is not complete; empty where it is not said."""
    if record.get("status", "complete") == "complete":
        return ""
    done, total = record.get("cells_done"), record.get("cells")
    return f"This run is not complete: {done} of {total} cells. The same command goes on."


def _provenance(record: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """What is needed to run it again: the command, the arguments, hashes and versions."""
    sessions: Sequence[Mapping[str, Any]] = record.get("sessions") or [{}]
    machine: Mapping[str, Any] = sessions[-1].get("environment", {})
    packages: Mapping[str, Any] = machine.get("packages", {})
    yield "command", record.get("command") or "not recorded"
    yield "model", record["model"]
    facts: Mapping[str, object] = record.get("facts", {})
    yield from ((f"model: {name}", "none" if value in (None, []) else value) for name, value in facts.items())
    kept = {"config, SHA-256": "config_hash", "weights, SHA-256": "weights_hash", "seed": "seed"}
    yield from ((words, record[name]) for words, name in kept.items() if name in record)
    yield from ((name.replace("_", "-"), value) for name, value in record.get("arguments", {}).items())
    yield from (record.get("growing") or {}).items()
    settings = {**sessions[-1].get("settings", {}), **record.get("settled", {})}
    yield from ((name.replace("_", "-"), value) for name, value in settings.items())
    yield "started", record.get("created")
    yield "finished", record.get("finished") or "not yet"
    yield "python", machine.get("python")
    yield "platform", machine.get("platform")
    yield "packages", ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    yield from (("note", line) for line in record.get("remarks", []))
    yield from (("damaged, mended", line) for line in record.get("damaged", []))


def _plain(value: object) -> str:
    """A JSON value as people read it."""
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return "default" if value is None else str(value)
