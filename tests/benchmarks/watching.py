"""A process watched from outside: what it takes and holds, how long it is silent.

The process says what it has done in lines of JSON on standard output, each with a "phase"; what was measured since the
line before belongs to that phase. Standard error is a terminal to it, so that its progress bars are what a user sees:
a silence is time in which nothing but clocks goes on there.

Memory is what Linux says of the process every `EVERY` seconds: anonymous pages, which are the process's own, and pages
of mapped files, which the system takes back when it wants to. How it fails: a peak between two looks is not seen.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

EVERY = 0.05
"""Seconds."""
GB = 1e9


class Held(NamedTuple):
    """Gigabytes of a process."""

    anonymous: float
    mapped: float

    @classmethod
    def of(cls, process: int) -> Held:
        """Of a running process now; of none, nothing."""
        try:
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
        except OSError:
            return cls(0.0, 0.0)
        said = dict(line.split(":", 1) for line in lines if line.startswith("Rss"))
        anonymous, mapped = (int(said.get(name, "0 kB").split()[0]) * 1024 / GB for name in ("RssAnon", "RssFile"))
        return cls(anonymous, mapped)

    def most(self, other: Held) -> Held:
        """The larger of each."""
        return Held(max(self.anonymous, other.anonymous), max(self.mapped, other.mapped))


class Watched(NamedTuple):
    """What was seen."""

    seconds: float
    cpu: float
    """Seconds of processors, which other work on the machine changes less."""
    held: Held
    """Most at any time."""
    first: float
    """Seconds until anything was shown."""
    silence: float
    """The longest, in seconds, from one thing shown to the next or to the end."""
    phases: dict[str, dict[str, Any]]
    """What the process said of each, with "seconds", "cpu", "anonymous" and "mapped" (most held, GB)."""
    said: str
    """All that it wrote to standard output."""
    shown: str
    read: int
    """Bytes that came from the disk, as far as the system says."""


class ProcessFailedError(Exception):
    """A watched process ended with an error."""


def watched(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Watched:
    """Run a command to its end.

    Raises:
        ProcessFailedError: it failed.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # without a width, tqdm draws nothing
    began = before = shown_at = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, **(environment or {})}
    )
    os.close(theirs)
    assert process.stdout is not None
    out = process.stdout.fileno()
    first, silence, said, shown, last = -1.0, 0.0, b"", b"", ""
    most = phase = Held(0.0, 0.0)
    phases: dict[str, dict[str, Any]] = {}
    pending, read, cpu, cpu_before, open_ends = b"", 0, 0.0, 0.0, {out, ours}
    while open_ends:
        ready, _, _ = select.select(list(open_ends), [], [], EVERY)
        now = time.perf_counter()
        seen = Held.of(process.pid)
        most, phase = most.most(seen), phase.most(seen)
        read, cpu = max(read, _read_by(process.pid)), max(cpu, _cpu_of(process.pid))
        for end in ready:
            data = _read(end)
            if not data:
                open_ends.discard(end)
            elif end == ours:
                shown += data
                first = now - began if first < 0 else first
                if (news := without_clock(data.decode(errors="replace"))) != last:
                    last, silence, shown_at = news, max(silence, now - shown_at), now
            else:
                said += data
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    told = _phase(line)
                    if told is not None:
                        took = {"seconds": now - before, "cpu": cpu - cpu_before, **phase._asdict()}
                        phases[str(told["phase"])] = took | told
                        before, cpu_before, phase = now, cpu, seen
    status = process.wait()
    os.close(ours)
    process.stdout.close()
    seconds = time.perf_counter() - began
    silence = max(silence, began + seconds - shown_at)
    text = shown.decode(errors="replace")
    if status:
        sys.stderr.write(text)
        raise ProcessFailedError(f"{' '.join(command)} ended with {status}: {text.strip()[-400:]}")
    return Watched(seconds, cpu, most, first if first >= 0 else seconds, silence, phases, said.decode(), text, read)


def without_clock(text: str) -> str:
    """What a terminal is told, but for times, rates, colours and places."""
    return re.sub(r"\s+", " ", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|-:--:--|\d+(:\d\d)+", "", text)).strip()


def _read(end: int) -> bytes:
    try:
        return os.read(end, 1 << 16)
    except OSError:  # a terminal whose other end is closed
        return b""


def _cpu_of(process: int) -> float:
    """Seconds of processors that a process has had; of none, nothing."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _read_by(process: int) -> int:
    """Bytes that a process has had read from the disk, pages of mapped files among them; of none, nothing."""
    try:
        lines = Path(f"/proc/{process}/io").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split(":")[1]) for line in lines if line.startswith("read_bytes")), 0)


def _phase(line: bytes) -> dict[str, Any] | None:
    try:
        told = json.loads(line)
    except ValueError:
        return None
    return told if isinstance(told, dict) and "phase" in told else None


def forgotten(files: Sequence[Path]) -> None:
    """Ask the system to drop what it holds of files, so that what is read of them next comes from the disk."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
