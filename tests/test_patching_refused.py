"""What patching refuses, in one line; nothing is left behind on the model, whatever raises."""

import pytest
import torch
from models import PATCHED
from patching_loops import LENGTH, METRIC, prompts, small

from analyses.patching.running import activation_patch
from analyses.patching.targets import Target, patch_words
from hybridlens.errors import HookFunctionError, InputError, UnknownNameError

BAD = [
    (Target("blocks.0.attn.hook_z", {"h": 1}), UnknownNameError, "layers with attn.hook_z are 2"),
    (Target("blocks.0.ssm.hook_write", {"h": 1}), InputError, r"p \(pos\), c \(channel\); layers with heads are 2$"),
    (Target("blocks.0.hook_mixer_out", {"g": 1}), InputError, r"no axis g \(kv_head\): it has p \(pos\), d \("),
    (Target("blocks.2.attn.hook_z", {"h": 4}), InputError, r"head 4 given, but there are 0\.\.3"),
    (Target("blocks.2.hook_mlp_out", {"p": 19}), InputError, r"position 19 given, but the prompt has 0\.\.18"),
    (Target("blocks.2.hook_mlp_out", {"p": slice(17, 25)}), InputError, r"position 17:25 given, but the prompt has 0"),
    (Target("blocks.2.hook_mlp_out", {"p": slice(20, None)}), InputError, r"position 20: given, but the prompt has"),
    (Target("blocks.2.attn.hook_pattern", {"k": (3, -20)}), InputError, r"key position -20 given, but the prompt has"),
    (Target("blocks.0.ssm.hook_pattern", {"h": 0}), InputError, "is read-only"),
    (Target("blocks.9.hook_mlp_out"), UnknownNameError, "layers with hook_mlp_out are 0, 1, 2, 3"),
]


@pytest.mark.parametrize(("target", "error", "message"), BAD)
def test_targets_that_do_not_exist_are_refused(target, error, message):
    """One line that says what there is, before anything runs."""
    lens, (clean, corrupt) = small("recurrentgemma"), prompts()
    with pytest.raises(error, match=message) as caught:
        activation_patch(lens, clean, corrupt, METRIC, targets=[target])
    assert "\n" not in str(caught.value)


def test_targets_that_are_none_are_refused():
    with pytest.raises(InputError, match="'z' is no axis; expected letters of p"):
        Target("hook_embed", {"z": 1})
    with pytest.raises(InputError, match="index True of axis p given, expected whole numbers or a slice"):
        Target("hook_embed", {"p": True})
    for index in (3.5, (1, 2.0), "3", None):  # which the type checker of the tests does not let pass whole
        with pytest.raises(InputError, match="of axis p given, expected whole numbers or a slice"):
            Target("hook_embed")._index("p", index)
    words = patch_words([Target("hook_embed", {"p": slice(2, None)}), Target("hook_logits", {"p": (1, 2, 3), "v": 7})])
    assert words == "hook_embed[pos 2:] + hook_logits[pos 1-3, vocab 7]"


def test_arguments_that_do_not_fit_are_refused():
    lens, (clean, corrupt) = small("jamba"), prompts()
    hook = "blocks.0.hook_mixer_out"

    def refused(message, *given, error=InputError, **options):
        with pytest.raises(error, match=message):
            activation_patch(lens, *given, **options)

    parted = r"has 19 tokens and the corrupt one 18; they part at position 6 \('11 49 37' and '26 5 25'\)"
    refused(parted, clean, corrupt[:, :-1], METRIC, hook)
    refused(r"they part at position 19 \('its end' and '1 2'\)", clean, [*clean[0].tolist(), 1, 2], METRIC, hook)
    refused("2 clean prompts were given as one", clean.repeat(2, 1), corrupt, METRIC, hook)
    refused("give either hook points to patch", clean, corrupt, METRIC)
    refused("give either hook points to patch", clean, corrupt, METRIC, hook, targets=[Target(hook)])
    refused("goes with hooks=", clean, corrupt, METRIC, over="p", targets=[Target(hook)])
    refused("no targets were given", clean, corrupt, METRIC, targets=[])
    refused("an empty list of hook-point names", clean, corrupt, METRIC, [], error=UnknownNameError)
    refused("has no axis h", clean, corrupt, METRIC, hook, "h")
    refused("in blocks of 0", clean, corrupt, METRIC, hook, {"p": 0})
    refused("no entries were given", clean, corrupt, METRIC, hook, {"p": []})
    refused("batch_size = 0 given", clean, corrupt, METRIC, hook, "p", batch_size=0)
    refused("'up' does not exist; expected", clean, corrupt, METRIC, hook, direction="up", error=UnknownNameError)
    refused("so there is no scale from 0 to 1 between them", clean, clean, METRIC, hook, "p")
    mixed = ["blocks.1.attn.hook_pattern", "blocks.1.attn.hook_attn_scores", "blocks.0.ssm.hook_in"]
    refused("target 'blocks.0.ssm.hook_in' has no axis h", clean, corrupt, METRIC, mixed, "h")


def hooks_on(lens):
    return sum(point.asked() for point in lens.hook_dict.values())


@pytest.mark.parametrize("family", PATCHED)
@pytest.mark.parametrize("broken", ["shape", "nan", "raises", "text"])
def test_a_broken_metric_leaves_the_model_as_it_was(family, broken):
    """The error names the metric; no hook is left, and the next run has the same bits."""
    lens, (clean, corrupt) = small(family), prompts()
    before = lens(clean)
    calls = []

    def own(logits):
        calls.append(logits.shape)
        good = logits[:, -1, 0] - logits[:, -1, 1]
        if len(calls) < 4:
            return good
        if broken == "raises":
            raise RuntimeError("mine")
        return {"shape": good[:, None], "nan": good.masked_fill(good == good[-1], torch.nan), "text": "no"}[broken]

    message = {
        "shape": r"metric 'own' returned shape \[4, 1\], expected \[4\]: one number for each row",
        "nan": r"metric 'own' returned nan for the patch of blocks\.1\.hook_mixer_out\[pos 1[0-9]\]",
        "raises": "mine",
        "text": "metric 'own' returned str, expected a tensor",
    }[broken]
    hooks = [name for name in lens.hook_points if name.endswith("hook_mixer_out")]
    with pytest.raises((InputError, RuntimeError), match=message):
        activation_patch(lens, clean, corrupt, own, hooks, {"p": [10, 11, 12, 13]}, batch_size=4)
    assert len(calls) == 4
    assert calls[-1] == (4, LENGTH, 53)
    assert hooks_on(lens) == 0
    assert torch.equal(lens(clean), before)


def test_a_hook_that_raises_leaves_the_model_as_it_was():
    """A user's own hook on the model acts in the sweep, and its error ends it without a trace."""
    lens, (clean, corrupt) = small("jamba"), prompts()
    calls = []

    def own(x, hook):
        calls.append(x.shape[0])
        return x[:, :1] if x.shape[0] > 1 else None

    with (
        pytest.raises(HookFunctionError, match=r"hook on 'blocks.2.hook_mlp_out': the hook function returned shape"),
        lens.hooks([("blocks.2.hook_mlp_out", own)]),
    ):
        activation_patch(lens, clean, corrupt, METRIC, "blocks.1.hook_mlp_out", "p")
    assert max(calls) > 1
    assert hooks_on(lens) == 0
