"""`hybridlens capacity`, on a random model: a folder that a killed run goes on in, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import refused
from test_viz import Page

from analyses.cli import main
from analyses.heads import answering
from analyses.study.capacity import SILENT, UNTOUCHED, Capacity

SMALL = ["--facts", "2,1", "--prompts", "2", "--batch-size", "2", "--length", "110", "--max-new-tokens", "3"]

pytestmark = [
    pytest.mark.usefixtures("small_bundles"),
    pytest.mark.filterwarnings("ignore:the tokenizer does not know"),
]


def command(checkpoint: Path, out: Path, *more: str) -> list[str]:
    return ["capacity", "--model", str(checkpoint), *SMALL, *more, "--out", str(out)]


def test_a_killed_run_goes_on_and_ends_the_same(
    jamba: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed at the eleventh of 16 cells: what was finished is kept, and the result is equal byte for byte.

    A further call prints the same and answers nothing.
    """
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(command(jamba, whole)) == 0
    printed = capsys.readouterr().out
    real, made = answering._cell, 0

    def killed(*given: Any) -> Any:
        nonlocal made
        made += 1
        if made == 11:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(answering, "_cell", killed)
    assert main(command(jamba, cut)) == 130
    assert f"kept in {cut}" in capsys.readouterr().err
    kept = (cut / "cells.jsonl").read_bytes()
    assert 0 < kept.count(b"\n") < 11
    assert main(command(jamba, cut)) == 0
    assert made < 11 + 16, "what was finished is not made again"
    assert (cut / "cells.jsonl").read_bytes().startswith(kept)
    assert (cut / "capacity.json").read_bytes() == (whole / "capacity.json").read_bytes()
    assert capsys.readouterr().out == printed.replace(str(whole), str(cut))
    made = 100
    assert main(command(jamba, cut)) == 0
    assert made == 100
    found = Capacity.load(cut / "capacity.json")
    assert (found.conditions, found.counts, found.length) == ((UNTOUCHED, SILENT), (1, 2), 110)
    assert [(one.condition, one.facts, one.prompt, one.control) for one in found.answers] == [
        (condition, n, number, control)
        for condition in (UNTOUCHED, SILENT)
        for n in (1, 2)
        for number in (0, 1)
        for control in (False, True)
    ]
    record = json.loads((cut / "run.json").read_text())
    assert (record["status"], record["job"], record["arguments"]["facts"]) == ("complete", "capacity", [1, 2])
    page = Page((cut / "report.html").read_text(encoding="utf-8"))
    assert {a.get("id") for tag, a in page.tags if tag == "section"} >= {"recall", "held", "places", "memory"}
    assert "--prompts" in refused(command(jamba, cut, "--prompts", "3"), capsys), "another run"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--facts", "0,1"], "--facts holds 0, expected numbers of facts from 1 up"),
        (["--facts", "2,2"], "--facts holds 2 more than once"),
        (["--facts", "49"], "--facts 49 given, expected at most 48"),
        (["--facts", "many"], "--facts 'many' given, expected whole numbers"),
        (["--facts", "4"], "--length 110 given, expected at least"),
        (["--form", "riddle"], "--form 'riddle' does not exist; expected one of best-thing, secret-word"),
        (["--length", "399"], "--length 399 given, expected at most 397"),
        (["--prompts", "0"], "--prompts 0 given, expected greater than or equal to 1"),
        (["--memory", "1KB"], "--memory 1 KB given, but a single row"),
    ],
)
def test_what_does_not_fit_is_one_line(
    more: list[str], message: str, jamba: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(command(jamba, tmp_path / "run", *more), capsys)
    assert not (tmp_path / "run").exists()
