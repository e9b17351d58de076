"""Results as plain text for a terminal: accuracy against k, hook points, ranked heads.

How it fails: `ResultsError` from `hybridlens.results` when there is no cell to average.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from analyses.experiment.text import columns, percent_interval
from analyses.rankings.results import RankingComparison
from analyses.study.verdict import Verdict
from hybridlens import niah
from hybridlens.model import HybridLens
from hybridlens.results import Cell, accuracy_points, phases_of
from hybridlens.shapes import AXES


def accuracy_table(cells: Sequence[Cell], model: str) -> str:
    """Accuracy in percent for every k and phase, each with its 95 % interval over prompts and its control."""
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
            row.append("" if point is None else percent_interval(point.accuracy, point.low, point.high))
            row.append("" if point is None or point.chance is None else f"{100 * point.chance:.1f}")
        rows.append(row)
    title = f"{model}: accuracy in % of the highest score [95 % interval over prompts] (control: the needle left out)"
    return f"{title}\n{columns(rows, left=0)}"


def verdict_table(judged: Sequence[Verdict], model: str) -> str:
    """What became of each of the paper's claims; the numbers behind it are in the report."""
    rows = [
        [found.hypothesis, found.outcome, f"{found.claim} ({found.reason})" if found.reason else found.claim]
        for found in judged
    ]
    return f"{model}: the paper's claims\n{columns(rows, left=3)}"


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


def rankings_table(found: RankingComparison) -> str:
    """Each ranking's area under accuracy against heads kept, and the fewest heads that keep half of it."""
    rows = [["ranking", "area [95 %]", "fewest heads", "accuracy at a quarter, half of the heads"]]
    most = found.counts[-1]
    at = [min(range(len(found.counts)), key=lambda i, n=n: abs(found.counts[i] - n)) for n in (most / 4, most / 2)]
    for row, name in enumerate(found.names):
        area, needed = found.area[row], found.heads_needed[row]
        shares = [float(found.accuracy[row, i]) for i in at]
        texts = ["–" if math.isnan(share) else f"{100 * share:.0f} %" for share in shares]
        rows.append([name, f"{area.value:.2f} [{area.low:.2f}, {area.high:.2f}]", str(needed.heads), ", ".join(texts)])
    return f"{found.model}: rankings of {most} heads\n{columns(rows, left=1)}"


