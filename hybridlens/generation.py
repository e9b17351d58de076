"""Decoding: prompts of any lengths in one batch, edits by phase and row, both phase boundaries.

A run is a prefill and then one forward pass a token, from state to state. Rows that have ended are fed
padding, which they do not read, until all have ended. The prefill unembeds each row's last token only.
Between two passes the state can be exchanged for another (`Between`), so that a text goes on from a changed memory.

How it fails: see `generate`; a hook that raises ends the run and leaves no hooks behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hybridlens.errors import InputError, UnknownNameError
from hybridlens.hooks import Edit
from hybridlens.padding import TokenBatch
from hybridlens.shapes import Lengths, Tokens
from hybridlens.state import HybridState
from hybridlens.tokens import check_context

if TYPE_CHECKING:
    from hybridlens.model import HybridLens

Boundary: TypeAlias = Literal["last_prompt_token", "first_new_token"]
BOUNDARIES = ("last_prompt_token", "first_new_token")


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens; the same seed gives the same draws for the same batch.

    Args:
        seed: of the generator of this run alone.
        temperature: divides the logits; above 0.
        top_k: draw among so many of the likeliest; None for all.
        top_p: draw among the likeliest that together hold this probability; None for all.
    """

    seed: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise InputError(f"temperature {self.temperature} given, expected above 0; leave sampling out to be greedy")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k {self.top_k} given, expected at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p {self.top_p} given, expected above 0 and at most 1")


class Generation(NamedTuple):
    """What `generate` gives."""

    tokens: Tokens
    """New tokens [batch, pos]; a row that ended early is filled up with padding."""
    lengths: Lengths
    """New tokens of each row, its end-of-text token included."""
    text: list[str]
    """Each row's new tokens as text, special tokens left out; empty strings without a tokenizer."""
    state: HybridState
    """After the last token that was read: the last one generated has not been."""


Between: TypeAlias = Callable[[HybridState, int], HybridState]
"""Gives the state that a decode step is to go on from: (the state before it, the step's number from 0)."""

Chooser: TypeAlias = Callable[[Tensor], Tensor]
"""Picks the next token of each row from its logits [b v]."""


def greedy(logits: Float[Tensor, "batch vocab"]) -> Int[Tensor, "batch"]:
    """The likeliest token of each row; of equals, the lowest id."""
    return logits.argmax(dim=-1)


def sampler(sampling: Sampling) -> Chooser:
    """A chooser that draws from softmax(logits / temperature), restricted as `sampling` says."""
    generator = torch.Generator().manual_seed(sampling.seed)

    def draw(logits: Float[Tensor, "batch vocab"]) -> Int[Tensor, "batch"]:
        scaled = logits.detach().float().cpu() / sampling.temperature
        ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
        probabilities = ordered.softmax(dim=-1)
        if sampling.top_k is not None:
            probabilities[:, sampling.top_k :] = 0
        if sampling.top_p is not None:
            reached = probabilities.cumsum(dim=-1) - probabilities >= sampling.top_p
            probabilities = probabilities.masked_fill(reached, 0)
        picked = torch.multinomial(probabilities, 1, generator=generator)
        return order.gather(1, picked)[:, 0].to(logits.device)

    return draw


def begin(
    lens: HybridLens,
    batch: TokenBatch,
    edits: Sequence[Edit],
    boundary: Boundary,
    state: HybridState | None = None,
    between: Between | None = None,
) -> tuple[HybridState, Tensor]:
    """Read the prompts up to the first new token: the state, and the logits that choose it [b v].

    With boundary "last_prompt_token" each row's last token is read as the first decode step, number 0.

    Args:
        lens: the model.
        batch: what is to be read.
        edits: act in their phases.
        boundary: where the phases meet.
        state: what was read before; None for nothing. It is not changed.
        between: gives the state that decode step 0 goes on from.

    Raises:
        UnknownNameError: for a boundary that does not exist.
        InputError: for a state of another model or batch size.
    """
    check_boundary(boundary)
    tokens, lengths = batch
    if boundary == "first_new_token":
        with lens.editing(edits, "prefill") as forward:
            logits, state = forward(tokens, lengths, state, True)
        return state, logits[:, 0]
    if lengths is None:
        head, head_lengths, last = tokens[:, :-1], None, tokens[:, -1:]
    else:
        head, head_lengths, last = tokens[:, :-1], lengths - 1, tokens.gather(1, lengths[:, None] - 1)
    if head.shape[1] > 0:
        with lens.editing(edits, "prefill") as forward:
            state = forward(head, head_lengths, state, True).state
    elif state is None:
        state = lens.network.empty_state(tokens.shape[0])
    if between is not None:
        state = between(state, 0)
    with lens.editing(edits, "decode") as forward:
        logits, state = forward(last, None, state)
    return state, logits[:, 0]


