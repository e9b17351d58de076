"""The diagonal recurrence, S_t = a_t ⊙ S_{t-1} + w_t: RG-LRU's, and Mamba's where its decays and writes are given.

How it fails: as `hybridlens.recurrences.scan` does.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridlens.errors import InputError
from hybridlens.recurrences import scan
from hybridlens.recurrences.base import Hooked, Run
from hybridlens.recurrences.decomposing import Decomposable
from hybridlens.recurrences.edits import Hook
from hybridlens.recurrences.kernels import choice
from hybridlens.recurrences.mamba_scan import read_out
from hybridlens.recurrences.terms import before


class DiagonalTerms(NamedTuple):
    """What goes into a diagonal recurrence."""

    decay: Float[Tensor, "*lead channel *state"]
    write: Float[Tensor, "*lead channel *state"]
    C: Float[Tensor, "*lead state"] | Float[Tensor, "*lead group state"] | None = None
    """The readout y = S C, done in its dtype, of all channels or each group's own; None where the state is read."""
    source: Float[Tensor, "*lead channel *state"] | None = None
    """What a unit of the layer's input puts into the state; only hidden attention asks for it."""


class Diagonal(Decomposable[DiagonalTerms]):
    """An elementwise recurrence.

    Args:
        shape: of one row's state, (c,) or (c, n).
        groups: equal consecutive blocks of channels over which hidden attention is averaged, its heads.
    """

    def __init__(self, shape: tuple[int, ...], groups: int = 1) -> None:
        super().__init__(shape)
        self.groups = groups

    def hold(self, terms: DiagonalTerms, valid: Bool[Tensor, "batch pos"] | None) -> DiagonalTerms:
        """Decay 1 and write 0 where not valid."""
        if valid is None:
            return terms
        there = valid.reshape(*valid.shape, *[1] * len(self.shape))
        return terms._replace(decay=torch.where(there, terms.decay, 1.0), write=torch.where(there, terms.write, 0.0))

    def step(self, previous: Tensor, terms: DiagonalTerms) -> Tensor:
        """a ⊙ S + w."""
        return torch.addcmul(terms.write, terms.decay, previous)

    def carry(self, state: Tensor, terms: DiagonalTerms) -> Tensor:
        """a ⊙ S."""
        return terms.decay * state

    def carry_back(self, grad: Tensor, terms: DiagonalTerms) -> Tensor:
        """a ⊙ g."""
        return terms.decay * grad

    def readout(self, states: Float[Tensor, "batch pos channel *state"], terms: DiagonalTerms) -> Tensor:
        """S C, in the dtype of `C`; without one, S."""
        if terms.C is None or terms.C.ndim < states.ndim:
            return states if terms.C is None else read_out(states, terms.C)
        parts = zip(states.chunk(self.groups, dim=-2), terms.C.unbind(-2), strict=True)
        return torch.cat([read_out(part, C) for part, C in parts], dim=-1)

    def run(self, terms: DiagonalTerms, initial: Tensor) -> Run:
        """As `states`, read out."""
        states = self.states(terms, initial)
        return Run(self.readout(states, terms), states[:, -1])

    def states(self, terms: DiagonalTerms, initial: Tensor) -> Tensor:
        """The state after every token."""
        if terms.write.shape[1] == 1 and not torch.is_grad_enabled():  # a single token: nothing is rearranged
            return self.step(initial[:, None], terms)
        return scan.linear_scan(terms.decay, terms.write, initial)

    def adjoint(self, terms: DiagonalTerms, grad: Tensor, mask: Tensor | None = None) -> Tensor:
        """g_t = grad_t + a_{t+1} ⊙ g_{t+1}."""
        return scan.adjoint(terms.decay if mask is None else terms.decay.masked_fill(mask, 0.0), grad)

    def persist(
        self, states: Tensor, hooked: Tensor, mask: Tensor | None, terms: DiagonalTerms, initial: Tensor
    ) -> Tensor:
        """The trajectory that an edited one stands for, in one more scan."""
        if hooked.requires_grad:
            return cast(Tensor, _Persist.apply(hooked, mask, terms.decay, terms.write, initial))
        return hooked if mask is None else scan.persistent_states(hooked, mask, terms.decay, terms.write, initial)

    def hooked(self, terms: DiagonalTerms, initial: Tensor, hook: Hook) -> Hooked:
        """A run whose trajectory a hook sees; it has the bits of `run` by itself."""
        used = self.used(*self.tapped(terms, initial, hook), terms, initial)
        return Hooked(self.readout(used, terms), used[:, -1], used)

    def handed_on(self, terms: DiagonalTerms, acting: Tensor, change: Tensor) -> Tensor:
        """a_t ⊙ D_{t-1}, in one scan."""
        nothing = torch.zeros_like(change[:, 0])
        given = torch.where(acting, change, 0.0)
        decay = terms.decay.to(change.dtype)
        changed = scan.linear_scan(decay.masked_fill(acting, 0.0), given, nothing)
        return decay * before(changed, nothing)

    def hidden_attention(self, terms: DiagonalTerms) -> Tensor:
        """Means over blocks of channels; see `channel_attention`."""
        if terms.source is None:
            raise InputError("hidden attention was asked for without `source`; give what a unit of input writes")
        return channel_attention(terms.decay, terms.source, terms.C, self.groups)

    def by_head(self, states: Tensor) -> Float[Tensor, "*lead rec_head value address"]:
        """Blocks of channels, by what each channel holds."""
        addressed = states if len(self.shape) > 1 else states[..., None]
        return addressed.unflatten(-2, (self.groups, -1))

    def decays(self, terms: DiagonalTerms) -> Float[Tensor, "batch pos rec_head entry"]:
        """Of every entry."""
        return self.by_head(terms.decay).flatten(-2)

    def offered(self, terms: DiagonalTerms) -> Tensor:
        """The writes."""
        return terms.write

    def silenced(self, terms: DiagonalTerms, tokens: Bool[Tensor, "#batch pos"]) -> DiagonalTerms:
        """Write 0."""
        return terms._replace(write=terms.write.masked_fill(tokens.reshape(*tokens.shape, *[1] * len(self.shape)), 0.0))


