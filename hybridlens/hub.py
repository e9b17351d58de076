"""A model of the hub: which commit a revision is, what files that has, and those of them that are needed.

The hub is asked once, with a short time limit, before anything is fetched; from then on everything is of the commit
that it named. Its files lie in the cache that the hub's own client keeps, and are opened there as those of any folder.
The commit of a revision and the list of files are kept there too, so that without a connection the same is known.

How it fails: `CheckpointError` in one line that says what to do (`hub_words`). Where the hub does not answer, or
refuses, and the cache holds a commit of that revision, that one is opened, with one line of `CachedWarning`.
"""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from logging import CRITICAL
from pathlib import Path
from typing import Any, NamedTuple

from hybridlens.errors import CachedWarning, CheckpointError
from hybridlens.hub_words import away, one_line, refusal
from hybridlens.progress import sized

MAIN = "main"
CONFIG = "config.json"
SECONDS = 5.0
"""That the hub has to answer in, unless HF_HUB_ETAG_TIMEOUT says otherwise."""
AT_ONCE = 4
"""Files that are fetched side by side."""

_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"[\w][\w.+-]*(/[\w][\w.+-]*)*", re.ASCII)


def is_hub_id(text: str) -> bool:
    """Whether a name has the form of a hub id: owner/name."""
    return bool(_ID.fullmatch(text)) and len(text) <= 96 and "--" not in text and ".." not in text


class HubSnapshot(NamedTuple):
    """A commit of a repository of the hub, and where its files are."""

    repo: str
    commit: str
    folder: Path
    """In the cache."""
    sizes: Mapping[str, int] | None
    """Bytes of each of its files; None where it was never asked and cannot be now."""
    refused: str = ""
    """Why nothing more can be fetched; empty where it can."""

    def names(self) -> tuple[str, ...]:
        """Its files; those in the cache where no more is known."""
        if self.sizes is not None:
            return tuple(self.sizes)
        return tuple(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())

    def fetch(self, files: Sequence[str]) -> None:
        """Have those of the files at hand that there are, with a bar of bytes.

        Raises:
            CheckpointError: one is there and cannot be fetched.
        """
        sizes = self.sizes or {}
        wanted = [file for file in dict.fromkeys(files) if file in sizes and not (self.folder / file).is_file()]
        if not wanted:
            return
        if self.refused:
            raise CheckpointError(
                f"'{self.repo}': {_few(wanted)} not in the cache, and {self.refused}, then run this again"
            )
        with sized(sum(sizes[file] for file in wanted), f"fetching {self.repo}") as advance:
            try:
                _fetched(self, wanted, advance)
            except Exception as error:
                raise CheckpointError(refusal(error, self.repo, self.commit)) from error


def snapshot(repo: str, revision: str | None = None) -> HubSnapshot:
    """The commit that a revision is now, its configuration fetched.

    Args:
        repo: owner/name.
        revision: a branch, a tag, or a commit; None for the main branch.

    Raises:
        CheckpointError: see the module.
    """
    if not is_hub_id(repo):
        raise CheckpointError(f"'{one_line(repo)}' is neither a folder nor a hub id (owner/name)")
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise CheckpointError(f"revision {one_line(repr(revision))} given, expected a branch, a tag or a commit")
    from huggingface_hub import HfApi

    wait = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or SECONDS)
    with _quiet():
        try:
            commit = HfApi().model_info(repo, revision=revision, timeout=wait).sha
            if commit is None or not _COMMIT.fullmatch(commit):
                raise CheckpointError(f"the hub names no commit of '{repo}'; check HF_ENDPOINT")
            return _asked(repo, revision, commit)
        except CheckpointError:
            raise
        except Exception as error:
            return _cached(repo, revision, error)


