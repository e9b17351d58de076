"""Hooks that stay, and those of a ``with`` block, as TransformerLens' users know them.

What a hook that was added does is compared with the same function given to one run, which other tests compare with
Hugging Face; a hook that did not fire, or fired twice, would give other logits, since the function is no projection.
"""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from models import FAMILIES, make, tokens
from transformer_lens.hook_points import HookPoint as TransformerLensHookPoint

from hybridlens import Edit, HybridLens
from hybridlens.engine import Job, Sweep
from hybridlens.errors import HookFunctionError, InputError, UnknownNameError
from hybridlens.hooks import by_query

IDS = tokens(2, 7)
POINT = "blocks.2.hook_resid_pre"


def bent(x, hook):
    return 0.5 * x + 0.25


def bounded(x, hook):
    """Another, which does not commute with it."""
    return x.tanh()


@pytest.fixture(scope="module", params=FAMILIES)
def made(request):
    return HybridLens(make(request.param, 4))


@pytest.fixture
def lens(made):
    """The same lens for all tests, without hooks."""
    yield made
    made.reset_hooks(including_permanent=True)
    assert made.list_hooks() == {}


@pytest.fixture
def one(lens):
    """A second name for tests in which the family does not matter."""
    return lens


def count(lens, name=POINT):
    point = lens.hook_dict[name]
    return len(point.fwd_hooks), len(point.bwd_hooks)


class Untreated:
    """No treatment: what is left is what was added to the model."""

    def edits(self, treatments, spans, phase):
        return []

    def together(self, treatment):
        return None

    def causal(self, treatment):
        return True

    def places(self, treatment):
        return False


@torch.no_grad()
def test_an_added_hook_acts_in_every_way_of_running(lens):
    """Each way with the hook added gives, bit for bit, what it gives with the same function as an edit."""
    edits, fwd = [Edit(POINT, bent)], [(POINT, bent)]
    plain, logits = lens(IDS), lens.run_with_hooks(IDS, fwd)
    state, first = lens.prefill(IDS, edits)
    after = lens.extend(state, IDS[:, :3], edits).logits
    said = lens.generate(IDS, 4, edits).tokens
    assert not torch.equal(plain, logits)
    lens.add_hook(POINT, bent)
    assert torch.equal(lens(IDS), logits)
    assert torch.equal(lens.run_with_hooks(IDS, [("hook_embed", lambda x, hook: None)]), logits)
    assert torch.equal(lens.run_with_cache(IDS, "hook_embed")[0], logits)
    held, ours = lens.prefill(IDS)
    assert torch.equal(ours, first)
    assert torch.equal(lens.extend(held, IDS[:, :3]).logits, after)
    assert torch.equal(lens.generate(IDS, 4).tokens, said)
    with lens.trace(IDS):
        traced = lens.hook_logits.output.save()
    assert torch.equal(traced, logits)
    sweep = Sweep(lens, Untreated(), "last_prompt_token", 4)
    jobs = [Job(tuple(row.tolist()), None, None) for row in IDS]
    answers = {each.job: list(each.answer.tokens) for batch in sweep.run(jobs) for each in batch}
    assert [answers[row] for row in range(2)] == [row[: len(answers[i])].tolist() for i, row in enumerate(said)]
    lens.reset_hooks()
    assert torch.equal(lens(IDS), plain)


@torch.no_grad()
@pytest.mark.parametrize("prepend", [True, False])
def test_functions_act_in_the_order_in_which_they_came(one, prepend):
    """Added ones, and those of a block, in one order; the two functions do not commute, so it shows."""
    fns = [bounded, bent] if prepend else [bent, bounded]
    one.add_hook(POINT, bent)
    one.add_hook(POINT, bounded, prepend=prepend)
    added = one(IDS)
    one.reset_hooks()
    with one.hooks([(POINT, bent)]):
        one.add_hook(POINT, bounded, prepend=prepend)
        inside = one(IDS)
    one.reset_hooks()
    assert torch.equal(added, one.run_with_hooks(IDS, [(POINT, fn) for fn in fns]))
    assert torch.equal(added, inside)
    assert not torch.equal(added, one.run_with_hooks(IDS, [(POINT, fn) for fn in fns[::-1]]))


