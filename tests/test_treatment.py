"""Rows under top-k and a manipulation at once, against the untouched Hugging Face model and against each row alone."""

import pytest
import torch
from bounds import FORWARD, apart, close
from hf_attention import Rules, edited_logits
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FAMILIES, make, tokens

import hybridlens as hl
from analyses.heads.manipulation import MODES, manipulate
from analyses.heads.needle_slots import positions_of
from analyses.heads.ranking import HeadRanking
from analyses.heads.sparsification import Heads, keep_each, keep_heads, top_k
from analyses.heads.treatment import Treatment, treat
from hybridlens.errors import HookFunctionError, InputError, UnknownNameError
from hybridlens.hooks import Phase

HEADS = 4
SEMANTICS = ("clean", "published")


def lens_of(family: str, seed: int = 0, **changes: int) -> hl.HybridLens:
    return hl.HybridLens(make(family, seed, **changes))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("semantics", SEMANTICS)
def test_equals_the_reference(family: str, semantics: str) -> None:
    """Six rows with other k, modes and needles in either phase, 11 tokens read and 4 answered.

    The reference ranks the heads by the pattern as it was before it is rewritten, so a ranking of the rewritten one
    keeps other heads and fails; so does a row that gets another row's k, mode or needle.
    """
    lens, ids, boundary = lens_of(family), tokens(6, 15, seed=1), 11
    reading = [Treatment(k, mode, "layer", semantics) for k, mode in
               [(4, "keep"), (2, "omit"), (1, "only"), (3, "binary"), (0, "omit"), (3, "null")]]  # fmt: skip
    answering = [Treatment(k, mode, "layer", semantics) for k, mode in
                 [(2, "binary"), (4, "only"), (3, "keep"), (1, "omit"), (4, "keep"), (2, "only")]]  # fmt: skip
    needles = [(6, 9), [(1, 3), (7, 10)], (5, 8), {6, 8}, (7, 9), (8, 12)]
    edits = treat(lens, reading, needles, "prefill") + treat(lens, answering, needles, "decode")
    with torch.no_grad():
        state, logits = lens.prefill(ids[:, :boundary], edits)
        parts = [logits]
        for at in range(boundary, 15):
            state, logits = lens.extend(state, ids[:, at : at + 1], edits)
            parts.append(logits)
    found = torch.cat(parts, dim=1)
    for row, needle in enumerate(needles):
        rules = [Rules(t.mode, t.k, semantics) for t in (reading[row], answering[row])]
        expected = edited_logits(lens.hf_model, ids[row], boundary, *rules, set(positions_of(needle)))
        close(found[row], expected, FORWARD)


