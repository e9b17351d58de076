"""States as values: what goes on from one never changes it, however many share its keys."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FAMILIES, make, tokens

from hybridlens import HybridLens
from hybridlens.errors import InputError
from hybridlens.layer_state import SLACK, AttentionState
from hybridlens.state import HybridState


@pytest.fixture(scope="module", params=FAMILIES)
def lens(request: pytest.FixtureRequest) -> HybridLens:
    return HybridLens(make(request.param, 5))


def same(one: HybridState, other: HybridState) -> bool:
    ours, theirs = one.tensors(), other.tensors()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def next_logits(lens: HybridLens, state: HybridState, token: int) -> torch.Tensor:
    return lens.extend(state, [[token]] * state.batch).logits


@settings(deadline=None, max_examples=25)
@given(lengths=st.lists(st.integers(1, 11), min_size=1, max_size=4), order=st.randoms(use_true_random=False))
def test_rows_taken_apart_and_put_together_go_on_as_before(lens: HybridLens, lengths: list[int], order) -> None:
    """Ragged rows, in another order, with other gaps between their slots: the next logits are the same, to 1e-5."""
    rows = [tokens(1, length, seed=index)[0].tolist() for index, length in enumerate(lengths)]
    with torch.no_grad():
        state, _ = lens.prefill(rows)
        parts = state.split(lens.cfg.window)
        assert [int(part.lengths) for part in parts] == lengths
        assert all(bool((part.key_positions >= 0).all()) for part in parts)
        shuffled = list(range(len(rows)))
        order.shuffle(shuffled)
        together = HybridState.cat([parts[i] for i in shuffled])
        expected = next_logits(lens, state, 9)[shuffled]
        torch.testing.assert_close(next_logits(lens, together, 9), expected, atol=1e-5, rtol=1e-5)
        alone = torch.cat([next_logits(lens, parts[i], 9) for i in shuffled])
        torch.testing.assert_close(alone, expected, atol=1e-5, rtol=1e-5)


def test_cat_refuses_nothing_and_strangers(lens: HybridLens) -> None:
    other = HybridLens(make("jamba" if lens.cfg.family == "recurrentgemma" else "recurrentgemma", 5))
    with pytest.raises(InputError, match="states of none were given"):
        HybridState.cat([])
    with pytest.raises(InputError, match="all of one model"):
        HybridState.cat([lens.network.empty_state(1), other.network.empty_state(1)])


def test_two_texts_go_on_from_one_state(lens: HybridLens) -> None:
    """Single tokens are written into free slots; the second text finds them taken and must not overwrite the first."""
    with torch.no_grad():
        start, _ = lens.prefill(tokens(2, 9))
        start = lens.extend(start, [[3], [4]]).state  # from here on there are free slots
        before = start.clone()
        first = lens.extend(start, [[5], [6]]).state
        kept = first.clone()
        second = lens.extend(start, [[7], [8]]).state
        assert same(start, before)
        assert same(first, kept)
        whole = torch.cat([tokens(2, 9), torch.tensor([[3, 7], [4, 8]])], dim=1)
        expected = next_logits(lens, lens.prefill(whole).state, 11)
        torch.testing.assert_close(next_logits(lens, second, 11), expected, atol=1e-5, rtol=1e-5)
        whole[:, -1] = torch.tensor([5, 6])
        expected = next_logits(lens, lens.prefill(whole).state, 11)
        torch.testing.assert_close(next_logits(lens, first, 11), expected, atol=1e-5, rtol=1e-5)


def test_most_steps_copy_no_key(lens: HybridLens) -> None:
    """Of the steps of a long text all but one in `SLACK` keep their keys where they are; the text stays right."""
    with torch.no_grad():
        state, _ = lens.prefill(tokens(1, 6))
        layer = lens.cfg.attention_layers[0]
        buffers, text = [], tokens(1, 6)[0].tolist()
        for token in range(70):
            state = lens.extend(state, [[token % 50]]).state
            text.append(token % 50)
            held = state.layers[layer]
            assert isinstance(held, AttentionState)
            assert held.room is not None
            buffers.append(id(held.room.buffer))
        moves = sum(a != b for a, b in pairwise(buffers))
        assert moves <= -(-70 // SLACK)
        expected = lens.prefill([text]).logits[:, -1]
        again = lens.extend(lens.prefill([text[:-1]]).state, [[text[-1]]]).logits[:, -1]
        torch.testing.assert_close(again, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(next_logits(lens, state, 2)[:, 0], lens([[*text, 2]])[:, -1], atol=1e-5, rtol=1e-5)


def test_lent_slots_come_back(lens: HybridLens) -> None:
    """A pass whose outcome is dropped leaves the next one its free slot; outside the block it would have copied."""
    with torch.no_grad():
        state = lens.extend(lens.prefill(tokens(1, 6)).state, [[1]]).state
        rooms = [held.room for held in state.layers if isinstance(held, AttentionState)]
        with state.lent():
            lens.extend(state, [[2]])
        after = lens.extend(state, [[3]]).state
        moved = [held.room for held in after.layers if isinstance(held, AttentionState)]
        assert all(a is not None and b is not None and a.buffer is b.buffer for a, b in zip(rooms, moved, strict=True))
        expected = lens([[*tokens(1, 6)[0].tolist(), 1, 3, 9]])[:, -1]
        torch.testing.assert_close(next_logits(lens, after, 9)[:, 0], expected, atol=1e-5, rtol=1e-5)


def test_states_with_gradients_are_never_written_to(lens: HybridLens) -> None:
    """With gradients on, keys are joined in a new tensor, and the graph reaches back through them."""
    state, _ = lens.prefill(tokens(1, 5))
    after, logits = lens.extend(state, [[4]])
    assert all(held.room is None for held in after.layers if isinstance(held, AttentionState))
    logits.sum().backward()
    assert lens.hf_model.get_input_embeddings().weight.grad is not None
