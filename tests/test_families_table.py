"""The table of families: what it says is what its checks find, and each check finds a fault that is planted."""

import re
from dataclasses import replace
from pathlib import Path

import families_table
import family_checks
import pytest
from family_checks import CHECKS, Case, NotThere, checked
from models import ROWS

from analyses.cli import main
from analyses.commands.family_table import family_table
from hybridlens.errors import ResultsError, UnknownNameError
from hybridlens.families import FAMILIES
from hybridlens.supported import COLUMNS, FILE, FamilyRow, Supported, Verdict, supported
from hybridlens.weights import Weights


@pytest.mark.parametrize("family", ROWS)
def test_a_family_is_what_the_table_says(family):
    """Every word of the row; mended by ``make families-table``, never by hand."""
    row = next((row for row in supported().rows if row.family == family), None)
    assert row is not None, f"{family} has no row; run: make families-table"
    found = checked(family)
    told = {column: (verdict.word, verdict.reason) for column, verdict in found.checks.items()}
    words = {column: verdict.word for column, verdict in row.checks.items()}
    assert {column: word for column, (word, _) in told.items()} == words, f"run: make families-table ({told})"
    assert row.architecture == found.architecture
    assert row.checks["kernels"].by == found.checks["kernels"].by


def test_every_family_has_a_row_and_the_pinned_version():
    pins = (Path(__file__).parent.parent / "constraints.txt").read_text(encoding="utf-8")
    (pinned,) = re.findall(r"^transformers==(\S+)$", pins, flags=re.MULTILINE)
    table = supported()
    assert [row.family for row in table.rows] == [family.name for family in FAMILIES]
    assert table.transformers == pinned, "run: make families-table"
    assert table.json() == FILE.read_text(encoding="utf-8")


def scaled(case):
    case.lens.network.unembed_scale *= 1.001


def misread(point):
    def plant(case):
        for name in case.run:
            if name.endswith(point):
                case.run[name] = case.run[name] * 1.01

    return plant


def rescaled(case, monkeypatch):
    true = Weights.attention

    def attention(self, layer):
        view = true(self, layer)
        return replace(view, scale=1.01 * view.scale)

    monkeypatch.setattr(Weights, "attention", attention)


FAULTS = {"state edits": misread("hook_decay"), "hidden attention": misread("ssm.hook_pattern"), "circuits": rescaled}


@pytest.mark.parametrize("column", COLUMNS)
def test_a_planted_fault_is_found(column, monkeypatch):
    """A thousandth too much at the logits, or a hundredth where a check looks elsewhere: it fails, with a reason."""
    plant = FAULTS.get(column, scaled)

    class Broken(Case):
        def __init__(self, family):
            super().__init__(family)
            plant(self, monkeypatch) if plant is rescaled else plant(self)

    monkeypatch.setattr(family_checks, "Case", Broken)
    monkeypatch.setattr(family_checks, "CHECKS", {column: CHECKS[column]})
    verdict = checked("recurrentgemma" if column == "circuits" else "jamba").checks[column]
    assert (verdict.word, verdict.error) == ("fails", None)
    assert "apart where" in verdict.reason


def test_what_a_family_lacks_is_neither_right_nor_wrong(monkeypatch):
    def lacking(case):
        raise NotThere("no layer has wings")

    monkeypatch.setattr(family_checks, "CHECKS", dict.fromkeys(COLUMNS, lacking))
    assert set(checked("mamba2").checks.values()) == {Verdict("none", None, "no layer has wings")}


def test_the_command_shows_the_table(capsys):
    assert main(["families"]) == 0
    lines, table = capsys.readouterr().out.splitlines(), supported()
    assert [line.split()[0] for line in lines[1 : 1 + len(table.rows)]] == [row.family for row in table.rows]
    assert f"against transformers {table.transformers}" in "\n".join(lines)
    for row, line in zip(table.rows, lines[1:], strict=False):
        signs = [{"works": "yes", "none": "–", "fails": "NO"}[row.checks[column].word] for column in COLUMNS]
        assert line.split()[1:-1] == signs
        assert float(line.split()[-1]) == pytest.approx(row.largest_error, rel=0.5)


def test_what_fails_is_said():
    verdicts = {column: Verdict("works", 1e-7) for column in COLUMNS}
    verdicts |= {"chunks": Verdict("fails", None, "2.0 given, 1.0 expected"), "crossover": Verdict("none")}
    alike = FamilyRow("like_it", "LikeItForCausalLM", {**verdicts, "ragged": Verdict("fails", None, "a reason")})
    shown = family_table(Supported("5.0", (FamilyRow("made_up", "MadeUpForCausalLM", verdicts), alike)))
    said = ["chunks: 2.0 given, 1.0 expected (made_up, like_it)", "ragged: a reason (like_it)"]
    assert shown.splitlines()[-2:] == said
    assert shown.splitlines()[1].split() == ["made_up", "yes", "NO", *["yes"] * 8, "–", "yes", "1e-07"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"transformers": "5", "families": {"a": {}}}', '{"families": 3}'])
def test_a_damaged_table_is_one_line(text, tmp_path):
    file = tmp_path / "supported.json"
    with pytest.raises(ResultsError, match=r"is missing; install hybridlens again"):
        supported(file)
    file.write_text(text)
    with pytest.raises(ResultsError, match=r"is damaged \(.*\); install hybridlens again") as caught:
        supported(file)
    assert "\n" not in str(caught.value)


def test_rows_of_some_families_are_made_anew(monkeypatch):
    """Those named, in the table's order; the others stay, unless they are of another version of transformers."""
    before = supported()
    monkeypatch.setattr(families_table, "checked", lambda name: FamilyRow(name, "new", {}))
    monkeypatch.setattr(families_table, "table", lambda names: Supported("new", tuple(names)))
    rows = families_table.made_anew(before, ["llama"]).rows
    assert [row for row in rows if row.family != "llama"] == [row for row in before.rows if row.family != "llama"]
    assert [row.family for row in rows if row.architecture == "new"] == ["llama"]
    assert [row.family for row in rows] == [row.family for row in before.rows]
    every = tuple(family.name for family in FAMILIES)
    assert families_table.made_anew(before, []).rows == every
    assert families_table.made_anew(before._replace(transformers="4.0"), ["llama"]).rows == every
    with pytest.raises(UnknownNameError, match="family 'lama' does not exist; expected some of recurrentgemma, jamba"):
        families_table.made_anew(before, ["lama"])
