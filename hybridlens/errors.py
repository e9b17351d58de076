"""The exceptions that hybridlens raises on purpose.

Every message is one line that says what was given, what was expected and how to mend it, with the
user's own input in it. The command line prints that line and exits with status 2; a traceback
means a defect of ours. All classes derive from `ValueError` too, so that ``except ValueError``
in existing notebooks keeps working.
"""

import dataclasses
import difflib
from collections.abc import Iterable


class HybridLensError(ValueError):
    """Base class of everything hybridlens raises on purpose."""


class UnknownNameError(HybridLensError):
    """A hook, model, family, layer or option name that does not exist."""


class AbsentError(HybridLensError, AttributeError):
    """An attribute that other models have, under a name of TransformerLens', and this one has not."""


class KeywordError(HybridLensError, TypeError):
    """A keyword that a function of another library takes, and this one's does not; a `TypeError` too, as of Python."""


class ElsewhereError(UnknownNameError, ImportError):
    """A name that is not where it is imported from; an `ImportError` too, which ``from … import`` lets out."""


class LayerIndexError(UnknownNameError, IndexError):
    """An entry that a stack over layers has not; an `IndexError` too, as of any sequence."""


class NotCachedError(UnknownNameError, KeyError):
    """An activation that a cache does not hold, or that the model lacks; a `KeyError` too, as of any mapping."""

    def __str__(self) -> str:
        """The line itself, where a `KeyError` would show its repr."""
        return Exception.__str__(self)


class NotHeldError(UnknownNameError, KeyError):
    """A weight that a dictionary of parameters does not hold; a `KeyError` too, as of any mapping."""

    def __str__(self) -> str:
        """The line itself, where a `KeyError` would show its repr."""
        return Exception.__str__(self)


class HookFunctionError(HybridLensError):
    """A hook function returned something that cannot stand in for the activation."""


class CheckpointError(HybridLensError):
    """A checkpoint that cannot be loaded: family, file format or configuration."""


class InputError(HybridLensError):
    """Tokens, prompts, needles, rubrics or arguments that cannot be used."""


class FixedError(InputError, dataclasses.FrozenInstanceError):
    """An assignment to what says what a model is; an `AttributeError` too, as of any frozen dataclass."""


class RowsError(InputError, AssertionError):
    """Several rows where one is expected; an `AssertionError` too, as TransformerLens has it."""


class ResultsError(HybridLensError):
    """A results folder that cannot be read, or that belongs to another run."""


class LeftOutWarning(UserWarning):
    """A checkpoint holds something beside the text model that is opened: a vision tower, a head for several tokens."""


class OffloadedWarning(UserWarning):
    """Part of a model stays on the disk or in host memory, and is brought in anew by each pass."""


class CachedWarning(UserWarning):
    """The hub could not be asked, and what the cache holds of a model is opened as it is."""


def closest(name: str, known: Iterable[str], n: int = 3) -> str:
    """A clause that offers the names nearest to `name`, or an empty string when none is near.

    Args:
        name: what the user wrote.
        known: every valid name.
        n: how many names to offer at most.
    """
    matches = difflib.get_close_matches(name, list(known), n=n, cutoff=0.5)
    return f"; close names: {', '.join(matches)}" if matches else ""