@settings(max_examples=6)
@given(st.sampled_from(FAMILIES), st.sampled_from(SEMANTICS), st.sampled_from(["layer", "model"]), st.data())
def test_rows_answer_as_alone(family: str, semantics: str, scope: str, data: st.DataObject) -> None:
    """Random treatments of either phase, lengths and needles: the tokens of each row are those of a batch of it."""
    lens = lens_of(family, 1, num_hidden_layers=6)
    n = data.draw(st.integers(2, 3))
    rows = [tokens(1, data.draw(st.integers(3, 14)), seed=i)[0].tolist() for i in range(n)]
    needles = [data.draw(st.sets(st.integers(0, len(row) - 1), max_size=4)) for row in rows]
    choices = (st.integers(0, HEADS), st.sampled_from(MODES), st.just(scope), st.just(semantics), st.none())
    drawn = st.builds(Treatment, *choices)
    reading, answering = (data.draw(st.lists(drawn, min_size=n, max_size=n)) for _ in range(2))

    def edits(part: slice) -> list[hl.Edit]:
        return treat(lens, reading[part], needles[part], "prefill") + treat(
            lens, answering[part], needles[part], "decode"
        )

    together = lens.generate(rows, 4, edits(slice(None)), stop_at_eos=False)
    for i, row in enumerate(rows):
        alone = lens.generate([row], 4, edits(slice(i, i + 1)), stop_at_eos=False)
        assert together.tokens[i].tolist() == alone.tokens[0].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_the_same_in_fewer_steps(family: str) -> None:
    """Clean null is k = 0 to the bit, with no pattern asked for; k = 0 needs no mode; untouched rows need no edit."""
    lens, ids = lens_of(family), tokens(2, 10, seed=2)
    names = {f"blocks.{layer}.attn.hook_z" for layer in lens.cfg.attention_layers}
    with torch.no_grad():
        expected = lens.prefill(ids, manipulate(lens, "null", (1, 3), "prefill")).logits
        for treatment in (Treatment(4, "null"), Treatment(2, "null"), Treatment(0), Treatment(0, "binary")):
            edits = treat(lens, [treatment] * 2, [(1, 3)] * 2, "prefill")
            assert {edit.hook for edit in edits} == names
            assert torch.equal(lens.prefill(ids, edits).logits, expected)
        mixed = treat(lens, [Treatment(4), Treatment(2, "null")], [(1, 3), ()], "prefill")
        found = lens.prefill(ids, mixed).logits
        close(found[0], lens.prefill(ids).logits[0], FORWARD)
        close(found[1], expected[1], FORWARD)
    assert treat(lens, [Treatment(4)] * 3, [(1, 3), (), {2}], "decode") == []
    published = treat(lens, [Treatment(4, "null", semantics="published")], [(1, 3)], "decode")
    assert {str(edit.hook).split(".")[-1] for edit in published} == {"hook_pattern"}  # it may have to be left alone


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_without_a_needle(family: str) -> None:
    """Rows of a control beside rows of a prompt: omit leaves all to top-k, only and binary leave nothing."""
    lens, ids = lens_of(family), tokens(1, 9, seed=3).expand(5, -1)
    rows = [Treatment(2, mode) for mode in MODES]
    with torch.no_grad():
        found = lens.prefill(ids, treat(lens, rows, [()] * 5, "prefill")).logits
        ranked = lens.prefill(ids, top_k(lens, 2, "prefill")).logits
        silent = lens.prefill(ids, top_k(lens, 0, "prefill")).logits
    for row, mode in enumerate(MODES):
        expected = ranked if mode in ("keep", "omit") else silent
        close(found[row], expected[row], FORWARD)
    assert apart(ranked, silent)


def random_ranking(lens: hl.HybridLens, seed: int) -> HeadRanking:
    layers, n_heads = lens.cfg.attention_layers, lens.cfg.n_heads
    scores = torch.rand(len(layers), n_heads, generator=torch.Generator().manual_seed(seed))
    return HeadRanking(scores, layers, "drawn", lower_is_better=False)


def best(ranking: HeadRanking, n: int) -> Heads:
    """The best `n` heads by the ranking's own order, not by its mask."""
    return tuple(sorted(ranking.order[:n]))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_static_heads_are_keep_heads_to_the_bit(family: str, phase: Phase) -> None:
    """Rows that keep 0, 1, 3, 5 and 8 of 8 heads beside an untouched one: one edit a layer against one a row.

    Each row's edits of the reference act on that row alone, so a mask that is off by a row, a layer or a head
    differs somewhere; the rows are shown to differ from each other.
    """
    lens = lens_of(family, 2, num_hidden_layers=6)
    assert lens.cfg.attention_layers in ((2, 5), (1, 5))
    ids = tokens(1, 9, seed=4).expand(6, -1)
    counts = (0, 1, 3, 5, 8)
    rankings = [random_ranking(lens, seed) for seed in range(5)]
    rows = [Treatment(HEADS, heads=best(ranking, n)) for ranking, n in zip(rankings, counts, strict=True)]
    edits = treat(lens, [*rows, Treatment(HEADS)], [()] * 6, phase)
    assert len(edits) <= 2 * len(lens.cfg.attention_layers)
    reference = [
        hl.Edit(edit.hook, edit.fn, phase, rows=[row])
        for row, (ranking, n) in enumerate(zip(rankings, counts, strict=True))
        for edit in keep_heads(lens, ranking, n, phase)
    ]
    with torch.no_grad():
        state = lens.prefill(ids[:, :8]).state
        found, expected, plain = (
            lens.prefill(ids, some).logits if phase == "prefill" else lens.extend(state, ids[:, 8:], some).logits
            for some in (edits, reference, [])
        )
    assert torch.equal(found, expected)
    # An expert multiplies the tokens of all rows that chose it, and of fewer or more of them may round otherwise.
    close(found[4:], plain[4:], FORWARD)
    assert all(apart(found[row], found[4]) for row in range(4))


