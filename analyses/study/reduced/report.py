"""`report.html` of smaller modules: the knees in sentences, both curves, every module, and what was counted how."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from analyses.experiment.text import columns
from analyses.study.rankings.curves import Value
from analyses.study.reduced.results import ReducedModules, sentences
from analyses.study.reduced.shapes import COSTS, KINDS
from hybridlens.display import many
from hybridlens.viz.article import Article
from hybridlens.viz.blocks import Chart, Section, Table, Words
from hybridlens.viz.entries import Entry
from hybridlens.viz.words import INTERVALS

COUNTED = (
    "Bytes: keys and values of key heads that a remaining head reads, at their bits, with scales of 16 bits; a window "
    "holds its own length alone. The best keys are chosen among all, and so all are held.",
    "Multiplications: projections, scores, weighted sums, and what the replacement adds; norms, rotary embedding, "
    "softmax and gates are left out. Other layers are as they were and not counted.",
    "Narrow heads: the nearest map of that rank, of values and outputs together, and of queries and keys together; "
    "with rotary embedding pair by pair, in the mean over angles.",
)


def article_of(found: ReducedModules, record: Mapping[str, Any]) -> Article:
    """The page's contents; the arguments are what was found and the run's `run.json`."""
    charts = tuple(
        Chart(found.plot(by), f"retrieval against {by}; numbers in the table below", f"By {by}", 420, 420)
        for by in COSTS
    )
    words = "Each point is a module in attention's place; cheap modules that retrieve stand at the upper left."
    rows = tuple(_row(found, i) for i in _order(found))
    header = ("module", "bytes a token", "multiplications", "retrieval", "without a needle", "keeps retrieval")
    fewest = [found.front("bytes", tuned) for tuned in (False, True) if found.among(tuned)]
    front = tuple(_row(found, i) for places in fewest for i in places)
    return Article(
        subject="smaller modules",
        over="How small may attention be and still retrieve?",
        origin=(
            many(len(found.names), "module"),
            many(found.scores.shape[1], "prompt"),
            f"{found.controls.shape[1]} without a needle",
            f"seed {record.get('seed')}",
        ),
        finding=tuple(sentences(found)),
        notes=(*found.notes, *COUNTED, INTERVALS),
        sections=(
            Section("curve", "Retrieval against cost", (Words(words), *charts)),
            Section("front", "What no cheaper module exceeds", (Table(header, front),)),
            Section("all", "Every module", (Table(header, rows),)),
        ),
    )


def modules_table(found: ReducedModules) -> Iterable[str]:
    """Every module as a line for a terminal, then what they say."""
    rows = [["module", "bytes a token", "multiplications", "retrieval (95 % interval)", "no needle", "keeps"]]
    for i in _order(found):
        cost, kept = found.cost(i), "yes" if found.keeps(i) else "no"
        texts = [_text(found.retrieval[i]), f"{100 * found.control[i].value:.0f} %"]
        rows.append([found.label(i), f"{cost.token_bytes:.4g}", f"{cost.multiplications:,}", *texts, kept])
    yield f"{found.model}: modules in attention's place, at {found.context} tokens"
    yield columns(rows, left=1)
    yield from (*sentences(found), *found.notes)


def _order(found: ReducedModules) -> list[int]:
    """By kind, those that were not trained first, then from the most to the fewest bytes."""
    kinds = list(KINDS)
    places = range(len(found.names))
    return sorted(places, key=lambda i: (found.tuned[i], kinds.index(found.kinds[i]), -found.cost(i).token_bytes))


def _row(found: ReducedModules, i: int) -> tuple[Entry, ...]:
    cost = found.cost(i)
    numbers = (f"{cost.token_bytes:.4g}", f"{cost.multiplications:,}")
    kept = "yes" if found.keeps(i) else "no"
    return (found.label(i), *numbers, _entry(found.retrieval[i]), _entry(found.control[i]), kept)


def _entry(value: Value) -> Entry:
    return f"{100 * value.value:.1f} %", f"{100 * value.low:.1f} to {100 * value.high:.1f}"


def _text(value: Value) -> str:
    return f"{100 * value.value:.0f} % ({100 * value.low:.0f} to {100 * value.high:.0f})"
