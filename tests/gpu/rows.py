"""The rows that a part of the checks writes, as it goes, and what makes a verdict.

Each row is a line of JSON in the part's file as soon as it is known: a part that is killed leaves what it found.

How it fails: whatever a check raises becomes a row of verdict "error", with the place, and the next check runs.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

OK, BAD, ERROR, NOTE = "ok", "FAIL", "error", "note"
FAILED = (BAD, ERROR)
"""Verdicts that make the whole fail."""


class Rows:
    """The rows of one part.

    Args:
        part: its name.
        file: where they are appended.
        device: where things run: "cuda" or "cpu".
        seconds: how long the part may take; checks that ask `late` can leave the rest out.
    """

    def __init__(self, part: str, file: Path, device: str, seconds: float) -> None:
        self.part, self.file, self.device = part, file, device
        self.end = time.monotonic() + seconds

    @property
    def cuda(self) -> bool:
        """Whether this is a GPU, where sizes are real ones."""
        return self.device == "cuda"

    def add(self, what: str, figure: object, bound: object = "", verdict: str = NOTE) -> None:
        """Write a row."""
        row = {"part": self.part, "what": what, "figure": str(figure), "bound": str(bound), "verdict": verdict}
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def judge(self, what: str, good: bool, figure: object, bound: object = "") -> None:
        """Write a row with a verdict."""
        self.add(what, figure, bound, OK if good else BAD)

    def most(self, what: str, value: float, bound: float, about: str = "") -> None:
        """A row for a number that may be so large at the most; NaN is too large."""
        self.judge(what, value <= bound, f"{value:.3g}{f' ({about})' if about else ''}", f"≤ {bound:.3g}")

    @contextmanager
    def check(self, what: str) -> Generator[None]:
        """Have whatever is raised inside a ``with`` block become a row."""
        try:
            yield
        except Exception as error:  # any fault of any check is what is looked for, and the others still have to run
            self.add(what, said(error), "no error", ERROR)

    def late(self, what: str, needed: float) -> bool:
        """Whether so many seconds are no longer there; then a row says what is left out."""
        left = self.end - time.monotonic()
        if left < needed:
            self.add(what, f"left out: {left:.0f} s left", f"{needed:.0f} s", ERROR)
        return left < needed


def said(error: Exception) -> str:
    """An error in one line: what, and where in this repository."""
    root = str(Path(__file__).parents[2])
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(root)]
    places = [f"{Path(frame.filename).relative_to(root)}:{frame.lineno}" for frame in frames[-3:]]
    return f"{type(error).__name__}: {' '.join(str(error).split())[:240]} [{' > '.join(places)}]"


def off(got: Tensor, want: Tensor) -> float:
    """‖got − want‖ ÷ ‖want‖; infinite where shapes differ, or one is not finite where the other is."""
    if got.shape != want.shape:
        return float("inf")
    a, b = got.detach().cpu().double(), want.detach().cpu().double()
    finite = b.isfinite()
    if not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()) or not bool(a[finite].isfinite().all()):
        return float("inf")
    apart, size = float((a[finite] - b[finite]).norm()), float(b[finite].norm())
    return apart / size if size > 0 else apart


def timed(run: Callable[[], object], device: str, runs: int = 3, warm: int = 1) -> float:
    """Median seconds of a call, the device's work included."""
    times: list[float] = []
    for turn in range(warm + runs):
        settle(device)
        began = time.perf_counter()
        run()
        settle(device)
        if turn >= warm:
            times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]


def settle(device: str) -> None:
    """Wait until the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
