"""Ablation: equal to plain loops that put in the same values, and refused where it means nothing."""

from itertools import product

import pytest
import torch
from bounds import FORWARD, close
from models import PATCHED, tokens
from patching_loops import LENGTH, METRIC, plain, prompts, small

from analyses.patching import ablation
from analyses.patching.ablation import ablate
from analyses.patching.running import activation_patch
from analyses.patching.targets import Target
from hybridlens.errors import InputError, UnknownNameError


@pytest.mark.parametrize("family", PATCHED)
def test_ablation_equals_a_plain_loop_with_the_same_values(family):
    """Zeros, means of each kind and draws, against runs whose values are put together by hand."""
    lens, (clean, corrupt) = small(family), prompts()
    others = [tokens(1, LENGTH, seed) for seed in (11, 12, 13)]
    names = ["blocks.1.hook_mixer_out", "blocks.2.hook_resid_pre"]
    names += [f"blocks.{layer}.ssm.hook_write" for layer in lens.cfg.state_layers[-1:]]
    places = (LENGTH - 3, slice(LENGTH - 5, LENGTH - 1), -1)  # whence windows and convolutions reach the last position
    patches = [[Target(name, {"p": place})] for name, place in product(names, places)]
    with torch.no_grad():
        runs = [lens.run_with_cache(prompt, names)[1] for prompt in [clean, *others]]

    def check(values, **options):
        result = ablate(lens, clean, METRIC, targets=patches, **options)
        expected = [plain(lens, clean, values(number), patch) for number, patch in enumerate(patches)]
        close(result.raw, torch.tensor(expected).double(), FORWARD, dtype=torch.float32)
        assert result.raw.unique().numel() == len(patches)
        return result

    def everywhere(mean):
        return mean.expand(-1, LENGTH, *mean.shape[2:])

    zeros = {name: torch.zeros_like(runs[0][name]) for name in names}
    own = {name: everywhere(runs[0][name].mean(1, keepdim=True)) for name in names}
    joined = {name: torch.cat([run[name] for run in runs[1:]]) for name in names}
    at_each = {name: value.mean(0, keepdim=True) for name, value in joined.items()}
    both = {name: everywhere(value.mean((0, 1), keepdim=True)) for name, value in joined.items()}
    check(lambda number: zeros, kind="zero")
    check(lambda number: own, kind="mean")
    check(lambda number: at_each, kind="mean", prompts=others, mean_over="prompts")
    check(lambda number: both, kind="mean", prompts=others, mean_over="both", batch_size=2)
    draws = ablation.Draws(lens, others, True, seed=4)
    assert len({draws.pick(number) for number in range(len(patches))}) > 1
    result = check(lambda number: runs[1 + draws.pick(number)], kind="resample", prompts=others, seed=4)
    with pytest.raises(InputError, match="without a corrupt prompt has no scale"):
        _ = result.normalised
    scaled = ablate(lens, clean, METRIC, targets=patches, kind="zero", corrupt=corrupt)
    noised = activation_patch(lens, clean, corrupt, METRIC, targets=[[]])
    assert (scaled.clean, scaled.corrupt) == (noised.clean, noised.corrupt)
    assert scaled.normalised.isfinite().all()


def test_ablations_that_mean_nothing_are_refused():
    lens, (clean, _) = small("jamba"), prompts()
    pattern, scores = "blocks.1.attn.hook_pattern", "blocks.1.attn.hook_attn_scores"
    indices = "blocks.1.mlp.hook_expert_indices"
    with pytest.raises(InputError, match="would mix keys; take mean_over='prompts'"):
        ablate(lens, clean, METRIC, pattern, "h")
    with pytest.raises(InputError, match="would open keys that are masked; ablate hook_pattern instead"):
        ablate(lens, clean, METRIC, scores, "h", kind="zero")
    with pytest.raises(InputError, match=r"hook_expert_indices' holds torch.int64, so it cannot be given values of"):
        ablate(lens, clean, METRIC, indices, kind="zero")
    with pytest.raises(InputError, match=r"hook_expert_indices' holds torch.int64, of which no mean"):
        ablate(lens, clean, METRIC, indices)
    with pytest.raises(InputError, match="resampling needs prompts to take values from"):
        ablate(lens, clean, METRIC, pattern, kind="resample")
    with pytest.raises(InputError, match="has 19 tokens and an ablation one 4"):
        ablate(lens, clean, METRIC, pattern, kind="resample", prompts=[tokens(1, 4)])
    with pytest.raises(UnknownNameError, match="mean_over 'heads' does not exist; expected one of positions, prompts"):
        ablate(lens, clean, METRIC, pattern, mean_over="heads")
    with pytest.raises(UnknownNameError, match="kind 'noise' does not exist; expected one of zero, mean"):
        ablate(lens, clean, METRIC, pattern, kind="noise")
