"""Benchmarks of general ability: any task of lm-eval under any number of heads kept (section 3.2 of the paper).

lm-eval is an extra, imported when it is needed.

Modules:
    results: typed results
    local_tasks: tasks for lm-eval that the tiny models can do: YAML files with their items
    tasks: lm-eval's tasks by name
    harness: a lens with edits as lm-eval sees a model
    running: every task under every k
"""

from analyses.experiment.options.benchmarks import BenchmarkConfig, default_ks
from analyses.study.benchmarks.results import BenchmarkResult, BenchmarkRow
from analyses.study.benchmarks.running import BenchmarkRun, run_benchmarks
from analyses.study.benchmarks.tasks import check_tasks

__all__ = [
    "BenchmarkConfig", "BenchmarkResult", "BenchmarkRow", "BenchmarkRun", "check_tasks", "default_ks", "run_benchmarks"
]  # fmt: skip
