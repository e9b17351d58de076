"""Studies made by hand whose verdicts are known."""

from typing import Any

from study_cells import grid

from analyses.study.benchmarks.results import BenchmarkRow
from analyses.study.evidence import ModelFacts
from analyses.study.groups import Base
from analyses.study.verdict import Verdict, verdicts
from analyses.study.views import ANSWERINGS, READINGS
from hybridlens.results import Cell

HEADS = 8
LENGTHS, DEPTHS = tuple(range(200, 300, 10)), (0, 11, 22, 33, 44, 56, 67, 78, 89, 100)
TWICE = tuple(2 * length for length in LENGTHS)
BASE = Base(HEADS, jrt_lengths=tuple(zip(LENGTHS, TWICE, strict=True)))
RG = ModelFacts("toy", "recurrentgemma", 256, BASE)
JAMBA = ModelFacts("toy", "jamba", None, BASE)


def hundred(score: Any, lengths: tuple[int, ...] = LENGTHS, **fields: Any) -> list[Cell]:
    """A grid of 100 prompts and ten controls."""
    return grid(score, lengths, DEPTHS, **{"k": HEADS, **fields})


def curve(scores: dict[int, Any], **fields: Any) -> list[Cell]:
    return [one for k, score in scores.items() for one in hundred(score, k=k, **fields)]


def row(task: str, k: int, value: float, stderr: float | None = 0.005, **more: Any) -> BenchmarkRow:
    return BenchmarkRow(task, k, "acc", value, stderr, 1000, **more)


def by_id(cells: list[Cell], rows: Any = (), facts: ModelFacts = RG) -> dict[str, Verdict]:
    return {verdict.id: verdict for verdict in verdicts(cells, list(rows), facts)}


def outcome(claim: str, cells: list[Cell], rows: Any = (), facts: ModelFacts = RG) -> str:
    return by_id(cells, rows, facts)[claim].outcome


def paper_like() -> list[Cell]:
    """A study as the paper describes: retrieval with two heads of eight, lost with one; table 1 as its table 1."""
    steps = {k: 0.0 if k < 2 else 5.0 for k in range(HEADS + 1)}
    cells = curve(steps) + curve({k: 5.0 if k > 7 else 1.0 for k in range(HEADS + 1)}, phase="prefill")
    cells += curve({0: 0.0, 1: 0.0, 2: 5.0, 8: 5.0}, lengths=TWICE, jrt=True)
    return [*cells, *table({("keep", "keep"): 2.5})]


def table(changes: dict[tuple[str, str], Any]) -> list[Cell]:
    """Table 1 with the paper's pattern in round numbers: what retrieves 3.5 of 5 points, what fails none."""
    scores: dict[tuple[str, str], Any] = {(r, a): 0.0 for r in READINGS for a in ANSWERINGS}
    good = [("keep", "only"), ("omit", "only"), ("omit", "keep"), ("only", "keep"), ("null", "keep")]
    scores |= dict.fromkeys(good, 3.5) | changes
    return [one for (r, a), score in scores.items() for one in hundred(score, reading=r, answering=a)]


def benchmarks(glue: tuple[float, ...], mmlu: tuple[float, ...], retrieval: tuple[float, ...]) -> list[BenchmarkRow]:
    """Rows at k = 8, 2 and 0."""
    tasks = {"glue": glue, "mmlu": mmlu, "tiny_retrieval": retrieval}
    return [row(task, k, value) for task, values in tasks.items() for k, value in zip((8, 2, 0), values, strict=True)]


def without_keep(cells: list[Cell]) -> list[Cell]:
    """Without the sweep's own k = n_heads, where table 1 brings another Keep-Keep."""
    return [c for c in cells if not (c.k == HEADS and c.phase == "generation" and not c.jrt)]


LIKE = benchmarks((0.80, 0.78, 0.77), (0.60, 0.57, 0.20), (1.0, 1.0, 0.25))
ACROSS = {"h1-heads", "h1-prefill-size"}
