"""A lens on the model inside a TransformerLens bridge, against the Hugging Face model that the bridge never saw."""

import copy

import pytest
import torch
from bounds import FORWARD, close
from models import make, tokens
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

from hybridlens import HybridLens
from hybridlens.errors import CheckpointError


def bridged(model):
    """TransformerLens' bridge around a copy of a model, which it changes."""
    copied = copy.deepcopy(model)
    return build_bridge_from_module(copied, type(model).__name__, hf_config=copied.config).eval()


@pytest.mark.parametrize("family", ["jamba", "recurrentgemma", "mamba2", "granitemoehybrid"])
def test_the_model_inside(family):
    """Logits, caches and states by its own classes, equal to a lens on the model that the bridge never saw."""
    model, ids = make(family), tokens(2, 9)
    bridge = bridged(model)
    lens, plain = HybridLens.from_bridge(bridge), HybridLens(model)
    assert type(lens.hf_model) is type(model)
    assert [type(part) for part in lens.hf_model.modules()] == [type(part) for part in model.modules()]
    assert list(lens.hf_model.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        close(lens.hf_model(ids, use_cache=False).logits, model(ids, use_cache=False).logits, FORWARD)
        (ours, cache), (theirs, expected) = lens.run_with_cache(ids), plain.run_with_cache(ids)
    close(ours, theirs, FORWARD)
    assert list(cache) == list(expected)
    assert torch.equal(lens.generate(ids, 3).tokens, plain.generate(ids, 3).tokens)


def test_weights_are_shared_and_the_bridge_goes_on():
    """A weight changed in the bridge changes the lens's logits; the bridge computes what it did before."""
    model, ids = make("jamba"), tokens(1, 6)
    bridge = bridged(model)
    with torch.no_grad():
        before = bridge(ids)
        lens = HybridLens.from_bridge(bridge)
        first = lens(ids)
        assert torch.equal(bridge(ids), before)
        theirs = {id(weight) for weight in bridge.original_model.parameters()}
        assert {id(weight) for weight in lens.hf_model.parameters()} <= theirs
        for weight in bridge.original_model.parameters():
            weight.mul_(1.5)
        assert float((lens(ids) - first).abs().max()) > 0.01
        close(lens(ids), bridge(ids), FORWARD)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda bridge: make("jamba"), "a JambaForCausalLM was given, expected a TransformerBridge"),
        (lambda bridge: setattr(bridge, "compatibility_mode", True), "weights were processed"),
        (lambda bridge: setattr(bridge, "_weights_processed", True), "weights were processed"),
        (lambda bridge: bridge.unembed.b_U.data.add_(1.0) is None, r"was given a bias \(b_U\)"),
        (lambda bridge: bridge.original_model.model.__dict__.update(forward=lambda x: x), "in its own way"),
    ],
)
def test_what_is_no_model_any_more_is_refused(spoil, said):
    bridge = bridged(make("jamba"))
    given = spoil(bridge) or bridge
    with pytest.raises(CheckpointError, match=said) as caught:
        HybridLens.from_bridge(given)
    assert "\n" not in str(caught.value)
