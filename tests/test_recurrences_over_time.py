"""Every recurrence against a plain float64 loop: states, readout, pieces of text, padding, adjoint, hidden attention.

In float64 the fast forms have to agree with the loop to float64 rounding, which no wrong formula does; in float32 the
bound is a rounding error for every term that a value is a sum of.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrence_cases import KINDS, MATRIX, SELECTIVE, case, changed, leafed, loop, near, tensors

from hybridlens.recurrences import Scalar, ScalarTerms, before

LENGTHS = st.one_of(st.integers(1, 12), st.sampled_from([31, 32, 33, 63, 64, 65, 127, 129, 200]))
FEW = settings(max_examples=6, deadline=None)


def exact(kind):
    """Mamba's scan works in float32 whatever it is given."""
    return torch.float32 if kind in SELECTIVE else torch.float64


@pytest.mark.parametrize("kind", KINDS)
@FEW
@given(st.integers(1, 3), LENGTHS, st.integers(0, 999))
def test_states_and_runs_are_the_loop(kind, batch, length, seed):
    op, terms, initial = case(kind, batch, length, seed, exact(kind))
    states, _, y = loop(*changed_to_double(terms, initial))
    rounding = 16 * (length + 8)
    run = op.run(terms, initial)
    near(op.states(terms, initial), states, rounding)
    near(op.loop(terms, initial), states, rounding)
    near(op.readout(op.states(terms, initial), terms), y, rounding)
    near(run.y, y, rounding)
    near(run.final, states[:, -1], rounding)


def changed_to_double(terms, initial):
    return changed(terms, torch.Tensor.double), initial.double()


@pytest.mark.parametrize("kind", MATRIX)
@pytest.mark.parametrize("length", [40, 150])
def test_float32_is_the_loop_to_rounding(kind, length):
    """Realistic sizes; low-precision inputs are worked on in float32."""
    op, terms, initial = case(kind, 2, length, 5, torch.float32, (3, 16, 24))
    states, _, y = loop(*changed_to_double(terms, initial))
    run = op.run(terms, initial)
    for got, want in ((run.y, y), (run.final, states[:, -1]), (op.states(terms, initial), states)):
        assert got.dtype == torch.float32
        near(got, want, length + 40)
    half = changed(terms, torch.Tensor.bfloat16)
    run, same = op.run(half, initial), op.run(changed(half, torch.Tensor.float), initial)
    assert run.y.dtype == torch.float32
    assert torch.equal(run.y, same.y)
    assert torch.equal(run.final, same.final)


@pytest.mark.parametrize("kind", MATRIX)
def test_decays_that_have_no_logarithm(kind):
    """0, negative and above 1, as an edit may give them: a form by logarithms or quotients gives NaN here."""
    op, terms, initial = case(kind, 2, 100, 3)
    decay = terms.decay.clone()
    decay[:, ::5] = 0.0
    decay[:, 1::7] *= -1.0
    decay[:, 2::31] = 1.5
    terms = terms._replace(decay=decay)
    states, _, y = loop(terms, initial)
    run = op.run(terms, initial)
    near(run.y, y, 2000)
    near(run.final, states[:, -1], 2000)
    near(op.states(terms, initial), states, 2000)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cuts", [(1,), (5, 6, 70), (64, 128)])
def test_pieces_of_a_text_are_the_whole(kind, cuts):
    op, terms, initial = case(kind, 2, 140, 7, exact(kind))
    whole, state, parts = op.run(terms, initial), initial, []
    for start, end in zip((0, *cuts), (*cuts, 140), strict=True):
        run = op.run(op.at(terms, slice(start, end)), state)
        parts.append(run.y)
        state = run.final
    near(torch.cat(parts, 1), whole.y, 2000)
    near(state, whole.final, 2000)


