"""Builds the source distribution, the wheel from that, and looks at what is in them.

`make wheel` runs it. The wheel has to hold the files of hybridlens and analyses that git tracks, each to the byte, and
nothing else beside its own description; it has to be small, and both have to pass `twine check --strict`. They lie in
dist/ afterwards. That the wheel installs and runs is another question, which the rows "wheel" of `compat.py` answer.

    python .ci/packaged.py
"""

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

from declared import ROOT, project

PACKAGES = ("hybridlens", "analyses")
TOOLS = ("build>=1.3,<2", "twine>=6.2,<8")
DIST = ROOT / "dist"
MOST = 60_000_000
"""Bytes of either."""


def build() -> tuple[Path, Path]:
    """The source distribution and the wheel, made anew by tools in an environment of their own."""
    folder = ROOT / "build" / "wheel-tools"
    if not folder.exists():
        venv.create(folder, with_pip=True)
    inside = str(folder / "bin" / "python")
    shutil.rmtree(DIST, ignore_errors=True)
    subprocess.run([inside, "-m", "pip", "install", "--quiet", *TOOLS], check=True)
    # Without --sdist or --wheel the wheel is built from the source distribution, as an installer would do it.
    subprocess.run([inside, "-m", "build", "--outdir", str(DIST), str(ROOT)], check=True, stdout=subprocess.DEVNULL)
    made = sorted(DIST.iterdir())
    subprocess.run([inside, "-m", "twine", "check", "--strict", *map(str, made)], check=True)
    (source,), (wheel,) = DIST.glob("*.tar.gz"), DIST.glob("*.whl")
    return source, wheel


def tracked() -> set[str]:
    """The files of both packages, as git has them."""
    listed = subprocess.run(["git", "ls-files", "-z", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in listed.stdout.split("\0") if name}


def wrong(wheel: Path) -> list[str]:
    """What is amiss in a wheel, a line each."""
    found: list[str] = []
    with zipfile.ZipFile(wheel) as held:
        names = {name for name in held.namelist() if not name.endswith("/")}
        about = f"hybridlens-{project()['version']}.dist-info"
        inside = {name for name in names if name.partition("/")[0] != about}
        tops = {name.partition("/")[0] for name in names}
        if tops != {*PACKAGES, about}:
            found.append(f"top levels {', '.join(sorted(tops))}, expected {', '.join((*PACKAGES, about))}")
        found += [f"{name} is missing" for name in sorted(tracked() - inside)]
        found += [f"{name} is not tracked by git" for name in sorted(inside - tracked())]
        found += [f"{name} is another file" for name in sorted(inside & tracked())
                  if held.read(name) != (ROOT / name).read_bytes()]  # fmt: skip
    return found


def main() -> int:
    """Prints sizes and what is wrong; 1 if anything is."""
    source, wheel = build()
    found = wrong(wheel)
    for file in (source, wheel):
        size = file.stat().st_size
        print(f"{file.relative_to(ROOT)}: {size / 1e6:.1f} MB")
        found += [f"{file.name} has {size} bytes, at most {MOST} are allowed"] if size > MOST else []
    for line in found:
        print(f"WRONG: {line}", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
