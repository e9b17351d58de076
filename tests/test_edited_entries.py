"""What counts as edited: entries that differ, and those that a hook froze at the value they have."""

import pytest
import torch
from models import FAMILIES, make, tokens
from torch.testing import assert_close

from hybridlens import Edit, HookPoint, HybridLens
from hybridlens.errors import HookFunctionError
from hybridlens.hooks import attached

SHAPE = (2, 3, 4)


@pytest.fixture
def point():
    point = HookPoint("b p d", d=4)
    point.name = "hook_embed"
    return point


@pytest.fixture(params=FAMILIES)
def lens(request):
    return HybridLens(make(request.param))


def edited(point, x, *functions):
    with attached({"hook_embed": point}, [("hook_embed", fn) for fn in functions]):
        return point.edited(x)


def at(*where):
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[where] = True
    return mask


def test_sizes_are_kept_by_letter():
    point = HookPoint("b p h e", h=8, e=16)
    assert point.sizes == {"h": 8, "e": 16}
    assert HookPoint("b p d").sizes == {}
    with pytest.raises(ValueError, match="sizes of axes h given for a hook point with axes b p d"):
        HookPoint("b p d", h=3)


def test_a_lazy_value_is_made_only_for_somebody(point):
    made = []
    assert point.lazily(lambda: made.append(1) or torch.ones(SHAPE)) is None
    assert point.edited_lazily(lambda: made.append(1) or torch.ones(SHAPE)) is None
    assert made == []
    with attached({"hook_embed": point}, [("hook_embed", lambda x, hook: x * 3)]):
        value = point.lazily(lambda: made.append(1) or torch.ones(SHAPE))
        both = point.edited_lazily(lambda: made.append(1) or torch.ones(SHAPE))
    assert made == [1, 1]
    assert torch.equal(value, torch.full(SHAPE, 3.0))
    assert torch.equal(both.value, value)
    assert bool(both.mask.all())


def test_entries_that_differ_are_edited_and_nothing_else(point):
    x = torch.randn(SHAPE)
    x[0, 0, 0] = float("nan")
    assert edited(point, x).mask is None
    assert edited(point, x, lambda x, hook: None).mask is None
    assert edited(point, x, lambda x, hook: x.clone()).mask is None

    def change(x, hook):
        x[1, 2] += 1
        x[0, 1, 1] = float("nan")

    value, mask = edited(point, x, change)
    assert torch.equal(mask, at(1, 2) | at(0, 1, 1))
    assert torch.equal(x[1, 2] + 1, value[1, 2])


def test_frozen_entries_count_though_they_keep_their_value(point):
    x = torch.randn(SHAPE)
    value, mask = edited(point, x, lambda x, hook: hook.freeze(at(0, 2)))
    assert torch.equal(value, x)
    assert torch.equal(mask, at(0, 2))
    none = edited(point, x, lambda x, hook: hook.freeze(torch.zeros(SHAPE, dtype=torch.bool))).mask
    assert none is None or not none.any()  # whether any is frozen is not asked, since on a device it would wait


def test_masks_broadcast_and_add_up_over_calls_and_functions(point):
    x = torch.randn(SHAPE)
    middle = torch.tensor([False, True, False])[None, :, None]

    def first(x, hook):
        hook.freeze(middle)
        hook.freeze(at(0, 0, 0))

    def second(x, hook):
        hook.freeze(at(1, 2, 3))
        x[0, 1, 2] = 7.0  # a frozen entry is simply changed
        return x

    value, mask = edited(point, x, first, second)
    assert torch.equal(mask, middle.expand(SHAPE) | at(0, 0, 0) | at(1, 2, 3))
    assert value[0, 1, 2] == 7.0
    assert torch.equal(value.masked_fill(at(0, 1, 2), 0), x.masked_fill(at(0, 1, 2), 0))


def test_a_mask_may_be_written_to_after_it_was_given(point):
    def freeze(x, hook):
        mask = at(0, 0)
        hook.freeze(mask)
        mask[:] = True

    assert torch.equal(edited(point, torch.randn(SHAPE), freeze).mask, at(0, 0))