def test_blocks_nest_and_reset_leaves_nothing(one):
    seen = []
    note = [(POINT, lambda x, hook: seen.append(one.context_level))]
    with one.hooks(note, note) as same:
        assert (same, count(one), one.context_level) == (one, (1, 1), 1)
        with one.hooks(note):
            assert count(one) == (2, 1)
            one(IDS)
            one.hook_dict[POINT].ctx["kept"] = 1
            one.reset_hooks()
            assert count(one) == (0, 0)
            assert one.hook_dict[POINT].ctx == {}
            one(IDS)
        assert count(one) == (0, 0)
        with one.hooks(note):
            assert count(one) == (1, 0)
    assert (count(one), one.context_level, seen) == ((0, 0), 0, [2, 2])


def test_an_error_in_a_block_takes_only_its_own_hooks_away(one):
    def fails(x, hook):
        raise RuntimeError("by a user's function")

    one.add_hook(POINT, bent)
    with one.hooks([(POINT, bounded)]):
        with pytest.raises(RuntimeError, match="by a user's"), one.hooks([(POINT, fails)]):
            one(IDS)
        assert [handle.user_hook for handle in one.hook_dict[POINT].fwd_hooks] == [bent, bounded]
    assert one.list_hooks(POINT, "fwd")[POINT][0].user_hook is bent
    assert one.context_level == 0


def test_removing_by_direction_permanence_and_level(one):
    one.add_perma_hook(POINT, bent)
    handles = one.add_hook([POINT, "hook_embed"], bent, level=3)
    one.add_hook(lambda name: name == POINT, lambda g, hook: None, dir="bwd")
    assert (count(one), count(one, "hook_embed")) == ((2, 1), (1, 0))
    assert one.hook_dict[POINT].has_hooks("fwd", level=3)
    assert not one.hook_dict[POINT].has_hooks("bwd", level=3)
    one.remove_all_hook_fns("bwd")
    assert count(one) == (2, 0)
    one.reset_hooks(level=2)
    assert count(one) == (2, 0)
    handles[0].hook.remove()
    handles[0].remove()
    assert (count(one), count(one, "hook_embed")) == ((1, 0), (1, 0))
    one.reset_hooks()
    assert (count(one), count(one, "hook_embed")) == ((1, 0), (0, 0))
    assert one.list_hooks(including_permanent=False) == {}
    one.hook_dict[POINT].fwd_hooks = []
    assert count(one) == (0, 0)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (lambda name: name.startswith("blocks.99"), "holds for no hook point"),
        ([POINT, "blocks.99.hook_resid_pre"], "'blocks.99.hook_resid_pre' does not exist"),
        ([], "an empty list"),
    ],
)
def test_a_name_that_stands_for_nothing_adds_nothing(one, name, said):
    for add in (one.add_hook, one.add_perma_hook):
        with pytest.raises(UnknownNameError, match=said):
            add(name, bent)
    assert one.list_hooks() == {}


def test_other_arguments_that_cannot_be(one):
    with pytest.raises(UnknownNameError, match=r"dir 'sideways' does not exist.*expected one of fwd, bwd"):
        one.add_hook(POINT, bent, "sideways")
    with pytest.raises(UnknownNameError, match="'up' does not exist; expected one of fwd, bwd, both"):
        one.reset_hooks(direction="up")
    with pytest.raises(InputError, match="hook = 3 given, expected a function"):
        one.add_hook(POINT, 3)
    for switch in (one.set_use_attn_in, one.set_use_split_qkv_input, one.set_use_hook_mlp_in):
        switch(False)
        with pytest.raises(InputError, match=r"a lens has no point hook_.*hook "):
            switch(True)
    one.set_use_attn_result(True)


def test_a_subclass_may_refuse_hooks():
    class Careful(HybridLens):
        def check_hooks_to_add(self, hook_point, hook_point_name, hook, **how):
            if hook_point_name == POINT and how["dir"] == "bwd":
                raise InputError(f"no gradients at {hook_point_name}")

    careful = Careful(make("jamba", 4))
    with pytest.raises(InputError, match=f"no gradients at {POINT}"):
        careful.add_hook(["hook_embed", POINT], bent, "bwd")
    assert careful.list_hooks() == {}


# Gradients.


def gradient_at_embedding(lens):
    """Of the loss, by a tensor that a run kept."""
    kept = []
    with lens.hooks([("hook_embed", lambda x, hook: kept.append(x.requires_grad_()) or kept[-1])]):
        loss = lens(IDS, "loss")
    return torch.autograd.grad(loss, kept)[0]


