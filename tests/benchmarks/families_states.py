"""States and hidden attention against TransformerLens: ``python -m tests.benchmarks.families_states [--runs N]``.

One layer of Mamba-2 and one of gated DeltaNet with heads of their usual sizes, each side around a copy of one model:

* every state of the layer at 2,048 tokens, captured (`ssm.hook_state`), against TransformerLens' eager scan
  (`hook_ssm_state`): at least 5 times faster, in at most half of the memory;
* its hidden attention at 1,024 tokens (`ssm.hook_pattern`) against TransformerLens' effective attention: at least 3
  times faster. Ours is the whole captured run, theirs what it makes of a run cached before; Mamba-2's needs its eager
  scan for that, since its convolution's hook is silent without. For the delta rule theirs leaves out erasure and the
  norm of addresses, so that ours is held to a plain float64 loop over the tensors that theirs has cached, and how far
  theirs is from that loop is said.

Both sides must agree before anything is timed. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import Mamba2Config, Mamba2ForCausalLM, Qwen3NextConfig, Qwen3NextForCausalLM

import hybridlens as hl
from tests.benchmarks.measure import TOLERANCE, Paired, machine, paired, peak_bytes, table
from tests.benchmarks.models import VOCAB, tokens
from tests.models import perturbed

HEAD = (
    "measured", "ours, ms", "theirs, ms", "times faster", "least to most", "memory ÷ theirs", "wanted",
    "sides differ by",
)  # fmt: skip
UNIT = 1e-6
"""Added to the squared length of an address before its root is taken."""

LOOPED = 2
"""Heads whose hidden attention is compared with the plain loop."""


class Sizes(NamedTuple):
    """How large the layers are, and how long the texts."""

    width: int = 768
    mamba2: tuple[int, int, int] = (24, 64, 128)
    """Heads, value width, state size."""
    delta: tuple[int, int, int] = (8, 128, 128)
    """Value heads, over half as many key heads, and both widths; half of Qwen3-Next's heads, for the memory's sake."""
    states: int = 2048
    """Tokens whose states are captured."""
    hidden: int = 1024
    """Tokens whose hidden attention is made."""


SMALLEST = Sizes(width=32, mamba2=(4, 16, 8), delta=(4, 8, 8), states=24, hidden=24)


class Pair(NamedTuple):
    """A model of one layer under both tools."""

    name: str
    lens: Any
    bridge: Any
    mixer: Any
    """TransformerLens' component."""
    at: str
    """Where its hook points are."""
    sizes: tuple[int, int, int]


