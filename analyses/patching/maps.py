"""Maps of sweeps: effects by layer and head, or by layer and position with the tokens on the axis.

Maps by position show the positions that matter (`shown_positions`), and `left_out` says how many others there are and
how little happens there. How it fails: pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.patching.effects import KINDS, Patched, effect, number
from analyses.patching.results import Axis, PatchResult
from analyses.patching.sweeps import SWEEPS
from hybridlens.display import many
from hybridlens.viz.blocks import Block, Chart, ChartGrid, Section, Words
from hybridlens.viz.heads import SIGNED_COLORS, heatmap_height, heatmap_width, pair_heatmap, short
from hybridlens.viz.positions import literal, position_heatmap, position_height, position_width

GROUPS = (
    ("", "residual", "Residual stream, mixers and MLPs"),
    ("attn", "attention", "Attention"),
    ("ssm", "recurrent", "Recurrent layers"),
    ("mlp", "experts", "Experts"),
)
"""Module of a layer whose points are swept, name and title of the section."""

MOVES = 0.02
"""Positions at which some patch moves more than this share are shown."""

MOST_POSITIONS = 64
MOST_ROWS = 24
_WRITTEN = 16
"""Columns up to which squares have their numbers."""

_LAST = 4
"""Positions at the prompt's end that are always shown."""

_WEAK = 0.25
"""Maps whose strongest square is weaker than this have a finer scale, down to `_FINEST`."""

_FINEST = 0.1


def maps(found: Patched) -> list[Section]:
    """A map of each sweep, in groups."""
    columns = shown_positions(found)
    made: list[Section] = []
    said = False
    for prefix, name, title in GROUPS:
        names = [n for n in found.exact if SWEEPS[n].point.rpartition(".")[0] == prefix]
        small = [_flat_map(n, found.exact[n]) for n in names if not _by_position(found.exact[n])]
        wide = [n for n in names if _by_position(found.exact[n])]
        blocks: list[Block] = []
        if wide and not said:
            finer = f" Maps whose strongest square is under {_WEAK:g} have a finer scale: see the bar beside them."
            blocks.append(Words(left_out(found, columns) + finer))
            said = True
        if small:
            blocks.append(ChartGrid(tuple(small)))
        blocks += [_position_map(n, found.exact[n], columns, found.pair.clean_prompt.needle_span) for n in wide]
        if blocks:
            made.append(Section(name, title, tuple(blocks)))
    return made


def shown_positions(found: Patched) -> list[int]:
    """The positions that maps show: the needle, where the prompts differ, the end, and where a patch does a little."""
    length, most = len(found.measure.clean), _strengths(found)
    always = {*range(max(0, length - _LAST), length), *range(*(found.pair.clean_prompt.needle_span or (0, 0)))}
    wanted = always | {d.position for d in found.pair.differences} | set((most > MOVES).nonzero()[:, 0].tolist())
    ranked = sorted(wanted, key=lambda p: (p not in always, -float(most[p])))
    return sorted(ranked[:MOST_POSITIONS])


def _strengths(found: Patched) -> Float[Tensor, "pos"]:
    """The largest effect of either sign at each position."""
    swept = [(effect(result).abs(), result.axis("pos")) for result in found.exact.values() if _by_position(result)]
    none = torch.zeros(len(found.measure.clean), dtype=torch.float64)
    return torch.stack([none, *(sizes.movedim(at, 0).flatten(1).amax(dim=1) for sizes, at in swept)]).amax(dim=0)


def left_out(found: Patched, columns: Sequence[int]) -> str:
    """How many positions maps do not show, and the most that happens there."""
    length = len(found.measure.clean)
    tokens = "with its token, or those of the clean | the corrupt prompt where they differ"
    if len(columns) == length:
        return f"Maps by position show every position, {tokens}."
    rest = torch.tensor([i for i in range(length) if i not in set(columns)])
    most = float(_strengths(found)[rest].max())
    return (
        f"Maps by position show {len(columns)} of {many(length, 'position')}, each {tokens}: the needle, the end, and "
        f"wherever a patch moves more than {MOVES:g}. At the other {len(rest)} no patch moves more than "
        f"{number(most) if most >= 0.005 else '0.005'}."
    )


def _position_map(name: str, result: PatchResult, columns: Sequence[int], needle: tuple[int, int] | None) -> Chart:
    at = result.axis("pos")
    others = [axis for axis in result.axes if axis.name != "pos"]
    rows = [" ".join(words) for words in product(*map(_names, others))]
    flat = effect(result).movedim(at, -1)[..., list(columns)].reshape(len(rows), -1)
    best = flat.abs().amax(dim=1).argsort(descending=True, stable=True)[:MOST_ROWS].sort().values
    note = "" if len(rows) <= MOST_ROWS else f", the {MOST_ROWS} strongest of {many(len(rows), 'row')}"
    labels = [result.axes[at].labels[i] for i in columns]
    start, stop = needle or (0, 0)
    marked = [i for i, position in enumerate(columns) if start <= position < stop]
    shown, kept = flat[best], [rows[i] for i in best.tolist()]
    y_title = "layer" if len(others) == 1 else ""
    figure = position_heatmap(shown.tolist(), kept, labels, y_title, "effect", _limit(shown), marked)
    title, height = f"{_title(name)}{note}", position_height(len(kept))
    return Chart(figure, f"{title}: effect by layer and position", title, height, position_width(len(columns)))


def _flat_map(name: str, result: PatchResult) -> Chart:
    """Layers down, heads or experts across."""
    values = effect(result)
    rows, columns = ([literal(label) for label in _names(axis)] for axis in result.axes)
    figure = pair_heatmap(values.tolist(), rows, columns, ("layer", ""), "effect")
    most = _limit(values)
    figure.update_traces(zmin=-most, zmax=most, colorscale=[list(stop) for stop in SIGNED_COLORS])
    if len(columns) <= _WRITTEN:
        figure.update_traces(text=[[short(value) for value in row] for row in values.tolist()])
    title, across = _title(name), result.axes[1].name
    size = heatmap_height(len(rows)) + 20, heatmap_width(len(columns))
    return Chart(figure, f"{title}: effect by layer and {across}", title, *size)


def _names(axis: Axis) -> list[str]:
    """What the entries of an axis are called."""
    return [KINDS.get(axis.name, "{}").format(label) for label in axis.labels]


def _limit(values: Tensor) -> float:
    """The end of a map's scale: at least 1, or finer where all squares are weak."""
    most = float(values.abs().max())
    return max(most, 1.0 if most >= _WEAK else _FINEST)


def _title(name: str) -> str:
    words = SWEEPS[name].words
    return f"{words[0].upper()}{words[1:]} ({name})"


def _by_position(result: PatchResult) -> bool:
    return any(axis.name == "pos" for axis in result.axes)
