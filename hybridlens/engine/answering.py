"""Many rows decode at once, each under its own treatment; rows that have ended make room.

The loop is `decoding.decode`, with ended rows leaving: here the rows' states become one batch, and the treatments of
the rows that it still holds become its edits.

How it fails: as `decoding` says. Each answer states how close its closest choice was (`Answer.margin`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hybridlens.decoding import Boundary, Decoding, Start, decode
from hybridlens.engine.work import Answer, Spans, Treating
from hybridlens.generation import decode_text
from hybridlens.hooks import Edit
from hybridlens.network import HookedNetwork
from hybridlens.state import HybridState


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
    network: HookedNetwork,
    rows: Sequence[Row],
    treating: Treating,
    boundary: Boundary,
    max_new_tokens: int,
    stop_at_eos: bool = True,
    tokenizer: Any = None,
    capture: bool | None = None,
) -> list[Answer]:
    """What each row says, greedily: its text, tokens and margin.

    Args:
        network: the model.
        rows: of treatments that may share a batch.
        treating: how treatments act.
        boundary: with "last_prompt_token", the prompt's last token is still to be read, under decode rules.
        max_new_tokens: at most so many for each row.
        stop_at_eos: a row ends with its end-of-text token.
        tokenizer: for text; None for empty ones.
        capture: see `hybridlens.decoding.Decoding`.

    Raises:
        HybridLensError: the model's logits are not finite.
    """

    def edits(held: Sequence[int]) -> Sequence[Edit]:
        return treating.edits([rows[i].treatment for i in held], [rows[i].spans for i in held], "decode")

    ends = network.cfg.eos_token_ids if stop_at_eos else ()
    how = Decoding(max_new_tokens, tuple(ends), edits=edits, ended="leave", capture=capture)
    said = decode(network, _start(rows, boundary), how)
    return [
        Answer(text, tuple(row), margin)
        for text, row, margin in zip(
            decode_text(tokenizer, said.tokens), said.tokens, said.margins.tolist(), strict=True
        )
    ]


def _start(rows: Sequence[Row], boundary: Boundary) -> Start:
    """The rows' states in one batch, and their logits; a state that several rows share is copied for each."""
    distinct = {id(row.state): row for row in rows}
    place = {key: index for index, key in enumerate(distinct)}
    first = list(distinct.values())
    state = HybridState.cat([row.state for row in first])
    index = [place[id(row.state)] for row in rows]
    if index != list(range(len(rows))):
        state = state.select(index)
    if boundary == "last_prompt_token":
        return Start(state, None, torch.tensor([row.last for row in rows]))
    known = [row.logits for row in first if row.logits is not None]
    return Start(state, torch.cat(known)[index])
