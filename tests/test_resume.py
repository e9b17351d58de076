"""Going on in the middle of a forward pass: the same bits as the whole pass, hooks and memories included."""

import pytest
import torch
from models import FAMILIES, make, tokens

import hybridlens as hl
from hybridlens.errors import InputError


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_goes_on_to_the_same_bits(family):
    """From any layer, padded rows too: logits, states and what later points hold equal those of the whole pass."""
    lens = hl.HybridLens(make(family, 4))
    ids, lengths = tokens(3, 12, seed=2), torch.tensor([12, 9, 4])
    with torch.no_grad():
        logits, cache = lens.run_with_cache(ids, lengths=lengths)
        whole = lens.network(ids, lengths)
        real = torch.arange(12) < lengths[:, None]  # what stands in padding is no number outside the network
        assert torch.equal(logits[real], whole.logits[real])
        for layer in range(lens.cfg.n_layers + 1):
            name = f"blocks.{layer}.hook_resid_pre"
            resid = cache[name] if layer < lens.cfg.n_layers else cache[f"blocks.{layer - 1}.hook_resid_post"]
            out = lens.network.resume(layer, resid, whole.state, None, lengths)
            assert torch.equal(out.logits, whole.logits)
            for ours, theirs in zip(out.state.tensors().values(), whole.state.tensors().values(), strict=True):
                assert torch.equal(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_of_layers_before_are_silent(family):
    """Only the points of the layers that run fire; an edit there acts as in the whole pass."""
    lens = hl.HybridLens(make(family, 4))
    ids = tokens(1, 8, seed=2)
    with torch.no_grad():
        whole = lens.network(ids)
        _, cache = lens.run_with_cache(ids, "blocks.2.hook_resid_pre")
        fired = []
        edit = ("blocks.3.hook_mlp_out", lambda x, hook: x * 0)
        with lens.hooks([(lambda name: True, lambda x, hook: fired.append(hook.name)), edit]):
            ours = lens.network.resume(2, cache["blocks.2.hook_resid_pre"], whole.state)
        assert torch.equal(ours.logits, lens.run_with_hooks(ids, [edit]))
    assert fired[0] == "blocks.2.hook_resid_pre"
    assert not any(name.startswith(("blocks.0", "blocks.1", "hook_embed")) for name in fired)


@pytest.mark.parametrize("family", FAMILIES)
def test_behind_a_state(family):
    """The second part of a prompt, longer than the window, from any layer: the bits of one pass over that part."""
    lens = hl.HybridLens(make(family, 4))
    ids = tokens(2, 12, seed=2)
    with torch.no_grad():
        before = lens.prefill(ids[:, :5]).state
        kept = {}
        keep = [(lambda name: name.endswith("hook_resid_pre"), lambda x, hook: kept.update({hook.name: x}))]
        with lens.hooks(keep):
            whole = lens.network(ids[:, 5:], None, before)
        for layer in range(lens.cfg.n_layers):
            out = lens.network.resume(layer, kept[f"blocks.{layer}.hook_resid_pre"], whole.state, before)
            assert torch.equal(out.logits, whole.logits)
            for ours, theirs in zip(out.state.tensors().values(), whole.state.tensors().values(), strict=True):
                assert torch.equal(ours, theirs)


def test_bad_memories_are_refused():
    """Rows and layers that do not fit: one line."""
    lens = hl.HybridLens(make("jamba", 4))
    state = lens.network(tokens(2, 5)).state
    resid = torch.zeros(3, 5, lens.cfg.d_model)
    with pytest.raises(InputError, match="the state holds 2 rows, but 3 rows of tokens were given"):
        lens.network.resume(2, resid, state)
    with pytest.raises(InputError, match=r"layer 5 given, expected 0\.\.4"):
        lens.network.resume(5, resid[:2], state)
