"""GLUE, MMLU or any other task of lm-eval with the k most focused heads of each layer (section 3.2 of the paper).

`BenchmarkRun` runs every task under every k, the same prompts each time, through the adapter of `harness`. In the
prefill version, which the paper uses, heads are dropped in every forward pass of a request; in the generation version
the context is read with all heads. Scores are lm-eval's own; a group such as MMLU gets the score that lm-eval gives it,
a tag such as GLUE the mean over its tasks. Each task and k is a stage, signed with the task's documents and files, so
that scores of a task that was edited are not believed.

How it fails: what can be checked without a model is checked when the options are made and by `check_tasks`; see
`analyses.experiment` for the rest.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import torch

from analyses.experiment.options.benchmarks import BenchmarkConfig
from analyses.experiment.parts import Part, stage
from analyses.experiment.running import Experiment, Progress, result_of
from analyses.heads.sparsification import top_k
from analyses.study.benchmarks.results import BenchmarkResult, BenchmarkRow, Rows, mean_row
from analyses.study.benchmarks.tasks import FOLDER, Loaded, check_tasks, load_tasks, quiet, require, seeded
from hybridlens.config import LensConfig
from hybridlens.decoding import Boundary
from hybridlens.display import many
from hybridlens.errors import InputError, ResultsError
from hybridlens.hooks import Edit, Phase
from hybridlens.model import HybridLens
from hybridlens.results import Folder, Manifest, environment
from hybridlens.viz.article import Article
from hybridlens.viz.blocks import Section, Table

BOOTSTRAP = 1000
"""Draws of lm-eval's standard errors where there is no formula."""

TASK = 20_000.0
"""About how many tokens of a sweep's prompts a task takes as long as."""

COMPARED = ("limit", "num_fewshot", "version", "scope", "semantics", "boundary", "apply_chat_template",
            "fewshot_as_multiturn", "system_instruction", "max_length", "seed")  # fmt: skip
"""Options that can change a score; tasks and k can be added to a folder."""


