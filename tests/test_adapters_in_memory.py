"""Models with adapters of PEFT that are in memory already, against PEFT's own model."""

import sys

import peft
import peft.helpers
import pytest
import torch
from adapted_models import IDS, adapted, refused
from bounds import FORWARD, close
from models import make

import hybridlens as hl
from hybridlens.errors import InputError


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("saved", ["lm_head", "embed_tokens"])
def test_a_module_that_was_saved_whole_is_the_one_whose_weights_are_shown(saved):
    """W_U was the base's, where the base's is tied to its embedding; otherwise there was none."""
    model = adapted(make("gemma3"), target_modules=["q_proj"], modules_to_save=[saved])
    module = model.get_base_model().lm_head if saved == "lm_head" else model.get_base_model().model.embed_tokens
    module.weight.add_(torch.randn_like(module.weight))
    lens = hl.HybridLens(model)
    close(lens(IDS), model(IDS).logits, FORWARD)
    own, other = (lens.W_U.T, lens.W_E) if saved == "lm_head" else (lens.W_E, lens.W_U.T)
    scale = lens.W_E.norm() / model.get_base_model().model.embed_tokens.weight.norm()
    close(own * (1 / scale if saved == "embed_tokens" else 1), module.weight, FORWARD)
    assert not torch.allclose(other, own)
    with model.disable_adapter():
        close(lens.W_U.T * scale, lens.W_E, FORWARD)


def test_an_adapter_on_an_unembedding_that_was_the_embedding_is_not_left_out():
    """W_U was the base's."""
    lens = hl.HybridLens(adapted(make("gemma3"), target_modules=["lm_head"]))
    refused(lambda: lens.W_U, "lm_head.weight has an adapter around it", "merge it")


def test_a_state_belongs_to_the_strength_of_adapters():
    """No weight shows it, and the state was gone on from."""
    model = adapted()
    lens = hl.HybridLens(model)
    state = lens.prefill(IDS).state
    with peft.helpers.rescale_adapter_scale(model, 0.5), pytest.raises(InputError, match="other weights"):
        lens.extend(state, IDS[:, :1])
    lens.extend(state, IDS[:, :1])


def test_a_peft_model_is_opened_as_it_is():
    model = adapted()
    lens = hl.HybridLens(model)
    close(lens(IDS), model(IDS).logits, FORWARD)
    assert lens.hf_model is model.get_base_model()


@pytest.mark.parametrize("family", ["jamba", "minimax", "qwen3_next", "granitemoehybrid"])
def test_an_adapter_on_a_router_is_followed(family):
    """Its weight was read past the adapter: the logits were as far from PEFT's as from zero, without a word."""
    name = "router.weight" if family in ("jamba", "granitemoehybrid") else "mlp.gate.weight"
    model = make(family)
    base, older = model(IDS).logits, hl.HybridLens(model)
    model = adapted(model, target_modules=[], target_parameters=[name])
    logits = model(IDS).logits
    assert float((logits - base).abs().max()) > 0.3 * float(base.abs().max())
    close(hl.HybridLens(model)(IDS), logits, 16 * FORWARD)
    refused(lambda: older(IDS), "an adapter (ParamWrapper) stands around", "open the model anew", error=InputError)
    with model.disable_adapter():
        close(hl.HybridLens(model)(IDS), base, FORWARD)


def test_a_state_belongs_to_the_adapters_that_are_on():
    """Switching one off changes no weight, and the state was gone on from."""
    model = adapted()
    lens = hl.HybridLens(model)
    state = lens.prefill(IDS).state
    with model.disable_adapter(), pytest.raises(InputError, match="other weights"):
        lens.extend(state, IDS[:, :1])
    lens.extend(state, IDS[:, :1])


def test_prompts_and_replicated_layers_are_refused():
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(make("llama"), config)
    refused(lambda: hl.HybridLens(model), "PROMPT_TUNING", "in part")
    refused(lambda: hl.HybridLens(adapted(alora_invocation_tokens=[3])), "alora_invocation_tokens", "in part")


def test_peft_is_not_asked_of_those_without_it(monkeypatch):
    """Neither imported nor needed for a model without adapters."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "peft"]:
        monkeypatch.delitem(sys.modules, name)
    hl.HybridLens(make("llama"))(IDS)
    assert "peft" not in sys.modules
