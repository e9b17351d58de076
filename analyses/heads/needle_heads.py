"""Which heads look at the needle while the model answers, and their patterns cropped to what matters.

A prompt and its answer are run once, with all heads. The queries that choose the answer's tokens are the
last token of the prompt and every token of the answer but its last; a head's needle mass is the attention
that these queries pay to the needle's tokens, on average. The heads with the most are drawn over the few
tokens that tell the story: the needle with some text around it, the question, the answer.

How it fails: mass on the needle is not retrieval (a head may look at it and write nothing of use), and a head
that spreads its weight evenly has mass on the needle too, in proportion to its length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.experiment.per_prompt import per_prompt
from analyses.heads.ranking import HeadRanking
from hybridlens.boundary import Few, Length, Natural, Positive, public
from hybridlens.display import Piece, Table, TokenText, many, number
from hybridlens.display.markup import Plain
from hybridlens.errors import InputError
from hybridlens.hooks import HookPoint, by_query, reads_only
from hybridlens.model import HybridLens
from hybridlens.niah import Span
from hybridlens.shapes import Pattern
from hybridlens.tokens import to_strings
from hybridlens.viz.patterns import PatternFigure
from hybridlens.viz.plotted import Plotted

if TYPE_CHECKING:
    from hybridlens.viz.plot import Plot

MOST_TOKENS = 120
"""Tokens drawn; a browser takes long above about 128."""

AROUND = 8
"""Tokens shown before and after the needle."""


class _Look(NamedTuple):
    """What the heads looked at while one answer was given."""

    ranking: HeadRanking
    """Mean attention from the answer's queries to the needle, 0 … 1; higher is better."""
    tokens: list[int]
    """Ids of the prompt's and the answer's tokens."""
    shown: list[int]
    """Positions in `tokens` that `patterns` holds, ascending."""
    queries: list[int]
    """Of these, the positions that choose the answer's tokens: the prompt's last, and the answer's but its last."""
    patterns: Float[Tensor, "attn_layer head shown shown"]
    """Attention weights between the positions shown; rows need not sum to 1."""
    texts: list[str]
    """The text of each position shown; none where the lens has no tokenizer."""


class Look(Plotted, _Look):
    """`_Look` that shows itself: the heads by their attention to the needle, and the tokens drawn."""

    __slots__ = ()

    def summary(self) -> str:
        """How much was read, and who looks most."""
        best = ", ".join(f"L{layer} H{head}" for layer, head in self.ranking.leading(3)) or "all alike"
        most = number(self.ranking.score(*self.ranking.order[0]), 2)
        read = f"{many(len(self.tokens), 'token')}, of which {len(self.shown)} are drawn"
        return f"{read}; most to the needle: {best} ({most})"

    def table(self) -> Table:
        """A row a head: its attention to the needle, and the position that it looks at most."""
        keys = self.patterns[:, :, [self.shown.index(query) for query in self.queries]].mean(dim=2)
        places = {head: place for place, head in enumerate(self.ranking.order, start=1)}
        rows: list[tuple[Plain, ...]] = []
        for i, layer in enumerate(self.ranking.layers):
            for head, seen in enumerate(keys[i]):
                at = int(seen.argmax())
                text = self.texts[at] if self.texts else None
                own = (layer, head, places[layer, head], self.ranking.score(layer, head))
                rows.append((*own, self.shown[at], text, float(seen[at])))
        return Table(
            ("layer", "head", "place", "needle", "key", "token", "weight"),
            rows,
            {
                "place": "1 for the head that attends to the needle most",
                "needle": "its mean attention to the needle while answering",
                "key": "the position drawn that it looks at most while answering, counted from 0",
                "token": "what stands there",
                "weight": "its mean attention to that position",
            },
            ("needle",),
        )

    def view(self) -> tuple[Piece, ...]:
        """Every head's attention to the needle, and what is drawn."""
        words = (TokenText(self.texts, title="Tokens drawn"),) if self.texts else ()
        return (self.ranking.view()[0], *words)

    def plot(self) -> Plot:
        """Every head's attention to the needle; `figure` draws the patterns themselves."""
        return self.ranking.plot()


