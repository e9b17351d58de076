"""Tables of plain values: what a result is as rows and columns, shown cut and turned into pandas whole.

A tensor with named axes is a long table, a row a number: its rows are made when they are asked for, so a result of
millions of numbers costs nothing until somebody wants them all.
How it fails: axes, labels and tensors that do not fit raise `InputError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any, overload

from hybridlens.display.markup import Alone, Plain, cell, count, many, noted, shade, titled
from hybridlens.errors import InputError

if TYPE_CHECKING:
    import pandas

MOST_ROWS = 20
"""Rows of a table that are shown."""
MOST_COLUMNS = 12


def array(values: Any) -> Any:
    """Numbers of any kind (a tensor on any device, in any dtype, nested lists) as a NumPy array."""
    import numpy as np

    if hasattr(values, "detach"):
        held = values.detach()
        held = held.float() if held.is_floating_point() and held.element_size() < 4 else held
        return held.cpu().numpy()
    return np.asarray(values)


@dataclass(frozen=True)
class Table(Alone):
    """Rows under columns.

    Attributes:
        columns: their names, no two alike.
        rows: plain values, all of them; a lazy sequence where there are very many.
        meanings: of columns that want it: what they are, their unit, what an axis letter stands for.
        heat: columns whose numbers are coloured by their size.
        title: above it; none where empty.
        note: below it; none where empty.
        most: rows that are shown.

    Raises:
        InputError: two columns have one name, or a row has not one value a column.
    """

    columns: tuple[str, ...]
    rows: Sequence[Sequence[Plain]]
    meanings: Mapping[str, str] = field(default_factory=dict[str, str])
    heat: tuple[str, ...] = ()
    title: str = ""
    note: str = ""
    most: int = MOST_ROWS

    def __post_init__(self) -> None:
        """Refuse what does not fit."""
        if len(set(self.columns)) < len(self.columns):
            raise InputError(f"a table with columns {', '.join(self.columns)} given, expected no two of one name")
        if isinstance(self.rows, TensorRows):
            return
        wrong = next((row for row in self.rows if len(row) != len(self.columns)), None)
        if wrong is not None:
            raise InputError(f"a row of {len(wrong)} values given under {len(self.columns)} columns")

    @classmethod
    def of(
        cls, values: Mapping[str, Any], axes: Mapping[str, Sequence[Plain] | None], meanings: Mapping[str, str] = {}
    ) -> Table:
        """The long table of tensors with the same named axes: a row a place, a column an axis, then the values.

        ``Table.of({"copying": c, "matching": m}, {"layer": layers, "head": None})``: of `c` and `m` [layer, head].

        Args:
            values: name -> tensor, array or nested lists.
            axes: name -> a label for each place along it, or None for 0, 1, 2, ….
            meanings: of columns.

        Raises:
            InputError: shapes, axes and labels do not fit.
        """
        rows = TensorRows(values, axes)
        return cls(rows.columns, rows, meanings)

    @classmethod
    def facts(cls, facts: Mapping[str, Plain]) -> Table:
        """Two columns: what it is, and its value."""
        return cls(("", "value"), tuple(facts.items()))

    def to_pandas(self) -> pandas.DataFrame:
        """All rows as a pandas DataFrame; meanings stand in its `attrs`."""
        import pandas as pd

        if isinstance(self.rows, TensorRows):
            frame = pd.DataFrame(self.rows.by_column())
        else:
            frame = pd.DataFrame.from_records(list(self.rows), columns=list(self.columns))
            for i, name in enumerate(self.columns):  # whole numbers stay whole where some are missing
                kinds = {type(row[i]) for row in self.rows}
                if kinds == {int, type(None)}:
                    frame[name] = pd.array([row[i] for row in self.rows], dtype="Int64")
        frame.attrs["meanings"] = dict(self.meanings)
        return frame

    def html(self) -> str:
        """The first rows and columns, and a line that says what is left out."""
        names = self.columns[:MOST_COLUMNS]
        shown = [tuple(self.rows[i])[:MOST_COLUMNS] for i in range(min(len(self.rows), self.most))]
        right = [all(_is_number(row[i]) or row[i] is None for row in shown) for i in range(len(names))]
        scale = {name: self._largest(shown, i) for i, name in enumerate(names) if name in self.heat}
        side = [' class="hl-r"' if is_right else "" for is_right in right]
        head = "".join(f"<th{side[i]}{_tip(self.meanings, name)}>{escape(name)}</th>" for i, name in enumerate(names))
        body = "".join(
            "<tr>" + "".join(_square(value, right[i], scale.get(names[i])) for i, value in enumerate(row)) + "</tr>"
            for row in shown
        )
        table = f'<div class="hl-w"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        return titled(self.title) + table + noted(self._left_out()) + noted(self._explained(names)) + noted(self.note)

    def _left_out(self) -> str:
        rows, columns = len(self.rows) - self.most, len(self.columns) - MOST_COLUMNS
        parts = [f"{count(rows)} of {many(len(self.rows), 'row')}" if rows > 0 else ""]
        parts.append(f"columns {', '.join(self.columns[MOST_COLUMNS:])}" if columns > 0 else "")
        said = " and ".join(part for part in parts if part)
        return f"{said} left out here; to_pandas() has everything" if said else ""

    def _explained(self, names: Sequence[str]) -> str:
        return "; ".join(f"{name}: {self.meanings[name]}" for name in names if name in self.meanings)

    @staticmethod
    def _largest(rows: Sequence[Sequence[Plain]], column: int) -> float:
        """Of the finite numbers of a column, by magnitude; 1 where there is none."""
        sizes = [abs(float(row[column] or 0)) for row in rows if _is_number(row[column])]
        return max((s for s in sizes if s < float("inf")), default=0.0) or 1.0


class TensorRows(Sequence[tuple[Plain, ...]]):
    """The rows of a long table, made when they are asked for; arguments as in `Table.of`."""

    def __init__(self, values: Mapping[str, Any], axes: Mapping[str, Sequence[Plain] | None]) -> None:
        shapes = {name: tuple(int(n) for n in _shape(value)) for name, value in values.items()}
        if len(set(shapes.values())) != 1:
            raise InputError(f"a table of tensors of shapes {_worded(shapes)} given, expected one or more of one shape")
        self.shape = next(iter(shapes.values()))
        if len(self.shape) != len(axes):
            raise InputError(f"a tensor of shape {self.shape} given for axes {', '.join(axes)}; name each of its axes")
        for size, (name, labels) in zip(self.shape, axes.items(), strict=True):
            if labels is not None and len(labels) != size:
                raise InputError(f"{len(labels)} labels given for axis {name!r} of {size} places")
        self.columns = (*axes, *values)
        self._values = dict(values)
        self._labels = [axes[name] for name in axes]

    @cached_property
    def _flat(self) -> dict[str, Any]:
        return {name: array(value).reshape(-1) for name, value in self._values.items()}

    def __len__(self) -> int:
        n = 1
        for size in self.shape:
            n *= size
        return n

    @overload
    def __getitem__(self, index: int) -> tuple[Plain, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[Plain, ...]]: ...
    def __getitem__(self, index: int | slice) -> tuple[Plain, ...] | list[tuple[Plain, ...]]:
        """One row, or several."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        rest = range(len(self))[index]
        place: list[Plain] = []
        for size, labels in zip(reversed(self.shape), reversed(self._labels), strict=True):
            rest, at = divmod(rest, size)
            place.append(at if labels is None else labels[at])
        return (*reversed(place), *(flat[index].item() for flat in self._flat.values()))

    def by_column(self) -> dict[str, Any]:
        """All rows as arrays, a column each."""
        import numpy as np

        places = np.indices(self.shape).reshape(len(self.shape), -1)
        found: dict[str, Any] = {}
        for at, labels, name in zip(places, self._labels, self.columns, strict=False):
            found[name] = at if labels is None else np.asarray(labels, dtype=_dtype(labels))[at]
        return found | self._flat


def _dtype(labels: Sequence[Plain]) -> type:
    """Of an array of labels: that of numbers where all are numbers of a kind, else objects."""
    kinds = {type(label) for label in labels}
    kind = next(iter(kinds)) if len(kinds) == 1 else object
    return kind if kind in (int, float, bool) else object


def _shape(values: Any) -> Iterable[int]:
    return values.shape if hasattr(values, "shape") else array(values).shape


def _worded(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "none"


def _is_number(value: Plain) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _square(value: Plain, right: bool, largest: float | None) -> str:
    if largest is not None and isinstance(value, (int, float)) and not isinstance(value, bool):
        return f'<td class="hl-r hl-x" {shade(float(value), largest)}>{escape(cell(value))}</td>'
    side = ' class="hl-r"' if right else ""
    whole = f' title="{escape(value[:400])}"' if isinstance(value, str) and len(value) > len(cell(value)) else ""
    return f"<td{side}{whole}>{escape(cell(value))}</td>"


def _tip(meanings: Mapping[str, str], name: str) -> str:
    return f' title="{escape(meanings[name])}"' if name in meanings else ""
