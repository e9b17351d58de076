"""Captured decode steps are the plain ones, and steps run ahead leave nothing behind."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from bounds import FORWARD, near
from models import EVERY_FAMILY, FAMILIES, make, rounding, tokens

from hybridlens import Edit, HybridLens
from hybridlens.decoding import Decoded, Decoding, begin, decode
from hybridlens.errors import InputError
from hybridlens.fixed_steps import FixedSteps, why_not
from hybridlens.hooks import capturable
from hybridlens.network import HookedNetwork
from hybridlens.recorded import record
from hybridlens.state import HybridState
from hybridlens.tokens import TokenBatch

ENDS = tuple(range(0, 53, 5))
LENGTHS = torch.tensor([12, 5, 9])


def run(network: HookedNetwork, how: Decoding, boundary="last_prompt_token") -> Decoded:
    return decode(network, begin(network, TokenBatch(tokens(3, 12), LENGTHS), (), boundary), how)


def close_states(ours: HybridState, theirs: HybridState, window: int | None, extra: float) -> None:
    """Row by row, what a row does not use left out: that holds whatever was read in its place."""
    for mine, other in zip(ours.split(window), theirs.split(window), strict=True):
        for name, tensor in other.tensors().items():
            there = mine.tensors()[name]
            assert there.shape == tensor.shape, name
            largest = float(tensor.abs().max()) if tensor.numel() else 0.0
            allowed = extra * max(1.0, largest) + 1e-5 * largest
            assert bool(((there - tensor).abs() <= allowed).all()), name


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_captured_steps_are_the_plain_steps(family: str) -> None:
    """Rows of three lengths, over windows, some ended long before others: tokens, margins and states.

    A token in a wrong slot, a position or a state one step off, or a row that reads on says something else.
    """
    model = make(family, 3)
    network = HybridLens(model).network
    said = run(network, Decoding(7)).tokens[0]
    last = max(n for n in range(7) if said[n] not in said[:n])  # with which the first row ends
    plain, fixed = (run(network, Decoding(7, (said[last],), capture=capture)) for capture in (False, True))
    assert fixed.tokens == plain.tokens
    assert len(plain.tokens[0]) == last + 1
    noise = 8 * rounding(model, tokens(1, 12))
    assert float((fixed.margins - plain.margins).abs().max()) <= 2 * noise
    close_states(fixed.state, plain.state, network.cfg.window, noise)


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_after_the_first_two_run_no_python(family: str, monkeypatch) -> None:
    """The layers are called twice, though fourteen tokens are read; the state holds all of them, and is a state."""
    network, called = HybridLens(make(family, 3)).network, list[int]()
    through = HookedNetwork.through
    monkeypatch.setattr(HookedNetwork, "through", lambda self, *given: called.append(1) or through(self, *given))
    ids = tokens(2, 26)
    with torch.no_grad():
        state = network(ids[:, :12]).state
        steps = FixedSteps(network, state, 20, masked=False)
        logits = [steps.read(ids[:, t], None).clone() for t in range(12, 26)]
        after, once = steps.state(), network(ids)
        assert len(called) == 2
        assert not steps.full
        near(torch.stack(logits, dim=1), once.logits[:, 12:], FORWARD)
        assert after.lengths.tolist() == [26, 26]
        close_states(after, once.state, network.cfg.window, 1e-5)
        assert state.lengths.tolist() == [12, 12]
        near(network(ids[:, :3], None, after).logits, network(ids[:, :3], None, once.state).logits, FORWARD)


@pytest.mark.parametrize("family", FAMILIES)
def test_room_is_made_anew(family: str, monkeypatch) -> None:
    """With room for three steps at a time: four recordings, and passed keys of a window dropped between them."""
    monkeypatch.setattr("hybridlens.fixed_steps.ROOM", 3)
    monkeypatch.setattr("hybridlens.fixed_state.EVEN", 1)
    network = HybridLens(make(family, 3)).network
    plain, fixed = (run(network, Decoding(12, capture=capture)) for capture in (False, True))
    assert fixed.tokens == plain.tokens
    assert fixed.state.key_positions.shape == plain.state.key_positions.shape


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ended", ["stay", "leave"])
@pytest.mark.parametrize("capture", [False, True])
def test_steps_run_ahead_leave_nothing_behind(family: str, ended, capture: bool) -> None:
    """Three steps ahead of what was looked at, under ends that come at different steps: all as if they were not.

    To the bit where rows stay; rows that leave do so later, in batches of other sizes.
    """
    network = HybridLens(make(family, 3)).network
    now, ahead = (run(network, Decoding(12, ENDS, ended=ended, capture=capture, ahead=n)) for n in (0, 3))
    assert now.tokens == ahead.tokens
    if ended == "stay":
        assert torch.equal(now.margins, ahead.margins)
        for name, tensor in now.state.tensors().items():
            assert torch.equal(tensor, ahead.state.tensors()[name]), name


def test_steps_that_were_run_for_nothing_are_no_progress() -> None:
    """What is told adds up to the tokens that the longest row has, though more were chosen."""
    network, told = HybridLens(make("jamba", 3)).network, list[int]()
    made = run(network, Decoding(12, ENDS, ahead=3, said=told.append))
    assert told.count(1) > sum(told) == max(map(len, made.tokens))


def test_a_hook_sees_no_step_that_is_run_for_nothing() -> None:
    """With a hook that counts, as many steps as tokens are read, however far ahead is allowed."""
    network, seen = HybridLens(make("jamba", 3)).network, list[int]()

    def count(x, hook):
        seen.append(1)

    edits = [Edit("blocks.0.hook_resid_post", count)]
    made = run(network, Decoding(12, ENDS, edits=lambda rows: edits, ahead=3))
    assert len(seen) == max(map(len, made.tokens))


def test_an_edit_of_tensor_operations_acts_in_captured_steps() -> None:
    """Of heads' outputs and of a residual stream, marked `capturable`: as in plain steps, and not as without."""
    lens = HybridLens(make("jamba", 3))
    layer = lens.cfg.attention_layers[0]

    def edits(fn) -> list[Edit]:
        return [Edit(f"blocks.{layer}.attn.hook_z", fn), Edit("blocks.2.hook_resid_post", fn)]

    def turned(x, hook):
        return -2 * x

    plain = lens.generate(tokens(2, 8), 8, edits(turned), stop_at_eos=False)
    bare = lens.generate(tokens(2, 8), 8, stop_at_eos=False)
    fixed = lens.generate(tokens(2, 8), 8, edits(capturable(turned)), stop_at_eos=False, capture=True)
    assert torch.equal(plain.tokens, fixed.tokens)
    assert not torch.equal(plain.tokens, bare.tokens)


