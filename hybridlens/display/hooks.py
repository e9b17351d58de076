"""What hook points and edits show: which points a model has, with their axes in words.

How it fails: nothing is computed, so nothing does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from hybridlens.display.markup import Plain, listed, many
from hybridlens.display.several import Named, table_of
from hybridlens.display.shown import Displayed, Piece
from hybridlens.display.tables import Table

if TYPE_CHECKING:
    from hybridlens.hook_points import HookSpec
    from hybridlens.hooks import Edit

AXES_NOTE = (
    "axes: outermost first, with their sizes where the model fixes them; pos: the tokens of the call; key: what "
    "attention holds keys of; lazy: computed only when hooked; the kinds of axes are in hybridlens.shapes.AXES"
)


class HookSpecShown(Displayed):
    """Of `HookSpec`."""

    __slots__ = ()

    def summary(self) -> str:
        """Name, axes, and what is special."""
        spec = cast("HookSpec", self)
        special = [word for word, said in (("lazy", spec.lazy), ("read-only", spec.read_only)) if said]
        return ", ".join([f"{spec.name} [{worded(spec)}]", *special])

    def row(self) -> dict[str, Plain]:
        """Its axes in words and letters, and when it can be read and edited."""
        spec = cast("HookSpec", self)
        return {
            "layer": spec.layer,
            "axes": worded(spec),
            "letters": " ".join(spec.axes),
            "lazy": spec.lazy,
            "read-only": spec.read_only,
        }


class HookPointsShown(Named["HookSpec"]):
    """Of `HookPoints`."""

    def summary(self) -> str:
        """How many points, in how many layers."""
        layers = {spec.layer for spec in self.values()} - {None}
        return f"{many(len(self), 'hook point')} in {many(len(layers), 'layer')}: {listed(self, 4)}"

    def view(self) -> tuple[Piece, ...]:
        """Points of the same name in several layers in one row."""
        alike: dict[tuple[str, str, bool, bool], list[int]] = {}
        for name, spec in self.items():
            inner = name if spec.layer is None else name.replace(f"blocks.{spec.layer}.", "blocks.{l}.", 1)
            layers = alike.setdefault((inner, worded(spec), spec.lazy, spec.read_only), [])
            layers += [] if spec.layer is None else [spec.layer]
        rows: list[dict[str, Plain]] = [
            {
                "name": name,
                "layers l": listed(layers, 10) if layers else None,
                "axes": " · ".join([axes, *(word for word, said in (("lazy", lazy), ("read-only", fixed)) if said)]),
            }
            for (name, axes, lazy, fixed), layers in alike.items()
        ]
        table = table_of(rows)
        return (Table(table.columns, table.rows, note=AXES_NOTE, most=60),)


class EditShown(Displayed):
    """Of `Edit`."""

    def summary(self) -> str:
        """Where, what and when."""
        edit = cast("Edit", self)
        where = edit.hook if isinstance(edit.hook, str) else f"names of {_name(edit.hook)}"
        when = "prefill and decode" if edit.phase == "both" else edit.phase
        rows = "" if edit.rows is None else f", rows {listed(cast(tuple[int, ...], edit.rows))}"
        return f"{where}: {_name(edit.fn)} in {when}{rows}{', in a pass ahead' if edit.ahead else ''}"


def worded(spec: HookSpec) -> str:
    """Axes with their names, and the sizes that the model fixes: "batch, pos, head 8, d_head 16"."""
    from hybridlens.shapes import AXES

    sizes = zip(spec.axes, spec.sizes, strict=True)
    return ", ".join(AXES[axis] + ("" if size is None else f" {size}") for axis, size in sizes)


def _name(fn: object) -> str:
    return getattr(fn, "__qualname__", type(fn).__name__).replace("<locals>.", "")