@pytest.mark.parametrize("kind", MATRIX)
def test_a_text_of_many_stretches(kind, monkeypatch):
    """Stretches of two chunks each: what one hands to the next."""
    monkeypatch.setattr("hybridlens.recurrences.chunks.SEGMENT", 128)
    op, terms, initial = case(kind, 1, 300, 2)
    states, _, y = loop(terms, initial)
    near(op.run(terms, initial).y, y, 5000)
    near(op.states(terms, initial), states, 5000)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_leaves_a_state_as_it_is(kind):
    """Rows of 0, 9 and 100 tokens in a batch of 100: to the bit where a call holds only padding."""
    op, terms, initial = case(kind, 3, 100, 11, torch.float32)
    lengths = torch.tensor([0, 9, 100])
    held = op.hold(terms, torch.arange(100) < lengths[:, None])
    assert op.hold(terms, None) is terms
    run, states = op.run(held, initial), op.states(held, initial)
    assert torch.equal(run.final[0], initial[0])
    assert torch.equal(states[0], initial[0].expand(states[0].shape))
    assert torch.equal(states[1, 9:], states[1, 8:9].expand(states[1, 9:].shape))
    alone = op.run(op.at(changed_rows(op, terms, 1), slice(0, 9)), initial[1:2])
    near(run.final[1:2], alone.final, 100)
    near(run.y[1:2, :9], alone.y, 100)


