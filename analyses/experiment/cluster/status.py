"""How far a run is, as text: its shards, what they failed of, the time left, and a digest of what was found.

Nothing is written, and nothing is asked of a cluster but which jobs are there. How it fails: a folder without a run
raises `ResultsError`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from analyses.experiment.cluster.jobs import AWAY, jobs_of
from analyses.experiment.cluster.plan import LOG, Plan, Report, place_of, read_plan, read_report
from analyses.experiment.options.cluster import ClusterConfig
from analyses.experiment.text import columns
from hybridlens.results import hash_json, read_run
from hybridlens.results.cells import FIELDS
from hybridlens.results.files import JOURNAL
from hybridlens.results.locks import is_locked
from hybridlens.results.record import RECORD
from hybridlens.viz.article import REPORT

UNTIMED = tuple(name for name in FIELDS if name != "seconds")


def status_lines(folder: Path) -> list[str]:
    """What there is to say of a folder.

    Raises:
        ResultsError: it holds no run.
    """
    plan = read_plan(folder)
    lines = [] if plan is None or plan.complete else _shared(folder, plan)
    if not lines or (folder / RECORD).exists():
        lines += _whole(folder)
    return lines


def _whole(folder: Path) -> list[str]:
    """Of the run itself."""
    found = read_run(folder)
    record = found.record
    cells = record.get("cells")
    held = "" if cells is None else f", {len(found.cells)} of {cells} cells done"
    stopped = record["status"] == "running" and not is_locked(folder)
    word = "stopped, and goes on with the same command" if stopped else record["status"]
    left = None if stopped or record["status"] != "running" else _time_left(folder, record, len(found.cells))
    about = "" if left is None else f"; about {_words(left)} left"
    lines = [f"{record['job']} of {record['model']}: {word}{held}{about}", *record["remarks"]]
    if record["status"] == "complete":
        lines += [f"report: {folder / REPORT}", f"results, but for times: sha256 {results_digest(folder)}"]
    return lines


def _time_left(folder: Path, record: Mapping[str, Any], done: int) -> float | None:
    """Seconds that a run of cells has still to go, at the pace of its session; None where that is not known yet."""
    journal = folder / JOURNAL
    if record["cells"] is None or done >= record["cells"] or not journal.exists():
        return None
    told, began = journal.stat().st_mtime, datetime.fromisoformat(record["sessions"][-1]["started"]).timestamp()
    made = done - record["cells_done"]  # which a session writes when it begins, and when it ends
    if made <= 0 or told <= began:
        return None
    return max(0.0, (record["cells"] - done) * (told - began) / made - (time.time() - told))


def results_digest(folder: Path) -> str:
    """A digest of everything that a run has found, its table's rows in their order: 64 hex digits.

    Times are left out: the seconds of cells, and the report, which states when the run was made.

    Raises:
        ResultsError: the folder holds no run.
    """
    found = read_run(folder)
    cells = [[getattr(cell, name) for name in UNTIMED] for cell in found.cells]
    made = {name: listed["digest"] for name, listed in found.record["artefacts"].items() if name != REPORT}
    return hash_json([cells, made])


def _shared(folder: Path, plan: Plan) -> list[str]:
    """Of the jobs that share its work."""
    merging = plan.wave >= plan.waves
    names, placed = plan.names(), plan.present()
    jobs = jobs_of(ClusterConfig.on(plan.cluster), folder, plan.job, "cpu")
    alive = jobs.alive(plan.jobs())
    stage = "putting the results together" if merging else f"wave {plan.wave + 1} of {plan.waves}"
    lines = [f"{plan.job} of {plan.model}: {stage}, {plan.shards} shards on {plan.cluster}"]
    rows = [["shard", "state", "job", "done", "seconds each", "left"]]
    below: list[str] = []
    here: list[Report | None] = []
    for name in names:
        one, report = placed.get(name), read_report(folder, name)
        told = report if one is not None and report is not None and report.token == one.token else None
        state = _state(alive.get(one.job, "") if one is not None and one.job else None, told)
        left = None if told is None else _left(told)
        job = "–" if one is None else one.job or "–"
        rows.append([
            name, state, job, "–" if told is None else f"{told.done}/{told.total}",
            "–" if told is None or told.pace is None else f"{told.pace:.2g}",
            "–" if left is None or state != "running" else _words(left),
        ])  # fmt: skip
        here.append(told)
        if state in ("failed", "ended", *AWAY):
            below.append(f"{name} {state}: {AWAY.get(state) or _last(folder, name, told)}")
    lines += [columns(rows, left=3), *below]
    known = [report for report in here if report is not None]
    unit = known[0].unit if known else "unit"
    done, total = sum(r.done for r in known), sum(r.total for r in known)
    absent = len(names) - len(known)
    words = "1 shard has" if absent == 1 else f"{absent} shards have"
    more = f" so far; {words} not begun" if absent else ""
    left = [_left(report) for report in known]
    times = [one for one in left if one is not None]
    about = f"; about {_words(max(times))} left" if times and done < total else ""
    return [*lines, f"{done} of {total} {unit}s done{about}{more}"]


def _state(alive: str | None, report: Report | None) -> str:
    """A shard's state in a word: of a job that is gone, what it said last."""
    if alive is None:
        return "not yet submitted"
    if report is not None and report.state in ("done", "failed"):
        return report.state
    if not alive:
        return "ended"
    return "running" if alive == "unknown" and report is not None else alive


def _left(report: Report) -> float | None:
    """Seconds that a shard has still to run; None where its pace is not known."""
    if report.state == "done":
        return 0.0
    if report.pace is None:
        return None
    return max(0.0, (report.total - report.done) * report.pace - (time.time() - report.told))


def _words(seconds: float) -> str:
    """A time as people read it, to the second."""
    return str(timedelta(seconds=round(seconds)))


def _last(folder: Path, name: str, report: Report | None) -> str:
    """The last line of what a job that is gone has said."""
    if report is not None and report.error:
        return report.error
    log = place_of(folder, name) / LOG
    try:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    return f"{lines[-1] if lines else 'it said nothing'} (then nothing: killed, or its node lost)"
