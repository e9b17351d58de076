"""Entropy by its definition, the published formula by its own, rankings by what they say of themselves."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from bounds import FEW, FORWARD, LAYER, close
from hypothesis import assume, given
from hypothesis import strategies as st
from models import FAMILIES, make, tokens

import hybridlens as hl
from analyses.heads.entropy import focus_key, head_entropy, published_entropy, rank_heads
from analyses.heads.ranking import HeadRanking, ordering
from hybridlens.errors import InputError, ResultsError, UnknownNameError
from hybridlens.results import hash_json


def weights(draw_seed: int, heads: int, queries: int, keys: int) -> torch.Tensor:
    """Random attention weights [1 h q k]: about a third of the keys exactly 0, as a mask leaves them."""
    generator = torch.Generator().manual_seed(draw_seed)
    raw = torch.rand(1, heads, queries, keys, generator=generator) ** 4
    raw = raw * (torch.rand(raw.shape, generator=generator) > 0.33)
    raw[..., 0] += 0.01
    return raw / raw.sum(-1, keepdim=True)


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 5), st.integers(1, 40))
def test_entropy_is_its_definition(seed: int, heads: int, queries: int, keys: int) -> None:
    """Every value is summed again in Python's double precision, skipping zeros, over random patterns."""
    pattern = weights(seed, heads, queries, keys)
    found = head_entropy(pattern)
    assert found.shape == (1, heads, queries)
    for h in range(heads):
        for q in range(queries):
            row = [float(a) for a in pattern[0, h, q]]
            expected = -math.fsum(a * math.log2(a) for a in row if a > 0)
            close(found[0, h, q].item(), expected, keys + FEW, scale=1.0, dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("keys", [1, 2, 8, 64, 1024])
def test_uniform_gives_log2_n_and_one_hot_gives_zero(keys: int, dtype: torch.dtype) -> None:
    """1 / n is exact for powers of two in every dtype, so the values are known to the last bit but one."""
    uniform = torch.full((2, 3, 4, keys), 1 / keys, dtype=dtype)
    assert head_entropy(uniform).dtype == torch.float32
    close(head_entropy(uniform), torch.full((2, 3, 4), math.log2(keys)))
    one_hot = torch.zeros(2, 3, 4, keys, dtype=dtype)
    one_hot[..., keys // 2] = 1
    assert bool((head_entropy(one_hot) == 0).all())


def test_entropy_of_the_smallest_weights() -> None:
    """Weights below the smallest normal number neither give NaN nor count: −a log2 a < 1e-35 there."""
    pattern = torch.tensor([[[[1.0, 1e-40, 1e-45, 0.0]]]])
    assert 0 <= head_entropy(pattern).item() < 1e-35
    assert bool(head_entropy(torch.zeros(1, 1, 1, 3)).isfinite().all())


def test_published_formula() -> None:
    """The authors' expression, computed in double precision: −entropy, and −4e-11 for every masked key."""
    pattern = weights(3, 4, 6, 30)
    shifted = pattern.double() + 1e-12
    expected = (shifted * shifted.log2()).sum(-1)
    close(published_entropy(pattern).double(), expected, LAYER, dtype=torch.float32)
    close(published_entropy(pattern), -head_entropy(pattern), LAYER)
    masked = torch.zeros(1, 1, 1, 100)
    close(published_entropy(masked).item(), 100 * 1e-12 * math.log2(1e-12), FORWARD, dtype=torch.float32)
    assert published_entropy(pattern.bfloat16()).dtype == torch.bfloat16


def test_published_formula_ties_heads_in_bfloat16() -> None:
    """Patterns that differ by far less than bfloat16 resolves: clean tells them apart, published does not."""
    near = torch.full((1, 2, 1, 64), 1 / 64)
    near[0, 1, 0, 0] += 1e-4
    near[0, 1, 0, 1] -= 1e-4
    assert head_entropy(near)[0, 0] != head_entropy(near)[0, 1]
    rounded = published_entropy(near.bfloat16())
    assert rounded[0, 0] == rounded[0, 1]


def test_published_formula_refuses_float16() -> None:
    """1e-12 is 0 in float16, so 0 · log2 0 would be NaN in every masked row."""
    with pytest.raises(InputError, match=r"float16.*use bfloat16"):
        published_entropy(torch.ones(1, 1, 1, 1, dtype=torch.float16))


@pytest.mark.parametrize("semantics", ["clean", "published"])
def test_focus_key_is_the_entropy_of_the_softmax(semantics: str) -> None:
    """Scores with −inf where a mask forbids, against the formula applied to the whole pattern."""
    scores = torch.randn(5, 4, 7, 7).masked_fill(~torch.ones(7, 7).tril().bool(), float("-inf"))
    pattern = scores.softmax(-1)
    expected = head_entropy(pattern) if semantics == "clean" else -published_entropy(pattern)
    close(focus_key(scores, semantics), expected)
    assert bool((focus_key(scores, "clean")[:, :, 0] == 0).all())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("queries", ["all", "last"])
def test_rank_heads_averages_the_cached_patterns(family: str, queries: str) -> None:
    """The cache holds the same run's patterns; their entropies, averaged by hand, must give each score."""
    lens = hl.HybridLens(make(family))
    ids = tokens(3, 19, seed=4)
    ranking = rank_heads(lens, ids, queries=queries, batch_size=2)
    _, cache = lens.run_with_cache(ids)
    assert ranking.layers == lens.cfg.attention_layers
    for row, layer in enumerate(ranking.layers):
        entropy = head_entropy(cache["pattern", layer])
        expected = entropy.mean(dim=(0, 2)) if queries == "all" else entropy[:, :, -1].mean(0)
        close(ranking.scores[row], expected, LAYER)
    scored = [(ranking.score(layer, head), layer, head) for layer, head in ranking.order]
    assert scored == sorted(scored)
    assert ranking.lower_is_better


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("queries", ["all", "last"])
def test_rank_heads_counts_no_padding(family: str, queries: str) -> None:
    """Rows of 4, 17 and 9 tokens together, against the token-weighted mean of each row alone.

    Padding has entropies of its own, of the same size as the real ones, so counting any would move the mean.
    """
    lens = hl.HybridLens(make(family))
    rows = [tokens(1, length, seed=length)[0].tolist() for length in (4, 17, 9)]
    together = rank_heads(lens, rows, queries=queries)
    alone = [rank_heads(lens, [row], queries=queries).scores for row in rows]
    counts = [len(row) if queries == "all" else 1 for row in rows]
    expected = sum(n * scores for n, scores in zip(counts, alone, strict=True)) / sum(counts)
    close(together.scores, expected, FORWARD)
    for batch_size in (1, 2):
        again = rank_heads(lens, rows, queries=queries, batch_size=batch_size)
        close(again.scores, together.scores, FORWARD)


def test_rank_heads_refuses() -> None:
    lens = hl.HybridLens(make("jamba"))
    with pytest.raises(UnknownNameError, match="queries 'some'"):
        rank_heads(lens, tokens(1, 4), queries="some")
    with pytest.raises(UnknownNameError, match="semantics 'tidy'"):
        rank_heads(lens, tokens(1, 4), semantics="tidy")
    with pytest.raises(InputError, match="batch_size = 0 given, expected a whole number from 1 "):
        rank_heads(lens, tokens(1, 4), batch_size=0)
    with pytest.raises(InputError, match="prompt 0 is empty"):
        rank_heads(lens, [[]])
    half = hl.HybridLens(make("jamba").half())
    with pytest.raises(InputError, match="float16"):
        rank_heads(half, tokens(1, 4), semantics="published")


def ranking_of(scores: list[list[float]], lower: bool = True) -> HeadRanking:
    return HeadRanking(torch.tensor(scores), tuple(3 * i + 2 for i in range(len(scores))), "made up", lower)


def test_order_breaks_ties_by_layer_then_head() -> None:
    """Equal scores everywhere leave only the indices to sort by, in either direction."""
    equal = [[1.0, 1.0, 0.5], [1.0, 0.5, 1.0]]
    assert ranking_of(equal).order == [(2, 2), (5, 1), (2, 0), (2, 1), (5, 0), (5, 2)]
    assert ranking_of(equal, lower=False).order == [(2, 0), (2, 1), (5, 0), (5, 2), (2, 2), (5, 1)]


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=4),
    st.booleans(),
    st.data(),
)
def test_kept_heads_are_the_first_of_the_order(rows: list[list[int]], lower: bool, data: st.DataObject) -> None:
    """Few distinct scores make ties common; the mask is compared with the order cut after n."""
    ranking = ranking_of([[float(score) for score in row] for row in rows], lower)
    assume(not ranking.tied)  # has no order: see below
    n = data.draw(st.integers(0, 3 * len(rows)))
    mask = ranking.kept(n)
    kept = {(layer, h) for i, layer in enumerate(ranking.layers) for h in range(3) if mask[i, h]}
    assert kept == set(ranking.order[:n])
    per_layer = data.draw(st.integers(0, 3))
    mask = ranking.kept(per_layer, "layer")
    for i, layer in enumerate(ranking.layers):
        of_layer = [head for at, head in ranking.order if at == layer]
        assert {h for h in range(3) if mask[i, h]} == set(of_layer[:per_layer])