def test_an_edit_of_the_pattern_acts_in_captured_steps() -> None:
    """A pattern turned to its own square, with the free slots beside it: nothing of them is heard."""
    lens = HybridLens(make("recurrentgemma", 3))

    @capturable
    def sharper(pattern, hook):
        return pattern.square()

    edits = [Edit(f"blocks.{lens.cfg.attention_layers[0]}.attn.hook_pattern", sharper)]
    plain, fixed = (
        lens.generate(tokens(2, 8), 8, edits, stop_at_eos=False, capture=capture) for capture in (False, True)
    )
    assert torch.equal(plain.tokens, fixed.tokens)


def _reading(x, hook):
    return x if float(x.sum()) > 0 else -x


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (lambda x, hook: 2 * x, "an edit of 'blocks.1.hook_resid_post' is Python"),
        (capturable(_reading), "_local_scalar_dense waits for the device"),
        (capturable(lambda x, hook: x.masked_fill(x == x[x > 0].max(), 0)), "index by a mask waits for the device"),
    ],
)
def test_what_cannot_be_captured_is_refused_in_one_line(fn, said: str) -> None:
    lens = HybridLens(make("jamba", 3))
    with pytest.raises(InputError, match="capture") as error:
        lens.generate(tokens(1, 6), 6, [Edit("blocks.1.hook_resid_post", fn)], stop_at_eos=False, capture=True)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_hooks_and_traces_beside_a_captured_step_are_refused() -> None:
    lens = HybridLens(make("jamba", 3))
    with (
        lens.hooks([("blocks.1.hook_resid_post", lambda x, hook: None)]),
        pytest.raises(InputError, match=r"a hook, or a trace, acts at 'blocks.1.hook_resid_post'"),
    ):
        lens.generate(tokens(1, 6), 6, capture=True)


