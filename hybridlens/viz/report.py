"""`report.html` of one needle: figure 2, and every answer as maps to look through.

The page of one sweep over k. How it fails: `ResultsError` when there is nothing to show; an old report stays.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridlens.results import Cell, Finding, accuracy_points, finding, ks_of, phases_of
from hybridlens.viz.article import Article, render_article, write_article
from hybridlens.viz.blocks import Chart, Explorer, Map, MapGroup, Patterns, Section, Square, Summary, Words
from hybridlens.viz.entries import Entry
from hybridlens.viz.figures import accuracy_curve
from hybridlens.viz.patterns import PatternFigure
from hybridlens.viz.words import END, LEFT_OUT, PHASE_NOTES, PHASE_TITLES, START, headline, percent


def write_report(
    folder: Path,
    cells: Sequence[Cell],
    record: Mapping[str, Any],
    patterns: Sequence[PatternFigure] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Write `report.html` into a run's folder, atomically; returns its path.

    Args:
        folder: the run's folder.
        cells: its cells (`Run.cells` or `read_cells`), of one model.
        record: its `run.json` (`Run.record`).
        patterns: attention patterns to draw.
        notes: sentences to show under the finding (what lies beyond the window, say).

    Raises:
        ResultsError: no cell holds a needle.
    """
    return write_article(folder, article_of(cells, record, patterns, notes), record)


def render_report(
    cells: Sequence[Cell],
    record: Mapping[str, Any],
    patterns: Sequence[PatternFigure] = (),
    notes: Sequence[str] = (),
) -> str:
    """The page as text; the arguments and errors are those of `write_report`."""
    return render_article(article_of(cells, record, patterns, notes), record)


def article_of(
    cells: Sequence[Cell],
    record: Mapping[str, Any],
    patterns: Sequence[PatternFigure] = (),
    notes: Sequence[str] = (),
) -> Article:
    """The page's contents; the arguments and errors are those of `write_report`."""
    max_score, n_heads = float(record["max_score"]), record.get("facts", {}).get("n_heads")
    phases = [p for p in phases_of(cells) if ks_of(cells, p)]
    found = [finding(accuracy_points(cells, p, max_score), p) for p in phases]
    sentences = headline(found, str(record["model"]), n_heads)
    curve = Chart(accuracy_curve(cells, max_score, n_heads), "accuracy against heads kept; numbers in the table above")
    sections = [
        Section(
            "accuracy",
            "Accuracy against heads kept",
            (
                Words(
                    "The mean score over all lengths and depths, as a share of the highest score. Dotted: prompts with "
                    "the needle left out, which show what guessing earns."
                ),
                curve,
            ),
        ),
        Section(
            "maps",
            "Retrieval maps",
            (
                Words(
                    f"A square is a prompt. Top: needle at the {START}. Bottom: at the {END}. Left to right: short to "
                    "long prompts. Choose a map, then a square in it."
                ),
                _explorer(cells, phases, max_score),
            ),
        ),
    ]
    if patterns:
        words = (
            "Each row is the token that looks, each column the token looked at; the darker, the more attention. Point "
            "at a head to see it large, click to keep it."
        )
        sections.append(Section("patterns", "Heads that look at the needle", (Words(words), Patterns(tuple(patterns)))))
    return Article(
        subject="needle in a haystack",
        over="Needle in a haystack, heads kept by lowest entropy",
        origin=(*_origin(cells), f"seed {record.get('seed')}"),
        finding=tuple(sentences),
        notes=tuple(notes),
        sections=tuple(sections),
        summary=(_summary(found, n_heads),),
    )


def _explorer(cells: Sequence[Cell], phases: Sequence[str], max_score: float) -> Explorer:
    """A strip a phase, a map a k."""
    groups = tuple(
        MapGroup(PHASE_TITLES[p], PHASE_NOTES[p], tuple(_map(cells, p, k, ks[-1]) for k in ks))
        for p, ks in ((p, ks_of(cells, p)) for p in phases)
    )
    return Explorer({"": groups}, max_score, ("phase", "heads kept"), ("needle", "time", "prompt hash"))


def _map(cells: Sequence[Cell], phase: str, k: int, most: int) -> Map:
    squares = {
        (c.length, None if c.depth is None else float(c.depth)): Square(float(c.score), c.text, _facts(c))
        for c in cells
        if (c.phase, c.k) == (phase, k)
    }
    return Map(f"k {k}", f"{PHASE_TITLES[phase]}, {k} of {most} heads kept", squares)


def _facts(cell: Cell) -> tuple[str, ...]:
    if cell.needle_start is None or cell.needle_end is None:
        span = "not in the prompt"
    else:
        span = f"tokens {cell.needle_start} to {cell.needle_end - 1}"
    return span, f"{round(cell.seconds, 3):g} s", cell.prompt_hash[:12]


def _origin(cells: Sequence[Cell]) -> tuple[str, ...]:
    """How much was run, and under which rules."""
    controls = sum(cell.control for cell in cells)
    rules = sorted(
        {f"{cell.semantics} semantics, boundary {cell.boundary.replace('_', ' ')}" for cell in cells}
    )
    counts = f"{len(cells) - controls:,} answers with the needle in the prompt, {controls:,} without"
    return counts, "; ".join(rules)


def _summary(found: Sequence[Finding], n_heads: int | None) -> Summary:
    """The numbers of the finding, a row a phase."""
    most = "all heads" if all(f.k_full == n_heads for f in found) else "most heads"
    least = "no attention" if all(f.k_least == 0 for f in found) else "fewest heads"
    return Summary((most, "tipping point", least, "chance"), tuple(_numbers(f) for f in found))


def _numbers(f: Finding) -> tuple[Entry, ...]:
    """One phase's numbers."""
    tip = ("none", "never under half")
    if f.tipping_point is not None and f.at_tipping_point is not None:
        tip = (f"k = {f.tipping_point}", percent(f.at_tipping_point))
    return (
        (PHASE_TITLES[f.phase], PHASE_NOTES[f.phase]),
        (percent(f.full), f"k = {f.k_full}"),
        tip,
        (percent(f.least), f"k = {f.k_least}"),
        ("not run" if f.chance is None else percent(f.chance), LEFT_OUT),
    )
