"""Attention replaced by less: every reduction against attention written as plain loops, and counts against hand counts.

The loops read what enters one attention layer (the first, which no edit reaches before) and go on by the definition:
keys and values as they are held, turned by their positions, scores, choice of keys, softmax, weighted sum.
"""

import itertools
import math
from functools import cache

import pytest
import torch
from bounds import FORWARD, LAYER, close, near
from models import tokens
from random_lens import small_lens

import hybridlens as hl
from analyses.study.reduced.factors import key_bottleneck, value_bottleneck
from analyses.study.reduced.reductions import (
    EVERYTHING,
    FewBits,
    KeepHeads,
    LastKeys,
    NarrowHeads,
    Reduction,
    Together,
    TopKeys,
)
from analyses.study.reduced.rounding import few_bits
from analyses.study.reduced.shapes import KeyParts, cost_of, shapes_of
from hybridlens.errors import InputError
from hybridlens.hooks import Edit

MODELS = ("recurrentgemma", "jamba", "qwen3_5")
"""One key head, a window and half of each head turning; two key heads and nothing turning; norms, a gate and half."""
IDS = tokens(2, 11, seed=4)


def reductions(lens: hl.HybridLens) -> list[Reduction]:
    """One of each kind and two together."""
    layer = lens.cfg.attention_layers[0]
    return [
        KeepHeads(((layer, 0), (layer, 3))), NarrowHeads(3), FewBits(1), FewBits(2), LastKeys(3), TopKeys(2),
        Together((TopKeys(2), LastKeys(4), FewBits(4), NarrowHeads(5), KeepHeads(((layer, 1), (layer, 2))))),
    ]  # fmt: skip


@cache
def entering(family: str) -> dict[str, torch.Tensor]:
    """What the first attention layer of the untouched model makes of `IDS`, by the last part of the hook's name."""
    lens = small_lens(family)
    start = f"blocks.{lens.cfg.attention_layers[0]}.attn."
    with torch.no_grad():
        cache = lens.run_with_cache(IDS, names_filter=lambda name: name.startswith(start))[1]
    return {name.removeprefix(start): cache[name].float() for name in cache}


def rounded(x: list[float], bits: int) -> list[float]:
    """By the definition, number by number."""

    def half(value: float) -> float:
        return float(torch.tensor(value).half())

    if bits == 1:
        size = half(sum(abs(value) for value in x) / len(x))
        return [size if value >= 0 else -size for value in x]
    low, step = half(min(x)), half((max(x) - min(x)) / (2**bits - 1))
    return [low + step * min(max(round((value - low) / step), 0), 2**bits - 1) for value in x]


def turned(x: torch.Tensor, position: int, frequencies: torch.Tensor) -> torch.Tensor:
    """A key at a position, pair by pair as complex numbers."""
    half, out = len(frequencies), x.clone()
    for pair in range(half):
        value = complex(x[pair], x[pair + half]) * complex(
            math.cos(position * frequencies[pair]), math.sin(position * frequencies[pair])
        )
        out[pair], out[pair + half] = value.real, value.imag
    return out


