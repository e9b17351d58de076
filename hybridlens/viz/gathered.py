"""What a page's code needs of all its blocks, as JSON values, and which code that is.

The templates hand in every figure, pattern and table of answers as they come to it, and get its number on the page.
What a model wrote is kept once for each distinct text, and is written by the page's code as text.
How it fails: `InputError` for a figure that no build of plotly.js draws.
"""

from collections.abc import Sequence
from typing import Any

from hybridlens.viz import bundles, templating
from hybridlens.viz.blocks import Answers, Chart, Explorer, Map, MapGroup
from hybridlens.viz.figures import map_figure
from hybridlens.viz.inks import MAP_COLORS, ink_numbers, inks
from hybridlens.viz.patterns import PatternFigure, props
from hybridlens.viz.words import END, LEFT_OUT, START


class Gathered:
    """Of one page.

    Attributes:
        charts: figures as Plotly's JSON, in the order of the page.
        patterns: properties of circuitsvis, likewise.
        answers: tables of what a model wrote, likewise.
        explorer: the maps to look through; None for none.
    """

    def __init__(self) -> None:
        self.charts: list[dict[str, Any]] = []
        self.patterns: list[dict[str, Any]] = []
        self.answers: list[dict[str, Any]] = []
        self.explorer: dict[str, Any] | None = None
        self._texts: dict[str, int] = {}

    def chart(self, chart: Chart) -> int:
        """The number of a figure."""
        figure = chart.figure.to_plotly_json()
        ink_numbers(figure)
        self.charts.append(figure)
        return len(self.charts) - 1

    def pattern(self, figure: PatternFigure) -> int:
        """The number of a pattern."""
        self.patterns.append(props(figure))
        return len(self.patterns) - 1

    def listed(self, block: Answers) -> int:
        """The number of a table of answers."""
        rows = [[self._text(x) if i in block.texts else x for i, x in enumerate(row)] for row in block.rows]
        self.answers.append({"header": block.header, "texts": block.texts, "rows": rows})
        return len(self.answers) - 1

    def explore(self, block: Explorer) -> str:
        """Keep the maps of a page; they have no number, as a page has one explorer."""
        self.explorer = {
            "sheets": [{"title": title, **self._sheet(groups)} for title, groups in block.sheets.items()],
            "maxScore": block.max_score,
            "facts": block.facts,
            "leftOut": LEFT_OUT,
            "ends": {"0": START, "100": END},
            "figure": map_figure([0], [0], [[None]]).to_plotly_json(),
            "inks": inks(MAP_COLORS),
        }
        return ""

    def data(self) -> dict[str, Any]:
        """What the page's code reads."""
        drawn = {"charts": self.charts, "explorer": self.explorer, "patterns": self.patterns}
        return {"texts": list(self._texts), "answers": self.answers, **drawn}

    def libraries(self) -> list[str]:
        """The code of others that this page draws with, packed: nothing that it has no figure for."""
        figures = [*self.charts, *([self.explorer["figure"]] if self.explorer else [])]
        bundle = bundles.bundle_for(figures)
        plotly = [] if bundle is None else [bundles.plotly_bundle(bundle)]
        needed = [*plotly, *([templating.circuitsvis_bundle()] if self.patterns else [])]
        return [templating.packed(code) for code in needed]

    def _text(self, text: str) -> int:
        """The place of a text among all distinct ones."""
        return self._texts.setdefault(text, len(self._texts))

    def _sheet(self, groups: Sequence[MapGroup]) -> dict[str, Any]:
        """Groups on common axes: for each map points and texts, a row a depth, a column a length."""
        places = {place for group in groups for found in group.maps for place in found.squares}
        lengths = sorted({length for length, _ in places})
        depths: list[float | None] = [*sorted({depth for _, depth in places if depth is not None})]
        if any(depth is None for _, depth in places):
            depths.append(None)
        return {
            "lengths": lengths,
            "depths": [None if depth is None else _short(depth) for depth in depths],
            "groups": [
                {"title": group.title, "note": group.note, "maps": [self._map(m, lengths, depths) for m in group.maps]}
                for group in groups
            ],
        }

    def _map(self, found: Map, lengths: Sequence[int], depths: Sequence[float | None]) -> dict[str, Any]:
        grid = [[found.squares.get((length, depth)) for length in lengths] for depth in depths]
        facts = [[None if s is None else s.facts for s in row] for row in grid]
        return {
            "label": found.label,
            "words": found.words,
            "points": [[None if s is None else _short(s.points) for s in row] for row in grid],
            "texts": [[None if s is None else self._text(s.text) for s in row] for row in grid],
            **({"facts": facts} if any(square.facts for square in found.squares.values()) else {}),
        }


def _short(number: float) -> float | int:
    """A number without a needless ".0"."""
    return int(number) if float(number).is_integer() else number
