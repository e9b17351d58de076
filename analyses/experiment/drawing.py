"""Which code draws a report: a digest that a stored one is signed with, so that other code draws it anew.

A report is words and pictures made of stored results. What they are made by is the source of this package and of those
parts of hybridlens that show results, with templates, scripts and styles, and the libraries that stand in a page.
Where any of it has changed, the report is drawn again of what is stored; nothing is run for it.

How it fails: pure; a change that touches no report draws it again all the same, which costs seconds.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import metadata
from pathlib import Path

import analyses
import hybridlens

_SHOWING = ("display", "results", "viz")
_LIBRARIES = ("circuitsvis", "plotly")


@cache
def drawing_code() -> str:
    """The digest of the code that draws reports."""
    ours, theirs = (Path(str(package.__file__)).parent for package in (analyses, hybridlens))
    return digest_of((ours, *(theirs / name for name in _SHOWING)), [metadata.version(name) for name in _LIBRARIES])


def digest_of(folders: tuple[Path, ...], versions: list[str]) -> str:
    """The digest of versions, and of all files in some folders by their places, but for what Python compiles."""
    found = hashlib.sha256(repr(versions).encode())
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
            data = path.read_bytes()
            found.update(f"{folder.name}/{path.relative_to(folder).as_posix()} {len(data)}\n".encode())
            found.update(data)
    return found.hexdigest()
