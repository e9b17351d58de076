"""Benchmarks of general ability: any task of lm-eval under any number of heads kept (section 3.2 of the paper).

`running` runs the tasks of a `BenchmarkConfig` and gives a `BenchmarkResult`; `harness` holds the adapter through which
lm-eval sees a lens with edits, `local_tasks` the project's own tasks. lm-eval is an extra, imported when it is needed.
"""

from analyses.experiment.options.benchmarks import BenchmarkConfig, default_ks
from analyses.study.benchmarks.results import BenchmarkResult, BenchmarkRow
from analyses.study.benchmarks.running import BenchmarkRun, run_benchmarks
from analyses.study.benchmarks.tasks import check_tasks

__all__ = [
    "BenchmarkConfig", "BenchmarkResult", "BenchmarkRow", "BenchmarkRun", "check_tasks", "default_ks", "run_benchmarks"
]  # fmt: skip
