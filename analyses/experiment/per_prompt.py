"""Functions of one prompt over several: a list of prompts gives a `PerPrompt`, the result of each in order.

`per_prompt` stands before a function of one prompt, or pair of prompts, and names the argument that this is. Where a
list of texts, of rows of ids or of pairs is given for it, the function is called for one after the other, so that rows
may be of any lengths and each gives exactly what it gives alone. Arguments that belong to a prompt (its corrupt
counterpart, its answer) come as lists of as many; others are the same for all, or, where that has a meaning (metrics,
questions), one for each.

How it fails: lists of unequal lengths, and a list of no prompts, raise `InputError` before anything is run; an error of
one prompt says in front which it was. A tensor of several rows is no list: ``list(tokens)`` makes one.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypeVar,
    cast,
    overload,
    runtime_checkable,
)

import torch
from torch import Tensor

from hybridlens.display import Displayed, Table, brief, many
from hybridlens.display.markup import cut
from hybridlens.errors import HybridLensError, InputError
from hybridlens.model import HybridLens
from hybridlens.progress import counted
from hybridlens.tokens import is_id
from hybridlens.viz.plotted import Plotted

if TYPE_CHECKING:
    import pandas

    from hybridlens.viz.plot import Plot

P = ParamSpec("P")
T = TypeVar("T")


@runtime_checkable
class Named(Protocol):
    """What has a name: a pair of prompts."""

    @property
    def name(self) -> str:
        """What results call it."""
        ...


Prompts: TypeAlias = list[str] | tuple[str, ...] | Sequence[Sequence[int]] | list[Tensor] | Sequence[Named]
"""Several prompts, or pairs of them; a tensor of several rows is none of these."""

LONGEST = 40
"""Characters of a prompt's name."""


