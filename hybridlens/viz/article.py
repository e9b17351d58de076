"""`report.html` made of sections: a heading, what was found, links, the sections, and what made it.

What is shown comes as plain values (`Article`); nothing here knows an experiment. How it fails: an old report
stays where the new one cannot be written whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridlens.results import write_atomic
from hybridlens.viz.blocks import Section
from hybridlens.viz.figures import MapGrid, map_figure
from hybridlens.viz.markup import Gathered, render
from hybridlens.viz.page import REPORT, document, escape, provenance, unfinished
from hybridlens.viz.words import END, LEFT_OUT, START


@dataclass(frozen=True)
class Article:
    """Everything on the page.

    Attributes:
        title: of the window.
        over: the line above the heading: what kind of page this is.
        heading: the model's name, say.
        origin: one line: how much was run, under which rules, when.
        finding: the first sentences.
        notes: what a reader has to know before the rest.
        sections: the rest, in order.
    """

    title: str
    over: str
    heading: str
    origin: str
    finding: tuple[str, ...]
    notes: tuple[str, ...]
    sections: tuple[Section, ...]


def write_article(folder: Path, article: Article, record: Mapping[str, Any]) -> Path:
    """Write `report.html` into a folder, atomically; returns its path.

    Args:
        folder: where a run's results are.
        article: what to show.
        record: its `run.json`; "model" is all that it has to hold.
    """
    return write_atomic(folder / REPORT, render_article(article, record).encode("utf-8"))


def render_article(article: Article, record: Mapping[str, Any]) -> str:
    """The page as text; arguments as in `write_article`."""
    gathered = Gathered()
    parts = [_section(section, gathered) for section in article.sections]
    links = [*((section.name, section.title) for section in article.sections), ("provenance", "Provenance")]
    first, *rest = article.finding or ("",)
    body = f"""<header>
<p class="over">{escape(article.over)}</p>
<h1>{escape(article.heading)}</h1>
<p class="origin">{escape(article.origin)}</p>
{unfinished(record)}
<p class="finding">{escape(first)}</p>
{"".join(f'<p class="finding second">{escape(sentence)}</p>' for sentence in rest)}
{"".join(f'<p class="note">{escape(note)}</p>' for note in article.notes)}
<nav aria-label="sections">{" ".join(f'<a href="#{escape(n)}">{escape(t)}</a>' for n, t in links)}</nav>
</header>
{"".join(parts)}
<section id="provenance">
<h2>Provenance</h2>
{provenance(record)}
</section>"""
    data = {
        "texts": list(gathered.texts),
        "charts": gathered.charts,
        "answers": gathered.answers,
        "explorer": gathered.explorer,
        "patterns": gathered.patterns,
        "leftOut": LEFT_OUT,
        "ends": {"0": START, "100": END},
        "map": map_figure(MapGrid([0], [0], [[None]])).to_plotly_json(),
    }
    styles = ["page.css", "article.css"]
    return document(article.title, body, data, ["article.js"], styles, with_patterns=bool(gathered.patterns))


def _section(section: Section, gathered: Gathered) -> str:
    blocks = "\n".join(render(block, gathered) for block in section.blocks)
    return f'<section id="{escape(section.name)}">\n<h2>{escape(section.title)}</h2>\n{blocks}\n</section>\n'
