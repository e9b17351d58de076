"""What pyproject.toml declares, and the Pythons that this machine has of those."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def project() -> dict[str, Any]:
    """The table `project` of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements() -> dict[str, str]:
    """Name → requirement, of what is needed and of what developers need."""
    table = project()
    every = table["dependencies"] + table["optional-dependencies"]["dev"]
    return {re.split(r"[^\w.-]", line)[0]: line for line in every}


def pythons() -> list[str]:
    """The declared versions, the oldest first."""
    found = (re.search(r"Python :: (3\.\d+)$", line) for line in project()["classifiers"])
    return [one[1] for one in found if one]


def interpreter(version: str) -> str | None:
    """A Python of this version that runs: on the path, or of pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for path in (shutil.which(f"python{version}"), *sorted(map(str, pyenv.glob(f"{version}.*/bin/python")))):
        ran = path and subprocess.run([path, "-c", "import venv, ensurepip"], capture_output=True, check=False)
        if ran and ran.returncode == 0:
            return path
    return None
