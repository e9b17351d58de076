"""Patching: equal to one plain run a patch for random targets, exact at both ends, and nothing left behind.

The reference is a loop over patches: one `run_with_hooks` each, whole model, batch of one, with the values copied
entry by entry under a dense mask. It shares no code with what it checks but the prompts.
"""

import random
from functools import cache
from itertools import product

import pytest
import torch
from bounds import FORWARD, bound, close
from matrix_models import ALL, make_any
from models import tokens

import hybridlens as hl
from analyses.patching import ablation, running, schedule
from analyses.patching.ablation import ablate
from analyses.patching.metrics import KullbackLeibler, LogitDifference, LogProbability
from analyses.patching.over import expand
from analyses.patching.results import Axis, PatchResult
from analyses.patching.running import activation_patch
from analyses.patching.snapshot import Snapshot
from analyses.patching.sweeps import SWEEPS, sweep
from analyses.patching.targets import Target, locate, patch_words
from hybridlens.errors import HookFunctionError, InputError, ResultsError, UnknownNameError

LENGTH = 19  # more than twice the window of the small RecurrentGemma
METRIC = LogitDifference(3, 7)


@cache
def small(family, dtype=torch.float32):
    return hl.HybridLens(make_any(family, 3).to(dtype))


def prompts(shared=5, length=LENGTH):
    """Two random prompts with a common beginning."""
    clean, corrupt = tokens(1, length, 1), tokens(1, length, 2)
    corrupt[:, :shared] = clean[:, :shared]
    return clean, corrupt


def dense(index, size):
    """An index of a target as truth values over the whole axis."""
    mask = torch.zeros(size, dtype=torch.bool)
    mask[list(index) if isinstance(index, tuple) else index] = True
    return mask


def plain(lens, base, values, patch, metric=METRIC):
    """The metric under one patch: one run of the whole model, every hook point by itself."""

    def put(target):
        axes = lens.hook_points[target.hook].axes

        def fn(x, hook):
            mask = torch.ones(x.shape[1:], dtype=torch.bool)
            for axis, index in target.where.items():
                place = axes.index(axis) - 1
                mask &= dense(index, mask.shape[place]).view([-1 if i == place else 1 for i in range(mask.ndim)])
            x[0][mask] = values[target.hook][0][mask].to(x.dtype)
            return x

        return target.hook, fn

    with torch.no_grad():
        return metric(lens.run_with_hooks(base, [put(target) for target in patch]))[0].item()


def loop(lens, base, source, patches, metric=METRIC):
    """The metric under each patch, one plain run a patch."""
    names = sorted({target.hook for patch in patches for target in patch})
    with torch.no_grad():
        values = lens.run_with_cache(source, names)[1]
    return torch.tensor([plain(lens, base, values, patch, metric) for patch in patches], dtype=torch.float64)


def random_index(rng, size):
    kind = rng.choice(["int", "tuple", "slice"])
    if kind == "int":
        return rng.randrange(-size, size)
    if kind == "tuple":
        return tuple(rng.sample(range(size), rng.randint(1, min(4, size))))
    start = rng.randrange(size)
    return slice(start, rng.randint(start, size), rng.choice([None, 2]))


def random_patches(lens, n, seed=0, length=LENGTH):
    """Patches of no, one or two targets, at any points, with indices of all kinds on any of their axes."""
    rng = random.Random(seed)
    specs = [spec for spec in lens.hook_points.values() if not spec.read_only]
    patches = []
    for _ in range(n):
        targets = []
        for spec in rng.sample(specs, rng.choice([0, 1, 1, 1, 2])):
            sizes = {
                axis: length if size is None else size
                for axis, size in zip(spec.axes, spec.sizes, strict=True)
                if axis not in "b1"
            }
            chosen = rng.sample(sorted(sizes), rng.randint(0, len(sizes)))
            targets.append(Target(spec.name, {axis: random_index(rng, sizes[axis]) for axis in chosen}))
        patches.append(targets)
    return patches


@pytest.mark.parametrize("family", ALL)
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


@pytest.mark.parametrize("family", ALL)
def test_bfloat16_one_by_one_is_the_plain_loop_bit_for_bit(family):
    """In bfloat16 a single patch in a batch, read from the first position on, gives the very bits of a plain run."""
    lens, (clean, corrupt) = small(family, torch.bfloat16), prompts()
    patches = random_patches(lens, 25, seed=5)
    result = activation_patch(lens, clean, corrupt, METRIC, targets=patches, batch_size=1, skip_positions=False)
    close(result.raw, loop(lens, corrupt, clean, patches), FORWARD)


@pytest.mark.parametrize("family", ALL)
def test_bfloat16_in_batches_is_as_near_to_the_truth_as_the_plain_loop(family):
    """Batches round otherwise, and no worse: both are compared with the same weights computed in float32."""
    lens, (clean, corrupt) = small(family, torch.bfloat16), prompts()
    exact = hl.HybridLens(make_any(family, 3).to(torch.bfloat16).to(torch.float32))
    patches = random_patches(lens, 40, seed=6)
    truth = loop(exact, corrupt, clean, patches)
    plainly = (loop(lens, corrupt, clean, patches) - truth).square().mean().sqrt()
    for skip in (True, False):
        result = activation_patch(lens, clean, corrupt, METRIC, targets=patches, batch_size=16, skip_positions=skip)
        ours = (result.raw - truth).square().mean().sqrt()
        assert ours < 1.4 * plainly + 1e-3
        assert ours < 0.1 * truth.std()


