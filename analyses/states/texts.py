"""The prompts whose states are measured: needle prompts at some depths, or texts of a file.

How it fails: a file that cannot be read, that holds no text or something else is refused in one line, as is a text
longer than the model's context.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from hybridlens import niah
from hybridlens.display import Displayed, many
from hybridlens.errors import InputError
from hybridlens.model import HybridLens
from hybridlens.niah import Span


class _Measurable(NamedTuple):
    """Fields of `Measurable`."""

    name: str
    """Of its folder."""
    words: str
    """What it is, for a reader."""
    tokens: tuple[int, ...]
    needle: Span | None = None
    """Its tokens; None for own texts."""
    depth: int | None = None
    """Of the needle, in percent of the context."""


class Measurable(Displayed, _Measurable):
    """One prompt."""

    __slots__ = ()

    def summary(self) -> str:
        """What it is, and how long."""
        return f"{self.words}, {many(len(self.tokens), 'token')}"


def needle_prompts(
    lens: HybridLens,
    needle: niah.Needle,
    length: int,
    depths: Sequence[int],
    seed: int,
    haystack: niah.Haystack | None = None,
) -> list[Measurable]:
    """One prompt a depth.

    Raises:
        InputError: see `niah.grid`.
    """
    grid = niah.grid(lens.tokenizer, [length], list(depths), haystack, needle, seed=seed)
    return [
        Measurable(f"depth-{p.depth}", f"needle at {p.depth} % of the context", p.tokens, p.needle_span, p.depth)
        for p in grid
    ]


def own_prompts(lens: HybridLens, path: Path) -> list[Measurable]:
    """The texts of a file: all of it as one, or, of a JSON list, each by itself.

    Raises:
        InputError: the file cannot be read, or is no text or list of texts; or see `hybridlens.tokens`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8"
        raise InputError(f"--texts '{path}' cannot be read ({reason}); give a text file, or a JSON list") from error
    texts: list[Any] = [text]
    if path.suffix == ".json":
        try:
            texts = json.loads(text)
        except ValueError as error:
            raise InputError(f"--texts '{path}' is no JSON ({error}); give a list of texts") from error
    if not isinstance(cast(object, texts), list) or not texts or not all(isinstance(one, str) and one for one in texts):
        raise InputError(f"--texts '{path}' holds something else than texts; give a text file, or a JSON list of texts")
    ids = [cast(list[int], lens.batch(one).tokens[0].tolist()) for one in texts]
    if any(len(row) < 2 for row in ids):
        raise InputError(f"--texts '{path}' holds a text of one token, expected at least two in each")
    return [
        Measurable(f"text-{i}", f"text {i} of {path.name}" if len(ids) > 1 else path.name, tuple(row))
        for i, row in enumerate(ids)
    ]
