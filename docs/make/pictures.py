"""The pictures of docs/analyses, each drawn from the example that it stands below.

    PYTHONPATH=. .venv/bin/python docs/make/pictures.py            # all of them
    PYTHONPATH=. .venv/bin/python docs/make/pictures.py NAME …     # some: figures/NAME.svg

Behind a picture stands, in a comment that no reader sees, how it is made: `<!-- picture: CODE -->`. The code runs in
what the section's last example left, and its last line is a Plotly figure. A headless Chromium, which has to be
installed, turns it into SVG with Plotly's own code; it is asked for nothing of a network. Pictures are committed: the
site and the tests draw none. A picture's title is its words up to a colon.

How it fails: a section with a picture and no example, or a picture without code, raises `ValueError`; so does a figure
that Chromium gives no SVG of.
"""

from __future__ import annotations

import ast
import base64
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from tests.page_examples import ROOT, Block, blocks, run

PAGES = ROOT / "docs" / "analyses"
FIGURES = PAGES / "figures"
IMAGE = re.compile(
    r"^!\[(?P<words>[^\]]*)\]\(figures/(?P<name>[\w-]+)\.svg\)\n(?:<!-- picture:\s(?P<code>.*?)-->)?", re.M | re.S
)
WIDTH, HEIGHT = 760, 400
"""Pixels of a picture, of a figure that does not say how high it is."""
AROUND, ROW, UPRIGHT = 130, 22, 90
"""Of what stands around a heatmap's squares, of a row, and of names that stand upright below."""
TITLE = 36
"""Of the title."""
FONT = "Arial, sans-serif"

DRAWING = """<!doctype html><meta charset="utf-8"><script>{library}</script><div id="plot"></div>
<pre id="out"></pre><script>
const figure = {figure};
Plotly.newPlot("plot", figure.data, figure.layout)
  .then(plot => Plotly.toImage(plot, {{format: "svg", width: {width}, height: {height}}}))
  .then(url => {{
    const text = decodeURIComponent(url.slice(url.indexOf(",") + 1));
    document.getElementById("out").textContent = btoa(unescape(encodeURIComponent(text)));
    document.getElementById("plot").remove();
  }});
</script>"""


class Picture(NamedTuple):
    """A picture of a page: its name, the words that stand for it, the example above it and the code that draws it."""

    name: str
    words: str
    example: Block
    code: str


def pictures(page: Path) -> Iterator[Picture]:
    """Those of a page, in order.

    Raises:
        ValueError: no code is given, or no example stands above it in its section.
    """
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(ROOT).as_posix()
    examples = [block for block in blocks(name, text) if block.language == "python"]
    for found in IMAGE.finditer(text):
        section = text.rfind("\n## ", 0, found.start())
        first, last = (text[:place].count("\n") + 1 for place in (section, found.start()))
        above = [block for block in examples if first < block.line < last]
        if found["code"] is None or not above:
            raise ValueError(f"{name}: {found['name']}.svg has {'no code' if above else 'no example above it'}")
        yield Picture(found["name"], found["words"], above[-1], found["code"])


def figure_of(picture: Picture) -> go.Figure:
    """Run the example, then the picture's code; its last line is the figure."""
    tree = ast.parse(picture.code.strip())
    *before, last = tree.body
    if not isinstance(last, ast.Expr):
        raise ValueError(f"{picture.name}: the last line of its code is no figure: {ast.unparse(last)}")
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        names: dict[str, Any] = run(picture.example, Path(folder))
        exec(compile(ast.Module(before, []), picture.name, "exec"), names)
        return eval(compile(ast.Expression(last.value), picture.name, "eval"), names)


def height_of(figure: go.Figure) -> int:
    """As the figure says; else a heatmap has room for every row."""
    rows = max((len(trace.z) for trace in figure.data if trace.type == "heatmap"), default=0)
    upright = UPRIGHT if figure.layout.xaxis.tickangle == -90 else 0
    return int(figure.layout.height or (AROUND + ROW * max(rows, 5) + upright if rows else HEIGHT))


def svg_of(figure: go.Figure, words: str) -> str:
    """A figure as SVG with a title, on white, which can be read on a dark page too.

    Raises:
        ValueError: Chromium gave none.
    """
    shown = go.Figure(figure)
    height, margin = height_of(shown) + TITLE, shown.layout.margin.t
    title = {"text": words.partition(": ")[0], "font_size": 14, "x": 0, "xref": "container", "xanchor": "left", "y": 1,
             "yref": "container", "yanchor": "top", "pad": {"t": 12, "l": 12}}  # fmt: skip
    shown.update_layout(width=WIDTH, height=height, paper_bgcolor="white", font_family=FONT, title=title)
    shown.update_layout(margin_t=TITLE + (20 if margin is None else margin))
    page = DRAWING.format(library=get_plotlyjs(), figure=shown.to_json(), width=WIDTH, height=height)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "plot.html")
        path.write_text(page, encoding="utf-8")
        made = subprocess.run(
            ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND",
             f"--user-data-dir={folder}/profile", "--virtual-time-budget=8000", "--dump-dom", path.as_uri()],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    found = re.search(r'<pre id="out">([\w+/=]+)</pre>', made.stdout)
    if found is None:
        raise ValueError(f"Chromium drew nothing: {made.stderr[-500:]}")
    return base64.b64decode(found[1]).decode()


def main(wanted: list[str]) -> None:
    """Draw all pictures, or those named."""
    every = [picture for page in sorted(PAGES.glob("*.md")) for picture in pictures(page)]
    missing = set(wanted) - {picture.name for picture in every}
    if missing:
        raise SystemExit(f"no such picture: {', '.join(sorted(missing))}")
    FIGURES.mkdir(exist_ok=True)
    for picture in every:
        if not wanted or picture.name in wanted:
            target = FIGURES / f"{picture.name}.svg"
            target.write_text(svg_of(figure_of(picture), picture.words) + "\n", encoding="utf-8")
            print(f"{target.relative_to(ROOT)}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
