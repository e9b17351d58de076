"""Checks what the repository's host reads against its schemas: workflows and citation.

`make repository` runs it, each tool in an environment of its own, since their requirements exclude each other: GitHub's
schema of workflows (check-jsonschema), what makes a workflow unsafe (zizmor), the citation (cffconvert).
`tests/test_repository.py` checks the rest without them: that workflows call make's targets alone, by actions of a fixed
commit, and what issue forms hold.

    python .ci/repository.py
"""

import subprocess
import sys
import venv
from pathlib import Path

from declared import ROOT

WORKFLOWS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / ".github" / "workflows").glob("*.yml"))
CHECKS = {
    "check-jsonschema>=0.39,<1": ("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *WORKFLOWS),
    "zizmor>=1.32,<2": ("zizmor", "--offline", "--no-progress", *WORKFLOWS),
    "cffconvert>=2,<3": ("cffconvert", "--validate"),
}
"""What is installed → what is run of it."""


def passes(requirement: str, tool: str, *words: str) -> bool:
    """Whether a tool finds nothing amiss; it says itself what is."""
    inside: Path = ROOT / "build" / "repository" / tool / "bin"
    if not inside.exists():
        venv.create(inside.parent, with_pip=True)
    subprocess.run([inside / "python", "-m", "pip", "install", "--quiet", requirement], check=True)
    return subprocess.run([inside / tool, *words], cwd=ROOT).returncode == 0


def main() -> int:
    """1 if anything is amiss."""
    found = [passes(requirement, *command) for requirement, command in CHECKS.items()]
    return int(not all(found))


if __name__ == "__main__":
    sys.exit(main())
