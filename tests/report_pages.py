"""Pages of reports as tests read them: cells and records to make one from, and its elements and data."""

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from typing import Any

import numpy as np

from analyses.study.groups import Base
from analyses.study.report import niah_page
from hybridlens.results import Cell, environment
from hybridlens.viz import PatternFigure
from hybridlens.viz.article import render_article

# Texts that end a script, open a tag, look like an entity, or end a line in JavaScript but not in JSON.
HOSTILE = [
    "<script>alert(1)</script>",
    "</script>",
    "</SCRIPT >",
    "<!--<script>",
    "<img src=x onerror=alert(1)>",
    "&amp;",
    "\u2028\u2029",
    "\"'`",
    "${1}\\",
    "\x00\ud7ff",
]
LENGTHS, DEPTHS, KS = (64, 128), (0, 50, 100), (0, 2, 8)


def a_cell(phase: str, k: int, length: int, depth: int | None, score: float, text: str = "text") -> Cell:
    """A cell whose span and hash are plausible and of no interest here."""
    span = (None, None) if depth is None else (3, 9)
    return Cell("m", phase, k, length, depth, depth is None, score, text, *span, 0.1, "abc")


def sweep(text: str = "text") -> list[Cell]:
    """Two phases, three k, six prompts and two controls: 48 cells with scores that follow from the place.

    With 8 heads everything scores 5; with 2 the generation phase scores 3 and prefill 1; with none, 0 to 0.5.
    """
    scores = {("generation", 2): 3.0, ("prefill", 2): 1.0, ("generation", 0): 0.0, ("prefill", 0): 0.5}
    return [
        a_cell(phase, k, n, d, 0.25 if d is None else scores.get((phase, k), 5.0), text)
        for phase in ("generation", "prefill")
        for k in KS
        for n in LENGTHS
        for d in (*DEPTHS, None)
    ]


def a_record(**changes: Any) -> dict[str, Any]:
    """What run.json holds, as far as the report reads it."""
    return {
        "model": "m",
        "max_score": 5.0,
        "seed": 0,
        "status": "complete",
        "created": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T03:05:05+00:00",
        "cells": 48,
        "cells_done": 48,
        "facts": {"n_heads": 8},
        "config_hash": "c",
        "weights_hash": "w",
        "arguments": {"needle": "n"},
        "command": "hybridlens niah --model m",
        "sessions": [{"environment": environment(), "settings": {"batch_size": 4}}],
        "damaged": [],
        **changes,
    }


def a_pattern(tokens: list[str], /, **changes: Any) -> PatternFigure:
    """A causal pattern of two heads with rows that sum to 1."""
    weights = np.tril(np.random.default_rng(0).random((2, len(tokens), len(tokens)))) + np.eye(len(tokens))
    values = {"title": "Pattern", "tokens": tokens, "heads": ["L2 H1", "L5 H0"], "note": "cropped"}
    return PatternFigure(**{**values, "pattern": weights / weights.sum(-1, keepdims=True), **changes})


def rendered(
    cells: Sequence[Cell],
    record: Mapping[str, Any],
    patterns: Sequence[PatternFigure] = (),
    notes: Sequence[str] = (),
) -> str:
    """The page of one needle."""
    return render_article(niah_page(cells, record, Base(8), patterns, notes), record)


class Page(HTMLParser):
    """The elements, attributes, texts and scripts of a page, as a browser would tell them apart, libraries unpacked."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.open = ""
        self.feed(source)
        self.close()
        kinds = [attributes.get("type") for tag, attributes in self.tags if tag == "script"]
        for at, kind in enumerate(kinds):
            if kind == "application/gzip;base64":
                self.scripts[at] = gzip.decompress(base64.b64decode(self.scripts[at])).decode("utf-8")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.open = ""

    def handle_data(self, data: str) -> None:
        if self.open == "script":
            self.scripts[-1] += data
        elif self.open != "style":
            self.text.append(data)


def data_of(page: Page) -> Any:
    """The JSON that the page's code reads."""
    index = [attributes.get("id") for tag, attributes in page.tags if tag == "script"].index("data")
    return json.loads(page.scripts[index])
