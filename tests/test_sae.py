"""SAELens' autoencoders: computed feature by feature beside plain formulas, read from its files of two generations.

The formulas here follow the papers entry by entry, in float64 and in loops; the module computes in matrices.
"""

import math

import pytest
import torch
from autoencoders import ARCHITECTURES, D_SAE, K, config, make, saved, weights

import hybridlens as hl
from hybridlens.errors import CheckpointError, InputError, UnknownNameError

D_IN = 6
SCALES = ("none", "constant_norm_rescale", "layer_norm")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # sums of at most 14 float32 products of size 1


def by_hand(x, held, architecture, apply=True, scaled="none", rescale=False):
    """Features and reconstruction of one activation."""
    w = {name: tensor.double().tolist() for name, tensor in held.items()}
    x = x.double().tolist()
    shift = sum(x) / D_IN if scaled == "layer_norm" else 0.0
    size, back = 1.0, 1.0
    if scaled == "constant_norm_rescale":
        size = back = math.sqrt(sum(v * v for v in x)) / math.sqrt(D_IN)
    if scaled == "layer_norm":
        back = math.sqrt(sum((v - shift) ** 2 for v in x) / (D_IN - 1))
        size = back + 1e-5
    read = [(v - shift) / size - (w["b_dec"][i] if apply else 0.0) for i, v in enumerate(x)]
    lengths = [math.sqrt(sum(v * v for v in row)) if rescale else 1.0 for row in w["W_dec"]]
    plain = [sum(read[i] * w["W_enc"][i][j] for i in range(D_IN)) for j in range(D_SAE)]
    features = []
    for j, z in enumerate(plain):
        if architecture == "gated":
            magnitude = z * math.exp(w["r_mag"][j]) + w["b_mag"][j]
            features.append(max(magnitude, 0.0) if z + w["b_gate"][j] > 0 else 0.0)
            continue
        z = (z + w["b_enc"][j]) * lengths[j]
        keep = z > w["threshold"][j] if architecture == "jumprelu" else True
        features.append(max(z, 0.0) if keep else 0.0)
    if architecture == "topk":
        every = [(plain[j] + w["b_enc"][j]) * lengths[j] for j in range(D_SAE)]
        best = sorted(range(D_SAE), key=lambda j: -every[j])[:K]
        features = [f if j in best else 0.0 for j, f in enumerate(features)]
    out = [sum(features[j] / lengths[j] * w["W_dec"][j][i] for j in range(D_SAE)) + w["b_dec"][i] for i in range(D_IN)]
    return torch.tensor(features), torch.tensor([v * back + shift for v in out])