def continue_from(
    lens: HybridLens,
    state: HybridState,
    logits: Float[Tensor, "batch vocab"],
    max_new_tokens: int,
    edits: Sequence[Edit] = (),
    stop_at_eos: bool = True,
    choose: Chooser = greedy,
    between: Between | None = None,
    first_step: int = 0,
) -> Generation:
    """Decode from a state and the logits of its last token; all of it under decode rules.

    Args:
        state: what was read; not changed.
        logits: what chooses the first new token.
        edits: those of phase "decode" or "both" act.
        between: gives the state that each decode step goes on from.
        first_step: number of the step that reads the first new token: 1 where `begin` made step 0.
    """
    ends = torch.tensor(lens.cfg.eos_token_ids if stop_at_eos else [], dtype=torch.long, device=logits.device)
    running = torch.ones(logits.shape[0], dtype=torch.bool, device=logits.device)
    lengths = torch.zeros(logits.shape[0], dtype=torch.long, device=logits.device)
    chosen: list[Tensor] = []
    with lens.editing(edits, "decode") as forward:
        for step in range(max_new_tokens):
            token = choose(logits).masked_fill(~running, lens.pad_token)
            chosen.append(token)
            lengths = lengths + running
            running = running & ~torch.isin(token, ends)
            if step == max_new_tokens - 1 or not bool(running.any()):
                break
            reading = None if bool(running.all()) else running.long()  # an ended row reads no more
            if between is not None:
                state = between(state, first_step + step)
            logits, state = forward(token[:, None], reading, state)
            logits = logits[:, 0]
    tokens = torch.stack(chosen, dim=1) if chosen else lengths.new_zeros(lengths.shape[0], 0)
    return Generation(tokens, lengths, decode_text(lens.tokenizer, tokens, lengths), state)


def check_boundary(boundary: str) -> None:
    """Refuse a phase boundary that does not exist.

    Raises:
        UnknownNameError: naming the ones that do.
    """
    if boundary not in BOUNDARIES:
        raise UnknownNameError(f"boundary {boundary!r} does not exist; expected one of {', '.join(BOUNDARIES)}")


def decode_text(tokenizer: Any, tokens: Tokens, lengths: Lengths) -> list[str]:
    """Each row's first `lengths` tokens as text, special tokens left out."""
    rows = [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
    return ["" if tokenizer is None else str(tokenizer.decode(row, skip_special_tokens=True)) for row in rows]


def generate(
    lens: HybridLens,
    batch: TokenBatch,
    max_new_tokens: int,
    edits: Sequence[Edit],
    boundary: Boundary,
    stop_at_eos: bool,
    sampling: Sampling | None,
) -> Generation:
    """See `HybridLens.generate`.

    Raises:
        InputError: when a prompt and the new tokens exceed the model's context, or none are wanted.
        UnknownNameError: for a boundary that does not exist.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens {max_new_tokens} given, expected at least 1")
    check_context(batch.tokens.shape[1] + max_new_tokens - 1, lens.cfg.n_ctx)  # the last one is not read
    choose = greedy if sampling is None else sampler(sampling)
    with torch.no_grad():
        state, logits = begin(lens, batch, edits, boundary)
        return continue_from(lens, state, logits, max_new_tokens, edits, stop_at_eos, choose)
