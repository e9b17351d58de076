"""Linear probes: how much of a label can be read off activations by a linear map, beside the same with labels shuffled.

The classifier is ridge regression on targets of ±1, one a class; the largest output is the class that is predicted
(scikit-learn's `RidgeClassifier` gives the same). With z the features standardised by mean and deviation of the
training examples, d of them not constant, and λ the strength, it minimises

    Σ_i ‖y_i - W z_i - b‖² + λ d ‖W‖²

so that λ means the same however many features there are. It is solved in its dual form, in the number of examples:
features are gone through for a product of every two examples, once a fold, and all labelings are fitted to these.

Accuracy is cross-validated: every example is predicted once, by a probe that was fitted to the other folds, which hold
every class in its share (stratified). Three controls say what it is worth.

* The share of the largest class, which a probe that reads nothing gets.
* Selectivity (Hewitt and Liang 2019, "Designing and Interpreting Probes with Control Tasks"): accuracy less the mean
  accuracy with labels shuffled, which says how much of it the probe could have fitted to any labels.
* p = (1 + #{shuffles at least as accurate}) / (1 + shuffles) (Ojala and Garriga 2010, "Permutation Tests for Studying
  Classifier Performance", test 1): how often labels that have nothing to do with the features are read as well.

What is shuffled has to be exchangeable if labels had nothing to do with features, and folds have to be as good as the
true labels' own:

=========  ===================================================================================================
examples   no groups: labels change places within each fold, so that folds hold each class in its share again
groups     labels are the same throughout each group: groups exchange theirs, and folds are made anew
within     labels differ within groups: they change places within each group, and so within its fold
=========  ===================================================================================================

Examples of one group (prompts that share a haystack, say) are never in training and test both.

How it fails: what a probe reads need not be used by the model, and what no linear map reads may be there. All features
count alike once they are standardised, so that a label in few of many that vary by themselves is lost among them. With
few examples many labelings are alike by chance, and p says little. "within" leaves groups with one label as they are,
so that selectivity is small where these are many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.experiment.artefacts import Stored
from hybridlens.boundary import MOST, Positive, Seed, public
from hybridlens.display import Displayed, Table, many, number
from hybridlens.errors import InputError
from hybridlens.viz.plotted import Plotted

if TYPE_CHECKING:
    from hybridlens.viz.plot import Plot

Labels: TypeAlias = Sequence[int] | Sequence[str]
"""One for each example."""

Folds: TypeAlias = Annotated[int, Ge(2), Le(MOST)]
Strength: TypeAlias = Annotated[float, Gt(0)]

Shuffling: TypeAlias = Literal["examples", "groups", "within"]
"""What changes places; see the module."""

FOLDS, SHUFFLES, STRENGTH = 5, 20, 0.1

CONSTANT = 1e-12
"""A variance that is less of the mean square about the mean of all examples is rounding: the feature does not vary."""


class Plan(NamedTuple):
    """What is predicted, from which examples, whatever the features."""

    classes: tuple[str, ...]
    labelings: Int[Tensor, "labeling example"]
    """Classes by number: the true labels, then each shuffle."""
    folds: Int[Tensor, "labeling example"]
    """The fold in which each example is predicted."""
    n_folds: int
    seed: int
    shuffling: Shuffling

    @property
    def majority(self) -> float:
        """The share of the largest class."""
        return float(self.labelings[0].bincount().max()) / self.labelings.shape[1]


class _Accuracies(NamedTuple):
    """Fields of `Accuracies`."""

    accuracy: float
    shuffled: Float[Tensor, "shuffle"]


class Accuracies(Displayed, _Accuracies):
    """What a probe predicts."""

    __slots__ = ()

    def table(self) -> Table:
        """The accuracy, and that of each shuffle."""
        return Table(("labels", "accuracy"), _with_shuffles(self.accuracy, self.shuffled))


@dataclass(frozen=True, eq=False)
class Probe(Plotted, Stored):
    """How well a linear probe reads a label.

    Attributes:
        accuracy: cross-validated, of the true labels.
        shuffled: the same of each shuffle, float64.
        majority: the share of the largest class.
        classes: in the order of their numbers.
        n_examples: examples.
        n_features: features.
        folds: of the cross-validation.
        shuffling: what changed places; see the module.
        strength: λ.
        seed: of folds and shuffles.
    """

    accuracy: float
    shuffled: Float[Tensor, "shuffle"]
    majority: float
    classes: tuple[str, ...]
    n_examples: int
    n_features: int
    folds: int
    shuffling: Shuffling
    strength: float
    seed: int

    @property
    def selectivity(self) -> float:
        """Accuracy less the mean accuracy with labels shuffled."""
        return self.accuracy - float(self.shuffled.mean())

    @property
    def p_value(self) -> float:
        """How often shuffled labels are read as well."""
        return float(p_values(torch.tensor(self.accuracy, dtype=torch.float64), self.shuffled))

    def summary(self) -> str:
        """How well the label is read, and what that is beside shuffled labels."""
        beside = f"shuffled {self.accuracy - self.selectivity:.1%}, largest class {self.majority:.1%}"
        of = f"{many(self.n_examples, 'example')} × {many(self.n_features, 'feature')}, {len(self.classes)} classes"
        return f"accuracy {self.accuracy:.1%} ({beside}), p = {number(self.p_value, 2)}; {of}, {self.folds} folds"

    def table(self) -> Table:
        """The accuracy of the true labels, and that of each shuffle."""
        return Table(("labels", "accuracy"), _with_shuffles(self.accuracy, self.shuffled), heat=("accuracy",))

    def plot(self) -> Plot:
        """The accuracy of the true labels beside those of shuffles."""
        from analyses.stream.dots import dots

        sets = {"true labels": [self.accuracy], many(len(self.shuffled), "shuffle"): self.shuffled.tolist()}
        return dots(sets, "accuracy, 0 to 1")


def _with_shuffles(accuracy: float, shuffled: Float[Tensor, "shuffle"]) -> list[tuple[str, float]]:
    return [("true", accuracy), *((f"shuffle {i}", value) for i, value in enumerate(shuffled.tolist()))]


def p_values(accuracy: Float[Tensor, "*place"], shuffled: Float[Tensor, "*place shuffle"]) -> Float[Tensor, "*place"]:
    """(1 + shuffles at least as accurate) ÷ (1 + shuffles); NaN where the accuracy is."""
    as_good = (shuffled >= accuracy[..., None]).sum(dim=-1).double()
    return torch.where(accuracy.isnan(), torch.nan, (1 + as_good) / (1 + shuffled.shape[-1]))


@public
def linear_probe(
    features: Float[Tensor, "example feature"],
    labels: Labels,
    *,
    groups: Labels | None = None,
    folds: Folds = FOLDS,
    shuffles: Positive = SHUFFLES,
    seed: Seed = 0,
    strength: Strength = STRENGTH,
) -> Probe:
    """Fit linear probes to features and predict labels with them, then to shuffled labels.

    Args:
        features: of each example; computed in float64 on the CPU.
        labels: the class of each, whole numbers or strings.
        groups: which examples belong together; None where none do.
        folds: of the cross-validation.
        shuffles: how often labels are shuffled.
        seed: of folds and shuffles.
        strength: λ of the penalty, for each feature.

    Raises:
        InputError: features that are not finite, not one label or group for each example, one class alone, or a class
            with fewer examples (or groups) than folds.
    """
    if len(labels) != features.shape[0]:
        raise InputError(f"{len(labels)} labels given for {features.shape[0]} examples, expected one for each")
    plan = planned(labels, groups, folds, shuffles, seed)
    found = probed(features, plan, strength)
    n_examples, n_features = features.shape
    return Probe(
        found.accuracy, found.shuffled, plan.majority, plan.classes, n_examples, n_features, folds, plan.shuffling,
        strength, seed,
    )  # fmt: skip


def planned(labels: Labels, groups: Labels | None, folds: int, shuffles: int, seed: int) -> Plan:
    """Labels, shuffles of them, and the folds of each.

    Raises:
        InputError: as `linear_probe`, for what concerns labels and groups.
    """
    classes, truth = _numbered(labels)
    if len(classes) < 2:
        raise InputError(f"{len(truth)} examples of {len(classes)} class given, expected at least two classes")
    _enough(truth, classes, folds, "examples")
    rng = np.random.default_rng(seed)
    random_state = int(rng.integers(2**31))
    if groups is None:
        own = _split(truth, None, folds, random_state)
        return _plan(
            classes, [truth, *(_within(truth, own, rng) for _ in range(shuffles))], [own], folds, seed, "examples"
        )
    if len(groups) != len(truth):
        raise InputError(f"{len(groups)} groups given for {len(truth)} examples, expected one for each")
    names, members = _numbered(groups)
    if len(names) < folds:
        raise InputError(f"{len(names)} groups given, fewer than the {folds} folds; give more groups, or fewer folds")
    of_group = np.array([truth[members == group][0] for group in range(len(names))])
    own = _split(truth, members, folds, random_state)
    if bool((of_group[members] != truth).any()):
        for fold in range(folds):
            missing = sorted(set(range(len(classes))) - set(truth[own != fold].tolist()))
            if missing:
                raise InputError(
                    f"all examples of class {classes[missing[0]]!r} are in groups of one fold, so that nothing is left "
                    "to fit a probe to; give it more groups, or fewer folds"
                )
        return _plan(
            classes, [truth, *(_within(truth, members, rng) for _ in range(shuffles))], [own], folds, seed, "within"
        )
    _enough(of_group, classes, folds, "groups")
    labelings = [truth, *(rng.permutation(of_group)[members] for _ in range(shuffles))]
    splits = [own, *(_split(one, members, folds, random_state) for one in labelings[1:])]
    return _plan(classes, labelings, splits, folds, seed, "groups")


def _numbered(values: Labels) -> tuple[tuple[str, ...], Any]:
    """The different values as text, in order, and the number of each."""
    order = {value: number for number, value in enumerate(sorted(set(values)))}
    return tuple(map(str, order)), np.array([order[value] for value in values])


def _enough(labels: Any, classes: Sequence[str], folds: int, what: str) -> None:
    """Refuse classes with fewer examples, or groups, than folds."""
    for name, count in zip(classes, np.bincount(labels, minlength=len(classes)).tolist(), strict=True):
        if count < folds:
            raise InputError(
                f"class {name!r} has {count} {what}, fewer than the {folds} folds; give more of it, or fewer folds"
            )


def _split(labels: Any, groups: Any, folds: int, random_state: int) -> Any:
    """The fold in which each example is predicted."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    kind: Any = StratifiedKFold if groups is None else StratifiedGroupKFold
    found = np.empty(len(labels), dtype=np.int64)
    splits = kind(folds, shuffle=True, random_state=random_state).split(labels, labels, groups)
    for fold, (_, test) in enumerate(splits):
        found[test] = fold
    return found


