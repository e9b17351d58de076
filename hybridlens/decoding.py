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
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hybridlens.choosing import Chooser, check_finite, greedy, two_best
from hybridlens.errors import UnknownNameError
from hybridlens.hooks import Edit, HookFunction, NameFilter, attached, check_phase, resolve
from hybridlens.network import HookedNetwork, Output
from hybridlens.shapes import Lengths, Tokens
from hybridlens.state import HybridState
from hybridlens.tokens import TokenBatch

Boundary: TypeAlias = Literal["last_prompt_token", "first_new_token"]
BOUNDARIES = ("last_prompt_token", "first_new_token")

KEPT = 0.8
"""Where ended rows leave, they are taken out when no more than this share of the batch is still running."""

Forward: TypeAlias = Callable[..., Output]
"""A forward pass under edits; takes what `HookedNetwork.forward` takes."""

Between: TypeAlias = Callable[[HybridState, int], HybridState]
"""Gives the state that a decode step is to go on from: (the state before it, the step's number from 0)."""

EditsOf: TypeAlias = Callable[[Sequence[int]], Sequence[Edit]]
"""The edits of a batch that holds these rows, row i of the batch being the i-th of them."""


class Start(NamedTuple):
    """Where decoding begins: what has been read, and what makes the first new token."""

    state: HybridState
    logits: Float[Tensor, "batch vocab"] | None
    """What chooses it; None where decode step 0 is still to read `unread`."""
    unread: Int[Tensor, "batch"] | None = None
    """Each prompt's last token, if decode step 0 reads it."""


def untouched(rows: Sequence[int]) -> Sequence[Edit]:
    """No edits, whatever the rows."""
    return ()


@dataclass(frozen=True)
class Decoding:
    """How a batch goes on from its `Start`.

    Args:
        max_new_tokens: at most so many for each row.
        ends: a row ends with any of these tokens.
        stopped: whether a row that has said these tokens has ended, too; None for never.
        choose: picks the next tokens. It is given the logits of ended rows as well, as long as the batch holds them.
        edits: those of phase "decode" or "both" act; asked for again whenever rows have left.
        between: gives the state that each step goes on from.
        ended: rows that have ended "stay" in the batch and read no more, or "leave" it, reading on until they do.
        pad: what is read in place of the tokens of ended rows that stay; its value does not matter.
    """

    max_new_tokens: int
    ends: tuple[int, ...] = ()
    stopped: Callable[[Sequence[int]], bool] | None = None
    choose: Chooser = greedy
    edits: EditsOf = untouched
    between: Between | None = None
    ended: Literal["stay", "leave"] = "stay"
    pad: int = 0


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

    def twice(
        tokens: Tokens, lengths: Lengths | None = None, state: HybridState | None = None, last_only: bool = False
    ) -> Output:
        lent = nullcontext() if state is None else state.lent()
        with attached(network.points, ahead), lent, torch.no_grad():
            network(tokens, lengths, state, True)
        with attached(network.points, now):
            return network(tokens, lengths, state, last_only)

    yield twice


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
        head, head_lengths, last = tokens[:, :-1], lengths - 1, tokens.gather(1, lengths[:, None] - 1)[:, 0]
    if head.shape[1] > 0:
        with editing(network, edits, "prefill") as forward:
            state = forward(head, head_lengths, state, True).state
    elif state is None:
        state = network.empty_state(tokens.shape[0])
    return Start(state, None, last)


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
    batch, step = _Batch(start, how), 0
    with torch.no_grad():
        if start.logits is not None:
            batch.choose(start.logits)
        del start  # its state can be freed once the next one is there
        while batch.running:
            batch.make_room()
            if how.between is not None:
                batch.state = how.between(batch.state, step)
            with editing(network, how.edits(batch.rows), "decode") as forward:
                while True:
                    logits, batch.state = forward(batch.unread[:, None], batch.reading, batch.state)
                    batch.choose(logits[:, 0])
                    step += 1
                    if not batch.running or batch.crowded or how.between is not None:
                        break
    return Decoded(batch.said, batch.margins, batch.state, batch.rows)


class _Batch:
    """A batch on its way through `decode`: which rows it holds, what they have said, and what they read next."""

    def __init__(self, start: Start, how: Decoding) -> None:
        self.how = how
        self.state = start.state
        self.rows = list(range(start.state.batch))
        self.alive: Bool[Tensor, "row"] = torch.full((len(self.rows),), how.max_new_tokens > 0)
        self.unread = torch.zeros(len(self.rows), dtype=torch.long) if start.unread is None else start.unread
        self.said: list[list[int]] = [[] for _ in self.rows]
        self.margins = torch.full((len(self.rows),), torch.inf)
        self.ends = torch.tensor(how.ends, dtype=torch.long)

    @property
    def running(self) -> bool:
        """Whether any row goes on."""
        return bool(self.alive.any())

    @property
    def crowded(self) -> bool:
        """Whether so many rows have ended that they are to leave."""
        if self.how.ended == "stay" or len(self.rows) == 1:
            return False
        return float(self.alive.float().mean()) <= KEPT

    @property
    def reading(self) -> Lengths | None:
        """How many tokens each row reads in the next pass; None for one each."""
        if self.how.ended == "leave" or bool(self.alive.all()):
            return None
        return self.alive.long().to(self.state.lengths.device)

    def make_room(self) -> None:
        """Take out the rows that have ended, with their states, once they crowd the batch."""
        if self.crowded:
            left = self.alive.nonzero()[:, 0].tolist()
            self.rows = [self.rows[place] for place in left]
            self.state, self.unread, self.alive = self.state.select(left), self.unread[left], self.alive[left]

    def choose(self, logits: Float[Tensor, "row vocab"]) -> None:
        """Give every running row its next token, and end those that are at their end."""
        alive = self.alive
        going = [row for row, runs in zip(self.rows, alive.tolist(), strict=True) if runs]
        if not going:
            return
        best, made = two_best(logits), len(self.said[going[0]])
        check_finite(best[alive, 0], going, [made] * len(going))
        self.margins[going] = torch.minimum(self.margins[going], best[alive, 0] - best[alive, 1])
        chosen = self.how.choose(logits).cpu()
        for row, token in zip(going, chosen[alive].tolist(), strict=True):
            self.said[row].append(token)
        self.unread = chosen if self.how.ended == "leave" else chosen.masked_fill(~alive, self.how.pad)
        ended = torch.isin(chosen, self.ends)
        if self.how.stopped is not None:
            ended[alive] |= torch.tensor([self.how.stopped(self.said[row]) for row in going])
        self.alive = alive & ~ended & (made + 1 < self.how.max_new_tokens)
