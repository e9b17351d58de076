"""Surgery on matrix states against plain loops over rows, heads, value rows and address columns.

Every entry of a random state is distinct, so that one changed too many, too few or in another place is seen. What a
model makes of the changed state is compared with editing the same entries by a hook.
"""

from dataclasses import replace

import jaxtyping
import pytest
import torch
from models import (
    CONVOLVED,
    MATRIX,
    MATRIX_WITH_ATTENTION,
    MATRIX_WITH_KEYS,
    MATRIX_WITH_LATENTS,
    ROWS,
    make,
    tokens,
)
from niah_tokenizers import KINDS
from random_lens import small_lens

from analyses import kv_cache
from analyses.kv_cache.mixes import Mix, mixes
from analyses.kv_cache.pairs import PromptPair
from analyses.kv_cache.where import Group, drop_map, recurrent_groups, recurrent_map
from hybridlens import Edit, HybridLens
from hybridlens.errors import InputError, KeywordError, UnknownNameError
from hybridlens.niah import PAPER_RUBRIC
from hybridlens.state import HybridState

LENGTHS = [11, 6, 8]


def state_of(family: str, seed: int = 0) -> HybridState:
    """What three prompts of unlike length leave behind."""
    with torch.no_grad():
        return small_lens(family).prefill(tokens(3, 11, seed), lengths=LENGTHS).state


def layer_of(family: str) -> int:
    """A recurrent layer."""
    return small_lens(family).cfg.ssm_layers[-1]


def recurrent(state: HybridState, layer: int) -> torch.Tensor:
    """Its state [b s u m]."""
    return state.layers[layer]["ssm"].tensors()["recurrent"]


def conv(state: HybridState, layer: int) -> torch.Tensor:
    """Its convolution's inputs [b taps c]."""
    return state.layers[layer]["ssm"].tensors()["conv"]


def untouched(before: HybridState, after: HybridState, changed: set[str]) -> None:
    """All tensors but some are those that were there."""
    ours, theirs = after.tensors(), before.tensors()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor) != (name in changed), name


PLACES = [
    {},
    {"heads": 1},
    {"heads": [0, 3], "values": [2, 4]},
    {"addresses": [1, 4], "rows": [0, 2]},
    {"heads": 2, "values": 4, "addresses": 0, "rows": 1},
]


@pytest.mark.parametrize("where", PLACES, ids=lambda where: "-".join(where) or "all")
@pytest.mark.parametrize("family", MATRIX)
def test_zero_decay_and_swap_by_head_value_and_address(family, where):
    """Entry by entry: in the place what was asked for, elsewhere what was there, to the bit."""
    state, other, layer = state_of(family), state_of(family, 1), layer_of(family)
    place = {**where, "layers": layer}
    done = {
        "zero": kv_cache.zero_recurrent(state, "recurrent", **place),
        "decay": kv_cache.decay(state, 0.25, **place),
        "swap": kv_cache.swap_recurrent(state, other, "recurrent", **place),
    }
    before, given = recurrent(state, layer), recurrent(other, layer)

    def meant(name: str, size: int) -> list[int]:
        chosen = where.get(name, range(size))
        return [chosen] if isinstance(chosen, int) else list(chosen)

    for what, after in done.items():
        expected = before.clone()
        for b in meant("rows", 3):
            for s in meant("heads", before.shape[1]):
                for u in meant("values", before.shape[2]):
                    for m in meant("addresses", before.shape[3]):
                        old = before[b, s, u, m]
                        expected[b, s, u, m] = {"zero": 0.0, "decay": old * 0.25, "swap": given[b, s, u, m]}[what]
        assert torch.equal(recurrent(after, layer), expected)
        untouched(state, after, {f"layers.{layer}.ssm.recurrent"})


@pytest.mark.parametrize("family", CONVOLVED)
def test_convolution_channels_and_positions(family):
    """The convolution's channels are its own, addresses among them; positions as for the other families."""
    state, layer = state_of(family), layer_of(family)
    last = conv(state, layer).shape[2] - 1
    after = kv_cache.zero_recurrent(state, "conv", layers=layer, channels=[0, last], positions=[9], rows=0)
    expected = conv(state, layer).clone()
    expected[0, 9 - 11, [0, last]] = 0.0
    assert torch.equal(conv(after, layer), expected)
    untouched(state, after, {f"layers.{layer}.ssm.conv"})