def changed_rows(op, terms, row):
    shared = getattr(terms, "A", None)
    return changed(terms, lambda t: t if t is shared else t[row : row + 1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_carry_is_linear_and_its_adjoint_too(kind):
    """⟨g, J S⟩ = ⟨Jᵀ g, S⟩ for random S and g, and a step differs from a carry by what does not depend on S."""
    op, terms, initial = case(kind, 3, 5, 1, exact(kind))
    one = op.at(terms, 2)
    other, g = torch.randn_like(initial), torch.randn_like(initial)
    left, right = (g * op.carry(initial, one)).sum(), (op.carry_back(g, one) * initial).sum()
    near(left, right, 1000)
    near(op.step(initial, one) - op.step(other, one), op.carry(initial - other, one), 1000)


@pytest.mark.parametrize("kind", KINDS)
@FEW
@given(LENGTHS, st.integers(0, 999))
def test_the_adjoint_is_the_loops_gradient(kind, length, seed):
    """What autograd gives at every state of a plain loop, entries that are set from outside included."""
    op, terms, initial = case(kind, 2, length, seed, exact(kind))
    generator = torch.Generator().manual_seed(seed)
    seen = op.states(terms, initial)
    weight = torch.randn(seen.shape, generator=generator, dtype=seen.dtype)
    mask = torch.rand(seen.shape, generator=generator) < 0.1
    for edits in ({}, {"state": (mask, seen.double())}):
        nothing = torch.zeros_like(seen, dtype=torch.float64).requires_grad_()
        states, _, _ = loop(*changed_to_double(terms, initial), edits, {"state": nothing})
        (want,) = torch.autograd.grad((states * weight.double()).sum(), nothing)
        near(op.adjoint(terms, weight, mask if edits else None), want, 40 * (length + 8))


@pytest.mark.parametrize("kind", KINDS)
@FEW
@given(LENGTHS, st.integers(0, 999))
def test_gradients_of_runs_and_states_are_the_loops(kind, length, seed):
    given_ = case(kind, 2, length, seed, exact(kind))
    op, terms, initial = leafed(given_)
    truth = leafed(case(kind, 2, length, seed, torch.float64) if kind not in SELECTIVE else double(given_))
    generator = torch.Generator().manual_seed(seed)
    states, _, y = loop(truth.terms, truth.initial)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (y, states[:, -1], states)]
    inputs, wanted = [*tensors(terms), initial], [*tensors(truth.terms), truth.initial]
    run = op.run(terms, initial)
    got = torch.autograd.grad(loss((run.y, run.final), weights), inputs, allow_unused=True)
    want = torch.autograd.grad(loss((y, states[:, -1]), weights), wanted, retain_graph=True, allow_unused=True)
    compare(got, want, 200 * (length + 8))
    got = torch.autograd.grad(loss((op.states(terms, initial),), weights[2:]), inputs, allow_unused=True)
    want = torch.autograd.grad(loss((states,), weights[2:]), wanted, allow_unused=True)
    compare(got, want, 200 * (length + 8))


def double(given_):
    return type(given_)(given_.op, *changed_to_double(given_.terms, given_.initial))


def loss(outputs, weights):
    return sum((out * weight.to(out.dtype)).sum() for out, weight in zip(outputs, weights, strict=False))


def compare(got, want, terms):
    for a, b in zip(got, want, strict=True):
        assert a is not None or b is None or not b.any()
        if a is not None:
            near(a, torch.zeros_like(a, dtype=torch.float64) if b is None else b, terms)


@pytest.mark.parametrize("kind", MATRIX)
@FEW
@given(LENGTHS, st.integers(0, 999))
def test_the_hidden_attention_gives_the_readout(kind, length, seed):
    """y = pattern @ v from an empty state; nothing is read of later tokens."""
    op, terms, initial = case(kind, 2, length, seed)
    pattern = op.hidden_attention(terms)
    _, _, y = loop(terms, torch.zeros_like(initial))
    near(torch.einsum("bhpk,bkhu->bphu", pattern, terms.v), y, 40 * (length + 8))
    assert not pattern.triu(1).any()


@pytest.mark.parametrize("kind", MATRIX)
@pytest.mark.parametrize("length", [5, 150])
def test_gradients_of_the_hidden_attention_are_the_loops(kind, length):
    """The j-th axis of as many values as tokens reads the j-th column."""
    op, terms, _ = leafed(case(kind, 1, length, 3))
    truth = leafed(case(kind, 1, length, 3))
    axes = torch.eye(length, dtype=torch.float64)[:, None].expand(1, -1, 2, -1)
    _, _, y = loop(truth.terms._replace(v=axes), torch.zeros(1, 2, length, 4, dtype=torch.float64))
    weight = torch.randn(1, 2, length, length, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs = [terms.decay, terms.k, terms.q, *(t for t in terms[4:5] if t is not None)]
    wanted = [truth.terms.decay, truth.terms.k, truth.terms.q, *(t for t in truth.terms[4:5] if t is not None)]
    got = torch.autograd.grad((op.hidden_attention(terms) * weight).sum(), inputs)
    compare(got, torch.autograd.grad((y.transpose(1, 2) * weight).sum(), wanted), 400 * (length + 8))


@pytest.mark.parametrize("kind", ["vector", "explicit", *SELECTIVE])
def test_the_hidden_attention_of_channels_is_what_an_input_leaves(kind):
    """Means over channels, or a head's, of what a unit of one token's input adds to a later readout, by differences."""
    op, terms, initial = case(kind, 1, 7, 3, exact(kind), (4, 3, 2))
    pattern = op.hidden_attention(terms)
    zero = torch.zeros_like(initial)
    for j in range(7):
        if kind in SELECTIVE:
            x = torch.zeros_like(terms.x)
            x[:, j] = 1
            y = op.run(terms._replace(x=x), zero).y
        else:
            write = torch.zeros_like(terms.write)
            write[:, j] = terms.source[:, j]
            y = op.run(terms._replace(write=write), zero).y
        near(pattern[..., j], y.unflatten(-1, (pattern.shape[1], -1)).mean(-1).transpose(1, 2), 500)


def test_means_over_blocks_of_channels():
    op, terms, _ = case("vector", 2, 6, 0, sizes=(4, 1, 1))
    whole, blocks = op.hidden_attention(terms), type(op)((4,), groups=2).hidden_attention(terms)
    assert blocks.shape == (2, 2, 6, 6)
    near(blocks.mean(1, keepdim=True), whole, 100)


@pytest.mark.parametrize("kind", KINDS)
def test_first_order_effects_are_the_slope_of_a_patch(kind):
    """Against central differences of a loss along a patch of several positions, entries of no change among them."""
    op, terms, initial = case(kind, 2, 30, 4, exact(kind))
    generator = torch.Generator().manual_seed(1)
    states = op.states(terms, initial).double()
    weight = torch.randn(states.shape, generator=generator, dtype=torch.float64)
    mask = torch.rand(states.shape, generator=generator) < 0.2
    change = torch.where(torch.rand(states.shape, generator=generator) < 0.8, weight.roll(1, 1), 0.0)
    gradient = op.adjoint(terms, weight.to(initial.dtype)).double()
    got = op.first_order(terms, mask, change, gradient)
    assert got.shape == (2,)
    double_terms, start = changed_to_double(terms, initial)
    acting = mask & (change != 0)
    for row in range(2):
        sides = []
        for step in (1e-3, -1e-3):
            patched, _, _ = loop(double_terms, start, {"state": (acting, states + step * change)})
            sides.append(float((patched * weight)[row].sum()))
        slope = (sides[0] - sides[1]) / 2e-3
        size = float((gradient * change)[row].abs().sum())
        # The loss is linear here, so that its differences are off by no more than float64 rounding over the step.
        eps = torch.finfo(initial.dtype).eps + torch.finfo(torch.float64).eps / 1e-3
        assert abs(float(got[row]) - slope) < 1000 * eps * size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 70])
