"""Attribution patching: the slope of real patches, exact where the metric is linear, nothing left on the model.

The reference is the metric of whole runs in which the patched entries are moved a little way towards the other run's
values, entry by entry under a dense mask, differenced to fourth order.
"""

import math
import random

import pytest
import torch
from bounds import FORWARD, GRADIENT, LAYER, bound, close
from models import DELTA, PATCHED, ROWS, WITH_STATE
from patched_slopes import (
    LENGTH,
    METRIC,
    differentiable,
    near,
    open_in,
    prompts,
    random_target,
    slope,
    small,
    smooth,
    state_of,
    untouched,
)

from analyses.patching.agreement import agreement, compared
from analyses.patching.gradients import attribution_patch, attribution_sweep
from analyses.patching.metrics import KullbackLeibler, LogitDifference, LogProbability, NeedleScore, Rank
from analyses.patching.results import PatchResult
from analyses.patching.running import activation_patch
from analyses.patching.sweeps import SWEEPS, sweep
from analyses.patching.targets import Target
from hybridlens.errors import InputError
from hybridlens.niah import PAPER_NEEDLE


@pytest.mark.parametrize("family", PATCHED)
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_estimates_are_the_slopes_of_real_patches(family, direction):
    """Random entries of every point, states at several positions and overlapping targets among them."""
    lens, (clean, corrupt), rng = smooth(family), prompts(), random.Random(len(direction))
    base, source = (corrupt, clean) if direction == "denoise" else (clean, corrupt)
    patches = [[random_target(rng, spec)] for spec in differentiable(lens)]
    states = [spec for spec in differentiable(lens) if spec.name.endswith("hook_state")]
    patches += [[random_target(rng, spec), random_target(rng, spec)] for spec in states for _ in range(3)]
    heads = [spec for spec in differentiable(lens) if spec.name.endswith("hook_z")]
    patches += [[Target(spec.name, {"h": 1}), Target(spec.name, {"h": (1, 2), "p": (9, 12)})] for spec in heads]
    result = attribution_patch(lens, clean, corrupt, METRIC, targets=patches, direction=direction)
    with torch.no_grad():
        values = lens.run_with_cache(source, [spec.name for spec in differentiable(lens)])[1]
        size = float(lens(base).abs().max())
        close(result.untouched, METRIC(lens(base)).item(), FORWARD, scale=size, dtype=torch.float32)
    steps = [0.001 if "recurrence_gate" in patch[0].hook else near(family) for patch in patches]
    expected = [slope(lens, base, values, patch, h=h) for patch, h in zip(patches, steps, strict=True)]
    expected = torch.tensor(expected, dtype=torch.float64)
    assert expected.abs().max() > 0.3
    assert (expected.abs() > 0.01).sum() > len(patches) / 3
    by = torch.tensor(steps)  # what a quotient leaves open is of one size before it is divided by its step
    close(result.change * by, expected * by, GRADIENT, extra=open_in(lens, base, 1.0), dtype=torch.float32)
    assert result.forwards == 2
    assert untouched(lens)


def test_estimates_where_experts_are_chosen():
    """Two experts of four a token: all but the few patches on whose way, however short, an expert changes hands."""
    lens, (clean, corrupt), rng = small("jamba"), prompts(), random.Random(5)
    patches = [[random_target(rng, spec)] for spec in differentiable(lens)]
    result = attribution_patch(lens, clean, corrupt, METRIC, targets=patches, direction="noise")
    with torch.no_grad():
        values = lens.run_with_cache(corrupt, [spec.name for spec in differentiable(lens)])[1]
    expected = [slope(lens, clean, values, patch, h=0.001) for patch in patches]
    apart = (result.change - torch.tensor(expected).double()).abs()
    allowed = bound(float(result.change.abs().max()), GRADIENT) + open_in(lens, clean, 0.001)
    assert (apart < allowed).double().mean() > 0.95


@pytest.mark.parametrize("family", WITH_STATE)
def test_states_at_several_positions_are_cut_off_from_each_other(family):
    """Replacing a whole trajectory counts what each entry adds to what its predecessor hands on.

    The plain sum of gradient · change would count that again at every entry, and is far off.
    """
    lens, (clean, corrupt) = smooth(family), prompts()
    name = state_of(family)
    with torch.no_grad():
        values = lens.run_with_cache(clean, [name])[1]
    whole = attribution_patch(lens, clean, corrupt, METRIC, targets=[Target(name)])
    single = attribution_patch(lens, clean, corrupt, METRIC, name, "p")
    expected = slope(lens, corrupt, values, [Target(name)])
    each = [slope(lens, corrupt, values, [Target(name, {"p": p})]) for p in range(LENGTH)]
    close(single.change[0], torch.tensor(each).double(), GRADIENT, extra=open_in(lens, corrupt), dtype=torch.float32)
    close(float(whole.change[0]), expected, GRADIENT, extra=open_in(lens, corrupt), dtype=torch.float32)
    assert abs(float(single.change.sum()) - expected) > max(0.01, 0.1 * abs(expected))


