"""Linear probes by themselves: the same as scikit-learn's, blind where nothing is there, honest about groups."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from analyses.stream.linear_probe import Probe, linear_probe, planned, probed
from hybridlens.errors import InputError


def drawn(n, d, classes, gain, seed=0):
    """Normal features whose first ones say the class, and the classes, in turn."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    x = torch.randn(n, d, generator=rng)
    x[:, :classes] += gain * torch.eye(classes)[labels]
    return x, labels.tolist()


@pytest.mark.parametrize("groups", [None, "whole", "within"])
@pytest.mark.parametrize(("n", "d", "classes"), [(30, 200, 2), (30, 200, 3), (60, 7, 3), (40, 40, 2)])
def test_predictions_are_scikit_learns(n, d, classes, groups):
    """Ridge classifiers on features standardised in each fold, one fitted anew to every labeling; some never vary."""
    x, labels = drawn(n, d, classes, 1.0)
    x = x * torch.logspace(-2, 2, d) + 3.0
    x[:, -2] = 0.1  # never varies
    x[:, -1] = 0.0
    x[0, -1] = 5.0  # varies in training only where the first example is there
    members = {None: None, "whole": [i // (2 * classes) * classes + i % classes for i in range(n)],
               "within": [i // 5 for i in range(n)]}[groups]  # fmt: skip
    plan = planned(labels, members, 3, 6, 1)
    assert plan.shuffling == {None: "examples", "whole": "groups", "within": "within"}[groups]
    found = probed(x, plan, 0.3)
    right = []
    for labeling, folds in zip(plan.labelings.numpy(), plan.folds.numpy(), strict=True):
        hits = 0
        for fold in range(3):
            train = x.double().numpy()[folds != fold]
            varying = int((train != train[:1]).any(axis=0).sum())
            model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=0.3 * varying))
            predicted = model.fit(train, labeling[folds != fold]).predict(x.double().numpy()[folds == fold])
            hits += int((predicted == labeling[folds == fold]).sum())
        right.append(hits / n)
    assert [found.accuracy, *found.shuffled.tolist()] == right
    assert len(set(right)) > 2


@pytest.mark.parametrize("d", [6, 400])
def test_a_label_is_read_and_shuffles_are_at_chance(d):
    x, labels = drawn(90, d, 3, 0.0)
    x[:, : d // 2] += 6.0 * torch.nn.functional.one_hot(torch.tensor(labels), 3).float().repeat(1, d)[:, : d // 2]
    found = linear_probe(x, labels)
    assert found.accuracy == 1.0
    assert abs(float(found.shuffled.mean()) - 1 / 3) < 0.08
    assert found.p_value == 1 / 21
    assert found.selectivity == pytest.approx(1 - float(found.shuffled.mean()))
    assert (found.majority, found.classes, found.n_examples, found.n_features) == (1 / 3, ("0", "1", "2"), 90, d)
    named = linear_probe(x, [["a", "b", "c"][label] for label in labels])
    assert (named.classes, named.accuracy) == (("a", "b", "c"), 1.0)
    moved = linear_probe(x * torch.logspace(-3, 3, d) - 7.0, labels)
    assert torch.equal(moved.shuffled, found.shuffled), "the features' scales are seen"


def test_what_no_linear_map_reads_is_not_read():
    """Whether two signs are equal: each says nothing, their product all."""
    x = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]).repeat(20, 1)
    labels = (x.prod(dim=1) > 0).int().tolist()
    assert linear_probe(x, labels).accuracy < 0.65
    assert linear_probe(x.prod(dim=1, keepdim=True), labels).accuracy == 1.0


def test_the_largest_class_is_the_floor():
    """Features that never vary: every example is taken for the largest class."""
    found = linear_probe(torch.ones(50, 4), [0] * 30 + [1] * 20)
    assert found.accuracy == found.majority == 0.6
    assert found.p_value == 1.0
    assert found.selectivity == 0.0


