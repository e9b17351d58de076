"""SHA-256 of large weights: of a file worked out once, for as long as it stays what it is.

A digest is kept in a folder of the user's (``HYBRIDLENS_CACHE``, else ``hybridlens`` in ``XDG_CACHE_HOME`` or
``~/.cache``) with the file's size, inode, and its times of change to the nanosecond, that of the inode among them,
which no program can set back. It counts only while all of them are the same. A file that was changed less than
`SETTLED` ago is not kept: within the clock's grain it could change once more unseen. Several files are hashed side by
side.

Of a file in the cache of the hub's client, whose name there is its SHA-256, the name is believed when the file is first
seen; once its times have changed since, it is read.

How it fails: a folder that cannot be written costs the time of hashing anew, as does a damaged entry. A file of the
hub's cache that was altered in place before it was first seen is taken for what the hub has.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hybridlens.progress import sized

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 1 << 24
"""Bytes hashed at a time."""
SETTLED = 60.0
"""Seconds."""
AT_ONCE = 8
HASHING = "hashing weights"

_SHA256 = re.compile(r"[0-9a-f]{64}")


class Stamp(NamedTuple):
    """What changes when a file does."""

    size: int
    modified: int
    """Nanoseconds, as is `changed`."""
    changed: int
    inode: int

    @classmethod
    def of(cls, file: Path) -> Stamp:
        """A file's now."""
        found = file.stat()
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)

    def settled(self) -> bool:
        """Whether whatever changes the file from now on changes the times too."""
        return time.time() - max(self.modified, self.changed) / 1e9 > SETTLED


def file_digests(files: Sequence[Path]) -> list[str]:
    """SHA-256 (64 hex digits) of each file's contents, with a bar where they have to be read."""
    found = [_known(file.resolve()) for file in files]
    unknown = [place for place, digest in enumerate(found) if digest is None]
    total = sum(files[place].stat().st_size for place in unknown)
    with sized(total, HASHING) as advance, ThreadPoolExecutor(min(AT_ONCE, os.cpu_count() or 1)) as pool:
        made = pool.map(lambda place: _read(files[place].resolve(), advance), unknown)
        for place, digest in zip(unknown, made, strict=True):
            found[place] = digest
    return [digest for digest in found if digest is not None]


def tensor_digests(tensors: Sequence[Tensor]) -> list[str]:
    """SHA-256 (64 hex digits) of each tensor's bytes, with a bar; nothing of them is kept."""

    def made(tensor: Tensor) -> str:
        digest = hashlib.sha256(held_bytes(tensor)).hexdigest()
        advance(tensor.nbytes)
        return digest

    total = sum(tensor.nbytes for tensor in tensors)
    with sized(total, HASHING) as advance, ThreadPoolExecutor(min(AT_ONCE, os.cpu_count() or 1)) as pool:
        return list(pool.map(made, tensors))


def held_bytes(tensor: Tensor) -> memoryview:
    """A tensor's numbers, one behind the other, in the host's memory."""
    import torch

    held: Any = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(held)


def folder() -> Path:
    """Where digests are kept."""
    home = os.environ.get("HYBRIDLENS_CACHE")
    if home:
        return Path(home) / "digests"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "hybridlens", "digests")


def _known(file: Path) -> str | None:
    """The digest that is kept of a file as it is now; None where it has to be read."""
    stamp = Stamp.of(file)
    try:
        held = json.loads(_entry(file).read_text())
        digest, kept = str(held["sha256"]), Stamp(*held["stamp"])
    except FileNotFoundError:
        if file.parent.name == "blobs" and _SHA256.fullmatch(file.name):
            _keep(file, stamp, file.name)
            return file.name
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return digest if kept == stamp and _SHA256.fullmatch(digest) else None


def _read(file: Path, advance: Callable[[int], None]) -> str:
    """Hash a file, and keep the digest if nothing changed meanwhile."""
    before, digest = Stamp.of(file), hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            advance(len(chunk))
    if Stamp.of(file) == before:
        _keep(file, before, digest.hexdigest())
    return digest.hexdigest()


def _keep(file: Path, stamp: Stamp, digest: str) -> None:
    entry = _entry(file)
    if not stamp.settled():
        return
    with suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        part = entry.with_name(f".{entry.name}.{os.getpid()}.part")
        part.write_text(json.dumps({"file": str(file), "stamp": list(stamp), "sha256": digest}))
        part.replace(entry)


def _entry(file: Path) -> Path:
    return folder() / f"{hashlib.sha256(str(file).encode()).hexdigest()[:32]}.json"
