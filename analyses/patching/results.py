"""`PatchResult`, what patching gave with its axes named, and `EdgeResult`, an estimate for every writer and reader.

The metric's value of every patch, and of the two untouched runs between which it lies. `normalised` maps these to
1 (clean) and 0 (corrupt), whichever way was patched: in denoising, how much of the clean run a patch brings back; in
noising, how much of it a patch leaves.

How it fails: runs that the metric cannot tell apart have no scale between them, and are refused; so are an edge that is
not there and a file that does not hold a result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Annotated, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.experiment.artefacts import Stored
from analyses.patching.writers import Reader, Writer
from hybridlens.boundary_words import Among
from hybridlens.display import Grid, Piece, Table, count, many, number, visible
from hybridlens.display.markup import cut
from hybridlens.errors import InputError, UnknownNameError
from hybridlens.viz.plotted import Plotted

if TYPE_CHECKING:
    from hybridlens.viz.plot import Plot

DIRECTIONS = ("denoise", "noise")
"""Clean values put into the corrupt run, or corrupt values into the clean one."""

Direction: TypeAlias = Annotated[str, Among(DIRECTIONS)]

ABLATIONS = ("zero", "mean", "resample")
"""What is put into the clean run in place of its values."""

SAME = 1e-6
"""Two values of a metric that differ by less of the larger one are the same: that much is rounding."""


class Axis(NamedTuple):
    """One axis of a result."""

    name: str
    """"layer", "pos", "head", "kv_head", "channel", "expert", …; "hook" or "patch" where neither would do."""
    labels: tuple[str, ...]
    """What each entry is, no two alike: a layer's number, a position with its token, a range of channels."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Compared(Plotted, Stored):
    """What a result says of the two untouched runs that it lies between.

    Attributes:
        clean: the metric of the clean run.
        metric: what was measured, or estimated and how, in words.
        direction: one of `DIRECTIONS`, or of `ABLATIONS`.
        model: signature of the architecture.
        clean_tokens: the clean prompt.
        corrupt_tokens: the corrupt prompt; nothing for an ablation without one.
        forwards: forward passes that were made, those of the untouched runs among them.
    """

    clean: float
    metric: str
    direction: str
    model: str
    clean_tokens: tuple[int, ...]
    corrupt_tokens: tuple[int, ...]
    forwards: int

    def about(self, corrupt: float | None) -> str:
        """What was measured of which runs, for summaries."""
        ends = f"clean {number(self.clean, 3)}" + ("" if corrupt is None else f", corrupt {number(corrupt, 3)}")
        return f"{cut(self.metric, 60)} ({self.direction}; {ends})"


