"""`EdgeResult`: an estimate for every edge from a writer to a reader.

How it fails: a file that does not hold a result, scores that do not fit the writers and readers, and an edge that is
not there, raise one line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.experiment.artefacts import Stored
from analyses.patching.results import DIRECTIONS, check_direction, check_ends
from analyses.patching.writers import Reader, Writer
from hybridlens.errors import InputError


@dataclass(frozen=True, eq=False)
class EdgeResult(Stored):
    """What each edge would change, to first order.

    Attributes:
        scores: estimated change of the metric of the run that is patched, float64, on the CPU; NaN where the writer
            does not come before the reader.
        writers: in the order of the rows.
        readers: in the order of the columns.
        clean: the metric of the clean run.
        corrupt: that of the corrupt run.
        metric: what was estimated and how, in words.
        direction: one of `DIRECTIONS`.
        model: signature of the architecture.
        clean_tokens: the clean prompt.
        corrupt_tokens: the corrupt prompt.
        forwards: forward passes that were made.

    Raises:
        InputError: scores of another shape, or infinite.
        UnknownNameError: a direction that does not exist.
    """

    scores: Float[Tensor, "writer reader"]
    writers: tuple[Writer, ...]
    readers: tuple[Reader, ...]
    clean: float
    corrupt: float
    metric: str
    direction: str
    model: str
    clean_tokens: tuple[int, ...]
    corrupt_tokens: tuple[int, ...]
    forwards: int

    def __post_init__(self) -> None:
        """Hold the scores as float64 on the CPU, checked."""
        scores = self.scores.detach().to("cpu", torch.float64)
        sizes = [len(self.writers), len(self.readers)]
        if list(scores.shape) != sizes:
            raise InputError(f"scores of shape {list(scores.shape)} given with writers and readers {sizes}")
        if bool(scores.isinf().any()):
            raise InputError("the scores hold infinity, expected finite numbers, or NaN where there is no edge")
        check_direction(self.direction, DIRECTIONS)
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
            f"{_ends([w.words for w in self.writers])}, readers {_ends([r.words for r in self.readers])}, later ones"
        )

    def top(self, n: int = 10) -> list[tuple[Writer, Reader, float]]:
        """The `n` edges with the largest scores, whichever their sign."""
        size = self.scores.abs().nan_to_num(-1.0).flatten()
        order = size.argsort(descending=True, stable=True)[:n].tolist()
        places = [divmod(i, len(self.readers)) for i in order if float(size[i]) >= 0]
        return [(self.writers[w], self.readers[r], float(self.scores[w, r])) for w, r in places]


def _ends(words: Sequence[str]) -> str:
    return ", ".join(words) if len(words) <= 2 else f"{words[0]} … {words[-1]}"
