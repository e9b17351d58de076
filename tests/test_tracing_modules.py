"""The Hugging Face model's modules in a trace: their values are those of the untouched model, under its own names."""

import copy

import pytest
import torch
from bounds import FORWARD, apart, close
from models import make, tokens

from hybridlens import HybridLens, HybridLensError

KINDS = ("recurrentgemma", "jamba", "mamba2", "falcon_h1", "qwen3_next")


@pytest.fixture(scope="module", params=KINDS)
def lens(request) -> HybridLens:
    return HybridLens(make(request.param))


@pytest.fixture(scope="module")
def jamba() -> HybridLens:
    return HybridLens(make("jamba"))


def hooks_on(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_modules_read_what_torchs_hooks_read_on_the_untouched_model(lens):
    """Every map that runs, in and out, in one trace, in the order in which the untouched model runs them."""
    ids, seen = tokens(2, 9), {}
    untouched = copy.deepcopy(lens.hf_model)
    for name, module in untouched.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
            module.register_forward_hook(lambda m, args, out, name=name: seen.setdefault(name, (args[0], out)) and None)
    with torch.no_grad():
        untouched(ids, use_cache=False)
        ran = []
        for name in seen:
            site = lens._theirs(lens.hf_model.get_submodule(name))
            with lens.trace(ids):
                given, made = site.input.save(), site.output.save()
            ran.append(name)
            made = made.reshape(seen[name][1].shape)  # a shared expert's tokens may come in one row
            close(given.reshape(seen[name][0].shape), seen[name][0], FORWARD, what=name)
            close(made, seen[name][1], FORWARD, what=name)
    assert len(ran) > 2 * lens.cfg.n_layers
    assert hooks_on(lens.hf_model) == 0


def test_modules_write_what_torchs_hooks_write_on_the_untouched_model(lens):
    """The first map of the second layer, in and out: assigned, and in place."""
    ids = tokens(2, 9)
    layers = lens.hf_model.base_model.layers
    name, module = next((n, m) for n, m in layers[1].named_modules() if isinstance(m, torch.nn.Linear))
    place = lens._theirs(module)
    untouched = copy.deepcopy(lens.hf_model)
    target = untouched.base_model.layers[1].get_submodule(name)
    target.register_forward_pre_hook(lambda m, args: (args[0] * 0.5,))
    target.register_forward_hook(lambda m, args, out: torch.cat([out[:, :3] * 0, out[:, 3:]], dim=1))
    with torch.no_grad():
        expected, plain = untouched(ids, use_cache=False).logits, lens(ids)
        with lens.trace(ids):
            place.input = place.input * 0.5
            before = place.output.save()
            place.output[:, :3] = 0
            logits = lens.hook_logits.output.save()
    close(logits, expected, FORWARD)
    assert apart(logits, plain)
    assert before[:, :3].any()


def test_own_names_lead_to_the_modules(jamba):
    """By attribute, by number, by slice and in a loop; outside a trace a module is itself."""
    layer = jamba.model.layers[2]
    mixer = layer.mamba
    assert torch.equal(mixer.in_proj.weight, jamba.hf_model.model.layers[2].mamba.in_proj.weight)
    assert [one.path for one in jamba.model.layers[1:3]] == ["hf_model.model.layers.1", "hf_model.model.layers.2"]
    assert [one.path for one in jamba.model.layers][2] == layer.path
    assert len(jamba.model.layers) == 4
    assert repr(mixer.in_proj) == repr(jamba.hf_model.model.layers[2].mamba.in_proj)
    x = torch.randn(1, 3, 32)
    assert torch.equal(jamba.lm_head(x), jamba.hf_model.lm_head(x))
    with torch.no_grad(), jamba.trace(tokens(1, 6)):
        projected = jamba.model.layers[2].mamba.in_proj.output.save()
        called = jamba.lm_head.inputs.save()
        head = jamba.lm_head.output.save()
        logits = jamba.hook_logits.output.save()
    assert projected.shape == (1, 6, 128)
    assert torch.equal(head, logits)
    assert len(called[0]) == 1
    assert called[1] == {}


def test_the_logit_lens_in_a_trace_is_no_part_of_the_run(jamba):
    """`lens.lm_head(...)` called inside the block takes no turn of the head's own."""
    ids = tokens(1, 6)
    with torch.no_grad():
        plain = jamba(ids)
        with jamba.trace(ids):
            early = jamba.lm_head(jamba.blocks[1].output).save()
            late = jamba.lm_head.output.save()
    assert torch.equal(late, plain)
    assert apart(early, plain)


def test_steps_and_gradients_at_a_module(jamba):
    ids, place = tokens(1, 6), jamba.model.layers[2].mamba.in_proj
    with jamba.trace(ids, max_new_tokens=3, stop_at_eos=False) as tracer:
        shapes = [].save()
        for _ in tracer.iter[1:3]:
            shapes.append(place.output.shape)
    assert shapes == [(1, 1, 128)] * 2
    with jamba.trace(ids):
        made = place.output
        loss = jamba.hook_logits.output[:, -1].square().sum()
        with loss.backward():
            grad = made.grad.save()
    held = []
    handle = jamba.hf_model.model.layers[2].mamba.in_proj.register_forward_hook(
        lambda m, args, out: out.register_hook(lambda g: held.append(g)) and None
    )
    jamba(ids)[:, -1].square().sum().backward()
    handle.remove()
    close(grad, held[0], 3 * FORWARD)


@pytest.mark.parametrize(
    ("at", "match"),
    [
        (
            lambda lens: lens.model.layers[2],
            r"does not run JambaMambaDecoderLayer as a whole; in it mamba.* run as a whole.*of lens.blocks\[2\]",
        ),
        (
            lambda lens: lens.model.final_layernorm,
            r"does not run JambaRMSNorm as a whole; use a hook point of lens.hook_points",
        ),
        (
            lambda lens: lens.model.layers[2].mamba.conv1d,
            r"the module did not run, since the lens reads its weights alone",
        ),
    ],
)
def test_a_module_that_does_not_run_as_a_whole_says_so(jamba, at, match):
    def read():
        with torch.no_grad(), jamba.trace(tokens(1, 4)):
            at(jamba).output.save()

    with pytest.raises(HybridLensError, match=match) as caught:
        read()
    assert "\n" not in str(caught.value)
    assert hooks_on(jamba.hf_model) == 0


def test_what_cannot_stand_for_a_modules_value_is_refused(jamba):
    def write(side):
        with torch.no_grad(), jamba.trace(tokens(1, 4)):
            setattr(jamba.model.layers[2].mamba.in_proj, side, torch.zeros(1, 3, 5))

    for side in ("output", "input"):
        with pytest.raises(HybridLensError, match=rf"in_proj.{side}': the trace's block returned shape \[1, 3, 5\]"):
            write(side)
    with pytest.raises(HybridLensError, match=r"'hf_model.lm_head.output' has a value only inside"):
        _ = jamba.lm_head.output
    with pytest.raises(HybridLensError, match=r"weight cannot be set on lens.hf_model.lm_head here"):
        jamba.lm_head.weight = None
    with torch.no_grad():
        assert jamba(tokens(1, 4)).isfinite().all()
