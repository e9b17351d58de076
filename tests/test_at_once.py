"""How much is done at once: by the cache on a CPU, elsewhere by what pays and what is free; and what top-k costs so.

The operations are counted on the meta device, which stands for a GPU: at RecurrentGemma-9B's widths, with six of its
layers, two of them attention as in the whole. Scans and the fused attention are one launch each, as their kernels are.
"""

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bounds import FEW, bound
from hypothesis import given
from hypothesis import strategies as st
from operations import Operations
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

import hybridlens as hl
from analyses.heads.entropy import NOTHING, launched_entropy, score_entropy
from analyses.heads.selection import lowest, ranks
from analyses.heads.sparsification import top_k
from hybridlens import machine
from hybridlens.at_once import LEAST, PAYS, SHARE, UNASKED, rows_at_once
from hybridlens.decoding import editing
from hybridlens.recurrences import scan
from hybridlens.recurrences.kernels.choice import Kernel

GPU = torch.device("cuda")
HEADS, TOKENS = 16, 4096


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(1, 2**20))
def test_a_cpu_does_what_its_cache_holds(rows: int, width: int, cached: int) -> None:
    step = rows_at_once(rows, width, torch.device("cpu"), on_cpu=cached, each=16)
    assert step == max(1, cached // width)


@given(st.integers(1, 2**15), st.integers(1, 2**18), st.integers(2**20, 2**40), st.integers(1, 64))
def test_elsewhere_it_fits_what_is_free(rows: int, width: int, free: int, each: int) -> None:
    """Never more than pays, nor than a share of the memory, but for single rows and what is too little to ask."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "free", lambda device: free)
        step = rows_at_once(rows, width, GPU, on_cpu=1, each=each)
    assert 1 <= step <= rows
    least = rows * width if rows * width <= UNASKED else LEAST
    assert step == 1 or step * width <= max(min(PAYS, free // (SHARE * each)), least)
    pieces = -(-rows // step)
    assert pieces == 1 or -(-rows // (pieces - 1)) > step  # as equal as so many pieces can be
    if 2 * width <= PAYS and free >= SHARE * each * PAYS:
        assert pieces <= -(-2 * rows * width // PAYS)


def test_small_differences_of_free_memory_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step's few scores are done without asking; a prompt's in pieces that change by halves."""
    monkeypatch.setattr(machine, "free", lambda device: pytest.fail("asked"))
    assert rows_at_once(1, HEADS * TOKENS, GPU, on_cpu=1, each=16) == 1
    found: dict[int, int] = {}
    for free in range(2**30, 2**36, 2**28):
        monkeypatch.setattr(machine, "free", lambda device, free=free: free)
        found[free] = rows_at_once(TOKENS, HEADS * TOKENS, GPU, on_cpu=1, each=16)
    assert sorted(set(found.values())) == [256, 512, 1024, 2048]
    assert list(found.values()) == sorted(found.values())
    monkeypatch.setattr(machine, "free", lambda device: None)
    assert rows_at_once(TOKENS, HEADS * TOKENS, GPU, on_cpu=1, each=16) == 2048


@pytest.mark.parametrize("size", [0.0, 0.3, 3.0, 30.0, 300.0])
def test_the_entropy_of_few_launches_is_the_other(size: float) -> None:
    """Against double precision: a sum of up to 64 weights, each off by a few roundings of its distance."""
    scores = torch.randn(200, 64) * size
    scores[:, 40:] = float("-inf")
    scores[:50, 1:] = float("-inf")
    exact = torch.special.entr(scores.double().softmax(-1)).sum(-1) / torch.tensor(2.0).double().log()
    exact = exact.masked_fill(exact < NOTHING, 0.0)
    for found in (launched_entropy(scores), score_entropy(scores)):
        assert found.dtype == torch.float32
        assert float((found - exact).abs().max()) <= bound(6.0, 64 + FEW)
        assert bool((found[:50] == 0).all())
        assert not bool(found.signbit().any())
    assert bool(launched_entropy(torch.full((1, 3), float("-inf"))).isnan().all())


@given(st.integers(0, 10_000), st.integers(1, 20), st.integers(1, 3), st.data())
def test_ranks_are_a_stable_sort(seed: int, heads: int, queries: int, data: st.DataObject) -> None:
    """What a device does keeps the heads that a CPU keeps, ties and all."""
    drawn = random.Random(seed)
    keys = torch.tensor([drawn.choice((0.0, 0.5, 1.0)) for _ in range(2 * heads * queries)]).view(2, heads, queries)
    k = torch.tensor(data.draw(st.lists(st.integers(0, heads), min_size=2, max_size=2)))
    assert torch.equal(ranks(keys) < k[:, None, None], lowest(keys, k))


@pytest.fixture(scope="module")
def lens() -> hl.HybridLens:
    sizes: dict[str, Any] = {
        "hidden_size": 4096, "num_hidden_layers": 6, "vocab_size": 256000, "intermediate_size": 24576, "head_dim": 256,
        "num_attention_heads": HEADS, "num_key_value_heads": 1, "lru_width": 4096, "attention_window_size": 2048,
    }  # fmt: skip
    with torch.device("meta"):
        return hl.HybridLens(RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**sizes)).bfloat16().eval())


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """One launch a scan, and one for what nobody looks into."""
    kernel = Kernel("one launch", (), linear=lambda decay, write, initial, reverse: torch.empty_like(write))
    monkeypatch.setattr(scan, "kernel_for", lambda *tensors, steps, **rest: kernel if steps > 1 else None)
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, **rest: torch.empty_like(q))