def test_meta_tensors_have_shapes_and_no_numbers(kind, length):
    """Sizes of a model are learnt without its weights."""
    op, terms, initial = case(kind, 2, length, 0, torch.float32)
    terms, initial = changed(terms, lambda t: t.to("meta")), initial.to("meta")
    with torch.no_grad():
        run, states = op.run(terms, initial), op.states(terms, initial)
    assert states.shape == (2, length, *op.shape)
    assert run.final.shape == (2, *op.shape)
    assert run.y.shape == op.readout(states, terms).shape
    assert op.step(initial[:, None], op.at(terms, slice(0, 1))).shape == (2, 1, *op.shape)


def test_an_empty_state_and_its_size():
    op = Scalar((2, 3, 4))
    assert op.empty(5, "cpu").shape == (5, 2, 3, 4)
    assert op.nbytes == 2 * 3 * 4 * 4
    assert op.empty(5, "cpu").dtype == torch.float32


def test_a_single_token_is_one_step():
    """No chunk is made of it, so that prefill of one token and a decode step have the same bits."""
    for kind in MATRIX:
        op, terms, initial = case(kind, 2, 1, 0, torch.float32)
        run = op.run(terms, initial)
        assert torch.equal(run.final, op.step(initial, op.at(terms, 0)))
        assert torch.equal(run.y[:, 0], op.readout(run.final, op.at(terms, 0)))


def test_a_delta_rule_of_equal_channels_is_one_of_heads():
    """Kimi's with all channels alike is Gated DeltaNet's, and without recall it is the scalar one."""
    op, terms, initial = case("delta", 2, 90, 6)
    spread = terms._replace(decay=terms.decay[..., None].expand(*terms.decay.shape, 4))
    near(op.run(spread, initial).y, op.run(terms, initial).y, 2000)
    recall = torch.zeros(terms.v.shape, dtype=torch.float64)
    blind = op.with_recalls(terms, initial, lambda seen: (recall, torch.ones_like(seen, dtype=torch.bool)))
    scalar = Scalar(op.shape)
    plain = terms.decay, terms.v, terms.k, terms.q, terms.beta
    near(op.run(blind, initial).y, scalar.run(ScalarTerms(*plain), initial).y, 2000)


def test_recalls_and_writes_over_time_are_the_loops():
    for kind in ("scalar", "delta", "channels"):
        op, terms, initial = case(kind, 2, 80, 8)
        states, (recalls, writes), _ = loop(terms, initial)
        previous = before(op.states(terms, initial), initial)
        if kind != "scalar":
            near(op.recalls(previous, terms), recalls, 2000)
            near(op.writes(previous, terms), writes, 2000)
        else:
            near(op.writes(terms), writes, 100)
        assert states.shape == previous.shape


def test_second_derivatives_are_refused():
    """A silent zero would be worse than an error."""
    op, terms, initial = leafed(case("delta", 1, 5, 0))
    (grad,) = torch.autograd.grad((op.states(terms, initial) ** 2).sum(), terms.v, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
