"""Does a model need the needle in its recurrent states? ``python -m tests.benchmarks.other_states MODEL …``.

Where a crossover's answers follow no single memory, several are needed, or they contradict each other. A third prompt
tells these apart: prompts of each pair of needles are read up to their last token, and their recurrent states replaced
by those of the same text without any needle (its tokens replaced by as many of the filler before it), or of its twin
with another needle; keys, values and convolution inputs stay. Needed states lose the needle either way; those that
contradict lose it only with the twin's. The numbers go to docs/results/other-states.json, for docs/what-we-found.md.

How it fails: one line for a model that cannot be opened or has no recurrent states.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch

import hybridlens as hl
from analyses import kv_cache
from analyses.kv_cache import PromptPair, Share
from hybridlens.display import Table
from hybridlens.display.tables import Plain
from hybridlens.errors import HybridLensError, InputError
from hybridlens.model import HybridLens
from hybridlens.state import HybridState
from hybridlens.weights import Weights
from hybridlens.weights.digest import digest
from tests.stated import STORE
from tests.stored_results import plain_tables, text_of

LENGTH, DEPTHS = 150, (25, 50, 75)
OWN, NONE, OTHER = STATES = ("the prompt", "no needle", "another needle")
"""Whose recurrent states the answer is made from."""


def filled(pair: PromptPair) -> list[int]:
    """The prompt with its needle's tokens replaced by as many of the filler before it."""
    ((start, stop),) = pair.spans
    size = stop - start
    if start < size:
        raise InputError(f"{pair.name!r} has a needle of {size} tokens at {start}, with less filler before it")
    return [*pair.a[:start], *pair.a[start - size : start], *pair.a[stop:]]


def told(lens: HybridLens, pairs: Sequence[PromptPair], states: str) -> Share:
    """Answers that tell the needle that was read, with these recurrent states; each pair counts once, both ways."""
    texts = [text for pair in pairs for text in (pair.a, pair.b)]
    others = {OWN: texts, OTHER: [text for pair in pairs for text in (pair.b, pair.a)]}
    others[NONE] = [filled(pair) for pair in pairs for _ in range(2)]
    read = lens.prefill([text[:-1] for text in others[states]]).state
    surgery = kv_cache.Surgery(partial(_exchanged, other=read))
    answers = kv_cache.generate_with(lens, texts, [surgery]).text
    both = zip(pairs, answers[::2], answers[1::2], strict=True)
    return Share.of([((pair.tells(a)[0] == "A") + (pair.tells(b)[0] == "B")) / 2 for pair, a, b in both], 0)


def _exchanged(state: HybridState, other: HybridState) -> HybridState:
    return kv_cache.swap_recurrent(state, other, "recurrent")


def measured(models: Sequence[str]) -> tuple[Table, dict[str, str]]:
    """A row for each model and states, and the digests of the models' weights."""
    rows, weights = list[tuple[Plain, ...]](), dict[str, str]()
    for model in models:
        lens, name = hl.load(model), Path(model).name
        if not lens.cfg.state_layers:
            raise InputError(f"{model} has no recurrent states; give a model that has")
        pairs = kv_cache.prompt_pairs(lens.tokenizer, [LENGTH], DEPTHS)
        weights[name] = digest(Weights.of_model(lens))
        for states in STATES:
            share = told(lens, pairs, states)
            rows.append((name, states, share.mean, *share.interval, len(pairs)))
            print(f"{name}, states of {states}: {share.summary()}", flush=True)
    return Table(("model", "states", "told", "low", "high", "n"), rows), weights


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.other_states",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("models", nargs="+", help="embedded models, or folders")
    parser.add_argument("--out", type=Path, default=STORE / "other-states.json")
    options = parser.parse_args(arguments)
    try:
        table, weights = measured(options.models)
    except HybridLensError as error:
        print(f"other_states: {error}", file=sys.stderr)
        return 2
    made = {"command": "python -m tests.benchmarks.other_states", "model": ", ".join(weights), "weights": weights,
            "arguments": {"length": LENGTH, "depths": list(DEPTHS)},
            "finished": datetime.now(UTC).isoformat(timespec="seconds"), "torch": torch.__version__}  # fmt: skip
    options.out.write_text(text_of({"made": made, "tables": plain_tables({"told": table})}), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