@pytest.mark.parametrize("family", DELTA)
@pytest.mark.parametrize("point", ["hook_recall", "hook_write"])
def test_recalls_and_writes_of_a_delta_rule_hear_what_was_replaced_before(family, point):
    """Both are made of the state before their token; the plain sum of gradient · change is far off."""
    lens, (clean, corrupt) = smooth(family), prompts()
    name = f"blocks.{lens.cfg.ssm_layers[1]}.ssm.{point}"
    with torch.no_grad():
        values = lens.run_with_cache(clean, [name])[1]
    targets = [Target(name), Target(name, {"u": slice(2, 7), "p": (5, 6, 9)})]
    whole = attribution_patch(lens, clean, corrupt, METRIC, targets=targets)
    single = attribution_patch(lens, clean, corrupt, METRIC, name, "p")
    for change, target in zip(whole.change.tolist(), targets, strict=True):
        expected = slope(lens, corrupt, values, [target], h=near(family))
        assert change == pytest.approx(expected, abs=1e-3, rel=2e-3)
    assert abs(float(single.change.sum()) - float(whole.change[0])) > max(0.01, 0.05 * abs(float(whole.change[0])))


@pytest.mark.parametrize("family", PATCHED)
def test_a_linear_metric_is_estimated_exactly(family):
    """With the soft cap undone, logits are linear in the last normalised residual, and so are differences of them."""
    lens, (clean, corrupt) = small(family), prompts()

    def uncapped(logits):
        cap = lens.network.soft_cap
        last = logits[:, -1].double()
        last = last if cap is None else cap * torch.atanh(last / cap)
        return last[:, 3] - 0.5 * last[:, 7] + last[:, 20]

    over = {"p": [LENGTH - 1, 3, slice(5, LENGTH)], "d": 5}
    ours = attribution_patch(lens, clean, corrupt, uncapped, "ln_final.hook_normalized", over)
    exact = activation_patch(lens, clean, corrupt, uncapped, "ln_final.hook_normalized", over)
    assert exact.change.abs().max() > 0.1
    close(ours.raw, exact.raw, FORWARD, dtype=torch.float32)
    found = agreement(ours, exact)
    assert found.spearman > 0.99
    assert found.pearson > 0.9999
    close(found.largest_error, 0.0, GRADIENT, scale=float(exact.raw.abs().max()), dtype=torch.float32)
    at_logits = attribution_patch(lens, clean, corrupt, METRIC, "hook_logits", {"v": [3, 7, 8]})
    measured = activation_patch(lens, clean, corrupt, METRIC, "hook_logits", {"v": [3, 7, 8]})
    close(at_logits.raw, measured.raw, LAYER, dtype=torch.float32)


@pytest.mark.parametrize("family", PATCHED)
def test_integrated_gradients_at_the_input_add_up_to_the_whole_difference(family):
    """Smooth models (all experts in use): the error is far below the plain gradient's and falls with the steps."""
    lens, (clean, corrupt) = smooth(family), prompts()
    errors, many = {}, 128 if ROWS[family].bends else 32  # a delta rule's unit vectors bend the way more
    for steps in (None, 4, many):
        result = attribution_patch(lens, clean, corrupt, METRIC, "hook_embed", "p", steps=steps)
        errors[steps] = abs(float(result.change.sum()) - (result.clean - result.corrupt))
        assert result.forwards == (2 if steps is None else 2 + steps)
        assert not result.change[0, :4].any()  # the prompts begin alike
    assert errors[many] < 0.015 * abs(result.clean - result.corrupt)
    assert errors[many] < errors[4] / 4
    assert errors[None] > 20 * errors[many]