class BenchmarkRun(Experiment[BenchmarkConfig, BenchmarkResult]):
    """Every task under every k.

    Raises:
        UnknownNameError: a task that lm-eval does not have.
        InputError: lm-eval is not installed; data that cannot be loaded; a k above the model's heads; options that the
            tasks or the tokenizer do not allow.
    """

    job = "benchmarks"
    unit = "task"
    of_heads = False

    def __init__(self, lens: HybridLens, options: BenchmarkConfig, weights_hash: str | None = None) -> None:
        super().__init__(lens, options, weights_hash)
        self.ks = options.heads(lens.cfg.n_heads)
        phase: Phase = "both" if options.version == "prefill" else "decode"
        # A scope or semantics that the model cannot run is told before any data is loaded.
        some = lens.cfg.attention_layers  # without any there is nothing to silence
        self.edits = {k: top_k(lens, k, phase, options.scope, options.semantics) if some else [] for k in self.ks}
        if options.apply_chat_template:
            from analyses.study.benchmarks.harness import check_chat_template

            check_chat_template(lens.tokenizer)
        self.loaded = load_tasks(options.tasks, options.include)
        _check_fewshot(self.loaded, options.num_fewshot)

    @classmethod
    def check(cls, options: BenchmarkConfig, cfg: LensConfig) -> None:
        """See `Experiment`; tasks that there are not too."""
        super().check(options, cfg)
        require()
        options.heads(cfg.n_heads)
        check_tasks(options.tasks, options.include)

    @property
    def pairs(self) -> int:
        """Of task and k."""
        return len(self.loaded.tasks) * len(self.ks)

    def manifest(self) -> Manifest:
        """See `Experiment`; other tasks and k may join."""
        options = self.options
        growing = {f"the benchmarks' {name}": getattr(options, name) for name in COMPARED}
        growing["the version of lm-eval"] = metadata.version("lm-eval")
        return self.identity({}, {"tasks": list(options.tasks), "batch_size": options.batch_size}, growing)

    def run(self, folder: Folder, progress: Progress) -> BenchmarkResult:
        """See `Experiment`."""
        options, loaded = self.options, self.loaded
        rows: list[BenchmarkRow] = []
        done = 0
        progress(done, self.pairs)
        for take in self._stages(folder).values():
            rows += take().rows
            done += 1
            progress(done, self.pairs)
        rows += _summaries(loaded, rows, self.ks)
        order = [*loaded.tasks, *loaded.groups, *loaded.sets]
        rows.sort(key=lambda row: (order.index(row.task), self.ks.index(row.k)))
        versions = environment()
        versions["packages"]["lm-eval"] = metadata.version("lm-eval")
        arguments = {**(self.manifest().growing or {}), "the model's weights (their hash)": self.weights_hash}
        result = BenchmarkResult(options.model, self.lens.cfg.n_heads, tuple(rows), arguments, versions)
        folder.keep("benchmarks.json", [asdict(row) for row in rows], result)
        return result

    def _stages(self, folder: Folder) -> dict[str, Callable[[], Rows]]:
        """Each task and k by name, as what takes it from the folder or makes it."""
        options, growing, files = self.options, self.manifest().growing, _files(self.options.include)
        stages: dict[str, Callable[[], Rows]] = {}
        for name, task in self.loaded.tasks.items():
            depends = [growing, files, _documents(task)]
            for k in self.ks:
                made = partial(_made, self.lens, options, self.edits[k], task, k)
                file = f"benchmarks/{name.replace('/', '-')}-{k}.json"
                stages[f"{name}, k = {k}"] = partial(folder.take, file, [*depends, name, k], Rows.load, made)
        return stages

    def parts(self, folder: Folder, wave: int) -> Sequence[Part]:
        """See `Experiment`: each task and k."""
        return [stage(name, take, TASK) for name, take in self._stages(folder).items()]

    def page(self, result: BenchmarkResult, record: Mapping[str, Any]) -> Article:
        """See `Experiment`."""
        header, *rows = result.lines()
        return Article(
            subject="benchmarks",
            over="Benchmarks of general ability under fewer heads",
            origin=(f"{many(len(result.tasks), 'task')} at k = {', '.join(map(str, result.ks))}",),
            finding=(),
            notes=(),
            sections=(Section("benchmarks", "Scores", (Table(tuple(header), tuple(map(tuple, rows))),)),),
        )

    def table(self, result: BenchmarkResult) -> Iterable[str]:
        """See `Experiment`."""
        return [str(result)]


def run_benchmarks(lens: HybridLens, config: BenchmarkConfig) -> BenchmarkResult:
    """The result of a `BenchmarkRun` that is kept nowhere; errors as there."""
    return result_of(BenchmarkRun(lens, config))


def _files(include: Path | None) -> str:
    """A digest of the files of the local tasks, and of a folder with tasks of one's own."""
    digest = hashlib.sha256()
    for folder in [FOLDER, *([] if include is None else [include])]:
        for file in sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
            digest.update(f"{file.relative_to(folder)}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _documents(task: Any) -> str:
    """A digest of the documents that a task asks about."""
    digest = hashlib.sha256()
    for document in task.eval_docs:
        digest.update(json.dumps(document, sort_keys=True, default=str).encode() + b"\0")
    return digest.hexdigest()


def _check_fewshot(loaded: Loaded, wanted: int | None) -> None:
    """Set each task's number of examples; refuse to override one that its YAML file fixes at none.

    lm-eval would ignore the argument there without a word.
    """
    for name, task in loaded.tasks.items():
        given = task.get_config("num_fewshot")
        if wanted and given == 0:
            raise InputError(f"num_fewshot {wanted} given, but task {name!r} is made for none; run it without")
        if wanted is not None or given is None:
            task.set_config(key="num_fewshot", value=wanted or 0)


def _made(lens: HybridLens, config: BenchmarkConfig, edits: Sequence[Edit], task: Any, k: int) -> Rows:
    return Rows(tuple(_run(lens, config, edits, task, k)))


def _run(lens: HybridLens, config: BenchmarkConfig, edits: Sequence[Edit], task: Any, k: int) -> list[BenchmarkRow]:
    """One task under the edits of one k."""
    from lm_eval.evaluator import evaluate

    from analyses.study.benchmarks.harness import HarnessModel

    task.set_fewshot_seed(seed=config.seed)  # anew each time, so that every k gets the same examples
    try:
        with quiet(not config.verbose), seeded():
            boundary = cast(Boundary, config.boundary)
            model = HarnessModel(lens, edits, config.batch_size, config.max_length, boundary, config.seed)
            found = evaluate(
                model,
                {"tasks": {task.task_name: task}},
                limit=config.limit,
                bootstrap_iters=BOOTSTRAP,
                log_samples=True,
                system_instruction=config.system_instruction,
                apply_chat_template=config.apply_chat_template,
                fewshot_as_multiturn=config.fewshot_as_multiturn,
            )
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"a batch of {config.batch_size} does not fit the memory of {lens.device}; give a smaller batch size"
        ) from error
    found = cast(Mapping[str, Mapping[str, Any]], found)  # it is None only for helpers of a distributed run
    name = task.task_name
    better = found["higher_is_better"].get(name, {})
    return _rows(name, k, found["results"][name], better, found["samples"][name], model.truncated)


