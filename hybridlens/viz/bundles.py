"""The smallest build of plotly.js that draws the figures of a page.

The Python package ships the whole library alone, 4.8 MB in every page. Two of the library's own partial builds stand in
`assets` beside it, unchanged, with their licence: `basic` (1.2 MB) and `cartesian` (1.5 MB), of the version that the
pinned Python package holds. They are the files of the npm packages
`plotly.js-basic-dist-min` and `plotly.js-cartesian-dist-min`, told by their digests.
How it fails: `InputError` for a trace that neither draws.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from markupsafe import Markup

from hybridlens.errors import InputError
from hybridlens.viz.templating import asset

VERSION = "4.1.1"


class Bundle(NamedTuple):
    """A build of plotly.js: its file, the file's digest, and the types of trace that it draws."""

    file: str
    sha256: str
    traces: frozenset[str]


_BASIC = frozenset({"bar", "pie", "scatter"})
_PLANE = {"box", "contour", "heatmap", "histogram", "histogram2d", "histogram2dcontour", "image", "scatterternary"}

BUNDLES = (
    Bundle("plotly-basic.min.js", "99784e3abfb07b142a15e521a439e6d9addceadb3f79553fd24c72774f0649ba", _BASIC),
    Bundle(
        "plotly-cartesian.min.js",
        "79542150855a52c567260e3137095dbe2b744e6d702a5cabe67da246942fba7a",
        _BASIC | _PLANE | {"violin"},
    ),
)
"""Smallest first."""


def bundle_for(figures: Iterable[Mapping[str, Any]]) -> Bundle | None:
    """The smallest build that draws some figures; None where there is no figure.

    Args:
        figures: as Plotly's JSON: "data" is a list of traces, whose "type" is scatter where it is not said.

    Raises:
        InputError: a trace of a type that no build draws.
    """
    shown = list(figures)
    wanted = {str(trace.get("type", "scatter")) for figure in shown for trace in figure["data"]}
    fitting = [bundle for bundle in BUNDLES if wanted <= bundle.traces]
    if not fitting:
        known = BUNDLES[-1].traces
        unknown = min(wanted - known)
        raise InputError(
            f"a figure has a trace of type {unknown!r}, which no page draws; expected one of {', '.join(sorted(known))}"
        )
    return fitting[0] if shown else None


def plotly_bundle(bundle: Bundle) -> Markup:
    """The JavaScript of a build, to stand inside a `<script>` element."""
    return asset(bundle.file)