@pytest.mark.parametrize("give", [lambda g: 2 * g, lambda g: (2 * g,), lambda g: None])
def test_a_backward_hook_may_return_a_tensor_a_tuple_of_one_or_none(one, give):
    """Below the point the gradient is twice what it was, or the same, to the bit."""
    plain = gradient_at_embedding(one)
    one.add_hook("blocks.0.hook_resid_pre", lambda g, hook: give(g), "bwd")
    assert torch.equal(gradient_at_embedding(one), plain if give(plain) is None else 2 * plain)


@pytest.mark.parametrize(
    ("give", "said"), [(lambda g: (g, g), "returned tuple, expected"), (lambda g: g[:1], "returned shape")]
)
def test_a_backward_hook_that_returns_something_else_is_named(one, give, said):
    one.add_hook(POINT, lambda g, hook: give(g), "bwd")
    with pytest.raises(HookFunctionError, match=f"backward hook on '{POINT}': .*{said}"):
        gradient_at_embedding(one)


def test_a_backward_hook_knows_positions_and_cannot_freeze(one):
    seen = []
    one.add_hook(POINT, lambda g, hook: seen.append(hook.positions.tolist()), "bwd")
    one(IDS, "loss").backward()
    assert seen == [[list(range(7))] * 2]
    one.hf_model.zero_grad()
    one.add_hook(POINT, lambda g, hook: hook.freeze(g > 0), "bwd")
    with pytest.raises(HookFunctionError, match="was called by a backward hook"):
        gradient_at_embedding(one)


def test_backward_hooks_that_stay_live_until_they_are_removed(one):
    """Those of a run: heard by its backward pass, and silent after `reset_hooks`, for passes made before it too."""
    heard = []
    listen = [(POINT, lambda g, hook: heard.append(hook.name))]
    with pytest.raises(InputError, match="reset_hooks_end=False"):
        one.run_with_hooks(IDS, bwd_hooks=listen)
    loss = one.run_with_hooks(IDS, bwd_hooks=listen, reset_hooks_end=False, return_type="loss")
    assert (count(one), heard) == ((0, 1), [])
    loss.backward(retain_graph=True)
    assert heard == [POINT]
    one.reset_hooks()
    loss.backward()
    assert (count(one), heard) == ((0, 0), [POINT])
    with one.hooks([(POINT, bent)], reset_hooks_end=False):
        pass
    assert count(one) == (1, 0)


# What every function is held to.


def test_an_added_function_is_held_to_what_others_are(one):
    """It writes to a copy of its own; what it returns is checked; a point that is derived cannot be edited."""
    plain = one.run_with_cache(IDS, "hook_embed")[1]["hook_embed"]
    kept = one.add_caching_hooks("hook_embed")
    one.add_hook("hook_embed", lambda x, hook: x.zero_())
    assert not torch.equal(one(IDS), one.run_with_hooks(IDS, [("hook_embed", bent)]))
    assert torch.equal(kept["hook_embed"], plain)
    one.reset_hooks()
    one.add_hook("hook_embed", lambda x, hook: x[:, :1])
    with pytest.raises(HookFunctionError, match=r"'hook_embed': .*returned shape \[2, 1, 32\]"):
        one(IDS)
    one.reset_hooks()
    derived = next(name for name, spec in one.hook_points.items() if spec.read_only)
    one.add_hook(derived, lambda x, hook: x * 2)
    with pytest.raises(HookFunctionError, match="read-only"):
        one(IDS)


def test_what_a_function_raises_comes_out_with_the_point_and_its_axes():
    """Habits of theirs that end so: a query head's number where keys and values are shared, no word for the point."""
    one = HybridLens(make("jamba"))
    called = "in the hook function on 'hook_embed', called as fn(tensor, hook=point) with a tensor of batch 2, pos 7, "
    for fn, kind, words in ((lambda x, hook: x[:, :, 99], IndexError, "index 99"), (lambda x: x, TypeError, "'hook'")):
        one.add_hook("hook_embed", fn)
        with pytest.raises(kind, match=words) as caught:
            one(IDS)
        assert caught.value.__notes__ == [called + f"d_model {one.cfg.d_model}"]
        one.reset_hooks()
    one.add_hook("hook_embed", lambda x, hook: 1 / 0, "bwd")
    with pytest.raises(ZeroDivisionError) as caught:
        one(IDS).sum().backward()
    assert caught.value.__notes__ == [called + f"d_model {one.cfg.d_model}"]