def _rows(
    name: str,
    k: int,
    held: Mapping[str, Any],
    better: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]] = (),
    truncated: int = 0,
) -> list[BenchmarkRow]:
    """The rows of one of lm-eval's tables of metrics: "acc,none" with "acc_stderr,none", and so on."""
    rows: list[BenchmarkRow] = []
    for key, value in held.items():
        metric, _, way = key.partition(",")
        if not way or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        if not math.isfinite(value):
            raise ResultsError(f"task {name!r} gave {metric} = {value} at k = {k}; leave it out, or raise its limit")
        stderr = held.get(f"{metric}_stderr,{way}")
        known = isinstance(stderr, (int, float)) and math.isfinite(stderr)
        scores = [sample.get(metric) for sample in samples if sample.get("filter") == way]
        shares = bool(scores) and all(isinstance(s, (bool, int, float)) and 0 <= s <= 1 for s in scores)
        rows.append(
            BenchmarkRow(
                name,
                k,
                metric if way == "none" else key,
                float(value),
                float(cast(float, stderr)) if known else None,
                int(held.get("sample_len", len(samples))),
                cast("bool | None", better.get(metric)),
                tuple(float(cast(float, score)) for score in scores) if shares else None,
                truncated,
            )
        )
    if not rows:
        raise ResultsError(f"task {name!r} gave no number; expected at least one metric that is one")
    return rows


def _summaries(loaded: Loaded, rows: Sequence[BenchmarkRow], ks: Sequence[int]) -> list[BenchmarkRow]:
    """The scores of groups, by lm-eval's own rule, and of tags."""
    made: list[BenchmarkRow] = []
    for k in ks:
        parts: dict[str, list[BenchmarkRow]] = {}
        for row in rows:
            if row.k == k and row.task in loaded.tasks:
                parts.setdefault(row.task, []).append(row)
        tables = {task: _table(found) for task, found in parts.items()}
        for name, group in loaded.groups.items():
            if group.has_aggregation:
                with quiet():
                    held = group.aggregate(tables)
                cut = sum(parts[task.task_name][0].truncated for task in group.get_all_tasks())
                made += _rows(name, k, held, {}, truncated=cut)
        made += [mean_row(name, k, [parts[task] for task in tasks]) for name, tasks in loaded.sets.items()]
    return made


def _table(rows: Sequence[BenchmarkRow]) -> dict[str, Any]:
    """The rows of a task as lm-eval writes them."""
    table: dict[str, Any] = {"sample_len": rows[0].n}
    for row in rows:
        metric, _, way = row.metric.partition(",")
        table[f"{metric},{way or 'none'}"] = row.value
        table[f"{metric}_stderr,{way or 'none'}"] = "N/A" if row.stderr is None else row.stderr
    return table