def counted(lens: hl.HybridLens, edits: list[hl.Edit], ids: torch.Tensor, state: hl.HybridState | None) -> Operations:
    phase = "prefill" if state is None else "decode"
    with torch.no_grad(), editing(lens.network, edits, phase) as forward, Operations() as found:
        forward(ids, None, state, True)
    return found


@pytest.mark.parametrize("semantics", ["clean", "published"])
def test_what_reading_costs_with_top_k(lens: hl.HybridLens, semantics: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 4,096 tokens at most half as many operations more, and a quarter of what is free beside the plain pass."""
    ids = torch.zeros(1, TOKENS, dtype=torch.long, device="meta")
    edits = top_k(lens, [HEADS // 2], "both", semantics=semantics)
    plain, kept = counted(lens, [], ids, None), counted(lens, edits, ids, None)
    assert kept.all <= 1.5 * plain.all
    assert kept.launches <= 1.5 * plain.launches
    monkeypatch.setattr(machine, "free", lambda device: 2 * 2**30)
    little = counted(lens, edits, ids, None)
    assert little.peak - plain.peak <= 2**30 / 2
    assert kept.peak > little.peak
    assert little.all > kept.all


@pytest.mark.parametrize("semantics", ["clean", "published"])
@pytest.mark.parametrize("held", [1024, TOKENS])
def test_what_a_step_costs_with_top_k(lens: hl.HybridLens, held: int, semantics: str) -> None:
    """At most 1.15 times the operations, before the window is full and after, and nothing that the host hands over.

    Nothing can be read back here, on the meta device, so nothing is.
    """
    ids = torch.zeros(2, held, dtype=torch.long, device="meta")
    edits = top_k(lens, [3, HEADS // 2], semantics=semantics)
    with torch.no_grad(), editing(lens.network, edits, "decode") as forward:
        state = lens.network(ids, None, None, True).state
        state = forward(ids[:, :1], None, state, True).state  # room for keys is made, and k brought to the device
    plain, kept = counted(lens, [], ids[:, :1], state), counted(lens, edits, ids[:, :1], state)
    assert kept.all <= 1.15 * plain.all
    assert kept.launches <= 1.15 * plain.launches
    assert kept.crossings == plain.crossings
