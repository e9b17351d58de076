"""A checkpoint's files, looked at before any library opens one of them.

JSON is read here first, and an index of shards is believed only where every file that it names is a plain
``*.safetensors`` name inside the checkpoint: a library that opens whatever an index names can be made to read any file,
or to unpickle one.

How it fails: `CheckpointError` names the file and what is wrong with it; `opening` turns whatever a library raises on
a checkpoint into one such line, the original behind it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from hybridlens.errors import CachedWarning, CheckpointError, HybridLensError
from hybridlens.hub import HubSnapshot, snapshot
from hybridlens.hub_words import one_line

GENERATION = "generation_config.json"
GGUF = ".gguf"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
TOKENIZER = "tokenizer_config.json"
VOCABULARIES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
    "tiktoken.model", "tekken.json",
)  # fmt: skip
"""Files of which a tokenizer has one, as transformers looks for them."""

LARGEST = 1 << 28
"""Bytes of the largest JSON file that is read; the indices of the largest checkpoints have some 10 MB."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_OBJECTS = (GENERATION, TOKENIZER, "special_tokens_map.json", "added_tokens.json")
_BESIDE = (*_OBJECTS, *VOCABULARIES, "merges.txt", "chat_template.jinja", "chat_template.json")
_TEMPLATES = "additional_chat_templates/"
_POINTER = b"version https://git-lfs.github.com/spec/"


