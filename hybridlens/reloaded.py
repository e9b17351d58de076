"""The source of a block that is traced, where a file was loaded again in the same process.

nnsight reads a file once and keeps it. A module that is loaded again after it was edited (``importlib.reload``,
IPython's ``%autoreload`` and ``%run``) would have its old blocks run in silence, at the old lines. So a source that is
kept is read anew when it does not hold the code that opens the trace.

How it fails: it does not; code that was changed on its way from the file (by pytest, say) is read again for nothing.
"""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from types import CodeType

from nnsight.tracing.globals import BLOCKS, SOURCES

_KNOWN: dict[tuple[str, int, str], CodeType] = {}
"""The code that was last seen at each place."""


def reread(code: CodeType) -> None:
    """Have nnsight read a file again that does not hold this code as nnsight has it.

    Args:
        code: of the frame that opens a trace.
    """
    name = code.co_filename
    place = (name, code.co_firstlineno, code.co_name)
    source = SOURCES.get(name)
    if source is not None and _KNOWN.get(place) != code and not _holds(source, code):
        linecache.checkcache(name)
        SOURCES.pop(name, None)
        for key in [key for key in BLOCKS if key[0] == name]:
            BLOCKS.pop(key, None)
    _KNOWN[place] = code


def _holds(source: str, code: CodeType) -> bool:
    try:
        whole = compile(source, code.co_filename, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return any(found == code for found in _within(whole))


def _within(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _within(constant)
