"""Every command that a cluster shares, on a real Slurm: jobs are killed in every way, and results are one process's.

`make cluster-test` runs it. Arrays of eight shards are killed by `scancel`, by SIGKILL and by their time limit, and the
process that waits for them too; each command is then given again until it is done, and its results compared with those
of one process by digest (`hybridlens status`). Prints what is done to which job, and a table last; the same stands in
build/cluster/trial.log. Exit status 1 where any result differs.
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


def wait(what: str, holds: Callable[[], object], seconds: float = 300) -> None:
    """Wait until something holds.

    Raises:
        TimeoutError: it does not.
    """
    end = time.time() + seconds
    while not holds():
        if time.time() > end:
            raise TimeoutError(f"{what} did not happen within {seconds:g} s")
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


def midway(out: str) -> tuple[str, str, int]:
    """A shard that has done some of its work, a third at most: its name, job and process. Waits until there is one."""
    found: list[tuple[str, str, int]] = []

    def look() -> bool:
        processes = running()
        shards = WORK / out / "shards"
        placed = json.loads((shards / "plan.json").read_text())["placed"] if (shards / "plan.json").exists() else {}
        for name, one in placed.items():
            told = shards / name / "progress.json"
            report = json.loads(told.read_text()) if told.exists() else {"token": ""}
            begun = name != "merge" and report["token"] == one["token"] and 0 < report["done"] <= report["total"] / 3
            if begun and one["job"] in processes:
                found.append((name, one["job"], processes[one["job"]]))
        return bool(found)

    wait("a shard that is midway", look)
    return found[0]


def killed_in_every_way(words: Sequence[str], out: str) -> str:
    """Eight shards, of which one is killed, one cancelled, and the process that waits killed too; what it printed."""
    process = shared(words, out, ["--jobs", "8"])
    name, job, pid = midway(out)
    say(f"kill -9 {pid} (shard {name}, job {job}), {cells_done(out)} cells stored")
    os.kill(pid, signal.SIGKILL)
    wait("its end", lambda: job not in running())
    name, job, pid = midway(out)
    say(f"scancel {job} (shard {name}), {cells_done(out)} cells stored")
    subprocess.run(["scancel", job], check=True)
    wait("its end", lambda: job not in running())
    for line in status(out).splitlines():
        say("  ", line)
    name, job, _ = midway(out)
    say(f"kill -9 {process.pid} (the process that waits), while shard {name} runs, {cells_done(out)} cells stored")
    process.kill()
    process.communicate()
    printed = ""
    for _ in range(6):
        say("the same command again")
        process = shared(words, out, ["--jobs", "8"])
        if not printed:
            name, job, pid = midway(out)
            say(f"kill -9 {pid} (shard {name}, job {job}), {cells_done(out)} cells stored")
            os.kill(pid, signal.SIGKILL)
        printed = ended(process)
        if process.returncode == 0:
            return printed
        for line in status(out).splitlines():
            say("  ", line)
    return printed


def timed_out(words: Sequence[str], out: str) -> str:
    """Two longer shards: one is cancelled, and then its time is up before it is done; what it printed.

    Slurm may send the signal up to a minute early, and so the limit is cut when the job is known to hear it.
    """
    process = shared(words, out, ["--jobs", "2", "--time", "1"])
    name, job, _ = midway(out)
    say(f"scancel {job} (shard {name}), {cells_done(out)} cells stored")
    subprocess.run(["scancel", job], check=True)
    ended(process)
    for line in status(out).splitlines():
        say("  ", line)
    say("the same command again")
    process = shared(words, out, ["--jobs", "2", "--time", "1"])
    name, job, _ = midway(out)
    say(f"scontrol update JobId={job} TimeLimit=1 (shard {name}), {cells_done(out)} cells stored")
    subprocess.run(["scontrol", "update", f"JobId={job}", "TimeLimit=1"], check=True)
    wait("its end", lambda: job not in running())
    subprocess.run(["scontrol", "update", f"JobId={job}", "TimeLimit=60"], check=True)
    printed = ended(process)
    for line in (WORK / out / "shards" / name / "log").read_text(encoding="utf-8").splitlines():
        if "begins" in line or "SIGUSR2" in line or "Requeued" in line:
            say("  ", line)
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
    trials: list[tuple[str, list[str], Callable[[Sequence[str], str], str]]] = [
        ("reproduce", ["fig2", "scope", *model, *small, "--batch-size", "4"], killed_in_every_way),
        ("niah", [*model, "--lengths", "300", "--depths", "0,20,40,50,60,80,100", "--batch-size", "1"], timed_out),
        ("rankings", [*model, *small, "--draws", "2", "--batch-size", "16"], plain),
        ("patch", [*model, "--sweeps", "resid_pre,attn_out,ssm_out,v"], plain),
        ("crossover", [*model, *small], plain),
        ("circuits", [*model, "--sample", "64"], plain),
    ]  # fmt: skip
    wanted = sys.argv[1:]
    rows: list[tuple[str, str, str, bool, bool]] = []
    for name, words, way in trials:
        if wanted and name not in wanted:
            continue
        say(f"{name}: one process")
        one = run([name, *words, "--out", f"{name}-one"])
        if one.returncode:
            say(one.stderr[-500:])
        say(f"{name}: shared, {way.__doc__}")
        printed = way([name, *words], f"{name}-shared")
        again = run([name, *words, "--out", f"{name}-shared", "--cluster", "slurm"]).stdout.strip()
        say("once more:", again)
        same = table(one.stdout) == table(printed)
        rows.append((name, digest(f"{name}-one"), digest(f"{name}-shared"), same, again.startswith("finished")))
    say("command    one process       shared            equal  table  finished")
    for name, first, second, same, quiet in rows:
        equal = first == second != "none"
        say(f"{name:<10} {first[:16]}  {second[:16]}  {equal!s:<5}  {same!s:<5}  {quiet}")
    return int(not all(first == second != "none" and same and quiet for _, first, second, same, quiet in rows))


if __name__ == "__main__":
    sys.exit(main())
