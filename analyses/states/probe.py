"""How much of a state a linear probe reads, layer by layer and head by head, beside what it reads elsewhere.

Every prompt is read up to a position, and of what the model then remembers the state of each recurrent head is taken as
it is, one long vector: of a matrix state all u × m entries, of RG-LRU a block's channels, of Mamba c × n. A probe
predicts the prompt's label from it (`analyses.stream.linear_probe`, which has its formula, controls and sources). Two
things beside say what that means: the residual stream that enters the layer at that position, and the last inputs of
the layer's convolution. What these tell as well need not have been remembered by the state.

No trajectory is kept: of each prompt one state of each layer, and of so many layers at once as fit `memory`; prompts
are read once for every such portion.

How it fails: what is read need not be used (`analyses.states.knockout` asks that). All entries count alike, so that a
label in a few of many entries that vary by themselves is lost among them. P-values are of one place each: of 300 heads
that hold nothing, some look as if they did. Prompts whose labels go with their lengths, or with anything else that a
state holds, are told apart by that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated, NamedTuple, cast

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from analyses.experiment.artefacts import Stored
from analyses.patching.results import largest
from analyses.states.silencing import RecurrentHead, head_states
from analyses.stream.linear_probe import (
    FOLDS,
    SHUFFLES,
    STRENGTH,
    Accuracies,
    Folds,
    Labels,
    Plan,
    Shuffling,
    Strength,
    p_values,
    planned,
    probed,
)
from analyses.stream.reading import at_last, cut_at
from hybridlens.boundary import Natural, Positive, Seed, public
from hybridlens.display import Grid, Piece, Table, listed, many, number
from hybridlens.errors import InputError
from hybridlens.hooks import Edit
from hybridlens.memory import Recurrent
from hybridlens.model import HybridLens
from hybridlens.progress import counted
from hybridlens.tokens import TokensLike
from hybridlens.viz.plotted import Plotted

BATCH = 16
"""Prompts read at once."""

MEMORY = 1 << 30
"""Bytes of states, streams and inputs held at once."""


class Read(Plotted, Stored):
    """What probes read at several places."""

    accuracy: Tensor
    shuffled: Tensor

    @property
    def selectivity(self) -> Float[Tensor, "*place"]:
        """Accuracy less the mean accuracy with labels shuffled."""
        return self.accuracy - self.shuffled.mean(dim=-1)

    @property
    def p_value(self) -> Float[Tensor, "*place"]:
        """How often shuffled labels are read as well."""
        return p_values(self.accuracy, self.shuffled)

    def summary(self) -> str:
        """How many places, and the best of them."""
        best = float(self.accuracy.nan_to_num(-1.0).max()) if self.accuracy.numel() else torch.nan
        shuffles = many(self.shuffled.shape[-1], "shuffle")
        return f"{many(self.accuracy.numel(), 'place')}, {shuffles}; best accuracy {best:.1%}"

    def table(self) -> Table:
        """A row a place: accuracy, selectivity and p-value; layers and heads by their places."""
        values = {"accuracy": self.accuracy, "selectivity": self.selectivity, "p_value": self.p_value}
        return Table.of(values, dict.fromkeys(("layer", "head")[: self.accuracy.ndim]))

    def view(self) -> tuple[Piece, ...]:
        """The accuracy at each place."""
        values = self.accuracy if self.accuracy.ndim == 2 else self.accuracy[:, None]
        rows, columns = ([str(i) for i in range(n)] for n in values.shape)
        return (Grid(values, rows, columns, "layers, by their places", "heads", "accuracy, 0 to 1"),)


@dataclass(frozen=True, eq=False)
class ReadHeads(Read):
    """Of heads.

    Attributes:
        accuracy: cross-validated, float64; NaN where a layer has fewer heads.
        shuffled: the same of each shuffle of the labels.
    """

    accuracy: Float[Tensor, "layer head"]
    shuffled: Float[Tensor, "layer head shuffle"]


@dataclass(frozen=True, eq=False)
class ReadLayers(Read):
    """Of layers.

    Attributes:
        accuracy: cross-validated, float64; of convolutions, NaN where a layer has none.
        shuffled: the same of each shuffle of the labels.
    """

    accuracy: Float[Tensor, "layer"]
    shuffled: Float[Tensor, "layer shuffle"]


@dataclass(frozen=True, eq=False)
class StateProbes(Plotted, Stored):
    """How well linear probes read a label off states.

    Attributes:
        states: of each layer and head; of whole layers, one column.
        stream: of the residual stream that enters the layer at the position.
        convolution: of the last inputs of the layer's convolution.
        layers: which layers they are.
        heads: how many each has.
        by_head: whether heads were probed one by one, or each layer's states as one.
        positions: after which position of each prompt.
        majority: the share of the largest class.
        classes: of the labels.
        folds: of the cross-validation.
        shuffling: what changed places in shuffles; see `analyses.stream.linear_probe`.
        strength: λ of the probes.
        seed: of folds and shuffles.
        model: signature of the architecture.
    """

    states: ReadHeads
    stream: ReadLayers
    convolution: ReadLayers
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    by_head: bool
    positions: tuple[int, ...]
    majority: float
    classes: tuple[str, ...]
    folds: int
    shuffling: Shuffling
    strength: float
    seed: int
    model: str

    def summary(self) -> str:
        """What is read, and from which head best."""
        best = "".join(
            f"; best L{layer} S{head}: {accuracy:.1%}, {number(selectivity, 2)} above shuffled labels"
            for (layer, head), accuracy, selectivity in self.top(1)
        )
        of = f"{many(len(self.positions), 'prompt')} of {len(self.classes)} classes"
        return f"{of}, states of layers {listed(self.layers, 8)}{best}; largest class {self.majority:.1%}"

    def table(self) -> Table:
        """A row for each place probed: heads' states, then streams and convolutions of layers; `head` is None there."""
        rows: list[tuple[str | int | float | None, ...]] = []
        for what, read in (("state", self.states), ("stream", self.stream), ("convolution", self.convolution)):
            values = torch.stack([read.accuracy, read.selectivity, read.p_value], dim=-1)
            for i, layer in enumerate(self.layers):
                n = self.heads[i] if what == "state" else 1
                here = values[i] if what == "state" else values[i][None]
                rows += [(what, layer, h if what == "state" else None, *here[h].tolist()) for h in range(n)]
        columns = ("what", "layer", "head", "accuracy", "selectivity", "p_value")
        meanings = {"selectivity": "accuracy less its mean with labels shuffled"}
        return Table(columns, rows, meanings, ("accuracy", "selectivity"))

    def view(self) -> tuple[Piece, ...]:
        """The accuracy of every head, and the best places."""
        rows = [f"L{layer}" for layer in self.layers]
        columns = [f"S{head}" for head in range(self.states.accuracy.shape[1])]
        whole = self.table()
        best = sorted(whole.rows, key=lambda row: -float(row[4] or 0) if row[4] == row[4] else 1.0)[:8]
        grid = Grid(self.states.accuracy, rows, columns, "layers", "recurrent heads", "accuracy from states, 0 to 1")
        return (grid, Table(whole.columns, best, whole.meanings, whole.heat, "Read best"))

    @public
    def at(self, layer: Natural, head: Natural = 0) -> Accuracies:
        """What the probe of one head reads.

        Raises:
            InputError: a layer or head that was not probed.
        """
        if layer not in self.layers:
            those = ", ".join(map(str, self.layers))
            raise InputError(f"layer {layer} was not probed; those that were are {those}")
        row = self.layers.index(layer)
        if not 0 <= head < self.heads[row]:
            raise InputError(f"head {head} of layer {layer} was not probed; there are 0..{self.heads[row] - 1}")
        return Accuracies(float(self.states.accuracy[row, head]), self.states.shuffled[row, head])

    @public
    def top(self, n: Natural = 10) -> list[tuple[RecurrentHead, float, float]]:
        """The `n` heads whose states are read best: (layer, head), accuracy and selectivity."""
        selectivity = self.states.selectivity
        places = largest(selectivity.nan_to_num(-torch.inf), min(n, sum(self.heads)))
        return [
            ((self.layers[row], head), float(self.states.accuracy[row, head]), float(selectivity[row, head]))
            for row, head in places
        ]


