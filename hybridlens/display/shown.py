"""The mixin by which a result shows itself: one line as its `repr`, a picture in a notebook, a table in pandas.

A frozen dataclass takes it as its first base::

    @dataclass(frozen=True)
    class HeadScores(Displayed, Stored):
        scores: Float[Tensor, "layer head"]
        layers: tuple[int, ...]

        def summary(self) -> str:
            return f"{many(self.scores.numel(), 'head')} in layers {listed(self.layers)}"

        def table(self) -> Table:
            return Table.of({"score": self.scores}, {"layer": self.layers, "head": None})

        def view(self) -> tuple[Piece, ...]:
            names = [f"L{layer}" for layer in self.layers], [f"H{head}" for head in range(self.scores.shape[1])]
            return (Grid(self.scores, *names, "layers", "heads", "copying score, 0 to 1"),)

A NamedTuple takes it through one that holds the fields, and unpacks as before::

    class _Fields(NamedTuple):
        tokens: Tokens
        text: list[str]

    class Generation(Displayed, _Fields):
        __slots__ = ()

What draws with Plotly has `plot` besides; it stands in `hybridlens.viz.plotted.Plotted`, which takes the place of
`Displayed` where hybridlens.viz may be imported (analyses): there `plot()` draws the first picture of the view, and a
class that has a better figure overrides `plot` and returns ``Plot(figure)`` of `hybridlens.viz.plot`.

How it fails: nothing here raises for any size or content; a result without a `table` of its own is one of its fields.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, get_args, get_type_hints, runtime_checkable

from hybridlens.display.markup import Plain, brief, cell, cut, fragment, page
from hybridlens.display.tables import Table

if TYPE_CHECKING:
    import pandas

_LINE = 240
"""Characters of a summary."""


@runtime_checkable
class Piece(Protocol):
    """A part of what a result shows: `Table`, `Grid`, `Curve`, `TokenText`, `Strip`, `Words`."""

    def html(self) -> str:
        """A few kB of HTML, every text in it escaped."""
        ...


class Displayed:
    """A result that shows itself; see the module."""

    __slots__ = ()

    def __init_subclass__(cls, **options: Any) -> None:
        """Keep `dataclass` from giving the class a `repr` of all its fields."""
        super().__init_subclass__(**options)
        if "__repr__" not in cls.__dict__:
            cls.__repr__ = Displayed.__repr__

    # What a class says of itself.

    def summary(self) -> str:
        """What it is and how large, in one line without its class's name."""
        return ", ".join(f"{name} {cell(said)}" for name, said in self.row().items() if said is not None)

    def table(self) -> Table:
        """All of it as rows and columns: what `to_pandas` gives."""
        return Table.facts(self.row())

    def row(self) -> dict[str, Plain]:
        """What it is in a table of several: a value for each column."""
        return facts(self)

    def view(self) -> tuple[Piece, ...]:
        """What a notebook shows below the summary."""
        return (self.table(),)

    # What follows from that.

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {_one_line(self.summary())}>"

    def _repr_html_(self) -> str:
        return fragment(type(self).__name__, _one_line(self.summary()), (piece.html() for piece in self.view()))

    def to_pandas(self) -> pandas.DataFrame:
        """All rows of its table as a pandas DataFrame; what the columns mean is in its ``attrs["meanings"]``."""
        return self.table().to_pandas()

    def to_html(self) -> str:
        """A page of its own, as text: it needs no network, and is light or dark as its reader has it."""
        return page(type(self).__name__, self._repr_html_())


def facts(value: Any) -> dict[str, Plain]:
    """The fields of a dataclass or NamedTuple: plain values as they are, all others in a few words.

    The axes of a tensor have the names that its annotation gives them.
    """
    names = [f.name for f in fields(value)] if is_dataclass(value) else list(getattr(value, "_fields", ()))
    axes = _axes(type(value))
    return {name: _fact(getattr(value, name), axes.get(name, ())) for name in names}


def _fact(value: Any, axes: tuple[str, ...]) -> Plain:
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    shape = tuple(getattr(value, "shape", ()))
    if not shape or len(shape) != len(axes):
        return brief(value)
    named = ", ".join(f"{name} {size}" for name, size in zip(axes, shape, strict=True))
    return f"{str(value.dtype).removeprefix('torch.')} [{named}]"


@cache
def _axes(kind: type) -> dict[str, tuple[str, ...]]:
    """The names of the axes of each field that jaxtyping annotates with plain names; {} where none can be read."""
    try:
        hints = get_type_hints(kind)
    except NameError:  # a name that is there for the type checker alone
        return {}
    found: dict[str, tuple[str, ...]] = {}
    for name, hint in hints.items():
        said = next((h.dim_str for h in (hint, *get_args(hint)) if hasattr(h, "dim_str")), "")
        if said and all(part.isidentifier() for part in said.split()):
            found[name] = tuple(said.split())
    return found


def _one_line(text: str) -> str:
    return cut(" ".join(text.split()), _LINE)
