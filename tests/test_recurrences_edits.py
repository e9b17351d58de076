"""Edits of states, writes and recalls: what follows from them, what they leave alone, and their gradients.

The reference is a plain float64 loop that puts edited values in as it goes, with autograd through it. Total gradients
are those for a zero added to every entry of that loop.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrence_cases import KINDS, MATRIX, SELECTIVE, case, changed, leafed, loop, near, tensors

from hybridlens.recurrences import Diagonal, DiagonalTerms, hooked_states

FEW = settings(max_examples=4, deadline=None)
LENGTHS = st.sampled_from([1, 2, 9, 63, 66, 100])


def exact(kind):
    return torch.float32 if kind in SELECTIVE else torch.float64


def double(terms):
    return changed(terms, torch.Tensor.double)


def some(shape, seed, share=0.1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator) < share, torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@FEW
@given(LENGTHS, st.integers(0, 99))
def test_an_edited_state_persists(kind, length, seed):
    """Random entries are set, others frozen at the value they had; all that follows is made from them."""
    op, terms, initial = case(kind, 2, length, seed, exact(kind))
    seen = []

    def hook(states):
        mask, value = some(states.shape, seed)
        seen.append((mask, torch.where(value > 0, value.to(states.dtype), states)))
        return torch.where(mask, seen[-1][1], states), mask

    hooked = op.hooked(terms, initial, hook)
    ((mask, value),) = seen
    states, _, y = loop(double(terms), initial.double(), {"state": (mask, value.double())})
    for got, want in ((hooked.states, states), (hooked.y, y), (hooked.final, states[:, -1])):
        near(got, want, 40 * (length + 8))
    assert torch.equal(hooked_states(op, terms, initial, hook), hooked.states)


def test_a_frozen_entry_keeps_its_value_whatever_comes_before():
    """One entry is set at token 1, and the same entry frozen at token 4: from there on the run is the old one."""
    op, terms, initial = case("vector", 1, 9, 0)
    states = op.states(terms, initial)
    mask = torch.zeros(states.shape, dtype=torch.bool)
    mask[:, [1, 4], 0] = True
    value = states.clone()
    value[:, 1, 0] += 3
    got = op.hooked(terms, initial, lambda seen: (torch.where(mask, value, seen), mask)).states
    assert not torch.isclose(got[0, 1:4, 0], states[0, 1:4, 0]).any() or bool((terms.decay[0, 2:4, 0] == 0).any())
    assert torch.equal(got[0, 4:], states[0, 4:])


@pytest.mark.parametrize("kind", MATRIX)
@pytest.mark.parametrize("length", [1, 20, 130])
def test_what_no_edit_reaches_keeps_every_bit(kind, length):
    """Another row, another head, earlier tokens, and everything where a hook only looks."""
    op, terms, initial = case(kind, 2, length, 9, torch.float32)
    run, states = op.run(terms, initial), op.states(terms, initial)
    seen = op.hooked(terms, initial, lambda x: (x, None))
    assert torch.equal(seen.y, run.y)
    assert torch.equal(seen.final, run.final)
    assert torch.equal(seen.states, states)
    at = length // 2
    mask = torch.zeros(states.shape, dtype=torch.bool)
    mask[1, at, 0, 1] = True
    results = [op.hooked(terms, initial, lambda x: (torch.where(mask, x + 1, x), mask))]
    if kind in ("scalar", "lightning"):
        results.append(in_terms(op, terms, initial, mask))
    for got in results:
        for new, old in ((got.y, run.y), (got.states, states)):
            assert torch.equal(new[0], old[0])
            assert torch.equal(new[1, :, 1], old[1, :, 1])
            assert torch.equal(new[:, :at], old[:, :at])
        assert torch.equal(got.final[0], run.final[0])
        assert torch.equal(got.final[1, 1], run.final[1, 1])
        assert not torch.equal(got.y[1, at:, 0], run.y[1, at:, 0])


def in_terms(op, terms, initial, mask):
    changed_ = op.with_writes(terms, initial, lambda x: (torch.where(mask, x + 1, x), mask))
    return op.hooked(changed_, initial, lambda x: (x, None))


@pytest.mark.parametrize("kind", MATRIX)
@FEW
@given(LENGTHS, st.integers(0, 99))
def test_edits_of_recalls_writes_and_states_act_in_time_order(kind, length, seed):
    op, terms, initial = case(kind, 2, length, seed)
    delta = kind in ("delta", "channels")
    edits = {"write": some((2, length, *op.shape), seed), "state": some((2, length, *op.shape), seed + 1, 0.05)}
    if delta:
        edits["recall"] = some((2, length, *op.shape[:2]), seed + 2, 0.2)

    def setting(name):
        mask, value = edits[name]
        return lambda seen: (torch.where(mask, value, seen), mask)

    new = op.with_recalls(terms, initial, setting("recall")) if delta else terms
    new = op.with_writes(new, initial, setting("write"))
    states, _, y = loop(terms, initial, {k: v for k, v in edits.items() if k != "state"})
    run = op.run(new, initial)
    near(run.y, y, 40 * (length + 8))
    near(run.final, states[:, -1], 40 * (length + 8))
    hooked = op.hooked(new, initial, setting("state"))
    states, _, y = loop(terms, initial, edits)
    for got, want in ((hooked.states, states), (hooked.y, y), (hooked.final, states[:, -1])):
        near(got, want, 40 * (length + 8))
    previous = torch.cat([initial[:, None], hooked.states[:, :-1]], 1)
    near(op.step(previous, new).masked_fill(edits["state"][0], 0), states.masked_fill(edits["state"][0], 0), 1000)


def test_an_edited_recall_switches_an_erasure_off():
    """Row 1 is told that it recalls nothing at token 3: there the delta rule only adds."""
    op, terms, initial = case("delta", 1, 6, 1)
    mask = torch.zeros(1, 6, *op.shape[:2], dtype=torch.bool)
    mask[:, 3, 0, 1] = True
    new = op.with_recalls(terms, initial, lambda seen: (seen.masked_fill(mask, 0.0), mask))
    states, old = op.states(new, initial), op.states(terms, initial)
    put = terms.beta[0, 3, 0] * terms.v[0, 3, 0, 1] * terms.k[0, 3, 0]
    near(states[0, 3, 0, 1], terms.decay[0, 3, 0] * old[0, 2, 0, 1] + put, 100)
    assert torch.equal(states[0, :, 0, 0], old[0, :, 0, 0])


HOOKS = ("look", "set", "scale", "mix", "freeze", "detach", "detach some", "other")


def hooks_and_reference(name, mask, leaf):
    """A hook, and what it puts in at edited entries as a function of the trajectory before the edit."""
    weight = 0.5

    def value(states):
        if name in ("set", "detach some", "other"):
            return leaf.to(states.dtype).expand(states.shape)
        if name == "scale":
            return weight * states
        if name == "mix":  # takes from unedited entries, and from edited ones
            return states.roll(1, 0) * leaf.to(states.dtype)
        return states  # freeze

    def hook(states):
        if name == "look":
            return states, None
        kept = states.detach() if name in ("detach", "detach some", "other") else states
        made = value(states.detach() if name == "detach" else states)
        return torch.where(mask, made, kept), mask

    return hook, (lambda states: value(states.detach())) if name == "detach" else value


@pytest.mark.parametrize("kind", ["vector", "explicit", *SELECTIVE, "scalar", "delta", "channels"])
@pytest.mark.parametrize("name", HOOKS)
@pytest.mark.parametrize("length", [3, 70])
def test_gradients_through_edited_states_are_the_loops(kind, name, length):
    """For terms, the initial state and what the hook brings in, counted once, whatever the hook does with them."""
    given_ = case(kind, 2, length, 13, exact(kind))
    truth = leafed(type(given_)(given_.op, double(given_.terms), given_.initial.double()))
    op, terms, initial = leafed(given_)
    mask, weight = some((2, length, *op.shape), 5, 0.15)
    leaf, same = (torch.tensor(0.7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    hook, _ = hooks_and_reference(name, mask, leaf)
    _, reference = hooks_and_reference(name, mask, same)
    kept = []

    def keeping(states):
        out, where = hook(states)
        if out.requires_grad:
            out.retain_grad()
        kept.append(out)
        return out, where

    made = op.hooked(terms, initial, keeping)
    zeros = torch.zeros(mask.shape, dtype=torch.float64, requires_grad=True)
    before_edit, _, _ = loop(truth.terms, truth.initial)
    edits = {} if name == "look" else {"state": (mask, reference(before_edit))}
    states, _, y = loop(truth.terms, truth.initial, edits, {"state": zeros})
    small = torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ((made.y * small.to(made.y.dtype)).sum() + (made.states * weight.to(made.states.dtype)).sum()).backward()
    ((y * small).sum() + (states * weight).sum()).backward()
    for got, want in zip([*tensors(terms), initial, leaf], [*tensors(truth.terms), truth.initial, same], strict=True):
        if want.grad is not None and got.grad is None:
            assert not want.grad.any()
        elif got.grad is not None:
            nothing = torch.zeros_like(got.grad)
            near(got.grad, nothing if want.grad is None else want.grad, 400 * (length + 8), exact(kind))
    if kept[0].requires_grad:
        near(kept[0].grad, zeros.grad, 400 * (length + 8))


@pytest.mark.parametrize("kind", ["scalar", "delta", "channels"])
@pytest.mark.parametrize("name", ["look", "set", "scale", "freeze"])
@pytest.mark.parametrize("at", ["write", "recall"])
def test_gradients_through_edited_writes_and_recalls_are_the_loops(kind, name, at):
    """At what the hook gives stands the total gradient; in the terms everything is counted once."""
    if kind == "scalar" and at == "recall":
        at = "write"
    length = 66
    given_ = case(kind, 2, length, 3)
    truth, (op, terms, initial) = leafed(given_), leafed(given_)
    shape = (2, length, *(op.shape if at == "write" else op.shape[:2]))
    mask, _ = some(shape, 4, 0.15)
    leaf, same = (torch.tensor(0.7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    hook, _ = hooks_and_reference(name, mask, leaf)
    _, reference = hooks_and_reference(name, mask, same)
    kept = []

    def keeping(seen):
        out, where = hook(seen)
        out.retain_grad()
        kept.append(out)
        return out, where

    new = (op.with_recalls if at == "recall" else op.with_writes)(terms, initial, keeping)
    run = op.run(new, initial)
    zeros = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    _, (recalls, writes), _ = loop(truth.terms, truth.initial)
    edits = {} if name == "look" else {at: (mask, reference(writes if at == "write" else recalls))}
    states, _, y = loop(truth.terms, truth.initial, edits, {at: zeros})
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    near(run.y, y, 2000)
    ((run.y * weight).sum() + run.final.square().sum()).backward()
    ((y * weight).sum() + states[:, -1].square().sum()).backward()
    for got, want in zip([*tensors(terms), initial, leaf], [*tensors(truth.terms), truth.initial, same], strict=True):
        if got.grad is None:
            assert want.grad is None or not want.grad.any()
        else:
            near(got.grad, torch.zeros_like(got.grad) if want.grad is None else want.grad, 60000)
    near(kept[0].grad, zeros.grad, 60000)


@pytest.mark.parametrize("kind", ["vector", "explicit", *SELECTIVE, "scalar", "delta"])
@pytest.mark.parametrize("edited", [False, True])
def test_a_gradient_is_not_that_of_an_earlier_backward_pass(kind, edited):
    """A loss on a kept trajectory alone, after one on everything: what that one left behind must not be taken off."""
    op, terms, initial = leafed(case(kind, 2, 9, 2, exact(kind)))
    kept = []
    mask, _ = some((2, 9, *op.shape), 1)

    def hook(states):
        kept.append(states)
        return (torch.where(mask, 2.0, states), mask) if edited else (states, None)

    def alone(after):
        kept.clear()
        made = op.hooked(terms, initial, hook)
        if after == "backward":
            made.y.sum().backward(retain_graph=True)
        elif after == "grad":  # ends at the hook, and never comes to what is before it
            torch.autograd.grad(made.y.sum(), kept[0], retain_graph=True)
        wanted = tensors(terms)
        return torch.autograd.grad(kept[0].square().sum(), wanted, allow_unused=True)

    want = alone(None)
    assert any(g is not None and bool(g.any()) for g in want)
    for after in ("backward", "grad"):
        for a, b in zip(alone(after), want, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("kind", ["vector", "delta"])
def test_two_backward_passes_are_twice_one(kind):
    op, terms, initial = leafed(case(kind, 2, 9, 2, exact(kind)))
    made = op.hooked(terms, initial, lambda states: (states * 1.0, None))
    first = torch.autograd.grad(made.y.square().sum(), tensors(terms), retain_graph=True, allow_unused=True)
    second = torch.autograd.grad(made.y.square().sum(), tensors(terms), allow_unused=True)
    for a, b in zip(first, second, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_a_hook_that_detaches_and_edits_nothing_cuts_gradients():
    op = Diagonal((3,))
    write = torch.randn(2, 5, 3, requires_grad=True)
    terms = DiagonalTerms(torch.rand(2, 5, 3), write)
    states = hooked_states(op, terms, op.empty(2, "cpu"), lambda x: (x.detach(), None))
    assert not states.requires_grad
