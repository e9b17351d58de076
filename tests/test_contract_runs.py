"""Runs of every family: equal to the untouched model, row by row, piece by piece, in any dtype; nothing is left."""

from functools import cache

import pytest
import torch
from bounds import FORWARD, close
from models import EVERY_FAMILY, ROWS, calm, make, perturbed, rounding, tokens

from hybridlens import Edit, HybridLens

FAMILY = pytest.mark.parametrize("family", EVERY_FAMILY)
STEPPING = [
    family for family, row in ROWS.items()
    if row.draw in (perturbed, calm) and row.recurrence and row.state and row.convolution and not row.delta
]  # fmt: skip
"""Mamba's kinds, whose step sizes `perturbed` draws."""


@cache
def opened(family):
    """A small model and a lens on it, which no test here changes."""
    model = make(family)
    return model, HybridLens(model)


def reference(model, ids):
    with torch.no_grad():
        return model(ids, use_cache=False).logits


@FAMILY
def test_logits_are_the_untouched_models(family):
    model, lens = opened(family)
    ids = tokens(3, 19)
    with torch.no_grad():
        close(lens(ids), reference(model, ids), FORWARD, extra=8 * rounding(model, ids))


@FAMILY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_to_float32_as_the_untouched_model_is(family, dtype):
    """The error against float32 may not exceed the library's own by more than a fifth of it."""
    ids = tokens(2, 19)
    exact = reference(opened(family)[0], ids)
    model = make(family).to(dtype)
    lens, theirs = HybridLens(model), reference(model, ids)
    with torch.no_grad():
        logits, cache = lens.run_with_cache(ids)
    assert (logits.float() - exact).norm() <= 1.2 * (theirs - exact).norm()
    assert logits.dtype == theirs.dtype
    assert all(value.isfinite().all() for name, value in cache.items() if not name.endswith("attn_scores"))


@FAMILY
@pytest.mark.parametrize("pieces", [(1,) * 20, (3, 1, 9, 7), (1, 19)])
def test_reading_in_pieces_is_reading_at_once(family, pieces):
    """Every logit and every tensor of the final state, beyond the window as well."""
    (model, lens), ids = opened(family), tokens(2, 20)
    bound = 8 * rounding(model, ids)
    with torch.no_grad():
        whole_state, whole = lens.prefill(ids)
        state, logits, at = None, [], 0
        for piece in pieces:
            part = ids[:, at : at + piece]
            state, out = lens.prefill(part) if state is None else lens.extend(state, part)
            logits.append(out)
            at += piece
    close(torch.cat(logits, 1), whole, FORWARD, extra=bound)
    got, want = state.tensors(), whole_state.tensors()
    assert got.keys() == want.keys()
    for name in want:
        close(got[name], want[name], FORWARD, extra=bound, what=name)


@FAMILY
def test_interleaved_runs_do_not_touch_each_other(family):
    """Two states advanced in turn give the bits that each gives alone, and the untouched model runs between."""
    model, lens = opened(family)
    first, second = tokens(1, 9, seed=1), tokens(1, 9, seed=2)
    with torch.no_grad():
        alone = [lens.prefill(first[:, :5]), lens.prefill(second[:, :5])]
        for t in range(5, 9):
            alone = [lens.extend(run.state, ids[:, t : t + 1]) for run, ids in zip(alone, (first, second), strict=True)]
        a = lens.prefill(first[:, :5])
        for t in range(5, 9):
            a = lens.extend(a.state, first[:, t : t + 1])
        model.generate(first, max_new_tokens=2, do_sample=False)
        b = lens.prefill(second[:, :5])
        for t in range(5, 9):
            b = lens.extend(b.state, second[:, t : t + 1])
    assert torch.equal(alone[0].logits, a.logits)
    assert torch.equal(alone[1].logits, b.logits)


@FAMILY
def test_the_same_call_twice_gives_the_same_bits_whatever_ran_between(family):
    model, lens = opened(family)
    ids, other = tokens(2, 11), tokens(3, 7, seed=3)
    with torch.no_grad():
        before, plain = lens.run_with_cache(ids)[1], reference(model, ids)
        attributes = {name: set(vars(module)) for name, module in model.named_modules()}
        lens.run_with_hooks(other, [(lambda name: "mixer_out" in name, lambda x, hook: x * 0)])
        lens.generate(other, 3, [Edit("blocks.1.hook_resid_pre", lambda x, hook: x + 1)])
        with pytest.raises(ZeroDivisionError):
            lens.run_with_hooks(ids, [("hook_embed", lambda x, hook: 1 / 0)])
        with lens.trace(other):
            lens.blocks[0].hook_resid_post.output[:] = 0
        after = lens.run_with_cache(ids)[1]
        assert torch.equal(plain, reference(model, ids))
    assert not any(point.has_hooks() for point in lens.hook_dict.values())
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert all(torch.equal(before[name], after[name]) for name in before)


@FAMILY
def test_rows_of_different_lengths_give_what_each_gives_alone(family):
    """Logits, every cached activation, states and generated tokens, as far as rounding goes."""
    model, lens = opened(family)
    rows = [tokens(1, n, seed=n)[0].tolist() for n in (13, 4, 9, 1)]
    names = [name for name, spec in lens.hook_points.items() if "k" not in spec.axes]
    bound = 8 * max(rounding(model, torch.tensor([row])) for row in rows)
    with torch.no_grad():
        logits, cache = lens.run_with_cache(rows, names)
        state = lens.prefill(rows).state
        after = lens.extend(state, tokens(4, 3, seed=9)).logits
        for i, row in enumerate(rows):
            single, one = lens.run_with_cache(torch.tensor([row]), names)
            close(logits[i, : len(row)], single[0], FORWARD, extra=bound)
            for name in names:  # on the scale of the residual stream
                close(cache[name][i, : len(row)], one[name][0], FORWARD, scale=1.0, extra=bound, what=name)
            mine = lens.extend(lens.prefill(torch.tensor([row])).state, tokens(4, 3, seed=9)[i : i + 1]).logits
            close(after[i], mine[0], FORWARD, extra=bound)


@FAMILY
@pytest.mark.parametrize("boundary", ["last_prompt_token", "first_new_token"])
def test_generation_is_greedy_on_the_untouched_model(family, boundary):
    """Rows of different lengths, token for token; the reference reads each whole text, of which it knows no end."""
    model, lens = opened(family)
    rows = [tokens(1, n, seed=n)[0].tolist() for n in (11, 3, 8, 1)]
    out = lens.generate(rows, 6, boundary=boundary, stop_at_eos=False)
    for row, new in zip(rows, out.tokens.tolist(), strict=True):
        text = torch.tensor([row + new])
        best = reference(model, text)[0, len(row) - 1 : -1].argmax(-1)
        assert new == best.tolist()


@pytest.mark.parametrize("family", STEPPING)
def test_steps_are_as_they_are_drawn(family):
    """Around 0.1, as `perturbed` says. What it took for a linear map, a bias by head say, would be around softplus(0).

    No comparison with the untouched model notices that: it has the same weights.
    """
    lens = opened(family)[1]
    names = [name for name in lens.hook_points if name.endswith("ssm.hook_dt")]
    cache = lens.run_with_cache(tokens(2, 11), names)[1]
    assert names
    assert all(0.03 < float(cache[name].median()) < 0.4 for name in names)