def mamba2(sizes: Sizes) -> Pair:
    """One layer of Mamba-2, all heads in one group."""
    heads, wide, state = sizes.mamba2
    config = Mamba2Config(
        vocab_size=VOCAB, hidden_size=sizes.width, num_hidden_layers=1, expand=heads * wide // sizes.width,
        num_heads=heads, head_dim=wide, state_size=state, n_groups=1, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return _pair("Mamba-2", Mamba2ForCausalLM, config, "blocks.0.mixer", sizes.mamba2)


def delta(sizes: Sizes) -> Pair:
    """One gated delta rule of Qwen3-Next, its MLP dense."""
    heads, wide, address = sizes.delta
    config = Qwen3NextConfig(
        vocab_size=VOCAB, hidden_size=sizes.width, num_hidden_layers=1, layer_types=["linear_attention"],
        intermediate_size=2 * sizes.width, num_attention_heads=4, num_key_value_heads=2, head_dim=sizes.width // 4,
        linear_num_key_heads=heads // 2, linear_num_value_heads=heads, linear_key_head_dim=address,
        linear_value_head_dim=wide, mlp_only_layers=[0], pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return _pair("gated DeltaNet", Qwen3NextForCausalLM, config, "blocks.0.linear_attn", sizes.delta)


def _pair(name: str, kind: Any, config: Any, at: str, sizes: tuple[int, int, int]) -> Pair:
    torch.manual_seed(0)
    model = kind(config).eval()
    perturbed(model, 1)
    copied = copy.deepcopy(model)
    bridge: Any = build_bridge_from_module(copied, kind.__name__, hf_config=copied.config).eval()
    mixer = bridge.blocks[0].mixer if at.endswith("mixer") else bridge.blocks[0].linear_attn
    return Pair(name, hl.HybridLens(model), bridge, mixer, at, sizes)


def rows_of_states(sizes: Sizes = Sizes(), runs: int = 5) -> list[list[str]]:
    """Every state of a layer, captured by both sides: a row a family, under `HEAD`."""
    rows: list[list[str]] = []
    for build in (mamba2, delta):
        pair, ids = build(sizes), tokens(1, sizes.states)
        pair.mixer.eager_scan = True
        turned = build is delta  # theirs has addresses before values
        point, their_point = "blocks.0.ssm.hook_state", f"{pair.at}.hook_ssm_state"

        def ours(pair: Pair = pair, ids: Tensor = ids, point: str = point) -> Tensor:
            return pair.lens.run_with_cache(ids, names_filter=point)[1][point]

        def theirs(pair: Pair = pair, ids: Tensor = ids, point: str = their_point) -> Tensor:
            return pair.bridge.run_with_cache(ids, names_filter=point, use_cache=False)[1][point]

        with torch.no_grad():
            mine, other = ours(), theirs()
            apart = _apart(mine, other.mT if turned else other)
            del mine, other
            rows.append(_measured(pair, f"all states at {sizes.states:,} tokens", ours, theirs, runs, 5, apart, 0.5))
    return rows


def rows_of_hidden(sizes: Sizes = Sizes(), runs: int = 5) -> list[list[str]]:
    """The hidden attention of a layer by both sides: a row a family, under `HEAD`."""
    rows: list[list[str]] = []
    for build in (mamba2, delta):
        pair, ids = build(sizes), tokens(1, sizes.hidden)
        asked = ("in_proj.hook_out", "conv1d.hook_out") if build is mamba2 else DELTA_INPUTS
        names, options = [f"{pair.at}.{name}" for name in asked], {"include_dt_scaling": True} if build is mamba2 else {}
        point = "blocks.0.ssm.hook_pattern"

        def ours(pair: Pair = pair, ids: Tensor = ids, point: str = point) -> Tensor:
            return pair.lens.run_with_cache(ids, names_filter=point)[1][point]

        pair.mixer.eager_scan = build is mamba2
        with torch.no_grad():
            cache = pair.bridge.run_with_cache(ids, names_filter=names, use_cache=False)[1]

            def theirs(pair: Pair = pair, cache: Any = cache, options: dict[str, bool] = options) -> Tensor:
                return pair.mixer.compute_effective_attention(cache, 0, **options)

            mine, other = ours(), theirs()
            if build is mamba2:
                apart, said = _apart(mine, other), ""
            else:
                exact = plain_pattern(*(cache[name] for name in names))
                apart = _apart(mine[:, :LOOPED], exact)
                off = float((other[:, :LOOPED] - exact).abs().max() / exact.abs().max())
                said = f" from the loop; theirs {off:.0%} of the largest weight"
            del mine, other
            what = f"hidden attention at {sizes.hidden:,} tokens"
            rows.append(_measured(pair, what, ours, theirs, runs, 3, apart, None, said))
    return rows


DELTA_INPUTS = ("hook_q", "hook_k", "hook_beta", "hook_log_decay")


def plain_pattern(q: Tensor, k: Tensor, beta: Tensor, log_decay: Tensor) -> Tensor:
    """β_j q_tᵀ (∏_{j<r≤t} a_r (I - β_r k_r k_rᵀ)) k_j of the first heads [b `LOOPED` p p], token by token in float64.

    Args:
        q: of each key head [b p h m], before its norm.
        k: likewise.
        beta: write strengths of each value head [b p s].
        log_decay: likewise, logarithms.
    """
    repeat = beta.shape[2] // q.shape[2]
    q, k = (
        (x / (x.pow(2).sum(dim=-1, keepdim=True) + UNIT).sqrt()).repeat_interleave(repeat, dim=2)[:, :, :LOOPED]
        for x in (q.double(), k.double())
    )
    beta, decay = beta.double()[:, :, :LOOPED], log_decay.double().exp()[:, :, :LOOPED]
    batch, length, heads, width = k.shape
    held = k.new_zeros(batch, heads, length, width)  # where what each token wrote stands now
    rows: list[Tensor] = []
    for t in range(length):
        held = held * decay[:, t, :, None, None]
        recalled = torch.einsum("bhjm,bhm->bhj", held, k[:, t])
        held = held - beta[:, t, :, None, None] * recalled[..., None] * k[:, t, :, None]
        held[:, :, t] = beta[:, t, :, None] * k[:, t]
        rows.append(torch.einsum("bhjm,bhm->bhj", held, q[:, t]) * width**-0.5)
    return torch.stack(rows, dim=2)


def _apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference relative to the largest value, a row of the text at a time.

    Raises:
        AssertionError: it is above `TOLERANCE`, or shapes differ; nothing should be timed then.
    """
    assert ours.shape == theirs.shape, f"{list(ours.shape)} and {list(theirs.shape)}"
    size = max(float(part.abs().max()) for part in theirs.unbind(1))
    apart = max(float((a - b).abs().max()) for a, b in zip(ours.unbind(1), theirs.unbind(1), strict=True)) / size
    assert apart <= TOLERANCE, f"the sides differ by {apart:.1e} of the largest value"
    return apart


def _measured(
    pair: Pair,
    what: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    runs: int,
    floor: float,
    apart: float,
    memory: float | None,
    said: str = "",
) -> list[str]:
    times: Paired = paired(ours, theirs, runs)
    share = peak_bytes(ours) / peak_bytes(theirs)
    heads = " × ".join(map(str, pair.sizes))
    wanted = f"≥ {floor}" + ("" if memory is None else f", memory ≤ {memory}")
    return [
        f"{pair.name} ({heads}): {what}", f"{1000 * times.ours:.0f}", f"{1000 * times.theirs:.0f}",
        f"{times.faster:.1f}", f"{times.least:.1f} to {times.most:.1f}", f"{share:.2f}", wanted,
        f"{apart:.0e}{said}",
    ]  # fmt: skip


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--smallest", action="store_true", help="sizes that say nothing, to see that it runs")
    options = parser.parse_args()
    sizes = SMALLEST if options.smallest else Sizes()
    print(f"{machine()}\n")
    print(table(HEAD, [*rows_of_states(sizes, options.runs), *rows_of_hidden(sizes, options.runs)]))


if __name__ == "__main__":
    main()
