"""Blocks of queries and passes ahead: what hook functions are given, and that results do not depend on it."""

import pytest
import torch
from bounds import FORWARD, close
from hypothesis import given, settings
from hypothesis import strategies as st
from models import WITH_ATTENTION, make, tokens

import hybridlens as hl
from analyses.heads.entropy import rank_heads
from analyses.heads.manipulation import MODES, manipulate
from analyses.heads.sparsification import top_k
from analyses.heads.treatment import Treatment, treat
from hybridlens.errors import InputError
from hybridlens.hooks import HookPoint, by_query, reads_only
from hybridlens.mixers import attention
from hybridlens.slots import KeySlots

HEADS = 4


def lens_of(family: str, seed: int = 0, **changes: int) -> hl.HybridLens:
    return hl.HybridLens(make(family, seed, **changes))


def attention_name(lens: hl.HybridLens, point: str) -> str:
    return f"blocks.{lens.cfg.attention_layers[0]}.attn.{point}"


class Reader:
    """Keeps what it is given and where it stood."""

    def __init__(self) -> None:
        self.given: list[tuple[torch.Tensor, KeySlots]] = []

    def function(self, blocks: bool):
        @reads_only
        def read(x: torch.Tensor, hook: HookPoint) -> None:
            self.given.append((x.clone(), hook.slots))

        return by_query(read) if blocks else read


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch):
    """Have blocks hold `queries` queries of a pass of that shape."""

    def set_block(batch: int, keys: int, queries: int) -> None:
        monkeypatch.setattr(attention, "QUERY_BLOCK", batch * HEADS * keys * queries + 1)

    return set_block


@pytest.mark.parametrize("family", WITH_ATTENTION)
@pytest.mark.parametrize("point", ["hook_attn_scores", "hook_pattern"])
def test_blocks_are_the_pass_cut_up(family: str, point: str, blocks) -> None:
    """Seventeen queries by threes, past the window: the blocks' rows, with the keys they are cut to, are the whole's.

    Keys cut away are ones that no query of the block may see; nothing that only reads changes a bit.
    """
    lens, ids = lens_of(family), tokens(2, 17, seed=1)
    name = attention_name(lens, point)
    with torch.no_grad():
        plain, cache = lens.run_with_cache(ids, name)
        blocks(2, 17, 3)
        reader = Reader()
        logits = lens.run_with_hooks(ids, [(name, reader.function(True))])
    assert torch.equal(logits, plain)
    assert [slots.first for _, slots in reader.given] == [0, 3, 6, 9, 12, 15]
    nothing = float("-inf") if point == "hook_attn_scores" else 0.0
    for part, slots in reader.given:
        stop = slots.first + part.shape[2]
        assert part.shape == (2, HEADS, min(3, 17 - slots.first), stop)
        assert slots.query_positions.expand(2, -1).tolist() == [list(range(slots.first, stop))] * 2
        assert slots.key_positions.tolist() == [list(range(stop))] * 2
        whole = cache[name][:, :, slots.first : stop]
        close(part, whole[..., :stop])
        assert bool((whole[..., stop:] == nothing).all())
        assert torch.equal(slots.dense(part.device).expand(2, HEADS, -1, -1), whole[..., :stop] != nothing)


@pytest.mark.parametrize("family", WITH_ATTENTION)
def test_who_gets_the_whole(family: str, blocks) -> None:
    """A function that is not marked, anything beside one, and any pass with gradients get all queries at once."""
    lens, ids = lens_of(family), tokens(2, 11, seed=2)
    scores, pattern = attention_name(lens, "hook_attn_scores"), attention_name(lens, "hook_pattern")
    blocks(2, 11, 2)
    for marks, gradients in [((False, False), False), ((True, False), False), ((True, True), True)]:
        first, second = Reader(), Reader()
        hooks = [(scores, first.function(marks[0])), (pattern, second.function(marks[1]))]
        with torch.set_grad_enabled(gradients):
            lens.run_with_hooks(ids, hooks)
        for reader in (first, second):
            assert [part.shape[2:] for part, _ in reader.given] == [(11, 11)]
    with torch.no_grad():
        alone = Reader()
        lens.run_with_hooks(ids, [(scores, alone.function(True))])
    assert len(alone.given) == 6


