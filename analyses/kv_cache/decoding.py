"""Surgery at any decode step: a text that goes on from a memory that was changed under way.

Decode steps count from 0. With boundary "last_prompt_token" step 0 reads the last token of the prompt and makes the
first new token; with "first_new_token" it reads the first new token. A surgery at step n changes the state that step n
goes on from, before it reads its token; so step 0 is "before generation". Edits of hook points act besides, in their
phases, so that a prompt can be read under one manipulation and answered under another. No edit acts while a surgery
is done, so a surgery may run the model itself.

How it fails: no step, one below 0, one beyond the last, or "every" step where there is none raises `InputError` before
anything runs; so does, when it comes to it, a function that returns no state of the model, the batch and as many tokens
read. Rows that have ended are operated on with the rest; a batch that ends early never comes to its later steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from annotated_types import MinLen
from torch import Tensor

from hybridlens.boundary import Natural, public
from hybridlens.choosing import Sampling
from hybridlens.decoding import Boundary
from hybridlens.display import Displayed, listed
from hybridlens.errors import InputError
from hybridlens.generation import Generation, decode_steps, generate
from hybridlens.hooks import Edit
from hybridlens.model import HybridLens
from hybridlens.state import HybridState
from hybridlens.tokens import TokensLike

StateFunction: TypeAlias = Callable[[HybridState], HybridState]


@public
@dataclass(frozen=True)
class Surgery(Displayed):
    """A function of the state, and the decode steps before which it is done.

    Attributes:
        fn: gives the state to go on from; it must not write to the one it gets.
        at: a step, several, or "every" one.

    Raises:
        InputError: no step, or one below 0.
        UnknownNameError: another name than "every".
    """

    fn: StateFunction
    at: Natural | Annotated[Sequence[Natural], MinLen(1)] | Literal["every"] = 0

    def summary(self) -> str:
        """What is done, and when."""
        at = "every decode step" if self.at == "every" else f"decode step {listed(self.steps)}"
        return f"{getattr(self.fn, '__name__', type(self.fn).__name__)} before {at}"

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that are named; none for "every"."""
        if isinstance(self.at, str):
            return ()
        return (self.at,) if isinstance(self.at, int) else tuple(self.at)


def generate_with(
    lens: HybridLens,
    tokens: TokensLike,
    surgeries: Sequence[Surgery] = (),
    max_new_tokens: int = 40,
    edits: Sequence[Edit] = (),
    boundary: Boundary = "last_prompt_token",
    *,
    state: HybridState | None = None,
    lengths: Sequence[int] | Tensor | None = None,
    stop_at_eos: bool = True,
    sampling: Sampling | None = None,
) -> Generation:
    """`HybridLens.generate` with surgeries, from the beginning or from a state.

    Args:
        lens: the model.
        tokens: prompts, or what of them is still to be read after `state`: at least one token in each row.
        surgeries: done in the order given.
        max_new_tokens: at most so many for each row.
        edits: of hook points, in their phases and rows.
        boundary: where reading ends and step 0 begins.
        state: what was read before `tokens`; not changed. None for nothing.
        lengths: real tokens of each row of a tensor padded on the right.
        stop_at_eos: a row ends with its end-of-text token.
        sampling: temperature, top-k, top-p and seed; greedy without.

    Raises:
        InputError: tokens that cannot be run, a context that is too short, a surgery that returns no such state, or
            a surgery at a step that cannot come.
    """
    _check_steps(surgeries, decode_steps(max_new_tokens, boundary), max_new_tokens, boundary)

    def between(held: HybridState, step: int) -> HybridState:
        for surgery in surgeries:
            if surgery.at == "every" or step in surgery.steps:
                held = _checked(surgery.fn(held), held)
        return held

    return generate(
        lens.network,
        lens.batch(tokens, lengths),
        max_new_tokens,
        edits,
        boundary,
        state=state,
        between=between if surgeries else None,
        stop_at_eos=stop_at_eos,
        sampling=sampling,
        tokenizer=lens.tokenizer,
        pad=lens.pad_token,
    )


def _check_steps(surgeries: Sequence[Surgery], steps: int, max_new_tokens: int, boundary: Boundary) -> None:
    """Refuse surgeries at decode steps that cannot come."""
    there = f"take steps 0..{steps - 1}" if steps else "take no decode step; ask for more new tokens"
    for surgery in surgeries:
        beyond = ", ".join(str(step) for step in surgery.steps if step >= steps)
        if beyond or (surgery.at == "every" and steps == 0):
            raise InputError(
                f"a surgery at decode step {beyond or repr(surgery.at)} given, but {max_new_tokens} new tokens with "
                f"boundary {boundary!r} {there}"
            )


def _checked(new: object, old: HybridState) -> HybridState:
    """What a surgery returned, if a run can go on from it."""
    if not isinstance(new, HybridState):
        raise InputError(f"a surgery returned a {type(new).__name__}, expected the HybridState to go on from")
    if (new.model, new.batch) != (old.model, old.batch):
        raise InputError(
            f"a surgery returned a state of {new.batch} rows of {new.model}, expected {old.batch} rows of {old.model}"
        )
    for row, (ours, theirs) in enumerate(zip(new.lengths.tolist(), old.lengths.tolist(), strict=True)):
        if ours != theirs:
            raise InputError(
                f"a surgery returned a state that has read {ours} tokens in row {row}, expected {theirs}, as many as "
                "the state that it was given"
            )
    return new
