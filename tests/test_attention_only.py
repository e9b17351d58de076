"""Llama, Qwen3, Gemma 2 and Gemma 3: what their configurations may say, and what the models do for it."""

import json

import pytest
import torch
from bounds import FORWARD, LAYER, close
from models import make, tokens
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import hybridlens as hl
from analyses.kv_cache.recurrent import zero_recurrent
from hybridlens.errors import CheckpointError, HybridLensError
from hybridlens.families import family_for
from hybridlens.mixers import attention
from hybridlens.weights import Weights

FAMILY = pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3"])
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


@FAMILY
def test_scores_follow_from_weights_and_distance(family):
    """The angles are those of the model, stretched or not, of each kind of layer: scores are those of the run."""
    lens = hl.HybridLens(make(family, 3))
    weights = Weights.of_model(lens)
    _, cache = lens.run_with_cache(tokens(2, 9, seed=1), None)
    cap = getattr(lens.hf_model.config, "attn_logit_softcapping", None)
    for layer in lens.cfg.attention_layers:
        view, name = weights.attention(layer), f"blocks.{layer}.attn"
        x = cache[f"blocks.{layer}.ln1.hook_normalized"]
        q, k, v = (
            torch.einsum("bpd,hde->bphe", x, matrix) + (0 if bias is None else bias)
            for matrix, bias in ((view.W_Q, view.b_Q), (view.W_K, view.b_K), (view.W_V, view.b_V))
        )
        for made, point in ((q, "q"), (k, "k"), (v, "v")):
            close(made, cache[f"{name}.hook_{point}"], LAYER)
        q, k = view.normed(q, view.q_norm), view.normed(k, view.k_norm)
        for query, key in ((8, 8), (8, 7), (8, 4), (5, 2)):
            turned = view.rotary.turned(q[:, query], query - key).unflatten(1, (-1, view.n_shared))
            scores = (turned * k[:, key, :, None]).sum(-1).flatten(1) * view.scale
            scores = scores if cap is None else cap * torch.tanh(scores / cap)
            expected = cache[f"{name}.hook_attn_scores"][:, :, query, key]
            assert view.window is None or query - key < view.window
            close(scores, expected, LAYER)


@pytest.mark.parametrize("rope", [{"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}, LLAMA3])
def test_stretched_frequencies_are_those_of_transformers(rope):
    """In the module that runs and in the numbers that circuits take, which a model without weights has too."""
    model = make("llama", 3, head_dim=64, rope_parameters=dict(rope))
    theirs, _ = ROPE_INIT_FUNCTIONS[rope["rope_type"]](model.config)
    ours = Weights.of_model(hl.HybridLens(model)).rotary.frequencies
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours.float(), theirs, rtol=1e-6, atol=0)
    plain = make("llama", 3, head_dim=64, rope_parameters={"rope_type": "default", "rope_theta": rope["rope_theta"]})
    unstretched = Weights.of_model(hl.HybridLens(plain)).rotary.frequencies
    assert (ours < 0.9 * unstretched).any()
    assert ((ours == unstretched).any()) == (rope["rope_type"] == "llama3")


@FAMILY
def test_weights_from_files_turn_and_scale_as_the_model_does(family, tmp_path):
    """Rotary frequencies, windows and scales of scores need no weight: a folder's are those of the model."""
    model = make(family, 3)
    model.save_pretrained(tmp_path)
    read, expected = hl.load_weights(tmp_path), Weights.of_model(hl.HybridLens(model))
    for layer in expected.cfg.attention_layers:
        ours, theirs = read.attention(layer), expected.attention(layer)
        for name in ("rotary", "window", "scale", "qk_eps"):
            assert getattr(ours, name) == getattr(theirs, name), name
    assert read.embed_scale == expected.embed_scale


def test_soft_capped_scores_in_blocks(monkeypatch):
    """A long pass goes through the formula in blocks of queries; the sum is the same."""
    lens, ids = hl.HybridLens(make("gemma2", 3)), tokens(2, 40)
    with torch.no_grad():
        whole = lens(ids)
        monkeypatch.setattr(attention, "FUSED_BLOCK", 8)
        close(lens(ids), whole, FORWARD)
        state = lens.prefill(ids[:, :17]).state
        close(lens.extend(state, ids[:, 17:]).logits, whole[:, 17:], FORWARD)


def test_transformers_takes_the_capped_formula_by_itself():
    """Its fused attention has no cap: it is not chosen unasked, and asked for it is refused."""
    model = make("gemma2", 3)
    assert model.config._attn_implementation == "eager"
    with pytest.raises(ValueError, match="scaled_dot_product_attention"):
        model.set_attn_implementation("sdpa")


@FAMILY
def test_there_is_no_recurrence(family):
    """What is about recurrent states says in one line that the model has none."""
    lens = hl.HybridLens(make(family, 3))
    assert lens.cfg.ssm_layers == ()
    assert set(lens.cfg.layer_types) == {"attention"}
    with torch.no_grad():
        state = lens.prefill(tokens(1, 6)).state
    refused = (
        (lambda: zero_recurrent(state), "the state has no recurrent layer, so there is nothing to change"),
        (lambda: lens.cfg.recurrence(0), "layer 0 is no recurrent layer; there is none"),
        (lambda: Weights.of_model(lens).recurrent(1), "layer 1 is no recurrent layer; there is none"),
        (
            lambda: lens.run_with_cache(tokens(1, 4), "blocks.0.ssm.hook_state"),
            r"'blocks.0.ssm.hook_state' does not ex",
        ),
    )
    for call, line in refused:
        with pytest.raises(HybridLensError, match=line) as caught:
            call()
        assert "\n" not in str(caught.value)


GEMMA_ROPE = {"full_attention": {"rope_type": "yarn", "factor": 2.0}, "sliding_attention": {"rope_type": "default"}}
REFUSED = [
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
     "rope_type is 'dynamic', expected 'default' or 'linear' or 'llama3'"),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
     r"partial_rotary_factor is 0\.5, expected 1\.0: whole heads turn"),
    ("llama", {"rope_parameters": LLAMA3 | {"high_freq_factor": 1.0}},
     r"high_freq_factor is 1\.0, expected above low_freq_factor = 1\.0"),
    ("qwen3", {"layer_types": ["full_attention", "chunked_attention", "full_attention"]},
     "layer_types is 'chunked_attention', expected 'full_attention' or 'sliding_attention'"),
    ("qwen3", {"use_sliding_window": False, "layer_types": ["sliding_attention"] * 3},
     "sliding_window is None, expected a number"),
    ("gemma2", {"attention_bias": True}, "attention_bias is True, expected False"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True, expected False"),
    ("gemma3", {"attn_logit_softcapping": 30.0}, r"attn_logit_softcapping is 30\.0, expected null"),
    ("gemma3", {"rope_parameters": GEMMA_ROPE}, "rope_type is 'yarn', expected 'default'"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "changes", "line"), REFUSED)
def test_what_is_not_built_is_refused_by_field_and_value(family, changes, line):
    config = make(family, 3).config
    given = type(config)(**{**config.to_dict(), **changes})
    with pytest.raises(CheckpointError, match=line) as caught:
        family_for(given, "the model").configure(given)
    assert "\n" not in str(caught.value)


@FAMILY
def test_a_field_that_nobody_knows_is_refused(family, tmp_path):
    """An unknown one by its name; those of older published files mean what transformers makes of them."""
    model = make(family, 3)
    fields = json.loads(model.config.to_json_string())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"attention_sinks": 4}))
    config = AutoConfig.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="field attention_sinks = 4, expected no such field"):
        family_for(config, "the model").configure(config)
