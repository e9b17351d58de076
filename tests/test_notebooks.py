"""Notebooks before they run, which `make notebooks` does: what the first cell is, and that none is passed over."""

import runpy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jupytext
import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "notebooks").glob("*.py"))

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


def a_cell(kind: str, source: str, *outputs: dict[str, Any], count: int | None = 1) -> dict[str, Any]:
    """A cell as a notebook's JSON has it."""
    return {"cell_type": kind, "source": source.splitlines(True), "outputs": list(outputs), "execution_count": count}


def test_a_page_has_the_prose_the_code_and_what_was_shown() -> None:
    """Prose as it stands, text fenced, a result as its HTML; progress on standard error is no part of it."""
    page_of = runpy.run_path(str(ROOT / ".ci" / "notebook_pages.py"))["page_of"]
    printed = [{"output_type": "stream", "name": name, "text": [f"{name} said\n"]} for name in ("stdout", "stderr")]
    shown = {"output_type": "execute_result", "data": {"text/html": ["<p>a\n", "</p>"], "text/plain": ["<A>"]}}
    plain = {"output_type": "execute_result", "data": {"text/plain": ["```"]}}
    cells = [
        a_cell("markdown", "# Title\n\nWords."),
        a_cell("code", "x = 1\nx", *printed, shown),
        a_cell("code", "y", plain),
    ]
    assert page_of({"cells": cells}) == (
        "# Title\n\nWords.\n\n```python\nx = 1\nx\n```\n\n```text\nstdout said\n```\n\n"
        '<div class="notebook-output">\n<p>a\n</p>\n</div>\n\n```python\ny\n```\n\n````text\n```\n````\n'
    )
    with pytest.raises(ValueError, match="a cell was not run: x = 1"):
        page_of({"cells": [a_cell("code", "x = 1\nx", count=None)]})
    with pytest.raises(ValueError, match="a cell raised KeyError: 'a'"):
        page_of({"cells": [a_cell("code", "x", {"output_type": "error", "ename": "KeyError", "evalue": "'a'"})]})
