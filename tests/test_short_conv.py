"""The gated short convolution, which holds no state: its weights, hidden attention, memory, surgery, refusals."""

import copy

import pytest
import torch
from bounds import FEW, FORWARD, LAYER, close
from models import make, tokens

import hybridlens as hl
from analyses import kv_cache
from analyses.circuits.paths import convolved, measured_paths, paths_at_rest
from analyses.kv_cache.mixes import Mix, mixes
from hybridlens.errors import CheckpointError, InputError, UnknownNameError
from hybridlens.families import family_for
from hybridlens.recurrences import convolution_attention
from hybridlens.weights import Weights

BIASED = pytest.mark.parametrize("conv_bias", [False, True])


def opened(conv_bias=False, **changes):
    return hl.HybridLens(make("lfm2", 3, conv_bias=conv_bias, **changes))


def seen(lens, layer, ids):
    with torch.no_grad():
        cache = lens.run_with_cache(ids)[1]
    start = f"blocks.{layer}."
    return {name.removeprefix(start): value for name, value in cache.items() if name.startswith(start)}


@BIASED
def test_weights_make_what_the_hook_points_hold(conv_bias):
    """Value, input gate as gain, convolution, output gate and output, one map after the other."""
    lens = opened(conv_bias)
    weights = Weights.of_model(lens)
    for layer in lens.cfg.ssm_layers:
        parts, got = weights.recurrent(layer).parts, seen(lens, layer, tokens(2, 9))
        x = got["ln1.hook_normalized"]

        def mapped(W, b, x=x):
            return x @ W if b is None else x @ W + b

        v = mapped(parts.W_in, parts.b_in)
        close(v, got[f"ssm.{parts.source}"], LAYER)
        gain = parts.gain({point: got[f"ssm.{point}"] for point in parts.gain_points})
        y = convolved(gain * v, parts.taps)
        y = parts.activation(y if parts.b_conv is None else y + parts.b_conv)
        close(y, got["ssm.hook_conv"], LAYER)
        gate = mapped(parts.W_gate, parts.b_gate)
        close(gate, got["ssm.hook_gate"], LAYER)
        out = (y * gate) @ parts.W_out
        close(out if parts.b_out is None else out + parts.b_out, got["hook_ssm_out"], LAYER)
        assert all((bias is None) != conv_bias for bias in (parts.b_in, parts.b_gate, parts.b_conv, parts.b_out))


def test_at_rest_nothing_passes_without_a_bias_and_the_bias_with_one():
    """The input gate of a zero input is its bias: on such an input the gain is what it is taken for at rest."""
    with pytest.raises(InputError, match="recurrence of layer 0, 2 passes nothing on at rest") as refused:
        paths_at_rest(Weights.of_model(opened()))
    assert "\n" not in str(refused.value)
    lens = opened(True)
    weights, kept = Weights.of_model(lens), {}
    assert [path.layer for path in paths_at_rest(weights)] == [0, 2]
    with torch.no_grad():
        quiet = ("blocks.2.ln1.hook_normalized", lambda x, hook: x * 0)
        keep = ("blocks.2.ssm.hook_input_gate", lambda x, hook: kept.update(gate=x.clone()))
        lens.run_with_hooks(tokens(1, 4), [quiet, keep])
    close(weights.recurrent(2).parts.gain_at_rest, kept["gate"][0, 1], FEW)


def test_measured_paths_are_exact_where_the_gates_are_constant():
    """With both gates held at one number the layer is its linear path; as they are it is not."""
    lens = opened()
    weights, ids = Weights.of_model(lens), tokens(2, 12)
    free = measured_paths(lens, weights, ids)[1]
    assert (free > 0.1).all()
    gates = [name for name in lens.hook_points if name.endswith(("ssm.hook_input_gate", "ssm.hook_gate"))]
    with lens.hooks([(gates, lambda x, hook: torch.full_like(x, 0.7))]):
        paths, errors = measured_paths(lens, weights, ids)
    close(errors, torch.zeros(2), LAYER, scale=1.0)
    for path in paths:
        close(path.channels, 0.49 * weights.recurrent(path.layer).parts.taps, LAYER)


