"""Ways to trace: scans, sessions, edits that are kept; and what traces leave behind: nothing."""

import contextlib
import gc
import threading
import traceback
import types
from collections import Counter

import pytest
import torch
from bounds import FORWARD, apart, close
from models import make, tokens
from nnsight.intervention.interleaver import Mediator
from trace_leftovers import clean

from hybridlens import Edit, HybridLens, HybridLensError


@pytest.fixture(scope="module", params=["recurrentgemma", "falcon_h1", "qwen3_next"])
def any_lens(request) -> HybridLens:
    return HybridLens(make(request.param))


@pytest.fixture(scope="module")
def lens() -> HybridLens:
    return HybridLens(make("jamba"))


# Inputs and outputs of points and layers.


def test_inputs_are_what_comes_and_outputs_what_goes(lens):
    ids, point = tokens(1, 6), lens.blocks[1].hook_resid_mid
    with torch.no_grad():
        cache = lens.run_with_cache(ids)[1]
        doubled = lens.run_with_hooks(ids, [(point.name, lambda x, hook: 2 * (x + 1))])
        with lens.trace(ids):
            entered = lens.blocks[1].input.save()
            first = point.input.save()
            point.input = point.input + 1
            both = point.inputs.save()
            point.output *= 2
            left = point.output.save()
            block = lens.blocks[1].output.save()
            logits = lens.hook_logits.output.save()
    assert torch.equal(entered, cache["resid_pre", 1])
    assert torch.equal(first, cache["resid_mid", 1])
    assert torch.equal(both[0][0], first + 1)
    assert both[1] == {}
    assert torch.equal(left, 2 * (first + 1))
    assert apart(block, cache["resid_post", 1])
    assert torch.equal(logits, doubled)


def test_a_lazy_point_is_made_for_its_input_too(any_lens):
    ids = tokens(1, 6)
    name = next(n for n, spec in any_lens.hook_points.items() if spec.lazy)
    with torch.no_grad(), any_lens.trace(ids):
        value = any_lens.hook_dict[name].input.save()
    with torch.no_grad():
        assert torch.equal(value, any_lens.run_with_cache(ids, name)[1][name])


# Scans.


def test_a_scan_has_the_shapes_of_a_run_and_uses_no_weight(any_lens):
    """Every point, on the meta device; with weights that would give NaN, so that a value would show."""
    names = list(any_lens.hook_points)
    with torch.no_grad():
        cache = any_lens.run_with_cache(tokens(2, 9), names)[1]
        with any_lens.scan(tokens(2, 9)):
            shapes, places = {}.save(), set().save()
            for name in names:
                value = any_lens.hook_dict[name].output
                shapes[name] = value.shape
                places.add(value.device.type)
        with any_lens.trace(tokens(2, 9), scan=True):
            last = any_lens.lm_head.output.shape.save()
    assert shapes == {name: cache[name].shape for name in names}
    assert places == {"meta"}
    assert last == shapes["hook_logits"]
    with torch.no_grad():
        assert torch.equal(any_lens.run_with_cache(tokens(2, 9), "hook_logits")[1]["hook_logits"], cache["hook_logits"])


def test_a_scan_of_invokes_and_none_of_a_generation(lens):
    with lens.scan() as tracer:
        with tracer.invoke(tokens(1, 7)):
            long = lens.hook_embed.output.shape.save()
        with tracer.invoke(tokens(2, 3)):
            short = lens.hook_embed.output.shape.save()
    assert (long, short) == ((1, 7, 32), (2, 3, 32))
    with pytest.raises(HybridLensError, match="a scan has no logits to choose tokens by"):
        lens.trace(tokens(1, 3), max_new_tokens=2, scan=True)


# Sessions and edits.


