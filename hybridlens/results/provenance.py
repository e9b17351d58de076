"""What a run needs to be run again: versions, hashes, and files that are never half-written.

Every file is written beside its final name, flushed to the disk and then renamed, so that a reader or a
killed run meets the old file or the new one, never a part; what a killed run left of a file half written,
`clear_parts` removes. How it fails: `ResultsError` when the folder cannot be written; the old file is then
still there.
"""

import errno
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hybridlens.errors import ResultsError
from hybridlens.results.file_digests import CHUNK, file_digests, held_bytes, tensor_digests

# The packages whose version can change a result. hybridlens is among them.
CORE_PACKAGES = (
    "hybridlens",
    "torch",
    "transformers",
    "transformer-lens",
    "nnsight",
    "einops",
    "jaxtyping",
    "circuitsvis",
    "plotly",
    "safetensors",
    "tokenizers",
    "pyarrow",
    "numpy",
)

LARGE = 1 << 30
"""Bytes of weights that are hashed within seconds."""

STALE = 10
"""How often a file that others replace is opened, at most."""

SHARDS = "shards"
"""Within a run's folder: those of the jobs that share its work, runs of their own."""


def _version(package: str) -> str | None:
    """None for a package that is not installed as a distribution (a plain source checkout, say)."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


class Environment(BaseModel):
    """Versions of Python and of every core package, and the machine."""

    python: str
    platform: str
    machine: str
    cpus: int | None
    packages: dict[str, str | None]


def environment() -> dict[str, Any]:
    """Those of this process, as the plain JSON values of an `Environment`."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "packages": {name: _version(name) for name in CORE_PACKAGES},
    }


def hash_json(value: object) -> str:
    """SHA-256 (64 hex digits) of a JSON value, the same whatever the order of its keys.

    Raises:
        TypeError: the value holds something JSON cannot write.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def hash_weights(source: Path | Mapping[str, Any], names: Sequence[str] | None = None) -> str:
    """SHA-256 (64 hex digits) of a model's weights.

    More than `LARGE` bytes count with a digest of each file or tensor, made side by side, and kept of files (see
    `file_digests`); fewer with their contents in one pass.

    Args:
        source: a folder with *.safetensors files (names and contents are hashed), or a state dict, name ->
            tensor (names, dtypes, shapes and bytes are hashed). The two give different digests.
        names: of the folder's files, those that count; None for all *.safetensors.

    Raises:
        ResultsError: the folder holds no safetensors file.
    """
    digest = hashlib.sha256()
    if isinstance(source, Path):
        files = sorted(source.glob("*.safetensors")) if names is None else [source / name for name in sorted(names)]
        if not files:
            raise ResultsError(f"no *.safetensors file in {source}; give the folder that holds the weights")
        sizes = [file.stat().st_size for file in files]
        large = sum(sizes) > LARGE
        digests = file_digests(files) if large else []
        for place, (file, size) in enumerate(zip(files, sizes, strict=True)):
            digest.update(f"{file.name}\0{size}\0".encode())
            if large:
                digest.update(digests[place].encode())
                continue
            with file.open("rb") as stream:
                while chunk := stream.read(CHUNK):
                    digest.update(chunk)
        return digest.hexdigest()

    tensors = [source[name].detach() for name in sorted(source)]
    large = sum(tensor.nbytes for tensor in tensors) > LARGE
    digests = tensor_digests(tensors) if large else []
    for place, (name, tensor) in enumerate(zip(sorted(source), tensors, strict=True)):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(digests[place].encode() if large else held_bytes(tensor))
    return digest.hexdigest()


@contextmanager
def usable(path: Path) -> Generator[None]:
    """What the system refuses about a path inside the block, as one line."""
    try:
        yield
    except OSError as error:
        raise ResultsError(
            f"'{path}' cannot be used ({error.strerror or error}); make room or give the rights, or name another "
            "--out folder"
        ) from error


def write_atomic(path: Path, data: bytes) -> Path:
    """Write `data` to `path` so that a reader meets the old file or the whole new one; returns `path`.

    Raises:
        ResultsError: the folder is missing, full or cannot be written; nothing is left behind.
    """
    with usable(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        part = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            part.chmod(0o666 & ~_umask())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    return path


def share_file(source: Path, target: Path) -> None:
    """Have a file under another name too, as a link where the disk allows, else as a copy: no file is changed in place.

    Raises:
        OSError: the system refuses.
    """
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        part.unlink()
        try:
            os.link(source, part)
        except OSError:
            shutil.copyfile(source, part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def clear_parts(folder: Path) -> None:
    """Remove what killed runs left of files half written, in a folder that no other process writes.

    Folders of shards, which jobs of a cluster may be writing, are left alone. Where the folder cannot be written the
    files stay, and harm nobody: it may be shown from there all the same.
    """
    for part in folder.rglob(".*.part"):
        if SHARDS not in part.relative_to(folder).parts:
            with suppress(OSError):
                part.unlink()


def read_json(path: Path) -> Any:
    """The value of a JSON file; None where it is missing, a folder, or no JSON that can be read whole.

    On NFS, a file that another node replaces between its opening and its reading is stale: the new one is read.

    Raises:
        ResultsError: the system refuses to read it.
    """
    with usable(path):
        for left in reversed(range(STALE)):
            try:
                return json.loads(path.read_bytes())
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
                return None
            except OSError as error:
                if error.errno != errno.ESTALE or not left:
                    raise
    return None


def write_json(path: Path, value: object) -> Path:
    """Write a JSON value, indented and atomically; returns `path`.

    Raises:
        TypeError: the value holds something JSON cannot write; no file is touched.
        ValueError: the value holds NaN or infinity; no file is touched.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    return write_atomic(path, (text + "\n").encode("utf-8"))


def _umask() -> int:
    """The process's file mode mask, which Python can only read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
