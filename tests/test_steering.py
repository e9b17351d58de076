"""Steering: the direction that was planted is found, at streams, writes and states, and moves what it should.

The planted models answer from one memory, and all else of them writes nothing: of two values v and w, the stream's
difference at the answer lies in two known axes, and in the state in two known channels.
"""

import planted_memory
import pytest
import torch
from models import make, tokens
from planted_memory import D_MODEL, VALUE_AXES

import hybridlens as hl
from analyses import steering
from analyses.patching.metrics import LogitDifference
from analyses.stream import Direction, SteeringEffect
from hybridlens.errors import HookFunctionError, InputError, UnknownNameError

V, W = VALUE_AXES[0], VALUE_AXES[3]
METRIC = LogitDifference(V, W)


def pairs(n=6):
    """Prompts that differ in the value alone: "v0" in the first, "v3" in the second."""
    found = []
    for pair in planted_memory.pairs(n):
        (place,) = (i for i, token in enumerate(pair.a) if token in VALUE_AXES)
        texts = [[*pair.a[:place], value, *pair.a[place + 1 :]] for value in (V, W)]
        found.append(tuple([text] for text in texts))
    return found


@pytest.fixture(scope="module", params=["head", "state"])
def planted(request):
    return planted_memory.planted("recurrentgemma", request.param)


@pytest.fixture(scope="module")
def memory():
    return planted_memory.planted("recurrentgemma", "state")


@pytest.fixture(scope="module")
def jamba():
    return hl.HybridLens(make("jamba", 1))


@pytest.mark.parametrize("make_direction", [steering.difference, steering.pca])
def test_the_planted_direction_is_found_in_the_stream_and_swaps_the_answer(planted, make_direction):
    """By hand: +1 on the axis of v0, -1 on that of v3; adding it to the other side's prompts gives v0's answer."""
    lens, layer, _ = planted
    name = f"blocks.{layer}.hook_resid_mid"
    direction = make_direction(lens, pairs(), name)
    wanted = torch.zeros(D_MODEL)
    wanted[V], wanted[W] = 0.5**0.5, -(0.5**0.5)
    assert float(direction.unit @ wanted) > 0.99  # chance in 32 dimensions is 0.18
    assert direction.explained > 0.98
    assert direction.spread < 0.1 * direction.size
    others = [pair[1][0] for pair in pairs()]
    with torch.no_grad():
        for prompt in others:
            assert int(lens([prompt])[0, -1].argmax()) == W
            assert int(lens.generate([prompt], 1, steering.steer(name, direction)).tokens) == V
    found = steering.effect(lens, direction, others, METRIC, (0.0, 1.0), positions=-1, draws=19)
    assert float(found.p_value[found.scales.index(1.0)]) == 0.05
    assert float(found.change[found.scales.index(0.0)]) == 0.0
    assert "p_value" in found._repr_html_()


def test_at_a_state_and_at_its_write(memory):
    """The four channels that hold the value, of 32; pushed by the mean difference the state tells the other value."""
    lens, layer, _ = memory
    name = f"blocks.{layer}.ssm.hook_state"
    direction = steering.difference(lens, pairs(), name)
    assert direction.unit.shape == lens.hook_points[name].sizes[2:]
    inside = direction.unit.flatten()[:4].square().sum()
    assert float(inside) > 0.9
    prompts = [pair[1][0] for pair in pairs()]
    found = steering.effect(lens, direction, prompts, METRIC, (1.0,), positions=-1, draws=19)
    assert bool((found.untouched < -1).all())
    assert bool((found.values[0] > 1).all())
    assert float(found.p_value) == 0.05
    write = f"blocks.{layer}.ssm.hook_write"  # once, early: the recurrence carries it on
    edits = steering.steer(write, direction.vector, 1.0, 3, "prefill")
    with lens.editing(edits, "prefill") as forward, torch.no_grad():
        logits = forward(torch.tensor(prompts)).logits
    assert bool((METRIC(logits) > found.untouched).all())


