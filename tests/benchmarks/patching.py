"""Patching against one forward pass a patch: ``python -m tests.benchmarks.patching [--runs N] [--patches M]``.

The plain way makes one pass of `run_with_hooks` for each patch, from clean values captured beforehand. Its passes are
independent of one another, so each run times a seeded sample of M patches and takes as much for each of the others;
ours makes the whole sweep each time, the capture included. The two alternate. The values of all sampled patches are
compared. Prompts are a needle pair (the paper's needle and another of as many tokens, at depths 0 and 50). Floor: 5
times faster.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping

import torch
import transformers
from torch import Tensor

import hybridlens as hl
from analyses.patching import pairs
from analyses.patching.over import expand
from analyses.patching.results import PatchResult
from analyses.patching.sweeps import sweep, sweep_of
from analyses.patching.targets import Target
from hybridlens import niah
from tests.benchmarks.measure import machine, paired, table

NAMES = ("resid_pre", "mixer_out", "z", "z_by_position", "write", "state", "write_by_channel")


def plain(lens: hl.HybridLens, pair: pairs.Pair, cache: Mapping[str, Tensor], targets: list[Target]) -> Tensor:
    """The metric under each patch, one pass of the whole model a patch."""
    corrupt, metric = torch.tensor([pair.corrupt_tokens]), pair.logit_difference
    with torch.no_grad():
        values = []
        for target in targets:
            axes = lens.hook_points[target.hook].axes
            index = tuple(slice(None) if axis not in target.where else _listed(target.where[axis]) for axis in axes)

            def put(tensor: Tensor, hook: object, index=index, source=cache[target.hook]) -> Tensor:
                tensor[index] = source[index]
                return tensor

            values.append(metric(lens.run_with_hooks(corrupt, [(target.hook, put)]))[0])
    return torch.stack(values).double()


def _listed(index: object) -> object:
    """Neighbouring entries as a slice, so that several axes can be indexed at once."""
    return slice(index[0], index[-1] + 1) if isinstance(index, tuple) else index


def measure(lens: hl.HybridLens, name: str, pair: pairs.Pair, runs: int, patches: int, batch: int) -> list[object]:
    """One row of the table."""
    kind = sweep_of(lens, name)
    everything = expand(lens, kind.hooks(lens), kind.over, pair.strings[0]).patches
    picked = random.Random(0).sample(range(len(everything)), min(patches, len(everything)))
    with torch.no_grad():  # the capture is not timed
        cache = lens.run_with_cache(torch.tensor([pair.clean_tokens]), kind.hooks(lens))[1]
    last: list[PatchResult] = []

    def ours() -> None:
        ids = [pair.clean_tokens], [pair.corrupt_tokens]
        last[:] = [sweep(lens, name, *ids, pair.logit_difference, batch_size=batch)]

    found: list[Tensor] = []

    def theirs() -> None:
        found[:] = [plain(lens, pair, cache, [everything[i] for i in picked])]

    times = paired(ours, theirs, runs)
    share = len(everything) / len(picked)
    apart = float((last[0].raw.flatten()[picked] - found[0]).abs().max())
    spread = f"{times.least * share:.1f} to {times.most * share:.1f}"
    return [
        name, len(everything), last[0].forwards, f"{times.ours:.2f}", f"{1000 * times.theirs / len(picked):.1f}",
        f"{times.faster * share:.1f}", spread, f"{apart:.0e}",
    ]  # fmt: skip


def main() -> None:
    """Measure, and print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--patches", type=int, default=20, help="patches of the plain way timed in each run")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--depths", type=int, nargs="*", default=[0, 50])
    parser.add_argument("--sweeps", nargs="*", default=NAMES)
    parser.add_argument("--model", nargs="*", default=["tiny-recurrentgemma", "tiny-jamba"])
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(machine())
    head = ["sweep", "patches", "passes", "ours, s", "plain, ms a patch", "times faster", "least to most", "apart"]
    for model in options.model:
        lens = hl.load(model)
        other = pairs.counterparts(lens, niah.PAPER_NEEDLE)[0]
        for depth in options.depths:
            pair = pairs.other_needle(lens, niah.PAPER_NEEDLE, other, options.length, depth)
            rows = [measure(lens, name, pair, options.runs, options.patches, options.batch) for name in options.sweeps]
            print(f"\n{model}, {len(pair.clean_tokens)} tokens, first different {pair.differences[0].position}\n")
            print(table(head, rows), flush=True)


if __name__ == "__main__":
    main()
