"""What MiniMax alone has: streams that are no sums, states without a convolution, and a library's cache that miscounts.

That every point, edit and gradient is right, the contract says; options and refusals are in `test_options`.
"""

import pytest
import torch
from bounds import FORWARD, apart, close
from models import make, rounding, tokens
from transformers.models.minimax.modeling_minimax import MiniMaxCache

import hybridlens as hl
from analyses import kv_cache
from analyses.circuits import circuits
from analyses.circuits.paths import measured_paths
from analyses.kv_cache.following import CONVOLUTION, EVERYTHING, INTACT, KEYS_AND_VALUES, named, whole
from analyses.patching.direct import direct_logit_attribution
from analyses.patching.edges import edge_attribution
from analyses.patching.experiment import is_sum
from analyses.patching.gradients import attribution_patch
from analyses.patching.metrics import LogitDifference
from analyses.patching.paths import path_patch
from analyses.patching.targets import Target
from analyses.patching.writers import Reader, Writer
from hybridlens.errors import InputError, UnknownNameError
from hybridlens.weights import Weights

METRIC = LogitDifference(3, 7)


@pytest.fixture(scope="module")
def model():
    return make("minimax", 3)


@pytest.fixture(scope="module")
def lens(model):
    return hl.HybridLens(model)


@torch.no_grad()
def run(model, ids, cache, **given):
    return model(ids, past_key_values=cache, use_cache=True, **given).logits


def test_what_transformers_is_inexact_in(model, lens):
    """Layer 0 counts its cache's tokens, and holds none: positions begin again, and chunks are masked as texts are.

    Should the library be mended this test fails, and the docs are to say so. Ours is the untouched run over the whole
    text either way.
    """
    ids, at = tokens(2, 14), torch.arange(14)[None]
    with torch.no_grad():
        exact = model(ids, use_cache=False).logits
    extra = 8 * rounding(model, ids)
    cache = MiniMaxCache()
    close(run(model, ids[:, :12], cache), exact[:, :12], FORWARD, extra=extra)
    close(run(model, ids[:, 12:13], cache, position_ids=at[:, 12:13]), exact[:, 12:13], FORWARD, extra=extra)
    assert apart(run(model, ids[:, 13:], cache), exact[:, 13:])
    cache = MiniMaxCache()
    run(model, ids[:, :9], cache)
    assert apart(run(model, ids[:, 9:], cache, position_ids=at[:, 9:]), exact[:, 9:])
    with torch.no_grad():
        state = lens.prefill(ids[:, :9]).state
        close(lens.extend(state, ids[:, 9:]).logits, exact[:, 9:], FORWARD, extra=extra)


def test_the_stream_is_what_is_there(model, lens):
    """Each point of the stream is a multiple of what the norm before it gave and what was written, and nothing else."""
    config, (_, cache) = model.config, lens.run_with_cache(tokens(2, 9))
    for layer, kind in enumerate(("linear", "full", "linear")):
        hf, block = model.model.layers[layer], f"blocks.{layer}"
        for norm, ln, written, end, alpha in (
            (hf.input_layernorm, "ln1", "hook_mixer_out", "hook_resid_mid", f"{kind}_attn_alpha_factor"),
            (hf.post_attention_layernorm, "ln2", "hook_mlp_out", "hook_resid_post", "mlp_alpha_factor"),
        ):
            given = norm.weight * cache[f"{block}.{ln}.hook_normalized"]
            close(given * getattr(config, alpha) + cache[f"{block}.{written}"], cache[f"{block}.{end}"])


def test_what_needs_a_sum_is_refused_before_anything_runs(lens):
    """One line each, which says what is asked for, where it is not, and what can be done."""
    ids, other = tokens(1, 9), tokens(1, 9, seed=1)
    writer, reader = Writer("head", 1, 0), Reader("logits")
    calls = {
        "direct attribution": lambda: direct_logit_attribution(lens, ids, [3]),
        "following edges": lambda: edge_attribution(lens, ids, other, METRIC),
        "following paths": lambda: path_patch(lens, ids, other, METRIC, [writer], [reader]),
        "circuits of heads": lambda: circuits(lens, ids, sample_size=20),
    }
    for what, call in calls.items():
        with pytest.raises(InputError, match=f"{what} needs a residual stream that is a sum of writes, but") as caught:
            call()
        assert "every layer of this minimax model" in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="the recurrence of layer 0, 2 has none"):
        measured_paths(lens, Weights.of_model(lens), ids)