@dataclass(frozen=True, eq=False)
class PatchResult(Compared):
    """The values of a metric under patches.

    Attributes:
        raw: the metric under each patch, float64, on the CPU.
        axes: the axes of `raw`.
        corrupt: the metric of the corrupt run; None for an ablation without one.
        hooks: the hook points patched.

    Raises:
        InputError: values and axes that do not fit, or that are no finite numbers.
        UnknownNameError: a direction that does not exist.
    """

    raw: Float[Tensor, "..."]
    axes: tuple[Axis, ...]
    corrupt: float | None
    hooks: tuple[str, ...]

    def __post_init__(self) -> None:
        """Hold the values as float64 on the CPU, checked."""
        raw = self.raw.detach().to("cpu", torch.float64)
        sizes = [len(axis.labels) for axis in self.axes]
        if list(raw.shape) != sizes:
            names = ", ".join(f"{axis.name} ({len(axis.labels)})" for axis in self.axes)
            raise InputError(f"values of shape {list(raw.shape)} given with axes {names or 'none'}; expected {sizes}")
        if not bool(raw.isfinite().all()):
            raise InputError("the values hold NaN or infinity, expected finite numbers")
        _check_direction(self.direction, (*DIRECTIONS, *ABLATIONS))
        object.__setattr__(self, "raw", raw)

    @property
    def untouched(self) -> float:
        """The metric of the run that was patched."""
        if self.direction == "denoise":
            assert self.corrupt is not None
            return self.corrupt
        return self.clean

    @property
    def change(self) -> Float[Tensor, "..."]:
        """What each patch added to the metric of the run that was patched."""
        return self.raw - self.untouched

    @property
    def normalised(self) -> Float[Tensor, "..."]:
        """(value - corrupt) ÷ (clean - corrupt): 1 is the clean run, 0 the corrupt one.

        Raises:
            InputError: an ablation without a corrupt run, or runs that the metric does not tell apart.
        """
        if self.corrupt is None:
            raise InputError("an ablation without a corrupt prompt has no scale; read `change`, or give one")
        check_ends(self.clean, self.corrupt, self.metric)
        return (self.raw - self.corrupt) / (self.clean - self.corrupt)

    def axis(self, name: str) -> int:
        """Which axis of the values has this name.

        Raises:
            UnknownNameError: naming those there are.
        """
        names = [axis.name for axis in self.axes]
        if name not in names:
            raise UnknownNameError(f"the result has no axis {name!r}; it has {', '.join(names)}")
        return names.index(name)

    def top(self, n: int = 10) -> list[tuple[tuple[str, ...], float]]:
        """The `n` patches that changed the metric most: labels, and the change."""
        change = self.change
        return [
            (tuple(axis.labels[at] for axis, at in zip(self.axes, place, strict=True)), float(change[place]))
            for place in largest(change.abs(), n)
        ]

    @property
    def scaled(self) -> bool:
        """Whether there are two runs, told apart, between which values can be put on a scale from 0 to 1."""
        return self.corrupt is not None and abs(self.clean - self.corrupt) > SAME * max(
            abs(self.clean), abs(self.corrupt)
        )

    def summary(self) -> str:
        """What was measured, over what, and the strongest patch."""
        over = " × ".join(f"{count(len(axis.labels))} {axis.name}" for axis in self.axes) or "one patch"
        best = ""
        if self.axes and self.raw.numel():
            ((labels, change),) = self.top(1)
            where = " ".join(f"{axis.name} {visible(label)}" for axis, label in zip(self.axes, labels, strict=True))
            best = f"; most: {cut(where, 50)} {number(change, 3)}"
        return f"{self.about(self.corrupt)} over {over}{best}"

    def table(self) -> Table:
        """A row a patch: where, the metric under it, what that changed, and its place between the two runs."""
        values = {"value": self.raw, "change": self.change} | ({"normalised": self.normalised} if self.scaled else {})
        meanings = {
            "value": f"{self.metric}, under the patch", "change": f"less that of the run patched, {self.untouched:g}",
            "normalised": "1 is the clean run, 0 the corrupt one",
        }  # fmt: skip
        axes = {axis.name: axis.labels for axis in self.axes}
        if not axes:
            return Table(tuple(values), [tuple(float(value) for value in values.values())], meanings)
        return Table.of(values, axes, {name: said for name, said in meanings.items() if name in values})

    def view(self) -> tuple[Piece, ...]:
        """The strongest patches, and all of them where there are two axes."""
        rows = [(*labels, change) for labels, change in self.top(10)]
        names = (*(axis.name for axis in self.axes), "change")
        table = Table(names, rows, {"change": f"of {self.metric}"}, ("change",), "Strongest patches")
        if len(self.axes) == 1:
            axis = self.axes[0]
            return (
                Grid(self.change[:, None], axis.labels, ["change"], axis.name, "", f"change of {self.metric}"),
                table,
            )
        if len(self.axes) < 2:
            return (table,)
        return (*self._grid(), table)

    def _grid(self) -> tuple[Grid, ...]:
        """All axes but the last down, the last across."""
        *down, across = self.axes
        rows = [" ".join(labels) for labels in product(*(axis.labels for axis in down))]
        words = " and ".join(axis.name for axis in down)
        values = self.change.reshape(len(rows), -1)
        return (Grid(values, rows, across.labels, words, across.name, f"change of {self.metric}"),)

    def plot(self) -> Plot:
        """What each patch changed: positions across with their tokens, all else down."""
        from hybridlens.viz.heads import pair_heatmap
        from hybridlens.viz.plot import Plot
        from hybridlens.viz.positions import literal, position_heatmap

        names = [axis.name for axis in self.axes]
        last = names.index("pos") if "pos" in names else len(names) - 1
        down = [axis for i, axis in enumerate(self.axes) if i != last]
        rows = [" ".join(labels) for labels in product(*(axis.labels for axis in down))]
        values = self.change if not names else self.change.movedim(last, -1)
        flat = values.reshape(len(rows), -1).tolist()
        across = self.axes[last].labels if names else ("patch",)
        title = " and ".join(axis.name for axis in down)
        if "pos" in names:
            return Plot(position_heatmap(flat, rows, across, title, "change of the metric"))
        columns = [literal(label) for label in across]
        titles = title, self.axes[last].name if names else ""
        return Plot(pair_heatmap(flat, [literal(row) for row in rows], columns, titles, "change of the metric"))