def test_pairs_of_any_length_are_measured_as_they_are(jamba):
    """Difference, spread and share beside numpy's, and the first singular vector, of random activations."""
    name = "blocks.2.hook_mixer_out"
    given = [([[3, 1, 4]], [[1, 5]]), ([[9, 2]], [[6, 5, 3, 5]]), ([[8, 9, 7]], [[9, 3, 2]]), ([[38]], [[4, 6]])]
    rows = []
    with torch.no_grad():
        for one, other in given:
            held = [jamba.run_with_cache(side, name)[1][name][0, -1].double() for side in (one, other)]
            rows.append(held[0] - held[1])
    d = torch.stack(rows).numpy()
    found = steering.difference(jamba, given, name)
    unit = d.mean(axis=0) / (d.mean(axis=0) @ d.mean(axis=0)) ** 0.5
    for value, own in [
        (found.size, (d @ unit).mean()), (found.spread, (d @ unit).std()),
        (found.explained, ((d @ unit) ** 2).sum() / (d**2).sum()), (found.unit @ torch.tensor(unit).float(), 1.0),
    ]:  # fmt: skip
        assert float(value) == pytest.approx(float(own), rel=1e-4)
    one = steering.difference(jamba, given[:1], name)
    assert one.spread != one.spread  # of one pair there is none
    assert "spread –" in repr(one)
    main = steering.pca(jamba, given, name)
    import numpy as np

    values = np.linalg.svd(d, compute_uv=False)
    assert main.explained == pytest.approx(values[0] ** 2 / (values**2).sum(), rel=1e-4)
    assert main.explained >= found.explained
    assert main.size > 0
    assert main.pairs == 4


def test_positions_and_phases(jamba):
    """Which tokens are pushed, read off the point itself: rows of 5 and 3 tokens, and three decode steps."""
    name, push = "blocks.1.hook_resid_post", torch.full((32,), 50.0)
    prompts, lengths = [[3, 1, 4, 1, 5], [9, 2, 6]], [5, 3]

    def pushed(edits, phase):
        """(row, absolute position) of each token that was pushed."""
        seen = set()

        def look(x, hook):
            for row, pos in (x[..., 0] > 25).nonzero().tolist():
                seen.add((row, int(hook.positions.expand(len(x), -1)[row, pos])))

        jamba.generate(prompts, 3, [*edits, hl.Edit(name, look)], "first_new_token", stop_at_eos=False)
        return {(row, pos) for row, pos in seen if pos < lengths[row] or phase != "prefill"}

    every = {(0, p) for p in range(7)} | {(1, p) for p in range(5)}
    read = {(row, p) for row, p in every if p < lengths[row]}
    for positions, phase, own, wanted in [
        (None, "both", None, every),
        (None, "prefill", None, read),
        (None, "decode", None, every - read),
        (1, "prefill", None, {(0, 1), (1, 1)}),
        ([0, 2], "prefill", None, {(0, 0), (0, 2), (1, 0), (1, 2)}),
        ((4, None), "both", None, {(0, 4), (0, 5), (0, 6), (1, 4)}),
        ((0, 4, 2), "prefill", None, {(0, 0), (0, 2), (1, 0), (1, 2)}),
        (-1, "both", lengths, {(0, 4), (1, 2)}),
        ((-2, None), "both", lengths, {(0, 3), (0, 4), (1, 1), (1, 2)}),
    ]:
        edits = steering.steer(name, push, 1.0, positions, phase, lengths=own)
        assert pushed(edits, phase) == wanted, (positions, phase)