@pytest.mark.parametrize("family", MATRIX)
def test_reset_is_a_row_that_has_read_nothing(family):
    """Both memories of all recurrent layers are those of an empty state; keys stay."""
    state, empty = state_of(family), small_lens(family).network.empty_state(3)
    after = kv_cache.reset(state)
    changed = {name for name in state.tensors() if ".ssm." in name}
    for name in changed:
        assert torch.equal(after.tensors()[name], empty.tensors()[name])
    untouched(state, after, changed)
    with pytest.raises(KeywordError, match=r"^'heads' given, but a place is named by layers, rows here$"):
        kv_cache.reset(state, heads=1)


@pytest.mark.parametrize("family", MATRIX)
def test_project_out(family):
    """Loops over heads: S - d dᵀS of values, S - S d dᵀ of addresses, the whole state as one vector; conv as ever."""
    state, layer = state_of(family), layer_of(family)
    before = recurrent(state, layer).double()
    _, s, u, m = before.shape
    draw = torch.Generator().manual_seed(3)
    for side, width in (("values", u), ("addresses", m)):
        for shape in ((width,), (s, width)):
            direction = torch.randn(*shape, generator=draw)
            after = recurrent(kv_cache.project_out(state, direction, side=side, layers=layer), layer)
            for head in range(s):
                d = (direction if direction.ndim == 1 else direction[head]).double()
                off = torch.eye(width, dtype=torch.float64) - torch.outer(d, d) / d.square().sum()
                for row in range(3):
                    old = before[row, head]
                    expected = off @ old if side == "values" else old @ off
                    torch.testing.assert_close(after[row, head].double(), expected, atol=1e-6, rtol=1e-5)
    direction = torch.randn(s, u, m, generator=draw)
    after = recurrent(kv_cache.project_out(state, direction, layers=layer), layer).double()
    d = direction.double() / direction.double().norm()
    expected = before - torch.einsum("bsum,sum->b", before, d)[:, None, None, None] * d
    torch.testing.assert_close(after, expected, atol=1e-6, rtol=1e-5)
    one = kv_cache.project_out(state, torch.ones(u), side="values", layers=layer, heads=1)
    assert torch.equal(recurrent(one, layer)[:, [0, 2, 3]], recurrent(state, layer)[:, [0, 2, 3]])
    if family not in CONVOLVED:
        return
    held = conv(state, layer)
    direction = torch.randn(held.shape[2], generator=draw)
    after = conv(kv_cache.project_out(state, direction, "conv", layers=layer), layer)
    torch.testing.assert_close(after @ direction, torch.zeros(3, held.shape[1]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", CONVOLVED)
def test_what_a_state_does_not_have_is_refused(family, monkeypatch):
    """One line: what was given, what there is."""
    state, layer = state_of(family), layer_of(family)
    _, s, u, m = recurrent(state, layer).shape
    zero, project = kv_cache.zero_recurrent, kv_cache.project_out
    for fn, error in (
        (lambda: zero(state, heads=1), "heads given, but a convolution has none; give part 'recurrent'"),
        (lambda: zero(state, "conv", addresses=1), "addresses given, but a convolution has none"),
        (lambda: zero(state, channels=1), f"channels given, but those of layer {state_layers(state)[0]}'s convolution"),
        (lambda: zero(state, "recurrent", heads=s), rf"head {s} given, expected one of 0\.\.{s - 1}"),
        (lambda: zero(state, "recurrent", values=u), rf"value row {u} given, expected one of 0\.\.{u - 1}"),
        (lambda: zero(state, "recurrent", addresses=m), rf"address column {m} given, expected one of 0\.\.{m - 1}"),
        (lambda: project(state, torch.ones(u)), rf"shape \[{u}\] .*, expected \[{s}, {u}, {m}\], or a side of it"),
        (lambda: project(state, torch.ones(3), side="values"), rf"expected \[{u}\] or \[{s}, {u}\]"),
        (lambda: project(state, torch.zeros(s, u), side="values"), "a direction of length 0"),
        (lambda: project(state, torch.ones(9), "conv", side="values"), "is no matrix; leave it out"),
    ):
        with pytest.raises(InputError, match=error):
            fn()
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for a user, whom nothing else stops
    with pytest.raises(UnknownNameError, match="side 'rows' does not exist; expected one of values, addresses"):
        project(state, torch.ones(u), side="rows")


def state_layers(state: HybridState) -> list[int]:
    """Its recurrent layers."""
    return [layer for layer, held in enumerate(state.layers) if "ssm" in held]


@pytest.mark.parametrize("family", MATRIX)
def test_a_model_goes_on_from_what_was_changed(family):
    """Zeroing heads of the state before a step is that step with their decay at 0: nothing old is carried over."""
    lens, state, layer = small_lens(family), state_of(family), layer_of(family)

    def forget(decay, hook):
        decay[:, :, [0, 2]] = 0.0

    after = kv_cache.zero_recurrent(state, "recurrent", layers=layer, heads=[0, 2])
    with torch.no_grad():
        found = lens.extend(after, [[7]] * 3).logits
        with lens.hooks([(f"blocks.{layer}.ssm.hook_decay", forget)]):
            expected = lens.extend(state, [[7]] * 3).logits
        plain = lens.extend(state, [[7]] * 3).logits
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, atol=1e-5 * scale, rtol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-3 * scale)


@pytest.mark.parametrize("family", MATRIX_WITH_KEYS)
def test_keys_where_a_layer_has_both(family):
    """Keys, values and drops leave the recurrence beside them alone, and the other way round."""
    state, other = state_of(family), state_of(family, 1)
    layer = small_lens(family).cfg.attention_layers[0]
    untouched(state, kv_cache.zero(state, "keys", layers=layer, heads=1), {f"layers.{layer}.attn.k"})
    untouched(state, kv_cache.swap(state, other, "values", layers=layer), {f"layers.{layer}.attn.v"})
    dropped = kv_cache.drop(state, [2, 3], layers=layer, heads=0)
    assert (~dropped.layers[layer]["attn"].kept[:, 0]).sum(1).tolist() == [2, 2, 2]
    for one in state_layers(state):
        assert torch.equal(recurrent(dropped, one), recurrent(state, one))
    heads = small_lens(family).cfg.n_kv_heads
    with pytest.raises(InputError, match=rf"head {heads} given"):
        kv_cache.zero(state, heads=heads)


@pytest.mark.parametrize("family", MATRIX_WITH_LATENTS)
def test_latents_are_changed_whole(family):
    """By row and position, latents and shared keys together, and nothing else; parts, heads and channels are refused.

    What the model goes on to do is what it does where a hook has changed the same latents.
    """
    lens, state, other = small_lens(family), state_of(family), state_of(family, 1)
    layer = lens.cfg.attention_layers[0]
    both = {f"layers.{layer}.attn.k", f"layers.{layer}.attn.v"}
    zeroed = kv_cache.zero(state, layers=layer, positions=[2, 3])
    swapped = kv_cache.swap(state, other, layers=layer, rows=1)
    for after in (zeroed, swapped):
        untouched(state, after, both)
    for name in both:
        assert not zeroed.tensors()[name][:, :, [2, 3]].any()
        held = state.visible[1]
        assert torch.equal(swapped.tensors()[name][1][:, held], other.tensors()[name][1][:, held])
        assert torch.equal(swapped.tensors()[name][[0, 2]], state.tensors()[name][[0, 2]])
    dropped = kv_cache.drop(state, [2, 3], layers=layer)
    for one in state_layers(state):
        assert torch.equal(recurrent(dropped, one), recurrent(state, one))

    def blank(x, hook):
        return x.index_fill(1, torch.tensor([2, 3]), 0.0) if x.shape[1] > 3 else None

    points = [f"blocks.{layer}.attn.hook_{point}" for point in ("kv_latent", "k_shared")]
    late = f"blocks.{layer}.hook_attn_out"
    with torch.no_grad():
        plain = lens.run_with_cache(tokens(3, 11), late)[1][late]
        restored = [Edit(late, lambda x, hook: plain, "prefill")]  # what it made of them while reading stays
        read = lens.prefill(tokens(3, 11), [*(Edit(point, blank) for point in points), *restored], lengths=LENGTHS)
        expected = lens.extend(read.state, [[7]] * 3).logits
        scale = float(expected.abs().max())
        torch.testing.assert_close(lens.extend(zeroed, [[7]] * 3).logits, expected, atol=1e-5 * scale, rtol=1e-5)
    for fn, error in (
        (lambda: kv_cache.zero(state, "keys", layers=layer), "both keys and values are made; keys alone given"),
        (lambda: kv_cache.swap(state, other, "values"), "both keys and values are made; values alone given"),
        (lambda: kv_cache.drop(state, [2], heads=0), rf"layer {layer} holds latents, .* together; leave heads out"),
        (lambda: kv_cache.zero(state, heads=3), "leave heads out"),
        (lambda: kv_cache.swap(state, other, channels=1), "leave channels out"),
    ):
        with pytest.raises(InputError, match=error) as caught:
            fn()
        assert "\n" not in str(caught.value)


def test_models_without_keys():
    """Everything about keys is refused in one line; mixes name what there is, mixes by hand and recurrent maps go."""
    lens, state = small_lens("mamba2"), state_of("mamba2")
    for fn in (lambda: kv_cache.zero(state), lambda: kv_cache.drop(state, [1]), lambda: kv_cache.keep_last(state, 2)):
        with pytest.raises(InputError, match="the state has no attention layer, so there is nothing to change"):
            fn()
    pair = pair_of("mamba2")
    needs = "dropping keys and values needs attention heads, but no layer of this mamba2 model has"
    with pytest.raises(InputError, match=needs):
        drop_map(lens, pair)
    whole = [mix.name for mix in mixes(lens.cfg, by_layer=False)]
    assert whole == ["conv A, recurrent A", "conv A, recurrent B", "conv B, recurrent A", "conv B, recurrent B"]
    mix = Mix("recurrent B", "whole model", frozenset((layer, "recurrent") for layer in lens.cfg.ssm_layers))
    tokenizer = KINDS["word"]()
    speaking = HybridLens(make("mamba2", vocab_size=len(tokenizer)), tokenizer)
    (cell,) = kv_cache.crossover(speaking, [pair], [mix], max_new_tokens=2).cells
    assert cell.seen == 0.0


def pair_of(family: str) -> PromptPair:
    """Two prompts that differ in three tokens."""
    a = tokens(1, 14, 5)[0].tolist()
    b = [*a[:4], *((token + 1) % 50 + 3 for token in a[4:7]), *a[7:]]
    return PromptPair("random", tuple(a), tuple(b), ((4, 7),), PAPER_RUBRIC, PAPER_RUBRIC)


@pytest.mark.parametrize("family", MATRIX_WITH_ATTENTION)
def test_every_mix_takes_what_it_names(family):
    """Tensor by tensor from A or B; a layer with both mixers has mixes of each."""
    lens, pair = small_lens(family), pair_of(family)
    a, b = kv_cache.read_pairs(lens, [pair])
    names = {"k": "keys", "v": "values", "conv": "conv", "recurrent": "recurrent"}
    every = mixes(lens.cfg)
    for mix in every:
        mixed = mix.of(a, b).tensors()
        for name, tensor in mixed.items():
            _, layer, _, part = name.split(".") if name.startswith("layers.") else (None, None, None, None)
            if part in names and not any(str(one) == layer for one, _ in mix.heads_from_b):
                assert torch.equal(tensor, (b if (int(layer), names[part]) in mix.from_b else a).tensors()[name])
            given = [head for one, head in mix.heads_from_b if str(one) == layer and part in ("k", "v")]
            if given:
                kept = [head for head in range(tensor.shape[1]) if head not in given]
                assert torch.equal(tensor[:, given], b.tensors()[name][:, given])
                assert torch.equal(tensor[:, kept], a.tensors()[name][:, kept])
    if family == "falcon_h1":
        assert {mix.name for mix in every} >= {"only kv of layer 1 B", "only recurrent of layer 1 B"}


@pytest.mark.parametrize("family", MATRIX)
def test_recurrent_maps_are_runs_one_by_one(family):
    """At each place: read up to it, change the state of some heads, read on, and look at the words."""
    lens, pair = small_lens(family), pair_of(family)
    layer = layer_of(family)
    groups = [recurrent_groups(lens.cfg)[0], Group(f"layer {layer}, head 1", (layer,), (1,))]
    for how in ("reset", "replace"):
        found = recurrent_map(lens, pair, how=how, parts="recurrent", every=5, groups=groups, max_new_tokens=0)
        made = []
        for group in groups:
            for stop in (5, 10, 13):
                with torch.no_grad():
                    a, b = (lens.prefill([list(side[:stop])]).state for side in (pair.a, pair.b))
                    place = {"layers": group.layers} | ({} if group.heads is None else {"heads": group.heads})
                    if how == "reset":
                        state = kv_cache.zero_recurrent(a, "recurrent", **place)
                    else:
                        state = kv_cache.swap_recurrent(a, b, "recurrent", **place)
                    if stop < 13:
                        state = lens.extend(state, [list(pair.a[stop:13])]).state
                    made.append(float(kv_cache.logprobs(lens, state, [pair]).a[0]))
        torch.testing.assert_close(found.changed.logprob_a, torch.tensor(made), atol=1e-4, rtol=1e-4)
    if family not in CONVOLVED:
        return
    with pytest.raises(InputError, match="heads given, but a convolution has none; give part 'recurrent'"):
        recurrent_map(lens, pair, groups=groups)


@pytest.mark.parametrize("family", MATRIX)
def test_states_of_other_weights_do_not_mix(family):
    """Of one architecture, made by other weights: swaps, mixes and joins say so in one line."""
    state, other = (replace(state_of(family, seed), weights=name) for seed, name in ((0, "one"), (1, "other")))
    mix = Mix("recurrent B", "whole model", frozenset({(layer_of(family), "recurrent")}))
    for fn in (lambda: kv_cache.swap_recurrent(state, other), lambda: mix.of(state, other)):
        with pytest.raises(InputError, match="states made by different weights of one architecture given"):
            fn()
    if family in MATRIX_WITH_ATTENTION:
        with pytest.raises(InputError, match="states made by different weights of one architecture given"):
            kv_cache.swap(state, other)
    with pytest.raises(InputError, match="cat: states made by different weights"):
        HybridState.cat([state, other])


@pytest.mark.parametrize("family", MATRIX_WITH_ATTENTION)
def test_drop_maps_are_runs_one_by_one(family):
    """Keys dropped block by block, of all layers and of one head, against a drop and a look each.

    Latents are of all heads: one head's are refused.
    """
    lens, pair = small_lens(family), pair_of(family)
    layer = lens.cfg.attention_layers[0]
    groups = [Group("all layers", lens.cfg.attention_layers), Group(f"layer {layer}, head 1", (layer,), (1,))]
    if ROWS[family].latent:
        with pytest.raises(InputError, match="leave heads out"):
            drop_map(lens, pair, block=5, groups=groups, max_new_tokens=0)
        groups = groups[:1]
    found = drop_map(lens, pair, block=5, groups=groups, max_new_tokens=0)
    with torch.no_grad():
        state = lens.prefill([list(pair.a[:-1])]).state
    made = [
        float(kv_cache.logprobs(lens, kv_cache.drop(state, place, layers=group.layers, heads=group.heads), [pair]).b[0])
        for group in groups
        for place in (range(5), range(5, 10), range(10, 13))
    ]
    torch.testing.assert_close(found.changed.logprob_b, torch.tensor(made), atol=1e-4, rtol=1e-4)
    assert len({round(value, 3) for value in made}) > len(made) / 2
