"""Checks what the repository's host reads: workflows, issue forms, citation.

`make repository` runs it, with tools in an environment of their own: GitHub's schema of workflows (check-jsonschema),
what makes a workflow unsafe (zizmor), the citation (cffconvert). `tests/test_repository.py` checks the rest without
them: that workflows call make's targets alone, by actions of a fixed commit, and what issue forms hold.

    python .ci/repository.py
"""

import subprocess
import sys
import venv

from declared import ROOT

TOOLS = ("check-jsonschema>=0.39,<0.40", "zizmor>=1.32,<2", "cffconvert>=2,<3")


def main() -> int:
    """1 if anything is amiss, which the tools say."""
    folder = ROOT / "build" / "repository-tools"
    inside = folder / "bin"
    if not folder.exists():
        venv.create(folder, with_pip=True)
    subprocess.run([str(inside / "python"), "-m", "pip", "install", "--quiet", *TOOLS], check=True)
    workflows = sorted(map(str, (ROOT / ".github" / "workflows").glob("*.yml")))
    runs = [
        subprocess.run([str(inside / tool), *words], cwd=ROOT).returncode
        for tool, *words in (
            ["check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows],
            ["zizmor", "--offline", "--no-progress", *workflows],
            ["cffconvert", "--validate"],
        )
    ]
    return int(any(runs))


if __name__ == "__main__":
    sys.exit(main())
