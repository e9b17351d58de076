"""The embedded models as a table: sizes from their files, accuracy from their model cards. Loads no model.

How it fails: `CheckpointError` for an installation without the checkpoints; a card without the measured table
leaves a dash.
"""

from __future__ import annotations

import re
from pathlib import Path

from analyses.experiment.text import columns
from hybridlens import tiny

LEGEND = """A: attention layer, R: recurrent layer, B: both side by side; context: longest prompt trained for, in
tokens; accuracy: on the paper's needle with all heads, in % of the highest score, in brackets without the needle."""


def model_table() -> str:
    """Every embedded model: layers, heads, window, context, size, measured accuracy."""
    rows = [["model", "layers", "heads", "window", "context", "parameters", "size", "accuracy"]]
    for info in tiny.describe():
        row = [
            info.name,
            info.pattern,
            f"{info.n_heads} ({info.n_kv_heads} kv)" if info.n_heads else "–",
            "–" if not info.n_heads else "all" if info.window is None else str(info.window),
            str(info.context),
            f"{info.parameters / 1e6:.2f} M",
            f"{info.n_bytes / 1e6:.1f} MB",
            card_accuracy(info.path, info.n_heads),
        ]
        rows.append(row)
    return f"{columns(rows, left=3)}\n{LEGEND}"


def card_accuracy(folder: Path, n_heads: int) -> str:
    """Accuracy with all heads and its chance level, from the model card: "99.2 (0.4)", or a dash.

    The card's second table is generated from measured cells, a line for each number of heads kept:
    ``| heads | generation | its chance | …``.
    """
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    number = r"\s*([\d.]+)\s*"
    table = text.partition("| heads kept |")[2]
    match = re.search(rf"^\|\s*{n_heads}\s*\|{number}\|{number}\|", table, flags=re.MULTILINE)
    return "–" if match is None else f"{match[1]} ({match[2]})"
