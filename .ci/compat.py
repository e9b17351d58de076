"""Tries the oldest and the newest torch and transformers that pyproject.toml allows, on every declared Python.

`make compat` runs it. Each environment is made under build/compat, tested, and deleted: the oldest versions on the
oldest Python, the newest on every Python, and once more on the oldest with the oldest TransformerLens, as SAELens asks
for. All other packages are those of constraints.txt, but for the ones that torch and transformers bring. A Python that
this machine lacks is a row that says so, and is no failure; a failed installation or a failed test is, and its log
stays in build/compat.

    python .ci/compat.py [--python 3.12] [--which peers] [--jobs 2]
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "compat"
VARIED = ("torch", "transformers", "transformer-lens")
# Versions of these are chosen by what is varied.
FOLLOW = {*VARIED, "tokenizers", "huggingface_hub", "hf-xet", "safetensors", "sympy", "networkx", "mpmath", "fsspec"}
PARTS = (
    "contract", "loading", "state", "plain_way", "weights", "runs", "peer_weights", "bridges", "peer_tools",
    "head_detector", "coming_from",
)  # fmt: skip
TESTS = [f"tests/test_{name}.py" for name in PARTS]
OLDEST = {"oldest": {"torch", "transformers"}, "newest": set[str](), "peers": {"transformer-lens"}}
"""Which of the packages are the oldest in a kind of row; of the others the newest."""
TOOLS = ("pytest", "pytest-xdist", "hypothesis", "beartype")
SHOW = "import platform; from importlib.metadata import version as v; print(platform.python_version(), {})"
NONE = ("-",) * len(VARIED)
"""Versions of an environment that was not made."""


class Row(NamedTuple):
    """One line of the table: the versions tried, and what came of it."""

    python: str
    which: str
    torch: str
    transformers: str
    transformer_lens: str
    result: str


def project() -> dict[str, list[str]]:
    """The requirements to vary, what pytest's tools need, and the declared Pythons, from pyproject.toml."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    every = table["dependencies"] + table["optional-dependencies"]["dev"]
    named = {re.split(r"[^\w.-]", line)[0]: line for line in every}
    pythons = [c.rsplit(" ", 1)[1] for c in table["classifiers"] if re.search(r"Python :: 3\.\d+$", c)]
    return {"varied": [named[name] for name in VARIED], "tools": [named[name] for name in TOOLS], "pythons": pythons}


def oldest(requirement: str) -> str:
    """`torch>=2.13,<2.16` → `torch==2.13.*`, of which pip takes the newest patch that it finds."""
    found = re.fullmatch(r"([\w-]+)>=([\d.]+),<[\d.]+", requirement)
    if found is None:
        raise SystemExit(f"pyproject.toml: {requirement!r} given, a range NAME>=LOW,<HIGH expected")
    return f"{found[1]}=={found[2]}.*"


def interpreter(version: str) -> str | None:
    """A Python of this version that runs: on the path, or of pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for path in (shutil.which(f"python{version}"), *sorted(map(str, pyenv.glob(f"{version}.*/bin/python")))):
        ran = path and subprocess.run([path, "-c", "import venv, ensurepip"], capture_output=True, check=False)
        if ran and ran.returncode == 0:
            return path
    return None


def attempt(python: str, which: str, jobs: str) -> Row:
    """One environment, from its making to its deletion."""
    path = interpreter(python)
    if path is None:
        return Row(python, which, *NONE, "skipped: this machine has no such Python")
    wanted = project()
    named = zip(VARIED, wanted["varied"], strict=True)
    varied = [oldest(one) if name in OLDEST[which] else one for name, one in named]
    folder, log = WORK / f"{python}-{which}", WORK / f"{python}-{which}.log"
    pins = WORK / "constraints.txt"
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    pins.write_text("".join(line for line in lines if line.split("==")[0] not in FOLLOW), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    inside = str(folder / "bin" / "python")
    install = [inside, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--constraint", str(pins)]
    shown = [inside, "-c", SHOW.format(", ".join(f"v({name!r})" for name in VARIED))]
    versions = [python, *NONE]
    try:
        with log.open("w", encoding="utf-8") as out:
            def run(*command: str) -> int:
                return subprocess.run(command, cwd=ROOT, stdout=out, stderr=out, check=False).returncode

            # torch and transformers with all else in one command, so that nothing moves them afterwards.
            if run(path, "-m", "venv", str(folder)) or run(*install, *varied, *wanted["tools"], "--editable", "."):
                return Row(python, which, *NONE, f"not installed, see {log.relative_to(ROOT)}")
            versions = subprocess.run(shown, capture_output=True, text=True, check=True).stdout.split()
            failed = run(inside, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--numprocesses", jobs, *TESTS)
        last = log.read_text(encoding="utf-8").rstrip().splitlines()[-1]
        return Row(versions[0], which, *versions[1:], f"FAILED: {last}" if failed else last)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Prints one row after the other; 1 if any of them failed."""
    pythons = project()["pythons"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", choices=pythons, action="append", help="only this Python (may be repeated)")
    parser.add_argument("--which", choices=tuple(OLDEST), help="only this kind of row")
    parser.add_argument("--jobs", default="auto", help="pytest's processes")
    options = parser.parse_args()
    plan = [(pythons[0], "oldest"), (pythons[0], "peers")] + [(python, "newest") for python in pythons]
    WORK.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    form = "{:<8} {:<7} {:<13} {:<13} {:<17} {}"
    print(form.format("python", "which", *VARIED, "result"), flush=True)
    for python, which in plan:
        if python in (options.python or pythons) and which in (options.which or which):
            rows.append(attempt(python, which, options.jobs))
            print(form.format(*rows[-1]), flush=True)
    return int(any(row.result.startswith(("FAILED", "not installed")) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
