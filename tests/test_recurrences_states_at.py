"""States at some positions, without those of the others; and what large texts cost in memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrence_cases import KINDS, MATRIX, SELECTIVE, case, changed, leafed, loop, near, tensors

from hybridlens.errors import InputError
from hybridlens.recurrences import every_state
from hybridlens.recurrences.edits import Edited
from tests.benchmarks.measure import peak_bytes

FEW = settings(max_examples=6, deadline=None)


def exact(kind):
    """Mamba's scan works in float32 whatever it is given."""
    return torch.float32 if kind in SELECTIVE else torch.float64


def double(given_):
    return type(given_)(given_.op, changed(given_.terms, torch.Tensor.double), given_.initial.double())


@pytest.mark.parametrize("kind", KINDS)
@FEW
@given(st.sampled_from([1, 9, 64, 65, 200, 300]), st.integers(0, 999))
def test_they_are_the_loops_at_any_positions_and_so_are_their_gradients(kind, length, seed):
    """Positions in random order, some twice, some counted from the end, inside of chunks and at their borders."""
    drawn = case(kind, 2, length, seed, exact(kind))
    op, terms, initial = leafed(drawn)
    truth = leafed(double(drawn))
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randint(-length, length, (5,), generator=generator)
    got = op.states_at(terms, initial, positions)
    want = loop(truth.terms, truth.initial)[0][:, positions]
    near(got, want, 16 * (length + 8))
    weight = torch.randn(want.shape, generator=generator, dtype=torch.float64)
    inputs, wanted = [*tensors(terms), initial], [*tensors(truth.terms), truth.initial]
    ours = torch.autograd.grad((got * weight.to(got.dtype)).sum(), inputs, allow_unused=True)
    theirs = torch.autograd.grad((want * weight).sum(), wanted, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None or not a.any()) if b is None else a is not None
        if a is not None and b is not None:
            near(a, b, 200 * (length + 8))


@pytest.mark.parametrize("kind", MATRIX)
def test_edits_inside_the_terms_are_in_them(kind):
    """A write edited in the middle is in the states after it, and in none before."""
    op, terms, initial = case(kind, 2, 90, 3)
    mask = torch.zeros(2, 90, *op.shape, dtype=torch.bool)
    mask[:, 40, 1] = True
    value = torch.randn(mask.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    edited = terms._replace(write_edit=Edited(value, mask))
    want, _, _ = loop(terms, initial, {"write": (mask, value)})
    positions = [10, 40, 89]
    near(op.states_at(edited, initial, positions), want[:, positions], 2000)


@pytest.mark.parametrize("position", [5, -6])
def test_a_position_without_a_token_is_refused_in_one_line(position):
    op, terms, initial = case("delta", 1, 5, 0)
    with pytest.raises(InputError, match=f"position {position} .* 5 tokens; give positions from -5 to 4$"):
        op.states_at(terms, initial, [0, position])
    assert op.states_at(terms, initial, []).shape == (1, 0, *op.shape)


@pytest.mark.parametrize("kind", MATRIX)
def test_memory_holds_the_states_that_are_asked_for(kind):
    """Three of 512 take less than a tenth of what all take, and all are held once: lists of them would be twice."""
    op, terms, initial = case(kind, 1, 512, 0, torch.float32, (2, 64, 128))
    every = 512 * op.nbytes
    with torch.no_grad():
        assert peak_bytes(lambda: op.states_at(terms, initial, [100, 200, 511])) < every / 10
        assert every <= peak_bytes(lambda: op.states(terms, initial)) < 1.25 * every


@pytest.mark.parametrize("kind", MATRIX)
@pytest.mark.parametrize("length", [1, 63, 64, 130])
def test_one_by_one_and_side_by_side_are_the_same_states(kind, length, monkeypatch):
    op, terms, initial = case(kind, 2, length, 9)
    want, _, _ = loop(terms, initial)
    for large in (1, 1 << 40):
        monkeypatch.setattr(every_state, "LARGE_STATE", large)
        near(op.made(terms, initial), want, 16 * (length + 8))


@pytest.mark.parametrize("kind", MATRIX)
def test_padding_keeps_a_state_to_the_bit_one_by_one(kind, monkeypatch):
    monkeypatch.setattr(every_state, "LARGE_STATE", 1)
    op, terms, initial = case(kind, 2, 100, 4, torch.float32)
    held = op.hold(terms, torch.arange(100) < torch.tensor([[0], [9]]))
    states = op.made(held, initial)
    assert torch.equal(states[0], initial[0].expand(states[0].shape))
    assert torch.equal(states[1, 9:], states[1, 8:9].expand(states[1, 9:].shape))
