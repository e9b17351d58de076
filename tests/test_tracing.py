"""nnsight's way in: the same points, the same values, read and written, in one pass and over decode steps."""

import copy
import pickle

import pytest
import torch
from bounds import apart, close
from models import WITH_ATTENTION, WITH_STATE, make, tokens

from hybridlens import Edit, HybridLens, HybridLensError
from hybridlens.hooks import HookPoint


@pytest.fixture(params=WITH_STATE)
def any_lens(request):
    return HybridLens(make(request.param))


@pytest.fixture(params=WITH_ATTENTION)
def lens(request):
    return HybridLens(make(request.param))


def attention_block(lens):
    return lens.blocks[lens.cfg.attention_layers[0]]


def test_every_point_can_be_read(any_lens):
    """All of them in one trace, in forward order, equal to the cache bit for bit."""
    ids, names = tokens(2, 9), list(any_lens.hook_points)
    with torch.no_grad():
        cache = any_lens.run_with_cache(ids, names)[1]
        with any_lens.trace(ids):
            values = {}.save()
            for name in names:
                values[name] = any_lens.hook_dict[name].output
    assert list(values) == names
    for name in names:
        assert torch.equal(values[name], cache[name]), name


def test_writing_is_causal(lens):
    """Assignment and in-place writing give what the same hook gives, downstream and nothing upstream."""
    ids, block = tokens(2, 9), attention_block(lens)
    z = f"blocks.{lens.cfg.attention_layers[0]}.attn.hook_z"

    def half(x, hook):
        x = x.clone()
        x[:, :, 1] = 0
        return x * 0.5

    with torch.no_grad():
        expected = lens.run_with_hooks(ids, [(z, half)])
        plain = lens(ids)
        with lens.trace(ids):
            before = lens.blocks[0].hook_resid_pre.output.save()
            block.attn.hook_z.output[:, :, 1] = 0
            block.attn.hook_z.output = block.attn.hook_z.output * 0.5
            logits = lens.hook_logits.output.save()
    assert torch.equal(logits, expected)
    assert apart(logits, plain)
    assert torch.equal(before, lens.run_with_cache(ids, "hook_embed")[1]["hook_embed"])


@pytest.mark.parametrize("any_lens", WITH_STATE, indirect=True)
def test_a_state_written_in_a_trace_persists(any_lens):
    """What a trace writes to a state is what the same hook gives, later positions included."""
    ids = tokens(2, 9)
    name = f"blocks.{any_lens.cfg.ssm_layers[0]}.ssm.hook_state"

    def half(x, hook):
        x[:, 3] *= 0.5

    with torch.no_grad():
        expected, plain = any_lens.run_with_hooks(ids, [(name, half)]), any_lens(ids)
        with any_lens.trace(ids):
            any_lens.hook_dict[name].output[:, 3] *= 0.5
            logits = any_lens.hook_logits.output.save()
    assert torch.equal(logits, expected)
    assert not torch.allclose(logits[:, 4:], plain[:, 4:])


def test_gradients_flow_in_a_trace(lens):
    ids, block = tokens(2, 9), attention_block(lens)
    name = f"blocks.{lens.cfg.attention_layers[0]}.attn.hook_pattern"
    seen = {}
    with lens.hooks(bwd_hooks=[(name, lambda g, hook: seen.__setitem__("grad", g.clone()))]):
        lens(ids)[:, -1].square().sum().backward()
    with lens.trace(ids):
        pattern = block.attn.hook_pattern.output
        loss = lens.hook_logits.output[:, -1].square().sum()
        with loss.backward():
            grad = pattern.grad.save()
    close(grad, seen["grad"])


