"""Decoding: the one loop over steps that `generate`, the engine, surgery and lm-eval go through.

`begin` reads prompts of any lengths under prefill rules; `decode` goes on from there, one forward pass a token, from
state to state, as a `Decoding` says. Steps are counted from 0: with boundary "last_prompt_token" step 0 reads the
last token of each prompt, with "first_new_token" the first new one. Edits are attached once for as long as the batch
stays the same, and never while `Between` exchanges the state, so that it may run the model itself.

Rows that have ended either stay, and read no more, so that each row's state is right in the end; or they leave, as
soon as a good share of the batch has ended, since a step costs little more for a hundred rows than for one.

How it fails: a boundary that does not exist raises `UnknownNameError`, a state that does not fit `InputError`, and
logits from which nothing can be chosen `HybridLensError`. A hook that raises ends the run and leaves no hooks behind.
Rows of one batch are computed together, so rounding differs in the last bits from a batch of another size: a text can
differ where two logits agree to that precision. `Decoded.margins` says how close each row came.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hybridlens.decoding_batch import AHEAD, KEPT, Batch, Between, Decoding, EditsOf, Start, untouched
from hybridlens.devices import sent
from hybridlens.errors import UnknownNameError
from hybridlens.fixed_steps import Attaching, FixedSteps, captured
from hybridlens.hooks import Edit, HookFunction, NameFilter, attached, check_phase, resolve
from hybridlens.network import HookedNetwork, Output
from hybridlens.passes import trimmed
from hybridlens.shapes import Lengths, Tokens
from hybridlens.state import HybridState
from hybridlens.tokens import TokenBatch

__all__ = [
    "AHEAD",
    "BOUNDARIES",
    "KEPT",
    "Between",
    "Boundary",
    "Decoded",
    "Decoding",
    "EditsOf",
    "Forward",
    "Start",
    "begin",
    "check_boundary",
    "decode",
    "editing",
    "first_logits",
    "untouched",
]

Boundary: TypeAlias = Literal["last_prompt_token", "first_new_token"]
BOUNDARIES = ("last_prompt_token", "first_new_token")

Forward: TypeAlias = Callable[..., Output]
"""A forward pass under edits; takes what `HookedNetwork.forward` takes."""


class Decoded(NamedTuple):
    """What `decode` gives."""

    tokens: list[list[int]]
    """New tokens of each row, the one that ended it included."""
    margins: Float[Tensor, "batch"]
    """Smallest gap between the two best logits over each row's new tokens."""
    state: HybridState
    """Of `rows`, after the last tokens that were read: the last one chosen has not been."""
    rows: list[int]
    """The rows that were in the batch to the end; all of them, if ended rows stay."""


def check_boundary(boundary: str) -> None:
    """Refuse a phase boundary that does not exist.

    Raises:
        UnknownNameError: naming the ones that do.
    """
    if boundary not in BOUNDARIES:
        raise UnknownNameError(f"boundary {boundary!r} does not exist; expected one of {', '.join(BOUNDARIES)}")


class Twice(NamedTuple):
    """A forward pass with one ahead of it."""

    network: HookedNetwork
    ahead: Attaching
    now: Attaching

    def __call__(
        self, tokens: Tokens, lengths: Lengths | None = None, state: HybridState | None = None, last_only: bool = False
    ) -> Output:
        """What `HookedNetwork.forward` gives in the second."""
        lent = nullcontext() if state is None else state.lent()
        with self.ahead(), lent, torch.no_grad():
            self.network(tokens, lengths, state, True)
        with self.now():
            return self.network(tokens, lengths, state, last_only)


@contextmanager
def editing(network: HookedNetwork, edits: Sequence[Edit], phase: Literal["prefill", "decode"]) -> Generator[Forward]:
    """Those of `edits` that act in `phase`, for the length of a ``with`` block, which gets the forward pass.

    Raises:
        UnknownNameError: for a phase, or a name in any of the edits, that does not exist.
    """
    check_phase(phase)
    resolved = [(resolve(edit.hook, network.points), edit) for edit in edits]
    acting = [(names, edit.function(), edit.ahead) for names, edit in resolved if edit.acts_in(phase)]
    ahead: list[tuple[NameFilter, HookFunction]] = [(names, fn) for names, fn, before in acting if before]
    now: list[tuple[NameFilter, HookFunction]] = [(names, fn) for names, fn, before in acting if not before]
    if not ahead:
        with attached(network.points, now):
            yield network
        return

    yield Twice(network, partial(attached, network.points, ahead), partial(attached, network.points, now))


