"""The options of recall against the number of facts."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from analyses.experiment.options.base import MaybeNumbers, one_of
from analyses.experiment.options.needles import AnswerOptions
from hybridlens.errors import InputError

FORMS = ("best-thing", "secret-word")
"""Names of `analyses.study.capacity.forms.FORMS`."""


def _some(values: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if values is not None and min(values) < 1:
        raise InputError("--facts holds 0, expected numbers of facts from 1 up: the control has none of its own")
    return None if values is None else tuple(sorted(values))


class CapacityConfig(AnswerOptions):
    """Options of recall against the number of facts; a field with a description is one of the command's."""

    facts: Annotated[MaybeNumbers, AfterValidator(_some)] = Field(
        None, description="Numbers of facts in a prompt, like 1,2,4; when left out, those of 1,2,4,8,16 that fit."
    )
    form: Annotated[str, one_of(FORMS, "--form")] = Field(
        "best-thing", description="What facts say: best-thing (the paper's form) or secret-word (shorter)."
    )
    length: int | None = Field(
        None, ge=1, le=10**6, description="Tokens of every prompt; when left out, about what --facts needs."
    )
    prompts: int = Field(
        48, ge=1, le=10_000, description="Prompts for each number of facts; there are as many controls."
    )
    max_new_tokens: int = Field(40, ge=1, le=100_000, description="Longest answer, in tokens.")
