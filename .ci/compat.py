"""Tries the oldest and the newest torch and transformers that pyproject.toml allows, on every declared Python.

`make compat` runs it. Each environment is made under build/compat, tested, and deleted: the oldest versions on the
oldest Python, the newest on every Python, and once more on the oldest with the oldest TransformerLens, as SAELens asks
for. All other packages are those of constraints.txt, but for the ones that torch and transformers bring. The rows
"wheel" are what a stranger does: the wheel of `make wheel` alone in an empty environment, with the newest of everything
that it allows, and its commands in an empty folder outside the checkout. A Python that this machine lacks is a row that
says so, and is no failure; a failed installation or a failed test is, and its log stays in build/compat.

    python .ci/compat.py [--python 3.12] [--which wheel] [--jobs 2]
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from declared import ROOT, interpreter, project, pythons, requirements

WORK = ROOT / "build" / "compat"
VARIED = ("torch", "transformers", "transformer-lens")
# Versions of these are chosen by what is varied.
FOLLOW = {*VARIED, "tokenizers", "huggingface_hub", "hf-xet", "safetensors", "sympy", "networkx", "mpmath", "fsspec"}
PARTS = (
    "contract", "loading", "state", "plain_way", "weights", "runs", "peer_weights", "bridges", "peer_tools",
    "head_detector", "coming_from",
)  # fmt: skip
TESTS = [f"tests/test_{name}.py" for name in PARTS]
WHEEL = "wheel"
OLDEST = {"oldest": {"torch", "transformers"}, "newest": set[str](), "peers": {"transformer-lens"}, WHEEL: set[str]()}
"""Which of the packages are the oldest in a kind of row; of the others the newest."""
TOOLS = ("pytest", "pytest-xdist", "hypothesis", "beartype")
COMMANDS = (
    ("--help",),
    ("models",),
    ("doctor",),
    ("niah", "--model", "tiny-jamba", "--lengths", "150", "--depths", "50", "--heads", "8", "--out", "results"),
)
"""What is tried of a wheel."""
SHOW = "import platform; from importlib.metadata import version as v; print(platform.python_version(), {})"
NONE = ("-",) * len(VARIED)
"""Versions of an environment that was not made."""

Run = Callable[..., int]
"""Runs a command, given as words, into the log; its exit status."""


class Row(NamedTuple):
    """One line of the table: the versions tried, and what came of it."""

    python: str
    which: str
    torch: str
    transformers: str
    transformer_lens: str
    result: str


def oldest(requirement: str) -> str:
    """`torch>=2.13,<2.16` → `torch==2.13.*`, of which pip takes the newest patch that it finds."""
    found = re.fullmatch(r"([\w-]+)>=([\d.]+),<[\d.]+", requirement)
    if found is None:
        raise SystemExit(f"pyproject.toml: {requirement!r} given, a range NAME>=LOW,<HIGH expected")
    return f"{found[1]}=={found[2]}.*"


def wanted(which: str) -> list[str]:
    """What pip is asked for in a kind of row."""
    if which == WHEEL:
        return [str(built())]
    pins = WORK / "constraints.txt"
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    pins.write_text("".join(line for line in lines if line.split("==")[0] not in FOLLOW), encoding="utf-8")
    named = requirements()
    varied = [oldest(named[name]) if name in OLDEST[which] else named[name] for name in VARIED]
    # torch and transformers with all else in one command, so that nothing moves them afterwards.
    return ["--constraint", str(pins), *varied, *(named[name] for name in TOOLS), "--editable", "."]


def built() -> Path:
    """The wheel of this version in dist/."""
    found = sorted((ROOT / "dist").glob(f"hybridlens-{project()['version']}-*.whl"))
    if not found:
        raise SystemExit("dist/ holds no wheel of this version; run: make wheel")
    return found[-1]


def tested(run: Run, inside: Path, jobs: str) -> int:
    """The tests of the checkout; 0 if all passed."""
    return run(inside / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--numprocesses", jobs, *TESTS)


def commanded(run: Run, inside: Path) -> int:
    """The commands of an installed wheel, in an empty folder; 0 if all succeeded."""
    with tempfile.TemporaryDirectory() as empty:
        return next((rc for words in COMMANDS if (rc := run(inside / "hybridlens", *words, where=empty))), 0)


def attempt(python: str, which: str, jobs: str) -> Row:
    """One environment, from its making to its deletion."""
    path = interpreter(python)
    if path is None:
        return Row(python, which, *NONE, "skipped: this machine has no such Python")
    folder, log = WORK / f"{python}-{which}", WORK / f"{python}-{which}.log"
    shutil.rmtree(folder, ignore_errors=True)
    inside = folder / "bin"
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    install = [inside / "python", "-m", "pip", "install", "--quiet", "--no-cache-dir", *wanted(which)]
    shown = [inside / "python", "-c", SHOW.format(", ".join(f"v({name!r})" for name in VARIED))]
    try:
        with log.open("w", encoding="utf-8") as out:

            def run(*words: object, where: object = ROOT) -> int:
                command = list(map(str, words))
                return subprocess.run(command, cwd=str(where), env=plain, stdout=out, stderr=out).returncode

            if run(path, "-m", "venv", folder) or run(*install):
                return Row(python, which, *NONE, f"not installed, see {log.relative_to(ROOT)}")
            versions = subprocess.run(shown, capture_output=True, text=True, check=True).stdout.split()
            failed = commanded(run, inside) if which == WHEEL else tested(run, inside, jobs)
        last = log.read_text(encoding="utf-8").rstrip().splitlines()[-1]
        good = f"{len(COMMANDS)} commands run" if which == WHEEL else last
        return Row(versions[0], which, *versions[1:], f"FAILED: {last}" if failed else good)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Prints one row after the other; 1 if any of them failed."""
    every = pythons()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", choices=every, action="append", help="only this Python (may be repeated)")
    parser.add_argument("--which", choices=tuple(OLDEST), help="only this kind of row")
    parser.add_argument("--jobs", default="auto", help="pytest's processes")
    options = parser.parse_args()
    plan = [(every[0], "oldest"), (every[0], "peers")]
    plan += [(python, which) for which in ("newest", WHEEL) for python in every]
    WORK.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    form = "{:<8} {:<7} {:<13} {:<13} {:<17} {}"
    print(form.format("python", "which", *VARIED, "result"), flush=True)
    for python, which in plan:
        if python in (options.python or every) and which in (options.which or which):
            rows.append(attempt(python, which, options.jobs))
            print(form.format(*rows[-1]), flush=True)
    return int(any(row.result.startswith(("FAILED", "not installed")) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
