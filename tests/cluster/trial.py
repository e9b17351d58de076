"""Every command that a cluster shares, on a real Slurm: jobs are killed in every way, and results are one process's.

`make cluster-test` runs it. Shards of an array of eight are killed by SIGKILL and by `scancel`, and so is the process
that waits for them; a job runs into its own --time, and is queued again. Each command is given again until it is done,
and its results compared with those of one process by digest (`hybridlens status`). Prints what is done to which job,
and a table last; the same stands in build/cluster/trial.log. Exit status 1 where any result differs, or a shard was
done before it could be killed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "cluster"
HYBRIDLENS = [sys.executable, "-m", "analyses.cli"]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
MOST = 900
"""Seconds until a command is given up."""

_begun = time.time()


def say(*words: object) -> None:
    """A line, with the seconds since the beginning, into the log and onto the terminal."""
    line = f"[{time.time() - _begun:6.1f} s] {' '.join(map(str, words))}"
    print(line, flush=True)
    with (WORK / "trial.log").open("a", encoding="utf-8") as log:
        log.write(f"{line}\n")


def run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """A command of ours, to its end."""
    return subprocess.run(
        [*HYBRIDLENS, *words], cwd=WORK, env=ENV, capture_output=True, text=True, timeout=MOST, check=False
    )


def status(out: str) -> str:
    """What `hybridlens status` says."""
    return run(["status", out]).stdout.strip()


def digest(out: str) -> str:
    """Of a finished folder's results."""
    found = re.search(r"sha256 ([0-9a-f]{64})", status(out))
    return "none" if found is None else found[1]


def table(printed: str) -> list[str]:
    """What a command printed of its results."""
    lines = printed.splitlines()
    return [line for line in lines if not line.startswith(("submitted", "report:", "finished"))]


def running() -> dict[str, int]:
    """Job -> process of every job of ours that runs on this machine, by Slurm's names for them."""
    found: dict[str, int] = {}
    for place in Path("/proc").iterdir():
        try:
            words = (place / "cmdline").read_bytes() if place.name.isdigit() else b""
            if b"submitit.core._submit" not in words or words.startswith((b"srun", b"/bin", b"/usr/bin/srun", b"bash")):
                continue
            values = dict(one.split("=", 1) for one in (place / "environ").read_text().split("\0") if "=" in one)
        except OSError:
            continue
        if "SLURM_PROCID" in values:
            job = values.get("SLURM_ARRAY_JOB_ID")
            name = values["SLURM_JOB_ID"] if job is None else f"{job}_{values['SLURM_ARRAY_TASK_ID']}"
            found[name] = int(place.name)
    return found


def wait(what: str, holds: Callable[[], object], process: subprocess.Popen[str], seconds: float = 300) -> None:
    """Wait until something holds, while a command goes on.

    Raises:
        RuntimeError: the command has ended, or it does not hold in time.
    """
    end = time.time() + seconds
    while not holds():
        if process.poll() is not None:
            raise RuntimeError(f"{what}: the command ended before, with {process.returncode}: {ended(process)[-500:]}")
        if time.time() > end:
            raise RuntimeError(f"{what} did not happen within {seconds:g} s")
        time.sleep(0.2)


