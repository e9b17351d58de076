"""Lines that say what to type here, for what users of other libraries type from habit (`hybridlens.habits`).

They are the errors of names, keywords and hook points that a lens has not; a name that no library has either gets
Python's own error. All of it runs only where something is missing already.

How it fails: it is itself how things fail, in one line; a property that raises is not taken for a missing name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from hybridlens.errors import AbsentError, KeywordError, closest
from hybridlens.habits import CLASS, LENS, PAGE, POINTS, WORDS, Habit


def typed_here(habit: Habit) -> str:
    """The clause that says what to type, and where more stands."""
    note = f" ({habit.note})" if habit.note else ""
    return f"type {habit.here}{note}; see {habit.section!r} in {PAGE}"


def missing(asked: object, called: str, name: str, habits: Mapping[str, Habit]) -> AttributeError:
    """The error of a name that an object has not.

    Args:
        asked: the object.
        called: what it is, as in "a lens".
        name: what it was asked for.
        habits: what is said of which names.
    """
    if name in habits:
        return AbsentError(f"{called} has no {name}; {typed_here(habits[name])}")
    return AttributeError(f"{type(asked).__name__!r} object has no attribute {name!r}", name=name, obj=asked)


def wrong_keyword(function: str, word: str, taken: Collection[str]) -> KeywordError:
    """The error of a keyword that a function does not take.

    Args:
        function: its qualified name.
        word: the keyword.
        taken: those that it takes.
    """
    habit = WORDS.get(function, {}).get(word)
    owner, _, name = function.rpartition(".")
    if owner.endswith("Front"):
        called = "lens(tokens)" if name == "__call__" else f"lens.{name}"
    else:
        called = owner if name == "__init__" else {"load": "hl.load"}.get(function, function.replace("<locals>.", ""))
    if habit is not None:
        return KeywordError(f"{called} takes no {word}; {typed_here(habit)}")
    there = closest(word, taken) or f"; it takes {', '.join(taken) or 'none'}"
    return KeywordError(f"{called} got an unexpected keyword argument {word!r}{there}")


def other_point(name: str, points: Collection[str]) -> str | None:
    """What to hook instead of a point that the model has not; None where nothing is known of the name.

    Args:
        name: as it was given, with or without its layer.
        points: the names that the model has.
    """
    layer, suffix = _split(name)
    habit = next((habit for habit in POINTS if re.fullmatch(habit.theirs, suffix)), None)
    if habit is None:
        return None
    for here in habit.here:
        having = [point for point in points if _split(point)[1] == here]
        if having:
            named = next((point for point in having if _split(point)[0] == layer), having[0])
            layers = [has for point in having if (has := _split(point)[0]) is not None]
            lacks = layer is not None and bool(layers) and layer not in layers
            note = f"{habit.note}; " * bool(habit.note) + f"layers with {here} are {', '.join(layers)}" * lacks
            return typed_here(Habit(repr(named), habit.section, note.removesuffix("; ")))
    return None


def _split(name: str) -> tuple[str | None, str]:
    """The layer of a hook point, None for one of the whole model, and the rest of its name."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    return (match.group(1), match.group(2)) if match else (None, name)


class OfClass:
    """A name that a class has elsewhere and not here: asking for it raises the line that says what to type."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type | None = None) -> NoReturn:
        raise missing(instance, "HybridLens", self.name, CLASS)


class HabitFront:
    """Names that others have; `HybridLens` builds on it."""

    from_pretrained = OfClass()
    from_pretrained_no_processing = OfClass()
    boot_transformers = OfClass()
    boot_native = OfClass()
    boot_tl_legacy = OfClass()
    list_supported_models = OfClass()
    check_model_support = OfClass()

    def __getattr__(self, name: str) -> Any:
        """Say what to type instead of a name that a lens has not."""
        found = getattr(type(self), name, None)
        if isinstance(found, property):  # it raised; Python asks here, and what it said must not be lost
            return found.__get__(self)
        if name not in LENS and (holder := self._holder(name)) is not None:
            raise AbsentError(f"a lens has no {name}; type lens.{holder}.{name}")
        raise missing(self, "a lens", name, LENS)

    def _holder(self, name: str) -> str | None:
        """What of a lens has a name that it has not itself: its configuration, or Hugging Face's model."""
        made = self.__dict__
        if name.startswith("_") or "network" not in made:
            return None
        if hasattr(made["network"].cfg, name):
            return "cfg"
        return "hf_model" if hasattr(made["hf_model"], name) else None