def test_heads_that_score_the_same_have_no_order():
    """All alike: no best head, and left out; some alike: said of how many, by a plain count."""
    shapes = [(1, 2), (2, 3), (3, 4)]
    for seed in range(30):
        draw = torch.Generator().manual_seed(seed)
        shape = shapes[seed % 3]
        scores = torch.randint(0, 1 + seed % 4, shape, generator=draw) / 4
        one = HeadRanking(scores, tuple(range(shape[0])), "by hand", lower_is_better=bool(seed % 2))
        values = scores.flatten().tolist()
        shared = sum(values.count(value) > 1 for value in values)
        kept, said = ordering({"name": one})
        assert one.tied == (len(set(values)) == 1)
        assert (not kept) == one.tied
        if one.tied:
            assert said == (f"name is left out: every head scores {values[0]:g}, which orders none before another.",)
            assert one.leading(2) == []
            assert f"every head scores {values[0]:g}" in one.summary()
            assert len(one.best(0)) == 0
            assert len(one.best(len(values))) == len(values)
            with pytest.raises(InputError, match="by by hand, so that none is better than another"):
                one.kept(1)
        else:
            assert [f"{shared} of {len(values)} heads share" in line for line in said] == [True] * (shared > 0)
            assert one.leading(2) == one.best(2) == one.order[:2]
    alone = HeadRanking(torch.zeros(1, 1), (0,), "of one head", lower_is_better=False)
    assert (alone.tied, ordering({"name": alone})) == (False, ({"name": alone}, ()))


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=4, max_size=4), st.booleans())
def test_ranking_survives_its_file(tmp_path: Path, values: list[float], lower: bool) -> None:
    """Any float32, infinities aside from JSON's reach, comes back bit for bit, and with it the order."""
    values = [max(-3e38, min(3e38, value)) for value in values]
    ranking = ranking_of([values[:2], values[2:]], lower)
    back = HeadRanking.load(ranking.save(tmp_path / "ranking.json"))
    assert torch.equal(back.scores, ranking.scores)
    assert (back.layers, back.source, back.order) == (ranking.layers, ranking.source, ranking.order)
    assert back.lower_is_better is lower


