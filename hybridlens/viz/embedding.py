"""Figures in a notebook: each has its data and a few kB of code, and one of them the library that all are drawn with.

circuitsvis and Plotly have more than a megabyte each. The first figure of a notebook that needs one holds it, and the
others find it on the page: in a running notebook, and in one that was exported with the network off. Which cell holds
it is known by what the frontend says of a cell, so that running that cell again, or deleting it, does not lose the
library. Where an output that holds it was cleared all the same, the others are drawn plainly, and say so.

How it fails: outside a notebook's kernel nothing is known of cells, and every figure holds its library; so it does in
Colab, whose outputs do not see each other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import uuid4

from markupsafe import Markup

from hybridlens.display.markup import page
from hybridlens.viz.templating import POLICY, circuitsvis_bundle, render


class Cell(NamedTuple):
    """One run of a notebook's cell."""

    run: str
    """Of the message that ran it."""
    name: str
    """The cell's own, the same when it runs again; empty where cells never run twice."""
    deleted: frozenset[str]
    """Names of cells that the notebook no longer has."""


class Library(NamedTuple):
    """Code that figures are drawn with."""

    name: str
    exports: tuple[str, ...]
    """What it is on the page."""
    code: Callable[[], Markup]


def _plotly() -> Markup:
    from hybridlens.viz.bundles import BUNDLES, plotly_bundle

    return plotly_bundle(BUNDLES[-1])


CIRCUITSVIS = Library("circuitsvis", ("CircuitsVis", "HybridlensPattern"), circuitsvis_bundle)
PLOTLY = Library("plotly", (), _plotly)
"""The largest of the builds, since nobody knows what a notebook will draw."""

_HELD: dict[str, Cell] = {}
"""Library -> the cell whose output holds it."""


@dataclass(frozen=True)
class Html:
    """A figure that a notebook displays.

    Attributes:
        library: what draws it.
        data: what it draws it of, as JSON has it.
        words: what it shows, for those who cannot see it.
        name: id of its HTML element; one of its own where empty.
        height: pixels; None for as much as it needs.
    """

    library: Library
    data: Mapping[str, Any]
    words: str
    name: str = ""
    height: int | None = None

    @property
    def text(self) -> str:
        """Its HTML with the library in it, which stands anywhere."""
        return self._html(True)

    def to_html(self) -> str:
        """A page of its own, as text; it needs no network."""
        return page(self.words, self.text, POLICY)

    def shown(self) -> str:
        """Its HTML in the output of the cell that runs now: with the library where no other output holds it."""
        return self._html(holds(self.library.name, cell()))

    def _repr_html_(self) -> str:
        return self.shown()

    def __repr__(self) -> str:
        return f"<{self.words}>"

    def _html(self, with_library: bool) -> str:
        return render(
            "figure.html",
            name=self.name or f"hybridlens-{uuid4().hex[:12]}",
            kind=self.library.name,
            library=self.library.code() if with_library else None,
            exports=self.library.exports,
            data=dict(self.data),
            words=self.words,
            height=self.height,
        )


def holds(library: str, now: Cell | None) -> bool:
    """Whether an output of the cell that runs now is to hold a library; it is known to from then on.

    Args:
        library: its name.
        now: None outside a notebook.
    """
    if now is None:
        return True
    held = _HELD.get(library)
    if held is not None and held.name not in now.deleted and (held.run == now.run or held.name != now.name):
        return False
    if held is not None and held.run != now.run and not now.name:
        return False
    _HELD[library] = now
    return True


def cell() -> Cell | None:
    """The cell that runs now; None outside a notebook's kernel, and where outputs do not see each other.

    A frontend that does not name its cells has them told apart by their code; what runs a whole notebook once, without
    anybody to ask, runs no cell twice.
    """
    kernel = getattr(sys.modules["IPython"].get_ipython(), "kernel", None) if "IPython" in sys.modules else None
    parent: Any = kernel.get_parent("shell") if kernel is not None and hasattr(kernel, "get_parent") else None
    if not parent or "google.colab" in sys.modules:
        return None
    about, content = parent.get("metadata", {}), parent.get("content", {})
    watched = content.get("allow_stdin", True)
    name = about.get("cellId") or (content.get("code", "") if watched else "")
    return Cell(parent["header"]["msg_id"], name, frozenset(about.get("deletedCells") or ()))