@public
def probe_states(
    lens: HybridLens,
    prompts: TokensLike,
    labels: Labels,
    position: int | Sequence[int] = -1,
    *,
    layers: Sequence[Natural] | None = None,
    by_head: bool = True,
    groups: Labels | None = None,
    folds: Folds = FOLDS,
    shuffles: Positive = SHUFFLES,
    seed: Seed = 0,
    strength: Strength = STRENGTH,
    batch_size: Positive = BATCH,
    memory: Annotated[int, Ge(1)] = MEMORY,
    progress: Callable[[int], None] | None = None,
) -> StateProbes:
    """Read prompts up to a position, and predict their labels from the states that the model then holds.

    Args:
        lens: the model.
        prompts: as many as there are labels, of any lengths.
        labels: the class of each, whole numbers or strings.
        position: of each prompt, or one for all; counted from the end where below 0. What follows it is not read.
        layers: those to probe; None for all with a state.
        by_head: probe each head by itself, or each layer's states as one.
        groups: which prompts belong together, such as those that share a haystack; see `analyses.stream.linear_probe`.
        folds: of the cross-validation.
        shuffles: how often labels are shuffled.
        seed: of folds and shuffles.
        strength: λ of the probes.
        batch_size: prompts in one forward pass.
        memory: bytes of features held at once; one layer is always taken whole.
        progress: called with the number of layers done, a portion at a time.

    Raises:
        InputError: a model, or layers, without a state; not one label, group or position for each prompt; positions
            outside a prompt; classes with too few prompts (see `linear_probe.linear_probe`).
    """
    lens.cfg.need_states("probing states")
    chosen = list(lens.cfg.state_layers if layers is None else dict.fromkeys(layers))
    if not chosen:
        raise InputError("no layer was given, expected at least one, or None for all")
    n_heads = [head_states(lens, layer).n if by_head else 1 for layer in chosen]
    rows, positions = cut_at(lens, prompts, position)
    if len(labels) != len(rows):
        raise InputError(f"{len(labels)} labels given for {len(rows)} prompts, expected one for each")
    plan = planned(labels, groups, folds, shuffles, seed)
    width, states = max(n_heads), list[Accuracies]()
    stream, convolution = list[Accuracies](), list[Accuracies]()
    with counted(len(chosen), "layers probed", progress) as done:
        for portion in _portions(lens, chosen, len(rows), memory):
            held = _features(lens, rows, portion, batch_size)
            for layer in portion:
                n, found = n_heads[chosen.index(layer)], held.pop(layer)
                by_part = head_states(lens, layer).by_head(found.state) if by_head else found.state.flatten(1)[:, None]
                states += [probed(by_part[:, head], plan, strength) for head in range(n)]
                states += [_nothing(plan)] * (width - n)
                stream.append(probed(found.stream, plan, strength))
                convolution.append(probed(found.conv, plan, strength) if found.conv.shape[1] else _nothing(plan))
            done(len(portion))
    return StateProbes(
        ReadHeads(*(tensor.unflatten(0, (-1, width)) for tensor in _stacked(states))),
        ReadLayers(*_stacked(stream)), ReadLayers(*_stacked(convolution)), tuple(chosen), tuple(n_heads), by_head,
        positions, plan.majority, plan.classes, folds, plan.shuffling, strength, seed, lens.network.signature,
    )  # fmt: skip


