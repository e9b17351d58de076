"""Attribution against exact patching: ``python -m tests.benchmarks.attribution [--steps N] [--sweeps …]``.

For every sweep on a needle pair (the paper's needle and another of as many tokens), denoising: rank correlation, linear
correlation and largest error (on the scale from 0, the corrupt run, to 1, the clean one) of the estimates from plain
gradients and from integrated gradients in N steps, and how long estimates and exact values took. Last, all edges
against exact path patching. Prints one table for each model.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from time import perf_counter
from typing import TypeVar

import transformers

import hybridlens as hl
from analyses.patching import pairs
from analyses.patching.agreement import Agreement, agreement, edge_agreement
from analyses.patching.edges import edge_attribution
from analyses.patching.gradients import attribution_sweep
from analyses.patching.paths import path_patch
from analyses.patching.sweeps import SWEEPS, sweep
from analyses.patching.writers import readers_of, writers_of
from hybridlens import niah
from tests.benchmarks.measure import machine, table

Result = TypeVar("Result")


def timed(make: Callable[[], Result]) -> tuple[Result, float]:
    """What `make` gives, and the seconds that it took."""
    start = perf_counter()
    return make(), perf_counter() - start


def row(name: str, plain: Agreement, many: Agreement, largest: float, times: tuple[float, ...]) -> list[object]:
    """One row of the table."""
    found = [f"{plain[i]:.2f} / {many[i]:.2f}" for i in range(3)]
    return [name, plain.patches, *found, f"{largest:.2f}", *(f"{seconds:.2f}" for seconds in times)]


def measure(lens: hl.HybridLens, pair: pairs.Pair, sweeps: list[str], steps: int) -> list[list[object]]:
    """The rows of one model's table."""
    ids, metric = ([pair.clean_tokens], [pair.corrupt_tokens]), pair.logit_difference

    def compare_sweep(name: str) -> list[object]:
        plain, first = timed(lambda: attribution_sweep(lens, name, *ids, metric))
        many, second = timed(lambda: attribution_sweep(lens, name, *ids, metric, steps=steps))
        exact, third = timed(lambda: sweep(lens, name, *ids, metric))
        largest = float(exact.normalised.abs().max())
        return row(name, agreement(plain, exact), agreement(many, exact), largest, (first, second, third))

    ends = writers_of(lens), readers_of(lens)
    plain, first = timed(lambda: edge_attribution(lens, *ids, metric))
    many, second = timed(lambda: edge_attribution(lens, *ids, metric, steps=steps))
    exact, third = timed(lambda: path_patch(lens, *ids, metric, *ends, absent="untouched"))
    largest = float(exact.normalised.abs().max())
    edges = row("edges", edge_agreement(plain, exact), edge_agreement(many, exact), largest, (first, second, third))
    return [*(compare_sweep(name) for name in sweeps if SWEEPS[name].hooks(lens)), edges]


def main() -> None:
    """Compare, and print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--length", type=int, default=150)
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--sweeps", nargs="*", default=list(SWEEPS))
    parser.add_argument("--model", nargs="*", default=["tiny-recurrentgemma", "tiny-jamba"])
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(machine())
    head = [
        "places", "patches", "rank correlation", "correlation", "largest error", "largest exact change", "gradients, s",
        f"{options.steps} steps, s", "exact, s",
    ]  # fmt: skip
    for model in options.model:
        lens = hl.load(model)
        other = pairs.counterparts(lens, niah.PAPER_NEEDLE)[0]
        pair = pairs.other_needle(lens, niah.PAPER_NEEDLE, other, options.length, options.depth)
        rows = measure(lens, pair, options.sweeps, options.steps)
        print(f"\n{model}, {len(pair.clean_tokens)} tokens; plain gradients / {options.steps} steps\n")
        print(table(head, rows), flush=True)


if __name__ == "__main__":
    main()