@pytest.mark.parametrize("family", PATCHED)
def test_integrated_gradients_are_the_mean_over_the_way(family):
    """Against finite differences in runs whose embedding was moved by hand, at each step; states included."""
    lens, (clean, corrupt), rng = smooth(family), prompts(), random.Random(5)
    specs = [s for s in differentiable(lens) if s.name.split(".")[-1] in ("hook_state", "hook_k", "hook_mlp_out")]
    patches = [[random_target(rng, spec)] for spec in specs]
    patches += [[Target(state_of(family))]] if ROWS[family].recurrence and ROWS[family].state else []
    names = ["hook_embed", *{t.hook for patch in patches for t in patch}]
    with torch.no_grad():
        base, source = (lens.run_with_cache(prompt, names)[1] for prompt in (corrupt, clean))
    expected = torch.zeros(len(patches), dtype=torch.float64)
    for way in (0.25, 0.75):
        embedded = base["hook_embed"] + way * (source["hook_embed"] - base["hook_embed"])
        with lens.hooks([("hook_embed", lambda x, hook, embedded=embedded: embedded.expand_as(x))]), torch.no_grad():
            held = lens.run_with_cache(corrupt, names)[1]
            moved = {name: held[name] + source[name] - base[name] for name in names}  # the change is the prompts' own
            expected += torch.tensor([slope(lens, corrupt, moved, patch) for patch in patches]) / 2
    result = attribution_patch(lens, clean, corrupt, METRIC, targets=patches, steps=2)
    close(result.change, expected, GRADIENT, extra=open_in(lens, corrupt), dtype=torch.float32)
    assert result.metric.endswith("estimated by integrated gradients in 2 steps")


@pytest.mark.parametrize("family", ["recurrentgemma", "mamba2", "qwen3_next"])
def test_every_sweep_can_be_estimated(family):
    """The same axes, prompts and ends as the exact sweep, so that the two compare; small places agree."""
    lens, (clean, corrupt) = small(family), prompts(length=9)
    names = [name for name, kind in SWEEPS.items() if kind.hooks(lens)]
    agreed = {}
    for name in names:
        ours = attribution_sweep(lens, name, clean, corrupt, METRIC, direction="noise")
        exact = sweep(lens, name, clean, corrupt, METRIC, direction="noise")
        assert (ours.axes, ours.hooks, ours.clean_tokens) == (exact.axes, exact.hooks, exact.clean_tokens)
        close((ours.clean, ours.corrupt), (exact.clean, exact.corrupt), LAYER)
        agreed[name] = agreement(ours, exact)
        assert agreed[name].patches == exact.raw.numel()
    assert len(names) > 20
    places = [found.pearson for name, found in agreed.items() if "_by_" in name]
    assert sum(places) / len(places) > (0.3 if ROWS[family].bends else 0.6)  # straight lines through unit vectors


@pytest.mark.parametrize("family", PATCHED)
@pytest.mark.parametrize("kind", ["probability", "answer", "divergence", "own"])
def test_other_metrics(family, kind):
    """A longer answer is read on from the prompt's memory, and the gradient comes back through that memory."""
    lens, (clean, corrupt), rng = smooth(family), prompts(), random.Random(3)
    with torch.no_grad():
        reference = lens(clean)[0]

    class Own:
        def of(self, lens, output):
            return own(output.logits)

    def own(logits):
        return logits[:, 6:, 2].square().mean(1) + logits[:, -1, 4].sin()

    metric = {
        "probability": LogProbability((4,)), "answer": LogProbability((4, 9, 2)),
        "divergence": KullbackLeibler(reference), "own": own,
    }[kind]  # fmt: skip
    wanted = ("hook_k", "hook_v", "hook_in", "hook_state", "hook_resid_mid")
    patches = [[random_target(rng, s)] for s in differentiable(lens) if s.name.split(".")[-1] in wanted]
    result = attribution_patch(lens, clean, corrupt, metric, targets=patches)
    with torch.no_grad():
        values = lens.run_with_cache(clean, list({t.hook for patch in patches for t in patch}))[1]
    by = Own() if kind == "own" else metric
    expected = [slope(lens, corrupt, values, patch, by, near(family)) for patch in patches]
    assert max(map(abs, expected)) > 0.008
    open_ = open_in(lens, corrupt, near(family))
    close(result.change, torch.tensor(expected).double(), GRADIENT, extra=open_, dtype=torch.float32)


def test_a_metric_at_its_optimum_has_no_slope():
    """Divergence from the patched run itself: zero everywhere, as the module says; integrated gradients see it."""
    lens, (clean, corrupt) = small("jamba"), prompts()
    with torch.no_grad():
        metric = KullbackLeibler(lens(clean)[0, -1])
    flat, seen = (
        attribution_patch(lens, clean, corrupt, metric, "hook_embed", direction="noise", steps=steps)
        for steps in (None, 8)
    )
    assert seen.change.abs().max() > 0.01
    largest = float(seen.change.abs().max())
    close(flat.change, torch.zeros_like(flat.change), GRADIENT, scale=largest, dtype=torch.float32)


@pytest.mark.parametrize("family", PATCHED)
def test_bfloat16_agrees_with_float32(family):
    half, whole = small(family, torch.bfloat16), small(family)
    with torch.no_grad():
        for theirs, ours in zip(whole.hf_model.parameters(), half.hf_model.parameters(), strict=True):
            assert theirs.dtype == torch.float32 != ours.dtype
    clean, corrupt = prompts()
    hooks = [name for name in whole.hook_points if name.endswith("hook_mixer_out")]
    ours, theirs = (attribution_patch(lens, clean, corrupt, METRIC, hooks, "p") for lens in (half, whole))
    assert compared(ours.change.flatten(), theirs.change.flatten()).pearson > 0.98


