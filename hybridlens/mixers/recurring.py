"""What all recurrent mixers do alike: convolve, start from what is held, run past the hook on the state, remember."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor, nn

from hybridlens.config import RecurrentConfig
from hybridlens.hooks import HookPoint, wanted
from hybridlens.memory import Memory, Recurrent
from hybridlens.mixers.named import RecurrenceByName
from hybridlens.passes import Pass
from hybridlens.projections import Projection
from hybridlens.recurrences.base import Recurrence, Run
from hybridlens.recurrences.convolution import causal_convolution
from hybridlens.recurrences.decomposing import Decomposable
from hybridlens.recurrences.diagonal import Diagonal, DiagonalTerms
from hybridlens.recurrences.scalar import Scalar, ScalarTerms
from hybridlens.recurrences.terms import T
from hybridlens.shapes import Channels, ConvState, Valid

R = TypeVar("R", bound=Recurrence[Any])
"""A mixer's operator."""


class Trajectory(NamedTuple):
    """A hook point of a mixer at which a token's value goes on from those of the tokens before it."""

    points: tuple[str, ...]
    """Hook points of the mixer that say how."""
    first_order: Callable[[Mapping[str, Tensor], Tensor, Tensor, Tensor], Tensor]
    """(their activations, mask, change, gradient) → what replacing several values changes; see
    `hybridlens.recurrences.base.Recurrence.first_order`."""


@runtime_checkable
class HasTrajectories(Protocol):
    """A mixer some of whose values go on from token to token."""

    @property
    def trajectories(self) -> dict[str, Trajectory]:
        """Those, by hook point of the mixer."""
        ...


class Dynamics(NamedTuple):
    """A mixer's recurrence as it was in a run."""

    operator: Decomposable[Any]
    points: tuple[str, ...]
    """Hook points of the mixer that fire before `hook_state` and say all of it."""
    terms: Callable[[Mapping[str, Tensor]], Any]
    """From their activations to the operator's terms, edits of writes, recalls and states left out."""


@runtime_checkable
class HasDynamics(Protocol):
    """A mixer that holds a state."""

    @property
    def dynamics(self) -> Dynamics:
        """Its recurrence, from activations."""
        ...


def state_trajectory(
    op: Recurrence[T], points: tuple[str, ...], terms: Callable[[Mapping[str, Tensor]], T]
) -> dict[str, Trajectory]:
    """The trajectory of a mixer's states.

    Args:
        op: the recurrence.
        points: hook points of the mixer.
        terms: from their activations to terms that hand states on as the run's do; what is written is left out.
    """

    def first_order(seen: Mapping[str, Tensor], mask: Tensor, change: Tensor, gradient: Tensor) -> Tensor:
        return op.first_order(terms(seen), mask, change, gradient)

    return {"hook_state": Trajectory(points, first_order)}


def scalar_trajectory(op: Scalar) -> dict[str, Trajectory]:
    """The trajectory of states that decay by one number a head, which `hook_decay` shows.

    Args:
        op: the recurrence.
    """

    def terms(seen: Mapping[str, Tensor]) -> ScalarTerms:
        decay = seen["hook_decay"]
        return ScalarTerms(decay, decay[..., None], decay[..., None], decay[..., None])

    return state_trajectory(op, ("hook_decay",), terms)


def convolved(x: Channels, conv: nn.Module, run: Pass, held: Memory | None) -> tuple[Channels, ConvState]:
    """A mixer's convolution of its channels, and the inputs that the next token's needs.

    Args:
        x: the channels of the new tokens.
        conv: the family's ``nn.Conv1d``, whose weights are at hand.
        run: the forward pass.
        held: the mixer's memory of earlier tokens.
    """
    before = None if held is None else cast(Recurrent, held).conv
    weights: Any = conv
    return causal_convolution(x, before, weights.weight, weights.bias, run.valid)


def held_state(op: Recurrence[Any], held: Memory | None, like: Tensor) -> Tensor:
    """The state that a pass goes on from, float32."""
    state = None if held is None else cast(Recurrent, held).recurrent
    return op.empty(like.shape[0], like.device) if state is None else state


def through(op: Recurrence[T], terms: T, initial: Tensor, point: HookPoint, valid: Valid | None) -> Run:
    """A run past the hook on the state; every state is made only if somebody asks for it.

    Args:
        op: the recurrence.
        terms: of the new tokens; nothing happens in them at padding.
        initial: the state before them.
        point: `hook_state`.
        valid: False on padding, where edits mean nothing.
    """
    if not wanted(point):
        return op.run(terms, initial)

    def hook(states: Tensor) -> tuple[Tensor, Tensor | None]:
        value, mask = point.edited(states)
        if valid is None or mask is None:
            return value, mask
        real = valid.reshape(*valid.shape, *[1] * (states.ndim - 2))
        return torch.where(real, value, states), mask & real

    hooked = op.hooked(terms, initial, hook)
    return Run(hooked.y, hooked.final)


def remember(conv: ConvState | None, final: Tensor) -> Recurrent:
    """A mixer's memory, sharing no storage with the whole trajectory; no convolution, no inputs of one."""
    return Recurrent(conv, final.float().clone())


class RecurrentMixer(RecurrenceByName, Generic[R]):
    """A mixer that remembers a state and the last inputs of its convolution, if it has one.

    Args:
        cfg: its sizes.
        recurrence: its operator.
        out: to the residual stream.
    """

    def __init__(self, cfg: RecurrentConfig, recurrence: R, out: Projection) -> None:
        super().__init__()
        self.cfg = cfg
        self.recurrence = recurrence
        self.out = out

    def out_bias(self) -> Tensor | None:
        """What it writes whatever it reads; None for nothing."""
        return self.out.bias()

    def empty(self, batch: int, dtype: torch.dtype, device: torch.device) -> Memory:
        """What `batch` rows hold that have read nothing."""
        cfg, conv = self.cfg, None
        if cfg.d_conv:
            conv = torch.zeros(batch, cfg.d_conv - 1, cfg.d_conv_channels, dtype=dtype, device=device)
        return Recurrent(conv, self.recurrence.empty(batch, device))


class DiagonalMixer(RecurrentMixer[R]):
    """One whose state decays entry by entry, by what `hook_decay` shows.

    Args:
        cfg: its sizes.
        recurrence: its operator.
        out: to the residual stream.
        diagonal: the operator of its decays and writes, once they are made.
    """

    def __init__(self, cfg: RecurrentConfig, recurrence: R, out: Projection, diagonal: Diagonal) -> None:
        super().__init__(cfg, recurrence, out)
        self.diagonal = diagonal

    @property
    def trajectories(self) -> dict[str, Trajectory]:
        """Its states go on from token to token."""

        def terms(seen: Mapping[str, Tensor]) -> DiagonalTerms:
            return DiagonalTerms(seen["hook_decay"], seen["hook_decay"])

        return state_trajectory(self.diagonal, ("hook_decay",), terms)

    @property
    def dynamics(self) -> Dynamics:
        """Its recurrence, from activations."""
        points = ("hook_decay", "hook_write")
        return Dynamics(self.diagonal, points, lambda seen: DiagonalTerms(*(seen[point] for point in points)))