def test_what_is_added_is_scale_times_the_vector(jamba, tmp_path):
    name, t = "blocks.0.ssm.hook_state", tokens(2, 4)
    shape = jamba.hook_points[name].sizes[2:]
    direction = Direction(name, torch.ones(shape) / 320**0.5, 4.0, 0.0, 1.0, "pca", 3, -1, jamba.network.signature)
    direction = Direction.load(direction.save(tmp_path / "direction.safetensors"))
    edits = steering.steer(name, direction, -0.5)
    with torch.no_grad():
        wanted = jamba.run_with_hooks(t, [(name, lambda x, hook: x - 0.5 * 4.0 / 320**0.5)])
        found = jamba.run_with_hooks(t, [(edit.hook, edit.fn) for edit in edits])
    torch.testing.assert_close(found, wanted)
    assert float(direction.along(3 * direction.unit[None])) == pytest.approx(3.0)
    assert float(direction.vector.norm()) == pytest.approx(4.0)


def test_effects_of_single_prompts(jamba, tmp_path):
    """Rows of two lengths: each value is what a run with the push written out gives; random pushes are as long."""
    name, prompts = "blocks.2.hook_mixer_out", [[3, 1, 4, 1, 5], [9, 2, 6], [2, 7, 1, 8, 2]]
    direction = steering.difference(jamba, [([[1, 2]], [[3, 4]])], name)
    metric = LogitDifference(7, 11)
    found = steering.effect(jamba, direction, prompts, metric, (2.0,), draws=3)
    with torch.no_grad():
        for row, prompt in enumerate(prompts):
            put = jamba.run_with_hooks([prompt], [(name, lambda x, hook: x + 2 * direction.vector)])
            assert float(found.values[0, row]) == pytest.approx(float(metric(put)), rel=1e-4, abs=1e-5)
            assert float(found.untouched[row]) == pytest.approx(float(metric(jamba([prompt]))), rel=1e-4, abs=1e-5)
    assert found.length == pytest.approx(direction.size, rel=1e-5)
    assert found.random.shape == (3, 1, 3)
    assert not bool((found.random_change == found.random_change[0]).all())
    again = SteeringEffect.load(found.save(tmp_path / "effect.safetensors"))
    assert torch.equal(again.random, found.random)
    assert len(found.to_pandas()) == 1


def test_misuse_is_refused_in_one_line(jamba):
    name, push = "blocks.1.hook_resid_post", torch.ones(32)
    one = [([[1, 2]], [[3, 4]])]
    for call, said in [
        (lambda: steering.difference(jamba, [([[1, 2]], [[1, 2]])], name), "do not differ"),
        (lambda: steering.pca(jamba, [([[1, 2]], [[1, 2]])], name), "do not differ"),
        (lambda: steering.difference(jamba, [([[1, 2], [3, 4]], [[1, 2]])], name), "pair 0 has 2 prompts on one side"),
        (lambda: steering.difference(jamba, one, name, 5), r"position 5 given, but the prompt has 0\.\.1"),
        (lambda: steering.difference(jamba, one, "blocks.1.attn.hook_pattern"), "has the axes b h p k"),
        (lambda: steering.steer(name, push, 1.0, -1), "counted from the end need lengths="),
        (lambda: steering.steer(name, push, 1.0, (-2, None)), "counted from the end need lengths="),
        (lambda: steering.steer(name, push, 1.0, 7, lengths=[3]), r"a prompt has the positions 0\.\.2"),
        (lambda: steering.steer(name, push * torch.nan), "holds NaN"),
        (lambda: steering.difference(jamba, one, name).along(torch.ones(31)), r"expected \[32\] on the last axes"),
    ]:
        with pytest.raises(InputError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(UnknownNameError, match="phase 'decoding' does not exist"):
        steering.steer(name, push, phase="decoding")
    for edits, said in [
        (steering.steer(name, torch.ones(31)), r"the direction has shape \[31\], expected \[32\]"),
        (steering.steer(name, push, 1.0, -1, lengths=[2]), "lengths of 1 rows, but the batch has 2"),
    ]:
        with pytest.raises(HookFunctionError, match=said):
            jamba.prefill(tokens(2, 4), edits)
