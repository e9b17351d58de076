"""Linear paths against plain loops over tokens and channels, and on models that really are linear.

Weights and inputs are random, so a lag, a bias, a padding token or a mean in the wrong place shows in the first digits.
"""

import pytest
import torch
from bounds import FORWARD, LAYER, bound, close
from models import FAMILIES, make, tokens

import hybridlens as hl
from analyses.circuits.paths import convolved, measured_paths, paths_at_rest
from hybridlens.errors import InputError
from hybridlens.weights import Weights

LENGTHS = torch.tensor([11, 4, 1, 7, 11, 2, 9, 11, 3, 10])
"""Ten rows: more than are run at a time, some shorter than the convolution."""


def opened(family: str, **changes) -> tuple[hl.HybridLens, Weights]:
    lens = hl.HybridLens(make(family, 4, **changes))
    return lens, Weights.of_model(lens)


def norms(parts, channels: torch.Tensor) -> torch.Tensor:
    """‖W_in diag W_out‖² of each lag, with the matrices formed."""
    dense = [(parts.W_in.double() * c) @ parts.W_out.double() for c in channels.double().T]
    return torch.stack([x.square().sum() for x in dense])


@pytest.mark.parametrize("family", FAMILIES)
def test_at_rest(family, monkeypatch):
    """tap × slope × gain, gate 1; shares are those of the dense matrices, whatever the bands."""
    _, weights = opened(family)
    paths = paths_at_rest(weights)
    assert [path.layer for path in paths] == list(weights.cfg.ssm_layers)
    monkeypatch.setattr("analyses.circuits.paths.BAND", 7)
    for path, again in zip(paths, paths_at_rest(weights), strict=True):
        parts = weights.recurrent(path.layer).parts
        close(path.channels, parts.taps * parts.slope * parts.gain_at_rest[:, None])
        squared = norms(parts, path.channels)
        close(path.share, (squared / squared.sum()).float(), LAYER)
        close(again.share, path.share, LAYER)


def by_hand(lens: hl.HybridLens, weights: Weights, ids: torch.Tensor, layer: int) -> tuple[torch.Tensor, float]:
    """Channels and error of one layer, each prompt run alone and each token taken by itself."""
    parts = weights.recurrent(layer).parts
    name = f"blocks.{layer}"
    zero = torch.zeros(())
    xs, outs, before, after, gates, gains = [], [], [], [], [], []
    for row, length in zip(ids, LENGTHS.tolist(), strict=True):
        _, cache = lens.run_with_cache(row[None, :length])
        x = cache[f"{name}.ln1.hook_normalized"][0]
        u = x @ parts.W_in + (zero if parts.b_in is None else parts.b_in)
        for t in range(length):
            p = torch.zeros_like(u[0]) + (zero if parts.b_conv is None else parts.b_conv)
            for lag in range(min(t + 1, parts.taps.shape[1])):
                p = p + u[t - lag] * parts.taps[:, lag]
            before.append(p)
            after.append(parts.activation(p))
        gates.append(cache[f"{name}.ssm.hook_gate"][0])
        gains.append(parts.gain({point: cache[f"{name}.ssm.{point}"] for point in parts.gain_points})[0])
        xs.append(x)
        outs.append(cache[f"{name}.hook_mixer_out"][0])
    p, a = torch.stack(before).double(), torch.stack(after).double()
    slope = (p * a).sum(0) / (p * p).sum(0)
    factor = slope * torch.cat(gates).double().mean(0) * torch.cat(gains).double().mean(0)
    channels = parts.taps.double() * factor[:, None]
    lines = []
    for x in xs:
        for t in range(len(x)):
            line = torch.zeros(weights.cfg.d_model, dtype=torch.float64)
            for lag in range(min(t + 1, channels.shape[1])):
                u = x[t - lag].double() @ parts.W_in.double() + (zero if parts.b_in is None else parts.b_in)
                line += (u * channels[:, lag]) @ parts.W_out.double()
            lines.append(line)
    out, line = torch.cat(outs).double(), torch.stack(lines)
    out, line = out - out.mean(0), line - line.mean(0)
    return channels, float((out - line).norm() / out.norm())