def test_a_patch_experiment_leaves_out_what_needs_a_sum_and_says_so(lens):
    with pytest.warns(UserWarning, match="edge and direct attribution are left out: edge and direct attribution needs"):
        assert not is_sum(lens.cfg)
    assert is_sum(hl.HybridLens(make("jamba")).cfg)


def test_a_fixed_decay_has_a_gradient_and_can_be_patched(lens):
    """No weight makes it, and still a backward hook hears of it; patching it with itself is estimated to change 0."""
    name, heard = "blocks.0.ssm.hook_decay", []
    with lens.hooks(bwd_hooks=[(name, lambda grad, hook: heard.append(grad.clone()))]):
        lens(tokens(2, 7)).square().sum().backward()
    lens.hf_model.zero_grad()
    (grad,) = heard
    assert grad.shape == (2, 7, 4)
    assert bool((grad[:, 1:] != 0).all())
    assert not bool(grad[:, 0].any())  # nothing stands in a state before the first token
    ids, other = tokens(1, 7), tokens(1, 7, seed=1)
    found = attribution_patch(lens, ids, other, METRIC, targets=[Target(name, {"p": 3})])
    assert float((found.raw - found.corrupt).abs().max()) == 0.0


def test_a_state_without_a_convolution(lens, tmp_path):
    """Only the state is held, and goes on after a visit to a file; what is about convolutions is refused, or absent."""
    ids = tokens(2, 9)
    with torch.no_grad():
        state = lens.prefill(ids[:, :6]).state
        assert set(state.layers[0]["ssm"].tensors()) == {"recurrent"}
        state.save(tmp_path / "state.safetensors")
        back = hl.HybridState.load(tmp_path / "state.safetensors")
        assert torch.equal(lens.extend(back, ids[:, 6:]).logits, lens.extend(state, ids[:, 6:]).logits)
        empty = lens.network.empty_state(2)
        close(lens.extend(empty, ids).logits, lens(ids), FORWARD)
        wider = hl.HybridLens(make("minimax", num_attention_heads=8))
        with pytest.raises(InputError, match="the state is of a model minimax:3x32:2x6:24x6x6x0:None:sas, but this"):
            wider.extend(state, ids[:, 6:])
    reset = kv_cache.reset(state)
    assert not any(bool(reset.layers[layer]["ssm"].recurrent.any()) for layer in (0, 2))
    with pytest.raises(InputError, match="layer 0 holds no convolution's inputs, only a recurrent state; give part"):
        kv_cache.zero_recurrent(state, "conv")
    with pytest.raises(InputError, match="channels given, but layer 0 has none: no convolution, and a matrix"):
        kv_cache.zero_recurrent(state, channels=1)
    with pytest.raises(InputError, match="addresses given, but a convolution has none; give part 'recurrent'"):
        kv_cache.zero_recurrent(state, "conv", addresses=1)
    head, alone = (kv_cache.zero_recurrent(state, part, heads=1, layers=0) for part in ("both", "recurrent"))
    assert torch.equal(head.layers[0]["ssm"].recurrent, alone.layers[0]["ssm"].recurrent)
    assert not bool(head.layers[0]["ssm"].recurrent[:, 1].any())
    with pytest.raises(UnknownNameError, match=r"blocks.0.ssm.hook_conv' does not exist"):
        lens.run_with_cache(ids, "blocks.0.ssm.hook_conv")


def test_a_crossover_says_nothing_of_convolutions(lens):
    """Of two kinds of memory there are four combinations; reports find them under names without the third."""
    found = kv_cache.mixes(lens.cfg)
    names = [mix.name for mix in found if mix.group == "whole model"]
    assert names[:4] == ["kv A, recurrent A", "kv A, recurrent B", "kv B, recurrent A", "kv B, recurrent B"]
    assert not any("conv" in mix.name or any(memory == "conv" for _, memory in mix.from_b) for mix in found)
    made = kv_cache.Crossover("m", tuple(found), (), 1)
    assert named(made, INTACT) == "kv A, recurrent A"
    assert named(made, KEYS_AND_VALUES.all_but) == "kv A, recurrent B"
    assert [memory.words for memory in whole(made)] == ["everything", "keys and values", "recurrent states"]
    other = kv_cache.Crossover("m", tuple(kv_cache.mixes(hl.HybridLens(make("jamba")).cfg)), (), 1)
    assert named(other, EVERYTHING.only) == EVERYTHING.only
    assert CONVOLUTION in whole(other)
