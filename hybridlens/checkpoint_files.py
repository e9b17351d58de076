"""A checkpoint's files, looked at before any library opens one of them.

JSON is read here first, and an index of shards is believed only where every file that it names is a plain
``*.safetensors`` name inside the checkpoint: a library that opens whatever an index names can be made to read any file,
or to unpickle one.

How it fails: `CheckpointError` names the file and what is wrong with it; `opening` turns whatever a library raises on
a checkpoint into one such line, the original behind it.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from hybridlens.errors import CheckpointError, HybridLensError

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")

LARGEST = 1 << 28
"""Bytes of the largest JSON file that is read; the indices of the largest checkpoints have some 10 MB."""

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_OBJECTS = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


class CheckpointFiles:
    """The files of a folder, or of a hub id, which are fetched, or taken from the cache, as they are asked for."""

    def __init__(self, source: str | Path) -> None:
        self.source = str(source)
        self.local = Path(self.source).is_dir()

    def path(self, file: str) -> Path | None:
        """Where a file is; None where the checkpoint has no such file.

        Raises:
            CheckpointError: it is there and cannot be fetched.
        """
        if self.local:
            path = Path(self.source) / file
            return path if path.is_file() else None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(hf_hub_download(self.source, file))
        except LocalEntryNotFoundError as error:
            if file in (INDEX, SINGLE, CONFIG):  # which of them a checkpoint has is found by asking
                return None
            raise CheckpointError(f"'{self.source}': {file} cannot be fetched: {one_line(error)}") from error
        except EntryNotFoundError:
            return None
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise CheckpointError(f"'{self.source}': {file} cannot be fetched: {one_line(error)}") from error

    def json(self, file: str) -> dict[str, Any] | None:
        """What a JSON file holds; None where there is no such file.

        Raises:
            CheckpointError: it is no JSON, or anything but an object with names.
        """
        path = self.path(file)
        if path is None:
            if self.local and (Path(self.source) / file).exists():
                raise CheckpointError(f"'{self.source}': {file} is no file; fetch the checkpoint again")
            return None
        try:
            size = path.stat().st_size
            if size > LARGEST:
                raise CheckpointError(f"'{self.source}': {file} has {size} bytes, at most {LARGEST} are read")
            held: object = json.loads(path.read_text(encoding="utf-8"))
        except RecursionError as error:
            raise CheckpointError(f"'{self.source}': {file} is damaged (nested too deep); fetch it again") from error
        except (OSError, ValueError) as error:
            if isinstance(error, HybridLensError):
                raise
            raise CheckpointError(f"'{self.source}': {file} is damaged ({one_line(error)}); fetch it again") from error
        if not isinstance(held, dict):
            kind = "null" if held is None else type(held).__name__
            raise CheckpointError(f"'{self.source}': {file} is damaged (it holds a {kind}, no object); fetch it again")
        return cast(dict[str, Any], held)

    def shards(self) -> dict[str, str] | None:
        """The file of each tensor, as the index says; None for a checkpoint in one file, `SINGLE`.

        Where both are there the single file counts, as it does for transformers.

        Raises:
            CheckpointError: there are no safetensors files, or the index is damaged, or names a file that is not one
                of them.
        """
        if self.path(SINGLE) is not None:
            return None
        index = self.json(INDEX)
        if index is None:
            raise CheckpointError(f"'{self.source}' {self._instead()}")
        listed: object = index.get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise CheckpointError(f"'{self.source}': {INDEX} is damaged (no weight_map to files); fetch it again")
        found = cast(Mapping[str, object], listed)
        for name, file in found.items():
            if not isinstance(file, str) or not _plain(file):
                raise CheckpointError(
                    f"'{self.source}': {INDEX} maps {name} to {file!r:.80}, expected the plain name of a *.safetensors "
                    "file beside it; nothing was opened"
                )
        return cast(dict[str, str], dict(found))

    def check_beside(self) -> None:
        """What lies in a folder beside the weights and would be opened with them.

        Raises:
            CheckpointError: an adapter, which would be left out or put in without a word; a checkpoint in pickled
                parts; a damaged file of the tokenizer or of generation.
        """
        if not self.local:
            return
        folder = Path(self.source)
        if (folder / "adapter_config.json").exists():
            raise CheckpointError(
                f"'{self.source}' holds an adapter (adapter_config.json); merge it into the weights and give the "
                "merged model, or remove it to open the model without it"
            )
        parts = [path.name for path in folder.iterdir() if path.name == ".metadata" or path.suffix == ".distcp"]
        if parts:
            raise CheckpointError(
                f"'{self.source}' holds pickled parts of a distributed checkpoint ({min(parts)}), which can run code "
                "when they are read; convert them to safetensors first"
            )
        for file in _OBJECTS:
            self.json(file)

    def _instead(self) -> str:
        """What a checkpoint without safetensors files holds."""
        if not self.local:
            return f"has no {SINGLE} and no {INDEX} that can be fetched; safetensors are all that is read"
        folder = Path(self.source)
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if pickles:
            return (
                f"holds pickled weights ({pickles[0]}), which can run code when they are read; "
                "convert them to safetensors first"
            )
        return f"holds no weights, expected {SINGLE} or its shards with {INDEX}"


@contextmanager
def opening(what: str) -> Generator[None]:
    """Turn whatever is raised inside the block into one `CheckpointError`: "`what`: the reason".

    Errors of hybridlens pass through. Every kind is meant, since a hostile file makes the libraries raise any.
    """
    try:
        yield
    except HybridLensError:
        raise
    except Exception as error:
        raise CheckpointError(f"{what}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """An error's message on one line, or its kind where it has none."""
    text = " ".join(str(error).split())
    if not text:
        return type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}…"


def _plain(file: str) -> bool:
    """Whether this is the name of a safetensors file, and no path."""
    return file.endswith(".safetensors") and not any(mark in file for mark in ("/", "\\", "\0", ":")) and file[0] != "."