@pytest.mark.parametrize("family", WITH_ATTENTION)
def test_slots_of_a_continued_state(family: str, blocks) -> None:
    """Rows of 9, 4 and 6 held tokens read on by 5, 5 and 2: positions are each row's own.

    An edit of some rows is given those rows' slots, in the order it names them, in every block.
    """
    lens = lens_of(family)
    lengths, more = [9, 4, 6], torch.tensor([5, 5, 2])
    rows = [tokens(1, n, seed=n)[0].tolist() for n in lengths]
    name = attention_name(lens, "hook_pattern")
    whole, part = Reader(), Reader()
    with torch.no_grad():
        state = lens.prefill(rows).state
        expected = lens.key_positions(state, 5, int(name.split(".")[1]))
        blocks(3, expected.shape[1], 2)
        edits = [hl.Edit(name, whole.function(True)), hl.Edit(name, part.function(True), rows=[2, 0])]
        lens.extend(state, tokens(3, 5), edits, lengths=more)
    real = torch.arange(5) < more[:, None]
    expected[:, -5:] = expected[:, -5:].masked_fill(~real, -1)
    assert [slots.first for _, slots in whole.given] == [0, 2, 4]
    for (all_rows, slots), (two, own) in zip(whole.given, part.given, strict=True):
        asked = torch.tensor(lengths)[:, None] + torch.arange(slots.first, slots.first + all_rows.shape[2])
        assert torch.equal(slots.query_positions, asked)
        assert torch.equal(slots.key_positions, expected)
        assert torch.equal(two, all_rows[[2, 0]])
        assert torch.equal(own.query_positions, asked[[2, 0]])
        assert torch.equal(own.key_positions, expected[[2, 0]])
        assert torch.equal(own.dense(two.device).expand(2, -1, -1, -1), slots.dense(two.device)[[2, 0]])
    assert lens.hook_dict[name].slots is None


@pytest.mark.skipif(not WITH_ATTENTION, reason="no family with attention is tested")
@settings(max_examples=8)
@given(st.sampled_from(WITH_ATTENTION), st.integers(0, 50), st.data())
def test_results_are_those_of_the_whole(family: str, seed: int, data: st.DataObject) -> None:
    """Random k, modes, needles, lengths, scopes and block sizes, read at once and read on from a state."""
    lens = lens_of(family, seed % 3, num_hidden_layers=6)
    n = data.draw(st.integers(1, 3))
    semantics = data.draw(st.sampled_from(["clean", "published"]))
    scope = data.draw(st.sampled_from(["layer", "model"]))
    k, mode = st.integers(0, HEADS), st.sampled_from(MODES)
    drawn = st.builds(Treatment, k, mode, st.just(scope), st.just(semantics), st.none())
    treatments = data.draw(st.lists(drawn, min_size=n, max_size=n))
    lengths = torch.tensor(data.draw(st.lists(st.integers(2, 15), min_size=n, max_size=n)))
    ids = tokens(n, int(lengths.max()), seed=seed)
    needles = [data.draw(st.sets(st.integers(0, int(length)), max_size=4)) for length in lengths]
    edits = treat(lens, treatments, needles, "both")
    more = tokens(n, 6, seed=seed + 1)
    results: list[list[torch.Tensor]] = []
    whole = attention.QUERY_BLOCK
    for block in (whole, data.draw(st.integers(1, 1500))):
        attention.QUERY_BLOCK = block
        try:
            with torch.no_grad():
                state, logits = lens.prefill(ids, edits, lengths=lengths)
                after = lens.extend(state, more, edits).logits
        finally:
            attention.QUERY_BLOCK = whole
        results.append([logits[row, :length] for row, length in enumerate(lengths)] + [after])
    for once, cut in zip(*results, strict=True):
        close(cut, once, FORWARD)


@pytest.mark.parametrize("family", WITH_ATTENTION)
def test_top_k_works_in_blocks(family: str, blocks) -> None:
    """Scores arrive by twos, for top-k and for a ranking of some queries; k = n_heads changes no bit."""
    lens, ids = lens_of(family), tokens(3, 13, seed=3)
    name = attention_name(lens, "hook_attn_scores")
    ks = [0, 2, HEADS]
    with torch.no_grad():
        expected, untouched = lens.prefill(ids, top_k(lens, ks, "both")).logits, lens.prefill(ids).logits
        ranking = rank_heads(lens, ids, lengths=[13, 6, 9], queries="last")
        blocks(3, 13, 2)
        reader = Reader()
        found = lens.prefill(ids, [*top_k(lens, ks, "both"), hl.Edit(name, reader.function(True))]).logits
        again = rank_heads(lens, ids, lengths=[13, 6, 9], queries="last")
        assert torch.equal(lens.prefill(ids, top_k(lens, HEADS, "both")).logits, untouched)
    assert [slots.first for _, slots in reader.given] == [0, 2, 4, 6, 8, 10, 12]
    close(found, expected)
    close(found[2], untouched[2])
    close(again.scores, ranking.scores)


@pytest.mark.parametrize("family", WITH_ATTENTION)
@pytest.mark.parametrize("semantics", ["clean", "published"])
def test_every_mode_in_blocks(family: str, semantics: str, blocks) -> None:
    """All modes over 13 tokens and padding, by twos; published binary, which sums over all queries, gets them all."""
    lens, ids = lens_of(family), tokens(len(MODES), 13, seed=5)
    lengths = torch.tensor([13, 11, 13, 12, 13])
    edits = manipulate(lens, MODES, [(2, 4), (7, 9)], "prefill", semantics)
    reader = Reader()
    edits.append(hl.Edit(attention_name(lens, "hook_pattern"), reader.function(True)))
    with torch.no_grad():
        once = lens.prefill(ids, edits, lengths=lengths).logits
        blocks(5, 13, 2)
        cut = lens.prefill(ids, edits, lengths=lengths).logits
    assert len(reader.given) == 1 + (7 if semantics == "clean" else 1)
    for row, length in enumerate(lengths):
        close(cut[row, :length], once[row, :length], FORWARD)


