"""Benchmarks of general ability: any task of lm-eval under any number of heads kept (section 3.2 of the paper).

`run_benchmarks` runs the tasks of a `BenchmarkConfig` and returns a `BenchmarkResult`; `harness` holds the adapter
through which lm-eval sees a lens with edits. lm-eval itself is an extra, and is imported when it is needed.
"""

from analyses.benchmarks.config import BenchmarkConfig, default_ks
from analyses.benchmarks.results import BenchmarkResult, BenchmarkRow
from analyses.benchmarks.running import run_benchmarks
from analyses.benchmarks.tasks import check_tasks

__all__ = ["BenchmarkConfig", "BenchmarkResult", "BenchmarkRow", "check_tasks", "default_ks", "run_benchmarks"]
