"""Results as plain text for a terminal: accuracy against k, hook points, embedded models, ranked heads.

How it fails: `ResultsError` from `hybridlens.results` when there is no cell to average.
"""

from __future__ import annotations

from collections.abc import Sequence

from analyses.ranking import HeadRanking
from hybridlens import niah, tiny
from hybridlens.model import HybridLens
from hybridlens.results import Cell, accuracy_points, phases_of
from hybridlens.shapes import AXES


def columns(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows of cells as aligned text; the first `left` columns to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def accuracy_table(cells: Sequence[Cell], model: str) -> str:
    """Accuracy in percent for every k and phase, each beside its control."""
    phases = phases_of(cells)
    points = {phase: {p.k: p for p in accuracy_points(cells, phase, niah.MAX_SCORE)} for phase in phases}
    header = ["heads kept"]
    for phase in phases:
        header += [phase, "control"]
    rows = [header]
    for k in sorted({k for found in points.values() for k in found}, reverse=True):
        row = [str(k)]
        for phase in phases:
            point = points[phase].get(k)
            row.append("" if point is None else f"{100 * point.accuracy:.1f}")
            row.append("" if point is None or point.chance is None else f"{100 * point.chance:.1f}")
        rows.append(row)
    title = f"{model}: accuracy in % of the highest score (control: the needle left out)"
    return f"{title}\n{columns(rows, left=0)}"


def hook_table(lens: HybridLens, layer: int | None = None) -> str:
    """Every hook point with its axes and their sizes, in forward order."""
    rows = [["hook point", "shape", ""]]
    for name, spec in lens.hook_points.items():
        if layer is not None and spec.layer != layer:
            continue
        sizes = lens.cfg.dimensions(spec.axes)
        axes = [
            AXES[axis] if size is None or axis == "1" else f"{AXES[axis]}={size}"
            for axis, size in zip(spec.axes, sizes, strict=True)
        ]
        axes = ["1" if axis == "one" else axis for axis in axes]
        if name.endswith("ssm.hook_pattern"):  # its "heads" are the family's channel blocks
            axes[1] = "block"
        remarks = "read-only" if spec.read_only else "computed when hooked" if spec.lazy else ""
        rows.append([name, f"[{', '.join(axes)}]", remarks])
    return columns(rows, left=3)


def model_table() -> str:
    """The embedded models."""
    rows = [["model", "layers", "heads", "window", "context", "parameters", "size"]]
    for info in tiny.describe():
        letters = " ".join("A" if kind == "attention" else "R" for kind in info.layers)
        rows.append(
            [
                info.name,
                letters,
                f"{info.n_heads} ({info.n_kv_heads} kv)",
                "all" if info.window is None else str(info.window),
                str(info.context),
                f"{info.parameters / 1e6:.2f} M",
                f"{info.n_bytes / 1e6:.1f} MB",
            ]
        )
    legend = "A: attention layer, R: recurrent layer; context: longest prompt trained for, in tokens"
    return f"{columns(rows, left=3)}\n{legend}"


def ranking_table(ranking: HeadRanking) -> str:
    """Every head with its score, best first."""
    rows = [["rank", "layer", "head", "score"]]
    for rank, (layer, head) in enumerate(ranking.order, start=1):
        rows.append([str(rank), str(layer), str(head), f"{ranking.score(layer, head):.3f}"])
    best = "lowest" if ranking.lower_is_better else "highest"
    return f"{ranking.source}; {best} first\n{columns(rows, left=0)}"
