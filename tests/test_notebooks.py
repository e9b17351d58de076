"""Notebooks before they run, which `make notebooks` does: what the first cell is, and that none is passed over."""

import json
import os
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jupytext
import notebook_pages
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
    page_of = notebook_pages.page_of
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
        '<div class="notebook-output">\n<p>a\n</p>\n</div>\n<!-- end of output -->\n\n'
        "```python\ny\n```\n\n````text\n```\n````\n"
    )
    with pytest.raises(ValueError, match="a cell was not run: x = 1"):
        page_of({"cells": [a_cell("code", "x = 1\nx", count=None)]})
    with pytest.raises(ValueError, match="a cell raised KeyError: 'a'"):
        page_of({"cells": [a_cell("code", "x", {"output_type": "error", "ename": "KeyError", "evalue": "'a'"})]})


def test_what_a_result_shows_is_no_markdown() -> None:
    """Set aside while the page is made into HTML: lists, comments and tags inside it stay as they are."""
    shown = "<div>\n</div>\n\n* no list <!-- kept -->\n<script>if (a < b && c) {}</script>"
    cells = [
        a_cell("code", name, {"output_type": "display_data", "data": {"text/html": shown + name}}) for name in "xy"
    ]
    page = notebook_pages.page_of({"cells": [a_cell("markdown", "# T"), *cells]})
    marked, outputs = notebook_pages.set_aside(page)
    assert "no list" not in marked
    assert len(outputs) == 2
    assert notebook_pages.put_back(marked, outputs) == page


def test_only_what_is_missing_or_older_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `make notebooks` left is not executed again by `make docs`."""
    sources, folder, executed = tmp_path / "sources", tmp_path / "made", list[list[str]]()
    monkeypatch.setattr(notebook_pages, "SOURCES", sources)
    monkeypatch.setattr(notebook_pages, "FOLDER", folder)
    monkeypatch.setattr(notebook_pages, "execute", lambda wanted: executed.append([path.name for path in wanted]) or 0)
    sources.mkdir()
    folder.mkdir()
    for place, name in enumerate(("fresh", "none", "older")):
        (sources / f"{name}.py").write_text("# %% [markdown]\n# # T\n#\n# Words.\n")
        os.utime(sources / f"{name}.py", (100, 100))
        if name != "none":
            (folder / f"{name}.md").write_text("# T\n")
            os.utime(folder / f"{name}.md", (100 + 50 * (1 - place), 100 + 50 * (1 - place)))
    assert notebook_pages.main(["--missing"]) == 0
    assert executed == [["none.py", "older.py"]]
    assert "[T](fresh.md): Words." in notebook_pages.index()
    assert "**T**: Words." in notebook_pages.index()
    assert set(notebook_pages.pages()) == {"notebooks/index.md", "notebooks/fresh.md", "notebooks/older.md"}
    assert notebook_pages.main([]) == 0
    assert executed[-1] == ["fresh.py", "none.py", "older.py"]
    assert list(folder.iterdir()) == [], "nothing old is taken for what was executed"
    monkeypatch.setattr(notebook_pages, "execute", pytest.fail)
    for source in sources.iterdir():
        (folder / f"{source.stem}.md").write_text("# T\n")
    assert notebook_pages.main(["--missing"]) == 0


def test_a_notebook_is_executed_into_a_page_and_one_that_fails_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run itself is stood in for; `make notebooks` is the real one."""
    monkeypatch.setattr(notebook_pages, "FOLDER", tmp_path / "made")

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        for path in map(Path, command[-2:]):
            held = json.loads(path.read_text())
            for cell in held["cells"]:
                cell |= (
                    {"execution_count": 1, "outputs": []} if cell["cell_type"] == "code" and path.stem == "a" else {}
                )
            path.write_text(json.dumps(held))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(notebook_pages.subprocess, "run", run)
    sources = [tmp_path / "a.py", tmp_path / "b.py"]
    for source in sources:
        source.write_text("# %% [markdown]\n# # T\n\n# %%\nx = 1\n")
    assert notebook_pages.execute(sources) == 1, "b was not run"
    assert (tmp_path / "made" / "a.md").read_text() == "# T\n\n```python\nx = 1\n```\n"
    assert not (tmp_path / "made" / "b.md").exists()
