"""What `generate` does and gives: prompts in, a text for each out.

The prompts are read and continued by `decoding`; here the request is checked, and what came is laid out as rows of
tokens and texts.

How it fails: more new tokens than the model's context has room for raise `InputError` before anything runs; what fails
while it runs, see `decoding`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch

from hybridlens.boundary import Length, public
from hybridlens.choosing import Chooser, Sampling, greedy, sampler
from hybridlens.decoding import Between, Boundary, Decoding, Start, begin, decode
from hybridlens.devices import sent
from hybridlens.display.memories import GenerationShown
from hybridlens.errors import InputError
from hybridlens.hooks import Edit
from hybridlens.network import HookedNetwork
from hybridlens.padding import TokenBatch
from hybridlens.progress import counted
from hybridlens.shapes import Lengths, Tokens
from hybridlens.state import HybridState
from hybridlens.tokens import check_context

ReturnType: TypeAlias = Literal["input", "str", "tokens"]
"""What TransformerLens' `generate` may give: text, tokens, or whichever of them was given."""


class _Fields(NamedTuple):
    tokens: Tokens
    """New tokens [batch, pos]; a row that ended early is filled up with padding."""
    lengths: Lengths
    """New tokens of each row, its end-of-text token included."""
    text: list[str]
    """Each row's new tokens as text, special tokens left out; empty strings without a tokenizer."""
    state: HybridState
    """After the last token that was read: the last one generated has not been."""

    def __enter__(self) -> Generation:
        """Refused: what generates is no trace.

        Raises:
            InputError: always, with what traces a generation.
        """
        raise InputError(
            "`with lens.generate(...)` has generated already and traces nothing; write "
            "`with lens.trace(prompt, max_new_tokens=...) as tracer:`"
        )

    def __exit__(self, *_: object) -> None:
        """Never reached."""


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
    ends: Sequence[int] | None = None,
    sampling: Sampling | None = None,
    tokenizer: Any = None,
    pad: int = 0,
    verbose: bool = False,
    capture: bool | None = None,
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
        ends: the tokens that end a row; None for the model's own.
        sampling: how tokens are drawn; greedy without.
        tokenizer: for text.
        pad: id that fills rows that ended early.
        verbose: show a progress bar.
        capture: see `Decoding`.

    Raises:
        UnknownNameError: for a boundary that does not exist.
        InputError: when prompt and new tokens exceed the model's context.
        HybridLensError: the model's logits are not finite.
    """
    plan = None if state is None else state.plan
    read = [0] * len(batch.tokens) if plan is None else plan.lengths
    new = [batch.tokens.shape[1]] * len(read) if batch.lengths is None else batch.lengths.tolist()
    longest = max(map(sum, zip(read, new, strict=False)), default=0)
    check_context(longest + max_new_tokens - 1, network.cfg.n_ctx)  # the last one is not read
    return continue_from(
        network,
        begin(network, batch, edits, boundary, state),
        max_new_tokens,
        edits,
        between=between,
        stop_at_eos=stop_at_eos,
        ends=ends,
        choose=greedy if sampling is None else sampler(sampling, rows_read(batch) if sampling.freq_penalty else ()),
        tokenizer=tokenizer,
        pad=pad,
        verbose=verbose,
        capture=capture,
    )


def rows_read(batch: TokenBatch) -> list[list[int]]:
    """Each row's tokens, without padding."""
    rows: list[list[int]] = batch.tokens.tolist()
    return rows if batch.lengths is None else [row[:n] for row, n in zip(rows, batch.lengths.tolist(), strict=True)]


def continue_from(
    network: HookedNetwork,
    start: Start,
    max_new_tokens: int,
    edits: Sequence[Edit] = (),
    *,
    between: Between | None = None,
    stop_at_eos: bool = True,
    ends: Sequence[int] | None = None,
    choose: Chooser = greedy,
    tokenizer: Any = None,
    pad: int = 0,
    verbose: bool = False,
    capture: bool | None = None,
) -> Generation:
    """Decode from what was read, all of it under decode rules; see `generate`."""
    stops = tuple(network.cfg.eos_token_ids if ends is None else ends) if stop_at_eos else ()
    with counted(max_new_tokens if verbose else 0, "new tokens") as advance:  # of none there is no bar
        how = Decoding(
            max_new_tokens,
            stops,
            choose=choose,
            edits=lambda rows: edits,
            between=between,
            pad=pad,
            capture=capture,
            said=advance,
        )
        said, _, state, _ = decode(network, start, how)
    counts = [len(row) for row in said]
    longest = max(counts)
    tokens = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in said], dtype=torch.long)
    device = state.lengths.device
    lengths = sent(torch.tensor(counts), device)
    return Generation(sent(tokens, device), lengths, decode_text(tokenizer, said), state)


def joined(prompts: Sequence[Sequence[int]], made: Generation, pad: int) -> Tokens:
    """Prompts with what was said after them [batch, pos]: shorter prompts padded on the left, as TransformerLens' are.

    Rows that ended early are filled up on the right.
    """
    width = max(len(row) for row in prompts)
    before = torch.tensor([[pad] * (width - len(row)) + list(row) for row in prompts], dtype=torch.long)
    return torch.cat([before.to(made.tokens.device), made.tokens], dim=1)


def decode_text(tokenizer: Any, rows: Sequence[Sequence[int]]) -> list[str]:
    """Each row's tokens as text, special tokens left out; empty strings without a tokenizer."""
    return ["" if tokenizer is None else str(tokenizer.decode(list(row), skip_special_tokens=True)) for row in rows]
