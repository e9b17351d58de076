"""What looking costs, and what it costs to be able to: ``python -m tests.benchmarks.capture [--runs N] [--smallest]``.

* `run_with_cache` of the residual stream, z and pattern against TransformerLens' Jamba bridge for the same
  tensors: at least 2 times faster.
* No hooks, against the untouched Hugging Face model, reading a prompt and single decode steps: at most 1.05 of its
  time.
* Generation with top-k heads, another k on every row, against generation with no edits: at least 0.8 of its tokens
  per second; once with the prompts' prefill and once without.

Both sides must agree before anything is timed. Prints a markdown table.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

import hybridlens as hl
from analyses.heads.sparsification import top_k
from hybridlens.decoding import Start
from hybridlens.generation import continue_from
from tests.benchmarks import models
from tests.benchmarks.measure import Paired, difference, machine, paired, table

LOOKED_AT = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "attn.hook_z", "attn.hook_pattern")
HEAD = ("measured", "ours, ms", "theirs, ms", "ratio", "least to most", "wanted", "sides differ by")


class Sizes(NamedTuple):
    """How large everything is."""

    width: int = 256
    layers: int = 8
    tokens: int = 512
    steps: int = 8
    """Decode steps in a run."""
    rows: int = 90
    prompt: int = 250
    new: int = 20
    """Tokens generated for each row."""


SMALLEST = Sizes(width=32, layers=4, tokens=24, steps=2, rows=3, prompt=12, new=3)


def faster(what: str, times: Paired, wanted: str, apart: float | None) -> list[str]:
    """A row about times faster, or about a share of the other side's speed."""
    return _row(what, times, (times.faster, times.least, times.most), wanted, apart)


def share(what: str, times: Paired, wanted: str, apart: float | None) -> list[str]:
    """A row about a share of the other side's time."""
    return _row(what, times, (1 / times.faster, 1 / times.most, 1 / times.least), wanted, apart)


def _row(what: str, times: Paired, ratios: tuple[float, ...], wanted: str, apart: float | None) -> list[str]:
    ratio, least, most = (f"{value:.2f}" for value in ratios)
    seconds = (f"{1000 * times.ours:.1f}", f"{1000 * times.theirs:.1f}")
    return [what, *seconds, ratio, f"{least} to {most}", wanted, "–" if apart is None else f"{apart:.0e}"]


def against_bridge(sizes: Sizes, runs: int) -> list[str]:
    """The residual stream before, inside and after each layer, z and pattern."""
    model = models.jamba(sizes.width, sizes.layers)
    lens, bridge, tokens = hl.HybridLens(model), models.bridge(model), models.tokens(1, sizes.tokens)
    names = [name for name in lens.hook_points if name.endswith(LOOKED_AT)]

    def ours() -> dict[str, Tensor]:
        return lens.run_with_cache(tokens, names_filter=names)[1].cache_dict

    def theirs() -> dict[str, Tensor]:
        kept = bridge.run_with_cache(tokens, names_filter=names)[1]
        return {name: kept[name] for name in names}  # it keeps them under second names, too

    apart = difference(ours(), theirs())
    what = f"residual, z and pattern of a Jamba, {sizes.tokens} tokens: times faster than TransformerLens' bridge"
    return faster(what, paired(ours, theirs, runs), "≥ 2", apart)


def reading(name: str, lens: hl.HybridLens, sizes: Sizes, runs: int) -> list[str]:
    """Logits of a prompt, no hooks."""
    tokens = models.tokens(1, sizes.tokens, lens.cfg.d_vocab)

    def ours() -> Tensor:
        return lens(tokens)

    def theirs() -> Tensor:
        return lens.hf_model(tokens, use_cache=False).logits

    apart = difference({"logits": ours()}, {"logits": theirs()})
    what = f"{name}: {sizes.tokens} tokens, no hooks: share of the model's time"
    return share(what, paired(ours, theirs, runs), "≤ 1.05", apart)