def signed(held: dict[str, Any], **changes: Any) -> str:
    """A saved result with other values, under a digest that fits them."""
    form, values = held["format"], {name: value for name, value in held.items() if name not in ("format", "digest")}
    return json.dumps({"format": form, "digest": hash_json(values | changes), **values, **changes})


def test_rankings_refuse(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not numbers"):
        ranking_of([[float("nan"), 1.0]])
    with pytest.raises(InputError, match="2 rows of scores names layers"):
        HeadRanking(torch.zeros(2, 2), (4,), "made up", True)
    ranking = ranking_of([[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(InputError, match=r"the best 5 heads were asked for, expected 0\.\.4"):
        ranking.kept(5)
    with pytest.raises(InputError, match=r"expected 0\.\.2, the heads of each layer"):
        ranking.kept(3, "layer")
    with pytest.raises(UnknownNameError, match="scope 'all'"):
        ranking.kept(1, "all")
    with pytest.raises(InputError, match=r"layer 3, head 0 is not ranked; the ranking has layers 2, 5"):
        ranking.score(3, 0)
    path = tmp_path / "ranking.json"
    with pytest.raises(InputError, match="cannot be read"):
        HeadRanking.load(path)
    with pytest.raises(ResultsError, match="cannot be used"):
        ranking.save(tmp_path / "absent" / "ranking.json")
    ranking.save(path)
    good = json.loads(path.read_text())
    for text, words in (
        ("not json", "is not a saved HeadRanking"),
        ("[1, 2]", "is not a saved HeadRanking"),
        (signed(good, scores=[[1.0], [2.0, 3.0]]), "damaged HeadRanking.*scores: Input should be"),
        (signed(good, scores={**good["scores"], "shape": [3, 2]}), "damaged HeadRanking.*invalid for input of size 4"),
        (signed(good, layers=[2]), "damaged HeadRanking.*2 rows of scores names layers"),
        (json.dumps({**good, "layers": [5, 2]}), "damaged HeadRanking.*do not match their digest"),
        (signed({key: good[key] for key in good if key != "layers"}), "damaged HeadRanking.*layers: Field required"),
        (signed(good, more=1), "damaged HeadRanking.*more"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            HeadRanking.load(path)
