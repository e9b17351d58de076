"""States taken apart, on operators with random terms: against loops in which single tokens alone put something in.

In float64, where a wrong formula is off by far more than the rounding that is allowed; decays are 0, 1 and between, and
write strengths go up to 2, so that erasing more than stands there is among the cases.
"""

import pytest
import torch
from recurrence_cases import MATRIX, case, loop, near

from hybridlens.errors import InputError

KINDS = ("vector", "explicit", *MATRIX)
DELTA = ("delta", "channels")


def alone(kind, terms, token):
    """The terms in which one token alone puts something in."""
    name = "write" if kind in ("vector", "explicit") else "v"
    mask = torch.zeros_like(getattr(terms, name), dtype=torch.bool)
    mask[:, token] = True
    return terms._replace(**{name: torch.where(mask, getattr(terms, name), 0.0)})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 9, 70])
def test_silenced_terms_give_the_part_of_the_others(kind, length):
    op, terms, _ = case(kind, 2, length, 3)
    nothing = torch.zeros(2, *op.shape, dtype=torch.float64)
    token = length // 2
    others = torch.arange(length) != token
    part = loop(alone(kind, terms, token), nothing)[0]
    near(op.run(op.silenced(terms, others[None]), nothing).final, part[:, -1], 16 * (length + 8))
    both = op.run(op.silenced(terms, ~others[None]), nothing).final + part[:, -1]
    near(both, loop(terms, nothing)[0][:, -1], 16 * (length + 8))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_fading_erasing_and_writing(kind):
    """The loop's states, recalls and writes say what each part must be."""
    op, terms, initial = case(kind, 2, 20, 4)
    states, (recalls, writes), _ = loop(terms, initial)
    earlier = torch.cat([initial[:, None], states[:, :-1]], dim=1)
    faded = op.faded(earlier, terms)
    if kind in ("vector", "explicit"):
        near(faded, terms.decay * earlier, 4)
        near(op.offered(terms), terms.write, 1)
    else:
        near(states - faded, writes, 64)
        if kind in DELTA:
            offered = torch.einsum("bpsu,bpsm->bpsum", terms.v, terms.k)
            near(torch.einsum("bpsum,bpsm->bpsu", faded, terms.k), recalls, 64)
            erased = torch.einsum("bps,bpsu,bpsm->bpsum", terms.beta, recalls, terms.k)
            near(faded - op.carry(earlier, terms), erased, 64)
        else:
            offered = writes
            assert torch.equal(faded, op.carry(earlier, terms))
        near(op.offered(terms), offered, 16)


@pytest.mark.parametrize("kind", KINDS)
def test_decays_are_of_each_part_of_a_head(kind):
    op, terms, initial = case(kind, 2, 5, 5)
    heads = op.by_head(initial)
    decays = op.decays(terms)
    assert decays.shape[:3] == (2, 5, heads.shape[1])
    parts = {"vector": 2, "explicit": 2 * 3, "scalar": 1, "lightning": 1, "delta": 1, "channels": 4}[kind]
    assert decays.shape[3] == parts
    assert torch.equal(decays.flatten(2), terms.decay.flatten(2).double())
    assert heads.flatten().tolist() == initial.flatten().tolist()


@pytest.mark.parametrize("kind", DELTA)
@pytest.mark.parametrize("length", [1, 7, 66])
def test_erasures_are_what_earlier_values_lose(kind, length):
    """β recall, which the loop gives, is the erasures times v; nothing is erased of a token itself or a later one."""
    op, terms, _ = case(kind, 2, length, 6)
    nothing = torch.zeros(2, *op.shape, dtype=torch.float64)
    recalls = loop(terms, nothing)[1][0]
    erasures = op.erasures(terms)
    erased = torch.einsum("bstj,bjsu->btsu", erasures, terms.v)
    near(erased, terms.beta[..., None] * recalls, 64 * (length + 8))
    assert not erasures.triu().any()
    token = length // 3  # a token by itself
    recall = loop(alone(kind, terms, token), nothing)[1][0]
    own = erasures[..., token].transpose(1, 2)[..., None] * terms.v[:, token, None]
    near(own, terms.beta[..., None] * recall, 64 * (length + 8))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in DELTA])
def test_where_nothing_is_erased_erasures_are_refused(kind):
    op, terms, _ = case(kind, 1, 4, 7)
    with pytest.raises(InputError, match="only decays; only delta rules erase at an address"):
        op.erasures(terms)