def stepping(name: str, lens: hl.HybridLens, sizes: Sizes, runs: int) -> list[str]:
    """Single decode steps behind a prompt, no hooks; each run goes on where the last one stopped."""
    tokens = models.tokens(1, sizes.tokens + sizes.steps, lens.cfg.d_vocab)
    prompt, steps = tokens[:, : sizes.tokens], tokens[:, sizes.tokens :].split(1, dim=1)
    model, held = lens.hf_model, [lens.prefill(prompt).state]
    cache = DynamicCache(config=model.config)
    model(prompt, use_cache=False)  # forgets what an earlier run left on a RecurrentGemma's modules
    model(prompt, past_key_values=cache, use_cache=True)

    def ours() -> Tensor:
        for step in steps:
            held[0], logits = lens.extend(held[0], step)
        return logits

    def theirs() -> Tensor:
        for step in steps:
            logits = model(step, past_key_values=cache, use_cache=True).logits
        return logits

    apart = difference({"logits": ours()}, {"logits": theirs()})
    times = paired(ours, theirs, runs)
    times = times._replace(ours=times.ours / sizes.steps, theirs=times.theirs / sizes.steps)
    return share(f"{name}: one decode step, no hooks: share of the model's time", times, "≤ 1.05", apart)


def top_k_generation(name: str, lens: hl.HybridLens, sizes: Sizes, runs: int) -> list[list[str]]:
    """Top-k on every row while answering, against no edits; k runs through 1 … n_heads - 1 over the rows."""
    tokens = models.tokens(sizes.rows, sizes.prompt, lens.cfg.d_vocab)
    edits = top_k(lens, [row % (lens.cfg.n_heads - 1) + 1 for row in range(sizes.rows)])
    state, logits = lens.prefill(tokens, last_only=True)

    def whole(edits: list[hl.Edit]) -> Tensor:
        return lens.generate(tokens, sizes.new, edits, stop_at_eos=False).tokens

    def answers(edits: list[hl.Edit]) -> Tensor:
        return continue_from(lens.network, Start(state, logits[:, 0]), sizes.new, edits, stop_at_eos=False).tokens

    assert whole(edits).shape == whole([]).shape == (sizes.rows, sizes.new)
    end = f"of {sizes.rows} × {sizes.new} tokens, top-k on every row: share of the tokens per second without edits"
    return [
        faster(f"{name}: generation ({sizes.prompt} read) {end}", paired(lambda: whole(edits), lambda: whole([]), runs),
               "≥ 0.8", None),
        faster(f"{name}: decoding alone {end}", paired(lambda: answers(edits), lambda: answers([]), runs),
               "≥ 0.8", None),
    ]  # fmt: skip


@torch.no_grad()
def measure(sizes: Sizes, runs: int) -> list[list[str]]:
    """All rows of the table."""
    tiny: dict[str, Any] = {name: hl.load(name) for name in ("tiny-recurrentgemma", "tiny-jamba")}
    lenses = {
        f"RecurrentGemma, width {sizes.width}, {sizes.layers} layers": hl.HybridLens(
            models.recurrentgemma(sizes.width, sizes.layers)
        ),
        f"Jamba, width {sizes.width}, {sizes.layers} layers": hl.HybridLens(models.jamba(sizes.width, sizes.layers)),
        **tiny,
    }
    rows = [against_bridge(sizes, runs)]
    rows += [reading(name, lens, sizes, runs) for name, lens in lenses.items()]
    rows += [stepping(name, lens, sizes, 2 * runs) for name, lens in lenses.items()]
    for name, lens in tiny.items():
        rows += top_k_generation(name, lens, sizes, runs)
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--smallest", action="store_true", help="tiny sizes: whether it runs, not how fast")
    options = parser.parse_args(arguments)
    rows = measure(SMALLEST if options.smallest else Sizes(), options.runs)
    print(f"{machine()}; medians of {options.runs} runs, decode steps of {2 * options.runs}\n")
    print(table(HEAD, rows))


if __name__ == "__main__":
    main()
