"""The door of the library: what a public function is given is checked there once, and nowhere behind it.

`public` stands before a function, method or dataclass. What its annotations say is checked by pydantic when it is
called, strictly: a flag is True or False, a whole number no truth value and no 2.0, a number finite, a string no list
of strings. Ranges are said in the annotation too (`Positive`, `Percent`, ``Annotated[float, Gt(0)]``), names from a
list by `Among`. Integers of numpy and torch pass where whole numbers are meant, arrays and tensors where lists of
numbers are, and arrive inside as Python's own; a list or tuple arrives as a tuple. Tensors are checked as jaxtyping
says: dtype, and number of axes. pydantic is imported, and the check of a function made, when it is first called.

How it fails: in one line, `boundary_words.refusal`. Only what an annotation can say is checked here; what depends on
a model (a layer that it lacks) is for the function. A call with too few arguments is Python's own TypeError; one with a
keyword that there is not is one too, a `KeywordError`, which says what to type (`hybridlens.habits`) or what there is.
`HybridLens` itself reads its tokens by `hybridlens.tokens`, which is quicker in a loop (`Unchecked`).
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import (
    Annotated,
    Any,
    Literal,
    TypeAlias,
    TypeVar,
    Union,
    Unpack,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from annotated_types import BaseMetadata, Ge, Le

from hybridlens.boundary_words import BROKEN, Among, Unchecked, refusal, sound
from hybridlens.elsewhere import wrong_keyword

Checked = TypeVar("Checked", bound=Callable[..., Any])

MOST_TOKENS = 1_000_000
"""A length beyond it is taken for a slip: its text alone would take minutes to make."""

MOST = 2**31 - 1
"""Of counts and indices; nothing here has more, and tensors cannot be cut by numbers of any size."""

Positive: TypeAlias = Annotated[int, Ge(1), Le(MOST)]
Natural: TypeAlias = Annotated[int, Ge(0), Le(MOST)]
Percent: TypeAlias = Annotated[int, Ge(0), Le(100)]
Seed: TypeAlias = Annotated[int, Ge(0), Le(2**63 - 1)]
"""Python's own generator takes -1 for 1, so a seed has no sign."""
Length: TypeAlias = Annotated[int, Ge(1), Le(MOST_TOKENS)]
"""Of a prompt or an answer, in tokens."""
Few: TypeAlias = Annotated[int, Ge(0), Le(MOST_TOKENS)]
"""As many as there may be tokens, or none."""

SIGNATURE = {
    "missing_argument",
    "missing_positional_only_argument",
    "missing_keyword_only_argument",
    "multiple_argument_values",
    "unexpected_keyword_argument",
    "unexpected_positional_argument",
}
"""What pydantic calls the faults that Python itself raises TypeError for."""


def public(target: Checked) -> Checked:
    """Have the arguments of a function, or of a dataclass when one is made, checked at every call.

    Args:
        target: a function, a method (below ``classmethod`` and its like), or a dataclass (above ``dataclass``).

    Returns:
        a function of the same signature, or the class itself. Its calls raise what `boundary_words.refusal` says.
    """
    if isinstance(target, type):
        made: Any = target
        made.__init__ = _guarded(made.__init__, lambda: get_type_hints(made, include_extras=True))
        return cast(Checked, target)
    return cast(Checked, _guarded(target, lambda: get_type_hints(target, include_extras=True)))


def _guarded(fn: Callable[..., Any], hints: Callable[[], dict[str, Any]]) -> Callable[..., Any]:
    """`fn` behind its check, which is made at the first call."""
    check: list[Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]] = []

    @functools.wraps(fn)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if not check:
            check.append(_compiled(fn, hints()))
        args, kwargs = check[0](*args, **kwargs)
        return fn(*args, **kwargs)

    return guarded


