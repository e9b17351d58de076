"""A run of training on disk: its settings, the checkpoints that it kept, and how well it answered while it trained.

A work folder of ``python -m hybridlens.tiny.train NAME --keep-every N`` holds ``step-00100``, … as Hugging Face
folders, ``log.jsonl`` with a line a step, and ``final`` at the end, which stands for its step where no other folder
does. A run may go on while it is read: a folder without its ``training.json``, which is written last, is not finished
and is left for the next time, and so is a last line of the log that is only half there.

How it fails: `InputError` with one line for a folder that holds no checkpoint, for checkpoints of several runs in one
folder, and for a log that is damaged.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from analyses.experiment.options.curves import run_name
from hybridlens.checkpoint_files import CheckpointFiles
from hybridlens.display import Displayed, many
from hybridlens.errors import InputError
from hybridlens.results import hash_json, hash_weights

ACCOUNT, LOG, FINAL = "training.json", "log.jsonl", "final"

RECENT = 20
"""Steps whose accuracy on answers is averaged: each is measured on documents that no other step has."""

_KEPT = re.compile(r"step-\d{5,9}")
_SAME = ("name", "seed", "steps")


class Checkpoint(NamedTuple):
    """A model of a run."""

    step: int
    folder: Path

    @property
    def digest(self) -> str:
        """Of weights and configuration, 64 hex digits.

        Raises:
            CheckpointError, ResultsError: they cannot be read.
        """
        files = CheckpointFiles(self.folder)
        return hash_json([hash_weights(self.folder, files.weights()), files.json("config.json")])


class Logged(NamedTuple):
    """A line of the log."""

    stage: int
    """Of the curriculum, from 0."""
    accuracy: float
    """Share of answer tokens that were foretold, 0 to 1."""


@dataclass(frozen=True)
class Training(Displayed):
    """A run of training.

    Attributes:
        name: what results call it.
        folder: its work folder.
        architecture: which tiny model it trains.
        seed: of the run.
        steps: that it is to go.
        checkpoints: those there, by step.
        log: step -> what was logged.
    """

    name: str
    folder: Path
    architecture: str
    seed: int
    steps: int
    checkpoints: tuple[Checkpoint, ...]
    log: dict[int, Logged]

    def summary(self) -> str:
        """What was trained, how far, and how many checkpoints there are."""
        last = self.checkpoints[-1].step
        kept = many(len(self.checkpoints), "checkpoint")
        return f"{self.name}: {self.architecture}, seed {self.seed}, {kept} up to step {last} of {self.steps}"

    def recent(self, step: int) -> list[float]:
        """Accuracy on answers at each of the last `RECENT` steps up to a step, of its level of the curriculum only.

        Levels differ in how hard their documents are. Nothing where the step was not logged.
        """
        at = self.log.get(step)
        if at is None:
            return []
        logged = (self.log.get(one) for one in range(max(1, step - RECENT + 1), step + 1))
        return [one.accuracy for one in logged if one is not None and one.stage == at.stage]


def read_training(folder: str) -> Training:
    """The run of a work folder.

    Raises:
        InputError: see the module.
    """
    path, said = Path(folder), "the work folder of python -m hybridlens.tiny.train NAME --keep-every N"
    if not path.is_dir():
        raise InputError(f"{folder} is no folder; give {said}")
    found: dict[int, tuple[Path, dict[str, Any]]] = {}
    kept = sorted(one for one in path.iterdir() if _KEPT.fullmatch(one.name))
    for one in (path / FINAL, *kept):  # a kept one takes the place of the final one of its step
        if (one / ACCOUNT).is_file():
            account = _account(one / ACCOUNT)
            found[account["steps_done"]] = (one, account)
            if one in kept and int(one.name.removeprefix("step-")) != account["steps_done"]:
                raise InputError(f"{one} says that it was kept at step {account['steps_done']}; name it as it was")
    if not found:
        raise InputError(f"{folder} holds no finished checkpoint (step-00100, …); give {said}")
    settings = {tuple(account[name] for name in _SAME): one for one, account in found.values()}
    if len(settings) > 1:
        (first, here), (second, there), *_ = settings.items()
        both = f"{here.name} of {_settings(first)}, and {there.name} of {_settings(second)}"
        raise InputError(f"{folder} holds checkpoints of several runs: {both}; give a folder of one run")
    (name, seed, steps) = next(iter(settings))
    checkpoints = tuple(Checkpoint(step, found[step][0]) for step in sorted(found))
    return Training(run_name(folder), path, name, seed, steps, checkpoints, _log(path / LOG))


def _settings(values: tuple[Any, ...]) -> str:
    return ", ".join(f"{name} {value}" for name, value in zip(_SAME, values, strict=True))


def _account(path: Path) -> dict[str, Any]:
    """What a checkpoint says of its run."""
    try:
        held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {"name": str(held["name"]), **{key: int(held[key]) for key in ("seed", "steps", "steps_done")}}
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = f"{path} cannot be read ({type(error).__name__}: {error})"
        raise InputError(f"{said}; keep the checkpoint anew, or take it away") from error


def _log(path: Path) -> dict[int, Logged]:
    """Step -> what was logged; nothing where there is no log."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    found: dict[int, Logged] = {}
    for number, line in enumerate(lines, 1):
        if number == len(lines) and not line.endswith("\n"):
            break  # it is being written
        try:
            held: dict[str, Any] = json.loads(line)
            found[int(held["step"])] = Logged(int(held["stage"]), float(held["accuracy"]))
        except (ValueError, KeyError, TypeError) as error:
            said = f"{path} is damaged in line {number} ({type(error).__name__}: {error})"
            raise InputError(f"{said}; mend it, or take the log away to go without") from error
    return found
