"""What linear probes read off states: a label that was planted in one head's state, there alone, whatever the kind.

The planted models are those of `planted_memory`, in which one head holds which value came by. Here all other recurrent
heads are made blind to it: their input maps take all values for one and the same, and go on remembering filler. On
random models probes get the very states that reading each prompt by itself leaves.
"""

from dataclasses import replace

import planted_memory
import pytest
import torch
from models import KINDS, WITH_STATE, make, tokens
from planted_memory import VALUE_AXES

from analyses.states.probe import StateProbes, probe_states
from analyses.states.silencing import head_states, recurrent_heads
from analyses.stream.linear_probe import p_values, planned, probed
from hybridlens import HybridLens
from hybridlens.errors import InputError

PLANTED = ("recurrentgemma", "jamba", "mamba2", "qwen3_next")
N = 80
CHANCE, FAR = 0.25, 0.2
"""Of four values; four standard deviations of a share of 80, √(0.25 · 0.75 / 80) = 0.048."""


def blind(family, lens, layer):
    """All heads but the planted one take every value for the same token."""
    names = {
        "recurrentgemma": ("temporal_block.linear_x",), "jamba": ("mamba.in_proj",), "mamba2": ("mixer.in_proj",),
        "qwen3_next": ("linear_attn.in_proj_qkvz", "linear_attn.in_proj_ba"),
    }[family]  # fmt: skip
    layers = lens.hf_model.backbone.layers if family == "mamba2" else lens.hf_model.model.layers
    with torch.no_grad():
        for number in lens.cfg.ssm_layers:
            for name in names:
                weight = layers[number].get_parameter(f"{name}.weight")
                if number != layer:
                    weight[:, VALUE_AXES] = weight[:, VALUE_AXES].mean(dim=1, keepdim=True)
                elif family == "recurrentgemma":
                    rest = weight[weight.shape[0] // 4 :]  # all blocks but the first
                    rest[:, VALUE_AXES] = rest[:, VALUE_AXES].mean(dim=1, keepdim=True)
                elif family == "jamba":
                    weight[5 : weight.shape[0] // 2] = 0.0  # channels that nothing was planted in
    return lens


def asked(n=N, seed=3):
    """Prompts with a value each, and which it is; every value as often."""
    given = [one.a for one in planted_memory.pairs(2 * n, seed=seed)]
    labels = [next(token for token in prompt if token in VALUE_AXES) for prompt in given]
    some = [i for value in VALUE_AXES for i in [i for i, label in enumerate(labels) if label == value][: n // 4]]
    return [list(given[i]) for i in some], [labels[i] for i in some]


@pytest.mark.parametrize("family", PLANTED)
def test_a_planted_label_is_read_in_its_head_alone(family):
    """All of it there, chance in every other head, in shuffles, in convolutions, and in the stream up to that layer."""
    lens, layer, head = planted_memory.planted(family, "state", 1)
    prompts, labels = asked()
    found = probe_states(blind(family, lens, layer), prompts, labels)
    place = (layer, head or 0)
    assert found.at(*place).accuracy == 1.0
    assert found.top(1) == [(place, 1.0, float(found.states.selectivity[found.layers.index(layer), head or 0]))]
    for other in recurrent_heads(lens):
        accuracy, shuffled = found.at(*other)
        assert abs(float(shuffled.mean()) - CHANCE) < 0.1, other
        assert other == place or abs(accuracy - CHANCE) < FAR, other
    row = found.layers.index(layer)
    assert float(found.states.p_value[row, head or 0]) == 1 / 21
    assert float(found.states.selectivity[row, head or 0]) > 0.65
    assert bool(((found.convolution.accuracy - CHANCE).abs() < FAR).all())
    assert bool(((found.stream.accuracy[: row + 1] - CHANCE).abs() < FAR).all())
    assert found.stream.accuracy[row + 1 :].tolist() == [1.0] * (len(found.layers) - row - 1)
    assert found.majority == CHANCE
    assert found.classes == tuple(map(str, VALUE_AXES))


def test_nothing_is_read_before_the_label_came_by():
    """At the token before the value all is chance; from the value on the planted head has it."""
    lens, layer, head = planted_memory.planted("qwen3_next", "state", 1)
    prompts, labels = asked()
    places = [next(p for p, token in enumerate(prompt) if token in VALUE_AXES) for prompt in prompts]
    blind("qwen3_next", lens, layer)
    before = probe_states(lens, prompts, labels, [place - 1 for place in places], layers=[layer])
    after = probe_states(lens, prompts, labels, places, layers=[layer])
    assert bool(((before.states.accuracy - CHANCE).abs() < FAR).all())
    assert after.at(layer, head).accuracy == 1.0
    assert before.positions == tuple(place - 1 for place in places)


def by_hand(lens, rows, layer):
    """Of one layer, the state, the convolution's inputs and the entering stream after each row, read by itself."""
    found = []
    for row in rows:
        kept = {}
        with torch.no_grad(), lens.hooks([(f"blocks.{layer}.hook_resid_pre", lambda x, hook, k=kept: k.update(x=x))]):
            state = lens.prefill([row]).state
        memory = state.layers[layer]["ssm"]
        conv = torch.empty(0) if memory.conv is None else memory.conv[0].flatten()
        found.append((memory.recurrent[0], conv, kept["x"][0, -1]))
    return [torch.stack(part) for part in zip(*found, strict=True)]


@pytest.mark.parametrize("family", WITH_STATE)
def test_what_is_probed_is_what_reading_a_prompt_leaves(family):
    """Prompts of any lengths, in batches, layers a portion at a time, positions from either end."""
    lens = HybridLens(make(family, 1))
    lengths = [5 + 3 * i % 7 for i in range(16)]
    rows = [row[:n] for row, n in zip(tokens(16, 12, 4).tolist(), lengths, strict=True)]
    labels = [["even", "odd"][sum(row[:5]) % 2] for row in rows]
    ends = [3 if i % 2 else -1 for i in range(16)]
    cut = [row[:4] if i % 2 else row for i, row in enumerate(rows)]
    options = {"folds": 2, "shuffles": 3, "seed": 5, "strength": 0.5}
    found = probe_states(lens, rows, labels, ends, batch_size=3, memory=1, **options)
    again = probe_states(lens, rows, labels, ends, batch_size=16, **options)
    whole = probe_states(lens, rows, labels, ends, by_head=False, **options)
    plan = planned(labels, None, 2, 3, 5)
    assert found.positions == tuple(len(row) - 1 for row in cut)
    assert found.layers == lens.cfg.state_layers
    for number, layer in enumerate(found.layers):
        state, conv, stream = by_hand(lens, cut, layer)
        n = head_states(lens, layer).n
        assert found.heads[number] == n
        by_head = state.reshape(16, n, -1)
        parts = [(found.at(layer, head), by_head[:, head]) for head in range(n)]
        parts += [(again.at(layer, head), by_head[:, head]) for head in range(n)]
        parts += [(whole.at(layer), state.flatten(1))]
        for read, x in ((found.convolution, conv), (found.stream, stream)):
            if not x.shape[1]:  # no convolution
                assert bool(read.accuracy[number].isnan())
                continue
            parts.append(((read.accuracy[number], read.shuffled[number]), x))
        for (accuracy, shuffled), x in parts:
            expected = probed(x, plan, 0.5)
            assert float(accuracy) == expected.accuracy
            assert torch.equal(shuffled, expected.shuffled)
    assert whole.heads == (1,) * len(whole.layers)


def test_layers_with_fewer_heads_have_no_number_where_they_have_none():
    """P-values and selectivity neither; the best heads are among those that are there."""
    accuracy = torch.tensor([[0.5, torch.nan], [0.25, 1.0]], dtype=torch.float64)
    shuffled = torch.tensor([[[0.5, 0.25], [torch.nan] * 2], [[0.5, 0.5], [0.25, 0.0]]], dtype=torch.float64)
    expected = torch.tensor([[2 / 3, torch.nan], [1.0, 1 / 3]], dtype=torch.float64)
    torch.testing.assert_close(p_values(accuracy, shuffled), expected, equal_nan=True, rtol=1e-6, atol=0.0)


def test_layers_without_a_convolution_have_no_number_of_one(monkeypatch):
    """As lightning attention has none: what its memory does not hold is not probed, and states are as before."""
    lens, ids, labels = HybridLens(make("mamba2")), tokens(8, 5), [0, 1] * 4
    before, plain = probe_states(lens, ids, labels, folds=2, shuffles=2), lens.prefill

    def bare(*given, **options):
        read = plain(*given, **options)
        memory = read.state.layers[1]["ssm"]
        return read._replace(state=read.state.put(1, "ssm", replace(memory, conv=None)))

    monkeypatch.setattr(lens, "prefill", bare)
    found = probe_states(lens, ids, labels, folds=2, shuffles=2)
    assert torch.equal(found.states.accuracy, before.states.accuracy)
    assert torch.equal(found.convolution.accuracy[:1], before.convolution.accuracy[:1])
    assert found.convolution.accuracy.isnan().tolist() == [False, True]
    assert found.convolution.p_value.isnan().tolist() == [False, True]


def test_results_are_saved_whole(tmp_path):
    lens = HybridLens(make("jamba"))
    found = probe_states(lens, tokens(8, 5), ["a", "b"] * 4, folds=2, shuffles=2, groups=[0, 0, 1, 1, 2, 2, 3, 3])
    assert found.shuffling == "within"
    again = StateProbes.load(found.save(tmp_path / "probes"))
    for part in ("states", "stream", "convolution"):
        for field in ("accuracy", "shuffled"):
            assert torch.equal(getattr(getattr(again, part), field), getattr(getattr(found, part), field))
    assert (again.layers, again.heads, again.positions) == ((0, 2, 3), (1, 1, 1), (4,) * 8)
    assert again.top(2) == found.top(2)


@pytest.mark.parametrize("family", [family for family in KINDS if family not in WITH_STATE])
def test_models_without_states_are_refused(family):
    with pytest.raises(InputError, match=r"^probing states needs recurrent states, but no layer of this"):
        probe_states(HybridLens(make(family)), tokens(8, 5), [0, 1] * 4, folds=2)


def test_what_cannot_be_is_refused_before_anything_is_read(monkeypatch):
    """One line each; not one prompt is read."""
    lens = HybridLens(make("jamba"))
    monkeypatch.setattr(lens.network, "forward", lambda *_: pytest.fail("a prompt was read"))
    right = {"prompts": tokens(8, 5), "labels": [0, 1] * 4, "folds": 2}
    wrong = {
        "7 labels given for 8 prompts, expected one for each": {"labels": [0, 1] * 3 + [1]},
        "layer 1 is no recurrent layer; those are 0, 2, 3": {"layers": [0, 1]},
        "no layer was given": {"layers": []},
        "position 5 given, but the prompt has 0..4": {"position": 5},
        "3 positions given for 8 prompts": {"position": [1, 2, 3]},
        "class '0' has 4 examples, fewer than the 5 folds": {"folds": 5},
        "5 groups given for 8 examples": {"groups": [1] * 5},
        "8 examples of 1 class given, expected at least two classes": {"labels": [3] * 8},
    }
    for line, changes in wrong.items():
        with pytest.raises(InputError) as caught:
            probe_states(lens, **{**right, **changes})
        assert str(caught.value).startswith(line)
        assert "\n" not in str(caught.value)


def test_only_places_that_were_probed_can_be_asked():
    lens = HybridLens(make("jamba"))
    found = probe_states(lens, tokens(8, 5), [0, 1] * 4, folds=2, shuffles=1, layers=[2])
    for line, place in (("layer 0 was not probed; those that were are 2", (0, 0)),
                        ("head 1 of layer 2 was not probed; there are 0..0", (2, 1))):  # fmt: skip
        with pytest.raises(InputError, match=f"^{line}"):
            found.at(*place)
