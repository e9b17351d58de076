"""The mixin of results that draw themselves with Plotly, for what may import hybridlens.viz: the results of analyses.

It is `hybridlens.display.Displayed` with `plot`. A class without a figure of its own gets the first `Grid` or `Curve`
of its view; one that has a better one overrides `plot` with ``return Plot(figure)`` (`hybridlens.viz.plot`, imported
inside), so that the figure is seen in every notebook and in what is exported from it.
How it fails: `InputError` where the view has nothing to draw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybridlens.display import Displayed

if TYPE_CHECKING:
    from hybridlens.viz.plot import Plot


class Plotted(Displayed):
    """A result that shows itself, and draws itself as well."""

    __slots__ = ()

    def plot(self) -> Plot:
        """Its picture as a Plotly figure, which can be changed as any, and which an exported notebook keeps.

        Raises:
            InputError: it has no picture.
        """
        from hybridlens.viz.plot import drawn

        return drawn(self)
