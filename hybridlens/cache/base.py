"""What every part of `HybridCache` builds on: its names, its rows and places.

How it fails: a name that the model or a layer lacks, or that the run did not keep, raises `NotCachedError`; rows that
there are not, `InputError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from hybridlens.boundary import public
from hybridlens.cache.held import Chosen, Held, Labelled, counted, rows_of_layout, slice_of, taken
from hybridlens.cache.names import full_name, layers_with
from hybridlens.devices import usable
from hybridlens.display import Displayed, Table, many, size
from hybridlens.display.markup import Plain
from hybridlens.errors import InputError, NotCachedError, RowsError
from hybridlens.hooks import HookPoint
from hybridlens.padding import Layout
from hybridlens.peers import ActivationCache
from hybridlens.shapes import AXES
from hybridlens.text import TokenFront

Cache = TypeVar("Cache", bound="NamedCache")
"""The class that a method gives back: its own."""


class NamedCache(Displayed, ActivationCache):
    """Activations by name, and the rows that they are of.

    Args:
        cache_dict: by hook point, [batch pos …].
        model: the lens that ran.
        has_batch_dim: whether activations have an axis of rows.
        layout: where rows of different lengths have their tokens, so that positions are counted among them; None where
            all rows hold the same positions.
    """

    def __init__(
        self, cache_dict: dict[str, Tensor], model: Any, has_batch_dim: bool = True, layout: Layout | None = None
    ) -> None:
        super().__init__(cache_dict, model, has_batch_dim)
        self.layout = layout

    # What it shows.

    def summary(self) -> str:
        """How much of what."""
        model: Any = self.model
        rows = many(self._batch_size(), "row") if self.has_batch_dim else "one prompt"
        family = "no model" if model is None else f"a {self._lens.network.cfg.family} model"
        held = sum(value.numel() * value.element_size() for value in self.cache_dict.values())
        return f"{many(len(self.cache_dict), 'activation')} of {family}, {rows}, {size(held)}"

    def row(self) -> dict[str, Plain]:
        """What it is in a table of several."""
        return {"activations": len(self.cache_dict), "rows": self._batch_size() if self.has_batch_dim else None}

    def table(self) -> Table:
        """Every activation: its name, its axes where the model is known, its shape and dtype."""
        model: Any = self.model
        points = {} if model is None else self._points
        rows = [
            (
                name,
                " ".join(points[name].axes) if name in points else None,
                " × ".join(map(str, value.shape)),
                str(value.dtype).removeprefix("torch."),
            )
            for name, value in self.cache_dict.items()
        ]
        letters = dict.fromkeys(axis for row in rows for axis in (row[1] or "").split())
        said = ", ".join(f"{axis} {AXES[axis]}" for axis in letters if axis in AXES)
        return Table(("name", "axes", "shape", "dtype"), rows, {"axes": said} if said else {})

    # Names.

    def __getitem__(self, key: Any) -> Tensor:
        """An activation, by its name or TransformerLens' shorthands: ``cache["z", 2]``, ``cache["resid_post", -1]``.

        Raises:
            NotCachedError: the model, or the layer, has no such point, saying which layers have; or it was not kept.
        """
        if isinstance(key, str) and key in self.cache_dict:
            return self.cache_dict[key]
        name = full_name(key, self._points, self._lens.network.cfg.n_layers)
        if name not in self.cache_dict:
            raise NotCachedError(
                f"{name} is not in this cache; run_with_cache keeps it if names_filter names it"
                + ("" if self._points[name].read_only else ", or is left out")
            )
        return self.cache_dict[name]

    def __contains__(self, key: object) -> bool:
        """Whether ``cache[key]`` is there."""
        try:
            self[key]
        except NotCachedError:
            return False
        return True

    def get(self, key: Any, default: Any = None) -> Any:
        """``cache[key]``, or `default` where it is not there."""
        try:
            return self[key]
        except NotCachedError:
            return default

    @public
    def layers_with(self, activation_name: str, sublayer_type: str | None = None) -> list[int]:
        """The layers of the model that have a point of this name, in order: those that `stack_activation` stacks.

        Args:
            activation_name: as in ``cache[activation_name, layer]``.
            sublayer_type: of which part, where the name does not say it.

        Raises:
            NotCachedError: no layer has one.
        """
        return layers_with(activation_name, sublayer_type, self._points, self._lens.network.cfg.n_layers)

    @public
    def stack_activation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        activation_name: str,
        layer: int | None = -1,
        sublayer_type: str | None = None,
        return_labels: bool = False,
    ) -> Tensor | Labelled:
        """An activation of all the layers that have it, stacked; `layers_with` says which, and `return_labels`.

        Args:
            activation_name: as in ``cache[activation_name, layer]``.
            layer: only layers before this one; -1 or None for all.
            sublayer_type: of which part, where the name does not say it.
            return_labels: the layers' names too, as ``2_z``.

        Raises:
            NotCachedError: no layer has it, or it was not kept.
            InputError: layers hold it in different shapes, or the only ones that have it come later.
        """
        held = self._held
        before = counted(layer, held.n_layers)
        every = self.layers_with(activation_name, sublayer_type)
        found = [i for i in every if i < before]
        if not found:
            raise InputError(
                f"no layer before {before} has {activation_name}; layers {', '.join(map(str, every))} have it"
            )
        parts = [self[activation_name, i, sublayer_type] for i in found]
        shapes = sorted({tuple(part.shape) for part in parts})
        if len(shapes) > 1:
            raise InputError(
                f"{activation_name} has different shapes in layers {', '.join(map(str, found))} "
                f"({', '.join(str(list(shape)) for shape in shapes)}), so it cannot be stacked; take it layer by layer"
            )
        stack = torch.stack([part.to(parts[0].device) for part in parts])
        return self._labelled(stack, [f"{i}_{activation_name}" for i in found], return_labels)

    # Rows and places.

    @public
    def remove_batch_dim(self: Cache, batch_size: int | None = None) -> Cache:
        """Drop the axis of rows, here and now; returns the cache.

        Args:
            batch_size: how many rows there are, where the activations do not say it.

        Raises:
            RowsError: there are several rows.
        """
        if not self.has_batch_dim:
            return self
        rows = self._batch_size() if batch_size is None else batch_size
        if rows != 1:
            raise RowsError(
                f"remove_batch_dim needs one row, this cache has {rows}; choose with apply_slice_to_batch_dim"
            )
        for name, value in self.cache_dict.items():
            self.cache_dict[name] = value[0] if value.ndim and value.shape[0] == 1 else value
        self.has_batch_dim = False
        return self

    @public
    def apply_slice_to_batch_dim(self: Cache, batch_slice: Chosen) -> Cache:
        """The cache of some rows; of one alone, without an axis of rows.

        Raises:
            InputError: there are no such rows, or no axis of them.
        """
        some = slice_of(batch_slice, "batch_slice")
        if not self.has_batch_dim:
            if some.mode == "identity":
                return type(self)(dict(self.cache_dict), self.model, False, self.layout)
            raise InputError("batch_slice was given for a cache of one prompt without an axis of rows")
        rows = self._batch_size()
        kept = {
            name: taken(value, some, 0, "batch_slice") if value.ndim and value.shape[0] == rows else value
            for name, value in self.cache_dict.items()
        }
        return type(self)(kept, self.model, some.mode != "int", rows_of_layout(self.layout, some))

    def to(self: Cache, device: torch.device | str) -> Cache:
        """Move the activations to a device, here and now; returns the cache.

        Raises:
            InputError: the device cannot be used here.
        """
        place = usable(device)
        self.cache_dict = {name: value.to(place) for name, value in self.cache_dict.items()}
        return self

    # Behind the methods.

    @property
    def _lens(self) -> TokenFront:
        model: Any = self.model
        if model is None:
            raise InputError("this cache's model was set to None, so that it has names and activations alone")
        return cast(TokenFront, model)

    @property
    def _points(self) -> Mapping[str, HookPoint]:
        return self._lens.network.points

    @property
    def _held(self) -> Held:
        return Held(self.cache_dict, self._lens.network, self.has_batch_dim, self.layout)

    @staticmethod
    def _labelled(stack: Tensor, labels: list[str], return_labels: bool) -> Tensor | Labelled:
        return (stack, labels) if return_labels else stack
