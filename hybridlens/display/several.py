"""Lists and dicts of results that show themselves as a table, and are lists and dicts in all else.

How it fails: not at all; things without fields have their one line in the table.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self, SupportsIndex, TypeVar, overload

from hybridlens.display.markup import Plain, cut, listed, many
from hybridlens.display.shown import Displayed, facts
from hybridlens.display.tables import Table

T = TypeVar("T")


class Several(Displayed, list[T]):
    """A list of things of one kind; a slice of it is one too."""

    def summary(self) -> str:
        """How many, of what."""
        kinds = sorted({type(item).__name__ for item in self})
        return many(len(self), "item") + (f": {', '.join(kinds)}" if kinds else "")

    def table(self) -> Table:
        """A row for each."""
        return table_of([row_of(item) for item in self])

    @overload
    def __getitem__(self, index: SupportsIndex) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: SupportsIndex | slice) -> T | Self:
        """One of them, or several."""
        if isinstance(index, slice):
            return type(self)(super().__getitem__(index))
        return super().__getitem__(index)


class Named(Displayed, dict[str, T]):
    """A dict of things of one kind by name."""

    def summary(self) -> str:
        """How many, and the first names."""
        return f"{many(len(self), 'entry', 'entries')}: {listed(self, 6)}"

    def table(self) -> Table:
        """A row for each, its name first where the row does not say it."""
        rows = [(name, row_of(value)) for name, value in self.items()]
        return table_of([row if name in row.values() else {"name": name, **row} for name, row in rows])


def row_of(item: Any) -> dict[str, Plain]:
    """One thing as a row: what it says itself, its fields, or its one line."""
    if isinstance(item, Displayed):
        return item.row()
    return facts(item) or {"value": item if isinstance(item, (str, int, float)) else cut(repr(item), 200)}


def table_of(rows: Iterable[dict[str, Plain]]) -> Table:
    """Rows as a table; a row that lacks a column has nothing there."""
    every = list(rows)
    columns = list(dict.fromkeys(name for row in every for name in row))
    return Table(tuple(columns), [tuple(row.get(name) for name in columns) for row in every])
