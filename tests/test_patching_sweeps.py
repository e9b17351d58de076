"""Sweeps and their results: where they show something, equal to plain loops, labelled, saved exactly."""

import random

import pytest
import torch
from bounds import FORWARD, close
from models import PATCHED, tokens
from patching_loops import LENGTH, METRIC, loop, prompts, small

from analyses.patching.over import expand
from analyses.patching.results import Axis, PatchResult
from analyses.patching.running import activation_patch
from analyses.patching.sweeps import SWEEPS, sweep
from analyses.patching.targets import Target
from hybridlens.errors import InputError, ResultsError, UnknownNameError


@pytest.mark.parametrize("family", PATCHED)
def test_noise_where_it_matters_shows_there_and_nowhere_else(family):
    """The crafted case: with all mixers but one silenced, only that layer's writes can tell the two prompts apart.

    The prompts differ in one token that is not the last, so what the last position hears of it comes through a mixer.
    """
    lens, layer = small(family), 2 if family == "recurrentgemma" else 1
    mixing = [other for other, has in enumerate(lens.cfg.layers) if has.type != "mlp"]
    clean = tokens(1, LENGTH, 1)
    corrupt = clean.clone()
    corrupt[0, 14] = (clean[0, 14] + 1) % 50

    def silence(x, hook):
        return torch.zeros_like(x)

    quiet = [other for other in mixing if other != layer]
    names = [f"blocks.{other}.hook_{kind}_out" for other in quiet for kind in ("attn", "ssm")]
    with lens.hooks([([name for name in names if name in lens.hook_dict], silence)]):
        hooks = [f"blocks.{other}.hook_mixer_out" for other in mixing]
        for direction, at_work, elsewhere in (("noise", 0.0, 1.0), ("denoise", 1.0, 0.0)):
            result = activation_patch(lens, clean, corrupt, METRIC, hooks, "p", direction=direction)
            expected = torch.full((len(mixing), LENGTH), elsewhere, dtype=torch.float64)
            expected[layer, -1] = at_work
            # Shares of the difference of two metrics, each a difference of logits.
            size = float(lens(clean).detach().abs().max()) / abs(result.clean - result.corrupt)
            close(result.normalised, expected, FORWARD, scale=size, dtype=torch.float32)


@pytest.mark.parametrize("family", PATCHED)
def test_every_ready_sweep_equals_the_plain_loop(family):
    """Every sweep that the model has, at random places of it; those it lacks name the ones it has."""
    length = 8  # one beyond the window
    lens, (clean, corrupt) = small(family), prompts(length=length)
    rng = random.Random(3)
    for name, kind in SWEEPS.items():
        if not kind.hooks(lens):
            line = f"sweep '{name}' goes over {kind.point} by .*, which this model lacks; it has resid_pre, "
            with pytest.raises(UnknownNameError, match=line):
                sweep(lens, name, clean, corrupt, METRIC)
            continue
        result = sweep(lens, name, clean, corrupt, METRIC, batch_size=64)
        assert result.axes[0].name == "layer"
        targets = expand(lens, kind.hooks(lens), kind.over, ["x"] * length).patches
        assert result.raw.numel() == len(targets)
        picked = rng.sample(range(len(targets)), min(4, len(targets)))
        expected = loop(lens, corrupt, clean, [[targets[i]] for i in picked])
        close(result.raw.flatten()[picked], expected, FORWARD, dtype=torch.float32)
    assert bool(SWEEPS["router"].hooks(lens)) == bool(lens.cfg.moe_layers)
    assert bool(SWEEPS["state_by_head"].hooks(lens)) == any(
        lens.cfg.recurrence(layer).n_heads is not None for layer in lens.cfg.state_layers
    )
    with pytest.raises(UnknownNameError, match="sweep 'heads' does not exist; this model has resid_pre"):
        sweep(lens, "heads", clean, corrupt, METRIC)


def test_axes_are_named_and_labelled():
    """Layers, heads, channel blocks and positions with their tokens; both tokens where the prompts differ."""
    lens = small("recurrentgemma")
    clean, corrupt = [5, 6, 7, 8], [5, 6, 9, 8]
    result = sweep(lens, "write_by_channel", clean, corrupt, METRIC)
    assert [axis.name for axis in result.axes] == ["layer", "pos", "channel"]
    assert result.axes[0].labels == ("0", "1", "3")
    assert result.axes[1].labels == ("0 5", "1 6", "2 7|9", "3 8")
    assert result.axes[2].labels == ("0-2", "3-5", "6-8", "9-11", "12-14", "15-17", "18-20", "21-23")
    heads = activation_patch(lens, clean, corrupt, METRIC, "blocks.2.attn.hook_z", {"h": 3, "p": [1, (2, 3), -1]})
    assert heads.axes[1:] == (Axis("head", ("0-2", "3")), Axis("pos", ("1 6", "2,3", "3 8")))
    mixed = activation_patch(lens, clean, corrupt, METRIC, ["hook_embed", "blocks.0.hook_mlp_out"])
    assert mixed.axes == (Axis("hook", ("hook_embed", "blocks.0.hook_mlp_out")),)
    given = activation_patch(lens, clean, corrupt, METRIC, targets=[Target("hook_embed", {"p": (1, 2)}), []])
    assert given.axes == (Axis("patch", ("0: hook_embed[pos 1,2]", "1: nothing")),)


def test_results_are_saved_exactly(tmp_path):
    """What is loaded has the same bits, axes and words; a damaged file is refused."""
    lens, (clean, corrupt) = small("jamba"), prompts()
    result = sweep(lens, "v_by_position", clean, corrupt, METRIC, direction="noise")
    again = PatchResult.load(result.save(tmp_path / "v.safetensors"))
    assert torch.equal(again.raw, result.raw)
    assert {k: v for k, v in vars(again).items() if k != "raw"} == {k: v for k, v in vars(result).items() if k != "raw"}
    labels, change = result.top(1)[0]
    assert abs(change) == result.change.abs().max()
    place = tuple(axis.labels.index(label) for axis, label in zip(result.axes, labels, strict=True))
    assert result.raw[place] - result.clean == change
    whole = (tmp_path / "v.safetensors").read_bytes()
    for bad in (whole[:-9], whole[:50], b"", b"{}", whole.replace(b"clean_tokens", b"clean_takens")):
        (tmp_path / "bad").write_bytes(bad)
        with pytest.raises(InputError, match=r"is not a saved PatchResult|is a damaged PatchResult"):
            PatchResult.load(tmp_path / "bad")
    with pytest.raises(InputError, match="cannot be read"):
        PatchResult.load(tmp_path / "none")
    with pytest.raises(ResultsError, match="cannot be used"):
        result.save(tmp_path / "no" / "folder")
    with pytest.raises(UnknownNameError, match="no axis 'head'; it has layer, kv_head, pos"):
        result.axis("head")