def by_loops(family: str, reduction: Reduction) -> torch.Tensor:
    """z of the first attention layer with a reduction in place, of the last row [1 pos head d_head]."""
    lens, seen = small_lens(family), {name: value[1:] for name, value in entering(family).items()}
    layer = lens.cfg.attention_layers[0]
    cfg, parts = lens.cfg.attention(layer), lens.blocks[layer].attn.parts
    some = {part.kind: part for part in (reduction.parts if isinstance(reduction, Together) else (reduction,))}
    queries = seen["hook_rot_q" if parts.rotary else "hook_q_normed" if parts.q_norm else "hook_q"]
    before, values = seen["hook_k_normed" if parts.q_norm else "hook_k"], seen["hook_v"]
    window = min(cfg.window or 99, some["window"].window if "window" in some else 99)
    bits, group = some["bits"].bits if "bits" in some else None, cfg.n_heads // cfg.n_kv_heads
    z = torch.zeros_like(queries)
    narrow = (
        (key_bottleneck(lens, layer, some["width"].width).maps, value_bottleneck(lens, layer, some["width"].width))
        if "width" in some
        else None
    )

    def held(x: torch.Tensor, side: int, head: int, position: int) -> torch.Tensor:
        turns = side == 0 and parts.rotary is not None
        frequencies = parts.rotary.turning.frequencies if turns else torch.zeros(0)
        if narrow is not None:
            x = x @ narrow[side].down[head]
            x = torch.tensor(rounded(x.tolist(), bits)) if bits else x
            return turned(x @ narrow[side].up[head], position, frequencies)
        x = turned(x, position, frequencies)
        return torch.tensor(rounded(x.tolist(), bits)) if bits else x

    for row, head in itertools.product(range(len(queries)), range(cfg.n_heads)):
        if "heads" in some and (layer, head) not in some["heads"].heads:
            continue
        own = head // group
        keys = [held(key, 0, own, at) for at, key in enumerate(before[row, :, own])]
        read = [held(value, 1, own, at) for at, value in enumerate(values[row, :, own])]
        for at in range(queries.shape[1]):
            places = range(max(0, at - window + 1), at + 1)
            scores = {place: float(queries[row, at, head] @ keys[place]) * parts.scale for place in places}
            if "keys" in some:
                scores = dict(sorted(scores.items(), key=lambda one: -one[1])[: some["keys"].keys])
            total = sum(math.exp(score) for score in scores.values())
            for place, score in scores.items():
                z[row, at, head] += math.exp(score) / total * read[place]
    return z


@pytest.mark.parametrize("family", MODELS)
def test_reductions_are_what_loops_compute(family: str) -> None:
    """Each changes z by far more than rounding, so that one that did nothing would be seen."""
    lens = small_lens(family)
    name = f"blocks.{lens.cfg.attention_layers[0]}.attn.hook_z"
    for reduction in reductions(lens):
        found: list[torch.Tensor] = []
        look = Edit(name, lambda z, hook, found=found: found.append(z.clone()))
        with torch.no_grad():
            lens.prefill(IDS, [*reduction.edits(lens), look])
        close(found[0][1:], by_loops(family, reduction), LAYER)
        assert (found[0] - entering(family)["hook_z"]).abs().max() > 1e-3, reduction


@pytest.mark.parametrize("family", MODELS)
def test_decoding_goes_on_as_prefill_began(family: str) -> None:
    """A whole pass gives what a prompt and single tokens behind it give, rows of unequal length among them."""
    lens = small_lens(family)
    for reduction in reductions(lens)[3:]:
        edits = reduction.edits(lens)
        with torch.no_grad():
            whole = lens.prefill(IDS, edits).logits
            state = lens.prefill([IDS[0, :7].tolist(), IDS[1, :4].tolist()], edits).state
            for step in range(2):
                new = torch.stack([IDS[0, 7 + step], IDS[1, 4 + step]])[:, None]
                state, logits = lens.extend(state, new, edits)
                close(logits[:, 0], torch.stack([whole[0, 7 + step], whole[1, 4 + step]]), 4 * FORWARD)


@pytest.mark.parametrize("family", MODELS)
def test_full_size_is_the_untouched_model(family: str) -> None:
    lens = small_lens(family)
    every = tuple((at, head) for at in lens.cfg.attention_layers for head in range(lens.cfg.n_heads))
    whole = [KeepHeads(every), NarrowHeads(lens.cfg.d_head), LastKeys(11), TopKeys(11), EVERYTHING]
    shapes = [shapes_of(lens), *([shape] for one in (*whole[:2], EVERYTHING) for shape in one.shapes(lens))]
    assert len({cost_of(shape, 11) for shape in shapes}) == 1
    with torch.no_grad():
        expected = lens.prefill(IDS).logits
        for reduction in whole:
            assert torch.equal(lens.prefill(IDS, reduction.edits(lens)).logits, expected), reduction


