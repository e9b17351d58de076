"""Attention patterns drawn by circuitsvis, with any token text shown literally and the network off.

The library's own HTML either loads its code from a network or repeats 1.3 MB per figure, and puts token text
into a script unescaped. Here the props are JSON in which no `<` is left, and a page or a notebook has the bundle once.
Where tokens were cropped their true positions stand on the axes, and what was left out between them is a gap.
How it fails: `InputError` for shapes that do not fit, values that are not finite, or more tokens than
it can paint (about 128; a browser needs minutes above that).
"""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float

from hybridlens.display import many
from hybridlens.errors import InputError
from hybridlens.viz.embedding import CIRCUITSVIS, Html

MAX_TOKENS = 128


@dataclass(frozen=True)
class PatternFigure:
    """Attention patterns of some heads over some tokens, ready to be drawn.

    Attributes:
        tokens: the text of every token shown, in order; queries and keys are the same tokens.
        pattern: attention weights, post-softmax. Where tokens were cropped, rows need not sum to 1.
        heads: a short label for every head, "L2 H5" say.
        positions: where each token stands in the prompt, ascending; None for 0, 1, 2, ….
        note: how the tokens were chosen from the prompt, in words.
    """

    title: str
    tokens: list[str]
    pattern: Float[np.ndarray, "head query key"]
    heads: list[str]
    note: str = ""
    positions: Sequence[int] | None = None

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
        if self.positions is not None and (
            len(self.positions) != n or any(a >= b for a, b in pairwise(self.positions))
        ):
            raise InputError(
                f"pattern {self.title!r} has {n} tokens, and {len(self.positions)} positions were given for them; "
                "expected one for each, ascending"
            )
        if not np.isfinite(self.pattern).all():
            raise InputError(f"pattern {self.title!r} holds values that are not finite; mask them to 0 first")


def attention_heads(
    tokens: list[str],
    pattern: Float[np.ndarray, "head query key"],
    heads: list[str] | None = None,
    name: str = "",
    positions: Sequence[int] | None = None,
) -> Html:
    """The circuitsvis head selector for a notebook; it needs no network.

    Args:
        pattern: attention weights, or any signed values; the colour range is symmetric for signed ones.
        heads: a label for every head; "Head 0", "Head 1", ... when left out.
        name: id of the HTML element; one of its own when left out.
        positions: where each token stands in the prompt, ascending, where tokens were cropped.

    Raises:
        InputError: shapes do not fit, values are not finite, or there are more than 128 tokens.
    """
    labels = heads if heads is not None else [f"Head {i}" for i in range(pattern.shape[0])]
    figure = PatternFigure("attention heads", tokens, pattern, labels, positions=positions)
    words = f"Attention of {many(len(labels), 'head')} over {many(len(tokens), 'token')}."
    return Html(CIRCUITSVIS, props(figure), words, name)


def props(figure: PatternFigure) -> dict[str, Any]:
    """The properties that circuitsvis' `AttentionHeads` takes, as JSON values, the weights packed (`assets/packed.js`).

    "packed" is base64 of whole numbers of 16 bits, which times "step" are the weights: of every head, query and key,
    or, where no query attends to a later key, of the keys up to each query. Beside them "places": where each token
    stands in the prompt. Between tokens that are no neighbours there is one more row and column, whose place is None.
    """
    low, high = float(figure.pattern.min()), float(figure.pattern.max())
    limit = 1.0 if low >= 0 and high <= 1 else max(abs(low), abs(high))
    places = list(range(len(figure.tokens))) if figure.positions is None else [int(at) for at in figure.positions]
    shown: list[int | None] = []
    for i, at in enumerate(places):
        shown += [None, i] if i and at > places[i - 1] + 1 else [i]
    step = limit / np.iinfo(np.int16).max or 1.0
    values = np.rint(figure.pattern.astype(np.float64) / step).astype("<i2")
    causal = not np.triu(figure.pattern, 1).any()
    kept = values[:, *np.tril_indices(values.shape[-1])] if causal else values
    return {
        "tokens": ["" if i is None else figure.tokens[i] for i in shown],
        "places": [None if i is None else places[i] for i in shown],
        "packed": b64encode(kept.tobytes()).decode(),
        "step": step,
        "attentionHeadNames": figure.heads,
        "minValue": -limit,
        "maxValue": limit,
        "maskUpperTri": causal,
    }
