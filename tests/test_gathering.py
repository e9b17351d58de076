"""Gather and aggregate scores: against plain loops, and planted heads of both sorts come out on top.

The planted model is `planted_memory`'s, whose last token "ask" looks at value words alone; in an earlier layer one head
is set so that a value word looks at the one filler that belongs to it. Segments end in value words.
"""

from functools import cache

import planted_memory
import pytest
import torch
from bounds import close
from patching_loops import small
from planted_memory import D_HEAD, VALUE_AXES, WORDS

import hybridlens as hl
from analyses.heads.gathering import GatherScores, gather_scores, pairs, split
from hybridlens.errors import InputError, UnknownNameError

ASK = WORDS.index("ask")
GATHERING = 1
"""The attention layer of the planted gather head."""


@cache
def planted():
    """(lens, gather head, aggregate heads: those of one group that may be the planted one)."""
    made = planted_memory.planted("jamba", "head", seed=1)
    attention = made.lens.hf_model.model.layers[GATHERING].self_attn
    with torch.no_grad():
        q, k = attention.q_proj.weight[:D_HEAD], attention.k_proj.weight[:D_HEAD]
        q.zero_()
        k.zero_()
        for i, axis in enumerate(VALUE_AXES):
            q[i, axis] = 3.0
            k[i, WORDS.index(f"f{i}")] = 3.0
    return made.lens, (GATHERING, 0), [(made.layer, 2 * made.head), (made.layer, 2 * made.head + 1)]


def prompts():
    """Three segments each: filler, the filler of a value, filler, the value; other filler between; then "ask"."""
    rows, segments = [], []
    for row in ((0, 1, 2), (3, 1, 0)):
        text, spans = [], []
        for value in row:
            text += [WORDS.index("f6")]
            spans.append((len(text), len(text) + 4))
            text += [WORDS.index(word) for word in ("f5", f"f{value}", "f7", f"v{value}")]
        rows.append([*text, WORDS.index("f4"), ASK])
        segments.append(spans)
    return rows, segments


def test_planted_heads_come_out_on_top():
    lens, gatherer, aggregators = planted()
    rows, segments = prompts()
    found = gather_scores(lens, rows, segments)
    best, second = found.top("gather", 2)
    assert best[:2] == gatherer
    assert best[2] > 0.95
    assert second[2] < 0.7
    best, second, third = found.top("aggregate", 3)  # a head of the same group has its keys, in which values stand out
    assert best[:2] in aggregators
    assert best[2] > 0.95
    assert second[2] < 0.9
    assert third[2] < 0.7
    assert found.even_aggregate == pytest.approx(3 / 17)
    assert found.even_gather == pytest.approx((3 / 5 + 3 / 10 + 3 / 15) / 3)
    top = pairs(found, found, 3)
    assert top[0].gather == ("attention", *gatherer)
    assert top[0].aggregate[1:] in aggregators
    assert top[0].product == pytest.approx(found.top("gather", 1)[0][2] * found.top("aggregate", 1)[0][2])
    assert [pair.product for pair in top] == sorted((pair.product for pair in top), reverse=True)
    assert all(pair.aggregate[1] > pair.gather[1] for pair in pairs(found, found, 1000))
    assert found.ranking("gather").best(1) == [gatherer]


def test_a_recurrent_head_that_writes_at_values_alone_aggregates():
    """A delta rule that writes at value words and nowhere else: its last token reads the value's, and nothing else."""
    made = planted_memory.planted("qwen3_next", "state", seed=1)
    text = [WORDS.index(word) for word in ("f1", "f2", "f3", "v2", "f4", "f5", "f2", "ask")]
    found = gather_scores(made.lens, [text], [[(1, 4)]], of="recurrent")
    assert found.layers == made.lens.cfg.state_layers
    best, second = found.top("aggregate", 2)
    assert best[:2] == (made.layer, made.head)
    assert best[2] > 0.7
    assert second[2] < best[2] - 0.2
    attention = gather_scores(made.lens, [text], [[(1, 4)]])
    mixed = pairs(attention, found, 1)[0]
    assert (mixed.gather[0], mixed.aggregate) == ("attention", ("recurrent", made.layer, made.head))