def _within(labels: Any, units: Any, rng: np.random.Generator) -> Any:
    """Labels that have changed places within each unit."""
    out = labels.copy()
    for unit in np.unique(units):
        out[units == unit] = rng.permutation(labels[units == unit])
    return out


def _plan(
    classes: tuple[str, ...], labelings: Sequence[Any], splits: Sequence[Any], folds: int, seed: int, what: Shuffling
) -> Plan:
    every, own = (torch.from_numpy(np.stack(rows)) for rows in (labelings, splits))
    return Plan(classes, every, own.expand(len(every), -1), folds, seed, what)


def probed(features: Float[Tensor, "example feature"], plan: Plan, strength: float) -> Accuracies:
    """The accuracy of the true labels and of each shuffle.

    Raises:
        InputError: features that are not finite, or none.
    """
    if not features.shape[1]:
        raise InputError("examples without features given, expected at least one")
    if not bool(features.isfinite().all()):
        example = int((~features.isfinite()).any(dim=1).nonzero()[0])
        raise InputError(f"the features of example {example} hold NaN or infinity, expected finite numbers")
    x = features.detach().to("cpu", torch.float64)
    x, right = x - x.mean(dim=0), torch.zeros(len(plan.labelings), dtype=torch.long)
    for split in plan.folds.unique(dim=0):  # labelings with the same folds are fitted at once
        some = (plan.folds == split).all(dim=1).nonzero()[:, 0]
        labels, of_fold = plan.labelings[some], [x[split == fold] for fold in range(plan.n_folds)]
        sums = torch.stack([part.sum(dim=0) for part in of_fold])
        squares = torch.stack([part.square().sum(dim=0) for part in of_fold])
        for fold in range(plan.n_folds):
            train, others = split != fold, torch.arange(plan.n_folds) != fold
            n = int(train.sum())
            gram = _gram(x, train, sums[others].sum(dim=0) / n, squares[others].sum(dim=0) / n)
            found = _predicted(gram, train, labels[:, train], len(plan.classes), strength)
            right[some] += (found == labels[:, ~train]).sum(dim=1)
    accuracies = right.double() / len(x)
    return Accuracies(float(accuracies[0]), accuracies[1:])