def test_a_group_is_not_learnt_by_heart():
    """A feature that names the group tells its label, which is a coin's: all is read unless groups are kept apart."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 5)
    labels = rng.permutation(np.arange(40) % 2)[groups]
    x = torch.eye(40)[groups] + 0.01 * torch.from_numpy(rng.standard_normal((200, 40))).float()
    assert linear_probe(x, labels.tolist()).accuracy > 0.95
    apart = linear_probe(x, labels.tolist(), groups=groups.tolist())
    assert apart.shuffling == "groups"
    assert apart.accuracy < 0.75
    assert apart.p_value > 0.05


def test_what_changes_places():
    """Within folds, within groups, or group by group; folds that stay hold their classes as before."""
    labels = [0, 1, 1, 2] * 10
    free = planned(labels, None, 4, 30, 2)
    own = planned(labels, [i // 8 for i in range(40)], 4, 30, 2)
    for plan, units in ((free, free.folds[0]), (own, torch.arange(40) // 8)):
        assert plan.labelings[0].tolist() == labels
        assert torch.equal(plan.folds, plan.folds[:1].expand_as(plan.folds))
        assert len(plan.labelings.unique(dim=0)) > 28
        for labeling in plan.labelings:
            for unit in units.unique():
                at = units == unit
                assert torch.equal(labeling[at].sort().values, plan.labelings[0][at].sort().values)
    for fold in range(4):
        assert free.labelings[0][free.folds[0] == fold].bincount().tolist() in ([2, 5, 3], [3, 5, 2])
    for group in range(5):
        assert len(own.folds[0][group * 8 : group * 8 + 8].unique()) == 1
    members = [i // 2 for i in range(40)]
    whole = planned([i // 2 % 2 for i in range(40)], members, 4, 30, 2)
    for labeling, folds in zip(whole.labelings, whole.folds, strict=True):
        assert torch.equal(labeling[::2], labeling[1::2])
        assert torch.equal(folds[::2], folds[1::2])
        assert labeling.bincount().tolist() == [20, 20]
        assert all(len(labeling[folds == fold].unique()) == 2 for fold in range(4))
    again = planned(labels, None, 4, 30, 2)
    assert torch.equal(again.labelings, free.labelings)
    assert not torch.equal(planned(labels, None, 4, 30, 3).labelings, free.labelings)


@pytest.mark.parametrize("kind", ["examples", "groups", "within"])
def test_labels_that_mean_nothing_are_seldom_surprising(kind):
    """p ≤ 0.2 in at most a fifth of 100 draws, but for three standard deviations of such a share (0.12).

    Features go with the group in all of them, as prompts of one haystack do.
    """
    surprising = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(12), 3)
        labels = rng.permutation(np.arange(12) % 2)[groups] if kind == "groups" else rng.permutation(np.arange(36) % 2)
        x = torch.from_numpy(rng.standard_normal((36, 5)))
        if kind != "examples":
            x = x + 3 * torch.from_numpy(rng.standard_normal((12, 5)))[groups]
        given = None if kind == "examples" else groups.tolist()
        found = linear_probe(x, labels.tolist(), groups=given, folds=3, shuffles=9, seed=seed)
        assert found.shuffling == kind
        surprising += found.p_value <= 0.2
    assert surprising / 100 < 0.2 + 0.12


def test_a_probe_is_saved_whole(tmp_path):
    x, labels = drawn(20, 5, 2, 2.0)
    found = linear_probe(x, labels, folds=2, shuffles=3, seed=4, strength=0.5)
    again = Probe.load(found.save(tmp_path / "probe"))
    assert torch.equal(again.shuffled, found.shuffled)
    assert (again.accuracy, again.p_value, again.classes, again.strength, again.seed, again.shuffling) == (
        found.accuracy, found.p_value, found.classes, 0.5, 4, "examples",
    )  # fmt: skip


def test_what_cannot_be_is_refused_in_one_line():
    x, labels = drawn(20, 5, 2, 2.0)
    holed = x.clone()
    holed[7, 3] = torch.inf
    one_group = [0] * 4 + [1 + i % 4 for i in range(16)]
    wrong = [
        ("the features of example 7 hold NaN or infinity, expected finite numbers", {"features": holed}),
        ("examples without features given, expected at least one", {"features": x[:, :0]}),
        ("19 labels given for 20 examples, expected one for each", {"labels": labels[:-1]}),
        ("20 examples of 1 class given, expected at least two classes", {"labels": [1] * 20}),
        ("class '7' has 4 examples, fewer than the 5 folds; give more of it, or fewer folds",
         {"labels": [7] * 4 + [1] * 16}),
        ("folds = 1 given, expected a whole number from 2 to 2147483647", {"folds": 1}),
        ("strength = 0.0 given, expected a finite number above 0", {"strength": 0.0}),
        ("shuffles = 0 given, expected a whole number from 1", {"shuffles": 0}),
        ("labels[0] = 0.5 given, expected labels to be a list of whole numbers or a list of strings",
         {"labels": [0.5] * 20}),
        ("3 groups given for 20 examples, expected one for each", {"groups": [1, 2, 3]}),
        ("4 groups given, fewer than the 5 folds; give more groups, or fewer folds",
         {"groups": [i % 4 for i in range(20)]}),
        ("class 'b' has 4 groups, fewer than the 5 folds; give more of it, or fewer folds",
         {"labels": ["a"] * 12 + ["b"] * 8, "groups": [i // 2 for i in range(20)]}),
        ("all examples of class 'x' are in groups of one fold, so that nothing is left to fit a probe to",
         {"labels": ["x", "x", "x", *"yz" * 8, "y"], "groups": one_group, "folds": 3}),
    ]  # fmt: skip
    for line, changes in wrong:
        with pytest.raises(InputError) as caught:
            linear_probe(**{"features": x, "labels": labels, **changes})
        assert str(caught.value).startswith(line), str(caught.value)
        assert "\n" not in str(caught.value)
