"""Write what texts state into docs/results: ``make stored-results``, or ``python -m tests.stored_results FOLDER …``.

Each folder of results becomes docs/results/NAME.json, NAME being the folder's: how it was made, and small tables of
plain numbers, as shares and not as percent. `tests.stated` says how a text names them. All are read as they were
stored, but for rankings, which are put together again by their command, which opens the model and answers nothing anew.
The zoo of the embedded models is copied into the package too, whose command shows it beside what it computes; one of
others, such as more seeds, is stored alone.

How it fails: `ResultsError` in one line for a folder that holds no finished run of these kinds.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analyses.experiment.options.zoo import PARTS
from analyses.kv_cache.crossover_results import Crossover
from analyses.kv_cache.following import following, layer_memories, whole
from analyses.study import views
from analyses.study.comparing.reading import StoredStudy, read_study
from analyses.study.groups import accuracy, chance, grouped
from analyses.study.measured import Condition
from analyses.study.reduced.experiment import MODULES
from analyses.study.reduced.results import ReducedModules
from analyses.study.reduced.shapes import COSTS
from analyses.study.training_curves import experiment as curves
from analyses.study.training_curves.results import COLUMNS as CURVE_COLUMNS
from analyses.study.training_curves.results import COMPOSED, TrainingCurves
from analyses.study.training_curves.rules import answers as curve_answers
from analyses.study.under_both import splits
from analyses.study.zoo.results import FILE, Zoo
from analyses.study.zoo.rules import answers
from analyses.study.zoo.stored import TABLE
from hybridlens.display import Table
from hybridlens.display.tables import Plain
from hybridlens.errors import HybridLensError, ResultsError
from hybridlens.results.store import read_artefact, read_run_record
from hybridlens.tiny import names
from tests.stated import STORE

Tables = dict[str, Table]
DIGITS = 7
"""Significant ones that are stored."""


def of_study(folder: Path) -> Tables:
    """A study's conditions, tipping points, claims, benchmark scores, and both semantics side by side."""
    study = read_study(folder)
    tables = {"conditions": conditions(study), "claims": claims(study), "counts": counts(study)}
    if len({cell.k for cell in study.cells}) > 1:
        view = views.fig2(study.cells, study.base)
        rows = [
            (phase, tip, *((None, None) if spread is None else (spread.low, spread.high)))
            for phase, tip, spread in zip(view.phases, view.tipping, view.intervals, strict=True)
        ]
        tables["tipping"] = Table(("phase", "tip", "low", "high"), rows)
    if study.both:
        tables["semantics"] = views.semantics_difference(study.cells, study.base).table()
        found = splits(study.cells, study.base)
        tables["splits"] = Table(
            ("words", "clean", "published", "change", "low", "high", "n", "lost"),
            [(s.words, s.clean.mean, s.published.mean, *s.change, s.lost) for s in found],
        )
    if study.rows:
        columns = ("task", "k", "metric", "value", "stderr", "n")
        tables["benchmarks"] = Table(columns, [tuple(getattr(row, name) for name in columns) for row in study.rows])
        tables["changes"] = changes(study)
    return tables


def conditions(study: StoredStudy) -> Table:
    """Accuracy under each condition of the study's own settings, read once and twice."""
    rows: list[tuple[Plain, ...]] = []
    for times in (False, True):
        found = grouped(study.cells, study.base, Condition.of, "reading", "answering", jrt=times)
        for condition in sorted(found, key=lambda one: one.place):
            mean = accuracy(found[condition])
            if mean is not None:
                rows.append((*condition, "twice" if times else "once", *mean, chance(found[condition])))
    return Table((*Condition._fields, "read", "mean", "low", "high", "n", "chance"), rows)


def claims(study: StoredStudy) -> Table:
    """What became of each claim, under the study's own semantics and the other."""
    away = {one.own.id: one.other.outcome for one in study.both}
    rows = [(one.id, one.outcome, away.get(one.id)) for one in study.verdicts]
    return Table(("id", study.base.semantics, "the other semantics"), rows)


