"""Runtime checks of annotations, once for each combination of types, dtypes and shapes that a function is called with.

A check costs more than most of the small tensors' arithmetic: unsparing, a forward pass of the tests' models takes four
times as long. A call is checked when its arguments are of a combination that has not yet passed, and what it returns
when that is new for such arguments; a shape or type that an annotation forbids cannot hide behind one that passed. By
value only short texts tell, since annotations name them (`Literal`); of containers with many entries the types of these
tell, where beartype would look at one entry; many containers in one are checked at every call.

Nothing of torch or of the checked packages is imported here: a tensor is what has a shape and a dtype.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping

FEW, SHORT = 16, 40
_MISSING = object()
_POLICIES: dict[type, Callable[[Any], Any]] = {}


class _Unlike(Exception):
    """A value that cannot be told from another one without a check."""


def _unlike(value: Any) -> Any:
    raise _Unlike


def _itself(value: Any) -> Any:
    return value


def _sort(kind: type) -> Callable[[Any], Any]:
    """How values of a type are told apart."""
    if issubclass(kind, type):
        return _itself
    if hasattr(kind, "shape") and hasattr(kind, "dtype"):
        return lambda value: (kind, value.dtype, tuple(value.shape))
    if issubclass(kind, str):
        return lambda value: (kind, value if len(value) <= SHORT else None)
    if issubclass(kind, dict):
        return _mapping
    if issubclass(kind, list | tuple | set | frozenset):
        return _entries
    return _unlike if issubclass(kind, Iterator) or kind.__module__ == "collections" else type


def _entries(value: Any) -> Any:
    return (type(value), *map(_key, value)) if len(value) <= FEW else (type(value), _many(value))


def _mapping(value: Any) -> Any:
    if len(value) > FEW:
        return type(value), _many(value), _many(value.values())
    return (type(value), *map(_key, value), *map(_key, value.values()))


def _many(values: Any) -> frozenset[type]:
    """The types of many entries; of entries that have entries themselves, these do not say enough."""
    kinds = frozenset(map(type, values))
    if any(issubclass(kind, dict | list | tuple | set | frozenset | Iterator) for kind in kinds):
        raise _Unlike
    return kinds


def _key(value: Any) -> Any:
    kind = type(value)
    policy = _POLICIES.get(kind)
    if policy is None:
        policy = _POLICIES[kind] = _sort(kind)
    return policy(value)


class _Checks:
    """The checks of all functions that one `def` makes: of their arguments, and of arguments and what is returned.

    Both are made when the first of them is called, over a function that gives back what it is told.
    """

    def __init__(self, jaxtyped: Callable[..., Any], fn: Any, typechecker: Any) -> None:
        self.code = fn.__code__  # kept, so that no other has its id
        self._held = threading.local()
        signature = inspect.signature(fn)
        open_end = signature.replace(return_annotation=inspect.Signature.empty)
        self.arguments = jaxtyped(self._stand_in(fn, open_end), typechecker=typechecker)
        self._returned = jaxtyped(self._stand_in(fn, signature), typechecker=typechecker)
        self.passed: dict[Any, set[Any]] = {}

    def _stand_in(self, fn: Any, signature: inspect.Signature) -> Any:
        held = self._held

        def give_back(*args: Any, **kwargs: Any) -> Any:
            return getattr(held, "value", None)

        made: Any = types.FunctionType(give_back.__code__, fn.__globals__, fn.__name__, None, give_back.__closure__)
        functools.update_wrapper(made, fn)
        made.__signature__ = signature
        return made

    def returned(self, out: Any, args: Any, kwargs: Any) -> None:
        """Hold what a call returned against the annotations."""
        self._held.value = out
        try:
            self._returned(*args, **kwargs)
        finally:
            self._held.value = None


_CHECKS: dict[int, _Checks] = {}
"""By the id of a code."""


def _function(jaxtyped: Callable[..., Any], fn: Any, typechecker: Any) -> Any:
    """A function whose calls are checked where they are new."""
    if not getattr(fn, "__annotations__", None):
        return fn
    later = inspect.isgeneratorfunction(fn)
    code = id(fn.__code__)

    @functools.wraps(fn)
    def once(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if jaxtyping.config.jaxtyping_disable:  # a test of what a user sees; nothing has passed by it
            return fn(*args, **kwargs)
        checks = _CHECKS.get(code)
        if checks is None:
            checks = _CHECKS[code] = _Checks(jaxtyped, fn, typechecker)
        key = _key_of(args, kwargs)
        results = checks.passed.get(key)
        if results is None:
            checks.arguments(*args, **kwargs)
        out = fn(*args, **kwargs)
        if later:
            found = "a generator, of which nothing is checked"
        else:
            found = _key_of((out,), {})
            if found is None or results is None or found not in results:
                checks.returned(out, args, kwargs)
        if key is not None:
            checks.passed.setdefault(key, set()).update({found} - {None})
        return out

    return once


def _key_of(args: Any, kwargs: Any) -> Any:
    """By what a call is told from others; None where nothing tells."""
    try:
        return (*map(_key, args), *kwargs, *map(_key, kwargs.values())) if kwargs else (*map(_key, args),)
    except _Unlike:
        return None


def once(jaxtyped: Callable[..., Any]) -> Callable[..., Any]:
    """`jaxtyping.jaxtyped` with fewer checks.

    Args:
        jaxtyped: the decorator that checks every call.
    """

    def decorate(fn: Any = _MISSING, *, typechecker: Any = _MISSING) -> Any:
        if typechecker is _MISSING:  # no decorator: jaxtyping's context
            return jaxtyped(fn)
        if fn is _MISSING:
            return functools.partial(decorate, typechecker=typechecker)
        if isinstance(fn, types.FunctionType):
            return _function(jaxtyped, fn, typechecker)
        if not isinstance(fn, type):
            return jaxtyped(fn, typechecker=typechecker)
        start = vars(fn).get("__init__")
        if dataclasses.is_dataclass(fn) and start is not None and not hasattr(start, "__wrapped__"):
            fn.__init__ = _function(jaxtyped, start, typechecker)  # type: ignore[misc]
        return fn

    return decorate
