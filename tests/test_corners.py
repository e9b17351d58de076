"""Cases in which the lens once went wrong, or nearly: each is a rule of the hook points in a corner."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bounds import FORWARD, close, quotient
from models import WITH_STATE, make, tokens

from hybridlens import Edit, HybridLens, HybridLensError
from hybridlens.hooks import unchanged


@pytest.fixture(params=WITH_STATE)
def lens(request):
    return HybridLens(make(request.param))


def test_a_row_that_has_ended_reads_no_more(lens):
    """Its state is the one of its own text: reading on from it equals reading it alone."""
    ids = tokens(3, 9)
    free = lens.generate(ids, 6, stop_at_eos=False)
    lens.network.cfg = replace(lens.network.cfg, eos_token_ids=(int(free.tokens[0, 1]),))
    out = lens.generate(ids, 6)
    assert int(out.lengths[0]) < 6
    read = torch.cat([ids[0], out.tokens[0, : int(out.lengths[0]) - 1]])[None]
    with torch.no_grad():
        alone = lens.prefill(read).state
        more = tokens(3, 4, seed=7)
        got = lens.extend(out.state, more).logits[0]
        close(got, lens.extend(alone, more[:1]).logits[0], FORWARD)
    assert int(out.state.lengths[0]) == read.shape[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_unchanged_compares_entry_by_entry(dtype):
    """NaN at the same entry is no change, at another it is one; infinities of both signs hide neither."""
    inf, nan = float("inf"), float("nan")
    rows = [[1, 2, 3], [1, 2, 4]] if dtype == torch.int64 else [
        [1, inf, -inf], [1, inf, inf], [nan, inf, 2], [inf, nan, 2], [1, -inf, nan], [1, -inf, 3], [6e4, 6e4, 1]
    ]  # fmt: skip
    for i, before in enumerate(rows):
        for j, after in enumerate(rows):
            assert unchanged(torch.tensor(before, dtype=dtype), torch.tensor(after, dtype=dtype)) == (i == j)


def rewrite(x, hook):
    x[:] = x.clone()


def writable(lens):
    """Names of points that hold real numbers and may be written to, by layer."""
    places = {}
    for name, spec in lens.hook_points.items():
        if not spec.read_only and not name.endswith("expert_indices"):
            places.setdefault(spec.layer, []).append(name)
    return places


def test_writing_in_place_is_the_same_as_returning(lens):
    """Null writes at all points of a layer change no bit; at each point a real one gives what a returned value does."""
    ids = tokens(2, 9)
    with torch.no_grad():
        plain = lens(ids)
        for place, names in writable(lens).items():
            assert torch.equal(lens.run_with_hooks(ids, [(names, rewrite)]), plain), place
        for name in [name for names in writable(lens).values() for name in names]:

            def bend(x, hook):
                x.data.mul_(torch.linspace(0.5, 1.5, x.shape[-1]) if x.shape[-1] > 1 else 0.5)

            def bent(x, hook):
                return x * (torch.linspace(0.5, 1.5, x.shape[-1]) if x.shape[-1] > 1 else 0.5)

            written = lens.run_with_hooks(ids, [(name, bend)])
            assert torch.equal(written, lens.run_with_hooks(ids, [(name, bent)])), name
            assert not torch.equal(written, plain), name


def test_gradients_flow_through_writes_in_place(lens):
    """At all points of a layer at once: none of them may be needed by what comes before it."""
    for names in writable(lens).values():
        lens.run_with_hooks(tokens(1, 6), [(names, lambda x, hook: x.mul_(0.5))]).sum().backward()


def test_hidden_attention_cannot_be_written_in_place(lens):
    name = next(name for name in lens.hook_points if name.endswith("ssm.hook_pattern"))
    with pytest.raises(HybridLensError, match="read-only"):
        lens.run_with_hooks(tokens(1, 5), [(name, lambda x, hook: x.zero_())])


@pytest.mark.parametrize("lens", WITH_STATE, indirect=True)
def test_gradient_of_an_edit_that_copies_a_state_from_another_position(lens):
    """state[5] <- state[2]: what position 2 gives to 5 must count, against a finite difference on the write at 0."""
    ids, layer = tokens(1, 8), lens.cfg.ssm_layers[-1]
    state, write = f"blocks.{layer}.ssm.hook_state", f"blocks.{layer}.ssm.hook_write"
    weights = torch.randn(1, 8, 53)

    def copy(x, hook):
        x = x.clone()
        x[:, 5] = x[:, 2]
        return x

    grads = {}
    with lens.hooks([(state, copy)], [(write, lambda g, hook: grads.__setitem__("write", g.clone()))]):
        (lens(ids) * weights).sum().backward()
    direction = torch.randn(grads["write"].shape)
    direction[:, 1:] = 0
    slope = float((grads["write"] * direction).sum())

    def loss(step):
        with torch.no_grad():
            hooks = [(write, lambda x, hook: x + step * direction), (state, copy)]
            return float((lens.run_with_hooks(ids, hooks).double() * weights).sum())

    slope = float((grads["write"] * direction).sum())
    step = 1e-2 / max(1.0, abs(slope))  # the steeper, the sooner it bends, and the less rounding counts
    measured = (loss(step) - loss(-step)) / (2 * step)
    # As in the contract: the rounding of independent terms, and a curve's distance from its tangent.
    rounding = quotient(float((lens(ids).detach() * weights).norm()), step)
    close(slope, measured, extra=rounding + 0.03 * abs(measured), dtype=torch.float32)


@pytest.mark.parametrize("lens", WITH_STATE, indirect=True)
def test_the_gradient_of_a_state_cannot_be_replaced(lens):
    name = f"blocks.{lens.cfg.ssm_layers[0]}.ssm.hook_state"
    with (
        pytest.raises(HybridLensError, match="can be read but not replaced"),
        lens.hooks(bwd_hooks=[(name, lambda g, hook: g * 0)]),
    ):
        lens(tokens(1, 5)).sum().backward()


def test_backward_hooks_end_with_their_block(lens):
    seen = []
    with lens.hooks(bwd_hooks=[("hook_embed", lambda g, hook: seen.append(1))]) as same:
        loss = same(tokens(1, 5)).sum()
    loss.backward()
    assert same is lens
    assert seen == []


def test_rows_near_the_context_are_counted_by_their_own_length():
    lens = HybridLens(make("jamba"))
    with torch.no_grad():
        state = lens.prefill([tokens(1, 100)[0].tolist(), [1, 2]]).state
        lens.extend(state, [[3], tokens(1, 50)[0].tolist()])
        with pytest.raises(HybridLensError, match="150 tokens given, but the model's context is 128"):
            lens.extend(state, [tokens(1, 50)[0].tolist(), [3]])


def test_a_cache_of_no_names_is_empty(lens):
    with torch.no_grad():
        logits, cache = lens.run_with_cache(tokens(1, 4), [])
        assert torch.equal(logits, lens(tokens(1, 4)))
    assert len(cache) == 0


@pytest.mark.parametrize(
    "rows",
    [[2, 0], (2, 0), range(2, -1, -2), np.array([2, 0]), np.array([2, 0], dtype=np.uint8), torch.tensor([2, 0]),
     torch.tensor([2, 0], dtype=torch.int32), [np.int64(2), np.int64(0)], [torch.tensor(2), torch.tensor(0)],
     [2, 0, 2], np.array([2, 0, -1])[:2]],
    ids=str,
)  # fmt: skip
def test_row_numbers_are_taken_in_every_form(rows):
    """Plain integers, in their order, each once; and they name the rows that an edit touches."""
    edit = Edit("hook_embed", lambda x, hook: x * 0, rows=rows)
    assert edit.rows == (2, 0)
    assert all(type(row) is int for row in edit.rows)
    lens, ids = HybridLens(make("recurrentgemma")), tokens(3, 4)
    with torch.no_grad():
        plain, edited = lens(ids), lens.prefill(ids, [edit]).logits
    changed = [(plain[row] != edited[row]).any().item() for row in range(3)]
    assert changed == [True, False, True]


def test_an_exception_in_a_hook_function_keeps_its_traceback(lens):
    def divide(x, hook):
        return x / (1 // 0)

    with pytest.raises(ZeroDivisionError) as caught:
        lens.run_with_hooks(tokens(1, 4), [("hook_embed", divide)])
    assert caught.traceback[-1].name == "divide"
    assert not lens.hook_embed.asked()


MALFORMED = {
    "short name": (lambda lens: lens.run_with_cache(tokens(1, 4), "pattern"), "close names: blocks.*hook_pattern"),
    "gradient shape": (
        lambda lens: backward(lens, lambda g, hook: g[:, :1]),
        r"backward hook on 'hook_embed'.*returned shape \[1, 1, 32\]",
    ),
    "chained shape": (
        lambda lens: lens.run_with_hooks(
            tokens(1, 4), [("hook_embed", lambda x, hook: x[:, :1]), ("hook_embed", lambda x, hook: x.expand(1, 4, 32))]
        ),
        r"returned shape \[1, 1, 32\], expected \[1, 4, 32\]",
    ),
    "a name of the other phase": (
        lambda lens: lens.prefill(tokens(1, 4), [Edit("hook_embd", lambda x, hook: x, "decode")]),
        "'hook_embd' does not exist",
    ),
    "a predicate for nothing": (
        lambda lens: lens.run_with_hooks(tokens(1, 4), [(lambda name: ".mamba." in name, lambda x, hook: x * 0)]),
        r"the predicate .*<lambda> holds for no hook point; names look like 'hook_embed' or 'blocks\.",
    ),
    "a cache of a predicate for nothing": (
        lambda lens: lens.run_with_cache(tokens(1, 4), lambda name: ".mamba." in name),
        "holds for no hook point",
    ),
    "an edit of a predicate for nothing": (
        lambda lens: lens.generate(tokens(1, 4), 2, [Edit(lambda name: ".m." in name, lambda x, hook: x, "decode")]),
        "holds for no hook point",
    ),
    "a gradient of a predicate for nothing": (
        lambda lens: lens.hooks(bwd_hooks=[(lambda name: False, lambda g, hook: g)]).__enter__(),
        "holds for no hook point",
    ),
    "a function for no name": (
        lambda lens: lens.run_with_hooks(tokens(1, 4), [([], lambda x, hook: x)]),
        "an empty list of hook-point names was given, expected at least one name",
    ),
    "rows that are floats": (
        lambda lens: Edit("hook_embed", lambda x, hook: x, rows=torch.tensor([0.0, 1.0])),
        r"an edit of 'hook_embed' was given rows tensor\(\[0., 1.\]\), expected row numbers",
    ),
    "rows that are a mask": (
        lambda lens: Edit("hook_embed", lambda x, hook: x, rows=torch.tensor([True, False])),
        r"was given rows tensor\(\[ True, False\]\), expected row numbers",
    ),
    "rows of two axes": (
        lambda lens: Edit("hook_embed", lambda x, hook: x, rows=np.zeros((40, 40), dtype=int)),
        r"was given rows array\(\[\[0, .*\.\.\., expected row numbers",
    ),
    "rows out of the batch": (
        lambda lens: lens.prefill(tokens(2, 4), [Edit("hook_embed", lambda x, hook: x, rows=[2])]),
        r"rows \[2\] given, but the batch has rows 0..1",
    ),
    "other precision": (
        lambda lens: HybridLens(lens.hf_model.to(torch.bfloat16)).extend(lens.prefill(tokens(1, 4)).state.map(
            lambda t: t.float() if t.is_floating_point() else t), tokens(1, 1)),
        "the state is torch.float32 on cpu, but the model is torch.bfloat16",
    ),
}  # fmt: skip


def backward(lens, fn):
    with lens.hooks(bwd_hooks=[("hook_embed", fn)]):
        lens(tokens(1, 4)).sum().backward()


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_input_is_one_clear_line(lens, case):
    call, message = MALFORMED[case]
    with pytest.raises(HybridLensError, match=message) as caught:
        call(lens)
    assert "\n" not in str(caught.value)
    assert not any(point.has_hooks() for point in lens.hook_dict.values())


SCRIPT = """
from models import make, tokens
from hybridlens import Edit, HybridLens
lens = HybridLens(make("recurrentgemma"))
for call in (
    lambda: lens.run_with_hooks(tokens(1, 4), ["hook_embed"]),
    lambda: lens.run_with_hooks(tokens(1, 4), ("hook_embed", lambda x, hook: x)),
    lambda: lens.run_with_hooks(tokens(1, 4), [("hook_embed", 3)]),
    lambda: lens({"input_ids": [[1]], "position_ids": [[0]]}),
    lambda: lens([[1.7, 2]]),
    lambda: lens([[[1]]]),
    lambda: lens.extend(lens.prefill(tokens(1, 4)).state, [[1]], phase="generation"),
    lambda: Edit("hook_embed", lambda x, hook: x, rows=[True]),
    lambda: Edit("hook_embed", "zero"),
):
    try:
        call()
        print("accepted")
    except ValueError as error:
        print(error)
"""


def test_what_annotations_forbid_is_one_clear_line_too():
    """In a process of its own: here the type checker would refuse these before the library can."""
    folder = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{folder.parent}"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    starts = [
        "fwd_hooks[0] = 'hook_embed' given, expected fwd_hooks to be a list of tuples",
        "fwd_hooks[0] = 'hook_embed' given, expected fwd_hooks to be a list of tuples",
        "fwd_hooks[0][1] = 3 given, expected fwd_hooks to be a list of tuples",
        "a mapping of input_ids, position_ids was given as tokens",
        "1.7 stands among the ids",
        "[1] stands among the ids",
        "phase 'generation' does not exist",
        "an edit of 'hook_embed' was given rows [True]",
        "fn = 'zero' given, expected a function",
    ]
    lines = done.stdout.splitlines()
    assert len(lines) == len(starts)
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True)), lines