@settings(max_examples=4)
@given(st.sampled_from(FAMILIES), st.sampled_from(["layer", "model"]), st.data())
def test_static_rows_answer_as_alone_beside_others(family: str, scope: str, data: st.DataObject) -> None:
    """Static heads, top-k, manipulations and two of them at once in a batch: each row's tokens are those of itself."""
    lens = lens_of(family, 1, num_hidden_layers=6)
    n = data.draw(st.integers(2, 4))
    rows = [tokens(1, data.draw(st.integers(3, 14)), seed=i)[0].tolist() for i in range(n)]
    needles = [data.draw(st.sets(st.integers(0, len(row) - 1), max_size=4)) for row in rows]
    rankings = [random_ranking(lens, data.draw(st.integers(0, 9))) for _ in range(n)]
    counts = data.draw(st.lists(st.integers(0, 8), min_size=n, max_size=n))
    static = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    drawn = st.tuples(st.integers(0, HEADS), st.sampled_from(MODES))
    others = data.draw(st.lists(drawn, min_size=n, max_size=n))
    treated = [
        Treatment(k, mode, scope, heads=best(ranking, count) if fixed else None)
        for (k, mode), ranking, count, fixed in zip(others, rankings, counts, static, strict=True)
    ]
    edits = [edit for phase in ("prefill", "decode") for edit in treat(lens, treated, needles, phase)]
    together = lens.generate(rows, 4, edits, stop_at_eos=False)
    for i, row in enumerate(rows):
        own = keep_heads(lens, rankings[i], counts[i]) if static[i] else []
        own += top_k(lens, others[i][0], "both", scope) + manipulate(lens, others[i][1], needles[i], "both")
        alone = lens.generate([row], 4, own, stop_at_eos=False)
        assert together.tokens[i].tolist() == alone.tokens[0].tolist()


def test_treatments_say_what_they_are() -> None:
    assert Treatment(4).untouched(4)
    assert not Treatment(4, heads=((2, 1),)).untouched(4)
    assert not Treatment(3).untouched(4)
    assert not Treatment(4, "omit").untouched(4)
    assert [Treatment(4, mode).causal for mode in MODES] == [True] * 5
    assert [Treatment(2, mode, "model", "published").causal for mode in MODES] == [m != "binary" for m in MODES]


def test_refusals() -> None:
    """One clear line each, before anything runs."""
    lens = lens_of("jamba")
    with pytest.raises(InputError, match="rows of scope 'layer' and 'model' given in one batch"):
        treat(lens, [Treatment(1), Treatment(1, scope="model")], [(), ()], "decode")
    with pytest.raises(InputError, match="rows of semantics 'clean' and 'published' given in one batch"):
        treat(lens, [Treatment(1), Treatment(1, semantics="published")], [(), ()], "decode")
    with pytest.raises(InputError, match="2 treatments and 1 needles given"):
        treat(lens, [Treatment(1)] * 2, [()], "decode")
    with pytest.raises(InputError, match="0 treatments"):
        treat(lens, [], [], "decode")
    with pytest.raises(InputError, match=r"layer 0, head 1 is to be kept in row 1, but .* \[1\] with heads 0\.\.3"):
        treat(lens, [Treatment(4), Treatment(4, heads=((0, 1),))], [(), ()], "decode")
    with pytest.raises(InputError, match="heads of no row were given"):
        keep_each(lens, [])
    with pytest.raises(HookFunctionError, match="given for 2 rows, but the batch has 3"):
        lens.prefill(tokens(3, 4), keep_each(lens, [(), None]))
    with pytest.raises(InputError, match=r"k = 9 given, expected 0\.\.4"):
        treat(lens, [Treatment(9, "null")], [()], "decode")
    for wrong, message in [
        ({"mode": "zero"}, "mode 'zero'"),
        ({"scope": "head"}, "scope 'head'"),
        ({"semantics": "tidy"}, "semantics 'tidy'"),
    ]:
        with pytest.raises(UnknownNameError, match=message):
            treat(lens, [Treatment(4, **wrong)], [()], "decode")