@pytest.mark.parametrize("apply", [True, False])
@pytest.mark.parametrize("scaled", SCALES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_computes_what_the_papers_say(architecture, scaled, apply):
    sae = make(D_IN, architecture, 3, normalize_activations=scaled, apply_b_dec_to_input=apply)
    x = torch.randn(2, 4, D_IN) * 3 + 1
    features, back = sae.encode(x), sae(x)
    assert bool((features == 0).any())
    assert bool((features > 0).any())
    for row in range(2):
        for pos in range(4):
            own, out = by_hand(x[row, pos], weights(architecture, D_IN, 3), architecture, apply, scaled)
            torch.testing.assert_close(features[row, pos].double(), own.double(), **CLOSE)
            torch.testing.assert_close(back[row, pos].double(), out.double(), **CLOSE)


def test_topk_by_the_decoders_lengths():
    """Lengths from 1.2 to 4 choose other features than plain sizes do."""
    sae = make(D_IN, "topk", 3, rescale_acts_by_decoder_norm=True)
    x = torch.randn(9, D_IN)
    for row in x:
        own, out = by_hand(row, weights("topk", D_IN, 3), "topk", rescale=True)
        torch.testing.assert_close(sae.encode(row).double(), own.double(), **CLOSE)
        torch.testing.assert_close(sae(row).double(), out.double(), **CLOSE)
    assert bool(((sae.encode(x) > 0) != (make(D_IN, "topk", 3).encode(x) > 0)).any())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_files_of_saelens_6_are_read(architecture, tmp_path):
    saved(tmp_path / "blocks.1.hook_resid_post", config(architecture, D_IN), weights(architecture, D_IN))
    sae = hl.load_sae(tmp_path, "blocks.1.hook_resid_post")
    x = torch.randn(3, D_IN)
    assert torch.equal(sae(x), make(D_IN, architecture)(x))
    assert (sae.cfg.hook_name, sae.cfg.model_name) == ("blocks.1.hook_resid_post", "some/model")
    assert not any(weight.requires_grad for weight in sae.parameters())


def test_files_of_training_are_read(tmp_path):
    """What SAELens 6.54 writes beside the weights while it trains, and what it then finishes to be used."""
    own = {
        "jumprelu": {
            "decoder_init_norm": 0.1, "jumprelu_init_threshold": 0.01, "jumprelu_bandwidth": 0.05, "target_l0": None,
            "jumprelu_sparsity_loss_mode": "step", "l0_coefficient": 1.0, "l0_warm_up_steps": 0,
            "pre_act_loss_coefficient": None, "jumprelu_tanh_scale": 4.0, "jumprelu_ste_to_input": False,
        },
        "topk": {"decoder_init_norm": 0.1, "use_sparse_activations": False, "aux_loss_coefficient": 1.0},
    }  # fmt: skip
    x = torch.randn(3, D_IN)
    for architecture, fields in own.items():
        saved(tmp_path / architecture, config(architecture, D_IN) | fields, weights(architecture, D_IN))
        assert torch.equal(hl.load_sae(tmp_path / architecture)(x), make(D_IN, architecture)(x))


def test_older_files_are_read(tmp_path):
    """Flat fields, older names, an activation in place of the architecture, training's own fields, a factor of ones."""
    old = {
        "hook_point": "blocks.0.attn.hook_z", "hook_point_layer": 0, "hook_point_head_index": None, "d_in": D_IN,
        "d_sae": D_SAE, "dtype": "torch.float32", "l1_coefficient": 8e-5, "run_name": "tiny", "expansion_factor": 2,
        "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": False,
    }  # fmt: skip
    saved(tmp_path, old, weights("topk", D_IN) | {"scaling_factor": torch.ones(D_SAE)})
    sae = hl.load_sae(tmp_path)
    assert (sae.cfg.architecture, sae.cfg.k, sae.cfg.reshape_activations) == ("topk", K, "hook_z")
    x = torch.randn(3, D_IN)
    assert torch.equal(sae(x), make(D_IN, "topk")(x))


def test_a_factor_of_activations_is_folded_in(tmp_path):
    cfg = config("jumprelu", D_IN, normalize_activations="expected_average_only_in")
    saved(tmp_path, cfg, weights("jumprelu", D_IN))
    sae, x = hl.load_sae(tmp_path, norm_scaling_factor=2.5), torch.randn(5, D_IN)
    plain = make(D_IN, "jumprelu")
    torch.testing.assert_close(sae.encode(x), plain.encode(2.5 * x), **CLOSE)
    torch.testing.assert_close(sae(x), plain(2.5 * x) / 2.5, **CLOSE)
    with pytest.raises(CheckpointError, match="give norm_scaling_factor="):
        hl.load_sae(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mystery": 3}, "the field 'mystery' is unknown"),
        ({"architecture": "matching_pursuit", "residual_threshold": 0.1}, "architecture is 'matching_pursuit'"),
        ({"architecture": "temporal"}, "architecture is 'temporal', expected one of standard, gated, jumprelu, topk"),
        ({"normalize_activations": "batch"}, "normalize_activations is 'batch', expected one of none"),
        ({"d_sae": 0}, "d_sae is 0, expected a whole number from 1 up"),
        ({"apply_b_dec_to_input": "yes"}, "apply_b_dec_to_input is 'yes', expected true or false"),
        ({"activation_fn": "tanh-relu"}, "activation_fn is 'tanh-relu', expected relu or topk"),
        ({"hook_head_index": 2}, "reads one head alone"),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor is set"),
        ({"metadata": 3}, "metadata is 3, expected an object"),
        ({"architecture": "topk", "k": 99}, "k is 99, expected at most d_sae"),
        ({"d_sae": 15}, r"W_enc has shape \[6, 14\], expected \[6, 15\]"),
        ({"architecture": "gated"}, "a gated autoencoder has the weights W_dec, W_enc, b_dec, b_gate, b_mag, r_mag"),
    ],
)
def test_what_may_change_the_numbers_is_refused(changes, said, tmp_path):
    saved(tmp_path, config("standard", D_IN) | changes, weights("standard", D_IN))
    with pytest.raises(CheckpointError, match=said) as caught:
        hl.load_sae(tmp_path)
    assert "\n" not in str(caught.value)


def test_broken_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no cfg\.json"):
        hl.load_sae(tmp_path)
    (tmp_path / "cfg.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"cfg\.json is damaged"):
        hl.load_sae(tmp_path)
    saved(tmp_path, config("standard", D_IN), weights("standard", D_IN) | {"b_dec": torch.full((D_IN,), torch.nan)})
    with pytest.raises(CheckpointError, match="b_dec holds NaN"):
        hl.load_sae(tmp_path)
    (tmp_path / "sae_weights.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=r"sae_weights\.safetensors is damaged"):
        hl.load_sae(tmp_path)
    (tmp_path / "sae_weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match="safetensors are all that is read"):
        hl.load_sae(tmp_path)
    with pytest.raises(UnknownNameError, match="neither a folder nor a hub id"):
        hl.load_sae("no such thing")
    with pytest.raises(CheckpointError, match="expected the path of one inside"):
        hl.load_sae(tmp_path, "../other")


def test_misuse_is_one_line():
    sae = make(D_IN, normalize_activations="layer_norm")
    with pytest.raises(InputError, match="expected 6 numbers on the last axis"):
        sae.encode(torch.ones(2, 5))
    with pytest.raises(InputError, match="like=activations"):
        sae.decode(torch.ones(2, D_SAE))
