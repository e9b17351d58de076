"""Whole experiments against the plain way: ``python -m tests.benchmarks.sweep [--runs N] [--cells M]``.

The plain way (`plain.py`) is a loop over cells, a batch of one, Hugging Face's `generate`. Its cells are
independent of one another, so each run times a seeded sample of them, spread over all conditions, and takes their
mean for all; ours answers the whole experiment each time. The two alternate. The texts of all sampled cells are
compared. Floors, in times faster: figure 2's generation version 10, both versions 7, table 1 8.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from typing import Any

import transformers

import hybridlens as hl
from analyses.heads.answering import Treated, treatments, work_of
from analyses.heads.treatment import Treatment
from hybridlens import niah
from hybridlens.engine import Sweep
from hybridlens.results import CellKey
from tests.benchmarks import plain
from tests.benchmarks.measure import machine

BOUNDARY = "first_new_token"
"""The plain way's: the first new token comes out of the prefill pass."""

READING = ("keep", "omit", "only", "binary", "null")
ANSWERING = ("keep", "omit", "only", "binary")


def grids(lens: hl.HybridLens, name: str) -> dict[str, dict[CellKey, niah.Prompt]]:
    """The cells of each experiment: 100 prompts and their controls, under every condition."""
    shortest = niah.shortest_length(lens.tokenizer)
    lengths = niah.default_lengths(lens.tokenizer.model_max_length - 40, shortest)
    prompts = niah.grid(lens.tokenizer, lengths) + niah.controls(lens.tokenizer, lengths)
    n = lens.cfg.n_heads

    def cell(prompt: niah.Prompt, phase: str, k: int, **modes: str) -> CellKey:
        return CellKey(name, phase, k, prompt.length, prompt.depth, prompt.control, boundary=BOUNDARY, **modes)

    fig2 = {phase: {cell(p, phase, k): p for p in prompts for k in range(n + 1)} for phase in ("generation", "prefill")}
    return {
        "fig2, generation version": fig2["generation"],
        "fig2, both versions": fig2["generation"] | fig2["prefill"],
        "table1": {
            cell(p, "generation", n, reading=r, answering=a): p for p in prompts for r in READING for a in ANSWERING
        },
    }


def ours(lens: hl.HybridLens, grid: dict[CellKey, niah.Prompt]) -> tuple[dict[CellKey, str], Any]:
    """The texts of all cells, and what reading cost."""
    work = work_of(list(grid), grid, lens.cfg.n_heads)
    sweep = Sweep(lens, Treated(lens), BOUNDARY)
    texts: dict[CellKey, str] = {}
    for batch in sweep.run([piece.job for piece in work]):
        for answered in batch:
            texts |= dict.fromkeys(work[answered.job].keys, answered.answer.text)
    return texts, sweep.tally


def theirs(lens: hl.HybridLens, key: CellKey, prompt: niah.Prompt) -> str:
    """The text of one cell, the plain way."""

    def stage(treatment: Treatment | None) -> plain.Stage:
        if treatment is None:
            return plain.Stage()
        return plain.Stage(treatment.k if treatment.k < lens.cfg.n_heads else None, treatment.mode)

    columns = [position for start, stop in prompt.needle_spans for position in range(start, stop)]
    return plain.answer(lens, prompt.tokens, *map(stage, treatments(key, lens.cfg.n_heads)), columns)


def measure(lens: hl.HybridLens, grid: dict[CellKey, niah.Prompt], runs: int, cells: int) -> dict[str, Any]:
    """Both sides in turn, `runs` times."""
    ratios, plain_cell, our_run = [], [], []
    different = compared = 0
    ours(lens, dict(list(grid.items())[:20]))
    for run in range(runs):
        began = time.perf_counter()
        texts, tally = ours(lens, grid)
        our_run.append(time.perf_counter() - began)
        sample = random.Random(run).sample(list(grid), cells)
        began = time.perf_counter()
        answers = {key: theirs(lens, key, grid[key]) for key in sample}
        plain_cell.append((time.perf_counter() - began) / cells)
        ratios.append(plain_cell[-1] * len(grid) / our_run[-1])
        different += sum(texts[key] != answers[key] for key in sample)
        compared += cells
    return {
        "cells": len(grid),
        "plain": statistics.median(plain_cell),
        "ours": statistics.median(our_run),
        "faster": statistics.median(ratios),
        "spread": f"{min(ratios):.1f} to {max(ratios):.1f}",
        "texts": f"{compared - different} of {compared}",
        "read": f"{tally.prefilled} of {tally.distinct}",
    }


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cells", type=int, default=40, help="cells of the plain way timed in each run")
    parser.add_argument("--model", nargs="*", default=["tiny-recurrentgemma", "tiny-jamba"])
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(machine())
    print("| model | experiment | cells | plain, ms a cell | ours, s | times faster | least to most | equal texts |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in options.model:
        lens = hl.load(name)
        for experiment, grid in grids(lens, name).items():
            row = measure(lens, grid, options.runs, options.cells)
            print(
                f"| {name} | {experiment} | {row['cells']} | {1000 * row['plain']:.0f} | {row['ours']:.1f} "
                f"| {row['faster']:.1f} | {row['spread']} | {row['texts']} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
