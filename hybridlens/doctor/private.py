"""Texts of libraries with what says whose machine it is left out: paths, the user's name, the machine's name.

How it fails: a name that a library writes within another word, or shortened, is not known for one.
"""

from __future__ import annotations

import getpass
import platform
import re
from pathlib import PurePath

_PATH = re.compile(r"(?:[A-Za-z]:\\|~?/)(?:[^\s'\"<>|:,;()]+[\\/])+(?P<last>[^\s'\"<>|:,;()]*)")
"""An absolute path with a folder in it, without spaces."""

MOST = 300
"""Characters that are kept of a text."""


def private(text: str) -> str:
    """A text on one line, its paths cut to their last name, the names of user and machine replaced.

    Args:
        text: of an error or a warning.
    """
    short = _PATH.sub(lambda found: "…/" + PurePath(found["last"]).name, " ".join(text.split()))
    for name, instead in ((_user(), "USER"), (platform.node(), "HOST")):
        if name:
            short = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", instead, short)
    return short if len(short) <= MOST else short[: MOST - 1] + "…"


def _user() -> str:
    """The name that somebody is logged in under; empty where nobody knows it."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""
