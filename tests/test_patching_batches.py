"""How patches are put into batches, and what that holds: few passes, and no more memory than allowed."""

import pytest
import torch
from bounds import FORWARD, close
from models import PATCHED, WITH_STATE
from patching_loops import LENGTH, METRIC, prompts, small

from analyses.patching import running, schedule
from analyses.patching.running import activation_patch
from analyses.patching.snapshot import Snapshot
from analyses.patching.targets import Target


@pytest.mark.parametrize("family", PATCHED)
def test_many_patches_take_few_passes(family, monkeypatch):
    """Passes about n ÷ batch, and rows × layers × positions computed well under half of what one pass a patch takes."""
    lens, (clean, corrupt) = small(family), prompts(shared=0, length=40)
    work, n_layers = 0, lens.cfg.n_layers
    go_on = Snapshot.go_on

    def counted(self, rows, layer, cut):
        nonlocal work
        work += rows * (n_layers - layer) * (40 - cut)
        return go_on(self, rows, layer, cut)

    monkeypatch.setattr(Snapshot, "go_on", counted)
    hooks = [f"blocks.{layer}.hook_resid_pre" for layer in range(n_layers)]
    result = activation_patch(lens, clean, corrupt, METRIC, hooks, "p", batch_size=10)
    assert result.raw.shape == (n_layers, 40)
    assert result.forwards <= n_layers * 40 / 10 + 3
    assert work < 0.45 * n_layers * 40 * n_layers * 40


def test_large_activations_take_smaller_batches():
    """A point's copies in one batch stay within their share of the memory; at least one row is always taken."""
    lens = small("jamba")
    patches = [Target("blocks.0.ssm.hook_state", {"p": place}) for place in range(12)]
    one = schedule.size_of(lens.hook_points["blocks.0.ssm.hook_state"], 40)
    for rows, memory in ((12, 1 << 30), (5, 5 * one * schedule.SHARE), (1, one)):
        groups = schedule.groups_of(lens, patches, 40, 0, 32, memory, True)
        sizes = [len(batch.jobs) for group in groups for batch in group.batches]
        assert (max(sizes), sum(sizes)) == (rows, 12)


@pytest.mark.parametrize("family", WITH_STATE)
def test_captures_are_bounded_by_memory(family, monkeypatch):
    """With little memory, values are captured a few points at a time, and the result is the same."""
    lens, (clean, corrupt) = small(family), prompts()
    hooks = [f"blocks.{layer}.ssm.hook_state" for layer in lens.cfg.ssm_layers]
    one = schedule.size_of(lens.hook_points[hooks[0]], LENGTH)
    held = []
    taken = running.captured

    def watched(*given):
        kept, output = taken(*given)
        held.append(sum(value.numel() * value.element_size() for value in kept.values()))
        return kept, output

    monkeypatch.setattr(running, "captured", watched)
    whole = activation_patch(lens, clean, corrupt, METRIC, hooks, "p")
    little = activation_patch(lens, clean, corrupt, METRIC, hooks, "p", memory=one + 1)
    assert [size for size in held if size] == [one * len(hooks)] + [one] * len(hooks)
    close(little.raw, whole.raw, FORWARD, dtype=torch.float32)
