"""Latent attention: what is held of a token, edits that go on through it, and what is done to a state that holds it."""

import pytest
import torch
from bounds import FORWARD, GRADIENT, apart, close, quotient
from models import make, make_smooth, tokens

from analyses.kv_cache import mean, means, swap, zero
from analyses.patching.edges import edge_attribution
from analyses.patching.writers import Reader, Writer
from hybridlens import Edit, HybridLens, HybridLensError, HybridState
from hybridlens.memory import Latents

LAYER = 1
NAMES = [f"blocks.{LAYER}.attn.hook_{point}" for point in ("kv_latent", "k_shared", "k", "v")]


STENCIL = {-2.0: 1 / 12, -1.0: -8 / 12, 1.0: 8 / 12, 2.0: -1 / 12}


@pytest.fixture(scope="module")
def lens() -> HybridLens:
    return HybridLens(make("kimi_linear", 4))


def at_three(x, hook):
    """Another value at the text's fourth token, where the pass holds it."""
    new = x.clone()
    if x.shape[1] > 3:
        new[:, 3] = torch.sin(torch.arange(x[:, 3].numel(), dtype=x.dtype)).view(x[:, 3].shape)
    return new


def test_a_latent_and_a_shared_key_are_all_that_is_held(lens):
    """14 + 3 numbers a token, where keys and values of four heads would be 64."""
    held = lens.prefill(tokens(2, 7)).state.layers[LAYER]["attn"]
    assert isinstance(held, Latents)
    assert {name: tuple(t.shape) for name, t in held.tensors().items()} == {"k": (2, 1, 7, 14), "v": (2, 1, 7, 3)}
    assert lens.cfg.layers[LAYER].attn.memory(4).token == 4 * 17


@pytest.mark.parametrize("name", NAMES)
def test_an_edit_while_reading_goes_on_in_later_steps(lens, name, tmp_path):
    """Read in one pass, in two, and then token by token, joined, split, saved and loaded: the same logits."""
    ids = tokens(2, 9)
    with torch.no_grad():
        whole = lens.prefill(ids, [Edit(name, at_three)]).logits
        assert apart(whole[:, 3:], lens(ids)[:, 3:])
        state = lens.prefill(ids[:, :5], [Edit(name, at_three)]).state
        state, two = lens.extend(state, ids[:, 5:7])
        state.save(tmp_path / "state")
        state = HybridState.cat(HybridState.load(tmp_path / "state").split()).select([1, 0])
        _, first = lens.extend(state, ids[[1, 0], 7:8])
        close(two, whole[:, 5:7], FORWARD, what=name)
        close(first[[1, 0]], whole[:, 7:8], FORWARD, what=name)


def test_means_of_other_texts_are_put_in(lens):
    """Latents and shared keys are not equally wide, for which every mean was refused."""
    with torch.no_grad():
        state, other = lens.prefill(tokens(1, 6)).state, lens.prefill(tokens(2, 7, seed=1)).state
    given, found = (one.layers[LAYER]["attn"] for one in (other, mean(state, values=means(other))))
    for name, value in found.tensors().items():
        close(value, given.tensors()[name].mean(dim=(0, 2), keepdim=True).expand_as(value), 14, what=name)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_come_back_from_later_steps(name):
    """What a later token's logit says of an earlier one's latent, key or value is the slope of an edit there.

    Logits of the edited tokens themselves are not asked, so that all of the gradient comes back through what is held.
    """
    lens, ids, kept, h = HybridLens(make_smooth("kimi_linear", 4)), tokens(1, 8), [], 0.01

    def later(hook):
        with lens.hooks([(name, hook)]):
            state = lens.prefill(ids[:, :6]).state
            return lens.extend(state, ids[:, 6:]).logits[0, -1]

    logits = later(lambda x, hook: kept.append(x))
    (found,) = torch.autograd.grad(logits[5], kept[0])
    assert bool(found.flatten(2).any(-1).all())  # at every position
    way = torch.sin(torch.arange(found.numel()).float()).view(found.shape)

    def moved(by):
        with torch.no_grad():
            return float(later(lambda x, hook: x + by * way if x.shape == way.shape else None)[5])

    slope = sum(weight * moved(step * h) for step, weight in STENCIL.items()) / h
    extra = quotient(float(logits.detach().abs().max()), h)
    assert abs(slope) > 5 * extra
    close(float((found * way).sum()), slope, GRADIENT, extra=extra, dtype=torch.float32)