@pytest.mark.parametrize("family", PATCHED)
def test_what_cannot_be_estimated_is_refused_in_one_line(family):
    lens, (clean, corrupt) = small(family), prompts()
    before = lens(clean).detach()

    def refused(message, metric=METRIC, hook="blocks.1.hook_mixer_out", over="p", error=InputError, **options):
        with pytest.raises(error, match=message) as caught:
            attribution_patch(lens, clean, corrupt, metric, hook, over, **options)
        assert "\n" not in str(caught.value)
        assert untouched(lens)

    def broken(logits):
        raise RuntimeError("mine")

    refused(r"metric 'rank of token 3 .*' has no gradient \(it moves in steps, or was detached\)", Rank(3))
    refused("metric 'needle score .*' has no gradient", NeedleScore(PAPER_NEEDLE.rubric))
    refused("metric '.*' has no gradient", lambda logits: logits[:, -1].argmax(-1).float())
    refused("metric '.*' has no gradient", lambda logits: logits.detach()[:, -1, 0])
    refused(r"returned shape \[1, 53\], expected \[1\]", lambda logits: logits[:, -1])
    refused("returned nan for", lambda logits: logits[:, -1, 0] * torch.nan)
    refused("mine", broken, error=RuntimeError)
    refused("steps = 0 given, expected a whole number from 1 to", steps=0)
    for layer in lens.cfg.ssm_layers[:1]:
        refused("read-only", hook=f"blocks.{layer}.ssm.hook_pattern")
    refused("has no axis h", over="h")
    refused("so there is no scale", lambda logits: logits[:, 0, 0] * 0)
    if lens.cfg.moe_layers:
        hook = f"blocks.{lens.cfg.moe_layers[0]}.mlp.hook_expert_indices"
        refused(f"'{hook}' holds torch.int64, which has no gradient", hook=hook)
    assert torch.equal(lens(clean), before)


def test_agreement():
    """Against ranks and correlations worked out one by one; results of other patches are refused."""
    lens, (clean, corrupt) = small("jamba"), prompts()
    exact = activation_patch(lens, clean, corrupt, METRIC, "blocks.1.hook_mlp_out", "p")
    ours = attribution_patch(lens, clean, corrupt, METRIC, "blocks.1.hook_mlp_out", "p")
    x, y = (result.normalised.flatten().tolist() for result in (ours, exact))

    def rank(values):
        return [sum(b < a for b in values) + (sum(b == a for b in values) - 1) / 2 for a in values]

    def pearson(x, y):
        mx, my = sum(x) / len(x), sum(y) / len(y)
        up = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
        return up / math.sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))

    assert sorted(y)[3] == sorted(y)[0] or len(set(y)) < len(y)  # the first positions are ties
    found = agreement(ours, exact)
    close(found.spearman, pearson(rank(x), rank(y)))
    close(found.pearson, pearson(x, y))
    close(found.largest_error, max(abs(a - b) for a, b in zip(x, y, strict=True)))
    assert found.patches == LENGTH
    close(agreement(exact, exact)[:3], (1, 1, 0))
    tied = torch.tensor([2.0, 1.0, 2.0, 5.0, 1.0, 2.0])
    other = torch.tensor([1.0, 1.0, 3.0, 2.0, 0.0, 2.0])
    close(compared(tied, other).spearman, pearson(rank(tied.tolist()), rank(other.tolist())))
    close(compared(tied, other).pearson, pearson(tied.tolist(), other.tolist()))
    assert all(math.isnan(value) for value in compared(torch.ones(4), torch.arange(4.0))[:2])
    other = attribution_patch(lens, clean, corrupt, METRIC, "blocks.2.hook_mlp_out", "p")
    with pytest.raises(InputError, match="differ in their axes"):
        agreement(other, exact)
    with pytest.raises(InputError, match="of different metrics, 'logit of token 3 minus that of token 8, estimated"):
        agreement(attribution_patch(lens, clean, corrupt, LogitDifference(3, 8), exact.hooks[0], "p"), exact)


def test_a_result_is_saved_as_any_other(tmp_path):
    lens, (clean, corrupt) = small("jamba"), prompts()
    ours = attribution_patch(lens, clean, corrupt, METRIC, "blocks.1.hook_mlp_out", "p")
    again = PatchResult.load(ours.save(tmp_path / "a.safetensors"))
    assert torch.equal(again.raw, ours.raw)
    assert again.metric == ours.metric == f"{METRIC.words}, estimated by gradients"