@dataclass(frozen=True)
class PerPrompt(Plotted, Generic[T]):
    """A result for each of several prompts.

    Attributes:
        results: in the order of the prompts.
        names: what each prompt is called: its text, cut, or its place.
    """

    results: tuple[T, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        """How many prompts."""
        return len(self.results)

    def __getitem__(self, prompt: int) -> T:
        """The result of one, from its place; below 0 from the end."""
        return self.results[prompt]

    def __iter__(self) -> Iterator[T]:
        """Every result."""
        return iter(self.results)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Say where the results' own values are, to whoever asks a list of results for one."""
            made = self.__dict__.get("results")  # not there yet while it is copied
            if made and not name.startswith("_") and hasattr(made[0], name):
                kind = type(made[0]).__name__
                raise AttributeError(
                    f"{name!r} asked of the results of {len(self)} prompts, expected of one: a list of prompts gives a "
                    f"list of {kind}; take found[0].{name}, or found.stack({name!r}) for all of them"
                )
            raise AttributeError(f"'PerPrompt' object has no attribute {name!r}")

    def summary(self) -> str:
        """How many, of what, and the first."""
        first = self.results[0]
        said = first.summary() if isinstance(first, Displayed) else brief(first)
        return f"{many(len(self), 'prompt')}, a {type(first).__name__} each; of the first: {cut(said, 110)}"

    def table(self) -> Table:
        """A row a prompt: what its result says in a line. `to_pandas` has every row of every result."""
        rows = [
            (name, one.summary() if isinstance(one, Displayed) else brief(one))
            for name, one in zip(self.names, self.results, strict=True)
        ]
        return Table(("prompt", "result"), rows)

    def to_pandas(self) -> pandas.DataFrame:
        """The rows of all results below each other, with the prompt's place and name in front."""
        import pandas as pd

        shown = [one for one in self.results if isinstance(one, Displayed)]
        if len(shown) < len(self.results):
            return super().to_pandas()
        frames = [one.to_pandas() for one in shown]
        for place, (name, frame) in enumerate(zip(self.names, frames, strict=True)):
            frame.insert(0, "prompt_name", name, allow_duplicates=False)
            frame.insert(0, "prompt", place, allow_duplicates=False)
        made = pd.concat(frames, ignore_index=True)
        made.attrs["meanings"] = frames[0].attrs.get("meanings", {})
        return made

    def plot(self, prompt: int = 0) -> Plot:
        """The figure of one prompt's result; of the first when left out.

        Raises:
            InputError: a result that has no figure.
        """
        one = self.results[prompt]
        if not isinstance(one, Plotted):
            raise InputError(f"plot: a {type(one).__name__} has no picture; take the results one by one")
        return one.plot()

    def stack(self, name: str) -> Tensor:
        """A number or tensor that every result has, with an axis of prompts in front: ``stack("change").mean(0)``.

        Raises:
            InputError: results that lack it, or whose shapes differ.
        """
        if not all(hasattr(result, name) for result in self.results):
            raise InputError(f"{name!r} asked for, but a {type(self.results[0]).__name__} has no such value")
        values = [torch.as_tensor(getattr(result, name)) for result in self.results]
        shapes = [list(value.shape) for value in values]
        other = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
        if other is not None:
            raise InputError(
                f"{name!r} of prompt 0 has shape {shapes[0]} and of prompt {other} {shapes[other]}, expected one shape "
                "to stack: ask for axes that do not grow with the prompt, or take the results one by one"
            )
        return torch.stack(values)


@runtime_checkable
class OverPrompts(Protocol[P, T]):
    """A function of a lens and one prompt that takes a list of prompts too."""

    @overload
    def __call__(self, lens: HybridLens, prompts: Prompts, /, *args: Any, **kwargs: Any) -> PerPrompt[T]: ...

    @overload
    def __call__(self, lens: HybridLens, /, *args: P.args, **kwargs: P.kwargs) -> T: ...


def per_prompt(
    prompt: str, each: Sequence[str] = (), shared: Mapping[str, int] | None = None
) -> Callable[[Callable[Concatenate[HybridLens, P], T]], OverPrompts[P, T]]:
    """Have a function of one prompt take a list of them too, and give a `PerPrompt`.

    Args:
        prompt: the parameter that is a prompt, or a pair of them.
        each: parameters that belong to it, of which a list has one for each prompt.
        shared: parameters that are one for all or one for each prompt -> how deep a list is nested that has one for
            each: 1 for metrics, 2 for what is a list by itself.
    """

    def decorate(fn: Callable[Concatenate[HybridLens, P], T]) -> OverPrompts[P, T]:
        signature = inspect.signature(fn)

        @functools.wraps(fn)
        def over(*args: Any, **kwargs: Any) -> Any:
            given = _bound(signature, args, kwargs)
            prompts = given.get(prompt)
            if not several(prompts):
                return cast(Any, fn)(*args, **kwargs)
            rows = list(cast(Sequence[Any], prompts))
            if not rows:
                raise InputError(f"no {prompt} prompt was given, expected at least one")
            lists = {name: given[name] for name in each if given.get(name) is not None}
            lists |= {name: given[name] for name, deep in (shared or {}).items() if _depth(given.get(name)) >= deep}
            for name, values in lists.items():
                if not isinstance(values, (list, tuple)) or len(cast(Sequence[Any], values)) != len(rows):
                    many = len(cast(Sequence[Any], values)) if isinstance(values, (list, tuple)) else "one"
                    raise InputError(
                        f"{len(rows)} prompts were given as {prompt} and {many} as {name}, expected a list of one for "
                        "each prompt"
                    )
            results: list[Any] = []
            with counted(len(rows), "prompts") as done:
                for i, row in enumerate(rows):
                    own = given | {prompt: row} | {name: values[i] for name, values in lists.items()}
                    try:
                        results.append(cast(Any, fn)(**own))
                    except HybridLensError as error:
                        raise type(error)(f"prompt {i}: {error}") from error
                    done(1)
            return PerPrompt(tuple(results), tuple(_name(row, i) for i, row in enumerate(rows)))

        return cast(Any, over)

    return decorate


def several(given: object) -> bool:
    """Whether a list or tuple of prompts was given, and not one prompt."""
    return isinstance(given, (list, tuple)) and not any(map(is_id, cast(Sequence[Any], given)))


def _bound(signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by name, those in ``**options`` among them; nothing where they do not fit, which the call says."""
    try:
        given = dict(signature.bind(*args, **kwargs).arguments)
    except TypeError:
        return {}
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            given |= given.pop(name, {})
    return given


def _depth(value: object) -> int:
    """How deep lists are nested in a value."""
    if not isinstance(value, (list, tuple)):
        return 0
    return 1 + (_depth(cast(Sequence[Any], value)[0]) if value else 0)


def _name(prompt: object, place: int) -> str:
    """What a prompt is called."""
    text = prompt if isinstance(prompt, str) else getattr(prompt, "name", f"prompt {place}")
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