def test_keys_that_are_followed_are_not_reached_through_latents(lens):
    """Read by a hook with gradients on, they are what later steps read; without gradients, latents are held alone."""
    seen = [(NAMES[2], lambda x, hook: None)]
    with lens.hooks(seen):
        followed = lens.prefill(tokens(1, 6)).state
        with torch.no_grad():
            plain = lens.prefill(tokens(1, 6)).state
    assert set(followed.layers[LAYER]["attn"].tensors()) == {"k", "v", "unfolded_k", "unfolded_v"}
    assert set(plain.layers[LAYER]["attn"].tensors()) == {"k", "v"}
    with pytest.raises(HybridLensError, match=r"layer 1 holds .*, or has read with gradients on, which") as caught:
        zero(followed, positions=[2])
    assert "\n" not in str(caught.value)


def test_states_of_both_kinds_are_not_joined(lens):
    edited = lens.prefill(tokens(1, 5), [Edit(NAMES[2], at_three)]).state
    with pytest.raises(HybridLensError, match="latent attention that a hook has changed cannot be joined") as caught:
        HybridState.cat([edited, lens.prefill(tokens(1, 5)).state])
    assert "\n" not in str(caught.value)


def test_keys_alone_cannot_be_changed_in_what_is_held(lens):
    """A latent makes both; swapped whole, the other text's latents are what the model goes on from."""
    a, b = (lens.prefill(tokens(1, 6, seed)).state for seed in (1, 2))
    for parts in ("keys", "values"):
        with pytest.raises(HybridLensError, match=f"layer 1 holds latents.*{parts} alone given, expected 'both'"):
            swap(a, b, parts, layers=[LAYER])
    mixed = swap(a, b, layers=[LAYER])
    held, given = mixed.layers[LAYER]["attn"], b.layers[LAYER]["attn"]
    assert torch.equal(held.k, given.k)
    assert torch.equal(held.v, given.v)
    assert isinstance(held, Latents)
    assert not zero(a, positions=[2]).layers[LAYER]["attn"].v[:, :, 2].any()
    edited = lens.prefill(tokens(1, 6), [Edit(NAMES[3], at_three)]).state
    with pytest.raises(HybridLensError, match="layer 1 holds keys and values that a hook has changed"):
        zero(edited, positions=[2])


def test_edges_into_keys_and_values_go_through_the_norm_of_the_latents(lens):
    """All writers' scores of a reader are its gradient by the stream times the stream's change, made here by autograd.

    Only what is written before the layer can reach it, so that the sum over all writers is the whole change.
    """
    clean, corrupt = tokens(1, 6, 3), tokens(1, 6, 5)
    writers = [Writer("embed"), *(Writer("ssm_head", 0, head) for head in range(4)), Writer("mlp", 0)]
    readers = [Reader("k", LAYER, 2), Reader("v", LAYER, 1), Reader("q", LAYER, 3)]

    def metric(logits):
        return logits[:, -1, 7] - logits[:, -1, 11]

    found = edge_attribution(lens, clean, corrupt, metric, writers=writers, readers=readers)
    block = lens.blocks[LAYER]
    held = {}
    points = [f"blocks.{LAYER}.hook_resid_pre", *(f"blocks.{LAYER}.attn.hook_{role}" for role in "kvq")]
    with lens.hooks([(points, lambda x, hook: held.__setitem__(hook.name, x.detach()))]):
        lens(clean)
        other = dict(held)
        lens(corrupt)
    grads = {}
    with lens.hooks(bwd_hooks=[(points[1:], lambda g, hook: grads.__setitem__(hook.name, g.clone()))]):
        metric(lens(corrupt)).sum().backward()
    x = held[points[0]].requires_grad_()
    moved = other[points[0]] - x.detach()
    for i, reader in enumerate(readers):
        made = block.attn.head_reads[reader.kind].read(block.ln1(x))[:, :, reader.head]
        grad = grads[f"blocks.{LAYER}.attn.hook_{reader.kind}"][:, :, reader.head]
        (by_stream,) = torch.autograd.grad(made, x, grad, retain_graph=True)
        close(float(found.scores[:, i].sum()), float((by_stream * moved).sum()), FORWARD, scale=10, dtype=torch.float32)