def test_an_edit_of_rows_freezes_in_those_rows(point):
    """Rows [1] of two: the mask has the shape of what the function was given, one row."""
    edit = Edit("hook_embed", lambda x, hook: hook.freeze(at(0, 1)[:1]), rows=[1])
    assert torch.equal(edited(point, torch.randn(SHAPE), edit.function()).mask, at(1, 1))
    edit = Edit("hook_embed", lambda x, hook: hook.freeze(torch.tensor(True)), rows=[1, -1])
    assert torch.equal(edited(point, torch.randn(SHAPE), edit.function()).mask, at(1))


WRONG = {
    "dtype": (torch.ones(SHAPE), "'hook_embed'.freeze was given torch.float32, expected a tensor of truth values"),
    "shape": (torch.ones(2, 2, dtype=torch.bool), r"of shape \[2, 2\], expected one that broadcasts to \[2, 3, 4\]"),
    "axes": (torch.ones(1, *SHAPE, dtype=torch.bool), r"shape \[1, 2, 3, 4\], expected one that broadcasts"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_masks_that_do_not_fit_are_refused(point, kind):
    mask, message = WRONG[kind]
    with pytest.raises(HookFunctionError, match=message) as caught:
        edited(point, torch.randn(SHAPE), lambda x, hook: hook.freeze(mask))
    assert "\n" not in str(caught.value)


def test_freezing_is_for_hook_functions_of_that_point(point, lens):
    mask = torch.tensor(True)
    with pytest.raises(HookFunctionError, match=r"'hook_embed'\.freeze was called while no hook function"):
        point.freeze(mask)
    with pytest.raises(HookFunctionError, match=r"'hook_logits'\.freeze was called while no hook function"):
        lens.run_with_hooks(tokens(1, 4), [("hook_embed", lambda x, hook: lens.hook_logits.freeze(mask))])
    name = f"blocks.{lens.cfg.ssm_layers[0]}.ssm.hook_pattern"
    with pytest.raises(HookFunctionError, match="read-only"):
        lens.run_with_hooks(tokens(1, 4), [(name, lambda x, hook: hook.freeze(mask))])


def test_each_function_writes_to_a_copy_of_its_own(point):
    """What the first saw is not changed by what the second writes in place."""
    seen, x = [], torch.randn(SHAPE)
    before = x.clone()
    value, _ = edited(point, x, lambda x, hook: seen.append(x), lambda x, hook: x.zero_())
    assert torch.equal(seen[0], before)
    assert torch.equal(x, before)
    assert not value.any()


def test_on_the_meta_device_a_read_is_no_edit_and_a_write_is_one(point):
    """There are no values to compare: what a function returns, or writes to, counts as changed, and nothing else."""
    x = torch.empty(SHAPE, device="meta")
    assert edited(point, x, lambda x, hook: None).mask is None
    for function in (lambda x, hook: x * 0, lambda x, hook: x.zero_(), lambda x, hook: x.clone()):
        value, mask = edited(point, x, function)
        assert value is not x
        assert mask.shape == SHAPE
        assert mask.dtype == torch.bool
        assert mask.is_meta


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_without_values_runs_with_every_hook_and_gives_shapes(family):
    lens = HybridLens(make(family).to("meta", torch.bfloat16))
    ids = tokens(2, 6).to("meta")
    with torch.no_grad():
        plain, cache = lens.run_with_cache(ids, list(lens.hook_points))
        assert plain.shape == (2, 6, 53)
        assert len(cache) == len(lens.hook_points)
        read = [(name, lambda x, hook: None) for name in lens.hook_points]
        assert lens.run_with_hooks(ids, read).shape == plain.shape
        for name, spec in lens.hook_points.items():
            if not spec.read_only:
                assert lens.run_with_hooks(ids, [(name, lambda x, hook: x * 0)]).shape == plain.shape, name


def recurrent(state, layer):
    """What a layer's recurrence remembers."""
    (name,) = [n for n in state.tensors() if n.startswith(f"layers.{layer}.") and n.endswith("recurrent")]
    return state.tensors()[name]


def by_hand(lens, ids, layer, edit, frozen):
    """States of a layer's recurrence, token by token: `edit` sets entries, `frozen` keeps the untouched value."""
    name = f"blocks.{layer}.ssm.hook_"
    with torch.no_grad():
        _, cache = lens.run_with_cache(ids, [f"{name}decay", f"{name}write", f"{name}state"])
    decay, write, plain = (cache[f"{name}{what}"].double() for what in ("decay", "write", "state"))
    state, states = torch.zeros_like(plain[:, 0]), []
    for t in range(ids.shape[1]):
        state = decay[:, t] * state + write[:, t]
        state = torch.where(frozen[:, t], plain[:, t], state)
        state = edit(t, state)
        states.append(state)
    return torch.stack(states, 1)


@pytest.mark.parametrize("grad", [False, True])
def test_a_frozen_state_keeps_its_value_whatever_comes_before_it(lens, grad):
    """The first half of the channels is zeroed at 2, and frozen at 5 in row 1: there the edit's effect ends."""
    layer, ids = lens.cfg.ssm_layers[0], tokens(2, 9)
    name, y = f"blocks.{layer}.ssm.hook_state", f"blocks.{layer}.ssm.hook_y"
    with torch.no_grad():
        plain = lens.run_with_cache(ids, name)[1][name]
    half = plain.shape[2] // 2
    frozen = torch.zeros(plain.shape, dtype=torch.bool)
    frozen[1, 5] = True

    def set_two(t, state):
        state = state.clone()
        state[:, :half] = 0 if t == 2 else state[:, :half]
        return state

    def zero(x, hook):
        x = x.clone()
        x[:, 2, :half] = 0
        return x

    def freeze(x, hook):
        hook.freeze(frozen)

    expected = by_hand(lens, ids, layer, set_two, frozen)
    with torch.set_grad_enabled(grad):
        state = lens.prefill(ids, [Edit(name, zero), Edit(name, freeze)]).state
        logits = lens.run_with_hooks(ids, [(name, freeze), (name, zero)])
        rows = lens.run_with_hooks(ids, [(name, zero), (name, Edit(name, lambda x, hook: hook.freeze(
            torch.arange(x.shape[1]).eq(5).view(1, -1, *[1] * (x.ndim - 2))), rows=[1]).function())])  # fmt: skip
        only = lens.run_with_hooks(ids, [(name, zero)])
    assert_close(recurrent(state, layer).double(), expected[:, -1], rtol=1e-4, atol=1e-5)
    scale = float(logits.detach().abs().max())
    assert float((logits - rows).detach().abs().max()) <= 1e-5 * scale
    assert torch.equal(only[0], logits[0])
    assert float((only[1, 5:] - logits[1, 5:]).detach().abs().max()) > 1e-3 * scale
    assert y in lens.hook_points


def test_freezing_in_decode_is_what_the_next_step_starts_from(lens):
    """A step at a time and all at once: the state is held at the value that the untouched step gives."""
    layer, ids = lens.cfg.ssm_layers[0], tokens(1, 6)
    name = f"blocks.{layer}.ssm.hook_state"
    with torch.no_grad():
        state = lens.prefill(ids).state
        plain = lens.extend(state, tokens(1, 1, seed=4)).state
        held = lens.extend(state, tokens(1, 1, seed=4), [Edit(name, lambda x, hook: hook.freeze(torch.tensor(True)))])
    assert torch.equal(recurrent(held.state, layer), recurrent(plain, layer))


def test_a_trace_freezes_at_the_point(lens):
    """The same as a hook, with and without reading the point first."""
    layer, ids = lens.cfg.ssm_layers[0], tokens(2, 9)
    name = f"blocks.{layer}.ssm.hook_state"
    point = lens.blocks[layer].ssm.hook_state
    with torch.no_grad():
        ndim = lens.run_with_cache(ids, name)[1][name].ndim
        mask = torch.arange(9).eq(5).view(1, -1, *[1] * (ndim - 2))

        def zero(x, hook):
            x[:, 2] = 0

        expected = lens.run_with_hooks(ids, [(name, zero), (name, lambda x, hook: hook.freeze(mask))])
        with lens.trace(ids):
            point.output[:, 2] = 0
            point.freeze(mask)
            after = lens.hook_logits.output.save()
        with lens.trace(ids, edits=[Edit(name, zero)]):
            point.freeze(mask)
            alone = lens.hook_logits.output.save()
        assert not torch.equal(expected, lens.run_with_hooks(ids, [(name, zero)]))
    assert torch.equal(after, expected)
    assert torch.equal(alone, expected)
