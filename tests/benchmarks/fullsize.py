"""At full size, in bfloat16, against the library: ``python -m tests.benchmarks.fullsize [--only …] [--folder DIR]``.

RecurrentGemma-2B, and one period of Jamba-Mini, with random weights (`fullsize_models`), are written to disk once.
Then, each step and each side in a process of its own, watched from outside (`watching`):

* ``load``: seconds, and what is held;
* ``500``, ``4096``: an answer of 40 tokens after 500, of 10 after 4,096; ours with half of the heads throughout too;
* ``fig2``: figure 2 on two prompts × three k, both versions: the command, with hashing and report and its bar, against
  the library's `generate`, a cell at a time, with plain hooks where heads are silenced (`plain`);
* ``circuits``: the command, nothing of the files in memory before: what is read of the disk, against the files' size.

Seconds are those of the clock, and in brackets those of processors, which other work on the machine changes less.
What a step gave is kept beside the checkpoints and not measured again without ``--again``. `longest silence` is how
long a command's terminal showed nothing new. The library has no counterpart to circuits.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from hybridlens.results import read_cells
from tests.benchmarks.fullsize_models import MODELS, fields_of, size_of, written
from tests.benchmarks.fullsize_steps import DEPTHS, NEW, ks
from tests.benchmarks.measure import machine, table
from tests.benchmarks.sweep import BOUNDARY
from tests.benchmarks.watching import GB, Watched, forgotten, watched

STEPS = ("load", "500", "4096", "fig2", "circuits")
SIDES = ("ours", "theirs")
HEAD = ("model", "step", "ours, s (of processors)", "theirs, s", "times faster", "ours, GB held", "theirs, GB held",
        "what else")  # fmt: skip
SHARE = 0.6
"""Of the memory that is free, what a checkpoint may be, as experts are chosen."""


class Place(NamedTuple):
    """Where a model's measurements happen."""

    name: str
    folder: Path
    """The checkpoint's."""
    results: Path
    n_heads: int
    length: int
    """Tokens of figure 2's prompts."""

    def kept(self, step: str, side: str) -> Path:
        """What a side of a step gave."""
        return self.results / f"{self.name}-{step}-{side}.json"


def child(side: str, place: Place, *more: str) -> Watched:
    """A side of a step, in its process."""
    return watched([sys.executable, "-m", "tests.benchmarks.fullsize_steps", side, str(place.folder), *more])


def answered(place: Place, side: str, step: str) -> dict[str, Any]:
    """Loading, and one answer where the step has one."""
    more = () if step == "load" else ("--length", step, "--new", str(NEW[int(step)]))
    return {"phases": child(side, place, *more).phases}


def command(place: Place, *arguments: str) -> tuple[Watched, Path]:
    """A command of the project, with a folder of its own for its digests and one for its results."""
    out = place.results / f"{place.name}-{arguments[0]}"
    cache = place.results / "cache"
    for folder in (out, cache):
        shutil.rmtree(folder, ignore_errors=True)
    call = [sys.executable, "-m", "analyses.cli", *arguments, "--model", str(place.folder), "--out", str(out)]
    seen = watched(call, {"HYBRIDLENS_CACHE": str(cache)})
    (place.results / f"{place.name}-{arguments[0]}.log").write_text(f"{seen.said}\n{seen.shown}")
    return seen, out


def told(seen: Watched) -> dict[str, Any]:
    """What was seen of a command."""
    return {
        "seconds": seen.seconds, "cpu": seen.cpu, **seen.held._asdict(), "first": seen.first, "silence": seen.silence,
        "read": seen.read,
    }  # fmt: skip


def fig2(place: Place, side: str) -> dict[str, Any]:
    """Figure 2 on two prompts."""
    if side == "theirs":
        seen = child("fig2", place, "--length", str(place.length))
        return {"phases": seen.phases, "cells": seen.phases["answer"].pop("cells")}
    seen, out = command(
        place, "reproduce", "fig2", "--lengths", str(place.length), "--depths", ",".join(map(str, DEPTHS)),
        "--heads", ",".join(map(str, ks(place.n_heads))), "--no-control", "--phase", "both", "--boundary", BOUNDARY,
    )  # fmt: skip
    cells = [[cell.phase, cell.k, cell.depth, cell.text, cell.seconds] for cell in read_cells(out)]
    return {**told(seen), "cells": cells}


def circuits(place: Place, side: str) -> dict[str, Any]:
    """All circuits, from the files alone."""
    files = sorted(place.folder.glob("*.safetensors"))
    forgotten(files)
    seen, _ = command(place, "circuits", "--no-measure")
    return {**told(seen), "files": sum(file.stat().st_size for file in files)}


def measure(place: Place, step: str, side: str) -> dict[str, Any]:
    """A side of a step."""
    if step == "fig2":
        return fig2(place, side)
    return circuits(place, side) if step == "circuits" else answered(place, side, step)


