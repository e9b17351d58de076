"""Recurrent heads knocked out: against float64 loops over time, row by row and step by step; planted memories found.

The loops (`recurrence_cases.loop`) take decays, addresses and values as hooks read them in an untouched run, and none
of the operators. What a layer reads out without a write is then put into a second run by hand, and all that follows
has to be the same.
"""

import planted_memory
import pytest
import torch
from bounds import FORWARD, LAYER, apart, close
from models import MATRIX, WITH_STATE, make, tokens
from recurrence_cases import loop

from analyses.patching.metrics import KullbackLeibler, LogitDifference, LogProbability, NeedleScore
from analyses.states.knockout import knockout, knockout_map
from analyses.states.silencing import Silenced, head_states, knock_out, knock_out_rows, recurrent_heads
from hybridlens import Edit, HybridLens
from hybridlens.niah import Rule
from hybridlens.recurrences import DeltaTerms, DiagonalTerms, ScalarTerms

LENGTH = 11
POINTS = ("decay", "write", "v", "k", "q", "dt", "beta", "C", "y")
PLANTED = ("recurrentgemma", "jamba", "mamba2", "qwen3_next")


def seen_in(lens, layer, ids):
    """The points of a recurrent layer in an untouched run, and its last state."""
    names = {part: f"blocks.{layer}.ssm.hook_{part}" for part in POINTS}
    names = {part: name for part, name in names.items() if name in lens.hook_points}
    kept = {}
    with torch.no_grad(), lens.hooks([(list(names.values()), lambda x, hook: kept.update({hook.name: x.clone()}))]):
        state = lens.network(ids).state
    return {part: kept[name].double() for part, name in names.items()}, state.layers[layer]["ssm"].recurrent.double()


def terms_of(seen):
    """A layer's recurrence as the plain loops know it."""
    if "beta" in seen:
        return DeltaTerms(seen["decay"], seen["v"], seen["k"], seen["q"], seen["beta"])
    if "v" in seen:
        return ScalarTerms(seen["decay"], seen["v"], seen["k"], seen["q"], seen.get("dt"))
    return DiagonalTerms(seen["decay"], seen["write"], seen.get("C"))


def mask_of(lens, layer, rows, like):
    """True at the entries of a layer's states, or readouts, that are knocked out [b p ...]."""
    n = head_states(lens, layer).n
    mask = torch.zeros(like.shape, dtype=torch.bool).reshape(*like.shape[:2], n, -1)
    for row, (heads, positions) in enumerate(rows):
        for place, head in heads:
            if place == layer:
                at = range(like.shape[1])
                mask[row, [p for p in at if positions is None or p in positions], head] = True
    return mask.view(like.shape)


def without(lens, layer, rows, ids, what):
    """What the loops make of a layer without its heads' writes, or reads: readouts and last state; and those with."""
    seen, final = seen_in(lens, layer, ids)
    terms = terms_of(seen)
    start = torch.zeros_like(final)
    states, _, read = loop(terms, start)
    close(states[:, -1], final, LAYER, dtype=torch.float32)
    skip = seen["y"] - read if "dt" in seen else torch.zeros_like(read)  # only Mamba and Mamba-2 have D x
    close(read + skip, seen["y"], LAYER, dtype=torch.float32)
    if what == "read":
        return read.masked_fill(mask_of(lens, layer, rows, read), 0.0) + skip, final, seen["y"]
    gone = mask_of(lens, layer, rows, states)
    states, _, now = loop(terms, start, {"write": (gone, torch.zeros_like(states))})
    return now + skip, states[:, -1], seen["y"]


def rows_for(lens, layer):
    """Four rows: whole, one head at two positions, all heads everywhere, one head at the last position."""
    last = head_states(lens, layer).n - 1
    every = tuple((layer, head) for head in range(last + 1))
    return [
        Silenced(()), Silenced(((layer, last),), (2, 5)), Silenced(every), Silenced(((layer, 0),), (LENGTH - 1, 90)),
    ]  # fmt: skip


