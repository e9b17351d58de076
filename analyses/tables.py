"""Results as plain text for a terminal: accuracy against k, hook points, ranked heads.

How it fails: `ResultsError` from `hybridlens.results` when there is no cell to average.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from analyses.circuits.results import METRICS, HeadCircuits
from analyses.embedded import columns
from analyses.kv_cache.crossover_results import Crossover
from analyses.kv_cache.following import WHOLE, following, regions
from analyses.patching.choosing import WORDS
from analyses.patching.effects import effect, number, strongest
from analyses.patching.folder import Patched
from analyses.ranking import HeadRanking
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


def percent_interval(mean: float, low: float, high: float) -> str:
    """A share with its interval, in percent: "98.4 [96.0, 100.0]"."""
    return f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


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


def circuits_table(found: HeadCircuits, best: int = 3) -> str:
    """The heads that score highest by each metric, with what the metric is."""
    rows = [["metric", *(f"{i}." for i in range(1, best + 1)), "what it is"]]
    for metric in found.metrics:
        ranking = found.ranking(metric)
        top = [f"L{layer} H{head} {ranking.score(layer, head):.2f}" for layer, head in ranking.order[:best]]
        rows.append([metric, *top, METRICS[metric].words])
    off = "" if found.path_error is None else f"; error {', '.join(f'{e:.2f}' for e in found.path_error.tolist())}"
    title = f"{found.model}: heads by their weights; recurrent layers linearised {found.linearised}{off}"
    return f"{title}\n{columns(rows, left=best + 2)}"


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


def crossover_table(found: Crossover, model: str, window: int | None) -> str:
    """Which memory the answers follow, with the needle inside and outside the window."""
    where = {True: "inside", False: "outside"}
    rows = [["needle", "from one prompt, all else from the other", "told its needle", "the other", "neither", "shift"]]
    for inside in regions(found):
        for memory in WHOLE:
            one = following(found, memory, inside)
            told = percent_interval(one.memory.mean, *one.memory.interval)
            others = [f"{100 * share.mean:.1f}" for share in (one.rest, one.neither)]
            name = "" if window is None else where[inside]
            rows.append([name, memory.words, told, *others, f"{one.shift:+.1f}".replace("-0.0", "+0.0")])
    title = f"{model}: answers in % [95 % interval over prompt pairs]; shift towards the memory's needle in nats"
    return f"{title}\n{columns(rows, left=2)}"


def patch_table(found: Patched, model: str) -> str:
    """The strongest patch of each sweep, with its estimate by gradients."""
    rows = [["sweep", "strongest patch", "effect", "by gradient"]]
    for name, result in found.exact.items():
        place = strongest(result)[0]
        estimate = found.estimated.get(name)
        guessed = "" if estimate is None else number(float(effect(estimate).flatten()[effect(result).argmax()]))
        rows.append([name, place.words, number(place.effect), guessed])
    one = next(iter(found.exact.values()))
    verb = "restored" if one.direction == "denoise" else "destroyed"
    title = f"{model}: share of the {WORDS[found.measure.name]} {verb} by one patch"
    return f"{title}\n{columns(rows, left=2)}"


def ranking_table(ranking: HeadRanking) -> str:
    """Every head with its score, best first."""
    rows = [["rank", "layer", "head", "score"]]
    for rank, (layer, head) in enumerate(ranking.order, start=1):
        rows.append([str(rank), str(layer), str(head), f"{ranking.score(layer, head):.3f}"])
    best = "lowest" if ranking.lower_is_better else "highest"
    return f"{ranking.source}; {best} first\n{columns(rows, left=0)}"
