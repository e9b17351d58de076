"""The embedded models and the commands on this device give what they give on the CPU, text by text, number by number.

How it fails: a text may differ where two logits are nearer than float32 tells on two devices; the cells' own margins
say how near, and a difference at a margin above `TIE` is a fault.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

import hybridlens as hl
from gpu.rows import Rows, off
from hybridlens import niah

TIE = 0.02
"""Of a logit; the models' logits are about 10, and float32 on two devices differs by some 1e-5 of that."""
NEAR = 1e-3
"""‖difference‖ ÷ ‖value‖ of a tensor of effects, which are differences of logits and so a hundred times less exact."""

SMALL = ("--lengths", "128", "--depths", "0,50,100")
COMMANDS: dict[str, Sequence[str]] = {
    "niah jamba": ("niah", "--model", "tiny-jamba", *SMALL, "--heads", "0,4,8"),
    "niah recurrentgemma": ("niah", "--model", "tiny-recurrentgemma", *SMALL, "--heads", "0,1,4,8"),
    "fig2 recurrentgemma": ("reproduce", "fig2", "--model", "tiny-recurrentgemma", *SMALL, "--heads", "0,2,8"),
    "fig2 jamba": ("reproduce", "fig2", "--model", "tiny-jamba", *SMALL, "--heads", "0,1,8"),
    "patch jamba": ("patch", "--model", "tiny-jamba", "--length", "90", "--depth", "80", "--sweeps",
                    "v_by_position,state,resid_pre"),
    "patch recurrentgemma": ("patch", "--model", "tiny-recurrentgemma", "--length", "90", "--depth", "80", "--sweeps",
                             "v_by_position,state"),
    "circuits jamba": ("circuits", "--model", "tiny-jamba", "--sample", "128"),
    "circuits recurrentgemma": ("circuits", "--model", "tiny-recurrentgemma", "--sample", "128"),
}  # fmt: skip


def main(rows: Rows, argument: str) -> None:
    """The models by hand first, then every command on both devices."""
    for model in ("tiny-jamba", "tiny-recurrentgemma"):
        with rows.check(f"{model} by hand"):
            by_hand(rows, model)
    commands = COMMANDS if rows.cuda else {name: COMMANDS[name] for name in ("niah jamba", "circuits jamba")}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(8 if rows.cuda else 1) as pool:
        runs = {
            (name, device): pool.submit(command, rows, given, Path(folder) / f"{name}-{device}", device)
            for name, given in commands.items()
            for device in (rows.device, "cpu" if rows.cuda else "again")
        }
        for name in commands:
            with rows.check(name):
                here, there = (runs[key].result() for key in runs if key[0] == name)
                same(rows, name, here, there)


def by_hand(rows: Rows, model: str) -> None:
    """`load` on the device: logits, and answers in both dtypes, under no edits."""
    cpu, here = hl.load(model), hl.load(model, device=rows.device)
    prompts = niah.grid(cpu.tokenizer, lengths=[128], depths=[0, 50, 100])
    texts = [list(prompt.tokens) for prompt in prompts]
    with torch.no_grad():
        apart = off(here.prefill(texts).logits, cpu.prefill(texts).logits)
    rows.most(f"{model}: logits of {len(texts)} prompts", apart, 1e-4, "‖difference‖ ÷ ‖value‖")
    expected = cpu.generate(texts, 40)
    found = here.generate(texts, 40)
    rows.judge(f"{model}: texts", found.text == expected.text, found.text[1], expected.text[1])
    half = hl.load(model, device=rows.device, dtype="bfloat16").generate(texts, 40)
    equal = sum(a == b for a, b in zip(half.text, expected.text, strict=True))
    rows.add(f"{model}: texts in bfloat16 that are float32's", f"{equal} of {len(texts)}")
    scores = [float(niah.score(text, rubric=niah.PAPER_RUBRIC)) for text in half.text]
    rows.judge(f"{model}: needles found in bfloat16", min(scores) == 5.0, scores, "5.0 each, as in float32")


def command(rows: Rows, given: Sequence[str], out: Path, device: str) -> Path:
    """Run a command to its end, and give its folder."""
    place = "cpu" if device == "again" else device
    done = subprocess.run(
        [sys.executable, "-m", "analyses.cli", *given, "--out", str(out), "--device", place],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
        env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"on {place}: status {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return out


def same(rows: Rows, name: str, here: Path, there: Path) -> None:
    """Cells by their texts and scores, tensors and rankings by their numbers."""
    files = sorted(str(path.relative_to(there)) for path in there.rglob("*") if path.is_file())
    found = sorted(str(path.relative_to(here)) for path in here.rglob("*") if path.is_file())
    rows.judge(f"{name}: files", files == found, len(found), len(files))
    if (there / "cells.parquet").exists():
        cells(rows, name, *(pq.read_table(folder / "cells.parquet").to_pylist() for folder in (here, there)))
    worst, at, counted = 0.0, "", 0
    for file in files:
        ours, theirs = (numbers(folder / file) for folder in (here, there))
        for key, value in theirs.items():
            apart = off(ours[key], value) if key in ours else float("inf")
            counted += 1
            if not apart <= worst:
                worst, at = apart, f"{file} {key}"
    if counted:
        rows.most(f"{name}: {counted} tensors", worst, NEAR, at)


def cells(rows: Rows, name: str, ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    """Every cell's text and score."""
    left_out = ("score", "text", "seconds", "margin", "tokens", "checksum", "model")
    keys = [key for key in theirs[0] if key not in left_out]
    ours, theirs = (sorted(side, key=lambda cell: [str(cell[key]) for key in keys]) for side in (ours, theirs))
    rows.judge(f"{name}: cells", [[c[k] for k in keys] for c in ours] == [[c[k] for k in keys] for c in theirs],
               len(ours), len(theirs))  # fmt: skip
    differ = [(a, b) for a, b in zip(ours, theirs, strict=True) if (a["text"], a["score"]) != (b["text"], b["score"])]
    told = [pair for pair in differ if not (pair[1]["margin"] is not None and pair[1]["margin"] < TIE)]
    about = f"{len(differ)} of {len(ours)} differ, {len(differ) - len(told)} of them at ties"
    first = f"; {told[0][0]['text'][:60]!r} for {told[0][1]['text'][:60]!r}" if told else ""
    rows.judge(f"{name}: texts and scores", not told, about + first, "0 but at ties")


def numbers(file: Path) -> dict[str, torch.Tensor]:
    """The floating-point tensors of a file: safetensors, or a ranking's JSON."""
    if file.suffix == ".safetensors":
        return {key: value for key, value in load_file(file).items() if value.is_floating_point()}
    if file.suffix == ".json" and file.parent.name == "rankings":
        return {"scores": torch.tensor(json.loads(file.read_text())["scores"]["numbers"])}
    return {}