def test_a_generation_is_traced_step_by_step(lens):
    """Prefill and every decode step: what was saved equals a hook's record of an ordinary generation."""
    ids, block = tokens(2, 9), attention_block(lens)
    name = f"blocks.{lens.cfg.attention_layers[0]}.attn.hook_pattern"
    record = []
    lens.generate(ids, 4, [Edit(name, lambda x, hook: record.append(x.clone()))], "first_new_token")
    with lens.trace(ids, max_new_tokens=4) as tracer:
        patterns = [].save()
        for _ in tracer.iter[:4]:
            patterns.append(block.attn.hook_pattern.output)
    assert [p.shape for p in patterns] == [p.shape for p in record]
    assert all(torch.equal(a, b) for a, b in zip(patterns, record, strict=True))


def test_a_later_step_is_found_when_earlier_ones_were_not_wanted(lens):
    """Steps whose pattern nobody wanted still count, or step 3 would be served as step 0."""
    ids, block = tokens(2, 9), attention_block(lens)
    name = f"blocks.{lens.cfg.attention_layers[0]}.attn.hook_pattern"
    record = []
    lens.generate(ids, 4, [Edit(name, lambda x, hook: record.append(x.clone()))], "first_new_token")
    with lens.trace(ids, max_new_tokens=4) as tracer:
        for _ in tracer.iter[2]:
            lens.hook_logits.output.save()
        for _ in tracer.iter[3]:
            pattern = block.attn.hook_pattern.output.save()
    assert torch.equal(pattern, record[3])


def test_a_trace_computes_costly_points_only_when_it_reads_them(lens, monkeypatch):
    computed, real = [], HookPoint.__call__
    monkeypatch.setattr(
        HookPoint, "__call__", lambda point, x: (point.lazy and computed.append(point.name), real(point, x))[1]
    )
    ids, block = tokens(1, 9), attention_block(lens)
    with lens.trace(ids):
        block.attn.hook_z.output.save()
    assert computed == []
    with lens.trace(ids):
        block.attn.hook_pattern.output.save()
    assert set(computed) == {block.attn.hook_attn_scores.name, block.attn.hook_pattern.name}


def test_edits_and_rows_of_different_lengths_work_in_a_trace(any_lens):
    rows = [tokens(1, n, seed=n)[0].tolist() for n in (9, 4)]
    edit = Edit("blocks.0.hook_mixer_out", lambda x, hook: x * 0)
    with torch.no_grad():
        expected = any_lens.prefill(rows, [edit]).logits
        with any_lens.trace(rows, edits=[edit]):
            logits = any_lens.hook_logits.output.save()
    assert torch.equal(logits, expected)


def test_outside_a_trace_there_is_no_live_value(any_lens):
    with pytest.raises(HybridLensError, match=r"'hook_embed.output' has a value only inside `with lens.trace"):
        _ = any_lens.hook_embed.output


def test_what_was_saved_is_not_changed_by_a_later_edit_in_place(lens):
    """The pattern read before it is zeroed, as a whole and a row of it; the edit acts all the same."""
    ids, block = tokens(2, 9), attention_block(lens)
    name = f"blocks.{lens.cfg.attention_layers[0]}.attn.hook_pattern"
    with torch.no_grad():
        plain = lens.run_with_cache(ids, name)[1][name]
        expected = lens.run_with_hooks(ids, [(name, lambda x, hook: x * 0)])
        with lens.trace(ids):
            pattern = block.attn.hook_pattern.output.save()
            row = block.attn.hook_pattern.output[1].save()
            block.attn.hook_pattern.output[:] = 0
            zeroed = block.attn.hook_pattern.output.save()
            logits = lens.hook_logits.output.save()
    assert torch.equal(pattern, plain)
    assert torch.equal(row, plain[1])
    assert not zeroed.any()
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_writing_to_what_was_read_first_acts_as_well(lens, mode):
    """`output[:, 5] += f(output)` reads twice and writes to the first; in inference mode nothing counts writings."""
    ids, name = tokens(1, 9), "blocks.1.hook_resid_post"

    def add(x, hook):
        x[:, 5] += x[:, 4]

    with mode():
        expected = lens.run_with_hooks(ids, [(name, add)])
        with lens.trace(ids):
            lens.blocks[1].hook_resid_post.output[:, 5] += lens.blocks[1].hook_resid_post.output[:, 4]
            logits = lens.hook_logits.output.save()
    assert torch.equal(logits, expected)