@torch.no_grad()
def begin(
    network: HookedNetwork,
    batch: TokenBatch,
    edits: Sequence[Edit],
    boundary: Boundary,
    state: HybridState | None = None,
) -> Start:
    """Read the prompts under prefill rules, up to the boundary. The last tokens alone are unembedded.

    Args:
        network: the model.
        batch: what is to be read.
        edits: those of phase "prefill" or "both" act.
        boundary: where the phases meet.
        state: what was read before; None for nothing. It is not changed.

    Raises:
        UnknownNameError: for a boundary that does not exist.
        InputError: for a state of another model or batch size.
    """
    check_boundary(boundary)
    tokens, lengths = batch
    if boundary == "first_new_token":
        with editing(network, edits, "prefill") as forward:
            logits, state = forward(tokens, lengths, state, True)
        return Start(state, logits[:, 0])
    if lengths is None:
        head, head_lengths, last = tokens[:, :-1], None, tokens[:, -1]
    else:
        head, head_lengths, last = tokens[:, :-1], lengths - 1, _last(tokens, lengths)
    if head.shape[1] > 0:
        with editing(network, edits, "prefill") as forward:
            state = forward(head, head_lengths, state, True).state
    elif state is None:
        state = network.empty_state(tokens.shape[0])
    return Start(state, None, last)


def _last(tokens: Tokens, lengths: Lengths) -> Int[Tensor, "batch"]:
    """Each row's last real token; lengths may be on the host."""
    return tokens.gather(1, sent(lengths - 1, tokens.device)[:, None])[:, 0]


@torch.no_grad()
def first_logits(network: HookedNetwork, start: Start, edits: Sequence[Edit]) -> tuple[HybridState, Tensor]:
    """The logits that choose the first new token [b v], and the state that goes on from them.

    Args:
        network: the model.
        start: from `begin`; its `unread` tokens are read as decode step 0.
        edits: those of phase "decode" or "both" act in that step.
    """
    if start.unread is None:
        assert start.logits is not None
        return start.state, start.logits
    with editing(network, edits, "decode") as forward:
        logits, state = forward(start.unread[:, None], None, start.state)
    return state, logits[:, 0]


def decode(network: HookedNetwork, start: Start, how: Decoding) -> Decoded:
    """Choose tokens and read them, step by step, until every row has ended or has as many as it may have.

    Args:
        network: the model.
        start: what was read; not changed.
        how: all of it under decode rules.

    Raises:
        HybridLensError: the logits of a running row are not finite; said with the row and the number of the token.
        InputError: for a state of another model.
    """
    batch, step = Batch(start, how), 0
    with torch.no_grad():
        if start.logits is not None:
            batch.choose(start.logits)
            batch.look(0)
        del start  # its state can be freed once the next one is there
        while batch.running:
            batch.make_room()
            if how.between is not None:
                batch.state = how.between(batch.state, step)
            edits = how.edits(batch.rows)
            capture = captured(how.capture, network, batch.state, edits, batch.left, batch.uncaptured)
            with editing(network, edits, "decode") as forward:
                steps = None
                if capture:
                    asked = how.capture is True
                    passes = (forward.ahead, forward.now) if isinstance(forward, Twice) else (nullcontext,)
                    steps = FixedSteps(network, batch.state, batch.left, batch.masked, asked, passes)
                ahead = batch.ahead(bool(edits) or network.observed is not None, capture)
                while True:
                    if steps is None:
                        logits, batch.state = forward(batch.unread[:, None], batch.reading, batch.state)
                        logits = logits[:, 0]
                    else:
                        logits, batch.state = steps.read(batch.unread, batch.alive), steps.view
                    batch.choose(logits, back=steps is None)
                    step += 1
                    batch.look(ahead)
                    over = not batch.running or batch.crowded or how.between is not None
                    if over or (steps is not None and steps.full):
                        break
                batch.look(0)
                if steps is not None:
                    batch.state = trimmed(steps.state())
    return Decoded(batch.said, batch.margins, batch.state, batch.rows)