@torch.no_grad()
def test_lazy_points_are_computed_for_added_functions_and_blocks_taken(one):
    """`hook_result` is there only when asked for; a function of single queries is given blocks of a long prompt."""
    layer = one.cfg.attention_layers[0]
    shapes = []
    one.add_hook(f"blocks.{layer}.attn.hook_result", lambda x, hook: shapes.append(tuple(x.shape)))
    one(IDS)
    assert shapes == [(2, 7, 4, 32)]
    one.reset_hooks()
    point = one.hook_dict[f"blocks.{layer}.attn.hook_pattern"]
    one.add_hook(point.name, by_query(lambda x, hook: x))
    assert point.takes_blocks()
    one.add_hook(point.name, bent)
    assert not point.takes_blocks()


def test_a_point_is_a_hook_point_of_transformer_lens(one):
    point = one.hook_dict[POINT]
    assert isinstance(point, TransformerLensHookPoint)
    assert point.layer() == 2
    point.add_perma_hook(bent)
    assert (point.fwd_hooks[0].is_permanent, point.fwd_hooks[0].context_level) == (True, None)
    with one.hooks([(POINT, bent)]):
        assert point.fwd_hooks[1].context_level == 1


# Threads, copies.


@torch.no_grad()
def test_added_functions_act_in_all_threads_and_attached_ones_in_their_own(one):
    ids, plain = tokens(1, 6), one(tokens(1, 6))
    one.add_hook("hook_embed", bent)
    changed = one(ids)
    with ThreadPoolExecutor(1) as pool:

        def there(fn):
            return pool.submit(fn).result()

        with one.hooks([("hook_embed", bounded)]):
            assert there(lambda: count(one, "hook_embed")) == (1, 0)
            with torch.inference_mode():
                assert torch.equal(there(lambda: one(ids).detach()), changed)
            there(one.reset_hooks)  # of another thread: what this one attached stays
            assert [handle.user_hook for handle in one.hook_dict["hook_embed"].fwd_hooks] == [bounded]
    assert torch.equal(one(ids), plain)


def test_hooks_are_added_and_removed_by_many_threads_at_once(one):
    """None is lost and none is left."""
    meeting = threading.Barrier(4, timeout=60)

    def work(number):
        meeting.wait()
        for _ in range(50):
            one.add_hook("hook_embed", bent)[0].remove()
            with one.hooks([("hook_embed", bent)]):
                assert len(one.hook_dict["hook_embed"].acting()) >= 1
        return one.add_hook("hook_embed", bent)[0]

    with ThreadPoolExecutor(4) as pool:
        left = list(pool.map(work, range(4)))
    assert set(one.hook_dict["hook_embed"].fwd_hooks) == set(left)


class Keeper:
    """A hook that is a method: its owner is not to be copied with a model."""

    def __init__(self):
        self.seen = 0

    def note(self, x, hook):
        self.seen += 1


@torch.no_grad()
def test_a_copy_has_the_hooks_that_were_added_and_they_are_its_own():
    lens, keeper = HybridLens(make("recurrentgemma", 4)), Keeper()
    lens.add_hook(POINT, bent)
    lens.add_perma_hook(POINT, keeper.note)
    with lens.hooks([(POINT, bounded)]):
        copies = [copy.deepcopy(lens), pickle.loads(pickle.dumps(lens))]
    logits = lens(IDS)
    for other in copies:
        assert count(other) == (2, 0)
        assert torch.equal(other(IDS), logits)
        other.add_hook(POINT, bounded)
        assert not torch.equal(other(IDS), logits)
    assert copies[0].hook_dict[POINT].fwd_hooks[1].user_hook.__self__ is keeper
    copies[0].reset_hooks(including_permanent=True)
    assert (count(lens), count(copies[0])) == ((2, 0), (0, 0))
    assert torch.equal(copies[0](IDS), HybridLens(lens.hf_model)(IDS))
    lens.add_hook(POINT, lambda x, hook: x)
    assert count(copy.deepcopy(lens)) == (3, 0)
    with pytest.raises(HookFunctionError, match="<lambda> cannot be pickled"):
        pickle.dumps(lens)