class _Features(NamedTuple):
    """What is held of one layer, for each prompt, float32 on the CPU."""

    state: Float[Tensor, "prompt *state"]
    conv: Float[Tensor, "prompt input"]
    """No numbers where there is no convolution."""
    stream: Float[Tensor, "prompt d_model"]


def _portions(lens: HybridLens, layers: Sequence[int], n: int, memory: int) -> Iterator[list[int]]:
    """Layers whose features are held at the same time."""
    portion, total = list[int](), 0
    for layer in layers:
        cfg = lens.cfg.recurrence(layer)
        numbers = prod(cfg.state_shape) + max(0, cfg.d_conv - 1) * cfg.d_conv_channels + lens.cfg.d_model
        size = n * numbers * torch.float32.itemsize
        if portion and total + size > memory:
            yield portion
            portion, total = [], 0
        portion.append(layer)
        total += size
    yield portion


@torch.no_grad()
def _features(
    lens: HybridLens, rows: Sequence[Sequence[int]], layers: Sequence[int], batch_size: int
) -> dict[int, _Features]:
    """What some layers hold after each prompt."""
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    parts: dict[int, list[_Features]] = {layer: [] for layer in layers}
    for start in range(0, len(order), batch_size):
        batch = [rows[row] for row in order[start : start + batch_size]]
        lengths = torch.tensor([len(row) for row in batch])
        tokens = torch.zeros(len(batch), int(lengths.max()), dtype=torch.long)
        for row, ids in zip(tokens, batch, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        stream: dict[int, Tensor] = {}
        edits = [Edit(f"blocks.{layer}.hook_resid_pre", at_last(stream, layer, lengths - 1)) for layer in layers]
        state = lens.prefill(tokens, edits, lengths=lengths, last_only=True).state
        for layer in layers:
            memory = cast(Recurrent, state.layers[layer]["ssm"])
            assert memory.recurrent is not None
            conv = stream[layer][:, :0] if memory.conv is None else memory.conv.flatten(1)
            found = (memory.recurrent, conv, stream[layer])
            parts[layer].append(_Features(*(part.to("cpu", torch.float32) for part in found)))
    back = torch.tensor(order).argsort()
    return {
        layer: _Features(*(torch.cat(part)[back] for part in zip(*found, strict=True)))
        for layer, found in parts.items()
    }


def _nothing(plan: Plan) -> Accuracies:
    return Accuracies(torch.nan, torch.full((len(plan.labelings) - 1,), torch.nan, dtype=torch.float64))


def _stacked(found: Sequence[Accuracies]) -> tuple[Float[Tensor, "place"], Float[Tensor, "place shuffle"]]:
    """Accuracies of places in their order."""
    accuracy = torch.tensor([one.accuracy for one in found], dtype=torch.float64)
    return accuracy, torch.stack([one.shuffled for one in found])