@pytest.mark.parametrize("family", MODELS)
def test_factors_are_the_nearest(family: str) -> None:
    """Against singular values of dense maps; where keys turn, against random bottlenecks in the mean over angles."""
    lens, width = small_lens(family), 3
    layer = lens.cfg.attention_layers[0]
    mixer = lens.blocks[layer].attn
    group, parts = lens.cfg.n_heads // lens.cfg.n_kv_heads, mixer.parts

    def with_bias(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.cat([weight, bias[:, None]], dim=1).double()

    queries, keys = with_bias(mixer.W_Q, mixer.b_Q), with_bias(mixer.W_K, mixer.b_K)
    if parts.q_norm is not None:  # whose weights of these families are offsets from 1
        queries, keys = queries * (1 + parts.q_norm.module.weight), keys * (1 + parts.k_norm.module.weight)
    values, found = with_bias(mixer.W_V, mixer.b_V), value_bottleneck(lens, layer, width)
    turning = 0 if parts.rotary is None else parts.rotary.turning.dims
    held = key_bottleneck(lens, layer, width).maps
    for own in range(lens.cfg.n_kv_heads):
        heads = range(own * group, (own + 1) * group)
        dense = torch.cat([values[own * group] @ mixer.W_O[head].double() for head in heads], dim=1)
        through = (found.down @ found.up)[own].double()
        narrow = torch.cat([values[own * group] @ through @ mixer.W_O[head].double() for head in heads], dim=1)
        lost = torch.linalg.svdvals(dense)[width:].square().sum()
        near(
            (dense - narrow).square().sum(), lost, 64 * FORWARD, scale=float(dense.square().sum()), dtype=torch.float32
        )
        a, b = torch.cat([queries[head] for head in heads]).detach(), keys[own * group].detach()

        def distance(change: torch.Tensor, a: torch.Tensor = a, b: torch.Tensor = b) -> float:
            """Squared, in the mean over angles of pairs apart from each other: a term of the map of each pair."""
            left, total = torch.eye(len(change)).double() - change, 0.0
            assert not torch.any(left[:turning, turning:])
            for pair in range(turning // 2):
                at = [pair, pair + turning // 2]
                for angle in torch.arange(0, 2 * math.pi, math.pi / 4).double():
                    turn = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
                    total += float((a[:, at] @ turn @ (b @ left)[:, at].T).square().sum()) / 8
            return total + float((a[:, turning:] @ (b @ left)[:, turning:].T).square().sum())

        best = distance((held.down @ held.up)[own].double())
        if turning == 0:
            near(best, torch.linalg.svdvals(a @ b.T)[width:].square().sum(), 64 * FORWARD,
                 scale=float((a @ b.T).square().sum()), dtype=torch.float32)  # fmt: skip
        else:
            generator = torch.Generator().manual_seed(0)
            for _ in range(20):
                pairs = torch.randperm(turning // 2, generator=generator)[:width]
                change = torch.zeros(lens.cfg.d_head, lens.cfg.d_head).double()
                for pair in pairs.tolist():
                    at = [pair, pair + turning // 2]
                    side = torch.nn.functional.normalize(torch.randn(2, generator=generator).double(), dim=0)
                    change[[[i] for i in at], at] = side[:, None] * side
                assert best <= distance(change) * (1 + 1e-6)


def test_rounding_lets_gradients_through() -> None:
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), requires_grad=True)
    few_bits(x, 2).mul(torch.arange(5.0)).sum().backward()
    close(x.grad, torch.arange(5.0).expand(3, 5))
    assert torch.equal(few_bits(torch.full((1, 4), 2.0), 4), torch.full((1, 4), 2.0))


def test_counts_by_hand() -> None:
    """Layers of 32 numbers and four query heads at 20 tokens; what is multiplied is written out."""
    gemma, jamba, qwen = map(small_lens, MODELS)
    layer = jamba.cfg.attention_layers[0]

    def cost(lens: hl.HybridLens, reduction: Reduction) -> tuple[float, int]:
        return tuple(cost_of(reduction.shapes(lens), 20))

    # Jamba: two key heads of 8; float32.
    project = 4 * 32 * 8 + 2 * 2 * 32 * 8 + 4 * 8 * 32
    assert cost(jamba, EVERYTHING) == (2 * 2 * 8 * 4, project + 2 * 4 * 20 * 8)
    one = 32 * 8 + 2 * 32 * 8 + 8 * 32 + 2 * 20 * 8
    assert cost(jamba, KeepHeads(((layer, 3),))) == (2 * 8 * 4, one)
    assert cost(jamba, KeepHeads(((layer, 2), (layer, 3)))) == (
        2 * 8 * 4,
        2 * 32 * 8 + 2 * 32 * 8 + 2 * 8 * 32 + 4 * 160,
    )
    assert cost(jamba, KeepHeads(())) == (0, 0)
    assert cost(jamba, NarrowHeads(3)) == (2 * 2 * 3 * 4, (project + 2 * 4 * 20 * 8) // 8 * 3)
    assert cost(jamba, FewBits(4)) == (2 * 2 * (4 + 4), project + 2 * 4 * 20 * 8 + 32 + 4 * 40 * 2)
    assert cost(jamba, FewBits(1)) == (2 * 2 * (1 + 2), project + 2 * 4 * 20 * 8 + 32 + 4 * 40)
    assert cost(jamba, LastKeys(5)) == (128 * 5 / 20, project + 2 * 4 * 5 * 8)
    assert cost(jamba, TopKeys(2)) == (128, project + 4 * 20 * 8 + 4 * 2 * 8)
    both = Together((NarrowHeads(3), FewBits(2)))
    assert cost(jamba, both) == (2 * 2 * (1 + 4), (project + 2 * 4 * 20 * 8) // 8 * 3 + 2 * 2 * 3 + 4 * 40 * 2)
    # RecurrentGemma: one key head, a window of 7.
    assert cost(gemma, EVERYTHING) == (2 * 8 * 4 * 7 / 20, 4 * 32 * 8 + 2 * 32 * 8 + 4 * 8 * 32 + 2 * 4 * 7 * 8)
    (part,) = key_bottleneck(gemma, 2, 3).parts
    assert part.width == 3
    narrow = 4 * 32 * part.read + 32 * 3 + 32 * 3 + 4 * 3 * 32 + 7 * (4 * part.read + 2 * part.single) + 4 * 7 * 3
    assert cost(gemma, NarrowHeads(3)) == (2 * 3 * 4 * 7 / 20, narrow)
    assert (KeyParts(1, 2, 3).width, KeyParts(1, 2, 3).read) == (9, 11)
    # Qwen3.5: two key heads of 24, of which 12 numbers turn; norms and a gate.
    gated = 2 * 4 * 32 * 24 + 2 * 2 * 32 * 24 + 4 * 24 * 32
    assert cost(qwen, EVERYTHING) == (2 * 2 * 24 * 4, gated + 2 * 4 * 20 * 24)
    (shape,) = NarrowHeads(3).shapes(qwen)
    assert shape.keys is not None
    expected = 2 * 4 * 32 * 24 + 2 * 32 * 24 + 2 * 32 * 3 + 4 * 3 * 24 + 4 * 24 * 32 + 4 * 20 * 3
    for part in shape.keys:
        expected += 2 * 12 * part.flat + 12 * part.flat + 2 * part.single + 20 * (2 * part.read + 2 * part.single)
    assert cost(qwen, NarrowHeads(3)) == (2 * 2 * 3 * 4, expected)


def test_refusals() -> None:
    for make, said in (
        (lambda: NarrowHeads(0), "a width of 0 given, expected at least 1"),
        (lambda: FewBits(9), "9 bits given, expected 1 to 8"),
        (lambda: Together((FewBits(1), FewBits(2))), "reductions of bits, bits given, expected one of each kind"),
        (lambda: KeepHeads(((0, 0),)).edits(small_lens("jamba")), "layer 0, head 0 is to be kept, but the model has"),
        (lambda: FewBits(2).shapes(small_lens("kimi_linear")), "holds latents, of which keys and values are made"),
        (lambda: FewBits(2).edits(small_lens("mamba2")), "needs attention heads, but no layer of this mamba2"),
    ):
        with pytest.raises(InputError, match=said):
            make()
