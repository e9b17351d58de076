"""What the public boundary says of a value that it refuses: one line with what was given and what was expected.

An annotation is put into words (``Sequence[Percent]``: "a list of whole numbers from 0 to 100"), and a value into
a short form that is always one line, whatever it holds.

How it fails: of a union whose members all refuse a value, the words name every member, and the item at fault is the
deepest one that any of them found.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen

from hybridlens.errors import HybridLensError, InputError, UnknownNameError, closest

LONGEST = 60
"""Characters of a value that are shown."""


@dataclass(frozen=True)
class Among:
    """Marks a string that is one of some names: ``Annotated[str, Among(("prefill", "decode"))]``."""

    names: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """What pydantic checks where it reads the annotation itself."""
        from pydantic_core import core_schema

        return core_schema.literal_schema(list(self.names))


@dataclass(frozen=True)
class Unchecked:
    """Marks a value that is read, and refused, by a function of its own: ``Annotated[…, Unchecked("tokens")]``."""

    words: str


class Words(NamedTuple):
    """An annotation in words."""

    one: str
    """Of one value: "a whole number"."""
    many: str
    """Of several: "whole numbers"."""


def refusal(argument: str, value: Any, hint: Any, paths: Sequence[tuple[int | str, ...]]) -> HybridLensError:
    """The error for one argument.

    Args:
        argument: the parameter's name.
        value: what was given for it.
        hint: its annotation.
        paths: where in the value something was found wrong, as pydantic says it: indices, and names of branches.

    Returns:
        `UnknownNameError` for a string that is none of the names allowed, else `InputError`.
    """
    where, found, wanted = argument, value, hint
    for step in max(paths, key=lambda path: sum(isinstance(step, int) for step in path)):
        if isinstance(step, int) and _is_list(found) and step < len(found):
            where, found, wanted = f"{where}[{step}]", found[step], _element(wanted, step)
    names = names_in(wanted)
    if isinstance(found, str) and not sound(found):
        return InputError(f"{where} = {shown(found)} given, which is no valid Unicode: {BROKEN}")
    if names and isinstance(found, str):
        near = closest(found[:LONGEST], names)
        return UnknownNameError(f"{where} {shown(found)} does not exist{near}; expected one of {', '.join(names)}")
    whole = "" if where == argument else f"{argument} to be "
    return InputError(f"{where} = {shown(found)} given, expected {whole}{words(hint).one}")


BROKEN = "half of a surrogate pair stands in it, which is no character; take it out"


def sound(text: str) -> bool:
    """Whether a string is valid Unicode: a half of a surrogate pair, which JSON can write, is no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def names_in(hint: Any) -> tuple[str, ...]:
    """The names that a string is to be one of; none where any string will do, or none at all."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return tuple(name for name in inner if isinstance(name, str))
    if origin is Annotated:
        listed = next((mark.names for mark in inner[1:] if isinstance(mark, Among)), None)
        return names_in(inner[0]) if listed is None else listed
    if origin in (Union, types.UnionType):
        return () if str in inner else tuple(dict.fromkeys(name for part in inner for name in names_in(part)))
    return ()


def _element(hint: Any, at: int) -> Any:
    """The annotation of an item of a list that `hint` allows."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _element(inner[0], at)
    if origin in (Union, types.UnionType):
        lists = [part for part in inner if get_origin(part) in (list, tuple, Sequence, Annotated)]
        return _element(lists[0], at) if lists else Any
    if origin is tuple and inner[-1] is not ...:
        return inner[at]
    return inner[0] if inner else Any


def shown(value: Any) -> str:
    """A value in one short line."""
    kind = type(value).__name__
    if hasattr(value, "shape") and hasattr(value, "dtype") and getattr(value, "ndim", 0) > 0:
        return f"a {kind} {list(value.shape)} of {value.dtype}"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"a whole number of about {value.bit_length() * 3 // 10} digits"
    if isinstance(value, (str, bytes)):
        return repr(value if len(value) <= LONGEST else value[: LONGEST - 3]) + ("…" if len(value) > LONGEST else "")
    if _is_list(value) or isinstance(value, (set, frozenset, Mapping)):
        return _shown_many(value, kind)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if type(value).__module__ == "torch":  # a dtype, a device
        return str(value)
    if callable(value):
        return f"the function {getattr(value, '__name__', kind)}"
    text = repr(value) if isinstance(value, (bool, int, float, complex, type(None))) else ""
    return text or (str(value) if _is_scalar(value) else f"a value of class {kind}")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))


