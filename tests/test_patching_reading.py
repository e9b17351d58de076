"""Metrics that read more than the last logits: what follows the prompt, and every position."""

import pytest
import torch
from bounds import FORWARD, bound, close
from models import PATCHED
from patching_loops import LENGTH, loop, prompts, random_patches, small

import hybridlens as hl
from analyses.patching.metrics import KullbackLeibler, LogProbability
from analyses.patching.running import activation_patch
from analyses.patching.targets import locate


@pytest.mark.parametrize("family", PATCHED)
def test_metrics_that_read_on_do_so_from_the_patched_state(family):
    """A longer answer's log-probability: against a plain run over prompt and answer with the patch on the prompt only.

    Patches of every layer and of early positions, so that keys, convolution inputs and states that are patched matter.
    """
    lens, (clean, corrupt) = small(family), prompts()
    answer = (4, 9, 2)
    metric = LogProbability(answer)
    patches = random_patches(lens, 24, seed=9)
    patches = [[t for t in patch if "k" not in t.where] for patch in patches]
    result = activation_patch(lens, clean, corrupt, metric, targets=patches, batch_size=5)
    names = sorted({target.hook for patch in patches for target in patch})
    with torch.no_grad():
        values = lens.run_with_cache(clean, names)[1]
        for patch, ours in zip(patches, result.raw.tolist(), strict=True):
            edits = []
            for target in patch:
                located = locate(lens, target, LENGTH)

                def put(x, hook, located=located, source=values[target.hook]):
                    here, there = located.selectors({})
                    x[0][here] = source[0][there]
                    return x

                edits.append(hl.Edit(target.hook, put, phase="prefill"))
            state, logits = lens.prefill(corrupt, edits)
            later = lens.extend(state, [list(answer[:-1])]).logits
            every = torch.cat([logits[:, -1:], later], dim=1).log_softmax(-1)[0]
            theirs = sum(float(every[i, token]) for i, token in enumerate(answer))
            close(ours, theirs, FORWARD, dtype=torch.float32)


def test_metrics_over_all_positions_see_all_positions():
    """Runs that begin behind the first positions give the untouched logits there."""
    lens, (clean, corrupt) = small("recurrentgemma"), prompts()
    with torch.no_grad():
        reference = lens(clean)[0]
    metric = KullbackLeibler(reference)
    patches = random_patches(lens, 30, seed=2)
    result = activation_patch(lens, clean, corrupt, metric, targets=patches)
    close(result.raw, loop(lens, corrupt, clean, patches, metric), FORWARD, dtype=torch.float32)
    rounding = bound(float(reference.abs().max()), FORWARD)  # of a logarithm of probabilities
    assert result.clean < rounding < result.corrupt
