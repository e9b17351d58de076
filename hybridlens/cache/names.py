"""Names of activations, as they are typed: full names, aliases, and TransformerLens' shorthands.

``cache["z", 2]``, ``cache["z2"]`` and ``cache["blocks.2.attn.hook_z"]`` are one activation; layers count from the end
where they are negative. A shorthand that says no part of a layer means what TransformerLens takes it for (``v`` is
attention's), or else the one part that has such a point: ``cache["state", 1]`` is ``blocks.1.ssm.hook_state``.

How it fails: a name that the model lacks raises `NotCachedError`, saying which layers have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from hybridlens.aliases import table_name
from hybridlens.boundary_words import shown
from hybridlens.errors import NotCachedError, UnknownNameError
from hybridlens.hooks import HookPoint, check_name
from hybridlens.peers import get_act_name

PARTS = ("attn", "ssm", "mlp")
"""The parts of a layer that have hook points of their own."""


def full_name(key: Any, points: Mapping[str, HookPoint], n_layers: int) -> str:
    """The hook point's name that a key stands for.

    Args:
        key: a name or a shorthand, or (name, layer), or (name, layer, part).
        points: the model's.
        n_layers: how many layers it has.

    Raises:
        NotCachedError: the key names nothing that the model has.
    """
    name = _spelled(key, points, n_layers)
    try:
        return check_name(name, points)
    except UnknownNameError as error:
        raise NotCachedError(str(error)) from error


def layers_with(
    name: str, part: str | None, points: Mapping[str, HookPoint], n_layers: int, before: int | None = None
) -> list[int]:
    """The layers that have a point of that name.

    Args:
        name: a shorthand, as in ``cache[name, layer]``.
        part: of which part; None for what the name says.
        points: the model's.
        n_layers: how many layers it has.
        before: only layers before this one; None for all.

    Raises:
        NotCachedError: no layer has one.
    """
    found = [layer for layer in range(n_layers) if _spelled((name, layer, part), points, n_layers) in points]
    if not found:
        full_name((name, 0, part), points, n_layers)  # which says what is near
    return [layer for layer in found if before is None or layer < before]


def _spelled(key: Any, points: Mapping[str, HookPoint], n_layers: int) -> str:
    """A full name, whether the model has it or not."""
    if isinstance(key, str):
        if "." in key or table_name(key, points) in points:  # a full name, whether there is one or not
            return table_name(key, points)
        found = _with_part(get_act_name(key), points)
        if found not in points and any(point.startswith("blocks.") and point.endswith(f".{found}") for point in points):
            raise NotCachedError(f"{shown(key)} was given without its layer; type cache[{key!r}, layer]")
        return found
    if not isinstance(key, tuple) or not key or not isinstance(key[0], str) or len(key) > 3:
        raise NotCachedError(
            f"{shown(key)} names no activation; expected a hook point's name, or (name, layer), as in ('resid_post', 2)"
        )
    parts = cast(tuple[Any, ...], key)
    name, layer, part = cast(tuple[str, Any, Any], (*parts, None, None)[:3])
    if layer is not None and (isinstance(layer, bool) or not hasattr(layer, "__index__")):
        if f"{layer}.hook_{name}" in points:
            raise _of_the_model(key, f"{layer}.hook_{name}")
        raise NotCachedError(f"layer {shown(layer)} given in {shown(key)}, expected a whole number")
    at = None if layer is None else _counted(layer.__index__(), n_layers)
    if at is None and f"{part}.hook_{name}" in points:
        return f"{part}.hook_{name}"
    if at is not None and part is None:
        if f"blocks.{at}.{name}" in points:  # without its layer, as in ("attn.hook_z", 2)
            return f"blocks.{at}.{name}"
        if f"hook_{name}" in points:
            raise _of_the_model(key, f"hook_{name}")
    if part in PARTS and f"blocks.{at}.{part}.hook_{name}" in points:  # TransformerLens takes some for attention's
        return f"blocks.{at}.{part}.hook_{name}"
    return table_name(_with_part(get_act_name(name, at, part), points), points)


def _of_the_model(key: Any, name: str) -> NotCachedError:
    return NotCachedError(f"{shown(key)} was given, but {name} is a point of the whole model; type cache[{name!r}]")


def _counted(layer: int, n_layers: int) -> int:
    if not -n_layers <= layer < n_layers:
        raise NotCachedError(f"layer {shown(layer)} given, but the model has layers 0..{n_layers - 1}")
    return layer % n_layers


def _with_part(name: str, points: Mapping[str, HookPoint]) -> str:
    """A name that says no part with the one part that has such a point; as it is where none or several have."""
    start, _, hook = name.rpartition(".")
    if name in points or not start.startswith("blocks.") or start.count(".") != 1:
        return name
    found = [f"{start}.{part}.{hook}" for part in PARTS if f"{start}.{part}.{hook}" in points]
    return found[0] if len(found) == 1 else name
