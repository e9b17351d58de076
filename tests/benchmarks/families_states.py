"""States and hidden attention against TransformerLens: ``python -m tests.benchmarks.families_states [--runs N]``.

One layer of Mamba-2 and one of gated DeltaNet with heads of their usual sizes, each side around a copy of one model:

* every state of the layer at 2,048 tokens (`ssm.hook_state`) against TransformerLens' eager scan (`hook_ssm_state`): at
  least 5 times faster, in at most half of the memory;
* its hidden attention at 1,024 tokens (`ssm.hook_pattern`) against TransformerLens' effective attention: at least 3
  times faster.

Each is measured as a whole, a run that captures it, and its making alone, out of what a run has at hand; Mamba-2's
eager scan cannot be called alone. TransformerLens' effective attention of Mamba-2 needs its eager scan, too: without,
the hook of the convolution that it reads is silent. Of a delta rule it leaves out erasure and the norm of addresses,
so that ours is held to a plain float64 loop over the tensors that theirs has cached, and how far theirs is from that
loop is said.

Both sides must agree before anything is timed. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import Mamba2Config, Mamba2ForCausalLM, Qwen3NextConfig, Qwen3NextForCausalLM

import hybridlens as hl
from tests.benchmarks.measure import TOLERANCE, Paired, machine, paired, peak_bytes, table
from tests.benchmarks.models import tokens
from tests.models import perturbed

HEAD = (
    "measured", "ours, ms", "theirs, ms", "times faster", "least to most", "memory ÷ theirs", "wanted",
    "sides differ by",
)  # fmt: skip
VOCAB = 64
"""Few words: they are no part of what is measured."""

UNIT = 1e-6
"""Added to the squared length of an address before its root is taken."""

LOOPED = 2
"""Heads whose hidden attention is compared with the plain loop."""


class Sizes(NamedTuple):
    """How large the layers are, and how long the texts."""

    width: int = 768
    mamba2: tuple[int, int, int] = (24, 64, 128)
    """Heads, value width, state size: those of Mamba-2 130M."""
    delta: tuple[int, int, int] = (8, 128, 128)
    """Value heads, over half as many key heads, and both widths; a quarter of Qwen3-Next's heads, for memory's sake."""
    states: int = 2048
    """Tokens whose states are captured."""
    hidden: int = 1024
    """Tokens whose hidden attention is made."""


USUAL = Sizes()
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
    inputs: tuple[str, ...]
    """Those that effective attention is made of."""
    options: dict[str, bool]
    """Of effective attention, with which it is what ours is."""
    gated: bool
    """Whether it is a delta rule."""


class Sides(NamedTuple):
    """What is measured of both."""

    what: str
    ours: Callable[[], object]
    theirs: Callable[[], object]


def mamba2(sizes: Sizes) -> Pair:
    """One layer of Mamba-2, all heads in one group."""
    heads, wide, state = sizes.mamba2
    config = Mamba2Config(
        vocab_size=VOCAB, hidden_size=sizes.width, num_hidden_layers=1, expand=heads * wide // sizes.width,
        num_heads=heads, head_dim=wide, state_size=state, n_groups=1, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    name, inputs = f"Mamba-2 ({heads} × {wide} × {state})", ("in_proj.hook_out", "conv1d.hook_out")
    return _pair(name, Mamba2ForCausalLM, config, "mixer", inputs, {"include_dt_scaling": True})


def delta(sizes: Sizes) -> Pair:
    """One gated delta rule of Qwen3-Next, before a small MLP."""
    heads, wide, address = sizes.delta
    config = Qwen3NextConfig(
        vocab_size=VOCAB, hidden_size=sizes.width, num_hidden_layers=1, layer_types=["linear_attention"],
        intermediate_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=sizes.width // 4,
        linear_num_key_heads=heads // 2, linear_num_value_heads=heads, linear_key_head_dim=address,
        linear_value_head_dim=wide, mlp_only_layers=[0], pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    name, inputs = f"gated DeltaNet ({heads} × {wide} × {address})", ("hook_q", "hook_k", "hook_beta", "hook_log_decay")
    return _pair(name, Qwen3NextForCausalLM, config, "linear_attn", inputs, {}, gated=True)


def _pair(
    name: str, kind: Any, config: Any, at: str, inputs: tuple[str, ...], options: dict[str, bool], gated: bool = False
) -> Pair:
    torch.manual_seed(0)
    model = kind(config).eval()
    perturbed(model, 1)
    copied = copy.deepcopy(model)
    bridge: Any = build_bridge_from_module(copied, kind.__name__, hf_config=copied.config).eval()
    mixer, where = getattr(bridge.blocks[0], at), f"blocks.0.{at}"
    lens = hl.HybridLens(model)
    return Pair(name, lens, bridge, mixer, where, tuple(f"{where}.{point}" for point in inputs), options, gated)


def rows_of_states(sizes: Sizes = USUAL, runs: int = 5) -> list[list[str]]:
    """Every state of a layer by both sides: rows under `HEAD`."""
    rows: list[list[str]] = []
    for pair in (mamba2(sizes), delta(sizes)):
        ids = tokens(1, sizes.states, VOCAB)
        pair.mixer.eager_scan = True
        with torch.no_grad():
            mine, theirs = captured(pair, ids, "state"), cached(pair, ids, ("hook_ssm_state",))["hook_ssm_state"]
            apart = f"{_apart(mine, theirs.mT if pair.gated else theirs):.0e}"  # theirs has addresses first
            del mine, theirs
            measured = [_whole(pair, ids, "state", lambda p=pair, i=ids: cached(p, i, ("hook_ssm_state",)))]
            if pair.gated:
                measured.append(_scans(pair, ids))
            rows += [_row(pair, f"all states at {sizes.states:,} tokens", m, runs, 5, 0.5, apart) for m in measured]
    return rows


def rows_of_hidden(sizes: Sizes = USUAL, runs: int = 5) -> list[list[str]]:
    """The hidden attention of a layer by both sides: rows under `HEAD`."""
    rows: list[list[str]] = []
    for pair in (mamba2(sizes), delta(sizes)):
        ids = tokens(1, sizes.hidden, VOCAB)
        pair.mixer.eager_scan = not pair.gated

        def effective(pair: Pair, cache: Any) -> Tensor:
            return pair.mixer.compute_effective_attention(cache, 0, **pair.options)

        def whole(pair: Pair = pair, ids: Tensor = ids) -> Tensor:
            return effective(pair, pair.bridge.run_with_cache(ids, names_filter=list(pair.inputs), use_cache=False)[1])

        with torch.no_grad():
            mine, theirs = captured(pair, ids, "pattern"), whole()
            if pair.gated:
                exact = plain_pattern(*cached(pair, ids, pair.inputs).values())
                off = float((theirs[:, :LOOPED] - exact).abs().max() / exact.abs().max())
                apart = f"{_apart(mine[:, :LOOPED], exact):.0e} from the loop; theirs by {off:.1e}"
            else:
                apart = f"{_apart(mine, theirs):.0e}"
            del mine, theirs
            cache = pair.bridge.run_with_cache(ids, names_filter=list(pair.inputs), use_cache=False)[1]
            op, terms = at_hand(pair, ids)
            alone = Sides(
                "its making alone", lambda o=op, t=terms: o.hidden_attention(t), lambda p=pair, c=cache: effective(p, c)
            )
            measured = [_whole(pair, ids, "pattern", whole), alone]
            rows += [
                _row(pair, f"hidden attention at {sizes.hidden:,} tokens", m, runs, 3, None, apart) for m in measured
            ]
    return rows


def captured(pair: Pair, ids: Tensor, point: str) -> Tensor:
    """What ours has at a hook point of the layer."""
    name = f"blocks.0.ssm.hook_{point}"
    return pair.lens.run_with_cache(ids, names_filter=name)[1][name]


def cached(pair: Pair, ids: Tensor, points: Sequence[str]) -> dict[str, Tensor]:
    """What theirs has at some, by the names given."""
    names = [point if "." in point else f"{pair.at}.{point}" for point in points]
    kept = pair.bridge.run_with_cache(ids, names_filter=names, use_cache=False)[1]
    return {point: kept[name] for point, name in zip(points, names, strict=True)}


def at_hand(pair: Pair, ids: Tensor) -> tuple[Any, Any]:
    """Our operator, and its terms in a run."""
    op = pair.lens.network.blocks[0].mixers["ssm"].recurrence
    found: list[Any] = []

    def noted(terms: Any) -> Tensor:
        found.append(terms)
        return type(op).hidden_attention(op, terms)

    op.hidden_attention = noted
    captured(pair, ids, "pattern")
    del op.hidden_attention
    return op, found[0]


def _whole(pair: Pair, ids: Tensor, point: str, theirs: Callable[[], object]) -> Sides:
    return Sides("run and all", lambda: captured(pair, ids, point), theirs)


def _scans(pair: Pair, ids: Tensor) -> Sides:
    """The delta rule's scans alone, each with its readout."""
    op, terms = at_hand(pair, ids)
    empty = op.empty(1, "cpu")
    q, k, v, beta, decay = cached(pair, ids, ("hook_q", "hook_k", "hook_v", "hook_beta", "hook_log_decay")).values()
    q, k = (x.repeat_interleave(v.shape[2] // x.shape[2], dim=2) for x in (q, k))
    return Sides(
        "the scan alone",
        lambda: op.hooked(terms, empty, lambda states: (states, None)),
        lambda: pair.mixer._gated_delta_scan(q, k, v, decay, beta, fire_hook=True),
    )


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


def _row(pair: Pair, what: str, sides: Sides, runs: int, floor: float, memory: float | None, apart: str) -> list[str]:
    """Both sides timed, and the peak of their memory."""
    times: Paired = paired(sides.ours, sides.theirs, runs)
    share = peak_bytes(sides.ours) / peak_bytes(sides.theirs)
    return [
        f"{pair.name}: {what}, {sides.what}", f"{1000 * times.ours:.0f}", f"{1000 * times.theirs:.0f}",
        f"{times.faster:.1f}", f"{times.least:.1f} to {times.most:.1f}", f"{share:.2f}",
        f"≥ {floor:g}" + ("" if memory is None else f", memory ≤ {memory}"), apart,
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--smallest", action="store_true", help="tiny sizes: whether it runs, not how fast")
    options = parser.parse_args(arguments)
    sizes = SMALLEST if options.smallest else USUAL
    print(f"{machine()}\n")
    print(table(HEAD, [*rows_of_states(sizes, options.runs), *rows_of_hidden(sizes, options.runs)]))


if __name__ == "__main__":
    main()
