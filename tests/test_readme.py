"""The README is true: its Python examples run as they stand, one after the other, and its commands exist."""

import re
import warnings
from pathlib import Path

from typer.testing import CliRunner

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_examples_run_without_a_warning(tmp_path, monkeypatch):
    """An example with a word that the tiny tokenizer does not know, or a name that changed, fails here."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 4
    scope: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for number, block in enumerate(blocks):
            path = tmp_path / f"example_{number}.py"  # nnsight reads the source of its `with` block
            path.write_text(block, encoding="utf-8")
            exec(compile(block, str(path), "exec"), scope)
    assert scope["out"].text
    for name, place in (("untouched", "San Francisco"), ("steered", "Lima")):  # as the README says
        assert f"best thing to do in {place} is" in scope[name].text[0]
    assert scope["pattern"].shape[1] == scope["lens"].cfg.n_heads


def test_the_commands_exist_with_their_options():
    from analyses.cli import app

    commands = re.findall(r"^hybridlens (\w+)([^#\n]*)", README, flags=re.MULTILINE)
    names = {"models", "hooks", "heads", "niah", "reproduce", "circuits", "rankings", "reduce", "patch", "crossover",
             "states", "capacity", "curves", "compare", "zoo", "report", "status", "doctor"}  # fmt: skip
    assert {name for name, _ in commands} == names
    for name, rest in commands:
        shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
        for option in re.findall(r"--\w[\w-]*", rest):
            assert option in shown, f"{name} {option}"


def test_the_table_of_sweeps_lists_each_with_its_hook_point():
    """Every sweep stands in one row; in a row that names hook points, the one at its place is its own."""
    from analyses.patching.sweeps import SWEEPS

    rows = re.findall(r"^\| (`[^|]+`) \| ([^|]+) \| ([^|]+) \|$", README, flags=re.MULTILINE)
    found: dict[str, str] = {}
    for names, points, _ in rows:
        for place, name in enumerate(re.findall(r"`(\w+)`", names)):
            listed = re.findall(r"`([\w.]+)`", points)
            found[name] = listed[place] if listed else found[re.sub(r"_by_\w+", "", name)]
    assert {name: found.get(name) for name in SWEEPS} == {name: sweep.point for name, sweep in SWEEPS.items()}
