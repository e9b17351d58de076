"""What nnsight's users type in a trace and would go wrong without a word ends in a line that says what to type."""

import linecache

import pytest
import torch
from bounds import close
from models import make, tokens
from nnsight.tracing.globals import SOURCES

from hybridlens import HybridLens, HybridLensError
from hybridlens.errors import AbsentError, HookFunctionError, InputError

PAGE = r"; see 'Traces' in docs/coming-from\.md$"


@pytest.fixture(scope="module")
def lens():
    return HybridLens(make("jamba"))


def run_in(filename, body, **names):
    """A script that nnsight can read, or, under a name in angles, one without source; its names."""
    if not filename.startswith("<"):
        filename = f"{abs(hash(body))}_{filename}"  # nnsight compiles the blocks of a file once
        linecache.cache[filename] = (len(body), None, body.splitlines(keepends=True), filename)
    try:
        exec(compile(body, filename, "exec"), names)
    finally:
        SOURCES.pop(filename, None)
    return names


# ``.output[0]``.


@pytest.mark.parametrize("filename", ["<stdin>", "first_rows.py"])
@pytest.mark.parametrize(
    "line",
    [
        "x = lens.blocks[1].output[0].save()",
        "lens.blocks[1].output[0][:] = 0",
        "lens.blocks[1].output[0] = 0",
        "lens.blocks[1].output[0] += 1",
        "x = [block.input[0] for block in lens.blocks]",
        "x = (lambda layer: layer.output[0])(lens.blocks[1])",
    ],
)
def test_the_first_of_a_layers_output_is_refused(lens, line, filename):
    said = r"^lens\.blocks\[\d\]\.(output|input) is the stream itself \[b p d\] and no tuple.*\[:1\] for the first row"
    with pytest.raises(HookFunctionError, match=said + ".*" + PAGE) as caught:
        run_in(filename, f"with lens.trace(ids):\n    {line}\n", lens=lens, ids=tokens(2, 4))
    assert "\n" not in str(caught.value)


def test_rows_and_parts_of_a_layers_output_are_had(lens):
    """All but ``[0]`` alone; a hook point's own output has rows as any tensor, whatever they are."""
    ids = tokens(2, 4)
    with torch.no_grad():
        stream = lens.run_with_cache(ids)[1]["resid_post", 1]
        with lens.trace(ids):
            out = lens.blocks[1].output
            values = [
                out[0],
                lens.blocks[1].output[:1],
                lens.blocks[1].output[[0]],
                lens.blocks[1].output[0, -1],
            ].save()
            more = [lens.blocks[1].output[1], lens.blocks[1].output[-1], lens.blocks[1].output[:, 0]].save()
            point = lens.blocks[1].hook_resid_post.output[0].save()
    for found, wanted in zip(values, (stream[0], stream[:1], stream[:1], stream[0, -1]), strict=True):
        assert torch.equal(found, wanted)
    for found, wanted in zip(more, (stream[1], stream[1], stream[:, 0]), strict=True):
        assert torch.equal(found, wanted)
    assert torch.equal(point, stream[0])


# Gradients.


def test_a_gradient_outside_its_block_is_refused(lens):
    ids = tokens(1, 4)

    def after():
        with lens.trace(ids):
            x = lens.blocks[1].output
            lens.hook_logits.output.sum().backward()
            x.grad.save()

    def before():
        with lens.trace() as tracer:  # noqa: SIM117 - an invoke is a block of its own
            with tracer.invoke(ids):
                lens.blocks[1].output.grad.save()
                lens.hook_logits.output.sum().backward()

    for fault, named in ((after, "x"), (before, r"lens\.blocks\[1\]\.output")):
        with pytest.raises(
            InputError, match=rf"{named}\.grad is None there.*with loss\.backward\(\):" + ".*" + PAGE
        ) as caught:
            fault()
        assert "\n" not in str(caught.value)


def test_gradients_that_are_kept_are_had(lens):
    """By `retain_grad`, of a leaf that was put in, and of a weight; all the same as inside ``with loss.backward()``."""
    ids, weight = tokens(1, 4), lens.hf_model.lm_head.weight
    with lens.trace(ids):
        x = lens.blocks[1].output
        with lens.hook_logits.output.square().sum().backward():
            wanted = x.grad.save()
    lens.zero_grad()
    with lens.trace(ids):
        y = lens.blocks[1].output
        y.retain_grad()
        lens.hook_logits.output.square().sum().backward()
        kept = y.grad.save()
    lens.zero_grad()
    with lens.trace(ids):
        z = lens.blocks[1].output.detach().requires_grad_()
        lens.blocks[1].output = z
        lens.hook_logits.output.square().sum().backward()
        leaf = z.grad.save()
    lens.zero_grad()
    with lens.trace(ids):
        lens.hook_logits.output.square().sum().backward()
        of_weight = weight.grad.save()
    lens.zero_grad()
    close(kept, wanted)
    close(leaf, wanted)
    assert float(of_weight.abs().max()) > 0


def test_names_that_are_bound_twice_are_not_taken_for_live(lens):
    ids = tokens(1, 4)
    with lens.trace(ids):
        x = lens.blocks[1].output
        x = torch.ones_like(x, requires_grad=True)
        lens.blocks[1].output = x
        lens.hook_logits.output.square().sum().backward()
        grad = x.grad.save()
    lens.zero_grad()
    assert float(grad.abs().max()) > 0


# Blocks in blocks.


