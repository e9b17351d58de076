"""The paper's main experiment: needle in a haystack under top-k head sparsification (figure 2).

`run` makes the grid of prompts and its controls, answers every one of them under every k in the generation
and the prefill version, scores the answers, and writes a folder: `cells.parquet`, `run.json`,
`report.html`. Cells are stored batch by batch, so a run that was stopped goes on with the cells that are
missing.

How it fails: everything that can be checked is checked before the folder is touched, and raises
`HybridLensError`; a folder that holds a run with other arguments is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from analyses.niah_config import NiahConfig, make_grid
from analyses.niah_report import make_manifest, needle_figures, report_notes
from analyses.runner import Settings, answer_cells
from hybridlens.model import HybridLens
from hybridlens.results import Cell, Run
from hybridlens.viz import write_report


class NiahResult(NamedTuple):
    """A finished run."""

    folder: Path
    report: Path
    cells: list[Cell]
    damaged: tuple[str, ...]
    """One line for every stored cell that could not be trusted and was run again."""


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
    manifest = make_manifest(lens, config, grid, weights_hash)
    expected = {key: prompt.hash for key, prompt in grid.items()}
    rubrics = {(key.needle, key.semantics): config.hidden.rubric for key in grid}
    settings = Settings(config.memory, config.batch_size)
    with Run.open(folder, manifest, expected) as store:
        progress(len(store.done), len(grid))
        for cells in answer_cells(lens, grid, store.todo, rubrics, config.max_new_tokens, settings):
            store.add(cells)
            progress(len(store.done), len(grid))
        store.finish()
        figures, notes = needle_figures(lens, grid, store.cells), report_notes(lens, grid)
        report = write_report(folder, store.cells, store.record, figures, notes)
        return NiahResult(folder, report, store.cells, store.damaged)


if __name__ == "__main__":
    import sys

    from analyses.cli import main

    sys.exit(main(["niah", *sys.argv[1:]]))