def fitted(
    features: Float[Tensor, "example feature"], labels: Int[Tensor, "example"], n_classes: int, strength: float
) -> tuple[Float[Tensor, "class feature"], Float[Tensor, "class"]]:
    """The probe fitted to all examples: of each class a weight and a bias for features as they are, float32.

    Args:
        features: of each example, finite.
        labels: classes by number.
        n_classes: how many there are.
        strength: λ.
    """
    x = features.detach().to("cpu", torch.float64)
    x, centre = x - x.mean(dim=0), x.mean(dim=0)
    every, mean, square = torch.ones(len(x), dtype=torch.bool), x.mean(dim=0), x.square().mean(dim=0)
    variance = square - mean.square()
    dual, offset = _dual(_gram(x, every, mean, square), every, labels[None], n_classes, strength)
    weight = (dual.T @ (x - mean)) * torch.where(variance > CONSTANT * square, 1 / variance, 0.0)
    return weight.float(), (offset - weight @ (centre + mean)).float()


class _Gram(NamedTuple):
    """Products of every two examples' standardised features, and how many features vary in training."""

    products: Float[Tensor, "example example"]
    varying: int


def _gram(
    x: Float[Tensor, "example feature"],
    train: Bool[Tensor, "example"],
    mean: Float[Tensor, "feature"],
    square: Float[Tensor, "feature"],
) -> _Gram:
    """Of features standardised by the training examples' mean and mean square; of constant ones nothing."""
    variance = square - mean.square()
    varying = variance > CONSTANT * square
    whole = (x * torch.where(varying, 1 / variance, 0.0)) @ x.T
    to_mean = whole[:, train].mean(dim=1)
    return _Gram(whole - to_mean[:, None] - to_mean + to_mean[train].mean(), int(varying.sum()))


def _predicted(
    gram: _Gram,
    train: Bool[Tensor, "example"],
    labelings: Int[Tensor, "labeling train"],
    n_classes: int,
    strength: float,
) -> Int[Tensor, "labeling test"]:
    """The classes of the other examples, by a probe fitted to each labeling of the training ones."""
    dual, offset = _dual(gram, train, labelings, n_classes, strength)
    outputs = gram.products[train][:, ~train].T @ dual + offset
    return outputs.unflatten(1, (-1, n_classes)).argmax(dim=-1).T


def _dual(
    gram: _Gram,
    train: Bool[Tensor, "example"],
    labelings: Int[Tensor, "labeling train"],
    n_classes: int,
    strength: float,
) -> tuple[Float[Tensor, "train output"], Float[Tensor, "output"]]:
    """How much each training example counts for each output, and the outputs' means; n_classes outputs a labeling."""
    products = gram.products[train][:, train]
    targets = 2.0 * F.one_hot(labelings.T, n_classes).flatten(1).double() - 1
    offset = targets.mean(dim=0)
    system = products + strength * max(1, gram.varying) * torch.eye(len(products), dtype=torch.float64)
    return torch.cholesky_solve(targets - offset, torch.linalg.cholesky(system)), offset