def changes(study: StoredStudy) -> Table:
    """What each benchmark task gains under fewer heads, less the score with all; below 0 it loses."""
    evidence, tasks = study.evidence, dict.fromkeys(row.task for row in study.rows)
    rows: list[tuple[Plain, ...]] = []
    for task in tasks:
        for k in sorted({row.k for row in study.rows if row.task == task}):
            found = evidence.change(task, k)
            if found is not None and k != study.base.n_heads:
                rows.append((task, k, *found))
    return Table(("task", "k", "change", "low", "high", "n"), rows)


def counts(study: StoredStudy) -> Table:
    """How many cells there are, and how many of them hung on rounding."""
    return Table(("what", "number"), [("cells", len(study.cells)), ("near ties", len(views.near_ties(study.cells)))])


def of_crossover(folder: Path) -> Tables:
    """Which memory answers follow, of the whole model and of single layers, inside and outside the window."""
    found = read_artefact(folder, "crossover.json", Crossover.load)
    if found is None:
        raise ResultsError(f"{folder} holds no crossover.json; run hybridlens crossover to its end")
    rows: list[tuple[Plain, ...]] = []
    for inside in found.regions:
        for memory in (*whole(found), *(one.memory for one in layer_memories(found.mixes))):
            one = following(found, memory, inside)
            where = "inside" if inside else "outside"
            rows.append((where, memory.words, one.memory.mean, *one.memory.interval, one.rest.mean, one.shift, one.n))
    return {"following": Table(("where", "memory", "told", "low", "high", "rest", "shift", "n"), rows)}


def of_rankings(folder: Path) -> Tables:
    """The area of every ranking, and the fewest heads that keep half, best first; and what is told apart."""
    from typer.main import get_command

    from analyses.cli import app
    from analyses.experiment.options.rankings import RankingsConfig
    from analyses.experiment.running import conduct
    from analyses.study.rankings.sweep import RankingsRun

    job, *words = shlex.split(read_run_record(folder).sessions[-1].command)[1:]
    commands: Any = get_command(app)
    given = commands.commands[job].make_context(job, words).params
    options = RankingsConfig(**{name: given[name] for name in RankingsConfig.model_fields if name in given})
    found = conduct(RankingsRun.opened(options, "cpu", "float32"), folder).result
    areas, decision = found.view()[0], found.comparison.decision
    if not isinstance(areas, Table):
        raise ResultsError(f"{folder} gave no table of areas")
    read = Table(("what", "number"), [("prompts", decision.prompts), ("precision", decision.precision)])
    return {"areas": areas, "standing": decision.table(), "read": read}


def of_curves(folder: Path) -> Tables:
    """What was measured of every kept checkpoint, and the answers by rule."""
    found = read_artefact(folder, curves.FILE, TrainingCurves.load)
    if found is None:
        raise ResultsError(f"{folder} holds no {curves.FILE}; run hybridlens curves to its end")
    measured = [row for row in found.table().rows if row[4] is not None and row[3] not in COMPOSED]
    said = [one for run in found.runs for one in curve_answers(run)]
    return {
        "answers": Table(
            ("run", "question", "outcome", "step", "lag", "sentence"),
            [(one.run, one.question, one.outcome, one.step, one.lag, one.sentence) for one in said],
        ),
        "curves": Table(CURVE_COLUMNS[:-1], [row[:-1] for row in measured]),
    }


def of_reduced(folder: Path) -> Tables:
    """Every module with its cost and what it retrieves, and the cheapest that keep retrieval."""
    found = read_artefact(folder, MODULES, ReducedModules.load)
    if found is None:
        raise ResultsError(f"{folder} holds no {MODULES}; run hybridlens reduce to its end")
    rows: list[tuple[Plain, ...]] = []
    for tuned in (False, True):
        for by in COSTS if found.among(tuned) else ():
            place, whole = found.knee(by, tuned), found.whole(tuned)
            costs = [float(found.cost(i)[COSTS.index(by)]) for i in (whole, whole if place is None else place)]
            rows.append((tuned, by, None if place is None else found.names[place], *costs))
    return {"modules": found.table(), "knees": Table(("tuned", "by", "module", "whole cost", "cost"), rows)}


KINDS: Mapping[str, Callable[[Path], Tables]] = {
    "reproduce": of_study,
    "crossover": of_crossover,
    "rankings": of_rankings,
    "curves": of_curves,
    "reduce": of_reduced,
}
"""Command -> what is stored of its folder."""


