"""Mamba and Falcon-Mamba: going on where transformers does not, and configurations that are refused."""

import pytest
import torch
from bounds import FORWARD, close
from models import make, rounding, tokens

from hybridlens import HybridLens
from hybridlens.errors import CheckpointError
from hybridlens.families import family_for

FAMILY = pytest.mark.parametrize("family", ["mamba", "falcon_mamba"])


@FAMILY
def test_going_on_equals_the_whole_run(family):
    """From a state several tokens are read, then one, rows of different lengths beside each other.

    The library's own call with several tokens on top of a cache starts from an empty recurrent state, and one with a
    mask at a single token gives other numbers, so the reference is its run over the whole text, row by row.
    """
    model = make(family, 4)
    lens, rows = HybridLens(model), [tokens(1, length, length)[0].tolist() for length in (17, 12)]
    parts = [(rows[0][:8], rows[1][:5]), (rows[0][8:16], rows[1][5:11]), (rows[0][16:], rows[1][11:])]
    with torch.no_grad():
        state, logits = lens.prefill([list(row) for row in parts[0]])
        given = [logits]
        for part in parts[1:]:
            run = lens.extend(state, [list(row) for row in part])
            state, given = run.state, [*given, run.logits]
        for row, ids in enumerate(rows):
            whole = model(torch.tensor([ids]), use_cache=False).logits[0]
            end = 0
            for part, ours in zip(parts, given, strict=True):
                start, end = end, end + len(part[row])
                extra = 8 * rounding(model, torch.tensor([ids]))
                close(ours[row, : end - start], whole[start:end], FORWARD, extra=extra, what=(row, start))


@pytest.mark.parametrize(
    ("family", "field", "value", "expected"),
    [
        ("mamba", "d_model", 64, "d_model is 64, expected hidden_size = 32"),
        ("mamba", "n_layer", 9, "n_layer is 9, expected num_hidden_layers = 2"),
        ("mamba", "d_inner", 96, "d_inner is 96, expected intermediate_size = 64"),
        ("mamba", "rms_norm", False, "configuration field rms_norm = False, expected one of True"),
        ("mamba", "ssm_cfg", {"layer": "Mamba2"}, "configuration field ssm_cfg = .*, expected one of {}"),
        ("mamba", "attn_layer_idx", [1], "configuration field attn_layer_idx = .*, expected no such field"),
        ("mamba", "conv_kernel", 1, "conv_kernel is 1, expected a whole number from 2"),
        ("mamba", "layer_norm_epsilon", 0.0, "layer_norm_epsilon is 0.0, expected a number above 0"),
        ("falcon_mamba", "mixer_rms_eps", -1.0, "mixer_rms_eps is -1.0, expected a number above 0"),
        ("falcon_mamba", "d_model", 32, "configuration field d_model = 32, expected no such field"),
    ],
)
def test_what_was_not_built_is_refused(family, field, value, expected):
    config = make(family).config
    setattr(config, field, value)
    with pytest.raises(CheckpointError, match=expected) as caught:
        family_for(config, "the model").configure(config)
    assert "\n" not in str(caught.value)


@FAMILY
def test_the_width_is_the_stated_one(family):
    """Falcon-Mamba's published file has an `expand` of 16 beside the width that counts."""
    lens = HybridLens(make(family, intermediate_size=80, expand=16))
    assert lens.cfg.d_channels == 80
    assert lens.cfg.recurrence(0).state_shape == (80, 5)
