"""Probes at any hook point: a planted label is read where it is held, and nowhere else, and shuffled labels are not."""

import planted_memory
import pytest
import torch
from models import make
from planted_memory import FILLERS, VALUE_AXES, VALUES
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import hybridlens as hl
from analyses import probe
from analyses.stream import FittedProbe
from analyses.stream.linear_probe import fitted, linear_probe
from hybridlens.errors import InputError

N = 48
CHANCE, FAR = 0.25, 0.25
"""Of four values; four standard deviations of a share of 48, √(0.25 · 0.75 / 48) = 0.0625."""


@pytest.fixture(scope="module")
def memory():
    """The planted state, the same text but for the value and where it stands, and which value it was."""
    lens, layer, _ = planted_memory.planted("recurrentgemma", "state")
    rng = torch.Generator().manual_seed(1)
    prompts, labels = [], []
    for number in range(N):
        text = (1 + torch.randint(len(FILLERS), (14,), generator=rng)).tolist()
        text[int(torch.randint(1, 9, (), generator=rng))] = VALUE_AXES[number % 4]
        prompts.append([*text, planted_memory.WORDS.index("ask")])
        labels.append(VALUES[number % 4])
    return lens, layer, prompts, labels


def test_a_planted_label_is_read_from_what_holds_it_and_from_nothing_before_it(memory):
    """The stream entering the layer is the last token's alone; what the layer writes there says the value."""
    lens, layer, prompts, labels = memory
    before = probe.fit(lens, prompts, labels, f"blocks.{layer}.hook_resid_pre", shuffles=6)
    assert before.accuracy <= before.read.majority == CHANCE  # the same activation after every prompt
    assert before.read.p_value == 1.0
    for name in (f"blocks.{layer}.ssm.hook_state", f"blocks.{layer}.hook_ssm_out", f"blocks.{layer}.hook_resid_post"):
        found = probe.fit(lens, prompts, labels, name, shuffles=6)
        assert found.accuracy == 1.0
        assert abs(found.shuffled - CHANCE) < FAR
        assert (found.classes, found.read.p_value) == (tuple(VALUES), 1 / 7)
        assert found.shape == lens.hook_points[name].sizes[2:]
    assert "with labels shuffled" in found._repr_html_()


def test_it_predicts_other_prompts_and_its_directions_steer(memory, tmp_path):
    lens, layer, prompts, labels = memory
    found = probe.fit(lens, prompts[:32], labels[:32], f"blocks.{layer}.hook_ssm_out", shuffles=2)
    found = FittedProbe.load(found.save(tmp_path / "probe.safetensors"))
    assert found.predict(lens, prompts[32:]) == labels[32:]
    for number, value in enumerate(VALUES):
        assert int(found.direction(value).argmax()) == VALUE_AXES[number]


def test_the_position_is_what_is_read(memory):
    """At the position of the value its token is read; one before it, nothing is."""
    lens, _, prompts, labels = memory
    places = [next(i for i, token in enumerate(prompt) if token in VALUE_AXES) for prompt in prompts]
    assert probe.fit(lens, prompts, labels, "hook_embed", places, shuffles=1).accuracy == 1.0
    earlier = probe.fit(lens, prompts, labels, "hook_embed", [place - 1 for place in places], shuffles=1)
    assert abs(earlier.accuracy - CHANCE) < FAR


@pytest.mark.parametrize("d", [5, 80])
def test_the_probe_fitted_to_all_is_scikit_learns(d):
    """A ridge classifier of standardised features; some never vary, one is large."""
    labels = torch.arange(30) % 3
    x = torch.randn(30, d) * torch.logspace(-2, 2, d) + 0.1
    x[:, 0] += labels
    x[:, 1] = 0.1
    weight, bias = fitted(x, labels, 3, 0.3)
    model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=0.3 * (d - 1))).fit(x.double(), labels)
    own = torch.tensor(model.decision_function(x.double())).float()
    torch.testing.assert_close(x @ weight.T + bias, own, rtol=1e-3, atol=1e-4)
    assert bool((weight[:, 1] == 0).all())
    assert linear_probe(x, labels.tolist(), shuffles=1).n_features == d


def test_misuse_is_refused_in_one_line(memory):
    lens, layer, prompts, labels = memory
    found = probe.fit(lens, prompts, labels, f"blocks.{layer}.hook_ssm_out", shuffles=1)
    name = "blocks.0.hook_resid_pre"
    for call, said in [
        (lambda: probe.fit(lens, prompts, [float(i) + 0.5 for i in range(N)], name), "expected"),
        (lambda: probe.fit(lens, prompts, labels[:-1], name), "47 labels given for 48 examples"),
        (lambda: probe.fit(lens, prompts, ["a"] * N, name), "at least two classes"),
        (lambda: probe.fit(lens, prompts, labels, name, 99), "position 99 given"),
        (lambda: probe.fit(lens, prompts, labels, f"blocks.{layer}.ssm.hook_pattern"), "has the axes b h p k"),
        (lambda: found.direction("v9"), "there is no class 'v9'; there are v0, v1, v2, v3"),
        (lambda: found.outputs(torch.ones(2, 5)), r"expected \[32\] on the last axes"),
        (lambda: found.predict(hl.HybridLens(make("jamba")), prompts), "the probe is of a model"),
    ]:
        with pytest.raises(InputError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)