def of_zoo(folder: Path) -> dict[str, Any]:
    """What is written of a zoo: every number of every model, and the answers by rule."""
    zoo = Zoo.load(folder / FILE)
    if zoo.parts != PARTS or (zoo.names != names() and set(zoo.names) & set(names())):
        raise ResultsError(f"{folder} holds a part of the zoo; run hybridlens zoo over all embedded models, or others")
    records = [read_run_record(folder / one.name / asked.part) for one in zoo.members for asked in one.asked
               if not asked.absent]  # fmt: skip
    found = answers(zoo)
    rows = [(one.question, one.outcome, one.reason) for one in found]
    sizes = [
        (one.name, one.kind, " ".join(one.mixers), one.parameters, one.n_heads, len(one.attention), len(one.recurrent))
        for one in zoo.members
    ]
    columns = ("model", "kind", "mixers", "parameters", "heads", "attention layers", "recurrent layers")
    tables = {
        "answers": Table(("question", "outcome", "reason"), rows),
        "models": Table(columns, sizes),
        "numbers": zoo.table(),
    }
    made = {
        "command": "hybridlens zoo",
        "model": ", ".join(zoo.names),
        "weights": {one.name: one.weights for one in zoo.members},
        "arguments": {"parts": list(zoo.parts)},
        "finished": max(record.finished or "" for record in records),
        "torch": records[-1].sessions[-1].environment.packages.get("torch"),
    }
    return {"made": made, "tables": plain_tables(tables)}


def stored(folder: Path) -> dict[str, Any]:
    """What is written of a folder.

    Raises:
        ResultsError: see the module.
    """
    if (folder / FILE).is_file():
        return of_zoo(folder)
    record = read_run_record(folder)
    if record.job not in KINDS or record.status != "complete":
        raise ResultsError(
            f"{folder} holds {record.job}, {record.status}; expected a finished one of {', '.join(KINDS)}"
        )
    session = record.sessions[-1]
    named = " ".join(session.settings.get("experiments") or ()) if record.job == "reproduce" else ""
    made = {
        "command": " ".join(f"hybridlens {record.job} {named} --model {record.model}".split()),
        "model": record.model,
        "weights": record.weights_hash,
        "arguments": dict(record.arguments),
        "finished": record.finished,
        "torch": session.environment.packages.get("torch"),
    }
    return {"made": made, "tables": plain_tables(KINDS[record.job](folder))}


def plain_tables(tables: Tables) -> dict[str, Any]:
    """Tables as the file has them."""
    return {
        name: {"columns": list(table.columns), "rows": [[_plain(value) for value in row] for row in table.rows]}
        for name, table in tables.items()
    }


def _plain(value: Any) -> Any:
    """A value of a table as JSON has it, numbers in few digits."""
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, float):
        return None if math.isnan(number) else float(f"{number:.{DIGITS}g}")
    return number


def text_of(held: Mapping[str, Any]) -> str:
    """A stored file's text: a row of a table on a line, so that a changed number is one changed line."""
    lines = ['{"made": ' + json.dumps(held["made"], ensure_ascii=False) + ',\n "tables": {']
    for i, (name, table) in enumerate(held["tables"].items()):
        rows = ",\n".join("   " + json.dumps(row, ensure_ascii=False) for row in table["rows"])
        end = "," if i + 1 < len(held["tables"]) else "}}"
        lines.append(f'  "{name}": {{"columns": {json.dumps(table["columns"])}, "rows": [\n{rows}]}}{end}')
    return "\n".join(lines) + "\n"


def main(folders: Sequence[str]) -> int:
    """Write the files of some folders; returns the exit status."""
    STORE.mkdir(parents=True, exist_ok=True)
    try:
        for folder in map(Path, folders):
            (STORE / f"{folder.name}.json").write_text(text_of(stored(folder)), encoding="utf-8")
            print(f"docs/results/{folder.name}.json")
            if (folder / FILE).is_file() and (zoo := Zoo.load(folder / FILE)).names == names():
                zoo.save(TABLE)
                print(f"{TABLE.name} of the zoo, which comes with the package")
    except HybridLensError as error:
        print(f"stored_results: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
