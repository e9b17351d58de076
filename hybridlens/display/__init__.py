"""How results show themselves in a notebook, in one line, and as tables of pandas.

`Displayed` (`shown`) is the mixin of results, `Several` and `Named` (`several`) are a list and a dict of them. What
they show are small values: a `Table` (`tables`), a `Grid` of numbers (`grids`), a `Curve` (`curves`), coloured
`TokenText`, a `Strip` of kinds, `Words` (`texts`). `markup` has the style and the words for numbers. What the lens and
its parts show stands in `models`, `hooks` and `memories`: mixins that know their classes by type only.
Nothing heavy is imported before it is needed.
"""

from hybridlens.display.curves import Curve
from hybridlens.display.grids import Grid
from hybridlens.display.markup import brief, count, every, listed, many, number, size, visible
from hybridlens.display.several import Named, Several
from hybridlens.display.shown import Displayed, Piece
from hybridlens.display.tables import Table
from hybridlens.display.texts import Strip, TokenText, Words

__all__ = [
    "Curve",
    "Displayed",
    "Grid",
    "Named",
    "Piece",
    "Several",
    "Strip",
    "Table",
    "TokenText",
    "Words",
    "brief",
    "count",
    "every",
    "listed",
    "many",
    "number",
    "size",
    "visible",
]