@dataclass(frozen=True, eq=False)
class EdgeResult(Compared):
    """What each edge from a writer to a reader would change, to first order.

    Attributes:
        scores: estimated change of the metric of the run that is patched, float64, on the CPU; NaN where the writer
            does not come before the reader.
        writers: in the order of the rows.
        readers: in the order of the columns.
        corrupt: the metric of the corrupt run.

    Raises:
        InputError: scores of another shape, or infinite.
        UnknownNameError: a direction that does not exist.
    """

    scores: Float[Tensor, "writer reader"]
    writers: tuple[Writer, ...]
    readers: tuple[Reader, ...]
    corrupt: float

    def __post_init__(self) -> None:
        """Hold the scores as float64 on the CPU, checked."""
        scores = self.scores.detach().to("cpu", torch.float64)
        sizes = [len(self.writers), len(self.readers)]
        if list(scores.shape) != sizes:
            raise InputError(f"scores of shape {list(scores.shape)} given with writers and readers {sizes}")
        if bool(scores.isinf().any()):
            raise InputError("the scores hold infinity, expected finite numbers, or NaN where there is no edge")
        _check_direction(self.direction, DIRECTIONS)
        object.__setattr__(self, "scores", scores)

    @property
    def normalised(self) -> Float[Tensor, "writer reader"]:
        """Score ÷ (clean - corrupt): 1 would bring the whole clean run back, -1 would take all of it away.

        Raises:
            InputError: runs that the metric does not tell apart.
        """
        check_ends(self.clean, self.corrupt, self.metric)
        return self.scores / (self.clean - self.corrupt)

    def score(self, writer: Writer, reader: Reader) -> float:
        """The score of one edge.

        Raises:
            InputError: the result has no such edge.
        """
        if writer in self.writers and reader in self.readers:
            value = float(self.scores[self.writers.index(writer), self.readers.index(reader)])
            if value == value:
                return value
        raise InputError(
            f"there is no edge from '{writer.words}' to '{reader.words}' in this result; writers are "
            f"{_outermost(self.writers)}, readers {_outermost(self.readers)}, later ones"
        )

    def top(self, n: int = 10) -> list[tuple[Writer, Reader, float]]:
        """The `n` edges with the largest scores, whichever their sign."""
        there = min(n, int((~self.scores.isnan()).sum()))
        places = largest(self.scores.abs().nan_to_num(-1.0), there)
        return [(self.writers[w], self.readers[r], float(self.scores[w, r])) for w, r in places]

    def summary(self) -> str:
        """What was estimated, of how many edges, and the strongest."""
        edges = many(int((~self.scores.isnan()).sum()), "edge")
        best = "".join(f"; most: {w.words} → {r.words} {number(score, 3)}" for w, r, score in self.top(1))
        return f"{self.about(self.corrupt)}, {edges}{best}"

    def table(self) -> Table:
        """A row an edge, in the order of writers and readers; pairs that no edge joins are left out."""
        rows = [
            (self.writers[w].words, self.readers[r].words, float(self.scores[w, r]))
            for w, r in (~self.scores.isnan()).nonzero().tolist()
        ]
        return Table(("writer", "reader", "score"), rows, {"score": f"estimated change of {self.metric}"})

    def view(self) -> tuple[Piece, ...]:
        """The strongest edges, and all of them."""
        rows = [(writer.words, reader.words, score) for writer, reader, score in self.top(10)]
        table = Table(("writer", "reader", "score"), rows, self.table().meanings, ("score",), "Strongest edges")
        names = [one.words for one in self.writers], [one.words for one in self.readers]
        return (table, Grid(self.scores, *names, "writers", "readers", "estimated change of the metric"))


def largest(values: Float[Tensor, "..."], n: int) -> list[tuple[int, ...]]:
    """The places of the `n` largest values, the largest first; of equals, the first."""
    order = values.flatten().argsort(descending=True, stable=True)[:n]
    return [tuple(place) for place in torch.stack(torch.unravel_index(order, values.shape), dim=1).tolist()]


def check_ends(clean: float, corrupt: float, metric: str) -> None:
    """Refuse two runs that the metric does not tell apart.

    Raises:
        InputError: with the value of both.
    """
    if abs(clean - corrupt) <= SAME * max(abs(clean), abs(corrupt)):
        raise InputError(
            f"metric '{metric}' is {clean:g} on the clean prompt and {corrupt:g} on the corrupt one, so there is no "
            "scale from 0 to 1 between them; give prompts that differ in it, or another metric"
        )


def _check_direction(direction: str, known: Sequence[str]) -> None:
    if direction not in known:
        raise UnknownNameError(f"direction {direction!r} does not exist; expected one of {', '.join(known)}")


def _outermost(ends: Sequence[Writer | Reader]) -> str:
    words = [end.words for end in ends]
    return ", ".join(words) if len(words) <= 2 else f"{words[0]} … {words[-1]}"