def _asked(repo: str, revision: str | None, commit: str) -> HubSnapshot:
    """A commit that the hub has just named: its files listed, and what the revision is noted for times without it."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download

    mute = _counting(lambda _: None)
    folder = Path(snapshot_download(repo, revision=commit, allow_patterns=[CONFIG], tqdm_class=mute))
    if revision != commit:
        ref = folder.parent.parent / "refs" / (revision or MAIN)
        if not ref.is_file() or ref.read_text() != commit:
            ref.parent.mkdir(parents=True, exist_ok=True)
            part = ref.with_name(f"{ref.name}.{os.getpid()}.part")
            part.write_text(commit)
            part.replace(ref)
    listed = get_cached_repo_tree(repo, revision=commit)
    return HubSnapshot(repo, commit, folder, {file.path: file.size for file in listed})


def _cached(repo: str, revision: str | None, error: Exception) -> HubSnapshot:
    """The commit that the cache holds of a revision, where the hub gives none.

    Raises:
        CheckpointError: it holds none, or the hub says that there is no such revision.
    """
    from huggingface_hub import constants, get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, OfflineModeIsEnabled, RevisionNotFoundError
    from huggingface_hub.file_download import repo_folder_name

    why = refusal(error, repo, revision)
    if isinstance(error, RevisionNotFoundError):
        raise CheckpointError(why) from error
    home = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    ref = home / "refs" / (revision or MAIN)
    commit = revision if revision and _COMMIT.fullmatch(revision) else ref.read_text().strip() if ref.is_file() else ""
    folder = home / "snapshots" / commit
    if not commit or not folder.is_dir():
        held = sorted(path.name for path in (home / "snapshots").glob("*"))
        others = f"; of other revisions it holds {_few(held, '')}" if held else ""
        missing = f"'{repo}'" + (f" at revision {revision}" if revision else "")
        if not away(error):
            raise CheckpointError(why) from error
        found = f"the cache holds nothing of {missing}{others}"
        raise CheckpointError(f"{found}, and {why}, then run this again") from error
    try:
        sizes = {file.path: file.size for file in get_cached_repo_tree(repo, revision=commit)}
    except CachedRepoTreeNotFoundError:
        sizes = None
    if not isinstance(error, OfflineModeIsEnabled):  # who is offline by choice knows it
        said = f"{why}; the cache's copy of '{repo}' is opened instead, commit {commit[:12]}"
        warnings.warn(said, CachedWarning, stacklevel=5)
    return HubSnapshot(repo, commit, folder, sizes, why)


def _fetched(found: HubSnapshot, files: Sequence[str], advance: Callable[[int], None]) -> None:
    """Fetch files side by side; what stops one, or Ctrl-C, stops all within a few seconds."""
    from huggingface_hub import hf_hub_download

    stopped = threading.Event()

    def count(more: int) -> None:
        if stopped.is_set():
            raise InterruptedError("stopped")
        advance(more)

    counting = _counting(count)
    with _quiet(), ThreadPoolExecutor(AT_ONCE) as pool:
        waiting = [
            pool.submit(hf_hub_download, found.repo, file, revision=found.commit, tqdm_class=counting) for file in files
        ]
        try:
            for one in waiting:
                one.result()
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _counting(count: Callable[[int], None]) -> Any:
    """What the client takes for a bar: it tells how many more bytes there are, and shows nothing."""
    from tqdm import tqdm

    bar: Any = tqdm

    class Counting(bar):
        """See `_counting`."""

        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, **{**options, "disable": True})
            self.update(options.get("initial") or 0)

        def update(self, n: float | None = 1) -> None:
            """More bytes."""
            count(int(n or 0))

        def update_transfer(self, n: float | None = 1) -> None:
            """Of the same bytes, on their way; counted when they are there."""

        def set_transfer_postfix_str(self, *_: Any) -> None:
            """Likewise."""

    return Counting


@contextmanager
def _quiet() -> Generator[None]:
    """Without the client's own lines: what has to be said is said by us."""
    from huggingface_hub import logging

    level = logging.get_verbosity()
    logging.set_verbosity(CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _few(names: Sequence[str], verb: str | None = None) -> str:
    """Up to three names, the others counted, with the verb that goes with them."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    verb = (" is" if len(names) == 1 else " are") if verb is None else verb
    return f"{', '.join(names[:3])}{more}{verb}"
