"""Tasks of lm-eval by name: the local ones, GLUE and MMLU, and everything else that it has.

Reading every task that lm-eval has takes it a quarter of a minute, so names are first looked for among the local
tasks and an own folder, then among GLUE and MMLU too, and in the whole only then. What lm-eval prints (its log,
progress bars, warnings about models made beforehand) is kept back.

How it fails: an unknown name raises `UnknownNameError` with the close ones, before any model or data is touched;
data that cannot be had (most tasks download theirs once) raises `InputError`. So does a missing lm-eval.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import random
from collections.abc import Generator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from analyses.study.benchmarks.local_tasks import FOLDER
from hybridlens.errors import InputError, UnknownNameError, closest

_LOGGERS = ("lm_eval", "datasets", "evaluate", "fsspec", "huggingface_hub")


class Loaded(NamedTuple):
    """Tasks with their data."""

    tasks: Mapping[str, Any]
    """Name -> lm-eval's task, every one that is run, in order."""
    groups: Mapping[str, Any]
    """Name -> lm-eval's group: a set of tasks with a score of its own."""
    sets: Mapping[str, tuple[str, ...]]
    """What was asked for that is neither: a tag, such as "glue", -> its tasks."""


def installed() -> bool:
    """Whether lm-eval is there."""
    return importlib.util.find_spec("lm_eval") is not None


def require() -> None:
    """Refuse to go on without lm-eval.

    Raises:
        InputError: naming the extra to install.
    """
    if not installed():
        raise InputError("the benchmarks need lm-eval, which is not installed; install hybridlens[benchmarks]")


def check_tasks(names: Sequence[str], include: Path | None = None) -> Any:
    """Refuse tasks that do not exist. Loads no model and no data.

    Args:
        names: tasks, groups or tags as lm-eval calls them.
        include: a folder with tasks of one's own.

    Returns:
        lm-eval's task manager with an index that holds all of them.

    Raises:
        UnknownNameError: a name that lm-eval does not have, with the close ones.
        InputError: no name, one given twice, a folder without tasks, or lm-eval is not installed.
    """
    require()
    if not names:
        raise InputError("no task given, expected at least one name, such as tiny_retrieval, glue or mmlu")
    twice = [name for name in names if list(names).count(name) > 1]
    if twice:
        raise InputError(f"task {twice[0]!r} given more than once; give each task once")
    if include is not None and not any(include.glob("**/*.yaml")):
        raise InputError(f"{include} holds no task (*.yaml), expected a folder with at least one")
    with quiet():
        for part in ("local", "paper"):
            manager = _index(part, include)
            if all(_complete(manager.task_index, name) for name in names):
                return manager
        manager = _index("all", include)
    for name in names:
        if name not in manager.task_index:
            near = closest(name, manager.all_tasks)
            raise UnknownNameError(f"lm-eval has no task {name!r}{near}; `lm-eval ls tasks` lists all")
    return manager


def load_tasks(names: Sequence[str], include: Path | None = None) -> Loaded:
    """The tasks with their data, downloaded where they are not at hand.

    Raises:
        UnknownNameError: see `check_tasks`.
        InputError: data that cannot be loaded, or a task that is part of two of the names.
    """
    manager = check_tasks(names, include)
    tasks: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    sets: dict[str, tuple[str, ...]] = {}
    for name in names:
        try:
            with quiet(), seeded():
                found = manager.load([name])
        except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
            raise InputError(
                f"task {name!r} cannot be loaded ({_first_line(error)}); its data are downloaded once from the "
                "Hugging Face hub, so connect and unset HF_HUB_OFFLINE and HF_DATASETS_OFFLINE, or leave it out"
            ) from error
        both = next((task for task in found["tasks"] if task in tasks), None)
        if both is not None:
            raise InputError(f"task {both!r} is part of two of {', '.join(names)}; leave one of them out")
        tasks |= found["tasks"]
        groups |= found["groups"]
        if name not in found["tasks"] and name not in found["groups"]:
            sets[name] = tuple(found["tasks"])
    return Loaded(tasks, groups, sets)


@contextlib.contextmanager
def quiet(wanted: bool = True) -> Generator[None]:
    """Keep what lm-eval logs and prints from the terminal; errors are raised as ever.

    Args:
        wanted: False to let everything through.
    """
    if not wanted:
        yield
        return
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def seeded() -> Generator[None]:
    """Python's and NumPy's global generators as lm-eval seeds them, put back afterwards."""
    import numpy as np
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        random.seed(DEFAULT_RANDOM_SEED)
        np.random.seed(DEFAULT_OTHER_SEED)  # noqa: NPY002
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


@lru_cache(maxsize=8)
def _index(part: str, include: Path | None) -> Any:
    """A task manager over a part of the tasks: "local", "paper" (GLUE and MMLU too) or "all"."""
    import lm_eval.tasks as library

    here = Path(str(library.__file__)).parent
    folders = [here / "glue", here / "mmlu" / "default"] if part == "paper" else []
    folders += [FOLDER] if include is None else [FOLDER, include]
    return library.TaskManager(include_path=[str(folder) for folder in folders], include_defaults=part == "all")


def _complete(index: Mapping[str, Any], name: str) -> bool:
    """Whether an index holds a name and, of a group, all that it is made of."""
    entry = index.get(name)
    if entry is None:
        return False
    members = (entry.cfg or {}).get("task")
    if not isinstance(members, list):
        return True
    parts = [m if isinstance(m, str) else m.get("task", m.get("group")) for m in members]
    return all(not isinstance(part, str) or part == name or _complete(index, part) for part in parts)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".split("\n")[0][:200]
