"""Every recurrent layer's states in one run, each seen as it is made and then let go.

How it fails: prompts of unequal length are refused, since a row's states would stand beside another's padding. One
layer's states of all rows are held at a time, which is ``rows × positions × state`` numbers; give fewer rows where that
is too much. Hooks that are on the lens act, and what is seen is the run with them; at a layer's writes, recalls and
states there may be none, since what they leave is no longer what its tokens put in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from hybridlens.boundary import Natural
from hybridlens.errors import InputError
from hybridlens.hooks import HookFunction, HookPoint, NameFilter, reads_only
from hybridlens.mixers.recurring import HasDynamics
from hybridlens.model import HybridLens
from hybridlens.recurrences import Decomposable
from hybridlens.shapes import Tokens
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


def watch(
    lens: HybridLens, tokens: Tokens, layers: Sequence[int], measure: Callable[[Watched], T], what: str
) -> list[T]:
    """What `measure` makes of each layer, in the order of `layers`.

    Args:
        lens: the model.
        tokens: the prompts.
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
        lens.network(tokens, None, None, True)
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


def of_one_length(lens: HybridLens, prompts: TokensLike) -> Tokens:
    """Prompts [b p]; those of unequal length are refused."""
    batch = lens.batch(prompts)
    if batch.lengths is not None:
        lengths = ", ".join(map(str, batch.lengths.tolist()[:8]))
        raise InputError(f"prompts of {lengths} tokens were given, expected equal lengths; give them one by one")
    return batch.tokens