@pytest.mark.parametrize("length", [1, 2, 9])
def test_hidden_attention_is_the_mean_of_each_channels(length):
    """By a loop over pairs of tokens; what lies further back than there are taps is 0."""
    draw = torch.Generator().manual_seed(length)
    source, taps = (torch.randn(shape, generator=draw) for shape in ((2, length, 5), (5, 3)))
    expected = torch.zeros(2, 1, length, length, dtype=torch.float64)
    for t in range(length):
        for j in range(max(0, t - 2), t + 1):
            expected[:, 0, t, j] = (source[:, j] * taps[:, t - j]).double().mean(-1)
    close(convolution_attention(source, taps), expected.float(), FEW)


def test_memory_is_the_convolutions_and_its_size_is_known():
    """No state, saved or counted; what is held are the last taps' inputs, as `hook_in` shows them."""
    lens, ids = opened(), tokens(2, 9)
    with torch.no_grad():
        state = lens.prefill(ids).state
    assert list(state.layers[0]["ssm"].tensors()) == ["conv"]
    assert torch.equal(state.layers[0]["ssm"].conv, seen(lens, 0, ids)["ssm.hook_in"][:, -3:])
    ((row, token),) = lens.cfg.layers[0].memory(4)
    assert (row, token) == (3 * 32 * 4, 0)
    assert state.layers[0]["ssm"].conv[0].numel() * 4 == row
    assert lens.cfg.state_layers == ()
    assert lens.cfg.d_state is None


def test_surgery_acts_on_the_convolution_and_says_that_there_is_no_state():
    lens, ids = opened(), tokens(2, 9)
    with torch.no_grad():
        state, other = lens.prefill(ids).state, lens.prefill(tokens(2, 9, seed=4)).state
    for made in (kv_cache.reset(state), kv_cache.zero_recurrent(state), kv_cache.zero_recurrent(state, "conv")):
        for layer in lens.cfg.ssm_layers:
            assert not made.layers[layer]["ssm"].conv.any()
        assert made.layers[1]["attn"] is state.layers[1]["attn"]
    swapped = kv_cache.swap_recurrent(state, other, "conv", layers=2, positions=7, channels=(1, 5))
    expected = state.layers[2]["ssm"].conv.clone()
    expected[:, 1, [1, 5]] = other.layers[2]["ssm"].conv[:, 1, [1, 5]]  # positions 6, 7, 8 are held
    assert torch.equal(swapped.layers[2]["ssm"].conv, expected)
    mixed = Mix("conv B", "mine", frozenset({(0, "conv"), (2, "conv")})).of(state, other)
    assert torch.equal(mixed.layers[0]["ssm"].conv, other.layers[0]["ssm"].conv)
    whole = [mix.name for mix in mixes(lens.cfg, by_layer=False) if not mix.name.startswith("only ")]
    assert whole == ["kv A, conv A", "kv A, conv B", "kv B, conv A", "kv B, conv B"]
    refusals = (
        (lambda: kv_cache.zero_recurrent(state, "recurrent"), "layer 0 holds no recurrent state, only its convolution"),
        (lambda: kv_cache.decay(state, 0.5), "give part 'conv'"),
        (lambda: kv_cache.project_out(state, torch.ones(32)), "holds no recurrent state"),
        (lambda: kv_cache.zero_recurrent(state, "recurrent", heads=0), "recurrent layers have no heads"),
    )
    for call, message in refusals:
        with pytest.raises(InputError, match=message) as refused:
            call()
        assert "\n" not in str(refused.value)


def test_a_name_of_a_state_is_refused():
    lens = opened()
    for point in ("hook_state", "hook_write", "hook_decay"):
        with pytest.raises(UnknownNameError, match=f"'blocks.0.ssm.{point}' does not exist"):
            lens.run_with_cache(tokens(1, 4), f"blocks.0.ssm.{point}")