def channel_attention(
    decay: Float[Tensor, "batch pos channel *state"],
    source: Float[Tensor, "batch pos channel *state"],
    readout: Float[Tensor, "batch pos state"] | Float[Tensor, "batch pos group state"] | None,
    groups: int,
) -> Float[Tensor, "batch head pos pos"]:
    """M[t, j] = Σ_n readout[t, n] · ∏_{j<s≤t} decay[s] · source[j], averaged over blocks of channels.

    Ali et al. 2024, "The Hidden Attention of Mamba Models", has it per channel. Time and memory grow with the square
    of the length times the channels.

    Args:
        decay: of all tokens.
        source: what a unit of the layer's input puts into the state.
        readout: what the output takes from the state, of all channels or of each block; None for the state itself.
        groups: equal consecutive blocks of channels.
    """
    rows, length = list[Tensor](), decay.shape[1]
    apart = readout is not None and readout.ndim > 3
    carried = source[:, :0]
    for t in range(length):
        carried = torch.cat([carried * decay[:, t, None], source[:, t, None]], dim=1)  # [b, j, c, *n]
        read = carried
        if readout is not None:
            given = carried.unflatten(2, (groups, -1)) if apart else carried
            read = torch.matmul(given, readout[:, t, None, ..., None].to(carried.dtype))[..., 0]
        blocks = read if apart else read.unflatten(2, (groups, -1))
        row = blocks.mean(-1).transpose(1, 2)  # [b, h, j]
        rows.append(F.pad(row, (0, length - 1 - t)))
    return torch.stack(rows, dim=2)


class _Persist(torch.autograd.Function):
    """`persistent_states` whose gradient at every entry of the hooked trajectory is the total one."""

    @staticmethod
    def forward(
        ctx: Any, hooked: Tensor, mask: Bool[Tensor, "..."] | None, decay: Tensor, write: Tensor, initial: Tensor
    ) -> Tensor:
        if mask is None:
            used, kept = hooked.clone(), decay
        else:
            kept = decay.masked_fill(mask, 0.0)
            used = scan.linear_scan(kept, torch.where(mask, hooked, write), initial)
        ctx.kernels = choice.wanted()
        ctx.save_for_backward(mask, kept, used, initial)
        return used

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, None, Tensor, Tensor, Tensor]:
        mask, kept, used, initial = ctx.saved_tensors
        total = scan.adjoint(kept, grads[0], ctx.kernels)
        own = total if mask is None else total.masked_fill(mask, 0.0)
        return total, None, own * before(used, initial), own, kept[:, 0] * total[:, 0]
