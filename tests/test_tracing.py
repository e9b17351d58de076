"""nnsight's way in: the same points, the same values, read and written, in one pass and over decode steps."""

import pytest
import torch
from models import EVERY_FAMILY, WITH_ATTENTION, make, tokens
from torch.testing import assert_close

from hybridlens import Edit, HybridLens, HybridLensError
from hybridlens.hooks import HookPoint


@pytest.fixture(params=EVERY_FAMILY)
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
    assert not torch.allclose(logits, plain)
    assert torch.equal(before, lens.run_with_cache(ids, "hook_embed")[1]["hook_embed"])


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
    assert_close(grad, seen["grad"])


def test_a_generation_is_traced_step_by_step(lens):
    """Prefill and every decode step: what was saved equals a hook's record of an ordinary generation."""
    ids, block = tokens(2, 9), attention_block(lens)
    name = f"blocks.{lens.cfg.attention_layers[0]}.attn.hook_pattern"
    record = []
    lens.generate(ids, 4, [Edit(name, lambda x, hook: record.append(x.clone()))], stop_at_eos=False)
    with lens.trace(ids, max_new_tokens=4) as tracer:
        patterns = [].save()
        for _ in tracer.iter[:5]:
            patterns.append(block.attn.hook_pattern.output)
    assert [p.shape for p in patterns] == [p.shape for p in record]
    assert all(torch.equal(a, b) for a, b in zip(patterns, record, strict=True))


def test_a_later_step_is_found_when_earlier_ones_were_not_wanted(lens):
    """Steps whose pattern nobody wanted still count, or step 3 would be served as step 0."""
    ids, block = tokens(2, 9), attention_block(lens)
    name = f"blocks.{lens.cfg.attention_layers[0]}.attn.hook_pattern"
    record = []
    lens.generate(ids, 4, [Edit(name, lambda x, hook: record.append(x.clone()))], stop_at_eos=False)
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
