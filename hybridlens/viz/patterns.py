"""Attention patterns drawn by circuitsvis, with any token text shown literally and the network off.

The library's own HTML either loads its code from a network or repeats 1.3 MB per figure, and puts token text
into a script unescaped. Here the props are JSON in which no `<` is left, and a page has the bundle once.
How it fails: `InputError` for shapes that do not fit, values that are not finite, or more tokens than
it can paint (about 128; a browser needs minutes above that).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from hybridlens.errors import InputError
from hybridlens.viz.templating import circuitsvis_bundle, render

MAX_TOKENS = 128


@dataclass(frozen=True)
class PatternFigure:
    """Attention patterns of some heads over some tokens, ready to be drawn.

    Attributes:
        tokens: the text of every token shown, in order; queries and keys are the same tokens.
        pattern: attention weights, post-softmax. Where tokens were cropped, rows need not sum to 1.
        heads: a short label for every head, "L2 H5" say.
        note: how the tokens were chosen from the prompt, in words.
    """

    title: str
    tokens: list[str]
    pattern: Float[np.ndarray, "head query key"]
    heads: list[str]
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse what circuitsvis would draw wrongly or not at all."""
        n = len(self.tokens)
        shape = tuple(self.pattern.shape)
        if shape != (len(self.heads), n, n) or not self.heads:
            raise InputError(
                f"pattern {self.title!r} has shape {shape}; {len(self.heads)} heads over {n} tokens need "
                f"{(len(self.heads), n, n)} [head, query, key]"
            )
        if not 0 < n <= MAX_TOKENS:
            raise InputError(
                f"pattern {self.title!r} has {n} tokens, and circuitsvis paints 1 to {MAX_TOKENS}; crop it "
                "to the tokens that matter"
            )
        if not np.isfinite(self.pattern).all():
            raise InputError(f"pattern {self.title!r} holds values that are not finite; mask them to 0 first")


@dataclass(frozen=True)
class Html:
    """A piece of HTML that a notebook displays."""

    text: str

    def _repr_html_(self) -> str:
        return self.text


def attention_heads(
    tokens: list[str],
    pattern: Float[np.ndarray, "head query key"],
    heads: list[str] | None = None,
    name: str = "attention-heads",
) -> Html:
    """The circuitsvis head selector for a notebook; it needs no network.

    Args:
        pattern: attention weights, or any signed values; the colour range is symmetric for signed ones.
        heads: a label for every head; "Head 0", "Head 1", ... when left out.
        name: id of the HTML element; give each figure of a page its own.

    Raises:
        InputError: shapes do not fit, values are not finite, or there are more than 128 tokens.
    """
    labels = heads if heads is not None else [f"Head {i}" for i in range(pattern.shape[0])]
    figure = PatternFigure("attention heads", tokens, pattern, labels)
    return Html(render("pattern.html", name=name, props=props(figure), library=circuitsvis_bundle()))


def props(figure: PatternFigure) -> dict[str, Any]:
    """The properties that circuitsvis' `AttentionHeads` takes, as JSON values rounded to 4 decimals."""
    low, high = float(figure.pattern.min()), float(figure.pattern.max())
    limit = 1.0 if low >= 0 and high <= 1 else max(abs(low), abs(high))
    return {
        "tokens": figure.tokens,
        "attention": np.round(figure.pattern.astype(np.float64), 4).tolist(),
        "attentionHeadNames": figure.heads,
        "minValue": -limit,
        "maxValue": limit,
        "negativeColor": "#b4532a",
        "positiveColor": "#0f6e74",
        "maskUpperTri": True,
    }