@pytest.mark.parametrize(
    ("family", "changes"), [("recurrentgemma", {}), ("jamba", {}), ("jamba", {"mamba_proj_bias": True})]
)
def test_measured(family, changes):
    """Channels, shares and error are those of a plain loop over ten prompts of different lengths, run one by one."""
    lens, weights = opened(family, **changes)
    ids = tokens(10, 11, seed=2)
    paths, errors = measured_paths(lens, weights, ids, LENGTHS)
    for i, layer in enumerate(weights.cfg.ssm_layers):
        channels, error = by_hand(lens, weights, ids, layer)
        close(paths[i].channels, channels.float(), FORWARD)
        squared = norms(weights.recurrent(layer).parts, channels)
        close(paths[i].share, (squared / squared.sum()).float(), FORWARD)
        close(float(errors[i]), error, FORWARD, dtype=torch.float32)
        assert error > 0.1, "the models are to be far from linear, or nothing is compared"


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_does_not_count(family):
    """Other tokens behind the rows' ends change nothing; the same tokens taken for real do.

    No bit, but for experts, which multiply the padding's tokens too: of other numbers of them they may round otherwise.
    """
    lens, weights = opened(family)
    ids = tokens(10, 11, seed=2)
    other = torch.where(torch.arange(11) < LENGTHS[:, None], ids, (ids + 17) % weights.cfg.d_vocab)
    paths, errors = measured_paths(lens, weights, ids, LENGTHS)
    again, errors_again = measured_paths(lens, weights, other, LENGTHS)
    exact = family != "jamba"
    close(errors_again, errors, FORWARD)
    assert torch.equal(errors, errors_again) or not exact
    for one, two in zip(paths, again, strict=True):
        close(two.channels, one.channels, FORWARD)
        assert torch.equal(one.channels, two.channels) or not exact
    assert not torch.equal(errors, measured_paths(lens, weights, ids)[1])


def test_a_linear_recurrentgemma():
    """Constant gates and a state that forgets at once: nothing is left out, so the error is rounding."""
    model = make("recurrentgemma", 4)
    with torch.no_grad():
        for layer in (0, 1, 3):
            block = model.model.layers[layer].temporal_block
            block.linear_y.weight.zero_()
            block.rg_lru.input_gate_weight.zero_()
            block.rg_lru.recurrent_gate_weight.zero_()
            block.rg_lru.recurrent_param.fill_(30.0)
    check_linear(model, at_rest_over_gate=True, size=1)


def test_a_linear_jamba():
    """Constant gate, nothing written into the state, pre-activations far up where SiLU is the identity."""
    model = make("jamba", 4, mamba_proj_bias=True)
    with torch.no_grad():
        for layer in (0, 2, 3):
            mixer = model.model.layers[layer].mamba
            mixer.in_proj.weight[mixer.intermediate_size :].zero_()
            mixer.b_layernorm.weight.zero_()
            mixer.conv1d.bias.add_(30.0)
    check_linear(model, at_rest_over_gate=False, size=30)


def check_linear(model, at_rest_over_gate: bool, size: float) -> None:
    """`size` is that of the largest sums, relative to what of them is not constant."""
    lens = hl.HybridLens(model)
    weights = Weights.of_model(lens)
    ids = tokens(10, 11, seed=2)
    paths, errors = measured_paths(lens, weights, ids, LENGTHS)
    assert float(errors.max()) < bound(size, LAYER)
    _, cache = lens.run_with_cache(ids)
    for path, rest in zip(paths, paths_at_rest(weights), strict=True):
        gate = cache[f"blocks.{path.layer}.ssm.hook_gate"][0, 0]
        slope = 1.0 if at_rest_over_gate else 2.0  # at rest SiLU's is a half
        close(path.channels, rest.channels * gate[:, None] * slope, FORWARD)


def test_convolution_of_few_tokens():
    """Taps that reach before the first token find nothing."""
    u, taps = torch.randn(1, 2, 3), torch.randn(3, 5)
    out = convolved(u, taps)
    close(out[0, 0], u[0, 0] * taps[:, 0])
    close(out[0, 1], u[0, 1] * taps[:, 0] + u[0, 0] * taps[:, 1])


def test_a_layer_that_writes_nothing():
    """Zero maps give a path, a share and an error of 0, no NaN."""
    model = make("jamba", 4)
    with torch.no_grad():
        model.model.layers[0].mamba.out_proj.weight.zero_()
    lens = hl.HybridLens(model)
    paths, errors = measured_paths(lens, Weights.of_model(lens), tokens(2, 5))
    assert float(errors[0]) == 0
    assert paths[0].share.tolist() == [0] * 4
    assert bool(errors[1:].gt(0).all())


def test_bad_input():
    lens, weights = opened("jamba")
    with pytest.raises(InputError, match="1 real token given, expected at least 2"):
        measured_paths(lens, weights, tokens(1, 1))
    with pytest.raises(InputError, match="weights are of another model than the lens"):
        measured_paths(lens, opened("recurrentgemma")[1], tokens(1, 4))


def test_a_model_without_recurrent_layers():
    lens, weights = opened("jamba", attn_layer_period=1, attn_layer_offset=0)
    paths, errors = measured_paths(lens, weights, tokens(1, 4))
    assert paths == []
    assert paths_at_rest(weights) == []
    assert errors.shape == (0,)
