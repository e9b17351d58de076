"""Surgery on keys and values: against plain loops over single entries, row by row, in runs of their own."""

import random

import pytest
import torch
from bounds import FORWARD, close
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kv_loops import Target, compare, entries, read, rows, same, size_of
from models import FAMILIES, make, tokens

from analyses import kv_cache
from hybridlens import HybridLens
from hybridlens.errors import InputError


@pytest.fixture(scope="module", params=[(family, dtype) for family in FAMILIES for dtype in ("float32", "bfloat16")])
def lens(request: pytest.FixtureRequest) -> HybridLens:
    family, dtype = request.param
    return HybridLens(make(family, 5, num_hidden_layers=6).to(getattr(torch, dtype)))


@pytest.fixture(scope="module", params=FAMILIES)
def exact(request: pytest.FixtureRequest) -> HybridLens:
    return HybridLens(make(request.param, 5, num_hidden_layers=6))


@settings(deadline=None, max_examples=4)
@example(seed=105, parts="values")  # of Jamba in bfloat16, where an entry lies halfway between two levels
@given(seed=st.integers(0, 10_000), parts=st.sampled_from(["keys", "values", "both"]))
def test_keys_and_values_against_plain_loops(lens: HybridLens, seed: int, parts: str) -> None:
    """Random targets: zero, mean, quantise, swap; entries outside keep their bits, and the given state all of its."""
    state, other = read(lens, rows(seed)), read(lens, rows(seed + 1))
    before, theirs = state.clone(), other.clone()
    target = Target(lens, state, seed)
    compare(lens, state, kv_cache.zero(state, parts, **target.where), target, lambda *_: 0.0, parts)

    def mean(old, at, which):
        same_place = [x[which] for (r, h, _, c), x in old.items() if (r, h, c) == (at[0], at[1], at[3])]
        return sum(same_place) / len(same_place)

    compare(lens, state, kv_cache.mean(state, parts, **target.where), target, mean, parts)
    source = {layer: entries(other, layer) for layer in lens.cfg.attention_layers}
    taken = kv_cache.swap(state, other, parts, **target.where)
    compare(lens, state, taken, target, lambda _, at, which: source[target.layers[0]][at][which], parts)
    assert same(kv_cache.swap(taken, state, parts, **target.where), before)
    for per in ("position", "channel"):
        quantised = kv_cache.quantise(state, 3, parts, per=per, **target.where)
        new = entries(quantised, target.layers[0])

        def rounded(old, at, which, per=per, new=new):
            group = [
                x[which] for (r, h, p, c), x in old.items()
                if (r, h) == at[:2] and target.holds(target.layers[0], r, h, p, c)
                and (p == at[2] if per == "position" else c == at[3])
            ]  # fmt: skip
            low, high = min(group), max(group)
            levels = [low + (high - low) * i / 7 for i in range(8)]
            nearest = min(abs(level - old[at][which]) for level in levels) + 1e-3 * (high - low)  # of two, either
            return min((level for level in levels if abs(level - old[at][which]) <= nearest),
                       key=lambda level: abs(level - new[at][which]))  # fmt: skip

        compare(lens, state, quantised, target, rounded, parts)
    assert same(state, before)
    assert same(other, theirs)