def test_padding_is_never_remembered_where_biases_make_it_something():
    """Rows of other lengths, read together and on from there, give what each gives alone on the untouched model."""
    model = make("lfm2", 5, conv_bias=True)
    lens, rows = hl.HybridLens(model), [[5, 9, 3], [7, 1, 4, 8, 6, 2]]
    with torch.no_grad():
        state = lens.prefill(rows).state
        logits = lens.extend(state, [[11], [12]]).logits[:, -1]
        for row, more, ours in zip(rows, (11, 12), logits, strict=True):
            close(ours, model(torch.tensor([[*row, more]]), use_cache=False).logits[0, -1], FORWARD)


def test_a_copied_lens_has_the_expert_bias_of_its_own_model():
    """A function that closes over the first model would go on reading that one's bias."""
    lens, ids = hl.HybridLens(make("lfm2_moe")), tokens(2, 9)
    point = "blocks.1.mlp.hook_expert_indices"
    other = copy.deepcopy(lens)
    with torch.no_grad():
        before = lens.run_with_cache(ids, point)[1][point]
        other.hf_model.model.layers[1].feed_forward.expert_bias.copy_(torch.tensor([9.0, 8.0, 0.0, 0.0, 0.0, 0.0]))
        assert (other.run_with_cache(ids, point)[1][point] == torch.tensor([0, 1])).all()
        assert torch.equal(lens.run_with_cache(ids, point)[1][point], before)


@pytest.mark.parametrize("changes", [{"use_expert_bias": False}, {"norm_topk_prob": False}, {"num_dense_layers": 0}])
def test_routers_are_the_untouched_models(changes):
    model, ids = make("lfm2_moe", 2, **changes), tokens(2, 9)
    with torch.no_grad():
        close(hl.HybridLens(model)(ids), model(ids, use_cache=False).logits, FORWARD)


@pytest.mark.parametrize(
    ("changes", "width"),
    [({"block_auto_adjust_ff_dim": False}, 66), ({"block_ffn_dim_multiplier": 1.3}, 64), ({}, 48)],
)
def test_widths_of_mlps(changes, width):
    model, ids = make("lfm2", 2, **changes), tokens(2, 9)
    lens = hl.HybridLens(model)
    assert lens.cfg.d_mlp == width == model.model.layers[0].feed_forward.w1.weight.shape[0]
    with torch.no_grad():
        close(lens(ids), model(ids, use_cache=False).logits, FORWARD)


REFUSED = [
    ("lfm2", {"conv_dim": 16}, "conv_dim is 16, expected hidden_size = 32"),
    ("lfm2", {"block_norm_eps": 1e-3}, "block_norm_eps is 0.001, expected norm_eps = 1e-05"),
    ("lfm2", {"block_use_swiglu": False}, "block_use_swiglu = False, expected one of True"),
    ("lfm2", {"use_pos_enc": False}, "use_pos_enc = False, expected one of True"),
    ("lfm2", {"theta": 5.0}, "theta is 5.0, expected rope_theta = 1000000.0"),
    ("lfm2", {"swish": 1}, "field swish = 1, expected no such field"),
    ("lfm2", {"layer_types": ["conv", "full_attention", "conv"], "full_attn_idxs": [0]},
     r"full_attn_idxs is \[0\], expected \[1\], as in layer_types"),
    ("lfm2", {"layer_types": ["conv", "sliding_attention", "conv"], "full_attn_idxs": None},
     r"layer_types is .*, expected a list of 3, of 'conv' and 'full_attention'"),
    ("lfm2", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope_type is 'linear'"),
    ("lfm2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
     "rope_parameters is .*, expected one for whole heads"),
    ("lfm2", {"conv_L_cache": 1}, "conv_L_cache is 1, expected a whole number from 2"),
    ("lfm2_moe", {"num_experts_per_tok": 7}, "num_experts_per_tok is 7, expected at most 6 experts"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "changes", "message"), REFUSED)
def test_what_it_was_not_built_for_is_refused_by_field_and_value(family, changes, message):
    """Before a model is made, from the configuration alone."""
    config = make(family).config
    for name, value in changes.items():
        setattr(config, name, value)
    with pytest.raises(CheckpointError, match=message) as refused:
        family_for(config, "it").configure(config)
    assert "\n" not in str(refused.value)