def test_writing_to_two_reads_of_one_point_is_refused(lens):
    def write():
        with lens.trace(tokens(1, 5)):
            first = lens.blocks[0].hook_resid_post.output
            second = lens.blocks[0].hook_resid_post.output
            second[:, 1] = 0
            first[:, 2] = 0

    with pytest.raises(HybridLensError, match=r"'blocks.0.hook_resid_post.output' was read twice and both"):
        write()


def test_gradients_reach_what_was_saved_before_an_edit_in_place(lens):
    """The loss after the edit, with respect to the activation before it: where the edit zeroed, there is none."""
    ids = tokens(1, 7)
    with lens.trace(ids):
        before = lens.blocks[0].hook_resid_post.output.save()
        lens.blocks[0].hook_resid_post.output[:, 3] = 0
        loss = lens.hook_logits.output[:, -1].square().sum()
        with loss.backward():
            grad = before.grad.save()
    assert not grad[:, 3].any()
    assert grad[:, 2].any()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda lens: pickle.loads(pickle.dumps(lens))])
def test_a_lens_is_copied_after_a_trace_as_before_it(lens, copied):
    """The copy runs, hooks and traces on its own weights, and the original on its own."""
    ids = tokens(1, 6)

    def embedded(lens):
        with torch.no_grad(), lens.trace(ids):
            value = lens.hook_embed.output.save()
        return value  # noqa: RET504 - the block's own name is what nnsight gives back

    before = embedded(lens)
    other = copied(lens)
    assert torch.equal(embedded(other), before)
    with torch.no_grad():
        for weight in other.hf_model.parameters():
            weight.mul_(2)
        seen = other.run_with_cache(ids, "hook_embed")[1]["hook_embed"]
    assert torch.equal(embedded(other), seen)
    assert not torch.equal(seen, before)
    assert torch.equal(embedded(lens), before)


def test_a_trace_inside_a_trace_is_refused_and_the_lens_traces_on(lens):
    ids = tokens(1, 5)

    def nested():
        with lens.trace(ids):
            lens.hook_embed.output.save()
            with lens.trace(ids):
                lens.hook_logits.output.save()

    with pytest.raises(HybridLensError, match=r"a trace was opened inside a trace of the same lens") as caught:
        nested()
    assert "\n" not in str(caught.value)
    with torch.no_grad(), lens.trace(ids):
        logits = lens.hook_logits.output.save()
    with torch.no_grad():
        assert torch.equal(logits, lens(ids))


def test_runs_inside_a_trace_are_no_part_of_it(lens):
    """Another prompt, run and cached between two points of the trace, and generated from; all know their own."""
    ids, other = tokens(1, 6), tokens(1, 6, seed=3)
    names = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    with torch.no_grad():
        mine, theirs = (lens.run_with_cache(given, names)[1] for given in (ids, other))
        text = lens.generate(other, 3, stop_at_eos=False).tokens
        with lens.trace(ids):
            first = lens.blocks[0].hook_resid_post.output.save()
            cache = lens.run_with_cache(other, names)[1].save()
            made = lens.generate(other, 3, stop_at_eos=False).tokens.save()
            second = lens.blocks[1].hook_resid_post.output.save()
    assert torch.equal(first, mine[names[0]])
    assert torch.equal(second, mine[names[1]])
    assert all(torch.equal(cache[name], theirs[name]) for name in names)
    assert torch.equal(made, text)


def test_a_generation_under_autocast_is_refused(lens):
    ids = tokens(1, 5)
    state = lens.prefill(ids).state
    with torch.autocast("cpu", torch.bfloat16):
        for call in (
            lambda: lens.generate(ids, 3),
            lambda: lens.extend(state, ids),
            lambda: lens.trace(ids, max_new_tokens=3),
        ):
            with pytest.raises(HybridLensError, match=r"autocast to torch.bfloat16 is on.*dtype='bfloat16'"):
                call()
        assert lens(ids).isfinite().all()
