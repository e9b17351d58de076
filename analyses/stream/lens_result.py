"""`StreamLens`: what the residual stream would say at every place, if it were the last one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from jaxtyping import Float, Int
from torch import Tensor

from analyses.experiment.artefacts import Stored
from hybridlens.boundary import Natural, public
from hybridlens.boundary_words import Among
from hybridlens.display import Grid, Table, many, number, visible
from hybridlens.errors import InputError
from hybridlens.viz.plotted import Plotted

UNITS: dict[str, float] = {"nats": 1.0, "bits": 0.6931471805599453}
"""Of entropies and divergences, in nats."""

Unit: TypeAlias = Annotated[str, Among(tuple(UNITS))]

PerPlace: TypeAlias = Float[Tensor, "place prompt pos"]


@dataclass(frozen=True, eq=False)
class StreamLens(Plotted, Stored):
    """What a logit lens or a tuned lens reads. All tensors are on the CPU, numbers float32, NaN where nothing was read.

    Attributes:
        kind: "logit" or "tuned".
        places: hook points, in forward order; the last one is what leaves the last layer.
        entropy: of the distribution read there.
        divergence: KL(model ‖ read there): what is lost by taking it for the model's own answer.
        unit: of both: nats or bits.
        top_tokens: the likeliest tokens there, the likeliest first; -1 where nothing was read.
        top_probabilities: their probabilities.
        targets: the token asked about, at each position; -1 where nothing was read.
        target_logits: its logit there, after any soft cap.
        target_probabilities: its probability.
        target_ranks: its rank, 0 for the likeliest; of equals the lowest id comes first.
        positions: of each prompt, from its start; -1 where it has fewer than others.
        prompts: their tokens.
        texts: token -> text, of all tokens named here.
        model: signature of the architecture.
    """

    kind: Literal["logit", "tuned"]
    places: tuple[str, ...]
    entropy: PerPlace
    divergence: PerPlace
    unit: str
    top_tokens: Int[Tensor, "place prompt pos best"]
    top_probabilities: Float[Tensor, "place prompt pos best"]
    targets: Int[Tensor, "prompt pos"]
    target_logits: PerPlace
    target_probabilities: PerPlace
    target_ranks: PerPlace
    positions: Int[Tensor, "prompt pos"]
    prompts: tuple[tuple[int, ...], ...]
    texts: Mapping[str, str]
    model: str

    @public
    def top(self, place: str | int, prompt: Natural = 0, position: int = -1) -> list[tuple[str, float]]:
        """The likeliest tokens at one place, as text, with their probabilities.

        Args:
            place: a hook point of `places`, or its number among them; -1 is the model's own answer.
            prompt: which prompt.
            position: which of its positions that were read, by number among them; -1 is the last.

        Raises:
            InputError: there is no such place, prompt or position.
        """
        at = self.places.index(place) if place in self.places else place
        read = int((self.positions[prompt] >= 0).sum()) if prompt < len(self.prompts) else 0
        if not isinstance(at, int) or not -len(self.places) <= at < len(self.places):
            raise InputError(f"place {place!r} was not read; those that were are {', '.join(self.places)}")
        if not -read <= position < read:
            raise InputError(f"position {position} of prompt {prompt} was not read; it has 0..{read - 1}")
        where = at, prompt, position % read
        found = zip(self.top_tokens[where].tolist(), self.top_probabilities[where].tolist(), strict=True)
        return [(self.texts[str(token)], float(probability)) for token, probability in found]

    def summary(self) -> str:
        """What was read, and how far the answer stands half way."""
        half = len(self.places) // 2
        apart = number(float(self.divergence[half].nanmean()), 3)
        return (
            f"{self.kind} lens at {many(len(self.places), 'place')} over {many(len(self.prompts), 'prompt')}; half way "
            f"({self.places[half]}) it is {apart} {self.unit} from the answer"
        )

    def table(self) -> Table:
        """A row for each place, prompt and position."""
        values = {
            "entropy": self.entropy, "divergence": self.divergence, "target_logit": self.target_logits,
            "target_probability": self.target_probabilities, "target_rank": self.target_ranks,
        }  # fmt: skip
        return Table.of(
            values,
            {"place": self.places, "prompt": None, "pos": None},
            {
                "pos": "by number among the positions read; `positions` has them from the prompt's start",
                "entropy": f"of what is read there, in {self.unit}",
                "target_rank": "how many tokens come before it there; 0 is the likeliest",
                "divergence": f"KL of the model's answer from what is read there, in {self.unit}",
            },
        )

    def view(self) -> tuple[Table, Grid]:
        """Of the first prompt: the likeliest token at each place, and how likely the target is there."""
        read = [at for at, position in enumerate(self.positions[0].tolist()) if position >= 0]
        names = [self._at(at) for at in read]
        rows = [
            (place, *(visible(self.texts[str(int(self.top_tokens[row, 0, at, 0]))]) for at in read[-11:]))
            for row, place in enumerate(self.places)
        ]
        likeliest = Table(
            ("place", *names[-11:]), rows, title="Likeliest next token after each position, at each place",
            note="of the first prompt, its last positions" if len(self.prompts) > 1 or len(read) > 11 else "",
        )  # fmt: skip
        probability = Grid(
            self.target_probabilities[:, 0, read], self.places, names, "places", "positions",
            "probability of the token asked about, which is the model's own answer unless others were given", limit=1.0,
        )  # fmt: skip
        return likeliest, probability

    def _at(self, at: int) -> str:
        """A position of the first prompt, with its token."""
        position = int(self.positions[0, at])
        return f"{position} {visible(self.texts[str(self.prompts[0][position])])}"
