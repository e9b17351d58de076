"""Attention heads: their entropy, rankings of them, which are kept, and what becomes of their attention weights."""

from functools import partial
from typing import TYPE_CHECKING

from hybridlens.imports import asked

if not TYPE_CHECKING:  # which goes by the names that there are
    __getattr__ = partial(asked, __name__)
