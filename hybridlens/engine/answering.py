"""Many rows decode at once, each under its own treatment; rows that have ended make room.

A step costs little more for a hundred rows than for one, until the rows fill the machine. Rows that have ended
are taken out, with their states and treatments, as soon as a good share of the batch has.

How it fails: rows of one batch are computed together, so rounding differs in the last bits from a batch of
another size; a text can differ only where two logits, or two heads' entropies, agree to that precision. Each
answer states how close its closest choice was (`Answer.margin`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hybridlens.engine.work import Answer, Spans, Treating
from hybridlens.generation import Boundary, decode_text
from hybridlens.model import HybridLens
from hybridlens.state import HybridState

KEPT = 0.8
"""Rows are taken out when no more than this share of the batch is still running."""


class Row(NamedTuple):
    """A prompt that has been read and waits for its answer."""

    job: int
    """Which job it answers."""
    state: HybridState
    """Of one row, which rows may share."""
    held: int
    """Bytes of that state."""
    logits: Tensor | None
    """[1 v], what chooses the first new token; with boundary "last_prompt_token", not needed."""
    last: int
    """The prompt's last token."""
    treatment: Hashable
    spans: Spans


def answer(
    lens: HybridLens,
    rows: Sequence[Row],
    treating: Treating,
    boundary: Boundary,
    max_new_tokens: int,
    stop_at_eos: bool = True,
) -> list[Answer]:
    """What each row says, greedily: its text, tokens and margin.

    Args:
        lens: the model.
        rows: of treatments that may share a batch.
        treating: how treatments act.
        boundary: with "last_prompt_token", the prompt's last token is still to be read, under decode rules.
        max_new_tokens: at most so many for each row.
        stop_at_eos: a row ends with its end-of-text token.
    """
    state, logits = _gathered(rows)
    ends = torch.tensor(lens.cfg.eos_token_ids if stop_at_eos else [], dtype=torch.long)
    running = list(range(len(rows)))
    said: list[list[int]] = [[] for _ in rows]
    margins = torch.full((len(rows),), torch.inf)
    token = torch.tensor([row.last for row in rows]) if boundary == "last_prompt_token" else None
    with torch.no_grad():
        while running:
            edits = treating.edits([rows[i].treatment for i in running], [rows[i].spans for i in running], "decode")
            index = torch.tensor(running)
            alive = torch.ones(len(running), dtype=torch.bool)
            with lens.editing(edits, "decode") as forward:
                while bool(alive.any()) and (float(alive.float().mean()) > KEPT or len(running) == 1):
                    if token is not None:
                        out = forward(token[:, None], None, state)
                        state, logits = out.state, out.logits[:, 0]
                    assert logits is not None
                    token, margin = _chosen(logits)
                    margins[index] = torch.where(alive, torch.minimum(margins[index], margin), margins[index])
                    for place, word in zip(alive.nonzero()[:, 0].tolist(), token[alive].tolist(), strict=True):
                        said[running[place]].append(word)
                    full = len(said[running[int(alive.nonzero()[0, 0])]]) == max_new_tokens
                    alive &= ~torch.isin(token, ends) & (not full)
            if token is None or not bool(alive.any()):
                break
            left = alive.nonzero()[:, 0].tolist()
            running = [running[place] for place in left]
            state, token = state.select(left), token[alive]
    return _answers(lens, said, margins)


def _gathered(rows: Sequence[Row]) -> tuple[HybridState, Tensor | None]:
    """The rows' states in one batch, and their logits; a state that several rows share is copied for each."""
    distinct = {id(row.state): row for row in rows}
    place = {key: index for index, key in enumerate(distinct)}
    first = list(distinct.values())
    state = HybridState.cat([row.state for row in first])
    index = [place[id(row.state)] for row in rows]
    if index != list(range(len(rows))):
        state = state.select(index)
    known = [row.logits for row in first if row.logits is not None]
    logits = torch.cat(known)[index] if len(known) == len(first) else None
    return state, logits


def _chosen(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest token of each row, on the CPU, and by how much its logit is above the next."""
    best = logits.argmax(dim=-1)  # of equals, the lowest id, as everywhere
    top = logits.float().topk(2, dim=-1).values
    return best.cpu(), (top[:, 0] - top[:, 1]).cpu()


def _answers(lens: HybridLens, said: Sequence[Sequence[int]], margins: Tensor) -> list[Answer]:
    longest = max(map(len, said))
    tokens = torch.tensor([[*row, *[lens.pad_token] * (longest - len(row))] for row in said])
    texts = decode_text(lens.tokenizer, tokens, torch.tensor([len(row) for row in said]))
    return [
        Answer(text, tuple(row), margin)
        for text, row, margin in zip(texts, said, margins.tolist(), strict=True)
    ]
