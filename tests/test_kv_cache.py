"""Surgery on caches and states: against plain loops over single entries, row by row, in runs of their own."""

import random
from collections.abc import Callable

import jaxtyping
import pytest
import torch
from bounds import FEW, FORWARD, LAYER, apart, bound, close
from hypothesis import example, given, settings
from hypothesis import strategies as st
from models import FAMILIES, make, tokens

from analyses import kv_cache
from analyses.kv_cache import Surgery
from hybridlens import Edit, HybridLens
from hybridlens.errors import InputError, UnknownNameError
from hybridlens.memory import KeyValues, Recurrent
from hybridlens.state import HybridState

LENGTHS = (12, 9, 4)
"""Of the rows of most tests: beyond the window of 7, and within it."""


@pytest.fixture(scope="module", params=[(family, dtype) for family in FAMILIES for dtype in ("float32", "bfloat16")])
def lens(request: pytest.FixtureRequest) -> HybridLens:
    family, dtype = request.param
    return HybridLens(make(family, 5, num_hidden_layers=6).to(getattr(torch, dtype)))


@pytest.fixture(scope="module", params=FAMILIES)
def exact(request: pytest.FixtureRequest) -> HybridLens:
    return HybridLens(make(request.param, 5, num_hidden_layers=6))


def rows(seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    return [row[:n] for row, n in zip(tokens(len(lengths), max(lengths), seed).tolist(), lengths, strict=True)]


def read(lens: HybridLens, prompts: list[list[int]]) -> HybridState:
    with torch.no_grad():
        return lens.prefill(prompts).state


def same(one: HybridState, other: HybridState) -> bool:
    ours, theirs = one.tensors(), other.tensors()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def entries(state: HybridState, layer: int) -> dict[tuple[int, int, int, int], tuple[float, float]]:
    """(row, head, position, channel) → key and value, of everything that the next token can see."""
    held, out = state.layers[layer]["attn"], {}
    assert isinstance(held, KeyValues)
    keys, values = held.k.tolist(), held.v.tolist()
    for row, positions in enumerate(state.key_positions.tolist()):
        newest = int(state.lengths[row])
        for slot, position in enumerate(positions):
            if position < 0 or (state.window is not None and position <= newest - state.window):
                continue
            for head in range(held.k.shape[1]):
                if held.kept is None or bool(held.kept[row, head, slot]):
                    for channel in range(held.k.shape[3]):
                        at = keys[row][head][slot][channel], values[row][head][slot][channel]
                        out[row, head, position, channel] = at
    return out


class Target:
    """A random place: layers, heads, positions, channels, rows; each may be left out."""

    def __init__(self, lens: HybridLens, state: HybridState, seed: int) -> None:
        rng = random.Random(seed)
        cfg = lens.cfg
        self.rows = rng.sample(range(state.batch), rng.randint(1, state.batch))
        held = {row: sorted({p for r, _, p, _ in entries(state, cfg.attention_layers[0]) if r == row})
                for row in range(state.batch)}  # fmt: skip
        self.positions = {row: sorted(rng.sample(held[row], rng.randint(0, len(held[row])))) for row in self.rows}
        self.layers = rng.sample(cfg.attention_layers, 1)
        self.heads = sorted(rng.sample(range(cfg.n_kv_heads), rng.randint(1, cfg.n_kv_heads)))
        self.channels = sorted(rng.sample(range(cfg.d_head), rng.randint(1, cfg.d_head)))
        self.where = {
            "rows": self.rows, "positions": [self.positions[row] for row in self.rows], "layers": self.layers,
            "heads": self.heads, "channels": self.channels,
        }  # fmt: skip

    def holds(self, layer: int, row: int, head: int, position: int, channel: int) -> bool:
        return (
            layer in self.layers and row in self.rows and head in self.heads and position in self.positions[row]
            and channel in self.channels
        )  # fmt: skip


def compare(
    lens: HybridLens, before: HybridState, after: HybridState, target: Target, fn: Callable, parts: str
) -> None:
    """Every entry of every layer: `fn` of its neighbours inside the target, the very same number outside."""
    for layer in lens.cfg.attention_layers:
        old, new = entries(before, layer), entries(after, layer)
        assert old.keys() == new.keys()
        for at, was in old.items():
            inside = target.holds(layer, *at)
            for which, part in enumerate(("keys", "values")):
                if inside and parts in (part, "both"):
                    close(new[at][which], fn(old, at, which), FEW, scale=size_of(old), dtype=lens.dtype)
                else:
                    assert new[at][which] == was[which]
    for layer in lens.cfg.ssm_layers:
        assert before.layers[layer] is after.layers[layer]


def size_of(values: dict) -> float:
    """Of the largest key or value."""
    return max(abs(x) for pair in values.values() for x in pair)


@settings(deadline=None, max_examples=4)
@example(seed=105, parts="values")  # of Jamba in bfloat16, where an entry lies halfway between two levels
@given(seed=st.integers(0, 10_000), parts=st.sampled_from(["keys", "values", "both"]))
def test_keys_and_values_against_plain_loops(lens: HybridLens, seed: int, parts: str) -> None:
    """Random targets: zero, mean, quantise, swap; entries outside keep their bits, and the given state all of its."""
    state, other = read(lens, rows(seed)), read(lens, rows(seed + 1))
    before, theirs = state.clone(), other.clone()
    target = Target(lens, state, seed)
    compare(lens, state, kv_cache.zero(state, parts, **target.where), target, lambda *_: 0.0, parts)

    def mean(old, at, which):
        same_place = [x[which] for (r, h, _, c), x in old.items() if (r, h, c) == (at[0], at[1], at[3])]
        return sum(same_place) / len(same_place)

    compare(lens, state, kv_cache.mean(state, parts, **target.where), target, mean, parts)
    source = {layer: entries(other, layer) for layer in lens.cfg.attention_layers}
    taken = kv_cache.swap(state, other, parts, **target.where)
    compare(lens, state, taken, target, lambda _, at, which: source[target.layers[0]][at][which], parts)
    assert same(kv_cache.swap(taken, state, parts, **target.where), before)
    for per in ("position", "channel"):
        quantised = kv_cache.quantise(state, 3, parts, per=per, **target.where)
        new = entries(quantised, target.layers[0])

        def rounded(old, at, which, per=per, new=new):
            group = [
                x[which] for (r, h, p, c), x in old.items()
                if (r, h) == at[:2] and target.holds(target.layers[0], r, h, p, c)
                and (p == at[2] if per == "position" else c == at[3])
            ]  # fmt: skip
            low, high = min(group), max(group)
            levels = [low + (high - low) * i / 7 for i in range(8)]
            nearest = min(abs(level - old[at][which]) for level in levels) + 1e-3 * (high - low)  # of two, either
            return min((level for level in levels if abs(level - old[at][which]) <= nearest),
                       key=lambda level: abs(level - new[at][which]))  # fmt: skip

        compare(lens, state, quantised, target, rounded, parts)
    assert same(state, before)
    assert same(other, theirs)


@settings(deadline=None, max_examples=4)
@given(seed=st.integers(0, 10_000))
def test_dropped_keys_are_never_seen(exact: HybridLens, seed: int) -> None:
    """Random rows, heads and positions dropped in one layer or all: as if every later score of theirs were -inf.

    The reference hooks the scores of the whole state, finds keys by their absolute position, one row at a time.
    """
    state, rng = read(exact, rows(seed)), random.Random(seed)
    target = Target(exact, state, seed)
    layers, heads = rng.choice([(None, None), (target.layers, None), (None, target.heads), (target.layers, [0])])
    where = {"rows": target.rows, "layers": layers, "heads": heads}
    before, new = state.clone(), tokens(3, 3, seed=seed + 5)
    lossy = kv_cache.drop(state, target.where["positions"], **where)
    held = entries(lossy, (layers or exact.cfg.attention_layers)[0])
    for head in heads or range(exact.cfg.n_kv_heads):
        for row in target.rows:
            assert not {p for r, h, p, _ in held if (r, h) == (row, head)} & set(target.positions[row])
    rest = {r: sorted({p for q, _, p, _ in entries(state, exact.cfg.attention_layers[0]) if q == r} - set(drops))
            for r, drops in target.positions.items()}  # fmt: skip
    assert same(kv_cache.keep(state, [rest[row] for row in target.rows], **where), lossy)
    group = exact.cfg.n_heads // exact.cfg.n_kv_heads
    with torch.no_grad():
        ours = exact.extend(lossy, new).logits
        for row in range(3):

            def mask(scores, hook, row=row):
                out = scores.clone()
                for slot, position in enumerate(hook.slots.key_positions[0].tolist()):
                    for head in range(exact.cfg.n_heads):
                        if position in target.positions.get(row, []) and (heads is None or head // group in heads):
                            out[:, head, :, slot] = float("-inf")
                return out

            names = [f"blocks.{i}.attn.hook_attn_scores" for i in layers or exact.cfg.attention_layers]
            with exact.hooks([(names, mask)]):
                alone = exact.extend(state.split()[row], new[row : row + 1]).logits
            close(ours[row : row + 1], alone, FORWARD)
    assert same(state, before)


def test_ends_and_last(exact: HybridLens) -> None:
    """Each row's own newest positions, in rows of other lengths; slots that none uses are cut out."""
    state = read(exact, rows())
    last = kv_cache.keep_last(state, 2)
    layer = exact.cfg.attention_layers[0]
    assert [sorted({p for r, _, p, _ in entries(last, layer) if r == row}) for row in range(3)] == [
        [10, 11], [7, 8], [2, 3]]  # fmt: skip
    assert last.nbytes < state.nbytes
    ends = kv_cache.keep_ends(state, 3, 1, rows=[2], layers=layer)
    assert sorted({p for r, _, p, _ in entries(ends, layer) if r == 2}) == [0, 1, 2, 3]
    ends = kv_cache.keep_ends(state, 1, 1, rows=[1, 2], layers=layer)
    oldest = 0 if exact.cfg.window is None else 12 - exact.cfg.window + 1
    assert [sorted({p for r, _, p, _ in entries(ends, layer) if r == row}) for row in range(3)] == [
        list(range(oldest, 12)), [0, 8] if exact.cfg.window is None else [8], [0, 3]]  # fmt: skip


def test_noise(lens: HybridLens) -> None:
    """Seeded, of the stated size; a row gets the same in a batch and alone, and at a position the same in any text."""
    state = read(lens, rows(lengths=(60, 50, 4)))
    layer, before = lens.cfg.attention_layers[0], state.clone()
    noisy = kv_cache.noise(state, 0.5, 3, "keys", layers=layer)
    assert same(noisy, kv_cache.noise(state, 0.5, 3, "keys", layers=layer))
    assert not same(noisy, kv_cache.noise(state, 0.5, 4, "keys", layers=layer))
    assert same(kv_cache.noise(state, 0, 3), state)
    old, new = entries(state, layer), entries(noisy, layer)
    assert all(old[at][1] == new[at][1] for at in old)
    for row in range(2):
        change = torch.tensor([new[at][0] - old[at][0] for at in old if at[:2] == (row, 0)])
        size = torch.tensor([old[at][0] for at in old if at[:2] == (row, 0)]).square().mean().sqrt()
        # 5 standard errors of the deviation of as many draws.
        assert float(change.square().mean().sqrt() / size) == pytest.approx(0.5, rel=5 / (2 * change.numel()) ** 0.5)
    alone = kv_cache.noise(state.split(lens.cfg.window)[1], 0.5, 3, "keys", layers=layer)
    for (_, *at), x in entries(alone, layer).items():
        close(new[1, *at], x, FORWARD, scale=size_of(new), dtype=lens.dtype)
    assert same(state, before)


def test_given_means_and_mapped_positions(exact: HybridLens) -> None:
    """Means of other texts, and keys moved to other positions, also between texts of other lengths."""
    state, other = read(exact, rows()), read(exact, rows(7, (11, 8, 6)))
    layer, average = exact.cfg.attention_layers[0], kv_cache.means(other)
    theirs = entries(other, layer)
    at = 0, 0, 11, 2
    expected = [x[0] for (_, h, _, c), x in theirs.items() if (h, c) == (0, 2)]
    changed = entries(kv_cache.mean(state, "keys", values=average, rows=0, positions=[11], layers=layer), layer)
    close(changed[at][0], sum(expected) / len(expected), dtype=torch.float32)
    moved = entries(kv_cache.swap(state, other, mapping={3: 5, 2: 4}, rows=2, layers=layer), layer)
    assert moved[2, 0, 3, 1] == theirs[2, 0, 5, 1]
    assert moved[2, 0, 2, 1] == theirs[2, 0, 4, 1]
    assert moved[2, 0, 1, 1] == entries(state, layer)[2, 0, 1, 1]
    with pytest.raises(InputError, match=r"position 7 given, but row 2 of the giving state holds positions .*5"):
        kv_cache.swap(state, other, mapping={3: 7}, rows=2)
    with pytest.raises(InputError, match=r"no mean for layer \d given, only for none"):
        kv_cache.mean(state, values={})


# Recurrent memories.


@settings(deadline=None, max_examples=4)
@given(seed=st.integers(0, 10_000), parts=st.sampled_from(["conv", "recurrent", "both"]))
def test_recurrent_memories_against_plain_loops(lens: HybridLens, seed: int, parts: str) -> None:
    """Random layers, rows and channels: each number inside changed as said, each outside by no bit."""
    rng, cfg = random.Random(seed), lens.cfg
    state, other = read(lens, rows(seed)), read(lens, rows(seed + 1))
    before = state.clone()
    where = {
        "layers": rng.sample(cfg.ssm_layers, rng.randint(1, len(cfg.ssm_layers))), "rows": rng.sample(range(3), 2),
        "channels": rng.sample(range(cfg.d_channels), 5),
    }  # fmt: skip
    direction = torch.randn(cfg.d_channels, generator=torch.Generator().manual_seed(seed))

    def without(x: torch.Tensor, part: str) -> torch.Tensor:
        """One tap, or one of Mamba's columns, after the other."""
        unit, out = (direction / direction.norm()).double(), x.double().clone()
        columns = out if part == "conv" else out.reshape(cfg.d_channels, -1).T  # views
        for column in columns:
            column -= (column @ unit) * unit
        return out

    for changed, expected in (
        (kv_cache.zero_recurrent(state, parts, **where), lambda x, *_: 0.0 * x),
        (kv_cache.decay(state, 0.25, parts, **where), lambda x, *_: 0.25 * x),
        (kv_cache.swap_recurrent(state, other, parts, **where), lambda x, given, *_: given),
        (kv_cache.project_out(state, direction, parts, **where), lambda x, given, part: without(x, part)),
    ):
        for layer, (old, new) in enumerate(zip(state.layers, changed.layers, strict=True)):
            if "attn" in old:
                assert old["attn"] is new["attn"]
                continue
            old, new, theirs = old["ssm"], new["ssm"], other.layers[layer]["ssm"]
            for part in ("conv", "recurrent"):
                for row in range(3):
                    was, now, given_ = (getattr(x, part)[row] for x in (old, new, theirs))
                    inside = layer in where["layers"] and row in where["rows"] and parts in (part, "both")
                    wanted = torch.as_tensor(expected(was, given_, part)).to(now) if inside else was
                    meant = torch.zeros_like(was, dtype=torch.bool)
                    if inside:
                        meant.movedim(1 if part == "conv" else 0, 0)[where["channels"]] = True
                    assert torch.equal(now[~meant], was[~meant])
                    close(now[meant], wanted[meant], FEW, scale=float(was.abs().max()), dtype=lens.dtype)
    back = kv_cache.swap_recurrent(kv_cache.swap_recurrent(state, other, parts, **where), state, parts, **where)
    assert same(back, before)
    assert same(state, before)


def test_reset_is_an_unread_memory(exact: HybridLens) -> None:
    """What an unread row has, bit for bit; and after a reset everywhere the next token reads as from an empty state.

    RecurrentGemma scales position 0 otherwise, so there only the memory is compared.
    """
    state = read(exact, rows())
    fresh = kv_cache.reset(state)
    unread = exact.network.empty_state(3)
    for layer in exact.cfg.ssm_layers:
        ours, theirs = fresh.layers[layer]["ssm"], unread.layers[layer]["ssm"]
        assert isinstance(ours, Recurrent)
        assert isinstance(theirs, Recurrent)
        assert torch.equal(ours.conv, theirs.conv)
        assert torch.equal(ours.recurrent, theirs.recurrent)
    if exact.cfg.window is None:
        with torch.no_grad():
            nothing = kv_cache.keep(fresh, [])
            close(exact.extend(nothing, tokens(3, 4)).logits, exact.prefill(tokens(3, 4)).logits)


def test_convolution_inputs_by_position(exact: HybridLens) -> None:
    """The last taps of each row, by absolute position; an earlier one is refused with those that are held."""
    state = read(exact, rows())
    layer = exact.cfg.ssm_layers[-1]
    changed = kv_cache.zero_recurrent(state, "conv", layers=layer, rows=[0], positions=[10]).layers[layer]["ssm"].conv
    taps = exact.cfg.d_conv - 1
    expected = state.layers[layer]["ssm"].conv.clone()
    expected[0, taps - 2] = 0
    assert torch.equal(changed, expected)
    with pytest.raises(InputError, match=r"position 5 given, but the convolution of row 0 holds positions 9\.\.11"):
        kv_cache.zero_recurrent(state, "conv", positions=[5])
    with pytest.raises(InputError, match="a recurrent state has none"):
        kv_cache.decay(state, 0.5, positions=[10])


def test_direction_of_the_whole_mamba_state() -> None:
    """A direction [channel, state] is taken out of the state as one vector: what is left is at right angles to it."""
    lens = HybridLens(make("jamba", 5))
    state = read(lens, rows())
    direction = torch.randn(lens.cfg.d_channels, lens.cfg.d_state, generator=torch.Generator().manual_seed(1))
    layer = lens.cfg.ssm_layers[0]
    old, new = (s.layers[layer]["ssm"].recurrent for s in (state, kv_cache.project_out(state, direction)))
    unit = direction / direction.norm()
    taken, left = ((x * unit).sum(dim=(1, 2)) for x in (old, new))
    close(left, torch.zeros_like(left), LAYER, scale=float((old * unit).abs().max()))
    assert taken.abs().min() > 100 * bound(float((old * unit).abs().max()), LAYER)
    close(new + (old * unit).sum(dim=(1, 2))[:, None, None] * unit, old)
    with pytest.raises(InputError, match="direction of length 0"):
        kv_cache.project_out(state, 0 * direction)
    with pytest.raises(InputError, match=r"shape \[5\] given for the recurrent state of layer 0, expected \[64, 5\]"):
        kv_cache.project_out(state, direction[0])


# Decoding.


@pytest.mark.parametrize("boundary", ["last_prompt_token", "first_new_token"])
def test_surgery_at_decode_steps(exact: HybridLens, boundary: str) -> None:
    """Rows of other lengths under surgeries before, at one step and at every step, against loops of single tokens."""
    layer, prompts = exact.cfg.attention_layers[0], rows()
    surgeries = [
        Surgery(lambda s: kv_cache.decay(s, 0.0, layers=exact.cfg.ssm_layers[0]), at=1),
        Surgery(lambda s: kv_cache.keep_last(s, 3, layers=layer), at="every"),
        Surgery(lambda s: kv_cache.zero(s, "values", heads=0), at=[0, 2]),
    ]
    edits = [Edit(f"blocks.{layer}.hook_attn_out", lambda x, hook: x * 3, "decode"),
             Edit("blocks.0.hook_mlp_out", lambda x, hook: x * 0.2, "prefill")]  # fmt: skip
    out = kv_cache.generate_with(exact, prompts, surgeries, 5, edits, boundary, stop_at_eos=False)
    plain = exact.generate(prompts, 5, edits, boundary, stop_at_eos=False)
    none = kv_cache.generate_with(exact, prompts, (), 5, edits, boundary, stop_at_eos=False)
    assert torch.equal(none.tokens, plain.tokens)
    assert not torch.equal(out.tokens, plain.tokens)
    for row, prompt in enumerate(prompts):
        with torch.no_grad():
            said, step = [], 0
            if boundary == "last_prompt_token":
                state, token = exact.prefill([prompt[:-1]], edits).state, prompt[-1]
            else:
                state, logits = exact.prefill([prompt], edits)
                token = int(logits[0, -1].argmax())
                said.append(token)
            while len(said) < 5:
                if step == 1:
                    state = kv_cache.decay(state, 0.0, layers=exact.cfg.ssm_layers[0])
                state = kv_cache.keep_last(state, 3, layers=layer)
                if step in (0, 2):
                    state = kv_cache.zero(state, "values", heads=0)
                state, logits = exact.extend(state, [[token]], edits)
                token, step = int(logits[0, -1].argmax()), step + 1
                said.append(token)
        assert out.tokens[row].tolist() == said


def test_no_edit_acts_while_a_surgery_is_done(exact: HybridLens) -> None:
    """A surgery that reads another prompt, before every step: what it reads is what it reads alone."""
    prompts = rows(3, (8,))
    edits = [Edit("blocks.0.hook_mlp_out", lambda x, hook: x * -4, "decode")]
    wanted = read(exact, prompts)
    seen: list[bool] = []

    def surgery(state: HybridState) -> HybridState:
        seen.append(same(read(exact, prompts), wanted))
        return state

    out = kv_cache.generate_with(exact, prompts, [Surgery(surgery, "every")], 4, edits, stop_at_eos=False)
    assert seen == [True] * 4
    assert torch.equal(out.tokens, exact.generate(prompts, 4, edits, stop_at_eos=False).tokens)
    assert not torch.equal(out.tokens, exact.generate(prompts, 4, stop_at_eos=False).tokens)


def test_going_on_from_a_state(exact: HybridLens) -> None:
    """A prompt read before, in whole or in part: the same text; and the state that was given stays what it was."""
    prompts = rows(3, (10, 10))
    state = read(exact, [row[:6] for row in prompts])
    before = state.clone()
    surgery = [Surgery(lambda s: kv_cache.zero(s, positions=[8]))]
    whole = kv_cache.generate_with(exact, prompts, surgery, 4)
    ours = kv_cache.generate_with(exact, [row[6:] for row in prompts], surgery, 4, state=state)
    assert torch.equal(ours.tokens, whole.tokens)
    state, last = read(exact, [row[:9] for row in prompts]), [row[9:] for row in prompts]
    assert torch.equal(kv_cache.generate_with(exact, last, surgery, 4, state=state).tokens, whole.tokens)
    assert torch.equal(kv_cache.generate_with(exact, last, (), 4, state=kv_cache.zero(state, positions=[8])).tokens,
                       whole.tokens)  # fmt: skip
    assert same(before, read(exact, [row[:6] for row in prompts]))


# What cropping is the same as, and what not.


def logits_after(lens: HybridLens, state: HybridState, token: int = 7) -> torch.Tensor:
    with torch.no_grad():
        return lens.extend(state, [[token]] * state.batch).logits[:, -1]


def cropped(lens: HybridLens, drop: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The next logits: ten tokens read and some dropped, against the others read alone."""
    prompt = tokens(1, 10, seed=3)[0].tolist()
    rest = [token for position, token in enumerate(prompt) if position not in drop]
    ours = logits_after(lens, kv_cache.drop(read(lens, [prompt]), drop))
    return ours, logits_after(lens, read(lens, [rest]))


def attention_only(family: str, layers: int, **changes) -> HybridLens:
    fields = {
        "jamba": {"attn_layer_period": 1, "attn_layer_offset": 0},
        "recurrentgemma": {"block_types": ("attention",), "attention_window_size": 20},
    }[family]
    lens = HybridLens(make(family, 5, num_hidden_layers=layers, **fields, **changes))
    assert lens.cfg.ssm_layers == ()
    return lens


def test_cropping_is_never_having_read_where_nothing_else_remembers() -> None:
    """Global attention, no rotary, no recurrent layer: the last tokens can be dropped as if they had never been.

    Of one layer, any token can: its keys depend on no other token. Of several, later keys have seen an earlier one.
    """
    deep = attention_only("jamba", 3)
    close(*cropped(deep, [7, 8, 9]), FORWARD)
    assert apart(*cropped(deep, [3, 4]))
    close(*cropped(attention_only("jamba", 1), [3, 4, 8]), FORWARD)


def test_cropping_is_something_else_where_recurrent_layers_or_positions_remember(exact: HybridLens) -> None:
    """Recurrent states hold the dropped tokens; with rotary the next token stands as far away as before."""
    assert apart(*cropped(exact, [7, 8, 9]))
    assert apart(*cropped(attention_only("recurrentgemma", 1), [7, 8, 9]))
    still = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.0}
    unturned = attention_only("recurrentgemma", 3, rope_parameters=still)
    close(*cropped(unturned, [7, 8, 9]), FORWARD)


# Bad input.


def test_bad_places_are_one_clear_line(exact: HybridLens) -> None:
    """What was given, what there is; nothing is changed."""
    state = read(exact, rows())
    ssm, attention = exact.cfg.ssm_layers[0], exact.cfg.attention_layers[0]
    held = r"6\.\.11 of its window of 7" if exact.cfg.window else r"0\.\.11"
    for call, message in (
        (lambda: kv_cache.drop(state, [50], rows=0), f"position 50 given, but .* row 0 holds positions {held}"),
        (lambda: kv_cache.zero(state, positions=[3, 9], rows=2), r"position 9 given, .* row 2 holds positions 0\.\.3"),
        (lambda: kv_cache.zero(state, positions=-1), "position -1 given, expected a number from 0 on"),
        (lambda: kv_cache.zero(state, layers=ssm, heads=0), f"head 0 of layer {ssm} given, but that layer is rec"),
        (lambda: kv_cache.zero(state, layers=ssm), f"layer {ssm} is recurrent and holds no keys; the attention layers"),
        (lambda: kv_cache.reset(state, layers=attention), f"layer {attention} is attention and holds no recurrent"),
        (lambda: kv_cache.zero(state, layers=9), r"layer 9 given, expected one of 0\.\.5"),
        (lambda: kv_cache.zero(state, heads=5), r"key/value head 5 given, expected one of 0\.\."),
        (lambda: kv_cache.zero(state, channels=[99]), r"channel 99 given, expected one of 0\.\.7"),
        (lambda: kv_cache.decay(state, 1, channels=[99]), r"channel 99 given, expected one of 0\.\."),
        (lambda: kv_cache.zero(state, rows=3), r"row 3 given, expected one of 0\.\.2"),
        (lambda: kv_cache.drop(state, [[1], [2]]), "positions of 2 rows given for 3 rows"),
        (lambda: kv_cache.quantise(state, 0), "bits = 0 given, expected a whole number from 1 to 16"),
        (lambda: kv_cache.noise(state, 1, -1), "seed = -1 given, expected a whole number"),
        (lambda: kv_cache.noise(state, -1, 0), "scale = -1 given"),
        (lambda: kv_cache.decay(state, float("nan")), "factor = nan given"),
        (lambda: kv_cache.keep_last(state, -2), "n = -2 given, expected a whole number"),
        (lambda: kv_cache.keep_ends(state, 1, -2), "last = -2 given, expected a whole number"),
        (lambda: Surgery(lambda s: s, at=-1), "at = -1 given, expected a whole number from 0"),
        (lambda: kv_cache.generate_with(exact, [[1]], [Surgery(lambda s: s, at=4)], 4), r"take steps 0\.\.3"),
        (lambda: kv_cache.generate_with(exact, [[1]], [Surgery(lambda s: s, at=[0, 500])], 4), "decode step 500 given"),
        (
            lambda: kv_cache.generate_with(exact, [[1]], [Surgery(lambda s: s, at="every")], 1, (), "first_new_token"),
            r"decode step 'every' given, but 1 new tokens .* take no decode step; ask for more",
        ),
        (
            lambda: kv_cache.generate_with(exact, [[1, 2, 3]], [Surgery(lambda s: exact.prefill([[1]]).state)], 4),
            "a state that has read 1 tokens in row 0, expected 2, as many as",
        ),
        (lambda: kv_cache.generate_with(exact, [[1]], [Surgery(lambda s: s.select([0, 0]))], 4), "a state of 2 rows"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    if exact.cfg.window:
        with pytest.raises(InputError, match=rf"position 2 given, but the cache of row 0 holds positions {held}"):
            kv_cache.zero(state, positions=2, rows=0)
    gone = kv_cache.drop(state, 11, rows=0, layers=attention, heads=0)
    with pytest.raises(InputError, match=f"position 11 given, but head 0 of layer {attention} in row 0 holds "):
        kv_cache.zero(gone, positions=11, rows=0)


def test_names_that_say_no_place_are_refused(exact: HybridLens) -> None:
    """A misspelt or foreign name would change everything: one line with those that there are, from every function."""
    state = read(exact, rows())
    direction = torch.ones(exact.cfg.d_channels)
    places = "a place is named by layers, heads, rows, positions, channels here; close names: layers"
    some = "layers, heads, rows here; close names: layers"
    kinds = "layers, rows, channels, positions, heads, values, addresses here; close names"
    for call, known in (
        (lambda **where: kv_cache.zero(state, **where), places),
        (lambda **where: kv_cache.mean(state, **where), places),
        (lambda **where: kv_cache.noise(state, 1, 0, **where), places),
        (lambda **where: kv_cache.quantise(state, 2, **where), places),
        (lambda **where: kv_cache.swap(state, state, **where), places),
        (lambda **where: kv_cache.swap(state, state, mapping={1: 2}, **where), places),
        (lambda **where: kv_cache.drop(state, [1], **where), some),
        (lambda **where: kv_cache.keep(state, [1], **where), some),
        (lambda **where: kv_cache.keep_last(state, 1, **where), some),
        (lambda **where: kv_cache.keep_ends(state, 1, 1, **where), some),
        (lambda **where: kv_cache.zero_recurrent(state, **where), kinds),
        (lambda **where: kv_cache.reset(state, **where), "a place is named by layers, rows here; close names: layers"),
        (lambda **where: kv_cache.decay(state, 0.5, **where), kinds),
        (lambda **where: kv_cache.swap_recurrent(state, state, **where), kinds),
        (lambda **where: kv_cache.project_out(state, direction, **where), kinds),
    ):
        with pytest.raises(UnknownNameError, match=f"'layer' given, but .*{known}"):
            call(layer=0)
    for name in ("positions", "channels"):
        with pytest.raises(UnknownNameError, match=f"'{name}' given, but a place is named by layers, heads, rows here"):
            kv_cache.keep_ends(state, 1, 1, **{name: [0]})
    for call in (
        lambda: kv_cache.decay(state, 0.5, layers=0, heads=0),
        lambda: kv_cache.reset(state, heads=0),
        lambda: kv_cache.zero_recurrent(state, heads=0),
    ):
        with pytest.raises(InputError, match="heads 0 given, but recurrent layers have no heads; leave heads out"):
            call()


def test_numbers_that_are_not_whole_are_refused(exact: HybridLens, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the tests' type checker, as users run it: the checker would refuse them first."""
    state = read(exact, rows())
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for call, said in (
        (lambda: kv_cache.quantise(state, 2.5), "bits = 2.5"),
        (lambda: kv_cache.keep_last(state, 2.5), "n = 2.5"),
        (lambda: kv_cache.keep_ends(state, 0.5, 2), "first = 0.5"),
        (lambda: kv_cache.keep_ends(state, 1, 2.5), "last = 2.5"),
        (lambda: kv_cache.noise(state, 1, 1.5), "seed = 1.5"),
    ):
        with pytest.raises(InputError, match=f"{said} given, expected a whole number"):
            call()


def test_states_that_do_not_fit(exact: HybridLens) -> None:
    state, shorter = read(exact, rows()), read(exact, rows(1, (12, 8, 4)))
    stranger = HybridLens(make(exact.cfg.family, 5, num_hidden_layers=3))
    other = read(stranger, rows())
    for swap in (kv_cache.swap, kv_cache.swap_recurrent):
        with pytest.raises(InputError, match="states of different models given"):
            swap(state, other)
        with pytest.raises(InputError, match="row 1 has read 9 tokens in one and 8 in the other"):
            swap(state, shorter)
        with pytest.raises(InputError, match="states of 3 and 2 rows given"):
            swap(state, state.select([0, 1]))