def shared(words: Sequence[str], out: str, options: Sequence[str]) -> subprocess.Popen[str]:
    """A command given to Slurm, begun."""
    return subprocess.Popen(
        [*HYBRIDLENS, *words, "--out", out, "--cluster", "slurm", "--mem", "1GB", *options],
        cwd=WORK, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> str:
    """What it printed, when it has ended."""
    printed, _ = process.communicate(timeout=MOST)
    for line in printed.splitlines():
        if line.startswith(("submitted", "hybridlens:", "stopped")):
            say("  ", line[:300])
    return printed


def cells_done(out: str) -> int:
    """Lines in the journals of all shards."""
    return sum(path.read_bytes().count(b"\n") for path in (WORK / out / "shards").glob("*/cells.jsonl"))


def midway(out: str, process: subprocess.Popen[str], but: Sequence[str] = ()) -> tuple[str, str, int]:
    """A shard that has stored some of its cells, and not nearly all: its name, job and process. Waits for one.

    Args:
        out: the folder of the results.
        process: the command that waits for the shards.
        but: shards that are not wanted.
    """
    found: list[tuple[str, str, int]] = []

    def look() -> bool:
        processes = running()
        shards = WORK / out / "shards"
        placed = json.loads((shards / "plan.json").read_text())["placed"] if (shards / "plan.json").exists() else {}
        for name, one in placed.items():
            told = shards / name / "progress.json"
            report: dict[str, Any] = json.loads(told.read_text()) if told.exists() else {"token": ""}
            journal = shards / name / "cells.jsonl"
            stored = journal.read_bytes().count(b"\n") if journal.exists() else 0
            begun = report["token"] == one["token"] and 0 < stored <= 0.75 * report["total"]
            if begun and name not in ("merge", *but) and one["job"] in processes:
                found.append((name, one["job"], processes[one["job"]]))
        return bool(found)

    wait("a shard that is midway", look, process)
    return found[0]


def show_status(out: str) -> None:
    """`hybridlens status` in the log."""
    for line in status(out).splitlines():
        say("  ", line)


def killed_in_every_way(words: Sequence[str], out: str) -> str:
    """Eight shards, of which some are killed, one cancelled, and the process that waits killed too; what it printed."""
    process = shared(words, out, ["--jobs", "8"])
    killed, job, pid = midway(out, process)
    say(f"kill -9 {pid} (shard {killed}, job {job}), {cells_done(out)} cells stored")
    os.kill(pid, signal.SIGKILL)
    wait("its end", lambda: job not in running(), process)
    cancelled, stopped, _ = midway(out, process, [killed])
    say(f"scancel {stopped} (shard {cancelled}), {cells_done(out)} cells stored")
    subprocess.run(["scancel", stopped], check=True)
    wait("its end", lambda: stopped not in running(), process)
    show_status(out)
    name, _, _ = midway(out, process, [killed, cancelled])
    say(f"kill -9 {process.pid} (the process that waits), while shard {name} runs, {cells_done(out)} cells stored")
    process.kill()
    process.communicate()
    show_status(out)
    say("the same command again")
    process = shared(words, out, ["--jobs", "8"])
    name, last, pid = midway(out, process, [killed])
    say(f"kill -9 {pid} (shard {name}, job {last}), {cells_done(out)} cells stored")
    os.kill(pid, signal.SIGKILL)
    printed = ended(process)
    for _ in range(3):
        if process.returncode == 0:
            break
        say("the same command again")
        process = shared(words, out, ["--jobs", "8"])
        printed = ended(process)
    return printed


def timed_out(words: Sequence[str], out: str) -> str:
    """A shard that needs more than its --time of two minutes, and is queued again by itself; what was printed.

    Slurm sends the signal up to a minute before the end.
    """
    process = shared(words, out, ["--jobs", "1", "--time", "0.034"])
    printed = ended(process)
    log = (WORK / out / "shards" / "0" / "log").read_text(encoding="utf-8")
    for line in log.splitlines():
        if "begins" in line or "SIGUSR2" in line or "Requeued" in line:
            say("  ", line)
    if log.count(" begins") < 2:
        raise RuntimeError("the shard was done before its time was up; give the trial longer prompts")
    return printed


def plain(words: Sequence[str], out: str) -> str:
    """Three shards that nobody kills; what it printed."""
    return ended(shared(words, out, ["--jobs", "3"]))


def main() -> int:
    """Run all of it; returns the exit status."""
    from random_lens import save_checkpoint

    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    save_checkpoint(WORK / "model", "jamba")
    model = ["--model", "model"]
    small = ["--lengths", "110,140", "--depths", "0,50,100"]
    many = ["--lengths", "110..115,150,190,230,270", "--depths", "0,25,50,75,100", "--batch-size", "2"]
    long = ["--lengths", "260,300,340", "--depths", "0,20,40,50,60,80,100", "--batch-size", "1"]
    trials: list[tuple[str, list[str], Callable[[Sequence[str], str], str]]] = [
        ("reproduce", ["fig2", *model, *many], killed_in_every_way),
        ("niah", [*model, *long], timed_out),
        ("rankings", [*model, *small, "--draws", "2", "--batch-size", "16", "--prompts", "1"], plain),
        ("patch", [*model, "--sweeps", "resid_pre,attn_out,ssm_out,v"], plain),
        ("crossover", [*model, *small, "--needles", "paper,oslo"], plain),
        ("circuits", [*model, "--sample", "64"], plain),
    ]
    wanted = sys.argv[1:]
    rows: list[tuple[str, str, str, bool, bool]] = []
    for name, words, way in trials:
        if wanted and name not in wanted:
            continue
        say(f"{name}: one process")
        one = run([name, *words, "--out", f"{name}-one"])
        if one.returncode:
            say(one.stderr[-500:])
        say(f"{name}: shared. {(way.__doc__ or '').splitlines()[0]}")
        printed = way([name, *words], f"{name}-shared")
        again = run([name, *words, "--out", f"{name}-shared", "--cluster", "slurm"]).stdout.strip()
        say("once more:", again)
        record = WORK / f"{name}-shared" / "run.json"
        if record.exists():
            say("settled by the first shard:", json.loads(record.read_text())["settled"])
        same = table(one.stdout) == table(printed)
        rows.append((name, digest(f"{name}-one"), digest(f"{name}-shared"), same, again.startswith("finished")))
    say("command    one process       shared            equal  table  finished")
    for name, first, second, same, quiet in rows:
        equal = first == second != "none"
        say(f"{name:<10} {first[:16]}  {second[:16]}  {equal!s:<5}  {same!s:<5}  {quiet}")
    return int(not all(first == second != "none" and same and quiet for _, first, second, same, quiet in rows))


if __name__ == "__main__":
    sys.exit(main())
