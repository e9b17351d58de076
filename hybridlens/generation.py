"""What `generate` does and gives: prompts in, a text for each out.

The prompts are read and continued by `decoding`; here the request is checked, and what came is laid out as rows of
tokens and texts.

How it fails: more new tokens than the model's context has room for raise `InputError` before anything runs; what fails
while it runs, see `decoding`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from hybridlens.boundary import Length, public
from hybridlens.choosing import Chooser, Sampling, greedy, sampler
from hybridlens.decoding import Between, Boundary, Decoding, Start, begin, decode
from hybridlens.display.memories import GenerationShown
from hybridlens.hooks import Edit
from hybridlens.network import HookedNetwork
from hybridlens.padding import TokenBatch
from hybridlens.shapes import Lengths, Tokens
from hybridlens.state import HybridState
from hybridlens.tokens import check_context


class _Fields(NamedTuple):
    tokens: Tokens
    """New tokens [batch, pos]; a row that ended early is filled up with padding."""
    lengths: Lengths
    """New tokens of each row, its end-of-text token included."""
    text: list[str]
    """Each row's new tokens as text, special tokens left out; empty strings without a tokenizer."""
    state: HybridState
    """After the last token that was read: the last one generated has not been."""


class Generation(GenerationShown, _Fields):
    """What `generate` gives: unpack as ``tokens, lengths, text, state``."""

    __slots__ = ()


@public
def decode_steps(max_new_tokens: Length, boundary: Boundary) -> int:
    """How many decode steps make so many new tokens, if no row ends before; the last one made is not read.

    Raises:
        UnknownNameError: for a boundary that does not exist.
        InputError: `max_new_tokens` is no whole number of at least 1.
    """
    return max_new_tokens - (boundary == "first_new_token")


def generate(
    network: HookedNetwork,
    batch: TokenBatch,
    max_new_tokens: int = 40,
    edits: Sequence[Edit] = (),
    boundary: Boundary = "last_prompt_token",
    *,
    state: HybridState | None = None,
    between: Between | None = None,
    stop_at_eos: bool = True,
    sampling: Sampling | None = None,
    tokenizer: Any = None,
    pad: int = 0,
) -> Generation:
    """See `HybridLens.generate`.

    Args:
        network: the model.
        batch: the prompts, or what of them is still to be read after `state`.
        max_new_tokens: at most so many for each row.
        edits: act in their phases and rows.
        boundary: where reading ends and decode step 0 begins.
        state: what was read before; not changed. None for nothing.
        between: gives the state that each decode step goes on from.
        stop_at_eos: a row ends with its end-of-text token.
        sampling: how tokens are drawn; greedy without.
        tokenizer: for text.
        pad: id that fills rows that ended early.

    Raises:
        UnknownNameError: for a boundary that does not exist.
        InputError: when prompt and new tokens exceed the model's context.
        HybridLensError: the model's logits are not finite.
    """
    lengths = torch.tensor(batch.tokens.shape[1]) if batch.lengths is None else batch.lengths.cpu()
    if state is not None:
        lengths = lengths + state.lengths.cpu()
    check_context(int(lengths.max()) + max_new_tokens - 1, network.cfg.n_ctx)  # the last one is not read
    return continue_from(
        network,
        begin(network, batch, edits, boundary, state),
        max_new_tokens,
        edits,
        between=between,
        stop_at_eos=stop_at_eos,
        choose=greedy if sampling is None else sampler(sampling),
        tokenizer=tokenizer,
        pad=pad,
    )


def continue_from(
    network: HookedNetwork,
    start: Start,
    max_new_tokens: int,
    edits: Sequence[Edit] = (),
    *,
    between: Between | None = None,
    stop_at_eos: bool = True,
    choose: Chooser = greedy,
    tokenizer: Any = None,
    pad: int = 0,
) -> Generation:
    """Decode from what was read, all of it under decode rules; see `generate`."""
    ends = network.cfg.eos_token_ids if stop_at_eos else ()
    how = Decoding(max_new_tokens, tuple(ends), choose=choose, edits=lambda rows: edits, between=between, pad=pad)
    said, _, state, _ = decode(network, start, how)
    counts = [len(row) for row in said]
    longest = max(counts)
    tokens = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in said], dtype=torch.long)
    device = state.lengths.device
    return Generation(tokens.to(device), torch.tensor(counts, device=device), decode_text(tokenizer, said), state)


def decode_text(tokenizer: Any, rows: Sequence[Sequence[int]]) -> list[str]:
    """Each row's tokens as text, special tokens left out; empty strings without a tokenizer."""
    return ["" if tokenizer is None else str(tokenizer.decode(list(row), skip_special_tokens=True)) for row in rows]