def _is_scalar(value: Any) -> bool:
    """A number of numpy or torch."""
    return getattr(value, "ndim", None) == 0 and hasattr(value, "item")


def _shown_many(value: Any, kind: str) -> str:
    inner = [shown(item) for item in list(value)[:6]]
    text = ", ".join([*inner, "…"] if len(value) > 6 else inner)
    left, right = {list: "[]", tuple: "()", set: "{}", dict: "{}"}.get(type(value), (f"{kind}(", ")"))
    return f"{left}{text}{right}" if len(text) <= 2 * LONGEST else f"a {kind} of {len(value)}"


def words(hint: Any) -> Words:
    """What an annotation asks for."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _marked(words(inner[0]), inner[1:])
    if origin in (Union, types.UnionType):
        each = [words(part) for part in inner if part is not type(None)]
        ones, manys = (_either([getattr(one, name) for one in each]) for name in ("one", "many"))
        return Words(f"{ones} or None", f"{manys} or None") if type(None) in inner else Words(ones, manys)
    if origin is Literal:
        listed = ", ".join(map(str, inner))
        return Words(f"one of {listed}", f"names out of {listed}")
    if origin is tuple and inner and inner[-1] is not ...:
        listed = " and ".join(words(part).one for part in inner)
        return Words(f"a tuple of {listed}", f"tuples of {listed}")
    if origin in (list, Sequence, tuple, Iterable) and inner:
        return Words(f"a list of {words(inner[0]).many}", f"lists of {words(inner[0]).many}")
    if origin is Mapping:
        return Words(f"a dict from {words(inner[0]).many} to {words(inner[1]).many}", "dicts")
    if origin is Callable or hint is Callable:
        return Words("a function", "functions")
    axes = getattr(hint, "dim_str", None)
    if axes is not None:
        kind = getattr(hint, "__name__", "tensor").split("[", 1)[0].lower()
        return Words(f"{_article(kind)} {kind} tensor [{axes}]", f"{kind} tensors [{axes}]")
    if hint in _PLAIN:
        return _PLAIN[hint]
    name = str(getattr(origin or hint, "__name__", hint))
    fields: tuple[str, ...] = getattr(hint, "_fields", ())  # a named tuple's, which one makes oneself
    made = f"{name}({', '.join(fields)})" if fields else name
    return Words(f"{_article(name)} {name}", f"values of class {made}")


def _article(name: str) -> str:
    return "an" if name[0] in "AEIOUaeiou" else "a"


_PLAIN: dict[Any, Words] = {
    int: Words("a whole number", "whole numbers"),
    float: Words("a finite number", "finite numbers"),
    bool: Words("True or False", "truth values"),
    str: Words("a string", "strings"),
    type(None): Words("None", "None"),
    object: Words("anything", "anything"),
    Any: Words("anything", "anything"),
}


def _marked(plain: Words, marks: Iterable[Any]) -> Words:
    """`plain` with the ranges and names that its marks say."""
    low = high = above = below = least = None
    for mark in marks:
        if isinstance(mark, Among):
            listed = ", ".join(mark.names)
            return Words(f"one of {listed}", f"names out of {listed}")
        if isinstance(mark, Unchecked):
            return Words(mark.words, mark.words)
        low = mark.ge if isinstance(mark, Ge) else low
        high = mark.le if isinstance(mark, Le) else high
        above = mark.gt if isinstance(mark, Gt) else above
        below = mark.lt if isinstance(mark, Lt) else below
        least = mark.min_length if isinstance(mark, MinLen) else least
    if least is not None:
        return Words(f"{plain.one}, at least {least}", f"{plain.many}, at least {least} each")
    limits = [
        f"from {low} to {high}" if low is not None and high is not None else "",
        f"from {low} up" if low is not None and high is None else "",
        f"up to {high}" if high is not None and low is None else "",
        "" if above is None else f"above {above}",
        "" if below is None else f"below {below}",
    ]
    limit = " and ".join(filter(None, limits))
    return Words(f"{plain.one} {limit}", f"{plain.many} {limit}") if limit else plain


def _either(parts: Sequence[str]) -> str:
    unique = list(dict.fromkeys(parts))
    return unique[0] if len(unique) == 1 else f"{', '.join(unique[:-1])} or {unique[-1]}"
