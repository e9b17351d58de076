"""How much may be held at once: a number of bytes, turned into sizes of batches, blocks and snapshots.

Half of the budget goes to what a forward pass works with, a quarter to snapshots of shared beginnings, a quarter to
rows that wait to answer. The weights, which are there anyway, do not count.

How it fails: what a pass needs is estimated from the model's sizes (`Costs`), since nothing in PyTorch tells
beforehand; allocators round up. A budget in which not even one row fits raises `InputError` with the least
that is needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from hybridlens.config import LensConfig
from hybridlens.errors import InputError
from hybridlens.machine import MODEST

UNITS = {"": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}

SCORE_COPIES = 6
"""Tensors of the size of the attention scores that are alive at once while heads are ranked, float32."""


WIDEST = 384
"""Rows that decode together at most: beyond it a step takes as long, row for row."""

PASS_TOKENS = 1 << 13
"""Tokens that a pass reads at most, in all rows: more does not go faster, and holds more."""

NARROWEST = 64
"""Tokens a row that a pass should take at least, when rows are read together."""


def parse_memory(text: str, option: str = "--memory") -> int:
    """Bytes of a size such as ``2GB``, ``500 MB`` or ``1.5gb``; 1 KB is 1024 bytes.

    Args:
        text: the size.
        option: what it was given as, for the error.

    Raises:
        InputError: it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?B?)\s*", text.upper())
    unit = "" if match is None else match[2] if match[2].endswith("B") or not match[2] else f"{match[2]}B"
    if match is None or unit == "B" or float(match[1]) <= 0:
        raise InputError(f"{option} {text!r} given, expected a size such as 2GB or 500MB")
    return int(float(match[1]) * UNITS[unit])


def in_words(size: int) -> str:
    """A number of bytes, rounded up, as people read it."""
    for unit in ("GB", "MB", "KB"):
        if size >= UNITS[unit]:
            return f"{-(-size * 10 // UNITS[unit]) / 10:g} {unit}"
    return f"{size} bytes"


@dataclass(frozen=True)
class Costs:
    """What rows and tokens of a model take, in bytes."""

    row: int
    """A row's convolution and recurrent states, all layers."""
    keys: Mapping[int | None, int]
    """A token's keys and values, of all layers with one window, by that window."""
    token: int
    """A token's activations in the layer that has most of them, logits aside."""
    score: int
    """A query's scores, per key."""
    logits: int
    """A row's logits."""

    def state(self, tokens: int) -> int:
        """A row's state after so many tokens."""
        held = ((tokens if window is None else min(tokens, window)) * size for window, size in self.keys.items())
        return self.row + sum(held)


def costs_of(cfg: LensConfig, dtype: torch.dtype) -> Costs:
    """What a model's rows and tokens take."""
    keys: dict[int | None, int] = {}
    for layer in cfg.layers:
        if layer.attn is not None:
            window = layer.attn.window
            keys[window] = keys.get(window, 0) + layer.attn.memory(dtype.itemsize).token
    memories = [size for layer in cfg.layers for size in layer.memory(dtype.itemsize)]
    mlps = [layer.mlp for layer in cfg.layers if layer.mlp is not None]
    widest = max((mlp.d_mlp * (mlp.n_experts_per_token or 1) for mlp in mlps), default=0)
    channels = max((max(ssm.d_channels, ssm.d_conv_channels) for ssm in cfg.recurrences), default=0)
    return Costs(
        row=sum(size.row for size in memories),
        keys=keys,
        token=4 * (8 * cfg.d_model + 4 * widest + 12 * channels),
        score=4 * SCORE_COPIES * max((attention.n_heads for attention in cfg.attentions), default=0),
        logits=8 * cfg.d_vocab,
    )


@dataclass(frozen=True)
class Budget:
    """Bytes, and what they allow for a model."""

    costs: Costs
    memory: int = MODEST
    rows: int | None = None
    """Most rows that answer together; None for as many as fit, at most `WIDEST`."""

    @property
    def working(self) -> int:
        """Bytes for a forward pass."""
        return self.memory // 2

    @property
    def waiting(self) -> int:
        """Bytes for snapshots, and as many for rows that wait to answer."""
        return self.memory // 4

    def needed(self, tokens: int) -> int:
        """The least budget that reads and continues a row of so many tokens."""
        return 2 * (self._row(tokens) + self.costs.token + tokens * self.costs.score)

    def _row(self, tokens: int) -> int:
        """A row in a pass: its state as it comes in, as it goes out, and its logits."""
        return 2 * self.costs.state(tokens) + self.costs.logits

    def check(self, tokens: int) -> None:
        """Refuse a budget in which a row of so many tokens does not fit.

        Raises:
            InputError: saying how much is needed.
        """
        if self.memory < self.needed(tokens):
            raise InputError(
                f"--memory {in_words(self.memory)} given, but a single row of {tokens} tokens needs at least "
                f"{in_words(self.needed(tokens))}; give more memory or shorter prompts"
            )

    def answering_rows(self, tokens: int, ranked: bool = True) -> int:
        """How many rows of so many tokens decode together."""
        each = self._row(tokens) + self.costs.token + (tokens * self.costs.score if ranked else 0)
        return max(1, min(self.rows or WIDEST, self.working // each))

    def reading_rows(self, tokens: int, new: int) -> int:
        """How many rows that reach so many tokens read `new` of them together, at least one."""
        width = min(new, NARROWEST)
        each = self._row(tokens) + width * (self.costs.token + tokens * self.costs.score)
        return max(1, min(self.working // each, -(-PASS_TOKENS // max(1, new))))

    def block(self, rows: int, tokens: int, ranked: bool) -> int:
        """How many tokens of each of `rows` rows, which reach `tokens`, go into one pass; at least one."""
        left = self.working - rows * self._row(tokens)
        each = self.costs.token + (tokens * self.costs.score if ranked else 0)
        return max(1, min(PASS_TOKENS // rows, left // (rows * each)))