@pytest.mark.parametrize("family", [family for family in ALL if family != "mamba2"])
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


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_everything_gives_the_other_run_and_nothing_this_one_exactly(family, dtype):
    """Bit for bit: the embedding, or a layer's residual stream, takes the whole run along; no target changes no bit."""
    lens, (clean, corrupt) = small(family, dtype), prompts()
    last = f"blocks.{lens.cfg.n_layers - 1}.hook_resid_post"
    everything = [Target("hook_embed"), Target("blocks.0.hook_resid_pre"), Target(last)]
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


@pytest.mark.parametrize("family", ALL)
def test_rows_of_one_shape_do_not_hear_each_other(family):
    """In one batch with other patches, a row has the bits that it has among copies of itself.

    But for experts, which multiply the tokens of all rows that chose them: of other ones they may round otherwise.
    """
    lens, (clean, corrupt) = small(family), prompts()
    name = "blocks.1.hook_mixer_out"
    patches = [Target(name, {"p": place}) for place in range(8, 14)]
    mixed = activation_patch(lens, clean, corrupt, METRIC, targets=patches, skip_positions=False).raw
    for row, patch in enumerate(patches):
        alike = activation_patch(lens, clean, corrupt, METRIC, targets=[patch] * 6, skip_positions=False).raw
        if family == "jamba":
            close(alike[row], mixed[row], FORWARD, dtype=torch.float32)
        else:
            assert alike[row] == mixed[row]


@pytest.mark.parametrize("family", ALL)
def test_before_the_first_difference_a_patch_changes_nothing(family):
    """Positions that both prompts share hold the same values, so that patches there need no pass at all."""
    lens, (clean, corrupt) = small(family), prompts(shared=9)
    hooks = [f"blocks.{layer}.hook_mixer_out" for layer in range(lens.cfg.n_layers)]
    whole = activation_patch(lens, clean, corrupt, METRIC, hooks, "p")
    assert (whole.raw[:, :9] == whole.corrupt).all()
    assert (whole.raw[:, 9:] != whole.corrupt).any()
    early = activation_patch(lens, clean, corrupt, METRIC, hooks, {"p": list(range(9))})
    assert early.forwards == 2


@pytest.mark.parametrize("family", ALL)
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


@pytest.mark.parametrize("family", ALL)
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


@pytest.mark.parametrize("family", ALL)
def test_noise_where_it_matters_shows_there_and_nowhere_else(family):
    """The crafted case: with all mixers but one silenced, only that layer's writes can tell the two prompts apart.

    The prompts differ in one token that is not the last, so what the last position hears of it comes through a mixer.
    """
    lens, layer = small(family), 2 if family == "recurrentgemma" else 1
    n_layers = lens.cfg.n_layers
    clean = tokens(1, LENGTH, 1)
    corrupt = clean.clone()
    corrupt[0, 14] = (clean[0, 14] + 1) % 50

    def silence(x, hook):
        return torch.zeros_like(x)

    quiet = [other for other in range(n_layers) if other != layer]
    names = [f"blocks.{other}.hook_{kind}_out" for other in quiet for kind in ("attn", "ssm")]
    with lens.hooks([([name for name in names if name in lens.hook_dict], silence)]):
        hooks = [f"blocks.{other}.hook_mixer_out" for other in range(n_layers)]
        for direction, at_work, elsewhere in (("noise", 0.0, 1.0), ("denoise", 1.0, 0.0)):
            result = activation_patch(lens, clean, corrupt, METRIC, hooks, "p", direction=direction)
            expected = torch.full((n_layers, LENGTH), elsewhere, dtype=torch.float64)
            expected[layer, -1] = at_work
            # Shares of the difference of two metrics, each a difference of logits.
            size = float(lens(clean).detach().abs().max()) / abs(result.clean - result.corrupt)
            close(result.normalised, expected, FORWARD, scale=size, dtype=torch.float32)


@pytest.mark.parametrize("family", ALL)
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
    assert bool(SWEEPS["state_by_head"].hooks(lens)) == (lens.cfg.recurrences[0].n_heads is not None)
    with pytest.raises(UnknownNameError, match="sweep 'heads' does not exist; this model has resid_pre"):
        sweep(lens, "heads", clean, corrupt, METRIC)


def test_axes_are_named_and_labelled():
    """Layers, heads, channel blocks and positions with their tokens; both tokens where the prompts differ."""
    lens = small("recurrentgemma")
    clean, corrupt = [[5, 6, 7, 8]], [[5, 6, 9, 8]]
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


@pytest.mark.parametrize("family", ALL)
def test_ablation_equals_a_plain_loop_with_the_same_values(family):
    """Zeros, means of each kind and draws, against runs whose values are put together by hand."""
    lens, (clean, corrupt) = small(family), prompts()
    others = [tokens(1, LENGTH, seed) for seed in (11, 12, 13)]
    names = ["blocks.1.hook_mixer_out", f"blocks.{lens.cfg.ssm_layers[-1]}.ssm.hook_write", "blocks.2.hook_resid_pre"]
    patches = [[Target(name, {"p": place})] for name, place in product(names, (2, slice(5, 9), -1))]
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


@pytest.mark.parametrize("family", ALL)
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
    hooks = [f"blocks.{layer}.hook_mixer_out" for layer in range(lens.cfg.n_layers)]
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


@pytest.mark.parametrize("family", ALL)
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
