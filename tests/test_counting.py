"""Operations counted from sizes against those that PyTorch counts while small models run.

PyTorch's counter sees products of matrices. Attention goes through its plain products, whole rectangles of queries and
keys, and experts one after the other; convolutions, which run as sums of taps, and states, which run elementwise or as
products, are told apart here, from the configuration alone.
"""

from math import prod

import pytest
import torch
from models import FAMILIES, ROWS, make
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hybridlens import HybridLens
from hybridlens.counting import MACHINES, Prices, Shape, machine_of, pairs, work_of
from hybridlens.engine import costs_of
from hybridlens.engine.rehearsal import Batch, Pass
from hybridlens.errors import CheckpointError, UnknownNameError

LENGTH = 9
"""More than any window of the models."""

EXACT = ("recurrentgemma", "jamba", "llama", "qwen3", "lfm2", "lfm2_moe", "mamba", "falcon_mamba")
"""Families whose states are diagonal, or which have none: every product is known."""


def counted(lens: HybridLens, ids: torch.Tensor, state=None) -> int:
    """What PyTorch counts in one pass."""
    lens.hf_model.config._experts_implementation = "eager"
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        lens.network(ids, None, state, True)
    return counter.get_total_flops()


def taps(lens: HybridLens) -> int:
    """Operations of a token's convolutions."""
    return sum(2 * has.d_conv_channels * has.d_conv for has in lens.cfg.recurrences)


def updates(lens: HybridLens) -> int:
    """Operations of a token on states that are no product: a multiplication and an addition a number."""
    return sum(2 * prod(has.state_shape) for has in lens.cfg.recurrences if has.state_shape)


def rectangles(lens: HybridLens, queries: int, state=None) -> int:
    """Operations of attention that drops no pair of queries and keys, held or new."""
    total = 0
    for layer in lens.cfg.attention_layers:
        a, held = lens.cfg.attention(layer), 0 if state is None else state.layers[layer]["attn"].slots
        total += 2 * a.n_heads * (a.d_head + a.d_value) * queries * (queries + held)
    return total


def seen(lens: HybridLens, first: int, queries: int) -> int:
    """Operations of attention on the pairs that queries see, counted one by one."""
    total = 0
    for a in lens.cfg.attentions:
        keys = [min(position + 1, a.window or position + 1) for position in range(first, first + queries)]
        total += 2 * a.n_heads * (a.d_head + a.d_value) * sum(keys)
    return total


@pytest.mark.parametrize("family", ROWS)
def test_operations_of_a_step_are_those_that_pytorch_counts(family):
    lens = HybridLens(make(family, 1))
    work, ids = work_of(lens.network), torch.randint(4, 50, (1, LENGTH + 1))
    with torch.no_grad():
        state = lens.network(ids[:, :LENGTH]).state
    step = counted(lens, ids[:, LENGTH:], state) - rectangles(lens, 1, state) + seen(lens, LENGTH, 1)
    beside = taps(lens) + updates(lens) * (2 if ROWS[family].delta else 1)
    assert work.reading(LENGTH, 1) == step + beside
    assert work.decoding(LENGTH, 1) == work.reading(LENGTH, 1)
    assert work.decoding(LENGTH, 3) == sum(work.reading(LENGTH + i, 1) for i in range(3))


@pytest.mark.parametrize("family", EXACT)
def test_operations_of_reading_are_those_that_pytorch_counts(family):
    lens = HybridLens(make(family, 1))
    work, ids = work_of(lens.network), torch.randint(4, 50, (1, LENGTH))
    read = counted(lens, ids) - rectangles(lens, LENGTH) + seen(lens, 0, LENGTH)
    assert work.reading(0, LENGTH) == read + LENGTH * (taps(lens) + updates(lens))


