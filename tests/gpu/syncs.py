"""Where a decode step and a forward pass without hooks wait for the device, as file and line; nowhere, it should be.

On a GPU torch itself says so (`torch.cuda.set_sync_debug_mode`). On a CPU the operations that would have to wait are
counted: those that read a value, or make a tensor whose size hangs on one.

How it fails: torch speaks of waits that it makes itself, not of those inside libraries, nor of allocations that wait.
"""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import models
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gpu.rows import Rows, settle
from hybridlens import HybridLens
from hybridlens.decoding import Decoding, begin, decode
from hybridlens.tokens import TokenBatch

ROOT = Path(__file__).parents[2]
WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique", "masked_select", "item")


def main(rows: Rows, argument: str) -> None:
    """Every family, small: the number of waits hangs on layers and not on widths."""
    places: dict[str, list[str]] = {}
    for family in models.EVERY_FAMILY:
        with rows.check(f"{family}"), torch.no_grad():
            one(rows, family, places)
    for where, seen in places.items():
        rows.add(where, "; ".join(seen))


def one(rows: Rows, family: str, places: dict[str, list[str]]) -> None:
    """The waits of a family's passes, at two depths, so that what is per layer shows."""
    dtype = torch.bfloat16 if rows.cuda else torch.float32  # in which grouped products of experts have a kernel
    lens = HybridLens(models.make(family).to(rows.device, dtype))
    ids = models.tokens(1, 40).to(rows.device)
    state = lens.prefill(ids).state
    state = lens.extend(state, ids[:, :1]).state  # room for keys is made in the first step
    layers = lens.cfg.n_layers
    new = ids[:, :1]
    given, several, lengths = new.cpu(), ids.expand(3, -1), torch.tensor([40, 9, 23])
    ways: dict[str, Callable[[], object]] = {
        "forward": lambda: lens.network(ids),
        "padded": lambda: lens.network(several, lengths, None, True),
        "step": lambda: lens.network(new, None, state),
        "extend": lambda: lens.extend(state, given),  # of ids on the device, their range would be read
    }
    counts: dict[str, tuple[Counter[str], int]] = {}
    for what, run in ways.items():
        run()
        with waits(rows.device) as found:
            run()
        counts[what] = found, 1
    steps, batch = 8, TokenBatch(ids, None)
    for what, ends in (("token that nothing ends", ()), ("token", (models.VOCAB,))):  # an end that never comes
        decode(lens.network, begin(lens.network, batch, (), "last_prompt_token"), Decoding(2, ends, capture=False))
        start = begin(lens.network, batch, (), "last_prompt_token")
        with waits(rows.device) as found:
            decode(lens.network, start, Decoding(steps, ends, capture=False))
        counts[what] = found, steps
    waited = ", ".join(f"{w} {sum(c.values()) / n:g}" for w, (c, n) in counts.items())
    none = not any(sum(found.values()) for found, _ in counts.values())
    rows.judge(f"{family}, {layers} layers: waits", none, waited, 0)
    for what, (places_of, runs) in counts.items():
        for where, times in places_of.items():
            places.setdefault(where, []).append(f"{family} {what} {times / runs:g}")


@contextmanager
def waits(device: str) -> Generator[Counter[str]]:
    """Counts the waits inside a ``with`` block by where they come from."""
    found: Counter[str] = Counter()
    if device == "cuda":
        settle(device)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.showwarning = lambda message, *rest, **named: found.update([place(str(message))])
                yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return
    with _Counting(found):
        yield found


class _Counting(TorchDispatchMode):
    """Counts operations that a GPU would have to be waited for."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).split(".")[1]
        if name in WAITING:
            self.found.update([place(name)])
        return func(*args, **(kwargs or {}))


def place(why: str) -> str:
    """The innermost line of the package that led here, the one that called it, and what it waits for."""
    frames = [f for f in traceback.extract_stack() if f.filename.startswith(str(ROOT / "hybridlens"))]
    lines = [f"{Path(f.filename).relative_to(ROOT)}:{f.lineno}" for f in frames[-2:]]
    text = frames[-1].line if frames else ""
    known = why if why in WAITING else "" if "synchronizing" in why else why[:60]
    return f"{' > '.join(lines) or 'elsewhere'}  {text} {known}".rstrip()
