"""Heads that share addresses: multiplied once for all of them, and what an edit of one head's leaves of the others."""

import pytest
import torch
from models import make, tokens
from recurrence_cases import case, changed, leafed, loop, near

from hybridlens import HybridLens
from hybridlens.recurrences.scalar import Apart, Sharing

HEADS, ALIKE = 6, 3


def shared(length, dtype=torch.float64):
    """Six heads in two groups, and the same terms that say so."""
    op, terms, initial = case("scalar", 2, length, 3, dtype, (HEADS, 5, 4))
    k, q = (x[:, :, ::ALIKE].repeat_interleave(ALIKE, dim=2) for x in (terms.k, terms.q))
    terms = terms._replace(k=k, q=q)
    return op, terms, terms._replace(sharing=Sharing(ALIKE)), initial


def edited(terms, length):
    """Head 1's write addresses from the middle on, and head 4's last read address."""
    k, q = terms.k.clone(), terms.q.clone()
    k[:, length // 2 :, 1] += 1.0
    q[:, -1, 4] -= 1.0
    mask = torch.zeros(2, length, HEADS, dtype=torch.bool)
    mask[:, length // 2 :, 1] = mask[:, -1, 4] = True
    return terms._replace(k=k, q=q, sharing=Sharing(ALIKE, Apart(terms.k, terms.q, mask)))


@pytest.mark.parametrize("length", [1, 7, 64, 150])
def test_sharing_changes_nothing_but_the_work(length):
    op, terms, said, initial = shared(length)
    states, _, y = loop(terms, initial)
    run = op.run(said, initial)
    near(run.y, y, 40 * (length + 8))
    near(run.final, states[:, -1], 40 * (length + 8))
    near(op.after(said, initial), states[:, -1], 40 * (length + 8))
    near(op.hidden_attention(said), op.hidden_attention(terms), 40 * (length + 8))


def test_gradients_are_the_loops():
    """Those of k and q stand at the first head of each group, which stands for all: their sums are the loop's."""
    op, terms, said, initial = shared(100)
    truth = leafed(type(case("scalar", 1, 1, 0))(op, terms, initial))
    k, q, v = (x.detach().clone().requires_grad_() for x in (said.k, said.q, said.v))
    run = op.run(said._replace(k=k, q=q, v=v), initial)
    states, _, y = loop(truth.terms, truth.initial)
    weight, end = torch.randn_like(y), torch.randn_like(initial)
    got = torch.autograd.grad((run.y * weight).sum() + (run.final * end).sum(), (k, q, v))
    wanted = truth.terms.k, truth.terms.q, truth.terms.v
    want = torch.autograd.grad((y * weight).sum() + (states[:, -1] * end).sum(), wanted)
    for a, b in zip(got[:2], want[:2], strict=True):
        near(a.unflatten(2, (-1, ALIKE)).sum(3), b.unflatten(2, (-1, ALIKE)).sum(3), 20000)
    near(got[2], want[2], 20000)


@pytest.mark.parametrize("length", [2, 70, 150])
def test_an_edit_of_one_heads_addresses_leaves_every_other_bit(length):
    """Heads that keep theirs, and tokens before the edit, in float32, where another way of multiplying shows."""
    op, terms, said, initial = shared(length, torch.float32)
    given = edited(terms, length)
    plain, run = op.run(said, initial), op.run(given, initial)
    others, before = [0, 2, 3, 5], slice(0, length // 2)
    assert torch.equal(run.y[:, :, others], plain.y[:, :, others])
    assert torch.equal(run.y[:, before], plain.y[:, before])
    assert torch.equal(run.final[:, others], plain.final[:, others])
    want = loop(changed(given._replace(sharing=None), torch.Tensor.double), initial.double())
    near(run.y, want[2], 40 * (length + 8))
    near(run.final, want[0][:, -1], 40 * (length + 8))
    near(op.after(given, initial), want[0][:, -1], 40 * (length + 8))
    patterns = op.hidden_attention(given), op.hidden_attention(said)
    assert torch.equal(*(pattern[:, others] for pattern in patterns))
    near(torch.einsum("bhpk,bkhu->bphu", patterns[0], terms.v), loop(
        changed(given._replace(sharing=None), torch.Tensor.double), torch.zeros_like(initial).double()
    )[2], 40 * (length + 8))  # fmt: skip


def test_who_hears_the_gradients_of_each_head_changes_no_bit():
    op, terms, said, initial = shared(80, torch.float32)
    nowhere = torch.zeros(2, 80, HEADS, dtype=torch.bool)
    k = terms.k.clone().requires_grad_()
    heard = op.run(terms._replace(k=k, sharing=Sharing(ALIKE, Apart(terms.k, terms.q, nowhere))), initial)
    assert torch.equal(heard.y.detach(), op.run(said, initial).y)
    weight = torch.randn_like(heard.y)
    (got,) = torch.autograd.grad((heard.y * weight).sum(), k)
    truth = terms.k.double().requires_grad_()
    _, _, y = loop(changed(terms, torch.Tensor.double)._replace(k=truth), initial.double())
    (want,) = torch.autograd.grad((y * weight.double()).sum(), truth)
    near(got, want, 20000)


def test_in_a_model_an_edited_address_of_one_head_leaves_the_others_and_the_past():
    lens, ids, name = HybridLens(make("mamba2")), tokens(2, 40), "blocks.0.ssm.hook_k"
    seen = {}

    def edit(k, hook):
        k[:, 20:, 1] *= -2.0
        return k

    with torch.no_grad():
        _, plain = lens.run_with_cache(ids, names_filter=["blocks.0.ssm.hook_y", name])
        keep = ("blocks.0.ssm.hook_y", lambda y, hook: seen.__setitem__("y", y.clone()))
        lens.run_with_hooks(ids, [(name, edit), keep])
    y = plain["blocks.0.ssm.hook_y"]
    assert torch.equal(seen["y"][:, :, [0, 2, 3]], y[:, :, [0, 2, 3]])
    assert torch.equal(seen["y"][:, :20], y[:, :20])
    assert not torch.equal(seen["y"][:, 20:, 1], y[:, 20:, 1])
    plain[name][:, 0] = 0.0  # what was read has memory of its own
