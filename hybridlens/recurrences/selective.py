"""Mamba's recurrence as an operator: diagonal, with decay exp(Δ A) and write Δ B x made on the way.

How it fails: as `hybridlens.recurrences.mamba_scan` does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hybridlens.recurrences import mamba_scan, scan
from hybridlens.recurrences.base import Hooked, Recurrence, Run
from hybridlens.recurrences.diagonal import Diagonal, DiagonalTerms, channel_attention
from hybridlens.recurrences.edits import Hook
from hybridlens.recurrences.mamba_scan import SelectiveStates


class SelectiveTerms(NamedTuple):
    """What goes into Mamba's recurrence (Gu & Dao 2023, eq. 2)."""

    dt: Float[Tensor, "*lead channel"]
    """Δ, after softplus; 0 on padding, which leaves the state as it is."""
    A: Float[Tensor, "channel state"]
    """The diagonal, negative; the same for all tokens."""
    B: Float[Tensor, "*lead state"] | Float[Tensor, "*lead rec_head state"]
    C: Float[Tensor, "*lead state"] | Float[Tensor, "*lead rec_head state"]
    """The readout y = S C is done in its dtype."""
    x: Float[Tensor, "*lead channel"]


class Selective(Recurrence[SelectiveTerms]):
    """Mamba's recurrence; decays and writes are made a few tokens at a time.

    Args:
        shape: of one row's state, (c, n).
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.explicit_operator = Diagonal(shape)

    def at(self, terms: SelectiveTerms, tokens: slice | int) -> SelectiveTerms:
        """The terms of some tokens."""
        dt, A, B, C, x = terms
        return SelectiveTerms(dt[:, tokens], A, B[:, tokens], C[:, tokens], x[:, tokens])

    def explicit(self, terms: SelectiveTerms) -> DiagonalTerms:
        """Decay and write of every token, for `explicit_operator`; with them, edits of either are possible."""
        decay, write = mamba_scan.discretise(terms.dt, terms.A, terms.B, terms.x)
        return DiagonalTerms(decay, write, terms.C)

    def source(self, terms: SelectiveTerms) -> Float[Tensor, "batch pos channel state"]:
        """Δ B: what a unit of each channel's input puts into the state, float32."""
        return terms.dt.float()[..., None] * terms.B.float()[..., None, :]

    def hold(self, terms: SelectiveTerms, valid: Bool[Tensor, "batch pos"] | None) -> SelectiveTerms:
        """Δ = 0 where not valid."""
        return terms if valid is None else terms._replace(dt=terms.dt.masked_fill(~valid[..., None], 0.0))

    def step(self, previous: Tensor, terms: SelectiveTerms) -> Tensor:
        """exp(Δ A) ⊙ S + Δ B x."""
        dt, B, x = terms.dt.float(), terms.B.float(), terms.x.float()
        return torch.addcmul((dt * x)[..., None] * B[..., None, :], torch.exp(dt[..., None] * terms.A), previous)

    def carry(self, state: Tensor, terms: SelectiveTerms) -> Tensor:
        """exp(Δ A) ⊙ S."""
        return torch.exp(terms.dt.float()[..., None] * terms.A) * state

    def carry_back(self, grad: Tensor, terms: SelectiveTerms) -> Tensor:
        """exp(Δ A) ⊙ g."""
        return self.carry(grad, terms)

    def readout(self, states: Float[Tensor, "batch pos channel state"], terms: SelectiveTerms) -> Tensor:
        """S C, in the dtype of `C`."""
        return mamba_scan.read_out(states, terms.C)

    def run(self, terms: SelectiveTerms, initial: Tensor) -> Run:
        """Readout and last state; memory beyond them is a few chunks."""
        return Run(*mamba_scan.selective_scan(*terms, initial))

    def states(self, terms: SelectiveTerms, initial: Tensor) -> Tensor:
        """The state after every token."""
        if torch.is_grad_enabled():
            return self.explicit_operator.states(self.explicit(terms), initial)
        return self._seen(terms, initial).states

    def adjoint(self, terms: SelectiveTerms, grad: Tensor, mask: Tensor | None = None) -> Tensor:
        """g_t = grad_t + exp(Δ_{t+1} A) ⊙ g_{t+1}."""
        return self.explicit_operator.adjoint(self.explicit(terms), grad, mask)

    def persist(
        self, states: Tensor, hooked: Tensor, mask: Tensor | None, terms: SelectiveTerms, initial: Tensor
    ) -> Tensor:
        """The trajectory that an edited one stands for."""
        if torch.is_grad_enabled():
            return self.explicit_operator.persist(states, hooked, mask, self.explicit(terms), initial)
        if mask is None:
            return hooked
        return self._edited(SelectiveStates(states, self.readout(states, terms)), hooked, mask, terms, initial).states

    def hooked(self, terms: SelectiveTerms, initial: Tensor, hook: Hook) -> Hooked:
        """A run whose trajectory a hook sees.

        Without gradients decays and writes are made a few tokens at a time, so that little memory is needed beside
        the states; all at once only where an edit has to be carried on and there is no CPU's cache to gain from.
        """
        if torch.is_grad_enabled():
            return self.explicit_operator.hooked(self.explicit(terms), initial, hook)
        was = self._seen(terms, initial)
        value, mask = hook(was.states)
        now = SelectiveStates(value, was.y) if mask is None else self._edited(was, value, mask, terms, initial)
        return Hooked(now.y, now.states[:, -1], now.states)

    def handed_on(self, terms: SelectiveTerms, acting: Tensor, change: Tensor) -> Tensor:
        """exp(Δ_t A) ⊙ D_{t-1}."""
        return self.explicit_operator.handed_on(self.explicit(terms), acting, change)

    def hidden_attention(self, terms: SelectiveTerms) -> Tensor:
        """Means over all channels, or over each head's (`hybridlens.recurrences.diagonal.channel_attention`)."""
        decay, groups = self.explicit(terms).decay, self.explicit_operator.groups
        return channel_attention(decay, self.source(terms), terms.C, groups)

    def _seen(self, terms: SelectiveTerms, initial: Tensor) -> SelectiveStates:
        """Every state and its readout, without gradients."""
        if terms.dt.device.type == "cpu":
            return mamba_scan.selective_states(*terms, initial)
        # Elsewhere a loop would be many small launches.
        batch, length, width = terms.dt.shape
        states = terms.dt.new_empty(batch, length, width, terms.A.shape[1], dtype=torch.float32)
        step = mamba_scan.chunk_length(batch, terms.A.numel(), terms.dt.device)
        previous = initial
        for start in range(0, length, step):
            part = slice(start, start + step)
            some = self.explicit(self.at(terms, part))
            states[:, part] = scan.linear_scan(some.decay, some.write, previous)
            previous = states[:, part][:, -1]
        return SelectiveStates(states, self.readout(states, terms))

    def _edited(
        self, was: SelectiveStates, value: Tensor, mask: Tensor, terms: SelectiveTerms, initial: Tensor
    ) -> SelectiveStates:
        """The trajectory that an edited one stands for, read out, without gradients."""
        if terms.dt.device.type == "cpu":
            return mamba_scan.edited_states(was, value, mask, *terms, initial)
        some = self.explicit(terms)
        states = scan.persistent_states(value, mask, some.decay, some.write, initial)
        return SelectiveStates(states, self.readout(states, terms))
