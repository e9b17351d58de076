"""The options of smaller modules in attention's place."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from analyses.experiment.options.base import MaybeNumbers, MaybeWords, Numbers, flag
from analyses.experiment.options.rankings import ComparedOptions, RankingsConfig
from hybridlens import niah
from hybridlens.errors import InputError


def _positive(values: tuple[int, ...], info: object) -> tuple[int, ...]:
    if min(values, default=1) < 1:
        name = flag(getattr(info, "field_name", None))
        raise InputError(f"{name} holds {min(values)}, expected whole numbers from 1")
    return values


def _bits(values: tuple[int, ...]) -> tuple[int, ...]:
    wrong = next((value for value in values if not 1 <= value <= 8), None)
    if wrong is not None:
        raise InputError(f"--bits holds {wrong}, expected whole numbers from 1 to 8")
    return values


Sizes = Annotated[Numbers, AfterValidator(_positive)]


class ReduceConfig(ComparedOptions):
    """Options of smaller modules; a field with a description is one of the command's.

    Attributes:
        counts: heads left, none and one of which always are; None for a ladder of powers of two.
        tokens: of a step of the fine-tune.
        rate: its highest learning rate.
        save_every: steps between states to go on from.
    """

    rankings: MaybeWords = Field(
        None, description="For fewer heads: the rankings whose best are left, like entropy,copying; all when left out."
    )
    counts: MaybeNumbers = Field(
        None, description="Fewer heads: how many of the whole model are left, like 1,2,4; powers of two when left out."
    )
    widths: Sizes = Field(
        (1, 2, 4, 8), description="Narrower heads: how many numbers are held of each key, and of each value."
    )
    bits: Annotated[Numbers, AfterValidator(_bits)] = Field(
        (4, 2, 1), description="Fewer bits, 1 to 8, for each number that is held of keys and values."
    )
    windows: Sizes = Field(
        (8, 32, 128), description="A window: how many of the last keys a query sees, its own included."
    )
    keys: Sizes = Field(
        (1, 2, 4, 8), description="The best keys: how many, of highest score, each head reads at a query."
    )
    steps: int = Field(100, ge=0, le=1000, description="Steps of the fine-tune of each smaller attention; 0 for none.")
    share: float = Field(
        0.8, gt=0, le=1, description="Retrieval counts as kept from this share of the score of all of attention on."
    )
    tokens: int = Field(2000, ge=1)
    rate: float = Field(5e-4, gt=0)
    save_every: int = Field(50, ge=1)

    @property
    def ranked(self) -> RankingsConfig:
        """The same as options of rankings: prompts that judge, and others on which heads are ranked."""
        shared = ("rankings", *ComparedOptions.model_fields)
        return RankingsConfig(**{name: getattr(self, name) for name in shared})

    @property
    def hidden(self) -> tuple[niah.Needle, ...]:
        """The needles of the prompts."""
        return self.ranked.hidden
