"""Executed notebooks as pages for a site: `build/notebooks/NAME.ipynb`, as `make notebooks` leaves them, to `NAME.md`.

Prose stands as it is, so that it can be searched; code and printed text are fenced; what a result shows of itself is
its HTML, in a block of its own, with the figures' code in it once a page. What goes to standard error (bars of
progress) is left out.

How it fails: a notebook that was not run, or in which a cell raised, is named, and no page is written for it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path("build", "notebooks")


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
            yield f'<div class="notebook-output">\n{_text(data["text/html"])}\n</div>'
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


def main() -> int:
    """Write the pages; returns the exit status."""
    wrong = 0
    for path in sorted(FOLDER.glob("*.ipynb")):
        try:
            page = page_of(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            print(f"{path}: {error}", file=sys.stderr)
            wrong += 1
        else:
            target = path.with_suffix(".md")
            target.write_text(page, encoding="utf-8")
            print(f"{target}: {len(page) / 1e6:.1f} MB")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
