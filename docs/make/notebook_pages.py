"""Notebooks, executed once and made into pages of the site.

    python docs/make/notebook_pages.py            # executes all of them anew, and writes their pages
    python docs/make/notebook_pages.py --missing  # only those without a page, or with one older than their source

The reviewed sources are percent-format files, `notebooks/NAME.py`; they are converted and run from top to bottom, and
leave `build/notebooks/NAME.ipynb`, which keeps what was shown, and `NAME.md`. Prose stands there as it is, so that it
can be searched; code and printed text are fenced; what a result shows of itself is its HTML, between two marks, with
the figures' code in it once a page. What goes to standard error (bars of progress) is left out. mkdocs takes the pages
as `pages` gives them, with `index` before them, which lists every notebook and leads to those that were executed.

How it fails: a notebook in which a cell raises is named by pytest, no page is written for it, and the exit status is
not 0.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jupytext

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "notebooks"
FOLDER = ROOT / "build" / "notebooks"
BEGIN, END = '<div class="notebook-output">\n', "\n</div>\n<!-- end of output -->"
"""Around what a result shows of itself."""
OUTPUT = re.compile(f"{re.escape(BEGIN)}(.*?){re.escape(END)}", re.DOTALL)
SECONDS = 300
"""In which a cell has to be done."""


def page_of(notebook: Mapping[str, Any]) -> str:
    """A notebook as Markdown with HTML in it.

    Args:
        notebook: its JSON.

    Raises:
        ValueError: a cell was not run, or raised.
    """
    parts: list[str] = []
    for cell in notebook["cells"]:
        source = _text(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code" and source.strip():
            if cell.get("execution_count") is None:
                raise ValueError(f"a cell was not run: {source.splitlines()[0]}")
            parts += [_fenced(source, "python"), *_outputs(cell["outputs"])]
    return "\n\n".join(parts) + "\n"


def _outputs(outputs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    said = "".join(_text(out["text"]) for out in outputs if out["output_type"] == "stream" and out["name"] == "stdout")
    if said.strip():
        yield _fenced(said.rstrip(), "text")
    for out in outputs:
        if out["output_type"] == "error":
            raise ValueError(f"a cell raised {out['ename']}: {out['evalue']}")
        data = out.get("data", {})
        if "text/html" in data:
            yield f"{BEGIN}{_text(data['text/html'])}{END}"
        elif "text/plain" in data:
            yield _fenced(_text(data["text/plain"]), "text")


def _text(source: str | Sequence[str]) -> str:
    """A text of a notebook, which may be a list of lines."""
    return source if isinstance(source, str) else "".join(source)


def _fenced(text: str, language: str) -> str:
    """A block of code; the fence is longer than any in it."""
    ticks = "```"
    while ticks in text:
        ticks += "`"
    return f"{ticks}{language}\n{text}\n{ticks}"


class Notebook(NamedTuple):
    """A notebook's name, its title and the first two sentences below it."""

    name: str
    title: str
    about: str


def notebooks() -> list[Notebook]:
    """All of them, in order, from their sources' first cells."""
    found: list[Notebook] = []
    for source in sorted(SOURCES.glob("*.py")):
        title, _, text = jupytext.read(source).cells[0].source.partition("\n")
        words = " ".join(text.strip().split("\n\n")[0].split())
        about = " ".join(re.split(r"(?<=[.?!]) (?=[A-Z])", words)[:2])
        found.append(Notebook(source.stem, title.removeprefix("# "), about))
    return found


def index() -> str:
    """The page that lists them; those that were executed are links."""
    rows: list[str] = []
    for one in notebooks():
        there = (FOLDER / f"{one.name}.md").is_file()
        rows.append(f"* {f'[{one.title}]({one.name}.md)' if there else f'**{one.title}**'}: {one.about}")
    words = (
        "Each runs offline in under two minutes on two cores, and its first cell installs the package where it is "
        "missing. The sources are in `notebooks/`; `make notebooks` executes all of them, `make docs` those without a "
        "page here."
    )
    return "\n".join(["# Notebooks", "", words, "", *rows, ""])


def pages() -> dict[str, str]:
    """The site's pages by their names: the index, and those of notebooks that were executed."""
    made = {f"notebooks/{path.name}": path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.md"))}
    return {"notebooks/index.md": index(), **made}


def set_aside(text: str) -> tuple[str, list[str]]:
    """A page's text with a mark in the place of each output, and these outputs: they are HTML, and no Markdown."""
    outputs: list[str] = []

    def mark(found: re.Match[str]) -> str:
        outputs.append(found[0])
        return f'<div data-output="{len(outputs) - 1}"></div>'

    return OUTPUT.sub(mark, text), outputs


def put_back(html: str, outputs: Sequence[str]) -> str:
    """A page's HTML with its outputs where `set_aside` left their marks."""
    return re.sub(r'<div data-output="(\d+)"></div>', lambda found: outputs[int(found[1])], html)


def execute(sources: Sequence[Path]) -> int:
    """Convert notebooks, run them side by side and write their pages; returns the exit status."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    targets = [FOLDER / f"{source.stem}.ipynb" for source in sources]
    for source, target in zip(sources, targets, strict=True):
        target.with_suffix(".md").unlink(missing_ok=True)
        jupytext.write(jupytext.read(source), target)
    run = ["-q", "--numprocesses", "auto", "--nbmake", "--overwrite", f"--nbmake-timeout={SECONDS}"]
    status = subprocess.run(
        [sys.executable, "-m", "pytest", *run, *map(str, targets)], cwd=ROOT, check=False
    ).returncode
    for target in targets:
        try:
            page = page_of(json.loads(target.read_text(encoding="utf-8")))
        except ValueError as error:
            print(f"{target.name}: {error}", file=sys.stderr)
            status = status or 1
        else:
            target.with_suffix(".md").write_text(page, encoding="utf-8")
    return status


def missing() -> list[Path]:
    """Sources without a page, or with one that is older."""
    found: list[Path] = []
    for source in sorted(SOURCES.glob("*.py")):
        page = FOLDER / f"{source.stem}.md"
        if not page.is_file() or page.stat().st_mtime < source.stat().st_mtime:
            found.append(source)
    return found


def main(options: Sequence[str]) -> int:
    """Execute all, or what is missing; returns the exit status."""
    if "--missing" in options:
        wanted = missing()
    else:
        wanted = sorted(SOURCES.glob("*.py"))
        for old in [*FOLDER.glob("*.ipynb"), *FOLDER.glob("*.md")]:
            old.unlink()
    return execute(wanted) if wanted else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
