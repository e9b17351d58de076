"""Plotly figures for notebooks: `Plot`, a figure that shows itself.

Plotly's own way of showing a figure leaves nothing of it in a notebook that is exported with the network off. A `Plot`
is a figure in all else, and its output holds what it needs (`embedding`).
How it fails: a figure with a trace that the builds of this package do not draw is shown in Plotly's own way.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import plotly.graph_objects as go

from hybridlens.display.markup import many
from hybridlens.viz.inks import ink_numbers

_HEIGHT = 420
"""Pixels of a figure that is no heatmap and does not say its own."""
_LEAST, _MOST = 240, 900
"""Of a heatmap."""
_AROUND, _ROW, _UPRIGHT = 110, 18, 90
"""Of what stands around its squares, of a row, and of names that stand upright below."""


class Plot(go.Figure):
    """A Plotly figure that a notebook shows, and what is exported from it."""

    _ipython_display_: Any = None  # Plotly's own comes before all else

    def __repr__(self) -> str:
        kinds = ", ".join(sorted(self._kinds()))
        return f"<Plot: {many(len(self._traces()), 'trace')}{f' ({kinds})' if kinds else ''}>"

    def _repr_html_(self) -> str:
        from hybridlens.viz.embedding import PLOTLY, Html

        made = cast(dict[str, Any], json.loads(cast(str, self.to_json())))
        ink_numbers(made)
        for trace in made["data"]:
            if "z" in trace:
                trace["z"] = _colours(trace["z"])
        layout = cast(Mapping[str, Any], made.get("layout", {}))
        height = int(layout.get("height") or self._height())
        return Html(PLOTLY, {"data": made["data"], "layout": layout}, "A Plotly figure.", height=height).shown()

    def _repr_mimebundle_(self, *args: Any, **options: Any) -> dict[str, Any]:
        from hybridlens.viz.bundles import BUNDLES

        if self._kinds() <= BUNDLES[-1].traces:
            return {"text/html": self._repr_html_(), "text/plain": repr(self)}
        return cast(dict[str, Any], super()._repr_mimebundle_(*args, **options))

    def _traces(self) -> tuple[Any, ...]:
        return tuple(cast(Any, self).data)

    def _height(self) -> int:
        """Pixels of a figure that does not say its own: a heatmap has room for the name of every row."""
        names = [trace.y for trace in self._traces() if trace.type == "heatmap" and trace.y is not None]
        rows = max(map(len, names), default=0)
        upright = cast(Any, self).layout.xaxis.tickangle == -90
        return min(max(_LEAST, _AROUND + _ROW * rows + (_UPRIGHT if upright else 0)), _MOST) if rows else _HEIGHT

    def _kinds(self) -> set[str]:
        return {str(trace.type) for trace in self._traces()}


def _colours(values: Any) -> Any:
    """Numbers that are shown as colours, as JSON has them: in five digits, or as 32 bits each where they were 64."""
    match values:
        case list():
            return [_colours(value) for value in cast(list[Any], values)]
        case float():
            return float(f"{values:.5g}")
        case {"dtype": "f8", "bdata": str(data), **rest}:
            short = np.frombuffer(b64decode(data), "<f8").astype("<f4")
            return {"dtype": "f4", "bdata": b64encode(short.tobytes()).decode(), **rest}
        case _:
            return values
