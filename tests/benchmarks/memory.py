"""Memory where it would grow fastest: ``python -m tests.benchmarks.memory [--runs N] [--smallest]``.

* Recurrent states after every token of a Jamba against TransformerLens' eager scan for the same tensors: at
  least 3 times faster at half the memory. Of a model with a single recurrent layer and no other, so that nothing
  else is measured; of one layer inside a larger model; and of all of its recurrent layers.
* A prompt read with top-k heads: extra memory over the same pass without edits, at most one eighth of what
  holding the patterns takes (heads × queries × keys × 4 bytes in each attention layer). Where a pass holds more
  elsewhere than in its attention layer, that extra is 0: so the layer is also measured by itself. Beside it the
  extra memory of a pass that keeps the patterns.
* No hooks: PyTorch's fused attention runs, and no softmax of ours, in prefill and in a decode step.

Memory is the peak of PyTorch's allocator (`measure.peak_bytes`). Both sides must agree before anything is
measured. Prints a markdown table.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple, cast

import torch

import hybridlens as hl
from analyses.heads.sparsification import top_k
from hybridlens.passes import Pass
from tests.benchmarks import models
from tests.benchmarks.measure import Run, difference, machine, operations, paired, peak_bytes, table

HEAD = ("measured", "ours, MB", "theirs, MB", "share of memory", "wanted", "times faster", "least to most", "wanted",
        "sides differ by")  # fmt: skip
FUSED = "aten::_scaled_dot_product_flash_attention_for_cpu"
EXPLICIT = "aten::_softmax"


class Sizes(NamedTuple):
    """How large everything is."""

    width: int = 256
    layers: int = 8
    tokens: int = 2048
    long: int = 4096
    """Tokens of the prompt read with top-k."""
    heads: int = 16
    window: int = 2048


SMALLEST = Sizes(width=32, layers=4, tokens=40, long=256, heads=8, window=128)


def row(what: str, memory: tuple[int, int], wanted: str, *timed: str) -> list[str]:
    """A row of the table; without times, the last columns stay empty."""
    ours, theirs = memory
    megabytes = (f"{ours / 2**20:.1f}", f"{theirs / 2**20:.1f}", f"{ours / theirs:.3f}")
    return [what, *megabytes, wanted, *(timed or ("–",) * 4)]


def states(what: str, model: Any, layers: list[int], sizes: Sizes, runs: int) -> list[str]:
    """The recurrent state after every token, of some layers."""
    lens, bridge, tokens = hl.HybridLens(model), models.bridge(model), models.tokens(1, sizes.tokens)
    names = [f"blocks.{layer}.ssm.hook_state" for layer in layers]
    their_names = [f"blocks.{layer}.mixer.hook_ssm_state" for layer in layers]
    for layer in layers:
        bridge.blocks[layer].mixer.eager_scan = True

    def ours() -> Any:
        return lens.run_with_cache(tokens, names_filter=names)[1]

    def theirs() -> Any:
        return bridge.run_with_cache(tokens, names_filter=their_names, use_cache=False)[1]

    mine, other = ours(), theirs()  # [batch pos channel state] and [batch channel pos state]
    apart = difference(
        mine.cache_dict, {name: other[theirs].transpose(1, 2) for name, theirs in zip(names, their_names, strict=True)}
    )
    del mine, other
    times = paired(ours, theirs, runs)
    timed = (f"{times.faster:.2f}", f"{times.least:.2f} to {times.most:.2f}", "≥ 3", f"{apart:.0e}")
    return row(what, (peak_bytes(ours), peak_bytes(theirs)), "≤ 0.5", *timed)


def long_prompt(name: str, model: Any, sizes: Sizes) -> list[list[str]]:
    """A prompt read with top-k, with the patterns kept, and with nothing; the model has one attention layer."""
    lens, tokens = hl.HybridLens(model), models.tokens(1, sizes.long)
    edits = top_k(lens, sizes.heads // 4, "both")
    pattern = [f"blocks.{layer}.attn.hook_pattern" for layer in lens.cfg.attention_layers]
    held = len(pattern) * sizes.heads * sizes.long**2 * 4

    def plain() -> object:
        return lens.prefill(tokens, last_only=True)

    def sparse() -> object:
        return lens.prefill(tokens, edits, last_only=True)

    def kept() -> object:
        return lens.run_with_cache(tokens, names_filter=pattern)

    state = lens.prefill(tokens, last_only=True).state
    for what, run in {"prefill": plain, "decode": lambda: lens.extend(state, [[5]])}.items():
        assert is_fused(run), f"{name}: {what} without hooks does not run the fused kernel alone"
    bare, layer = peak_bytes(plain), alone(lens, edits, tokens)
    end = f"{sizes.long} tokens, {sizes.heads} heads, against holding the patterns"
    return [
        row(f"{name}: prefill with top-k: extra, {end}", (peak_bytes(sparse) - bare, held), "≤ 0.125"),
        row(f"{name}: its attention layer alone with top-k: all it takes", (layer, held), "≤ 0.125"),
        row(f"{name}: `run_with_cache` of the patterns: extra", (peak_bytes(kept) - bare, held), "–"),
        row(f"{name}: prefill and decode step without hooks, fused: all it takes", (bare, held), "–"),
    ]


def alone(lens: hl.HybridLens, edits: list[hl.Edit], tokens: torch.Tensor) -> int:
    """Peak of the attention layer by itself: elsewhere in the pass more may be held at once, and hide it."""
    block = cast(Any, lens.blocks[lens.cfg.attention_layers[0]])
    x = torch.randn(1, tokens.shape[1], lens.cfg.d_model, generator=torch.Generator().manual_seed(2))
    run = Pass(tokens, None, None)
    with lens.editing(edits, "prefill"):
        return peak_bytes(lambda: block.attn(x, run, None))


def is_fused(run: Run) -> bool:
    """Whether attention ran in PyTorch's fused kernel, with no softmax beside it."""
    names = operations(run)
    return FUSED in names and EXPLICIT not in names


@torch.no_grad()
def measure(sizes: Sizes, runs: int) -> list[list[str]]:
    """All rows of the table."""
    alone = models.jamba(sizes.width, 1)
    whole = models.jamba(sizes.width, sizes.layers)
    recurrent = list(hl.HybridLens(whole).cfg.ssm_layers)
    end = f"{sizes.tokens} tokens, against TransformerLens' eager scan"
    rows = [
        states(f"states of a Jamba of one layer, {end}", alone, [0], sizes, runs),
        states(f"states of one layer of {sizes.layers}, {end}", whole, [1], sizes, runs),
        states(f"states of all {len(recurrent)} recurrent layers, {end}", whole, recurrent, sizes, runs),
    ]
    width, heads = 8 * sizes.heads, sizes.heads
    jamba = models.jamba(width, 3, num_attention_heads=heads, num_experts=1, num_experts_per_tok=1)
    gemma = models.recurrentgemma(width, 3, num_attention_heads=heads, attention_window_size=sizes.window)
    return [*rows, *long_prompt("Jamba", jamba, sizes), *long_prompt("RecurrentGemma", gemma, sizes)]


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--smallest", action="store_true", help="tiny sizes: whether it runs, not what it takes")
    options = parser.parse_args(arguments)
    rows = measure(SMALLEST if options.smallest else Sizes(), options.runs)
    print(f"{machine()}; times are medians of {options.runs} runs\n")
    print(table(HEAD, rows))


if __name__ == "__main__":
    main()