@pytest.mark.parametrize("family", WITH_ATTENTION)
def test_a_pass_ahead_comes_first_and_leaves_no_trace(family: str) -> None:
    """It sees the same tokens and state, its own edits and no others, before each pass; what it did is dropped."""
    lens, ids = lens_of(family), tokens(2, 8, seed=4)
    order: list[tuple[str, str]] = []
    seen: list[torch.Tensor] = []

    def note(what: str):
        return lambda x, hook: order.append((what, hook.name))

    def spoil(x: torch.Tensor, hook: HookPoint) -> torch.Tensor:
        return torch.full_like(x, 7.0)

    early, late = "blocks.0.hook_resid_pre", f"blocks.{lens.cfg.n_layers - 1}.hook_resid_post"
    double = hl.Edit("blocks.1.hook_resid_pre", lambda x, hook: x * 2)
    edits = [
        hl.Edit(early, spoil, ahead=True),
        hl.Edit(early, note("ahead"), ahead=True),
        hl.Edit(late, note("ahead"), ahead=True),
        hl.Edit("blocks.1.hook_resid_pre", lambda x, hook: seen.append(x.clone()), ahead=True),
        hl.Edit(early, note("now")),
        hl.Edit(late, note("now")),
        double,
    ]
    with torch.no_grad():
        state, logits = lens.prefill(ids, edits)
        plain_state, plain = lens.prefill(ids, [double])
        before = {name: value.clone() for name, value in state.tensors().items()}
        after, more = lens.extend(state, ids[:, :1], edits)
        plain_after, plain_more = lens.extend(plain_state, ids[:, :1], [double])
    assert order == [("ahead", early), ("ahead", late), ("now", early), ("now", late)] * 2
    assert [x.shape[1] for x in seen] == [8, 1]
    plain_seen: list[torch.Tensor] = []
    spoilt = [hl.Edit(early, spoil), hl.Edit("blocks.1.hook_resid_pre", lambda x, hook: plain_seen.append(x.clone()))]
    lens.prefill(ids, spoilt)
    assert torch.equal(seen[0], plain_seen[0])
    assert torch.equal(logits, plain)
    assert torch.equal(more, plain_more)
    for name, value in plain_after.tensors().items():
        assert torch.equal(after.tensors()[name], value)
    for name, value in before.items():
        assert torch.equal(state.tensors()[name], value)
    assert not any(point.asked() for point in lens.hook_dict.values())


@pytest.mark.parametrize("family", WITH_ATTENTION)
@pytest.mark.parametrize("boundary", ["last_prompt_token", "first_new_token"])
def test_passes_ahead_in_generation(family: str, boundary: str) -> None:
    """One ahead of each pass of its phase; the tokens are those of the same steps taken by hand."""
    lens, rows = lens_of(family, 1, num_hidden_layers=6), [[3, 8, 1, 9, 4], [5, 2, 7, 7, 6]]
    passes: dict[str, list[int]] = {"prefill": [], "decode": []}
    count = [
        hl.Edit("hook_embed", lambda x, hook, phase=phase: passes[phase].append(x.shape[1]), phase, ahead=True)
        for phase in ("prefill", "decode")
    ]
    edits = top_k(lens, [1, 2], "both", "model")
    out = lens.generate(rows, 4, [*edits, *count], boundary, stop_at_eos=False)
    ids = torch.tensor(rows)
    held_back = 1 if boundary == "last_prompt_token" else 0
    assert passes == {"prefill": [5 - held_back], "decode": [1] * (3 + held_back)}
    with torch.no_grad():
        state, logits = lens.prefill(ids[:, : 5 - held_back], edits)
        if held_back:
            state, logits = lens.extend(state, ids[:, -1:], edits)
        for step in range(4):
            token = logits[:, -1].argmax(-1, keepdim=True)
            assert token[:, 0].tolist() == out.tokens[:, step].tolist()
            state, logits = lens.extend(state, token, edits)


def test_a_trace_takes_no_pass_ahead() -> None:
    """It would count as one of the trace's own; the refusal names the edit and leaves nothing attached."""
    lens = lens_of("recurrentgemma", 0, num_hidden_layers=6)
    with pytest.raises(InputError, match=r"hook_attn_scores' acts in a pass ahead.*scope 'model'"):
        lens.trace(tokens(1, 4), max_new_tokens=2, edits=top_k(lens, 1, "decode", "model"))
    assert not any(point.asked() for point in lens.hook_dict.values())
