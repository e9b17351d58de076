"""Surgery by plain loops over single entries, and the random places where it is done."""

import random
from collections.abc import Callable

import torch
from bounds import FEW, close
from models import tokens

from hybridlens import HybridLens
from hybridlens.memory import KeyValues
from hybridlens.state import HybridState

LENGTHS = (12, 9, 4)
"""Of the rows of most tests: beyond the window of 7, and within it."""


def rows(seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    return [row[:n] for row, n in zip(tokens(len(lengths), max(lengths), seed).tolist(), lengths, strict=True)]


def read(lens: HybridLens, prompts: list[list[int]]) -> HybridState:
    with torch.no_grad():
        return lens.prefill(prompts).state


def same(one: HybridState, other: HybridState) -> bool:
    ours, theirs = one.tensors(), other.tensors()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def entries(state: HybridState, layer: int) -> dict[tuple[int, int, int, int], tuple[float, float]]:
    """(row, head, position, channel) → key and value, of everything that the next token can see."""
    held, out = state.layers[layer]["attn"], {}
    assert isinstance(held, KeyValues)
    keys, values = held.k.tolist(), held.v.tolist()
    for row, positions in enumerate(state.key_positions.tolist()):
        newest = int(state.lengths[row])
        for slot, position in enumerate(positions):
            if position < 0 or (state.window is not None and position <= newest - state.window):
                continue
            for head in range(held.k.shape[1]):
                if held.kept is None or bool(held.kept[row, head, slot]):
                    for channel in range(held.k.shape[3]):
                        at = keys[row][head][slot][channel], values[row][head][slot][channel]
                        out[row, head, position, channel] = at
    return out


class Target:
    """A random place: layers, heads, positions, channels, rows; each may be left out."""

    def __init__(self, lens: HybridLens, state: HybridState, seed: int) -> None:
        rng = random.Random(seed)
        cfg = lens.cfg
        self.rows = rng.sample(range(state.batch), rng.randint(1, state.batch))
        held = {row: sorted({p for r, _, p, _ in entries(state, cfg.attention_layers[0]) if r == row})
                for row in range(state.batch)}  # fmt: skip
        self.positions = {row: sorted(rng.sample(held[row], rng.randint(0, len(held[row])))) for row in self.rows}
        self.layers = rng.sample(cfg.attention_layers, 1)
        self.heads = sorted(rng.sample(range(cfg.n_kv_heads), rng.randint(1, cfg.n_kv_heads)))
        self.channels = sorted(rng.sample(range(cfg.d_head), rng.randint(1, cfg.d_head)))
        self.where = {
            "rows": self.rows, "positions": [self.positions[row] for row in self.rows], "layers": self.layers,
            "heads": self.heads, "channels": self.channels,
        }  # fmt: skip

    def holds(self, layer: int, row: int, head: int, position: int, channel: int) -> bool:
        return (
            layer in self.layers and row in self.rows and head in self.heads and position in self.positions[row]
            and channel in self.channels
        )  # fmt: skip


def compare(
    lens: HybridLens, before: HybridState, after: HybridState, target: Target, fn: Callable, parts: str
) -> None:
    """Every entry of every layer: `fn` of its neighbours inside the target, the very same number outside."""
    for layer in lens.cfg.attention_layers:
        old, new = entries(before, layer), entries(after, layer)
        assert old.keys() == new.keys()
        for at, was in old.items():
            inside = target.holds(layer, *at)
            for which, part in enumerate(("keys", "values")):
                if inside and parts in (part, "both"):
                    close(new[at][which], fn(old, at, which), FEW, scale=size_of(old), dtype=lens.dtype)
                else:
                    assert new[at][which] == was[which]
    for layer in lens.cfg.ssm_layers:
        assert before.layers[layer] is after.layers[layer]


def size_of(values: dict) -> float:
    """Of the largest key or value."""
    return max(abs(x) for pair in values.values() for x in pair)
