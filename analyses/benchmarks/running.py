"""GLUE, MMLU or any other task of lm-eval with the k most focused heads of each layer (section 3.2 of the paper).

`run_benchmarks` runs every task under every k, the same prompts each time, through the adapter of `harness`. In
the prefill version, which the paper uses, heads are dropped in every forward pass of a request; in the generation
version the context is read with all heads. Scores are lm-eval's own; a group such as MMLU gets the score that
lm-eval gives it, a tag such as GLUE the mean over its tasks. After each task and k the file is written anew, so
a run that was stopped goes on with what is missing.

How it fails: what can be checked without a model is checked when the config is made (`BenchmarkConfig`) and by
`check_tasks`; a file that holds a run of another model or other arguments is refused with `ResultsError`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import torch

from analyses.benchmarks.config import BenchmarkConfig
from analyses.benchmarks.results import BenchmarkResult, BenchmarkRow, mean_row
from analyses.benchmarks.tasks import Loaded, check_tasks, load_tasks, quiet, require, seeded
from analyses.sparsification import top_k
from hybridlens.decoding import Boundary
from hybridlens.errors import InputError, ResultsError
from hybridlens.model import HybridLens
from hybridlens.results import environment, hash_json, hash_weights

BOOTSTRAP = 1000
"""Draws of lm-eval's standard errors where there is no formula."""


def run_benchmarks(
    lens: HybridLens,
    config: BenchmarkConfig,
    path: Path | None = None,
    weights_hash: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> BenchmarkResult:
    """Every task under every k.

    Args:
        lens: the model, with its tokenizer.
        config: what to run.
        path: a JSON file that is written after each task and k, and gone on with where it exists; its folder
            has to. It keeps what it holds of other tasks and k.
        weights_hash: digest of the model's weights; None to work it out where `path` is given.
        progress: called with the pairs of task and k done, and their number, first before any is run.

    Returns:
        the rows of the config's tasks and k.

    Raises:
        UnknownNameError: a task that lm-eval does not have.
        InputError: lm-eval is not installed; data that cannot be loaded; a k above the model's heads; options that
            the tasks or the tokenizer do not allow; a batch that does not fit the memory.
        ResultsError: `path` holds something else.
    """
    require()
    n_heads, ks = lens.cfg.n_heads, config.heads(lens.cfg.n_heads)
    for k in ks:  # a scope or semantics that the model cannot run is told before any data is loaded
        top_k(lens, k, config.phase, config.scope, config.semantics)
    if config.apply_chat_template:
        from analyses.benchmarks.harness import check_chat_template

        check_chat_template(lens.tokenizer)
    digest = weights_hash or ("" if path is None else hash_weights(lens.hf_model.state_dict()))
    arguments = config.compared(lens, digest)
    held = _held(path, arguments)
    check_tasks(config.tasks, config.include)
    loaded = load_tasks(config.tasks, config.include)
    _check_fewshot(loaded, config.num_fewshot)
    rows = {(row.task, row.k, row.metric): row for row in held}
    pairs = [(task, k) for task in loaded.tasks for k in ks]
    done = {(row.task, row.k) for row in held} & set(pairs)
    progress(len(done), len(pairs))
    for task, k in pairs:
        if (task, k) in done:
            continue
        rows |= {(row.task, row.k, row.metric): row for row in _run(lens, config, loaded.tasks[task], k)}
        done.add((task, k))
        if path is not None:
            _result(config, n_heads, list(rows.values()), arguments).save(path)
        progress(len(done), len(pairs))
    for row in _summaries(loaded, list(rows.values()), ks):
        rows[row.task, row.k, row.metric] = row
    if path is not None:
        _result(config, n_heads, list(rows.values()), arguments).save(path)
    order = [*loaded.tasks, *loaded.groups, *loaded.sets]
    wanted = [row for row in rows.values() if row.task in order and row.k in ks]
    wanted.sort(key=lambda row: (order.index(row.task), ks.index(row.k)))
    return _result(config, n_heads, wanted, arguments)


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


def _run(lens: HybridLens, config: BenchmarkConfig, task: Any, k: int) -> list[BenchmarkRow]:
    """One task under one k."""
    from lm_eval.evaluator import evaluate

    from analyses.benchmarks.harness import HarnessModel

    task.set_fewshot_seed(seed=config.seed)  # anew each time, so that every k gets the same examples
    edits = top_k(lens, k, config.phase, config.scope, config.semantics)
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


def _held(path: Path | None, arguments: Mapping[str, Any]) -> tuple[BenchmarkRow, ...]:
    """The rows of a file, if it is there and of the same run.

    Raises:
        ResultsError: it holds another run, or something else.
    """
    if path is None or not path.exists():
        return ()
    before = BenchmarkResult.load(path)
    if hash_json(dict(before.arguments)) == hash_json(dict(arguments)):
        return before.rows
    names = [name for name in arguments if before.arguments.get(name) != arguments[name]]
    name = next(iter(names), "arguments of another version")
    others = f" ({', '.join(names[1:])} differ too)" if names[1:] else ""
    raise ResultsError(
        f"{path} holds a run with {name} {before.arguments.get(name)!r}, and this one has {arguments.get(name)!r}"
        f"{others}; give the same to go on, or another file"
    )


def _result(
    config: BenchmarkConfig, n_heads: int, rows: Sequence[BenchmarkRow], arguments: Mapping[str, Any]
) -> BenchmarkResult:
    versions = environment()
    versions["packages"]["lm-eval"] = metadata.version("lm-eval")
    return BenchmarkResult(config.model, n_heads, tuple(rows), arguments, versions)