@pytest.mark.parametrize(("family", "of"), [("recurrentgemma", "attention"), ("recurrentgemma", "recurrent")])
def test_scores_equal_the_plain_loops(family, of):
    """Prompts of other lengths, segments of other sizes, entry by entry."""
    lens = small(family)
    rng = torch.Generator().manual_seed(2)
    rows = [torch.randint(0, 53, (n,), generator=rng).tolist() for n in (9, 14)]
    segments = [[(0, 2), (3, 8)], [(1, 5)]]
    found = gather_scores(lens, rows, segments, of=of)
    part = "attn" if of == "attention" else "ssm"
    for row, layer in enumerate(found.layers):
        gathered, aggregated = [], []
        for text, spans in zip(rows, segments, strict=True):
            name = f"blocks.{layer}.{part}.hook_pattern"
            with torch.no_grad():
                pattern = lens.run_with_cache([text], [name])[1][name][0].abs().double()
            for head in range(len(pattern)):
                total = [float(pattern[head, i].sum()) for i in range(len(text))]
                own = [sum(float(pattern[head, e - 1, j]) for j in range(s, e - 1)) / total[e - 1] for s, e in spans]
                gathered.append(sum(own) / len(own))
                aggregated.append(sum(float(pattern[head, -1, e - 1]) for _, e in spans) / total[-1])
        heads = len(gathered) // 2
        for name, values in (("gather", gathered), ("aggregate", aggregated)):
            expected = [(values[head] + values[heads + head]) / 2 for head in range(heads)]
            close(getattr(found, name)[row], torch.tensor(expected).double(), 64, scale=1.0, dtype=torch.float32)
    assert found.gather.max() > 0.1


def test_segments_by_their_last_token():
    """Too short ones, what stands behind the last end, and one that ends with the prompt are left out."""
    assert split([5, 6, 9, 9, 5, 9, 7, 7], {9}) == [(0, 3), (4, 6)]
    assert split([5, 6, 9, 1, 2, 9], [9]) == [(0, 3)]
    assert split([1, 2, 8, 3, 9, 4], [8, 9]) == [(0, 3), (3, 5)]
    assert split([1, 2, 3], [9]) == []


def test_scores_are_saved_and_shown(tmp_path):
    lens, _, _ = planted()
    found = gather_scores(lens, *prompts())
    again = GatherScores.load(found.save(tmp_path / "gather.safetensors"))
    assert torch.equal(again.gather, found.gather)
    assert again.even_gather == found.even_gather
    assert "gather L1 H0" in repr(found)
    assert "even attention 0.37" in repr(found)
    assert found.to_pandas().shape == (8, 4)
    assert len(found._repr_html_()) < 10_000
    assert found.plot().data[0].z is not None


def test_bad_input_is_one_line():
    lens, (rows, segments) = small("jamba"), prompts()

    def fails(line, given, spans, error=InputError, lens=lens, **options):
        with pytest.raises(error, match=line) as caught:
            gather_scores(lens, given, spans, **options)
        assert "\n" not in str(caught.value)

    fails("segments of 1 prompts given for 2 prompts", rows, segments[:1])
    fails("prompt 1 was given without segments", rows, [segments[0], []])
    fails(r"segment 3\.\.4 given for prompt 0, expected two tokens or more before the last of 17", rows[:1], [[(3, 4)]])
    fails(r"segment 13\.\.17 given for prompt 0", rows[:1], [[(13, 17)]])
    fails(r"segments 3\.\.8 and 7\.\.12 given for prompt 0 overlap", rows[:1], [[(7, 12), (3, 8)]])
    fails("'mlp'", rows[:1], segments[:1], UnknownNameError, of="mlp")
    with pytest.raises(UnknownNameError, match="'both'"):
        gather_scores(hl.HybridLens(lens.hf_model), rows[:1], segments[:1]).top("both")
