"""A batch on its way through `decoding.decode`: which rows it holds, what they have said, and what they read next.

Tokens are chosen where the logits are and read from there. What the host wants of them (which tokens, how close the
choice, whether a row has ended) comes over in one copy a step, which is looked at as late as nobody could tell: after
the last step where nothing ends a row, a step later where no hook could see the step that is then run for nothing, else
at once. Where a row turns out to have ended, the batch is taken back to that step: states are values, so that all is
as if nothing had been run beyond.

How it fails: as `decoding` says; an error of a step comes when that step is looked at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hybridlens.choosing import Chooser, check_finite, greedy, two_best
from hybridlens.devices import Coming, sent
from hybridlens.hooks import Edit
from hybridlens.shapes import Lengths
from hybridlens.state import HybridState

Between: TypeAlias = Callable[[HybridState, int], HybridState]
"""Gives the state that a decode step is to go on from: (the state before it, the step's number from 0)."""

EditsOf: TypeAlias = Callable[[Sequence[int]], Sequence[Edit]]
"""The edits of a batch that holds these rows, row i of the batch being the i-th of them."""

KEPT = 0.8
"""Where ended rows leave, they are taken out when no more than this share of the batch is still running."""

AHEAD = 1
"""Steps on a device that may be run before the tokens of one are looked at."""


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
        capture: run steps of fixed shapes, recorded once and done again (`hybridlens.fixed_steps`); None for whether
            that can be on a GPU, where it is many times faster.
        ahead: steps to run before the tokens of one are looked at, where no hook could tell; None for `AHEAD` off the
            CPU and none there.
        said: called with 1 whenever tokens were chosen, and with less than 0 where some of them do not count, having
            been chosen in steps run ahead of an end.
    """

    max_new_tokens: int
    ends: tuple[int, ...] = ()
    stopped: Callable[[Sequence[int]], bool] | None = None
    choose: Chooser = greedy
    edits: EditsOf = untouched
    between: Between | None = None
    ended: Literal["stay", "leave"] = "stay"
    pad: int = 0
    capture: bool | None = None
    ahead: int | None = None
    said: Callable[[int], None] | None = None

    @property
    def certain(self) -> bool:
        """Whether nothing that a step gives decides what is run after it."""
        return not self.ends and self.stopped is None and self.between is None


class _Made(NamedTuple):
    """A step whose tokens the host has not looked at."""

    coming: Coming
    """The two best logits and the token of each row."""
    unread: Int[Tensor, "row"]
    state: HybridState | None
    """Before the tokens are read; None where nothing goes back to it."""


class Batch:
    """See the module.

    Args:
        start: what was read.
        how: how it goes on.
    """

    def __init__(self, start: Start, how: Decoding) -> None:
        self.how = how
        self.state = start.state
        self.rows = list(range(start.state.batch))
        self.alive = [how.max_new_tokens > 0] * len(self.rows)
        self.unread = torch.zeros(len(self.rows), dtype=torch.long) if start.unread is None else start.unread
        self.said: list[list[int]] = [[] for _ in self.rows]
        self.margins = torch.full((len(self.rows),), torch.inf)
        self.made = 0
        """Tokens that each running row has, looked at or not."""
        self.waiting: deque[_Made] = deque()

    @property
    def running(self) -> bool:
        """Whether any row goes on, as far as the host knows."""
        return any(self.alive)

    @property
    def left(self) -> int:
        """Steps to go, at the most."""
        return self.how.max_new_tokens - self.made

    @property
    def crowded(self) -> bool:
        """Whether so many rows have ended that they are to leave."""
        if self.how.ended == "stay" or len(self.rows) == 1:
            return False
        return sum(self.alive) / len(self.rows) <= KEPT

    @property
    def masked(self) -> bool:
        """Whether a row may come to read no more while others go on."""
        return self.how.ended == "stay" and len(self.rows) > 1 and not self.how.certain

    @property
    def uncaptured(self) -> str | None:
        """Why steps cannot be captured, as far as it hangs on how the batch goes on."""
        if self.how.between is not None:
            return "the state is exchanged between steps; leave one of the two out"
        return None

    @property
    def reading(self) -> Lengths | None:
        """How many tokens each row reads in the next pass, on the host; None for one each."""
        return None if self.how.ended == "leave" or all(self.alive) else torch.tensor(self.alive).long()

    def ahead(self, observed: bool, fixed: bool) -> int:
        """How many steps may be run before the tokens of one are looked at.

        Args:
            observed: whether hooks act in them, who would see those that are run for nothing.
            fixed: whether the state is changed in place, so that nothing goes back.
        """
        how = self.how
        if how.choose is not greedy or how.between is not None:
            return 0
        if how.certain:
            return how.max_new_tokens
        if observed or (fixed and how.ended == "stay"):
            return 0
        return how.ahead if how.ahead is not None else 0 if self.state.lengths.device.type == "cpu" else AHEAD

    def make_room(self) -> None:
        """Take out the rows that have ended, with their states, once they crowd the batch."""
        if self.crowded:
            places = [place for place, runs in enumerate(self.alive) if runs]
            self.rows = [self.rows[place] for place in places]
            self.state, self.alive = self.state.select(places), [True] * len(places)
            self.unread = self.unread[sent(torch.tensor(places), self.unread.device)]

    def choose(self, logits: Float[Tensor, "row vocab"], back: bool = True) -> None:
        """Choose every row's next token; `look` says later what became of it.

        Args:
            logits: of the last token that was read.
            back: whether the batch may have to go back to this step.
        """
        if not self.running:
            return
        best = logits.float().topk(2, dim=-1).values
        if self.how.choose is not greedy:  # which may not bear what is not finite
            self._check(two_best(logits))
        chosen = self.how.choose(logits)
        self.unread = chosen
        if self.how.ended == "stay" and not all(self.alive):
            ended = ~torch.tensor(self.alive)
            self.unread = chosen.masked_fill(sent(ended, chosen.device), self.how.pad)
        coming = Coming(torch.cat([best, chosen[:, None].to(best.device).float()], dim=1))  # ids are exact: below 2**24
        self.waiting.append(_Made(coming, self.unread, self.state if back and not self.how.certain else None))
        self.made += 1
        if self.how.said is not None:
            self.how.said(1)

    def look(self, ahead: int) -> None:
        """Give running rows the tokens of all steps but the last `ahead`, and end those that are at their end."""
        while self.waiting and (len(self.waiting) > ahead or self.made >= self.how.max_new_tokens):
            self._look(self.waiting.popleft())

    def _look(self, step: _Made) -> None:
        numbers, how = step.coming.here(), self.how
        best, tokens = numbers[:, :2], [int(token) for token in numbers[:, 2].tolist()]
        self._check(best)
        going = [place for place, runs in enumerate(self.alive) if runs]
        rows = [self.rows[place] for place in going]
        self.margins[rows] = torch.minimum(self.margins[rows], best[going, 0] - best[going, 1])
        for place in going:
            said = self.said[self.rows[place]]
            said.append(tokens[place])
            over = len(said) >= how.max_new_tokens or tokens[place] in how.ends
            self.alive[place] = not (over or (how.stopped is not None and how.stopped(said)))
        ended = not all(self.alive[place] for place in going)
        if self.waiting and ended and (how.ended == "stay" or not self.running) and step.state is not None:
            self.state, self.unread, self.made = step.state, step.unread, self.made - len(self.waiting)
            if how.said is not None:
                how.said(-len(self.waiting))
            self.waiting.clear()
        elif not self.running:
            self.waiting.clear()

    def _check(self, best: Float[Tensor, "row 2"]) -> None:
        going = [place for place, runs in enumerate(self.alive) if runs]
        numbers = best.tolist()
        if all(isfinite(numbers[place][0]) for place in going):
            return
        rows = [self.rows[place] for place in going]
        check_finite(best[going, 0], rows, [len(self.said[row]) for row in rows])
