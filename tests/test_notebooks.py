"""Notebooks before they run, which `make notebooks` does: what the first cell is, and that none is passed over."""

from importlib.util import find_spec
from pathlib import Path

import jupytext
import pytest

SOURCES = sorted((Path(__file__).parent.parent / "notebooks").glob("*.py"))

INSTALLS = """from importlib.util import find_spec

if find_spec("hybridlens") is None:  # where it is not installed, as in Colab
    %pip install --quiet hybridlens
    print("hybridlens was installed")"""


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_the_first_cell_installs_what_is_missing_and_nothing_that_is_there(source: Path) -> None:
    """In the notebook a magic, in the source a comment, there and back; and here nothing is fetched."""
    notebook = jupytext.read(source)
    title, first, *rest = notebook.cells
    assert title.cell_type == "markdown"
    assert title.source.startswith("# ")
    assert first.source == INSTALLS
    assert not any("%pip" in cell.source for cell in rest)
    back = jupytext.reads(jupytext.writes(notebook, fmt="py:percent"), fmt="py:percent")
    assert [cell.source for cell in back.cells] == [cell.source for cell in notebook.cells]
    assert find_spec("hybridlens") is not None


def test_every_notebook_is_looked_at() -> None:
    assert len(SOURCES) >= 10
    assert [source.name[:2] for source in SOURCES] == [f"{number:02}" for number in range(1, len(SOURCES) + 1)]