def test_values_pass_through_a_session_in_a_thread(lens):
    """Unsaved, from one trace to the next; what is not saved does not outlive it."""
    ids, other, found = tokens(1, 6), tokens(1, 6, seed=5), []

    def work():
        with torch.no_grad(), lens.session():
            with lens.trace(other):
                swapped = lens.blocks[1].output
            with lens.trace(ids):
                lens.blocks[1].output = swapped
                logits = lens.hook_logits.output.save()
        found.append((logits, "swapped" in locals()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    (logits, leaked) = found[0]
    assert not leaked
    with torch.no_grad():
        donor = lens.run_with_cache(other)[1]["resid_post", 1]
        assert torch.equal(logits, lens.run_with_hooks(ids, [("blocks.1.hook_resid_post", lambda x, hook: donor)]))


def test_an_edit_acts_in_traces_of_its_copy_alone(lens):
    ids = tokens(1, 6)

    def logits_of(traced):
        with torch.no_grad(), traced.trace(ids):
            value = lens.hook_logits.output.save()
        return value  # noqa: RET504 - the block's own name is what nnsight gives back

    with torch.no_grad():
        plain = lens(ids)
        doubled = lens.run_with_hooks(ids, [("blocks.1.hook_resid_post", lambda x, hook: x * 2)])
        cache = lens.run_with_cache(ids)[1]
    with lens.edit() as (_, edited):
        lens.blocks[1].output[:] *= 2
    with edited.edit() as (_, twice):
        lens.model.layers[3].mamba.in_proj.output = lens.model.layers[3].mamba.in_proj.output * 3
    assert torch.equal(logits_of(lens), plain)
    assert torch.equal(logits_of(edited), doubled)
    assert apart(logits_of(twice), doubled)
    assert torch.equal(logits_of(edited), doubled)
    with torch.no_grad():
        assert torch.equal(lens(ids), plain)
        assert torch.equal(lens.prefill(ids).logits, plain)
    with torch.no_grad(), edited.trace() as tracer:  # it acts on the rows of every invoke
        with tracer.invoke(ids):
            first = lens.blocks[2].input.save()
        with tracer.invoke(ids[:, :4]):
            second = lens.blocks[2].input.save()
    close(first, 2 * cache["resid_post", 1], FORWARD)
    close(second, 2 * cache["resid_post", 1][:, :4], FORWARD)


@pytest.mark.parametrize("of", [lambda lens: lens, lambda lens: lens.nnsight])
def test_an_edit_in_place_is_refused(lens, of):
    with pytest.raises(
        HybridLensError, match=r"act in traces and not in plain runs; use `with lens.edit\(\)"
    ) as caught:
        of(lens).edit(inplace=True)
    assert "\n" not in str(caught.value)
    with pytest.raises(HybridLensError, match=r"use `with lens.edit\(\)`"):
        lens.nnsight.blocks[1].edit()


# What traces leave behind.


def test_an_error_in_a_block_names_its_line_and_leaves_nothing(lens):
    """At a point, at a module, in an invoke, after a step, while an edit is on; the next trace is clean."""
    ids = tokens(1, 5)
    with torch.no_grad():
        plain = lens(ids)

    def at_a_point():
        with lens.trace(ids, edits=[Edit("hook_embed", lambda x, hook: x * 0)]):
            value = lens.blocks[1].output
            value / "a word"

    def at_a_module():
        with lens.trace(ids):
            lens.lm_head.output + "a word"

    def in_an_invoke():
        with lens.trace() as tracer:
            with tracer.invoke(ids):
                lens.hook_embed.output.save()
            with tracer.invoke(ids):
                lens.blocks[0].output + "a word"

    def at_a_step():
        with lens.trace(ids, max_new_tokens=3) as tracer:
            for step in tracer.iter[:3]:
                _ = lens.hook_logits.output
                if step == 1:
                    raise KeyError("a word")

    def out_of_order():
        with lens.trace(ids):
            lens.blocks[2].output.save()
            lens.blocks[0].output.save("a word")

    for fault in (at_a_point, at_a_module, in_an_invoke, at_a_step, out_of_order):
        with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever the line raises
            fault()
        frames = traceback.extract_tb(caught.value.__traceback__)
        mine = [frame for frame in frames if frame.filename == __file__]
        assert "a word" in (mine[-1].line or ""), fault.__name__
        assert clean(lens), fault.__name__
        with torch.no_grad(), lens.trace(ids):
            logits = lens.hook_logits.output.save()
        assert torch.equal(logits, plain)


def test_traces_do_not_pile_up(lens):
    """As many objects of each kind after nine traces of every sort as after one; eight more at least if one stayed."""
    ids = tokens(1, 4)

    def traces(times):
        for _ in range(times):
            with lens.trace(ids):
                lens.blocks[1].output.save()
            with lens.trace() as tracer:
                with tracer.invoke(ids):
                    lens.lm_head.output.save()
                with tracer.invoke(ids):
                    lens.blocks[1].output[:] = 0
            with contextlib.suppress(KeyError), lens.trace(ids):
                lens.blocks[0].output.save()
                raise KeyError
            with lens.session():
                for _ in range(1):
                    with lens.trace(ids):
                        lens.blocks[1].output.save()
        gc.collect()
        alive = Counter(map(type, gc.get_objects()))
        kinds = (torch.Tensor, Mediator, types.FrameType, types.FunctionType)
        return [sum(n for one, n in alive.items() if issubclass(one, kind)) for kind in kinds]

    before, after = traces(1), traces(9)
    assert all(b - a < 8 for a, b in zip(before, after, strict=True)), (before, after)
    counts = lens.nnsight.interleaver.counts
    assert len(counts) < 4 * (
        len(lens.hook_dict) + len(list(lens.hf_model.modules())) + len(list(lens.network.modules()))
    )


def test_two_lenses_trace_the_same_model_one_inside_the_other(lens):
    """Each block is served by its own run alone, at points and at modules that both have hooks on."""
    other, ids, longer = HybridLens(lens.hf_model), tokens(1, 5), tokens(1, 8)
    with torch.no_grad(), lens.trace(ids):
        first = lens.blocks[0].output.save()
        with other.trace(longer):
            inner = other.model.layers[0].mamba.in_proj.output
            other.blocks[1].output[:] = 0
        module = lens.model.layers[2].mamba.in_proj.output.save()
        logits = lens.hook_logits.output.save()
        length = inner.shape[1].save()
    assert length == 8
    assert first.shape[1] == module.shape[1] == 5
    with torch.no_grad():
        assert torch.equal(logits, lens(ids))
    assert clean(lens)
    assert clean(other)


def test_a_generation_has_no_gradient_and_says_so(lens):
    def through():
        with lens.trace(tokens(1, 4), max_new_tokens=2) as tracer:
            for _ in tracer.iter[1]:
                loss = lens.hook_logits.output.sum()
                with loss.backward():
                    loss.grad.save()

    with pytest.raises(NotImplementedError, match="does not require grad"):
        through()
    assert clean(lens)
