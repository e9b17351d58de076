"""How results show themselves in a notebook, in one line, and as tables of pandas.

`Displayed` (`shown`) is the mixin of results. What they show are small values: a `Table` (`tables`), a `Grid` of numbers
(`grids`), a `Curve` (`curves`), coloured `TokenText`, a `Strip` of kinds, `Words` (`texts`). `markup` has the style and
the words for numbers. Nothing here knows a model, and nothing heavy is imported before it is needed.
"""

from hybridlens.display.curves import Curve
from hybridlens.display.grids import Grid
from hybridlens.display.markup import brief, count, listed, many, number, size, visible
from hybridlens.display.shown import Displayed, Piece
from hybridlens.display.tables import Table
from hybridlens.display.texts import Strip, TokenText, Words

__all__ = [
    "Curve",
    "Displayed",
    "Grid",
    "Piece",
    "Strip",
    "Table",
    "TokenText",
    "Words",
    "brief",
    "count",
    "listed",
    "many",
    "number",
    "size",
    "visible",
]
