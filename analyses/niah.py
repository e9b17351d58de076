"""The paper's main experiment: needle in a haystack under top-k head sparsification (figure 2).

`run` makes the grid of prompts and its controls, answers every one of them under every k in the generation
and the prefill version, scores the answers, and writes a folder: `cells.parquet`, `run.json`,
`report.html`. Cells are stored batch by batch, so a run that was stopped goes on with the cells that are
missing.

k = n_heads is the untouched model in either version, so it is run once and stored for both.

How it fails: everything that can be checked is checked before the folder is touched, and raises
`HybridLensError`; a folder that holds a run with other arguments is refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

from analyses.decoding import Condition, Version, decode
from analyses.niah_config import Grid, NiahConfig, make_grid
from analyses.niah_report import make_manifest, needle_figures, report_notes
from hybridlens import niah
from hybridlens.generation import Boundary
from hybridlens.model import HybridLens
from hybridlens.results import Cell, CellKey, Run
from hybridlens.viz import write_report

ROW_BUDGET = 2**26
"""Rows of a batch, unless `batch_size` says: this, divided by prompt length × d_model × layers; 1 to 100."""

SCORE_BUDGET = 2**25
"""Attention scores of a layer that a batch of the prefill version holds at once: 128 MB in float32."""


class NiahResult(NamedTuple):
    """A finished run."""

    folder: Path
    report: Path
    cells: list[Cell]
    damaged: tuple[str, ...]
    """One line for every stored cell that could not be trusted and was run again."""


class Work(NamedTuple):
    """Cells that share one answer: a condition, and where its text is stored."""

    prompt: niah.Prompt
    k: int
    version: Version
    keys: tuple[CellKey, ...]


def make_work(todo: Sequence[CellKey], grid: Grid, n_heads: int) -> list[Work]:
    """What has to be decoded for `todo`: one piece of work for all cells of equal text."""
    keys: dict[tuple[Version, int, CellKey], list[CellKey]] = {}
    for key in todo:
        version: Version = "prefill" if key.phase == "prefill" and key.k < n_heads else "generation"
        keys.setdefault((version, key.length, key._replace(phase=version)), []).append(key)
    return [Work(grid[found[0]], shared.k, version, tuple(found)) for (version, _, shared), found in keys.items()]


def batches(work: Sequence[Work], rows: Callable[[Version, int], int]) -> Iterator[list[Work]]:
    """Pieces of work that run together: of one version and one length, at most `rows(version, length)` of them."""
    groups: dict[tuple[Version, int], list[Work]] = {}
    for piece in work:
        groups.setdefault((piece.version, piece.prompt.length), []).append(piece)
    for (version, length), group in groups.items():
        size = rows(version, length)
        for start in range(0, len(group), size):
            yield group[start : start + size]


def rows_together(lens: HybridLens, config: NiahConfig, version: Version, length: int) -> int:
    """Rows of a batch: as configured, or as many as the budgets allow; the prefill version ranks every query."""
    if config.batch_size is not None:
        return config.batch_size
    cfg = lens.cfg
    rows = min(100, ROW_BUDGET // (length * cfg.d_model * cfg.n_layers))
    if version == "prefill":
        rows = min(rows, SCORE_BUDGET // (cfg.n_heads * length**2))
    return max(1, rows)


def run(
    lens: HybridLens,
    config: NiahConfig,
    folder: Path,
    weights_hash: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> NiahResult:
    """Run every cell that `folder` does not hold yet, then write its report.

    Args:
        lens: the model.
        config: what to run.
        folder: made when it does not exist; a run of the same config in it is gone on with.
        weights_hash: digest of the model's weights (`hybridlens.results.hash_weights`).
        progress: called with the cells done and the cells in all, first before any is run.

    Raises:
        InputError: see `make_grid`.
        ResultsError: the folder holds something else, or cannot be written.
    """
    grid = make_grid(lens, config)
    rows = partial(rows_together, lens, config)
    manifest = make_manifest(lens, config, grid, weights_hash)
    expected = {key: prompt.hash for key, prompt in grid.items()}
    with Run.open(folder, manifest, expected) as store:
        progress(len(store.done), len(grid))
        for batch in batches(make_work(store.todo, grid, lens.cfg.n_heads), rows):
            store.add(_answer(lens, config, batch))
            progress(len(store.done), len(grid))
        store.finish()
        figures, notes = needle_figures(lens, grid, store.cells), report_notes(lens, grid)
        report = write_report(folder, store.cells, store.record, figures, notes)
        return NiahResult(folder, report, store.cells, store.damaged)


def _answer(lens: HybridLens, config: NiahConfig, batch: Sequence[Work]) -> list[Cell]:
    """Decode one batch and score it."""
    started = time.perf_counter()
    conditions = [Condition(piece.prompt.tokens, piece.k) for piece in batch]
    version, boundary = batch[0].version, cast(Boundary, config.boundary)  # checked by the config
    texts = decode(lens, conditions, version, boundary, config.semantics, config.max_new_tokens)
    pairs = [(piece, key, text) for piece, text in zip(batch, texts, strict=True) for key in piece.keys]
    seconds = (time.perf_counter() - started) / len(pairs)
    return [_cell(config, piece.prompt, key, text, seconds) for piece, key, text in pairs]


def _cell(config: NiahConfig, prompt: niah.Prompt, key: CellKey, text: str, seconds: float) -> Cell:
    start, end = prompt.needle_span or (None, None)
    return Cell(
        **key._asdict(),
        score=niah.score(text, config.hidden.rubric),
        text=text,
        needle_start=start,
        needle_end=end,
        seconds=seconds,
        prompt_hash=prompt.hash,
    )


if __name__ == "__main__":
    import sys

    from analyses.cli import main

    sys.exit(main(["niah", *sys.argv[1:]]))
