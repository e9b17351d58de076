"""Patching: equal to one plain run a patch for random targets, exact at both ends, and nothing left behind.

The reference is a loop over patches: one `run_with_hooks` each, whole model, batch of one, with the values copied
entry by entry under a dense mask. It shares no code with what it checks but the prompts.
"""

from itertools import product

import pytest
import torch
from bounds import FORWARD, close
from models import PATCHED, ROWS, WITH_ATTENTION, make_smooth
from patching_loops import METRIC, loop, prompts, random_patches, small, smooth

import hybridlens as hl
from analyses.patching.running import activation_patch
from analyses.patching.targets import Target


@pytest.mark.parametrize("family", PATCHED)
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_random_targets_equal_the_plain_loop(family, direction):
    """Any point, axes and indices; any batch size; beginning at 0 or behind the first positions; beyond the window."""
    lens, (clean, corrupt) = small(family), prompts()
    patches = random_patches(lens, 45, seed=len(direction))
    base, source = (corrupt, clean) if direction == "denoise" else (clean, corrupt)
    expected = loop(lens, base, source, patches)
    assert expected.std() > 0.1
    for batch_size, skip in ((1, True), (7, False), (64, True)):
        result = activation_patch(
            lens, clean, corrupt, METRIC, targets=patches, direction=direction, batch_size=batch_size,
            skip_positions=skip,
        )  # fmt: skip
        close(result.raw, expected, FORWARD, dtype=torch.float32)
        with torch.no_grad():
            close(result.clean, METRIC(lens(clean)).item(), FORWARD, dtype=torch.float32)
            close(result.corrupt, METRIC(lens(corrupt)).item(), FORWARD, dtype=torch.float32)
        scale = (expected - result.corrupt) / (result.clean - result.corrupt)
        close(result.normalised, scale, FORWARD, dtype=torch.float32)


@pytest.mark.parametrize("family", PATCHED)
def test_bfloat16_one_by_one_is_the_plain_loop_bit_for_bit(family):
    """In bfloat16 a single patch in a batch, read from the first position on, gives the very bits of a plain run."""
    lens, (clean, corrupt) = small(family, torch.bfloat16), prompts()
    patches = random_patches(lens, 25, seed=5)
    result = activation_patch(lens, clean, corrupt, METRIC, targets=patches, batch_size=1, skip_positions=False)
    close(result.raw, loop(lens, corrupt, clean, patches), FORWARD)


@pytest.mark.parametrize("family", PATCHED)
def test_bfloat16_in_batches_is_as_near_to_the_truth_as_the_plain_loop(family):
    """Batches round otherwise, and no worse: both are compared with the same weights computed in float32.

    All experts are in use, so that none changes hands by rounding, where no two ways are near each other.
    """
    lens, (clean, corrupt) = smooth(family, torch.bfloat16), prompts()
    exact = hl.HybridLens(make_smooth(family, 3).to(torch.bfloat16).to(torch.float32))
    patches = random_patches(lens, 40, seed=6)
    truth = loop(exact, corrupt, clean, patches)
    plainly = (loop(lens, corrupt, clean, patches) - truth).square().mean().sqrt()
    for skip in (True, False):
        result = activation_patch(lens, clean, corrupt, METRIC, targets=patches, batch_size=16, skip_positions=skip)
        ours = (result.raw - truth).square().mean().sqrt()
        assert ours < 1.4 * plainly + 1e-3
        assert ours < 0.2 * truth.std()


@pytest.mark.parametrize("family", WITH_ATTENTION)
def test_keys_are_found_where_a_window_has_passed_some(family):
    """Runs that begin behind the first positions hold other key slots; an index of keys means absolute positions."""
    lens, (clean, corrupt) = small(family), prompts(shared=11)
    layer = lens.cfg.attention_layers[0]
    patches = [
        [Target(f"blocks.{layer}.attn.{point}", {"p": place, **keys})]
        for point, place, keys in product(
            ("hook_pattern", "hook_attn_scores"),
            (12, (13, 17), -1),
            ({}, {"k": (2, 9, 12)}, {"k": slice(8, None), "h": (0, 2)}, {"k": slice(0, 5)}),
        )
    ]
    result = activation_patch(lens, clean, corrupt, METRIC, targets=patches, batch_size=6)
    close(result.raw, loop(lens, corrupt, clean, patches), FORWARD, dtype=torch.float32)
    assert (result.raw != result.corrupt).sum() > 8


@pytest.mark.parametrize("family", PATCHED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_everything_gives_the_other_run_and_nothing_this_one_exactly(family, dtype):
    """Bit for bit: the embedding, or a layer's residual stream, takes the whole run along; no target changes no bit.

    Shared blocks read the embedding beside the stream, so that of the stream alone they would make something else.
    """
    lens, (clean, corrupt) = small(family, dtype), prompts()
    last = f"blocks.{lens.cfg.n_layers - 1}.hook_resid_post"
    entry = [Target("blocks.0.hook_resid_pre"), *([Target("hook_embed")] if ROWS[family].shared else [])]
    everything = [Target("hook_embed"), entry, Target(last)]
    everything.append([Target(name) for name, spec in lens.hook_points.items() if not spec.read_only and not spec.lazy])
    nothing = [[], Target("blocks.1.hook_resid_pre", {"p": ()}), [Target("hook_logits", {"v": slice(0)})]]
    for direction in ("denoise", "noise"):
        one = activation_patch(
            lens, clean, corrupt, METRIC, targets=everything + nothing, direction=direction, batch_size=1,
            skip_positions=False,
        )  # fmt: skip
        other, this = (one.clean, one.corrupt) if direction == "denoise" else (one.corrupt, one.clean)
        assert one.raw.tolist() == [other] * 4 + [this] * 3
        assert set(one.normalised.tolist()) == {0.0, 1.0}
        many = activation_patch(lens, clean, corrupt, METRIC, targets=everything + nothing, direction=direction)
        assert many.raw[4:].tolist() == [this] * 3
        close(many.raw, one.raw, FORWARD, dtype=dtype)


@pytest.mark.parametrize("family", PATCHED)
def test_rows_of_one_shape_do_not_hear_each_other(family):
    """In one batch with other patches, a row has the bits that it has among copies of itself.

    All experts are in use: they multiply the tokens of all rows that chose them, and may round otherwise with fewer.
    """
    lens, (clean, corrupt) = smooth(family), prompts()
    name = "blocks.1.hook_mixer_out"
    patches = [Target(name, {"p": place}) for place in range(8, 14)]
    mixed = activation_patch(lens, clean, corrupt, METRIC, targets=patches, skip_positions=False).raw
    for row, patch in enumerate(patches):
        alike = activation_patch(lens, clean, corrupt, METRIC, targets=[patch] * 6, skip_positions=False).raw
        assert alike[row] == mixed[row]


@pytest.mark.parametrize("family", PATCHED)
def test_before_the_first_difference_a_patch_changes_nothing(family):
    """Positions that both prompts share hold the same values, so that patches there need no pass at all."""
    lens, (clean, corrupt) = small(family), prompts(shared=9)
    hooks = [name for name in lens.hook_points if name.endswith("hook_mixer_out")]
    whole = activation_patch(lens, clean, corrupt, METRIC, hooks, "p")
    assert (whole.raw[:, :9] == whole.corrupt).all()
    assert (whole.raw[:, 9:] != whole.corrupt).any()
    early = activation_patch(lens, clean, corrupt, METRIC, hooks, {"p": list(range(9))})
    assert early.forwards == 2
