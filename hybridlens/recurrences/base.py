"""What one must know of a recurrence: an operator over time, of which nothing else may assume that it is elementwise.

S_t = J_t S_{t-1} + w_t with a linear map J_t: a number an entry (diagonal), one number a head (scalar), or a decay
followed by the erasure of one direction (delta). An operator has no model and no hook point in it: it takes its
`Terms`, a NamedTuple of batch-first tensors [b p ...], and a state [b *shape]. It works in float32 whatever their dtype
(in float64 where they are float64), and any initial state's dtype is float32.

How a state edit persists: `states` gives the trajectory H, a hook turns it into H', and the trajectory used is
`persist`, the same recurrence with the edited entries put in (`hybridlens.recurrences.edits` says what gradients are
then). Entries that no edit reaches keep every bit.

How it fails: a fast form and a loop differ in float32 rounding, and `hooked` sees to it that no more of a result
changes than an edit reaches. Gradients are first order only; asking for second ones raises.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from typing import Generic, NamedTuple

import torch
from torch import Tensor

from hybridlens.errors import InputError
from hybridlens.recurrences.edits import Hook, Tapped, tap, with_value
from hybridlens.recurrences.terms import T, leaves, length_of, mapped
from hybridlens.recurrences.trajectory import trajectory


class Run(NamedTuple):
    """What is left of a run that keeps no trajectory."""

    y: Tensor
    """The readout [b p ...], without any skip connection."""
    final: Tensor
    """The state after the last token [b *state], float32."""


class Hooked(NamedTuple):
    """What a hooked trajectory gives."""

    y: Tensor
    final: Tensor
    states: Tensor
    """After every token [b p *state], with the edits put in."""


class Recurrence(ABC, Generic[T]):
    """An operator over time.

    Args:
        shape: of one row's state, value before address: (c,), (c, n) or (s, u, m).
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    @property
    def nbytes(self) -> int:
        """Of one row's state."""
        return prod(self.shape) * torch.float32.itemsize

    def empty(self, batch: int, device: torch.device | str) -> Tensor:
        """The state before the first token of a text [b *state]."""
        return torch.zeros(batch, *self.shape, dtype=torch.float32, device=device)

    def at(self, terms: T, tokens: slice | int) -> T:
        """The terms of some tokens."""
        return mapped(terms, lambda t: t[:, tokens])

    @abstractmethod
    def hold(self, terms: T, valid: Tensor | None) -> T:
        """The terms with nothing happening at padding, where `valid` [b p] is False: it leaves a state as it is."""

    # one token, over any leading axes: [... *state] with terms [...]

    @abstractmethod
    def step(self, previous: Tensor, terms: T) -> Tensor:
        """The state after a token, from the one before it; edits inside the terms are put in. Differentiable."""

    @abstractmethod
    def carry(self, state: Tensor, terms: T) -> Tensor:
        """J_t S: what a token leaves of a state, without what it writes (what it erases is part of it)."""

    @abstractmethod
    def carry_back(self, grad: Tensor, terms: T) -> Tensor:
        """J_tᵀ g: how the loss changes with the state before a token, given how it does with the one after it."""

    @abstractmethod
    def readout(self, states: Tensor, terms: T) -> Tensor:
        """What each token reads out of the state after it, without any skip connection."""

    # over time

    @abstractmethod
    def run(self, terms: T, initial: Tensor) -> Run:
        """The readout of every token and the last state, the fast way."""

    @abstractmethod
    def hidden_attention(self, terms: T) -> Tensor:
        """What each position reads out of each earlier one's input, over the tokens of this call [b h p k].

        Edits of states, writes and recalls are not in it. Time and memory grow with the square of the length.
        """

    def made(self, terms: T, initial: Tensor) -> Tensor:
        """`states` without gradients; a plain loop where an operator knows nothing faster."""
        return self.loop(terms, initial)

    def loop(self, terms: T, initial: Tensor) -> Tensor:
        """The definition: one `step` after the other."""
        states, state = list[Tensor](), initial
        for t in range(length_of(terms)):
            state = self.step(state, self.at(terms, t))
            states.append(state)
        return torch.stack(states, dim=1)

    def states(self, terms: T, initial: Tensor) -> Tensor:
        """The state after every token [b p *state]; differentiable."""
        if length_of(terms) == 1:
            return self.step(initial[:, None], terms)
        return trajectory(self, terms, initial)

    def after(self, terms: T, initial: Tensor) -> Tensor:
        """The state after the last token [b *state], as `run` has it; differentiable."""
        return self.run(terms, initial).final

    def states_at(self, terms: T, initial: Tensor, positions: Sequence[int] | Tensor) -> Tensor:
        """The state after some tokens [b n *state], without those of the others; differentiable.

        It runs from each to the next, so that time and memory are a run's, and a state more for each position.

        Args:
            terms: of all tokens.
            initial: the state before the first.
            positions: of tokens, in any order; negative ones count from the end.

        Raises:
            InputError: for a position that there is no token at.
        """
        length, given = length_of(terms), [int(position) for position in positions]
        for position in given:
            if not -length <= position < length:
                raise InputError(
                    f"the state at position {position} was asked for, but there are {length} tokens; "
                    f"give positions from {-length} to {length - 1}"
                )
        order = [position % length for position in given]
        found, state, start = dict[int, Tensor](), initial, 0
        for position in sorted(set(order)):
            state = self.after(self.at(terms, slice(start, position + 1)), state)
            found[position], start = state, position + 1
        return torch.stack([found[position] for position in order], dim=1) if order else initial[:, None][:, :0]

    def run_with_states(self, terms: T, initial: Tensor) -> tuple[Run, Tensor]:
        """`run` and `states`, to the bit; without gradients."""
        return self.run(terms, initial), self.states(terms, initial)

    def adjoint(self, terms: T, grad: Tensor, mask: Tensor | None = None) -> Tensor:
        """g_t = grad_t + J_{t+1}ᵀ g_{t+1}: how the loss changes with each state, later ones included.

        Args:
            terms: of all tokens.
            grad: how the loss changes with each state through its own readout [b p *state].
            mask: True at entries of the trajectory that are set from outside, which nothing before them reaches.
        """
        out = torch.empty_like(grad)
        out[:, -1] = after = grad[:, -1]
        for t in range(grad.shape[1] - 1, 0, -1):
            heard = after if mask is None else after.masked_fill(mask[:, t], 0.0)
            after = grad[:, t - 1] + self.carry_back(heard, self.at(terms, t))
            out[:, t - 1] = after
        return out

    def persist(self, states: Tensor, hooked: Tensor, mask: Tensor | None, terms: T, initial: Tensor) -> Tensor:
        """The trajectory G that an edited one stands for: G_t = hooked_t where mask, else the step from G_{t-1}.

        Its gradient for `hooked` is the total one at every entry (`hybridlens.recurrences.edits.tap` goes with that).

        Args:
            states: the trajectory before the edit.
            hooked: what a hook made of it.
            mask: True where that is an edit; None for nowhere, and then the numbers are those of `hooked`.
            terms: of all tokens.
            initial: the state before the first token.
        """
        given = (hooked, initial, *leaves(terms))
        if mask is None and not (torch.is_grad_enabled() and any(t.requires_grad for t in given)):
            return hooked
        return trajectory(self, terms, initial, states.detach(), hooked, mask)

    def reached(self, edits: Tensor) -> Tensor:
        """Where states depend on edits of states or writes, by entry or by group of entries (the mask's shape).

        Args:
            edits: True at edited entries [b p *state].
        """
        return edits.cummax(dim=1).values

    def hooked(self, terms: T, initial: Tensor, hook: Hook) -> Hooked:
        """A run whose trajectory a hook sees and may edit.

        What no edit reaches is what `run` gives, to the bit: the trajectory is another way to the same numbers.
        """
        if torch.is_grad_enabled():
            states = self.states(terms, initial)
            with torch.no_grad():
                plain = self.run(terms, initial)
        else:
            plain, states = self.run_with_states(terms, initial)
        seen = tap(states, hook)
        used = self.used(states, seen, terms, initial)
        return Hooked(*self.keeping(plain, used, terms, seen.mask), used)

    def run_edited(self, terms: T, bare: T, edits: Tensor, initial: Tensor) -> Run:
        """`run` with edits inside the terms; what they do not reach is what `run` gives without them, to the bit.

        Args:
            terms: with edits.
            bare: the same without.
            edits: True where they are.
            initial: the state before the first token.
        """
        with torch.no_grad():
            plain = self.run(bare, initial)
        return self.keeping(plain, self.states(terms, initial), terms, edits)

    def keeping(self, plain: Run, states: Tensor, terms: T, edits: Tensor | None) -> Run:
        """A trajectory's readout and last state, with the numbers of a plain run where no edit reaches."""
        if edits is None and not states.requires_grad:
            return plain
        y, final = self.readout(states, terms), states[:, -1]
        if edits is not None:
            reached = self.reached(edits)
            plain = Run(
                torch.where(reached.any(dim=-1), y.detach(), plain.y),
                torch.where(reached[:, -1], final.detach(), plain.final),
            )
        return Run(with_value(y, plain.y), with_value(final, plain.final))

    def tapped(self, terms: T, initial: Tensor, hook: Hook) -> tuple[Tensor, Tapped]:
        """The trajectory, and what a hook made of it."""
        states = self.states(terms, initial)
        return states, tap(states, hook)

    def used(self, states: Tensor, seen: Tapped, terms: T, initial: Tensor) -> Tensor:
        """`persist` after `tapped`; a hook that detached everything and edited nothing has cut the gradients."""
        value, mask = seen
        return value if mask is None and not value.requires_grad else self.persist(states, value, mask, terms, initial)

    def first_order(self, terms: T, mask: Tensor, change: Tensor, gradient: Tensor) -> Tensor:
        """What replacing states at several positions changes, to first order, by row [b], float64.

        A patch of several positions cuts each off from the one before it, so that entry t counts with what the patch
        changes there beyond what its predecessor would have handed on: gradient_t · (δ_t - (J_t D_{t-1})), D being the
        changed trajectory. An entry that is given its own value goes on from the one before it.

        Args:
            terms: of all tokens.
            mask: True at the entries replaced [b p *state].
            change: δ, the new value less the old one.
            gradient: the total one at each state.
        """
        acting = mask & (change != 0)
        handed = self.handed_on(terms, acting, change)
        beyond = torch.where(acting, gradient * (change - handed), 0.0)
        return beyond.flatten(1).sum(dim=1, dtype=torch.float64)

    def handed_on(self, terms: T, acting: Tensor, change: Tensor) -> Tensor:
        """J_t D_{t-1} at every token, where D_t is the change at acting entries and else what is handed on."""
        handed, changed = torch.zeros_like(change), torch.where(acting[:, 0], change[:, 0], 0.0)
        for t in range(1, change.shape[1]):
            handed[:, t] = self.carry(changed, self.at(terms, t))
            changed = torch.where(acting[:, t], change[:, t], handed[:, t])
        return handed

    def continued(
        self, plain: Tensor, reached: Tensor, terms: T, initial: Tensor, edit: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """A trajectory made anew from the first edit on, without gradients.

        Args:
            plain: without these edits [b p *state].
            reached: True where it depends on them; elsewhere it is kept to the bit.
            terms: with edits inside, if it is they that act.
            initial: the state before the first token.
            edit: states and where they are put in, if it is these that act.
        """
        if plain.device.type == "meta":
            return plain
        times = reached.transpose(0, 1).flatten(1).any(dim=1)
        if not bool(times.any()):
            return plain
        first = int(times.nonzero()[0])
        out = plain.clone()
        state = plain[:, first - 1] if first else initial
        for t in range(first, plain.shape[1]):
            state = self.step(state, self.at(terms, t))
            if edit is not None:
                state = torch.where(edit[1][:, t], edit[0][:, t].to(state.dtype), state)
            state = torch.where(reached[:, t], state, plain[:, t])
            out[:, t] = state
        return out


def hooked_states(op: Recurrence[T], terms: T, initial: Tensor, hook: Hook) -> Tensor:
    """The trajectory to be used after a hook has seen it, with its edits put in and gradients counted once."""
    return op.used(*op.tapped(terms, initial, hook), terms, initial)