@settings(deadline=None, max_examples=4)
@given(seed=st.integers(0, 10_000))
def test_dropped_keys_are_never_seen(exact: HybridLens, seed: int) -> None:
    """Random rows, heads and positions dropped in one layer or all: as if every later score of theirs were -inf.

    The reference hooks the scores of the whole state, finds keys by their absolute position, one row at a time.
    """
    state, rng = read(exact, rows(seed)), random.Random(seed)
    target = Target(exact, state, seed)
    layers, heads = rng.choice([(None, None), (target.layers, None), (None, target.heads), (target.layers, [0])])
    where = {"rows": target.rows, "layers": layers, "heads": heads}
    before, new = state.clone(), tokens(3, 3, seed=seed + 5)
    lossy = kv_cache.drop(state, target.where["positions"], **where)
    held = entries(lossy, (layers or exact.cfg.attention_layers)[0])
    for head in heads or range(exact.cfg.n_kv_heads):
        for row in target.rows:
            assert not {p for r, h, p, _ in held if (r, h) == (row, head)} & set(target.positions[row])
    rest = {r: sorted({p for q, _, p, _ in entries(state, exact.cfg.attention_layers[0]) if q == r} - set(drops))
            for r, drops in target.positions.items()}  # fmt: skip
    assert same(kv_cache.keep(state, [rest[row] for row in target.rows], **where), lossy)
    group = exact.cfg.n_heads // exact.cfg.n_kv_heads
    with torch.no_grad():
        ours = exact.extend(lossy, new).logits
        for row in range(3):

            def mask(scores, hook, row=row):
                out = scores.clone()
                for slot, position in enumerate(hook.slots.key_positions[0].tolist()):
                    for head in range(exact.cfg.n_heads):
                        if position in target.positions.get(row, []) and (heads is None or head // group in heads):
                            out[:, head, :, slot] = float("-inf")
                return out

            names = [f"blocks.{i}.attn.hook_attn_scores" for i in layers or exact.cfg.attention_layers]
            with exact.hooks([(names, mask)]):
                alone = exact.extend(state.split()[row], new[row : row + 1]).logits
            close(ours[row : row + 1], alone, FORWARD)
    assert same(state, before)


def test_ends_and_last(exact: HybridLens) -> None:
    """Each row's own newest positions, in rows of other lengths; slots that none uses are cut out."""
    state = read(exact, rows())
    last = kv_cache.keep_last(state, 2)
    layer = exact.cfg.attention_layers[0]
    assert [sorted({p for r, _, p, _ in entries(last, layer) if r == row}) for row in range(3)] == [
        [10, 11], [7, 8], [2, 3]]  # fmt: skip
    assert last.nbytes < state.nbytes
    ends = kv_cache.keep_ends(state, 3, 1, rows=[2], layers=layer)
    assert sorted({p for r, _, p, _ in entries(ends, layer) if r == 2}) == [0, 1, 2, 3]
    ends = kv_cache.keep_ends(state, 1, 1, rows=[1, 2], layers=layer)
    oldest = 0 if exact.cfg.window is None else 12 - exact.cfg.window + 1
    assert [sorted({p for r, _, p, _ in entries(ends, layer) if r == row}) for row in range(3)] == [
        list(range(oldest, 12)), [0, 8] if exact.cfg.window is None else [8], [0, 3]]  # fmt: skip


def test_noise(lens: HybridLens) -> None:
    """Seeded, of the stated size; a row gets the same in a batch and alone, and at a position the same in any text."""
    state = read(lens, rows(lengths=(60, 50, 4)))
    layer, before = lens.cfg.attention_layers[0], state.clone()
    noisy = kv_cache.noise(state, 0.5, 3, "keys", layers=layer)
    assert same(noisy, kv_cache.noise(state, 0.5, 3, "keys", layers=layer))
    assert not same(noisy, kv_cache.noise(state, 0.5, 4, "keys", layers=layer))
    assert same(kv_cache.noise(state, 0, 3), state)
    old, new = entries(state, layer), entries(noisy, layer)
    assert all(old[at][1] == new[at][1] for at in old)
    for row in range(2):
        change = torch.tensor([new[at][0] - old[at][0] for at in old if at[:2] == (row, 0)])
        size = torch.tensor([old[at][0] for at in old if at[:2] == (row, 0)]).square().mean().sqrt()
        # 5 standard errors of the deviation of as many draws.
        assert float(change.square().mean().sqrt() / size) == pytest.approx(0.5, rel=5 / (2 * change.numel()) ** 0.5)
    alone = kv_cache.noise(state.split(lens.cfg.window)[1], 0.5, 3, "keys", layers=layer)
    for (_, *at), x in entries(alone, layer).items():
        close(new[1, *at], x, FORWARD, scale=size_of(new), dtype=lens.dtype)
    assert same(state, before)


def test_given_means_and_mapped_positions(exact: HybridLens) -> None:
    """Means of other texts, and keys moved to other positions, also between texts of other lengths."""
    state, other = read(exact, rows()), read(exact, rows(7, (11, 8, 6)))
    layer, average = exact.cfg.attention_layers[0], kv_cache.means(other)
    theirs = entries(other, layer)
    at = 0, 0, 11, 2
    expected = [x[0] for (_, h, _, c), x in theirs.items() if (h, c) == (0, 2)]
    changed = entries(kv_cache.mean(state, "keys", values=average, rows=0, positions=[11], layers=layer), layer)
    close(changed[at][0], sum(expected) / len(expected), dtype=torch.float32)
    moved = entries(kv_cache.swap(state, other, mapping={3: 5, 2: 4}, rows=2, layers=layer), layer)
    assert moved[2, 0, 3, 1] == theirs[2, 0, 5, 1]
    assert moved[2, 0, 2, 1] == theirs[2, 0, 4, 1]
    assert moved[2, 0, 1, 1] == entries(state, layer)[2, 0, 1, 1]
    with pytest.raises(InputError, match=r"position 7 given, but row 2 of the giving state holds positions .*5"):
        kv_cache.swap(state, other, mapping={3: 7}, rows=2)
    with pytest.raises(InputError, match=r"no mean for layer \d given, only for none"):
        kv_cache.mean(state, values={})
