"""Blocks that trace from anywhere: standard input, a file loaded again, a cell, and without any source."""

import contextlib
import linecache
import traceback

import pytest
import torch
from models import make, tokens
from nnsight.tracing.globals import SOURCES
from trace_leftovers import clean

from hybridlens import HybridLens, HybridLensError


@pytest.fixture(scope="module")
def lens() -> HybridLens:
    return HybridLens(make("jamba"))


def run_as(source: str, filename: str, **names) -> dict:
    """A script run from text that no file holds."""
    exec(compile(source, filename, "exec"), names)
    return names


SCRIPT = """
import torch
with torch.no_grad(), lens.trace(ids) as tracer:
    seen = lens.blocks[1].output.save()
    lens.blocks[2].output[:] = 0
    lens.lm_head.input = lens.lm_head.input * 2
    logits = lens.hook_logits.output.save()
    result = tracer.result
steps = []
with lens.trace(ids, max_new_tokens=3, stop_at_eos=False) as tracer:
    for step in tracer.iter[:3]:
        steps.append(lens.hook_logits.output.shape)
with lens.trace(ids, max_new_tokens=3, stop_at_eos=False) as tracer:
    for step in tracer.all():
        last = lens.hook_logits.output.shape, step
with lens.session():
    with lens.trace(ids):
        carried = lens.blocks[0].output
    with lens.trace(ids):
        lens.blocks[0].output = carried * 2
        moved = lens.hook_logits.output.save()
with lens.trace(ids) as tracer:
    only = lens.blocks[0].output
    tracer.stop()
def fails():
    with lens.trace(ids):
        lens.blocks[0].output
        raise KeyError("mine")
"""


@pytest.mark.filterwarnings("ignore:.*was never reached")
def test_a_script_on_standard_input_traces_as_a_file_does(lens):
    ids = tokens(1, 5)
    found = run_as(SCRIPT, "<stdin>", lens=lens, ids=ids)
    name, here = "a_script_in_a_file.py", {"lens": lens, "ids": ids}
    linecache.cache[name] = (len(SCRIPT), None, SCRIPT.splitlines(keepends=True), name)
    expected = run_as(SCRIPT, name, **here)
    assert torch.equal(found["seen"], expected["seen"])
    assert torch.equal(found["logits"], expected["logits"])
    assert torch.equal(found["moved"], expected["moved"])
    assert torch.equal(found["result"].logits, found["logits"])
    assert found["steps"] == [(1, 1, 53)] * 3
    assert found["last"][1] == 2
    with torch.no_grad():
        assert torch.equal(found["seen"], lens.run_with_cache(ids)[1]["resid_post", 1])
    assert "only" in found  # every name outlives a block that runs where it stands
    assert "result" not in expected
    for names, filename in ((found, "<stdin>"), (expected, name)):
        with pytest.raises(KeyError) as caught:
            names["fails"]()
        frames = [(f.filename, f.lineno) for f in traceback.extract_tb(caught.value.__traceback__)]
        assert (filename, SCRIPT.splitlines().index('        raise KeyError("mine")') + 1) in frames
        assert clean(lens)
    SOURCES.pop(name)


LOOP = """
steps = []
with lens.trace(ids, max_new_tokens=5, stop_at_eos=False) as tracer:
    for step in tracer.iter[{}]:
        steps.append((step, {}))
"""


@pytest.mark.filterwarnings("ignore:.*was never reached")
@pytest.mark.parametrize("filename", ["<stdin>", "loop_in_a_file.py"])
def test_loops_over_steps(lens, filename):
    """A step of a slice counts, and a loop in which nothing waits for the run ends in one line."""
    read = "lens.hook_logits.output.shape[1]"
    ids = tokens(1, 5)

    def run(body):
        if not filename.startswith("<"):
            linecache.cache[filename] = (len(body), None, body.splitlines(keepends=True), filename)
        return run_as(body, filename, lens=lens, ids=ids)["steps"]

    assert [step for step, _ in run(LOOP.format("0:5:2", read))] == [0, 2, 4]
    assert [step for step, _ in run(LOOP.format("[1, 3]", read))] == [1, 3]
    every_other = run(LOOP.format("1::2", read))
    assert [step for step, _ in every_other] == [1, 3]
    for given, said in ((":", "asked for nothing in"), (":-1", "steps counted from 0"), ("::0", "goes on by 0")):
        with pytest.raises(HybridLensError, match=said) as caught:
            run(LOOP.format(given, "None"))
        assert "\n" not in str(caught.value)
    assert clean(lens)


def test_a_file_that_is_loaded_again_traces_what_it_says_now(lens, tmp_path):
    """As `importlib.reload` and IPython's %autoreload do after an edit, whether or not lines move."""
    file, ids = tmp_path / "helper.py", tokens(1, 4)
    block = "    with lens.trace(ids):\n        seen = (lens.blocks[0].output * {}).save()\n"
    body = f"def f(lens, ids):\n{block}    return seen\n"
    for source, factor in ((body.format(1), 1), (body.format(2), 2), ("# moved\n\n" + body.format(33), 33)):
        file.write_text(source)
        f = run_as(source, str(file))["f"]
        with torch.no_grad():
            expected = lens.run_with_cache(ids)[1]["resid_post", 0] * factor
            assert torch.equal(f(lens, ids), expected)
            assert torch.equal(f(lens, ids), expected)


def test_without_a_source_what_needs_one_is_refused(lens):
    for body in (
        "with lens.trace() as tracer:\n    with tracer.invoke(ids):\n        pass\n",
        "with lens.edit() as (tracer, edited):\n    lens.blocks[0].output[:] = 0\n",
    ):
        with pytest.raises(
            HybridLensError, match="no source can be read for the code that opened this trace"
        ) as caught:
            run_as(body, "<stdin>", lens=lens, ids=tokens(1, 4))
        assert "\n" not in str(caught.value)
    assert clean(lens)


def test_a_cell_traces(lens):
    """In IPython, whose cells are in no file: cell after cell, each with its own lines."""
    shells = pytest.importorskip("IPython.core.interactiveshell")
    shell = shells.InteractiveShell()
    shell.user_ns.update(lens=lens, ids=tokens(1, 5))
    cells = (
        "with lens.trace(ids):\n    seen = lens.blocks[1].output.save()\n    kept = 1",
        "with lens.trace() as tracer:\n    with tracer.invoke(ids):\n        a = lens.blocks[0].output.save()\n"
        "    with tracer.invoke(ids[:, :3]):\n        b = lens.blocks[0].output.save()",
    )
    for cell in cells:
        shell.run_cell(cell).raise_error()
    assert shell.user_ns["seen"].shape == (1, 5, 32)
    assert "kept" not in shell.user_ns  # nnsight read its source: what is not saved stays inside
    assert shell.user_ns["b"].shape == (1, 3, 32)


def test_a_stack_may_open_a_trace(lens):
    """`ExitStack` enters it from a line that is no ``with``."""
    with torch.no_grad(), contextlib.ExitStack() as stack:
        stack.enter_context(lens.trace(tokens(1, 5)))
        seen = lens.blocks[1].output
    with torch.no_grad():
        assert torch.equal(seen, lens.run_with_cache(tokens(1, 5))[1]["resid_post", 1])
    assert clean(lens)
