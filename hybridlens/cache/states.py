"""States and hidden attention of recurrent layers, from what a run kept at their hook points.

How it fails: a layer that holds no state, or has no recurrence, is refused in one line that says which layers have;
what was not kept is named (`NotCachedError`). Hidden attention grows with the square of the length, so that a run keeps
it only where it is asked for by name.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hybridlens.boundary_words import shown
from hybridlens.cache.held import Held
from hybridlens.cache.residual import stacked
from hybridlens.errors import InputError
from hybridlens.peers import Slice

PerLayer = Tensor | dict[int, Tensor]
"""Of all layers in one tensor where every layer of the model has it and all are alike; else by layer."""


def states(held: Held, layer: int | None, time_step: int | None) -> PerLayer:
    """The states after each token [batch pos *state], or after one of them [batch *state].

    Args:
        held: the cache.
        layer: which; None for all that hold a state.
        time_step: the position; None for all.

    Raises:
        InputError: the layer holds no state, or there is no such position.
        NotCachedError: the states were not kept.
    """
    cfg = held.network.cfg
    cfg.need_states("compute_ssm_state")
    layers = _layers(held, layer, cfg.state_layers, "holds a recurrent state")
    held.need([f"blocks.{i}.ssm.hook_state" for i in layers], "compute_ssm_state")
    pos = Slice(time_step)
    found = {}
    for i in layers:
        name = f"blocks.{i}.ssm.hook_state"
        found[i] = held.handed(held.rows(name, pos, "time_step"), name, pos, axis=0)
    return _gathered(held, found, layer)


def hidden_attention(held: Held, layer: int | None) -> PerLayer:
    """What each position's readout takes of each earlier token's input, [batch head query key].

    Args:
        held: the cache.
        layer: which; None for all with a recurrence.

    Raises:
        InputError: the layer has no recurrence.
        NotCachedError: it was not kept, which has to be asked for.
    """
    what, cfg = "compute_ssm_effective_attention", held.network.cfg
    if not cfg.ssm_layers:
        raise InputError(f"{what} needs recurrent layers, but this {cfg.family} model has none")
    layers = _layers(held, layer, cfg.ssm_layers, "has a recurrence")
    names = {i: f"blocks.{i}.ssm.hook_pattern" for i in layers}
    held.need(names.values(), what)
    return _gathered(held, {i: held.tensors[name] for i, name in names.items()}, layer)


def _layers(held: Held, layer: int | None, having: Sequence[int], what: str) -> list[int]:
    if layer is None:
        return list(having)
    n = held.n_layers
    whole = not isinstance(layer, bool) and hasattr(layer, "__index__")
    if not whole or not -n <= layer.__index__() < n:
        raise InputError(f"layer {shown(layer)} given, but the model has layers 0..{n - 1}")
    if layer % n not in having:
        raise InputError(f"no part of layer {layer % n} {what}; layers {', '.join(map(str, having))} have such a part")
    return [layer % n]


def _gathered(held: Held, found: dict[int, Tensor], layer: int | None) -> PerLayer:
    if layer is not None:
        return next(iter(found.values()))
    alike = len({tuple(one.shape) for one in found.values()}) == 1
    return stacked(list(found.values())) if alike and len(found) == held.n_layers else found
