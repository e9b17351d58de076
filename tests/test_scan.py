"""The recurrences against the plain loop, forward and backward, at lengths on every side of a border."""

import pytest
import torch
from bounds import FORWARD, LAYER, close
from hypothesis import given
from hypothesis import strategies as st

from hybridlens.recurrences import mamba_scan as selective
from hybridlens.recurrences import scan


def plain_loop(decay, write, initial):
    states, state = [], initial
    for t in range(decay.shape[1]):
        state = decay[:, t] * state + write[:, t]
        states.append(state)
    return torch.stack(states, dim=1)


def draw(seed, *shapes, low=None):
    generator = torch.Generator().manual_seed(seed)
    out = []
    for shape in shapes:
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        out.append((x if low is None else torch.sigmoid(x)).requires_grad_())
    return out


def gradients(loss, inputs):
    return torch.autograd.grad(loss, inputs)


@given(st.integers(1, 3), st.integers(1, 140), st.sampled_from([(), (2,)]), st.integers(0, 99))
def test_linear_scan_is_the_loop(batch, length, extra, seed):
    """Random sizes cover the plain form, the blocked form, and blocked with a remainder."""
    shape = (batch, length, 3, *extra)
    (decay,) = draw(seed, shape, low=0)
    write, initial = draw(seed + 1, shape, (batch, 3, *extra))
    ours, theirs = scan.linear_scan(decay, write, initial), plain_loop(decay, write, initial)
    close(ours, theirs)
    weight = torch.randn(shape, dtype=torch.float64)
    inputs = (decay, write, initial)
    got_all, want_all = gradients((ours * weight).sum(), inputs), gradients((theirs * weight).sum(), inputs)
    for got, want in zip(got_all, want_all, strict=True):
        close(got, want)


def test_both_speeds_give_the_loop_where_a_decay_is_zero_or_one():
    """A reset (decay 0) inside a segment must cut off what was before, in the joined segments too."""
    decay = torch.rand(1, 100, 4)
    decay[:, [0, 37, 64]] = 0
    decay[:, [5, 6, 7, 99]] = 1
    write = torch.randn(1, 100, 4)
    close(scan.linear_scan(decay, write), plain_loop(decay, write, torch.zeros(1, 4)), LAYER)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 31])
def test_selective_scan_is_the_loop_across_chunks(length, monkeypatch):
    """A chunk holds 8 tokens here, so lengths fall before, on and behind its border."""
    monkeypatch.setattr(selective, "CHUNK_ELEMENTS", 8 * 2 * 3 * 4)
    x, B, C, initial = draw(length, (2, length, 3), (2, length, 4), (2, length, 4), (2, 3, 4))
    dt, minus_A = draw(length + 50, (2, length, 3), (3, 4), low=0)
    inputs = [t.detach().float().requires_grad_() for t in (dt, -minus_A, B, C, x, initial)]
    y, final = selective.selective_scan(*inputs)
    dt, A, B, C, x, initial = inputs
    states = plain_loop(torch.exp(dt[..., None] * A), dt[..., None] * B[:, :, None] * x[..., None], initial)
    expected = (states * C[:, :, None]).sum(-1)
    close(y, expected, LAYER)
    close(final, states[:, -1], LAYER)
    weight, end = torch.randn_like(y), torch.randn_like(final)
    got = gradients((y * weight).sum() + (final * end).sum(), inputs)
    want = gradients((expected * weight).sum() + (states[:, -1] * end).sum(), inputs)
    for ours, theirs in zip(got, want, strict=True):
        close(ours, theirs, FORWARD)


def test_the_hooked_form_gives_the_same_bits_as_the_chunked_one():
    """`discretise`, `linear_scan` and `read_out` are what runs when states are hooked: no bit may differ."""
    torch.manual_seed(1)
    dt, A = torch.rand(3, 700, 64), -torch.rand(64, 16)
    B, C, x = torch.randn(3, 700, 16), torch.randn(3, 700, 16), torch.randn(3, 700, 64)
    y, final = selective.selective_scan(dt, A, B, C, x)
    states = scan.linear_scan(*selective.discretise(dt, A, B, x))
    assert torch.equal(selective.read_out(states, C), y)
    assert torch.equal(states[:, -1], final)


@given(st.integers(1, 40), st.integers(0, 99))
def test_an_edited_state_persists(length, seed):
    """Against a loop that writes the edited entries in as it goes (rule 7 of the hook points)."""
    generator = torch.Generator().manual_seed(seed)
    decay, write = torch.rand(2, length, 3, generator=generator), torch.randn(2, length, 3, generator=generator)
    initial = torch.randn(2, 3, generator=generator)
    states = plain_loop(decay, write, initial)
    edited = torch.where(torch.rand(states.shape, generator=generator) < 0.2, states + 1.5, states)
    expected, state = [], initial
    for t in range(length):
        state = torch.where(edited[:, t] != states[:, t], edited[:, t], decay[:, t] * state + write[:, t])
        expected.append(state)
    got = scan.persistent_states(edited, edited != states, decay, write, initial)
    close(got, torch.stack(expected, 1), LAYER)


@pytest.mark.parametrize("first", [0, 5, 11, 23, None])
def test_an_edited_selective_state_persists_across_chunks(first, monkeypatch):
    """The same for Mamba's, in chunks of four tokens, some of them before the first edit; and read out.

    Each row has edits of its own from `first` on, the last row none. Without any, nothing changes a bit.
    """
    monkeypatch.setattr(selective, "CHUNK_ELEMENTS", 4 * 3 * 5 * 2)
    generator = torch.Generator().manual_seed(first or 0)
    dt, A = torch.rand(3, 24, 5, generator=generator), -torch.rand(5, 2, generator=generator)
    B, C, x, initial = (
        torch.randn(size, generator=generator) for size in ((3, 24, 2), (3, 24, 2), (3, 24, 5), (3, 5, 2))
    )
    was = selective.selective_states(dt, A, B, C, x, initial)
    edited = was.states.clone()
    if first is not None:
        edited[0, first, 2] += 1.5
        edited[1, first:, :, 0] = torch.randn(24 - first, 5, generator=generator)
    got = selective.edited_states(was, edited, edited != was.states, dt, A, B, C, x, initial)
    decay, write = torch.exp(dt[..., None] * A), dt[..., None] * B[:, :, None] * x[..., None]
    expected, state = [], initial
    for t in range(24):
        state = torch.where(edited[:, t] != was.states[:, t], edited[:, t], decay[:, t] * state + write[:, t])
        expected.append(state)
    states = torch.stack(expected, 1)
    close(got.states, states, LAYER)
    close(got.y, (states * C[:, :, None]).sum(-1), LAYER)
    assert torch.equal(got.states[2], was.states[2])
    assert torch.equal(got.y[2], was.y[2])
    if first is None:
        assert torch.equal(got.states, was.states)
    else:
        assert torch.equal(got.states[:, :first], was.states[:, :first])


def test_second_derivatives_are_refused():
    """A silent zero would be worse than an error."""
    decay, write = torch.rand(1, 5, 2, requires_grad=True), torch.randn(1, 5, 2, requires_grad=True)
    (grad,) = torch.autograd.grad((scan.linear_scan(decay, write) ** 2).sum(), decay, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