def rows(place: Place) -> list[list[str]]:
    """What is known of a model, as rows of the table."""
    made: list[list[str]] = []
    for step in STEPS:
        found = {side: json.loads(kept.read_text()) for side in SIDES if (kept := place.kept(step, side)).exists()}
        if not found:
            continue
        mine, other = found.get("ours", {}), found.get("theirs", {})
        if step in ("fig2", "circuits"):
            made.append(_of_command(place, step, mine, other))
            continue
        for phase in dict.fromkeys(name for side in (mine, other) for name in side.get("phases", {})):
            if phase == "import" or (phase == "load" and step != "load"):
                continue
            a = mine.get("phases", {}).get(phase, {})
            b = other.get("phases", {}).get("answer" if phase != "load" else phase, {})
            what = phase if phase == "load" else f"{phase}, {NEW[int(step)]} tokens after {step}"
            same = "tokens" in a and "tokens" in b and "top-k" not in phase
            said = f"{_alike(a['tokens'], b['tokens'])} of {len(b['tokens'])} tokens alike" if same else ""
            said = "theirs: the untouched model" if "top-k" in phase else said
            made.append(_row(place, what, a, b, said))
    return made


def _of_command(place: Place, step: str, mine: dict[str, Any], other: dict[str, Any]) -> list[str]:
    said: list[str] = []
    if step == "circuits":
        what = "circuits, the command"
        if mine:
            said.append(f"{mine['read'] / GB:.2f} of {mine['files'] / GB:.2f} GB read")
        theirs: dict[str, Any] = {}
    else:
        what = f"figure 2, 12 cells of {place.length} tokens, the command"
        theirs = other.get("phases", {}).get("answer", {})
        if mine:
            said.append(f"{sum(cell[-1] for cell in mine['cells']):.0f} s of it answering")
        if mine and other:
            texts = {tuple(cell[:3]): cell[3] for cell in other["cells"]}
            equal = sum(texts[tuple(cell[:3])] == cell[3] for cell in mine["cells"])
            said.append(f"{equal} of {len(texts)} texts equal")
    if mine:
        said.append(f"first shown after {mine['first']:.1f} s, longest silence {mine['silence']:.1f} s")
    return _row(place, what, mine, theirs, "; ".join(said))


def _row(place: Place, what: str, mine: dict[str, Any], other: dict[str, Any], said: str) -> list[str]:
    ratios = [f"{other[of] / mine[of]:.2f}" for of in ("seconds", "cpu")] if mine and other else []
    faster = f"{ratios[0]} ({ratios[1]})" if ratios else "–"
    seconds = [f"{side['seconds']:.1f} ({side['cpu']:.1f})" if side else "–" for side in (mine, other)]
    held = [f"{side['anonymous']:.2f} + {side['mapped']:.2f} mapped" if side else "–" for side in (mine, other)]
    return [place.name, what, *seconds, faster, *held, said]


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens at the beginning that are the same."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def experts_of(name: str, folder: Path, asked: int | None, smallest: bool) -> int | None:
    """How many experts a checkpoint gets: as asked, as it has already, or as many as memory allows; None for none."""
    full = fields_of(name, smallest).get("num_experts")
    if full is None or asked is not None or smallest:
        return asked
    config = folder / name / "config.json"
    if config.exists():
        return int(json.loads(config.read_text())["num_experts"])
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    while full > 2 and size_of(name, fields_of(name, experts=full)) > SHARE * free:
        full //= 2
    return full


def made(name: str, options: argparse.Namespace) -> Place:
    """A model's checkpoint, written where it is not there."""
    experts = experts_of(name, options.folder, options.experts, options.smallest)
    fields = fields_of(name, options.smallest, experts)
    with tqdm(total=size_of(name, fields), desc=f"writing {name}", unit="B", unit_scale=True, leave=False) as bar:
        checkpoint = written(options.folder, name, fields, bar.update)
    results = options.folder / "results"
    results.mkdir(exist_ok=True)
    return Place(name, checkpoint, results, fields["num_attention_heads"], options.length)


def _listed(text: str) -> list[str]:
    return text.split(",")


def main(arguments: list[str] | None = None) -> None:
    """Measure what is asked for and not known yet; print and write the table of all that is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/fullsize"), help="of checkpoints and results")
    parser.add_argument("--model", type=_listed, default=list(MODELS), help=", ".join(MODELS))
    parser.add_argument("--only", type=_listed, default=list(STEPS), help=", ".join(STEPS))
    parser.add_argument("--side", type=_listed, default=list(SIDES), help="ours, theirs")
    parser.add_argument("--experts", type=int, help="of the Jamba; as many as memory allows when left out")
    parser.add_argument("--length", type=int, default=500, help="tokens of figure 2's prompts")
    parser.add_argument("--again", action="store_true", help="measure what is known already too")
    parser.add_argument("--smallest", action="store_true", help="tiny sizes: whether it runs, not what it takes")
    options = parser.parse_args(arguments)
    for given, known in ((options.model, MODELS), (options.only, STEPS), (options.side, SIDES)):
        unknown = [name for name in given if name not in known]
        if unknown:
            parser.error(f"{', '.join(unknown)} given, expected some of {', '.join(known)}")
    found: list[list[str]] = []
    for name in options.model:
        place = made(name, options)
        for step in (step for step in STEPS if step in options.only):
            for side in options.side if step != "circuits" else ["ours"]:
                kept = place.kept(step, side)
                if kept.exists() and not options.again:
                    continue
                print(f"{time.strftime('%H:%M:%S')} {name}: {step}, {side}", flush=True)
                result = measure(place, step, side) | {"machine": machine(), "date": time.strftime("%Y-%m-%d")}
                kept.write_text(json.dumps(result, indent=1))
        found += rows(place)
    text = f"{machine()}, {time.strftime('%Y-%m-%d')}; torch {torch.__version__}\n\n{table(HEAD, found)}\n"
    print(text)
    (options.folder / "results" / "table.md").write_text(text)


if __name__ == "__main__":
    main()
