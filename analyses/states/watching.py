"""Every recurrent layer's states in one run, each seen as it is made and then let go.

Prompts may be of different lengths: what a measure says of a prompt's padding is no number of its, and is NaN in
results (`Rows`).

How it fails: one layer's states of all rows are held at a time, which is ``rows × positions × state`` numbers; give
fewer rows where that is too much. Hooks that are on the lens act, and what is seen is the run with them; at a layer's
writes, recalls and states there may be none, since what they leave is no longer what its tokens put in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from analyses.patching.alignment import places_of
from hybridlens.boundary import Natural
from hybridlens.errors import InputError
from hybridlens.hooks import HookFunction, HookPoint, NameFilter, reads_only
from hybridlens.mixers.recurring import HasDynamics
from hybridlens.model import HybridLens
from hybridlens.padding import TokenBatch
from hybridlens.recurrences import Decomposable
from hybridlens.shapes import Valid
from hybridlens.tokens import TokensLike

T = TypeVar("T")

UNHOOKED = ("hook_write", "hook_recall", "hook_state")
"""Hook points of a mixer at which an edit is no part of its terms."""


class Watched(NamedTuple):
    """One layer of a run."""

    operator: Decomposable[Any]
    terms: Any
    """Of all tokens."""
    states: Tensor
    """After every token [b p *state]."""


class Rows(NamedTuple):
    """Prompts as rows, padded on the right where they differ in length."""

    batch: TokenBatch
    lengths: tuple[int, ...]
    """Tokens of each."""

    @property
    def length(self) -> int:
        """Tokens of the longest."""
        return max(self.lengths)

    @property
    def unequal(self) -> tuple[int, ...]:
        """The lengths, where they differ; else nothing."""
        return () if self.batch.lengths is None else self.lengths

    @property
    def real(self) -> Valid:
        """True at tokens, False at padding [b p], on the CPU."""
        return torch.arange(self.length) < torch.tensor(self.lengths)[:, None]

    def places(self, positions: Sequence[int]) -> tuple[tuple[int, ...], Tensor, Valid]:
        """Positions as results name them, where they lie in each row [b n], and whether the row has them.

        Those below 0 count from each prompt's own end; with prompts of one length they are turned to count from its
        start.

        Raises:
            InputError: a position that no prompt has.
        """
        found = places_of(positions, self.length)
        if not self.unequal:
            at = torch.tensor(found, dtype=torch.long).expand(len(self.lengths), -1)
            return tuple(found), at, torch.ones_like(at, dtype=torch.bool)
        ends = torch.tensor(self.lengths)[:, None]
        given = torch.tensor([int(position) for position in positions], dtype=torch.long)
        at = torch.where(given < 0, ends + given, given)
        there = (at >= 0) & (at < ends)
        return tuple(given.tolist()), at.clamp(0, self.length - 1), there


def watch(lens: HybridLens, rows: Rows, layers: Sequence[int], measure: Callable[[Watched], T], what: str) -> list[T]:
    """What `measure` makes of each layer, in the order of `layers`.

    Args:
        lens: the model.
        rows: the prompts.
        layers: of `chosen_layers`.
        measure: called once a layer, while the run goes on.
        what: is measured, for the message.

    Raises:
        InputError: layers whose states are not of one shape, which no one tensor can hold; or hooks on the lens at
            their writes, recalls or states.
    """
    shapes = {lens.cfg.recurrence(layer).state_shape for layer in layers}
    if len(shapes) > 1:
        each = ", ".join(map(str, sorted(shapes)))
        raise InputError(f"{what} was asked of layers whose states differ in shape ({each}); give layers= of one shape")
    found: dict[int, T] = {}
    hooks = [hook for layer in layers for hook in _watching(lens, layer, measure, found)]
    with torch.no_grad(), lens.hooks(hooks):
        lens.network(*rows.batch, None, True)
    return [found[layer] for layer in layers]


def _watching(
    lens: HybridLens, layer: int, measure: Callable[[Watched], T], found: dict[int, T]
) -> list[tuple[NameFilter, HookFunction]]:
    """Hooks on one layer that keep what its terms are made of until its states come by."""
    owner = f"blocks.{layer}.ssm"
    mixer = lens.network.get_submodule(owner)
    assert isinstance(mixer, HasDynamics)
    for name in UNHOOKED:
        point = getattr(mixer, name, None)
        if isinstance(point, HookPoint) and point.asked():
            raise InputError(
                f"a hook is on '{owner}.{name}', and what it leaves there cannot be taken apart; take it off, or edit "
                "what the tokens write, decay or read instead"
            )
    dynamics, seen = mixer.dynamics, dict[str, Tensor]()

    @reads_only
    def keep(tensor: Tensor, hook: HookPoint) -> None:
        seen[cast(str, hook.name).rpartition(".")[2]] = tensor

    @reads_only
    def judge(states: Tensor, hook: HookPoint) -> None:
        found[layer] = measure(Watched(dynamics.operator, dynamics.terms(cast(Mapping[str, Tensor], seen)), states))
        seen.clear()

    return [*((f"{owner}.{point}", keep) for point in dynamics.points), (f"{owner}.hook_state", judge)]


def layer_lines(values: Tensor, layers: Sequence[int], most: int = 5) -> dict[str, list[float]]:
    """Measures [layer row head place] as lines over places, means over rows and heads; of layers evenly spread."""
    shown = sorted({round(i * (len(layers) - 1) / max(1, most - 1)) for i in range(most)})
    means = values.double().nanmean(dim=(1, 2))
    return {f"L{layers[i]}": means[i].tolist() for i in shown if i < len(layers)}


def chosen_layers(lens: HybridLens, layers: Sequence[Natural] | None, what: str) -> tuple[int, ...]:
    """Layers that hold a state: those given, or all.

    Raises:
        InputError: the model holds no states, or one of the layers does not.
    """
    lens.cfg.need_states(what)
    if layers is None:
        return lens.cfg.state_layers
    for layer in layers:
        lens.cfg.recurrence(layer)
        if layer not in lens.cfg.state_layers:
            raise lens.cfg.lacks(layer, "state-holding", lens.cfg.state_layers)
    if not layers or len(set(layers)) < len(layers):
        raise InputError(f"layers {list(layers)} given, expected at least one, each once")
    return tuple(layers)


def rows_of(lens: HybridLens, prompts: TokensLike) -> Rows:
    """Prompts as the lens lays them out."""
    batch = lens.batch(prompts)
    n, width = batch.tokens.shape
    return Rows(batch, (width,) * n if batch.lengths is None else tuple(batch.lengths.tolist()))


def blank(values: Tensor, real: Valid, axis: int) -> Tensor:
    """Measures [b …] with NaN where a row has no token, along one of their axes of positions."""
    shape = [1] * values.ndim
    shape[0], shape[axis] = real.shape
    return values.masked_fill(~real.view(shape).to(values.device), torch.nan)
