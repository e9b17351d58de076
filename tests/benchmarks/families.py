"""Every family against its untouched model: ``python -m tests.benchmarks.families [--only NAMES] [--rows ROWS]``.

On random models of width 256 with eight layers (`families_models`), no hooks but for the last:

* forward: logits of 512 and of 2,048 tokens, ours ÷ the untouched model's without a cache. At most 1.05; aim 0.8.
* decode: one step behind 512 tokens, ours ÷ the untouched model's with its cache. At most 1.10; aim 0.9.
* topk: decode steps of 90 rows behind 256 tokens with top-k in every attention layer, another k on every row, as a
  share of the tokens per second without. At least 0.8; aim 0.95.
* states, hidden: all states of a layer, and hidden attention, against TransformerLens (`families_states`).

Both sides must agree before anything is timed: logits with the untouched model's, and a decode step with its run
over all tokens without a cache, since the library's caches are not all exact (docs/limits.md). Top-k must move the
logits of the rows that lose heads, and no others. Prints markdown tables, and which floors are missed.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor

import hybridlens as hl
from analyses.heads.sparsification import top_k
from hybridlens.decoding import Start
from hybridlens.generation import continue_from
from tests.benchmarks import families_models
from tests.benchmarks.measure import TOLERANCE, Paired, difference, machine, paired, table

HEAD = ("family", "measured", "ours, ms", "theirs, ms", "ratio", "least to most", "floor", "aim", "met")
AFTERWARDS = ("states", "hidden")
"""Rows that `families_states` measures, with floors of its own."""


class Sizes(NamedTuple):
    """How large everything is."""

    width: int = 256
    lengths: tuple[int, ...] = (512, 2048)
    """Of prompts whose logits are made."""
    prompt: int = 512
    """Tokens before a decode step."""
    steps: int = 12
    """Decode steps in a run."""
    rows: int = 90
    before: int = 256
    """Tokens before them."""
    new: int = 6
    """Tokens that each of them generates."""


SMALLEST = Sizes(width=64, lengths=(24,), prompt=12, steps=2, rows=9, before=12, new=2)


class Goal(NamedTuple):
    """What a ratio should be."""

    floor: float
    aim: float

    def met(self, ratio: float) -> str:
        """Which of the two is."""
        at_most = self.aim < self.floor
        reached = [goal for goal in self if (ratio <= goal if at_most else ratio >= goal)]
        return ("missed", "floor", "aim")[len(reached)]

    def said(self) -> tuple[str, str]:
        """Both, in words."""
        sign = "≤" if self.aim < self.floor else "≥"
        return f"{sign} {self.floor:.2f}", f"{sign} {self.aim:.2f}"


FORWARD, DECODE, TOP_K = Goal(1.05, 0.8), Goal(1.1, 0.9), Goal(0.8, 0.95)


def timed(family: str, what: str, times: Paired, goal: Goal) -> list[str]:
    """A row: a share of their time where little is good, and of their speed where much is."""
    ratios = (times.faster, times.least, times.most)
    if goal.aim < goal.floor:
        ratios = (1 / times.faster, 1 / times.most, 1 / times.least)
    ratio, least, most = (f"{value:.2f}" for value in ratios)
    seconds = (f"{1000 * times.ours:.1f}", f"{1000 * times.theirs:.1f}")
    return [family, what, *seconds, ratio, f"{least} to {most}", *goal.said(), goal.met(ratios[0])]


def forward(family: str, lens: hl.HybridLens, sizes: Sizes, runs: int) -> list[list[str]]:
    """Logits of prompts."""

    def row(length: int) -> list[str]:
        ids = families_models.tokens(1, length)

        def ours() -> Tensor:
            return lens(ids)

        def theirs() -> Tensor:
            return lens.hf_model(ids, use_cache=False).logits

        difference({"logits": ours()}, {"logits": theirs()})
        return timed(family, f"forward, {length} tokens", paired(ours, theirs, runs), FORWARD)

    return [row(length) for length in sizes.lengths]


def decode(family: str, lens: hl.HybridLens, sizes: Sizes, runs: int) -> list[list[str]]:
    """Single steps behind a prompt; each run goes on where the last one stopped."""
    model: Any = lens.hf_model
    ids = families_models.tokens(1, sizes.prompt + sizes.steps)
    prompt, steps = ids[:, : sizes.prompt], ids[:, sizes.prompt :].split(1, dim=1)
    taken = inspect.signature(model.forward).parameters
    cached = "cache_params" if "cache_params" in taken else "past_key_values"
    held, cache, read = lens.prefill(prompt).state, families_models.new_cache(model), sizes.prompt

    def ours() -> Tensor:
        nonlocal held
        made: list[Tensor] = []
        for step in steps:
            held, logits = lens.extend(held, step)
            made.append(logits)
        return torch.cat(made, dim=1)

    def theirs() -> None:
        nonlocal read
        for step in steps:
            at = {"position_ids": torch.tensor([[read]])} if "position_ids" in taken else {}
            model(step, use_cache=True, **{cached: cache}, **at)
            read += 1

    whole = model(ids, use_cache=False).logits[:, sizes.prompt :]
    difference({"logits": ours()}, {"logits": whole})
    model(prompt, use_cache=True, **{cached: cache})  # now, since a RecurrentGemma holds states on its modules
    times = paired(ours, theirs, runs)
    times = times._replace(ours=times.ours / sizes.steps, theirs=times.theirs / sizes.steps)
    return [timed(family, "one decode step", times, DECODE)]


def topk(family: str, lens: hl.HybridLens, sizes: Sizes, runs: int) -> list[list[str]]:
    """Steps of a batch whose rows keep from none to all heads, against the same steps with no edits."""
    if not lens.cfg.attention_layers:
        return []
    different = -(-sizes.rows // 15)  # prompts that are read; all rows go on differently
    ks = [row % (lens.cfg.n_heads + 1) for row in range(sizes.rows)]
    state = lens.prefill(families_models.tokens(different, sizes.before), last_only=True).state
    state = state.repeat(-(-sizes.rows // different)).select(range(sizes.rows))
    first = families_models.tokens(1, sizes.rows)[0]
    edits = top_k(lens, ks)

    def logits(edits: Sequence[hl.Edit]) -> Tensor:
        return lens.extend(state, first[:, None], edits, phase="decode").logits[:, 0]

    def steps(edits: list[hl.Edit]) -> Tensor:
        start = Start(state, None, first)
        return continue_from(lens.network, start, sizes.new, edits, stop_at_eos=False).tokens

    with_edits, without = logits(edits), logits([])
    apart = (with_edits - without).abs().amax(dim=1) / without.abs().amax(dim=1)
    for k, away in zip(ks, apart.tolist(), strict=True):  # experts get other rows together, and so round otherwise
        assert (away > TOLERANCE) == (k < lens.cfg.n_heads), f"{family}: k = {k} heads moves logits by {away:.1e}"
    times = paired(lambda: steps(edits), lambda: steps([]), runs)
    times = times._replace(ours=times.ours / sizes.new, theirs=times.theirs / sizes.new)
    return [timed(family, f"decode step of {sizes.rows} rows with top-k", times, TOP_K)]


MEASURED: dict[str, Callable[[str, hl.HybridLens, Sizes, int], list[list[str]]]] = {
    "forward": forward, "decode": decode, "topk": topk,
}  # fmt: skip


@torch.no_grad()
def measured(family: str, rows: Sequence[str], sizes: Sizes, runs: int) -> list[list[str]]:
    """A family's rows of the first table."""
    longest = 2 * max(*sizes.lengths, sizes.prompt + (runs + 2) * sizes.steps)
    lens = hl.HybridLens(families_models.make(family, sizes.width, longest))
    return [row for name in rows for row in MEASURED[name](family, lens, sizes, runs)]


