"""Every answer of a study, put into maps to look through, and listed where two settings or two logits came close.

Cells that share all settings but the prompt make one map; maps that differ in k, or in the manipulation, stand in
one strip; strips that differ from the study's own settings in the same way are on one sheet. No cell is left out.

How it fails: pure; an empty list of cells gives no sheet.
"""

from __future__ import annotations

from collections.abc import Sequence

from analyses.study.groups import Base
from analyses.study.measured import Condition
from analyses.study.view_types import Differing
from hybridlens import niah
from hybridlens.results import Cell
from hybridlens.results.cells import PHASES
from hybridlens.viz.blocks import Answers, Explorer, Map, MapGroup, Square
from hybridlens.viz.words import PHASE_NOTES, PHASE_TITLES, heads

BOUNDARY_WORDS = {
    "last_prompt_token": "the last token of the prompt",
    "first_new_token": "the first new token",
}
"""Boundary -> the first token that is read under the rules of answering."""

_Strip = tuple[str, str, bool, str, str, str, str]
_OWN = "the paper's needle"

_ALL_THERE_IS = "The model as it is"
"""What stands for every condition where there is no attention."""


def explorer(cells: Sequence[Cell], base: Base, full: bool = False) -> Explorer:
    """All answers of a study.

    Args:
        cells: of one model.
        base: what the study holds fixed.
        full: whether each answer says where the needle was, what it took and of which prompt it is, and maps are
            chosen by name too.
    """
    strips: dict[_Strip, dict[Condition, list[Cell]]] = {}
    for cell in cells:
        strips.setdefault(_strip(cell, base), {}).setdefault(Condition.of(cell), []).append(cell)
    full_model = Condition(PHASES[0], base.n_heads)
    for strip, found in strips.items():
        untouched = strips.get((*strip[:-1], PHASES[0]), {}).get(full_model)
        if strip[-1] == "manipulated" and untouched:
            found.setdefault(full_model, untouched)
    sheets: dict[str, list[MapGroup]] = {}
    for strip in sorted(strips, key=_order):
        sheets.setdefault(strip[0], []).append(_group(strip, strips[strip], base, full))
    named = (("phase", "heads kept"), ("needle", "time", "prompt hash")) if full else ((), ())
    return Explorer({title: tuple(groups) for title, groups in sheets.items()}, float(niah.MAX_SCORE), *named)


def condition_words(condition: Condition, n_heads: int) -> str:
    """What a cell does to attention, in words: "Generation only, 2 heads kept"."""
    phase, k, reading, answering = condition
    if not n_heads:
        return _ALL_THERE_IS
    if (reading, answering) == ("keep", "keep"):
        kept = "all heads" if k == n_heads else heads(k)
        return f"{PHASE_TITLES[phase]}, {kept}{'' if k == 0 else ' kept'}"
    less = "" if k == n_heads else f", {heads(k)} kept ({PHASE_TITLES[phase].lower()})"
    return f"{reading.capitalize()} while reading, {answering} while answering{less}"


def differing(pairs: Sequence[Differing]) -> Answers:
    """Cells whose text or score changes with the semantics, text beside text."""
    rows = [
        (p.clean.key.words(), f"{p.clean.score:g}", p.clean.text, f"{p.published.score:g}", p.published.text)
        for p in pairs
    ]
    header = ("cell", "clean: points", "clean: text", "published: points", "published: text")
    return Answers(f"The {_number(rows, 'cell')} that differ", header, tuple(rows), (2, 4))


def tied(cells: Sequence[Cell]) -> Answers:
    """Cells in which two logits nearly tied, closest first."""
    ordered = sorted(cells, key=lambda cell: cell.margin or 0.0)
    rows = [(c.key.words(), f"{c.margin or 0:.1e}", f"{c.score:g}", c.text) for c in ordered]
    return Answers(f"The {_number(rows, 'cell')}", ("cell", "smallest gap", "points", "text"), tuple(rows), (3,))


def _number(rows: Sequence[object], name: str) -> str:
    return f"{len(rows):,} {name}{'' if len(rows) == 1 else 's'}"


def _strip(cell: Cell, base: Base) -> _Strip:
    """Sheet, needle, read twice, scope, semantics, boundary, and version or "manipulated"."""
    if cell.semantics != base.semantics:
        sheet = f"{cell.semantics} semantics"
    elif cell.boundary != base.boundary:
        sheet = f"answering from {BOUNDARY_WORDS[cell.boundary]}"
    elif cell.scope != "layer":
        sheet = "heads that compete in the model"
    elif cell.jrt:
        sheet = f"{_OWN}, read twice"
    else:
        sheet = _OWN if cell.needle == base.needle else "other needles"
    kept = (cell.reading, cell.answering) == ("keep", "keep")
    what = cell.phase if kept else "manipulated"
    return sheet, cell.needle, cell.jrt, cell.scope, cell.semantics, cell.boundary, what


def _order(strip: _Strip) -> tuple[bool, bool, str, str, int]:
    """The study's own settings first; by needle and version."""
    sheet, needle, *_, what = strip
    return sheet != _OWN, not sheet.startswith(_OWN), sheet, needle, (*PHASES, "manipulated").index(what)


def _group(strip: _Strip, found: dict[Condition, list[Cell]], base: Base, full: bool) -> MapGroup:
    sheet, needle, twice, scope, _, boundary, what = strip
    title, note = "Manipulated attention weights", "all heads kept; weights changed while reading and while answering"
    if not base.n_heads:
        title, note = _ALL_THERE_IS, "no attention: nothing is silenced"
    elif what != "manipulated":
        title, note = PHASE_TITLES[what], PHASE_NOTES[what]
    others = [
        f"needle {needle!r}" if needle != base.needle else "",
        "read twice" if twice and not sheet.endswith("twice") else "",
        f"scope {scope}" if scope != "layer" and "compete" not in sheet else "",
        f"from {BOUNDARY_WORDS[boundary]}" if boundary != base.boundary and not sheet.startswith("answering") else "",
    ]
    title = ", ".join([title, *(word for word in others if word)])
    order = sorted(found, key=lambda condition: condition.place)
    return MapGroup(title, note, tuple(_map(what, key, found[key], base, full) for key in order))


def _map(what: str, condition: Condition, cells: Sequence[Cell], base: Base, full: bool) -> Map:
    _, k, reading, answering = condition
    label = f"k {k}" if base.n_heads else "as it is"
    if what == "manipulated":
        label = f"read {reading}\nanswer {answering}" + ("" if k == base.n_heads else f"\nk {k}")
    places = [(cell.length, None if cell.depth is None else float(cell.depth)) for cell in cells]
    squares = [Square(float(cell.score), cell.text, _facts(cell) if full else ()) for cell in cells]
    return Map(label, condition_words(condition, base.n_heads), dict(zip(places, squares, strict=True)))


def _facts(cell: Cell) -> tuple[str, ...]:
    span = "not in the prompt"
    if cell.needle_end is not None:
        span = f"tokens {cell.needle_start} to {cell.needle_end - 1}"
    return span, f"{round(cell.seconds, 3):g} s", cell.prompt_hash[:12]