@pytest.mark.parametrize("what", ["write", "read"])
@pytest.mark.parametrize("family", WITH_STATE)
def test_a_layer_without_its_heads_by_plain_loops(family, what):
    """Readouts and last state of each row's own knock-out; what follows is what the loop's readouts make of it."""
    lens, ids = HybridLens(make(family, 3)), tokens(4, LENGTH, 5)
    for layer in lens.cfg.state_layers[:2]:
        rows, point = rows_for(lens, layer), f"blocks.{layer}.ssm.hook_y"
        y, final, plain = without(lens, layer, rows, ids, what)
        kept = {}

        def keep(x, hook, kept=kept):
            kept["y"] = x.clone()

        edits = knock_out_rows(lens, rows, what)
        with torch.no_grad(), lens.editing(edits, "prefill") as forward, lens.hooks([(point, keep)]):
            logits, state = forward(ids)
        close(kept["y"], y, LAYER, dtype=torch.float32, what=(layer, "y"))
        close(state.layers[layer]["ssm"].recurrent, final, LAYER, dtype=torch.float32, what=(layer, "state"))
        assert torch.equal(kept["y"][0].double(), plain[0]), "a row that stays whole hears of another's"
        assert all(apart(kept["y"][row].double(), plain[row], LAYER, dtype=torch.float32) for row in (1, 2, 3))
        put = [(point, lambda x, hook, y=y: y.to(x.dtype))]
        with torch.no_grad():
            expected = lens.run_with_hooks(ids, put)
            untouched = lens(ids)
        close(logits, expected, FORWARD)
        assert apart(logits[1:], untouched[1:])


@pytest.mark.parametrize("family", WITH_STATE)
def test_the_write_is_what_an_edit_of_the_write_takes_away(family):
    """The definition: `hook_write` set to 0 at the head and positions, which costs a trajectory."""
    lens, ids = HybridLens(make(family, 4)), tokens(2, LENGTH, 6)
    layer = lens.cfg.state_layers[-1]
    heads, at = [(layer, head_states(lens, layer).n - 1)], [1, 4]

    def zero(x, hook):
        return x.masked_fill(mask_of(lens, layer, [Silenced(tuple(heads), tuple(at))] * 2, x), 0.0)

    with torch.no_grad():
        found = lens.prefill(ids, knock_out(lens, heads, at))
        expected = lens.prefill(ids, [Edit(f"blocks.{layer}.ssm.hook_write", zero)])
    close(found.logits, expected.logits, FORWARD)
    ours, theirs = (run.state.layers[layer]["ssm"].recurrent for run in (found, expected))
    close(ours, theirs, LAYER)


@pytest.mark.parametrize("family", MATRIX)
def test_what_a_silenced_write_leaves_is_the_decayed_state(family):
    """S_t = a_t S_{t-1} at that head and token, to the bit: nothing is erased there, in a delta rule either."""
    lens, ids = HybridLens(make(family, 5)), tokens(1, LENGTH, 7)
    layer, at = lens.cfg.state_layers[0], 6
    kept = {}
    names = [f"blocks.{layer}.ssm.hook_{part}" for part in ("state", "decay")]
    with torch.no_grad(), lens.hooks([(names, lambda x, hook: kept.update({hook.name: x.clone()}))]):
        lens.prefill(ids, knock_out(lens, [(layer, 1)], [at]))
    states, decay = (kept[name][0] for name in names)
    close(states[at, 1], decay[at, 1] * states[at - 1, 1])
    assert apart(states[at, 0], decay[at, 0] * states[at - 1, 0], LAYER)