def missed(found: Sequence[Sequence[str]]) -> str:
    """The rows whose floor is missed, in one line."""
    names = [f"{row[0]} ({row[1]}: {row[4]})" for row in found if row[-1] == "missed"]
    return "missed floors: " + (", ".join(names) or "none")


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    families, rows = families_models.FAMILIES, (*MEASURED, *AFTERWARDS)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=families, default=families)
    parser.add_argument("--rows", nargs="+", metavar="ROW", choices=rows, default=rows, help=", ".join(rows))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--smallest", action="store_true", help="tiny sizes: whether it runs, not how fast")
    options = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    sizes = SMALLEST if options.smallest else Sizes()
    print(f"{machine()}; medians of {options.runs} ratios of neighbouring runs\n")
    found: list[list[str]] = []
    first = [name for name in MEASURED if name in options.rows]
    for family in options.only if first else ():
        gc.collect()
        found += (own := measured(family, first, sizes, options.runs))
        lines = table(HEAD, own).splitlines()
        print("\n".join(lines if found == own else lines[2:]), flush=True)
    if found:
        print(f"\n{missed(found)}\n")
    for name in AFTERWARDS:
        if name in options.rows:
            states: Any = importlib.import_module("tests.benchmarks.families_states")
            print(table(states.HEAD, getattr(states, f"rows_of_{name}")()), flush=True)


if __name__ == "__main__":
    main()