def _compiled(fn: Callable[..., Any], hints: dict[str, Any]) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    """A function that gives its arguments back checked, as (positional, by keyword)."""
    from pydantic import ConfigDict, ValidationError, validate_call

    signature = inspect.signature(fn)
    taken = _keywords(signature, hints)
    wanted = {key: _schema(hint) for key, hint in hints.items() if key in signature.parameters}

    def arguments(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs

    empty = inspect.Parameter.empty
    parameters = [p.replace(annotation=wanted.get(key, empty)) for key, p in signature.parameters.items()]
    arguments.__annotations__ = wanted
    cast(Any, arguments).__signature__ = inspect.Signature(parameters)
    checked = validate_call(config=ConfigDict(arbitrary_types_allowed=True))(arguments)
    order = list(signature.parameters)

    @functools.wraps(fn)
    def check(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if taken is not None and not kwargs.keys() <= taken.keys():
            raise wrong_keyword(fn.__qualname__, next(word for word in kwargs if word not in taken), list(taken))
        try:
            return checked(*args, **kwargs)
        except ValidationError as error:
            faults = error.errors(include_url=False, include_context=False, include_input=False)
            if any(fault["type"] in SIGNATURE for fault in faults):
                return args, kwargs  # calling the function raises Python's TypeError
            first = faults[0]["loc"][0]
            key = order[first] if isinstance(first, int) else str(first)
            value = args[first] if isinstance(first, int) else kwargs[key]
            paths = [fault["loc"][1:] for fault in faults if fault["loc"][0] == first]
            problem = refusal(key, value, hints[key], paths)
        raise problem

    return check


def _keywords(signature: inspect.Signature, hints: Mapping[str, Any]) -> dict[str, None] | None:
    """What a function takes by keyword, those of a ``**options: Unpack[...]`` too; None for anything."""
    found: dict[str, None] = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            found[name] = None
        elif parameter.kind is parameter.VAR_KEYWORD:
            if get_origin(hints.get(name)) is not Unpack:
                return None
            found |= dict.fromkeys(get_args(hints[name])[0].__annotations__)
    found.pop("self", None)
    return found


# Annotations as pydantic is to read them.


class _Instance:
    """A class of which an instance is wanted; its fields are its own affair."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.is_instance_schema(self.kind)


def _schema(hint: Any) -> Any:
    """An annotation as pydantic takes it, with what the module's docstring says of each kind of value."""
    from pydantic import AfterValidator, AllowInfNan, BeforeValidator, Field, Strict

    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        marks = inner[1:]
        if any(isinstance(mark, Unchecked) for mark in marks):
            return Any
        names = next((mark.names for mark in marks if isinstance(mark, Among)), None)
        if names is not None:
            return Literal[names]
        ranges = tuple(mark for mark in marks if isinstance(mark, BaseMetadata))
        return Annotated[(_schema(inner[0]), *ranges)] if ranges else _schema(inner[0])
    if origin in (Union, types.UnionType):
        members = tuple(_schema(member) for member in sorted(inner, key=_rank) if member is not type(None))
        one: Any = members[0]
        if len(members) > 1:
            one = Annotated[Union[members], Field(union_mode="left_to_right")]  # noqa: UP007
        return Union[one, None] if type(None) in inner else one  # noqa: UP007
    if origin is tuple and inner:
        parts = tuple(part if part is ... else _schema(part) for part in inner)
        return Annotated[tuple[parts], Strict(), BeforeValidator(_items)]
    if origin in (list, Sequence):
        return Annotated[tuple[_schema(inner[0]), ...], Strict(), BeforeValidator(_items)]
    if origin is Mapping:
        return Annotated[dict[_schema(inner[0]), _schema(inner[1])], Strict(), BeforeValidator(_pairs)]
    if origin is Iterable:
        return Annotated[Any, _Instance(Iterable)]
    if origin is Callable:
        return Callable
    if hint is int:
        return Annotated[int, Strict(), BeforeValidator(_whole)]
    if hint is float:
        return Annotated[float, Strict(), AllowInfNan(False), BeforeValidator(_number)]
    if hint is str:
        return Annotated[str, Strict(), AfterValidator(_sound)]
    if hint is bool:
        return Annotated[bool, Strict()]
    if hint is None or hint is type(None) or origin is Literal:
        return hint
    kind = origin or hint
    return Annotated[Any, _Instance(kind)] if isinstance(kind, type) and kind not in (object, Any) else Any


def _rank(member: Any) -> int:
    """Where a member of a union is tried: classes first, since a tensor of numbers is also a list of them."""
    if get_origin(member) is Annotated:
        return _rank(get_args(member)[0])
    if member in (bool, int, float, str):
        return 1 + (bool, int, float, str).index(member)
    return 0 if isinstance(member, type) else 5


def _whole(value: Any) -> Any:
    """An integer of numpy, or a tensor of one, as Python's; anything else as it is."""
    if type(value) is int or isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "tolist"):
        return value.tolist()
    return value


def _number(value: Any) -> Any:
    """Likewise for numbers with a fraction."""
    if isinstance(value, (bool, int, float)):
        return value
    return float(value) if isinstance(value, Real) else _whole(value)


def _sound(value: str) -> str:
    if not sound(value):
        raise ValueError(BROKEN)
    return value


def _items(value: Any) -> Any:
    """A sequence, array or tensor as a tuple; a string, and what is none of them, as it is."""
    if isinstance(value, (str, bytes, bytearray)):
        return value
    if isinstance(value, Sequence):
        return tuple(cast(Sequence[Any], value))
    many = hasattr(value, "tolist") and getattr(value, "ndim", 0) > 0
    return tuple(value.tolist()) if many else value


def _pairs(value: Any) -> Any:
    return dict(cast(Mapping[Any, Any], value)) if isinstance(value, Mapping) else value