@pytest.mark.parametrize("what", ["write", "read"])
@pytest.mark.parametrize("family", WITH_STATE)
def test_in_pieces_and_steps_as_in_one_pass(family, what):
    """Positions are the text's: before the state, and in decode steps, of prompts of any lengths; phases are kept."""
    lens, ids = HybridLens(make(family, 6)), tokens(2, LENGTH, 8)
    heads, at = recurrent_heads(lens)[::2], [1, 6, 8, 9]
    edits = knock_out(lens, heads, at, what)
    with torch.no_grad():
        whole = lens.prefill(ids, edits).logits
        state, first = lens.prefill(ids[:, :5], edits)
        state, second = lens.extend(state, ids[:, 5:8], edits)
        parts = [first, second]
        for t in range(8, LENGTH):
            state, logits = lens.extend(state, ids[:, t : t + 1], edits)
            parts.append(logits)
        close(torch.cat(parts, 1), whole, FORWARD)

        rows = [ids[0].tolist(), ids[1, :7].tolist()]
        ragged, _ = lens.prefill(rows, edits)
        alone = [lens.prefill([row], edits).state for row in rows]
        for row, one in enumerate(alone):
            step = lens.extend(ragged, [[3], [3]], edits).logits[row]
            close(step, lens.extend(one, [[3]], edits).logits[0], FORWARD)

        reading = lens.prefill(ids[:, :8], knock_out(lens, heads, at, what, "prefill"))
        answering = lens.prefill(ids[:, :8], knock_out(lens, heads, at, what, "decode"))
        close(reading.logits, torch.cat([first, second], 1), FORWARD)
        assert torch.equal(answering.logits, lens.prefill(ids[:, :8]).logits)
        late = lens.extend(answering.state, ids[:, 8:9], knock_out(lens, heads, [8], what, "decode")).logits
        assert apart(late, lens.extend(answering.state, ids[:, 8:9]).logits)


@pytest.mark.parametrize("family", WITH_STATE)
def test_rows_of_an_edit_are_rows_of_a_batch(family):
    """`Edit.rows` and `knock_out_rows` say the same, in a batch whose rows stand at other positions."""
    lens, ids = HybridLens(make(family, 7)), tokens(3, LENGTH, 9)
    a, b = recurrent_heads(lens)[0], recurrent_heads(lens)[-1]
    batch = [row[:n] for row, n in zip(ids.tolist(), (5, 9, 7), strict=True)]
    one = [Edit(e.hook, e.fn, rows=[1]) for e in knock_out(lens, [a], [3, 9])]
    two = [Edit(e.hook, e.fn, rows=[2]) for e in knock_out(lens, [a, b], [2, 7])]
    together = knock_out_rows(lens, [Silenced(()), Silenced((a,), (3, 9)), Silenced((a, b), (2, 7))])
    with torch.no_grad():
        states = [lens.prefill(batch, edits).state for edits in (one + two, together)]
        steps = [
            lens.extend(state, [[4], [5], [6]], e).logits
            for state, e in zip(states, (one + two, together), strict=True)
        ]
        untouched = lens.extend(lens.prefill(batch).state, [[4], [5], [6]]).logits
    assert torch.equal(*steps)
    assert all(apart(steps[0][row], untouched[row]) for row in (1, 2))


@pytest.mark.parametrize("family", ["recurrentgemma", "jamba", "qwen3_next"])
def test_generation_under_knock_outs(family):
    """The planted answer, where it is the likeliest token, is not said without the read in the step that asks."""
    lens, layer, head = planted_memory.planted(family, "state")
    (given,) = planted_memory.pairs(1)
    answer, last = given.spans[0][0], given.length - 1
    edits = knock_out(lens, [(layer, head or 0)], [last], "read", "decode")
    assert said(lens, given, ()) == given.a[answer]
    assert said(lens, given, edits) != given.a[answer]
    others = [one for one in recurrent_heads(lens) if one != (layer, head or 0)]
    assert said(lens, given, knock_out(lens, others, None, "read")) == given.a[answer]


def said(lens, given, edits):
    """The first token that is generated."""
    return int(lens.generate([list(given.a)], 1, edits).tokens[0][0])