def test_a_recorded_piece_of_work_is_done_again_on_the_same_tensors() -> None:
    """Views, writes in place and what is made on the way: the work itself, done as often, says what comes out."""
    x, total = torch.arange(6.0), torch.zeros(3)

    def work() -> torch.Tensor:
        first, second = x.view(2, 3).unbind(0)
        x.view(2, 3)[1].mul_(2)
        total.add_(first * second)
        return total + second

    def runs(step: Sequence) -> list[list[float]]:
        x.copy_(torch.arange(6.0))
        total.zero_()
        return [fn().tolist() for fn in step]

    expected = runs([work] * 4)
    x.copy_(torch.arange(6.0))
    total.zero_()
    again = record(work, torch.device("cpu"))
    assert runs([again] * 4) == expected


def test_constants_of_recorded_work_are_made_anew() -> None:
    """A constant that is written to in place begins with its value each time."""
    x = torch.arange(3.0)

    def work() -> torch.Tensor:
        count = torch.tensor([1.0, 2.0, 3.0])
        return count.add_(x) * 2

    again = record(work, torch.device("cpu"))
    assert [again().tolist() for _ in range(2)] == [[2.0, 6.0, 10.0]] * 2


@pytest.mark.parametrize(
    ("take", "said"),
    [
        (lambda x: x.tolist()[0], "tolist waits for the device"),
        (lambda x: float(x.numpy()[0]), "numpy waits for the device"),
        (lambda x: float(np.asarray(x)[0]), "__array__ waits for the device"),
    ],
)
def test_values_that_are_taken_without_an_operation_are_refused(take, said: str) -> None:
    """Recorded, the first run's value would stand in all others."""
    x = torch.arange(3.0)
    with pytest.raises(InputError, match=f"cannot be captured: {said}"):
        record(lambda: x * take(x), torch.device("cpu"))


def test_keys_made_of_latents_are_not_edited_in_captured_steps() -> None:
    """They are made anew at each step; that is known before one is tried. Latents themselves can be edited."""
    lens = HybridLens(make("kimi_linear", 3))
    state = lens.prefill(tokens(1, 6)).state.detach()
    layer = lens.cfg.attention_layers[0]
    double = capturable(lambda x, hook: 2 * x)
    for name, said in (("hook_k", "edit hook_kv_latent there"), ("hook_v", "hook_v"), ("hook_kv_latent", None)):
        why = why_not(lens.network, state, [Edit(f"blocks.{layer}.attn.{name}", double)])
        assert (why is None) == (said is None)
        assert said is None or said in str(why)


@pytest.mark.parametrize("family", ["jamba", "nemotron_h"])
def test_experts_that_the_library_would_wait_for_are_captured_too(family: str) -> None:
    """With the library's loop over experts, which asks which of them have tokens: the same texts, in captured steps."""
    model = make(family, 3)
    said = HybridLens(model).generate(tokens(2, 8), 6, stop_at_eos=False)
    model.config._experts_implementation = "eager"
    captured = HybridLens(model).generate(tokens(2, 8), 6, stop_at_eos=False, capture=True)
    assert torch.equal(said.tokens, captured.tokens)


def test_a_hook_on_a_module_of_the_model_is_refused_beside_a_captured_step() -> None:
    """A captured step would call it twice and no more."""
    model = make("jamba", 3)
    lens = HybridLens(model)
    handle = model.lm_head.register_forward_hook(lambda module, given, out: None)
    with pytest.raises(InputError, match=r"a hook, or a trace, acts at 'lm_head'"):
        lens.generate(tokens(1, 6), 6, capture=True)
    handle.remove()
    assert lens.generate(tokens(1, 6), 6, capture=True).tokens.shape[0] == 1