class CheckpointFiles:
    """The files of a folder, or of a hub id, which are fetched, or taken from the cache, as they are asked for.

    Args:
        source: a folder or a hub id.
        revision: of a hub id: a branch, a tag or a commit; None for its main branch.

    Raises:
        CheckpointError: the hub does not have it, or cannot be asked and nothing is in the cache; or a revision of a
            folder.
    """

    def __init__(self, source: str | Path, revision: str | None = None) -> None:
        self.source = str(source)
        self.hub: HubSnapshot | None = None
        self.gguf: str | None = None
        """The one file that is the checkpoint, where it is one in GGUF."""
        given = Path(self.source)
        if given.suffix == GGUF and given.is_file():
            self.gguf = given.name
            if revision is not None:
                raise CheckpointError(
                    f"revision {revision!r} given for the file '{self.source}'; only hub ids have any"
                )
        elif not given.is_dir():
            self.hub = snapshot(self.source, revision)
        elif revision is not None:
            raise CheckpointError(f"revision {revision!r} given for the folder '{self.source}'; only hub ids have any")
        self.folder = self.hub.folder if self.hub is not None else given if self.gguf is None else given.parent

    @classmethod
    def of(cls, source: str | Path | CheckpointFiles) -> CheckpointFiles:
        """Those of a folder or a hub id; what has been opened is given back."""
        return source if isinstance(source, CheckpointFiles) else cls(source)

    @property
    def commit(self) -> str | None:
        """Of a hub id."""
        return None if self.hub is None else self.hub.commit

    def names(self) -> tuple[str, ...]:
        """The files at the top of the folder, or all of the hub id's; of a GGUF file that one.

        Raises:
            CheckpointError: the folder cannot be read.
        """
        if self.gguf is not None:
            return (self.gguf,)
        if self.hub is not None:
            return self.hub.names()
        with opening(f"'{self.source}' cannot be read"):
            return tuple(sorted(path.name for path in self.folder.iterdir()))

    def at_hand(self, files: Iterable[str]) -> bool:
        """Whether nothing of these has to be fetched."""
        return all((self.folder / file).is_file() for file in files)

    def path(self, file: str) -> Path | None:
        """Where a file is; None where the checkpoint has no such file.

        Raises:
            CheckpointError: it is there and cannot be fetched or read, or is a Git LFS pointer.
        """
        path = self.folder / file
        if self.gguf not in (None, file):
            return None
        if self.hub is not None:
            self.hub.fetch([file])
        _check_link(path, self.source)
        if not path.is_file():
            return None
        with opening(f"'{self.source}': {file} cannot be read"), path.open("rb") as stream:
            if stream.read(len(_POINTER)) == _POINTER:
                raise CheckpointError(
                    f"'{self.source}': {file} is a Git LFS pointer, not the file itself; run `git lfs pull` there, or "
                    "fetch it with `hf download`"
                )
        return path

    def fetch_beside(self) -> None:
        """Of a hub id, have at hand what a model is opened with besides its weights: tokenizer and generation.

        Raises:
            CheckpointError: it cannot be fetched.
        """
        if self.hub is None:
            return
        templates = [name for name in self.names() if name.startswith(_TEMPLATES) and name.endswith(".jinja")]
        self.hub.fetch([*_BESIDE, *templates])
        unknown = [file for file in (GENERATION, VOCABULARIES[0]) if not self.at_hand([file])]
        if self.hub.sizes is None and unknown:
            absent = " and no ".join(unknown)
            said = f"'{self.source}': the cache holds no {absent}; should there be any, {self.hub.refused}"
            warnings.warn(said, CachedWarning, stacklevel=4)

    def fetch_weights(self) -> None:
        """Of a hub id, have all of its weights at hand; none is fetched where the index names one that is missing.

        Raises:
            CheckpointError: they cannot be fetched, or see `shards`.
        """
        if self.hub is not None:
            files = self.weights()
            if self.hub.sizes is not None and (lost := sorted(set(files) - set(self.hub.sizes))):
                raise CheckpointError(f"'{self.source}' lacks its shard {lost[0]}, which {INDEX} names; tell its owner")
            self.hub.fetch(files)

    def weights(self) -> list[str]:
        """The files that hold the weights.

        Raises:
            CheckpointError: see `shards`.
        """
        if self.gguf is not None:
            return [self.gguf]
        shards = self.shards()
        return [SINGLE] if shards is None else sorted(set(shards.values()))

    def json(self, file: str) -> dict[str, Any] | None:
        """What a JSON file holds; None where there is no such file.

        Raises:
            CheckpointError: it is no JSON, or anything but an object with names.
        """
        path = self.path(file)
        if path is None:
            if self.gguf is None and (self.folder / file).exists():
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
        if self.gguf is not None:
            raise CheckpointError(
                f"'{self.source}' is a GGUF file, whose weights are read with the model: open it with hl.load, whose "
                "lens has them; load_weights and circuits need the safetensors of the model that it was made of"
            )
        if SINGLE in self.names():
            return None
        index = self.json(INDEX)
        if index is None:
            raise CheckpointError(f"'{self.source}' {self.instead()}")
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
            CheckpointError: a checkpoint in pickled parts; a damaged file of the tokenizer or of generation.
        """
        if self.gguf is not None:
            return
        names = self.names()
        parts = [name for name in names if name == ".metadata" or name.endswith(".distcp")]
        if parts:
            raise CheckpointError(
                f"'{self.source}' holds pickled parts of a distributed checkpoint ({min(parts)}), which can run code "
                "when they are read; convert them to safetensors first"
            )
        for file in _BESIDE:
            if (self.folder / file).exists() or (self.folder / file).is_symlink():
                _ = self.json(file) if file in _OBJECTS else self.path(file)

    def instead(self) -> str:
        """What a checkpoint without safetensors files holds."""
        names = self.names()
        pickles = sorted(name for name in names if name.endswith(_PICKLES))
        if pickles:
            return (
                f"holds pickled weights ({pickles[0]}), which can run code when they are read; convert them to "
                "safetensors first: transformers' from_pretrained and save_pretrained do"
                + ("" if self.hub is None else ", and many have a pull request that does: revision='refs/pr/1'")
            )
        if made := sorted(name for name in names if name.endswith(".gguf")):
            here = f"'{Path(self.source) / made[0]}'" if self.hub is None else "that file, fetched with `hf download`"
            return f"holds weights in GGUF alone ({made[0]}); give the file itself: hl.load of {here}"
        if self.hub is not None and self.hub.sizes is None:
            return f"has no weights in the cache, and {self.hub.refused}, then run this again"
        return f"holds no weights, expected {SINGLE} or its shards with {INDEX}"


def is_here(name: str | Path) -> bool:
    """Whether this is a folder, or a GGUF file."""
    try:
        return Path(name).is_dir() or (Path(name).suffix == GGUF and Path(name).is_file())
    except (OSError, ValueError):  # too long for a name, or with a zero in it
        return False


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


def _check_link(path: Path, source: str) -> None:
    """Name a symbolic link that leads nowhere: the library would say that there is no such file."""
    if path.is_symlink() and not path.exists():
        raise CheckpointError(
            f"'{source}': {path.name} is a link to '{path.readlink()}', which is not there; fetch the checkpoint "
            "again, or copy it with what its links lead to (cp -L)"
        )


def _plain(file: str) -> bool:
    """Whether this is the name of a safetensors file, and no path."""
    return file.endswith(".safetensors") and not any(mark in file for mark in ("/", "\\", "\0", ":")) and file[0] != "."