def test_two_blocks_under_one_with_are_told_apart(lens):
    ids = tokens(1, 3)

    def in_a_session():
        with lens.session(), lens.trace(ids):
            lens.blocks[1].output.save()

    def invoked():
        with lens.trace() as tracer, tracer.invoke(ids):
            lens.blocks[1].output.save()

    for fault, inner in ((in_a_session, r"lens\.trace\(ids\)"), (invoked, r"tracer\.invoke\(ids\)")):
        with pytest.raises(
            InputError, match=rf"are opened by one `with`; type `with {inner}:` on a line of its own"
        ) as caught:
            fault()
        assert "\n" not in str(caught.value)
    with torch.no_grad(), lens.session():  # noqa: SIM117 - a trace is a block of its own
        with lens.trace(ids):
            x = lens.blocks[1].output.save()
    assert x.shape == (1, 3, 32)


# Values between invokes.

PATCHED = """
with torch.no_grad(), lens.trace() as tracer:
    meet = tracer.barrier(2)
    with tracer.invoke(one):
        put = lens.hook_embed.output.save()
        {meet}
    with tracer.invoke(other):
        {meet}
        lens.hook_embed.output = put
        logits = lens.hook_logits.output.save()
"""


def test_a_value_between_invokes_goes_by_a_barrier(lens):
    """Without one a line says so, also where the name has an older value; with one the older value is never taken."""
    one, other, name = tokens(1, 4), tokens(1, 4, seed=9), "patched.py"
    with torch.no_grad():
        expected = lens(one)
    names = {"lens": lens, "torch": torch, "one": one, "other": other}
    old = torch.zeros(1, 4, 32)
    for extra in ({}, {"put": old}):
        with pytest.raises(
            InputError, match=r"^put has no value yet.*`meet = tracer\.barrier\(2\)`.*" + PAGE
        ) as caught:
            run_in(name, PATCHED.format(meet="pass"), **names, **extra)
        assert "\n" not in str(caught.value)
        lines = []
        trace = caught.value.__traceback__
        while trace is not None:
            lines.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
            trace = trace.tb_next
        assert any(file.endswith(name) and line == 9 for file, line in lines)
        found = run_in(name, PATCHED.format(meet="meet()"), **names, **extra)
        close(found["logits"], expected)
        again = run_in(name, PATCHED.format(meet="meet()"), **{**found, "one": other, "other": one})  # the cell again
        with torch.no_grad():
            close(again["logits"], lens(other))


def test_names_of_a_blocks_own_are_as_they_were_written(lens):
    """Loop variables, builtins and helpers that another block happens to bind too."""
    prompts, found, i = [tokens(1, 3), tokens(1, 5)], {}, 0
    with lens.trace() as tracer:
        for i, prompt in enumerate(prompts):
            with tracer.invoke(prompt):
                found[i] = sum(lens.hook_embed.output.shape)  # noqa: F823
        with tracer.invoke(prompts[0]):
            late = [].save()
            for i in range(2):
                late.append(i)
            sum = 3  # noqa: F841
        with tracer.invoke(prompts[1]):
            found["last"] = len(prompts)
            lens.hook_embed.output.save()
    assert found == {0: 36, 1: 38, "last": 2}
    assert late == [0, 1]


def test_a_value_that_is_there_in_time_needs_no_barrier(lens):
    """A later layer takes what an earlier one gave to the other block."""
    one, other = tokens(1, 4), tokens(1, 4, seed=9)
    with torch.no_grad(), lens.trace() as tracer:
        with tracer.invoke(one):
            early = lens.blocks[0].output
        with tracer.invoke(other):
            late = lens.blocks[2].output
            both = (late - early).save()
    with torch.no_grad():
        cache, others = lens.run_with_cache(one)[1], lens.run_with_cache(other)[1]
    close(both, others["resid_post", 2] - cache["resid_post", 0])


# Names.


def test_an_edit_under_one_name_says_how_to_take_it_apart(lens):
    with lens.edit() as edited:
        lens.blocks[1].output[:] = 0
    with pytest.raises(AbsentError, match=r"has no trace; type with lens\.edit\(\) as \(tracer, edited\):.*" + PAGE):
        edited.trace(tokens(1, 3))
    assert not hasattr(edited, "_repr_html_")
    with torch.no_grad(), edited[1].trace(tokens(1, 3)):
        silent = lens.blocks[1].output.save()
    assert not silent.any()


NAMES = {
    "blocks[1].attn.hook_patern": r"^blocks\.1\.attn has no hook point hook_patern; close names: hook_pattern",
    "blocks[1].hook_resid_pst": r"^blocks\.1 has no hook point hook_resid_pst; close names: hook_resid_post",
    "blocks[0].ssm.hook_stat": r"^blocks\.0\.ssm has no hook point hook_stat; close names: hook_state",
    "blocks[0].mlp.hook_pro": r"^blocks\.0\.mlp has no hook point hook_pro; close names: hook_pr",
    "ln_final.hook_q_q_q_q_q_q": r"^ln_final has no hook point.*; it has hook_scale, hook_normalized; see lens",
    "blocks[1].attn.output": r"^blocks\.1\.attn has no output; type lens\.blocks\[1\]\.hook_attn_out \(.*" + PAGE,
    "blocks[0].ssm.output": r"type lens\.blocks\[0\]\.hook_ssm_out \(",
    "blocks[1].ln2.output": r"type lens\.blocks\[1\]\.ln2\.hook_normalized \(.*before the norm's weight",
    "ln_final.output": r"type lens\.ln_final\.hook_normalized \(",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_misspelt_point_is_told_what_is_near(lens, name):
    with pytest.raises(AbsentError, match=NAMES[name]) as caught:
        eval(f"lens.{name}", {"lens": lens})
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, HybridLensError)
    assert not hasattr(lens.blocks[1].attn, "hook_zz")
    with pytest.raises(AttributeError, match="no attribute 'nothing'") as python:
        _ = lens.blocks[1].attn.nothing
    assert not isinstance(python.value, HybridLensError)
