"""How results show themselves in a notebook, in one line, and as tables of pandas.

`Displayed` is the mixin of results, `Several` and `Named` are a list and a dict of them. What they show are small
values: a `Table`, a `Grid` of numbers, a `Curve`, coloured `TokenText`, a `Strip` of kinds, `Words`. What the lens and
its parts show are mixins that know their classes by type only. Nothing heavy is imported before it is needed.

Modules:
    markup: text made harmless, numbers in few digits, one style for light and dark
    tables: tables of plain values; a tensor with named axes as a long one
    grids: numbers as coloured squares
    curves: lines
    texts: coloured tokens, strips of kinds, words
    shown: `Displayed`, the mixin of results
    several: lists and dicts of results
    models: what a lens shows
    hooks: what hook points and edits show
    memories: what states and generations show
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
