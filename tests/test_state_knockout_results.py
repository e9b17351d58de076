"""What knocking heads out gives as a result: which heads are drawn beside them, p-values, files; what is refused."""

import re

import pytest
import torch
from models import KINDS, ROWS, WITH_STATE, make, tokens

from analyses.patching.metrics import LogitDifference
from analyses.states.knocked import Knockout, KnockoutMap
from analyses.states.knockout import knockout, knockout_map
from analyses.states.silencing import Silenced, head_states, knock_out, knock_out_rows, recurrent_heads
from hybridlens import HybridLens
from hybridlens.errors import HookFunctionError, InputError, UnknownNameError
from hybridlens.hooks import reads_only

WITHOUT = tuple(family for family in KINDS if family not in WITH_STATE)


def test_what_is_drawn():
    """As many of each layer, all different, none of the heads given; of the model where a layer has too few."""
    lens = HybridLens(make("mamba2", num_hidden_layers=4, num_heads=8, head_dim=8))
    ids, metric = tokens(1, 6), LogitDifference(7, 9)
    heads = [(1, 0), (3, 2), (1, 4)]
    near = knockout(lens, ids, metric, heads, controls=30, seed=3)
    assert near.pool == "layers"
    assert near.heads == ((1, 0), (1, 4), (3, 2))
    assert len(set(near.drawn)) == 30
    for some in near.drawn:
        assert [layer for layer, _ in some] == [1, 1, 3]
        assert not set(some) & set(heads)
        assert len(set(some)) == 3
    assert knockout(lens, ids, metric, heads, controls=30, seed=3).drawn == near.drawn
    assert knockout(lens, ids, metric, heads, controls=30, seed=4).drawn != near.drawn
    far = knockout(lens, ids, metric, [(1, 0)], controls=20)
    assert far.pool == "model"
    assert len({*far.drawn, ((1, 0),)}) == 21
    assert {layer for ((layer, _),) in far.drawn} == {0, 1, 2, 3}
    every = knockout(lens, ids, metric, [(1, 0)], controls=7)
    assert every.pool == "layers"
    assert every.drawn == tuple(((1, head),) for head in range(1, 8))
    few = knockout(lens, ids, metric, [(1, 0)], controls=99)
    assert few.pool == "model"
    assert len(few.random) == len(set(few.drawn)) == 31


def result(**changes):
    """A result with values of one's own."""
    fields = {
        "value": 1.0, "random": torch.tensor([3.0, 5.0, 1.0, 2.0], dtype=torch.float64), "heads": ((0, 0),),
        "drawn": (((0, 1),),) * 4, "pool": "model", "positions": (3,), "seed": 0, "untouched": 3.0, "what": "write",
        "metric": "m", "model": "x", "tokens": (1, 2), "forwards": 4,
    }  # fmt: skip
    return Knockout(**{**fields, **changes})


def test_the_p_value_counts_distances_whatever_their_sign():
    """Distances 0, 2, 2, 1 beside 2: two are as far, so (1 + 2) / (1 + 4); rounding apart they are the same."""
    assert result().p_value == 3 / 5
    assert result(value=1.0 - 1e-9).p_value == 3 / 5
    assert result(value=-1.0).p_value == 1 / 5
    assert result(value=3.0).p_value == 1.0
    assert result().change == -2.0


def test_results_are_saved_whole(tmp_path):
    lens, ids = HybridLens(make("recurrentgemma")), tokens(1, 6)
    found = knockout(lens, ids, LogitDifference(3, 4), [(0, 1)], None, "read", controls=3)
    again = Knockout.load(found.save(tmp_path / "one"))
    assert torch.equal(again.random, found.random)
    assert (again.value, again.drawn, again.positions, again.p_value) == (
        found.value, found.drawn, None, found.p_value,
    )  # fmt: skip
    cells = knockout_map(lens, ids, LogitDifference(3, 4), blocks=2)
    back = KnockoutMap.load(cells.save(tmp_path / "map"))
    assert torch.equal(back.values, cells.values)
    assert (back.heads, back.blocks, back.top(3)) == (cells.heads, cells.blocks, cells.top(3))


def test_heads_are_those_that_mixers_have():
    expected = {"recurrentgemma": 4, "jamba": 1, "mamba2": 4, "falcon_h1": 4, "qwen3_next": 4}
    for family in WITH_STATE:
        lens = HybridLens(make(family))
        n = expected.get(family, recurrent_heads(lens)[-1][1] + 1)
        assert recurrent_heads(lens) == [(layer, head) for layer in lens.cfg.state_layers for head in range(n)]
        states = head_states(lens, lens.cfg.state_layers[0])
        held = lens.prefill(tokens(2, 4)).state.layers[lens.cfg.state_layers[0]]["ssm"].recurrent
        by_head = states.by_head(held)
        assert by_head.shape[:2] == (2, n)
        assert torch.equal(by_head.reshape(held.shape), held)
        if ROWS[family].matrix:
            assert torch.equal(by_head[:, 2], held[:, 2].flatten(1))