@per_prompt("prompt", each=["answer", "needles"])
@public
def look(lens: HybridLens, prompt: Sequence[Natural], answer: Sequence[Natural], needles: Sequence[Span]) -> Look:
    """Run a prompt with its answer, all heads on, and measure the attention to the needle.

    Args:
        lens: the model.
        prompt: its token ids, or a list of prompts, each with its answer and needles.
        answer: token ids that were generated after it; may be none.
        needles: the needle's half-open token ranges in the prompt, one for each reading.

    Raises:
        InputError: there is no needle, it lies outside the prompt, or the model has no attention.
    """
    lens.cfg.need_attention("looking at a needle")
    layers = lens.cfg.attention_layers
    for start, end in needles:
        if not 0 <= start < end <= len(prompt):
            raise InputError(f"needle tokens {start}..{end} do not lie in a prompt of {len(prompt)} tokens")
    if not needles:
        raise InputError("a prompt without a needle was given; give one of the grid, not a control")
    tokens = [*prompt, *answer]
    queries = list(range(len(prompt) - 1, max(len(tokens) - 1, len(prompt))))
    keys = sorted({position for start, end in needles for position in range(start, end)})
    shown = crop(len(prompt), len(answer), needles[-1])
    masses: dict[str, list[Tensor]] = {}  # of the queries asked about, by hook point
    drawn: dict[str, Tensor] = {}

    @by_query
    @reads_only
    def measure(pattern: Pattern, hook: HookPoint) -> None:
        weights, name = pattern[0], cast(str, hook.name)  # what is read of it alone becomes float32
        first = 0 if hook.slots is None else hook.slots.first
        here = range(first, first + weights.shape[1])
        asked = [query - first for query in queries if query in here]
        if asked:
            masses.setdefault(name, []).append(weights[:, asked][:, :, keys].float().sum(-1).cpu())
        rows = [row for row, query in enumerate(shown) if query in here]
        seen = [key for key in shown if key < weights.shape[2]]
        whole = drawn.setdefault(name, torch.zeros(len(weights), len(shown), len(shown)))
        whole[:, rows, : len(seen)] = weights[:, [shown[row] - first for row in rows]][:, :, seen].float().cpu()

    names = [f"blocks.{layer}.attn.hook_pattern" for layer in layers]
    with torch.no_grad():
        lens.run_with_hooks([tokens], [(names, measure)], return_type=None)
    source = f"mean attention to the needle while answering, over {len(queries)} queries of one prompt"
    means = torch.stack([torch.cat(masses[name], dim=1).mean(-1) for name in names])
    ranking = HeadRanking(means, layers, source, lower_is_better=False)
    ids = [tokens[position] for position in shown]
    texts = [] if lens.tokenizer is None else to_strings(ids, lens.tokenizer)
    asked_there = [query for query in queries if query in shown]
    return Look(ranking, tokens, shown, asked_there, torch.stack([drawn[name] for name in names]), texts)


@public
def crop(n_prompt: Length, n_answer: Few, needle: Span, most: Length = MOST_TOKENS, around: Few = AROUND) -> list[int]:
    """The positions worth drawing, ascending: at most `most`.

    The first token, where idle heads rest; the needle with `around` tokens on either side; the answer, a
    third of the room at most; and the end of the prompt, which holds the question, as far as there is room.

    Args:
        n_prompt: tokens of the prompt.
        n_answer: tokens of the answer that follow it.
        needle: the needle's tokens.
        most: how many positions at most.
        around: tokens before and after the needle.
    """
    start, end = needle
    chosen = {0, *range(n_prompt, n_prompt + min(n_answer, most // 3))}
    wanted = [
        *range(start, end),
        n_prompt - 1,
        *(p for step in range(1, around + 1) for p in (start - step, end - 1 + step)),
        *reversed(range(n_prompt)),
    ]
    for position in wanted:
        if len(chosen) >= most:
            break
        if 0 <= position < n_prompt:
            chosen.add(position)
    return sorted(chosen)


@public
def figure(seen: Look, title: str, n_heads: Positive = 6) -> PatternFigure:
    """The patterns of the `n_heads` heads with the most needle mass, ready to be drawn.

    Raises:
        InputError: the lens that looked has no tokenizer.
    """
    labels = {
        (layer, head): f"L{layer} H{head}: {100 * seen.ranking.score(layer, head):.0f} %"
        for layer, head in seen.ranking.order[:n_heads]
    }
    beside = "its attention to the needle from the queries that choose the answer"
    return figure_of(seen, labels, title, beside)


@public
def figure_of(seen: Look, labels: Mapping[tuple[int, int], str], title: str, beside: str) -> PatternFigure:
    """The patterns of chosen heads, ready to be drawn.

    Args:
        seen: what was looked at.
        labels: (layer, head) -> what stands beside its pattern, in the order to draw.
        title: of the figure.
        beside: what the labels say, for the note.

    Raises:
        InputError: the lens that looked has no tokenizer, or a head is not one of its.
    """
    if not seen.texts:
        raise InputError("this lens has no tokenizer, so its tokens have no text to draw; give one to HybridLens")
    for layer, head in labels:
        seen.ranking.score(layer, head)  # refuses a head that is not there
    chosen = [seen.patterns[seen.ranking.layers.index(layer), head] for layer, head in labels]
    note = (
        f"All heads on. Of {len(seen.tokens)} tokens (prompt and answer) these are shown, counted from 0: "
        f"{_ranges(seen.shown)}. Beside each head: {beside}."
    )
    return PatternFigure(title, seen.texts, np.asarray(torch.stack(chosen)), list(labels.values()), note, seen.shown)


def _ranges(positions: Sequence[int]) -> str:
    """Positions as people write them: "0, 15–40, 80–99"."""
    runs = [[at for _, at in run] for _, run in groupby(enumerate(positions), key=lambda pair: pair[1] - pair[0])]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
