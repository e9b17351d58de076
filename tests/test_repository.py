"""What the repository's host and the package registry read: workflows, issue forms, versions, extras.

`make repository` checks them against their schemas besides; here stands what a schema does not know.
"""

import importlib
import re
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import hybridlens as hl

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
PAGES = [ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = [line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", line)]
PINNED = re.compile(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")


def targets() -> set[str]:
    """Those of the Makefile that stand there by name."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.findall(r"^([a-z][\w -]*):(?!=)", text, flags=re.MULTILINE)
    return {name for line in found for name in line.split()}


def made(command: str) -> list[str]:
    """The targets that a call of make names; its settings are none."""
    words = re.sub(r'\w+="[^"]*"', "", command).split()
    assert words[0] == "make", command
    return words[1:]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_make_alone_by_pinned_actions(path: Path) -> None:
    """What public CI does can be done by hand; an action cannot change under its name."""
    text = path.read_text(encoding="utf-8")
    flow: dict[Any, Any] = yaml.safe_load(text)
    assert set(flow) == {"name", True, "permissions", "concurrency", "jobs"}  # YAML 1.1 reads `on` as True
    assert flow["permissions"] == {"contents": "read"}
    steps = [step for job in flow["jobs"].values() for step in job["steps"]]
    for job in flow["jobs"].values():
        assert job["timeout-minutes"] <= 120
        assert any("run" in step for step in job["steps"])
        python = next(step["with"]["python-version"] for step in job["steps"] if "setup-python" in step.get("uses", ""))
        assert python in (*PYTHONS, "${{ matrix.python }}")
        assert set(job.get("strategy", {}).get("matrix", {}).get("python", [])) <= set(PYTHONS)
    named = [target for step in steps if "run" in step for target in made(step["run"])]
    assert named
    assert set(named) <= targets()
    used = re.findall(r"uses: (.*)", text)
    assert len(used) == sum("uses" in step for step in steps)
    assert [line for line in used if not PINNED.fullmatch(line)] == []


def test_every_python_and_kind_of_row_is_tried() -> None:
    """Those that pyproject.toml declares, and those that `.ci/compat.py` knows."""
    flows = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in WORKFLOWS}
    assert {"docs", "tests", "wheel"} <= set(flows)
    compat = flows["tests"]["jobs"]["compat"]["strategy"]["matrix"]
    assert compat["python"] == flows["wheel"]["jobs"]["installed"]["strategy"]["matrix"]["python"] == PYTHONS
    kinds = {*compat["which"], *(one["which"] for one in compat["include"]), "wheel"}
    (listed,) = re.findall(r"^OLDEST = \{(.*)\}$", (ROOT / ".ci" / "compat.py").read_text(), flags=re.MULTILINE)
    assert kinds == {kind.strip('"').lower() for kind in re.findall(r'("?\w+"?):', listed)}


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_issue_forms_are_whole(path: Path) -> None:
    """Each field that is filled in has a name of its own and a label; something is required."""
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(form)
    fields = [one for one in form["body"] if one["type"] != "markdown"]
    assert {one["type"] for one in fields} <= {"textarea", "input", "dropdown", "checkboxes"}
    ids = [one["id"] for one in fields]
    assert len(set(ids)) == len(ids) > 1
    assert all(one["attributes"]["label"] for one in fields)
    assert any(one.get("validations", {}).get("required") for one in fields)


def test_a_bug_comes_with_what_the_doctor_says() -> None:
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text(encoding="utf-8"))
    (doctor,) = (one for one in form["body"] if one.get("id") == "doctor")
    assert "hybridlens doctor" in doctor["attributes"]["label"]
    assert doctor["validations"]["required"]


def test_one_version_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    (newest, *_) = re.findall(r"^## \[(\d.*?)\]", changes, flags=re.MULTILINE)
    assert {PROJECT["version"], citation["version"], newest} == {hl.__version__}
    assert citation["license"] == PROJECT["license"]


def test_extras_hold_what_they_are_for() -> None:
    extras = PROJECT["optional-dependencies"]
    assert {"benchmarks", "gpu", "cluster", "docs", "dev"} <= set(extras)
    assert any(line.startswith("lm-eval") for line in extras["benchmarks"])
    assert any(line.startswith("submitit") for line in extras["cluster"])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_name_files_and_targets_that_are_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text)]
    assert [link for link in links if not (ROOT / link).exists()] == []
    commands = re.findall(r"`(make [^`]+)`", text)
    assert {target for command in commands for target in made(command)} <= targets()


@pytest.mark.parametrize("path", [*WORKFLOWS, *FORMS, *PAGES, ROOT / "CITATION.cff"], ids=lambda path: path.name)
def test_nothing_names_a_host_or_a_machine(path: Path) -> None:
    """A registry's address or a folder of one machine would be wrong everywhere else."""
    named = re.compile(r"https?://\S+|(?:^|[\s'\"`(])/(?:root|home|tmp|opt|work|usr)\b\S*", re.MULTILINE)
    assert named.findall(path.read_text(encoding="utf-8")) == []


def test_a_wheel_that_holds_anything_else_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two tracked files one is missing and one another; two more are strangers, one of them at the top."""
    monkeypatch.syspath_prepend(ROOT / ".ci")
    built = importlib.import_module("packaged")
    here, gone = "hybridlens/py.typed", "analyses/cli.py"
    monkeypatch.setattr(built, "tracked", lambda: {here, gone})
    about = f"hybridlens-{hl.__version__}.dist-info/METADATA"

    def wheel(**held: str) -> Path:
        with zipfile.ZipFile(tmp_path / "made.whl", "w") as out:
            for name, text in held.items():
                out.writestr(name, text)
        return tmp_path / "made.whl"

    right = {name: (ROOT / name).read_text(encoding="utf-8") for name in (here, gone)} | {about: ""}
    assert built.wrong(wheel(**right)) == []
    found = built.wrong(wheel(**{here: "changed", "hybridlens/stray.py": "", "tests/x.py": "", about: ""}))
    assert re.match(r"top levels hybridlens, hybridlens-\S+, tests, expected hybridlens, analyses", found[0])
    assert found[1:] == [
        "analyses/cli.py is missing", "hybridlens/stray.py is not tracked by git", "tests/x.py is not tracked by git",
        "hybridlens/py.typed is another file",
    ]  # fmt: skip