def test_scores_that_are_looked_at_are_computed_twice():
    lens = HybridLens(make("recurrentgemma", 1))
    work, heads = work_of(lens.network), lens.cfg.attention(2)
    more = work.reading(3, 2, scores=2) - work.reading(3, 2)
    assert more == 2 * heads.n_heads * heads.d_head * (4 + 5)


@pytest.mark.parametrize("window", [None, 1, 4, 30])
def test_pairs_are_those_of_each_query(window):
    for start in (0, 2, 4, 9):
        for count in (0, 1, 3, 8):
            seen = [min(p + 1, window or p + 1) for p in range(start, start + count)]
            assert pairs(start, count, window) == sum(seen)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_all_but_those_of_norms_and_the_like(family):
    lens = HybridLens(make(family, 1))
    work = work_of(lens.network)
    own = lens.n_parameters
    read = work.weights_read(1)  # tied embeddings are the unembedding, others are looked up
    tied = lens.hf_model.config.tie_word_embeddings
    active = own.active - (0 if tied else work.unembedding)
    vectors = sum(w.numel() for n, w in lens.hf_model.named_parameters() if w.ndim < 2 or "bias" in n or "A_log" in n)
    assert read == active - vectors
    assert work.weights_read(1000) == own.total - (0 if tied else work.unembedding) - vectors
    assert work.parameters == own.total


def test_a_quantised_model_is_refused():
    lens = HybridLens(make("llama", 1))
    lens.hf_model.config.quantization_config = {"bits": 4}
    with pytest.raises(CheckpointError, match="quantised"):
        work_of(lens.network)


def test_machines_are_found_by_name():
    assert machine_of("80GB") is MACHINES["a100-80gb"]
    with pytest.raises(UnknownNameError, match=r"'h10' does not exist.*h100"):
        machine_of("h10")


def test_seconds_are_the_longer_of_computing_and_moving():
    machine = MACHINES["h100"]
    computing = machine.seconds(1e15, 0, torch.bfloat16)
    assert computing == pytest.approx(1e15 / (989e12 * 0.15))
    assert machine.seconds(1e15, 1e9, torch.bfloat16) == computing
    assert machine.seconds(0, 3.35e12, torch.bfloat16) == pytest.approx(2.0)
    assert machine.seconds(1e15, 0, torch.float32) == pytest.approx(1e15 / (67e12 * 0.15))


@pytest.mark.parametrize(("family", "plans"), [("jamba", 1), ("mamba2", 0)])
def test_what_launches_and_plans_take_is_counted(family, plans):
    """Small models compute in no time: a pass takes its launches, and once for each shape what attention plans.

    Of 40 steps one is run as it is, one is recorded, and 39 are captured; after 256 there is another of each; of three
    none is. On a CPU there are no captured steps and no plans.
    """
    lens, card, core = HybridLens(make(family, 1)), MACHINES["h100"], MACHINES["cpu"]
    prices = Prices(work_of(lens.network), costs_of(lens.cfg, lens.dtype), lens.dtype, card)
    launches = lens.cfg.n_layers * card.layer_seconds
    captured = lens.cfg.n_layers * (card.captured_seconds or 0.0)
    one, met = Pass((3,), (5,), 5, False), set[Shape]()
    assert prices.all([one, one], [], met).seconds == pytest.approx(2 * launches + plans * card.shape_seconds)
    assert prices.all([one, one._replace(starts=(4,), counts=(4,), width=4)], [], met).seconds == pytest.approx(
        2 * launches + plans * card.shape_seconds
    )
    for steps, plain in ((3, 3), (40, 2), (300, 4)):
        expected = plain * launches + (steps - (plain if steps == 3 else plain // 2)) * captured
        assert prices.answering(Batch((4, 4), steps, steps, False)).seconds == pytest.approx(expected)
    slow = prices._replace(machine=core)
    each = lens.cfg.n_layers * core.layer_seconds + len(lens.cfg.moe_layers) * core.mixture_seconds
    assert slow.all([one], [Batch((4,), 40, 40, False)]).seconds == pytest.approx(41 * each)