@pytest.mark.parametrize("family", WITHOUT)
def test_models_without_states_are_refused(family):
    lens, metric = HybridLens(make(family)), LogitDifference(3, 4)
    line = r"^knocking out heads needs recurrent states, but no layer of this \w+ model holds one.*$"
    for call in (
        lambda: knock_out(lens, [(0, 0)]),
        lambda: knockout(lens, [3, 4], metric, [(0, 0)]),
        lambda: knockout_map(lens, [3, 4], metric),
    ):
        with pytest.raises(InputError, match=line):
            call()


def test_what_cannot_be_is_refused_in_one_line():
    lens, ids, metric = HybridLens(make("jamba")), tokens(1, 6), LogitDifference(3, 4)
    pure = HybridLens(make("mamba", num_hidden_layers=1))
    calls = {
        "head 1 of layer 2 given, but its state has heads 0..0": lambda: knock_out(lens, [(2, 1)]),
        "head -1 of layer 2 given, but its state has heads 0..0": lambda: knockout(lens, ids, metric, [(2, -1)]),
        "layer 1 is no recurrent layer; those are 0, 2, 3": lambda: knock_out(lens, [(1, 0)]),
        "layer 9 given, but the model has layers 0..3": lambda: knockout_map(lens, ids, metric, layers=[9]),
        "no head was given, expected at least one (layer, head) to knock out": lambda: knock_out(lens, []),
        "no position was given, expected at least one, or None for all": lambda: knock_out(lens, [(0, 0)], []),
        "no row was given": lambda: knock_out_rows(lens, []),
        "positions[0] = -1 given, expected positions to be a list": lambda: knock_out(lens, [(0, 0)], [-1]),
        "position 6 given, but the prompt has 0..5": lambda: knockout(lens, ids, metric, [(0, 0)], [6]),
        "2 prompts were given as one, expected one": lambda: knockout(lens, tokens(2, 4), metric, [(0, 0)]),
        "no layer was given": lambda: knockout_map(lens, ids, metric, layers=[]),
        "1 of the model's 1 recurrent heads were given, which leaves 0 to draw": lambda: knockout(
            pure, ids, metric, [(0, 0)]
        ),
        "metric 'nan' returned nan for the untouched run": lambda: knockout(lens, ids, nan, [(0, 0)]),
    }
    for line, call in calls.items():
        with pytest.raises(InputError, match=f"^{re.escape(line)}") as caught:
            call()
        assert "\n" not in str(caught.value)
    for call in (
        lambda: knock_out(lens, [(0, 0)], None, "wrote"),
        lambda: knockout(lens, ids, metric, [(0, 0)], None, "wrote"),
        lambda: knock_out(lens, [(0, 0)], None, "read", "later"),
    ):
        with pytest.raises(UnknownNameError, match="does not exist"):
            call()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_in_any_dtype_and_with_gradients(dtype):
    """What is silenced has no gradient, what is not has one; values stay in the model's dtype."""
    lens, ids, seen = HybridLens(make("jamba").to(dtype)), tokens(1, 6), []
    (edit,) = knock_out(lens, [(2, 0)], [3])
    with lens.hooks([(edit.hook, reads_only(lambda x, hook: seen.append(x))), (edit.hook, edit.fn)]):
        logits = lens(ids)
    assert logits.dtype == dtype
    (gradient,) = torch.autograd.grad(logits[0, -1].float().square().sum(), seen)
    assert not bool(gradient[:, 3].any())
    assert bool(gradient[:, [0, 1, 2, 4, 5]].any(dim=-1).all())


def nan(logits):
    return logits[:, -1, 0] * torch.nan


def test_batches_of_other_sizes_and_blocks_run_alone_are_refused():
    lens = HybridLens(make("mamba2"))
    rows = knock_out_rows(lens, [Silenced(((0, 0),)), Silenced(((0, 1),))])
    with pytest.raises(HookFunctionError, match=r"knock-outs were given for 2 rows, but the batch has 3"):
        lens.prefill(tokens(3, 4), rows)
    (edit,) = knock_out(lens, [(0, 0)], [1])
    alone = pytest.raises(HookFunctionError, match=r"does not say where its tokens stand")
    with torch.no_grad(), lens.hooks([(edit.hook, edit.fn)]), alone:
        lens.hook_dict[edit.hook](torch.zeros(1, 3, 4, 5))