@pytest.mark.parametrize("family", PLANTED)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_planted_memory_is_lost_with_its_head_alone(family, seed):
    """Its write at the value's position, or its read at the end: the metric falls to 0; random heads leave it whole."""
    lens, layer, head = planted_memory.planted(family, "state", seed)
    (given,) = planted_memory.pairs(1, seed=seed)
    place, last = given.spans[0][0], given.length - 1
    metric, planted = LogitDifference(*(side[place] for side in (given.a, given.b))), (layer, head or 0)
    for what, at in (("write", place), ("read", last)):
        found = knockout(lens, list(given.a), metric, [planted], [at], what, seed=seed)
        assert found.untouched > 2
        assert abs(found.value) < 0.02 * found.untouched
        assert float(found.random_change.abs().max()) < 0.02 * found.untouched
        assert found.p_value == 1 / (1 + len(found.random))
        elsewhere = [p for p in range(given.length) if p != at]
        other = knockout(lens, list(given.a), metric, [planted], elsewhere, what, seed=seed)
        assert abs(other.change) < 0.02 * found.untouched
        cells = knockout_map(lens, list(given.a), metric, what, blocks=6)
        (best, block, change), *rest = cells.top(len(cells.heads) * 6)
        assert best == planted
        assert at in range(*block)
        assert change == pytest.approx(found.change, abs=0.02 * found.untouched)
        assert all(abs(change) < 0.02 * found.untouched for *_, change in rest)


@pytest.mark.parametrize("family", WITH_STATE)
def test_values_are_those_of_plain_runs(family):
    """Whatever the batches, and whatever is not computed again: the metric of one run under `knock_out` each."""
    lens, ids = HybridLens(make(family, 8)), tokens(1, LENGTH, 10)
    every = recurrent_heads(lens)
    metric, heads = LogitDifference(7, 9), every[1 : 3 if len(every) > 3 else 2]

    def plain(some, positions, what):
        with torch.no_grad():
            return float(metric(lens.prefill(ids, knock_out(lens, some, positions, what)).logits)[0])

    for what, positions in (("write", [3, -2]), ("read", None)):
        at = None if positions is None else [3, LENGTH - 2]
        for batch_size in (1, 4):
            found = knockout(lens, ids, metric, heads, positions, what, controls=6, batch_size=batch_size)
            assert found.positions == (None if at is None else tuple(at))
            with torch.no_grad():
                untouched = lens(ids)
            scale = float(untouched.abs().max())
            close(found.untouched, float(metric(untouched)[0]), FORWARD, scale=scale, dtype=torch.float32)
            close(found.value, plain(heads, at, what), FORWARD, scale=scale, dtype=torch.float32)
            expected = torch.tensor([plain(list(some), at, what) for some in found.drawn])
            close(found.random, expected, FORWARD, scale=scale, dtype=torch.float32)
            by_hand = 1 + sum(abs(x - found.untouched) >= abs(found.change) for x in found.random.tolist())
            assert found.p_value == by_hand / (1 + len(found.random))
    cells = knockout_map(lens, ids, metric, layers=[heads[0][0]], blocks=3, batch_size=2)
    assert cells.blocks == ((0, 3), (3, 7), (7, 11))
    assert cells.heads == tuple(head for head in recurrent_heads(lens) if head[0] == heads[0][0])
    expected = [[plain([head], range(*block), "write") for block in cells.blocks] for head in cells.heads]
    close(cells.values, torch.tensor(expected), FORWARD, scale=scale, dtype=torch.float32)
    assert torch.equal(cells.change, cells.values - cells.untouched)


def test_any_metric_is_measured():
    """Of all positions, of several tokens read on, of text that is decoded, or a function of one's own."""
    lens, layer, head = planted_memory.planted("qwen3_next", "state")
    (given,) = planted_memory.pairs(1)
    at, prompt = given.spans[0][0], list(given.a)
    with torch.no_grad():
        logits = lens([prompt])[0]

    def own(logits):
        return logits[:, -1, given.a[at]]

    metrics = [
        KullbackLeibler(logits), LogProbability((given.a[at], given.a[0])), own,
        NeedleScore((Rule(planted_memory.WORDS[given.a[at]], 5.0, "said"),), 1),
    ]  # fmt: skip
    for metric in metrics:
        found = knockout(lens, prompt, metric, [(layer, head)], [at], controls=3)
        assert abs(found.change) > 0.5, found.metric
        assert float(found.random_change.abs().max()) < 0.01, found.metric
    assert found.untouched == 5.0
    assert found.value == 0.0
