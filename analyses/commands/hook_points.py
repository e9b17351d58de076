"""Hook points as text for a terminal."""

from __future__ import annotations

from analyses.experiment.text import columns
from hybridlens.model import HybridLens
from hybridlens.shapes import AXES


def hook_table(lens: HybridLens, layer: int | None = None) -> str:
    """Every hook point with its axes and their sizes, in forward order."""
    rows = [["hook point", "shape", ""]]
    for name, spec in lens.hook_points.items():
        if layer is not None and spec.layer != layer:
            continue
        sizes = spec.sizes
        axes = [
            AXES[axis] if size is None or axis == "1" else f"{AXES[axis]}={size}"
            for axis, size in zip(spec.axes, sizes, strict=True)
        ]
        axes = ["1" if axis == "one" else axis for axis in axes]
        if name.endswith("ssm.hook_pattern"):  # its "heads" are the family's channel blocks
            axes[1] = axes[1].replace("head", "block")
        remarks = "read-only" if spec.read_only else "computed when hooked" if spec.lazy else ""
        rows.append([name, f"[{', '.join(axes)}]", remarks])
    return columns(rows, left=3)
