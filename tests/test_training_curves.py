"""Curves of training: each number is that of the project's function, rules on planted curves, runs that go on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import refused
from planted_training import a_run
from report_pages import Page
from test_tiny_training import SMALL

import hybridlens as hl
from analyses.circuits.running import circuits
from analyses.cli import main
from analyses.experiment.filler import linearising_text
from analyses.experiment.options.curves import CurvesConfig
from analyses.experiment.running import conduct
from analyses.study.training_curves import experiment, measuring
from analyses.study.training_curves.results import (
    ANSWERS,
    COMPOSED,
    CONTROLS,
    CONVOLUTIONS,
    EVERYTHING,
    INDUCTION,
    INTACT,
    KEYS,
    SILENT,
    STATES,
    STRENGTH,
    TAP,
    RunCurves,
    TrainingCurves,
)
from analyses.study.training_curves.rules import RuleAnswer, answers
from analyses.study.training_curves.runs import read_training
from hybridlens import niah
from hybridlens.errors import ResultsError, UnknownNameError
from hybridlens.tiny.architectures import build
from hybridlens.tiny.tokenizer import build_tokenizer
from hybridlens.tiny.train import Settings, train
from tests.stored_results import stored as stored_results

NAME, STEPS = "tiny-granite", 4
FEW = ["--lengths", "110", "--depths", "50", "--needles", "paper"]
RETRIEVES, BARE, TAKES_OVER, UNLEARNS, LOSES, LAG, INDUCES, STRONG = range(8)

pytestmark = pytest.mark.usefixtures("small_bundles")


def trained(work: Path, upto: int) -> Path:
    """A run that kept each of its steps, up to one of them; goes on where it was. Its first level has one step."""
    plan = SMALL._replace(stages=(SMALL.stages[0]._replace(at_most=1), SMALL.stages[1]))
    train(Settings(NAME, 3, STEPS, 1), plan, work, None, 1, keep_every=1, probe_every=100, stop_at=upto)
    return work


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints; copy it before changing it."""
    return trained(tmp_path_factory.mktemp("runs") / "a-run", 2)


def copied(kept: Path, folder: Path) -> Path:
    return Path(shutil.copytree(kept, folder / kept.name))


def test_a_run_that_goes_on_is_gone_on_with_and_what_is_measured_may_be_deleted(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only new checkpoints are measured; numbers of one that is gone stay, digit by digit, until they are damaged."""
    work, out = copied(kept, tmp_path), tmp_path / "out"
    options = CurvesConfig(runs=(str(work),), needles=(niah.PAPER_NEEDLE,), lengths=(110,), depths=(50,),
                           max_new_tokens=2)  # fmt: skip
    measured: list[int] = []
    real = experiment.measure

    def counted(*given: Any) -> Any:
        measured.append(given[-1])
        return real(*given)

    monkeypatch.setattr(experiment, "measure", counted)
    (run,) = conduct(experiment.CurvesRun(options), out).result.runs
    assert measured == [1, 2]
    assert (run.name, run.architecture, run.seed, run.steps, run.attention) == ("a-run", NAME, 3, STEPS, True)
    log = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    assert log[0]["stage"] != log[1]["stage"], "else nothing shows that a level's steps alone are averaged"
    assert run.checkpoints[1].of(ANSWERS).value == log[1]["accuracy"]
    lens = hl.load(work / "step-00002")
    weights = circuits(lens, linearising_text(lens))
    assert run.checkpoints[1].of(STRENGTH).value == float(weights.retrieval.max())
    assert run.checkpoints[1].of(INDUCTION).value == float(weights.induction.max())

    trained(work, 3)
    shutil.rmtree(work / "step-00001")
    second = conduct(experiment.CurvesRun(options), out).result
    assert measured == [1, 2, 3]
    assert [one.step for one in second.runs[0].checkpoints] == [1, 2, 3]
    assert second.runs[0].checkpoints[:2] == run.checkpoints
    assert TrainingCurves.load(out / "curves.json").runs == second.runs

    stored = out / "parts" / "a-run" / "step-00001.json"
    stored.write_text(stored.read_text().replace('"step": 1', '"step": 7'))
    again = conduct(experiment.CurvesRun(options), out)
    assert measured == [1, 2, 3]
    assert again.record["remarks"] == [
        "a-run at step 1: the checkpoint is gone, and its numbers with it; it is left out."
    ]
    assert [one.step for one in again.result.runs[0].checkpoints] == [2, 3]
    tables = stored_results(out)["tables"]  # what texts may state of it
    assert {row[1] for row in tables["curves"]["rows"] if row[3] == INTACT} == {2, 3}
    assert [row[1] for row in tables["answers"]["rows"]] == [one.question for one in answers(again.result.runs[0])]


def test_another_run_of_training_in_the_same_folder_is_refused(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step whose weights have changed belongs to another run, whatever its folder is called."""
    work, out = copied(kept, tmp_path), tmp_path / "out"
    (planted,) = a_run({INTACT: [0.7], TAP: [1.0]}).checkpoints
    monkeypatch.setattr(experiment, "measure", lambda *given: replace(planted, step=given[-1]))
    assert main(["curves", str(work), *FEW, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"a-run: {NAME}, seed 3; shares in percent" in printed
    assert "retrieval                   70 (60–80)  70 (60–80)\n" in printed
    assert "a-run, retrieves: yes. Above half from step 1 on (70\u00a0%, 60 to 80; " in printed
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    assert {"rules", "curves", "run-a-run"} <= {a.get("id") for tag, a in page.tags if tag == "section"}
    shutil.copy(work / "step-00001" / "model.safetensors", work / "step-00002" / "model.safetensors")
    said = refused(["curves", work, *FEW, "--out", out], capsys)
    assert "a-run at step 2" in said
    assert "another --out folder" in said


def test_attention_retrieves_in_a_trained_model_and_its_memory_is_followed() -> None:
    """The embedded model, of which stored studies say the same: all with attention, nothing without, keys alone."""
    lens = hl.load("tiny-jamba")
    options = CurvesConfig(
        runs=("a-run",), needles=(niah.NEEDLES["secret-word"],), lengths=(160,), depths=(50,), max_new_tokens=20
    )
    prompts = measuring.make_prompts(lens, options)
    points = [*measuring.told(lens, prompts, options), *measuring.followed(lens, prompts, options)]
    found = {point.quantity: point for point in points}
    assert {name: point.value for name, point in found.items()} == {
        INTACT: 1.0, CONTROLS[INTACT]: 0.0, SILENT: 0.0, CONTROLS[SILENT]: 0.0,
        EVERYTHING: 1.0, KEYS: 1.0, STATES: 0.0, CONVOLUTIONS: 0.0,
    }  # fmt: skip
    assert {point.n for point in found.values()} == {1}
    many = measuring.make_prompts(lens, options.but(depths=(0, 40, 80)))
    grids = (many.needles, *many.more)
    controls = [prompt.tokens for grid in grids for made in grid.values() for prompt in made if prompt.control]
    assert len(set(controls)) == len(controls) == 3, "one for each depth"
    by_lag, weights = [0.0] * 4, circuits(lens)
    beyond = weights.composition.recurrent[1] - weights.composition.recurrent_expected[1]
    for at, reader, layer, lag in torch.cartesian_prod(*map(torch.arange, beyond.shape)).tolist():
        value = float(beyond[at, reader, layer, lag] * weights.lag_share[layer, lag])
        by_lag[lag] = max(by_lag[lag], value if value == value else 0.0)
    assert [(p.quantity, p.value) for p in measuring.tap_of(weights)] == [
        (TAP, by_lag.index(max(by_lag))),
        *((name, pytest.approx(value, rel=1e-5)) for name, value in zip(COMPOSED, by_lag, strict=True)),
    ]


@pytest.mark.parametrize("name", ["tiny-mamba2", "tiny-qwen3"])
def test_what_a_model_has_not_is_absent_with_its_reason(name: str) -> None:
    """No attention to silence, nothing to set one memory against, no heads, no convolution: said, and no 0."""
    tokenizer = build_tokenizer(128)
    lens = hl.HybridLens(build(name, len(tokenizer), 0).eval(), tokenizer)
    options = CurvesConfig(
        runs=("a-run",), needles=(niah.NEEDLES["paper"],), lengths=(110,), depths=(50,), max_new_tokens=1
    )
    prompts = measuring.make_prompts(lens, options)
    points = [*measuring.told(lens, prompts, options), *measuring.strengths(lens)]
    points += measuring.followed(lens, prompts, options)
    lacking = {point.quantity: point.absent for point in points if point.value is None}
    assert all(lacking.values())
    assert all(point.low is None and point.n == 0 for point in points if point.value is None)
    if name == "tiny-mamba2":
        assert "no layer of this granitemoehybrid model has attention" in lacking[SILENT]
        assert {SILENT, CONTROLS[SILENT], KEYS, INDUCTION, STRENGTH, TAP, *COMPOSED} <= set(lacking)
        assert INTACT not in lacking
    else:
        assert {STATES, CONVOLUTIONS, TAP, *COMPOSED} <= set(lacking)
        assert not {INTACT, SILENT, INDUCTION, STRENGTH} & set(lacking)


def said(run: RunCurves, question: int) -> tuple[str, int | None, int | None]:
    answer: RuleAnswer = answers(run)[question]
    return answer.outcome, answer.step, answer.lag


@pytest.mark.parametrize(
    ("curves", "question", "expected"),
    [
        ({INTACT: [0.2, 0.6, 0.4, 0.7, 0.9]}, RETRIEVES, ("yes", 400, None)),
        ({INTACT: [0.2, 0.6, 0.9, 0.7, 0.5]}, RETRIEVES, ("no", None, None)),
        ({INTACT: [0.8, 0.9]}, RETRIEVES, ("yes", 100, None)),
        ({INTACT: [0.9, 0.9], SILENT: [0.4, 0.7]}, BARE, ("yes", 200, None)),
        ({INTACT: [0.9, 0.9]}, BARE, ("open", None, None)),
        # 0.3 to 0.5 against 0.4 to 0.6 are not apart; the convolutions' 0.5 counts as the states' does.
        ({KEYS: [0.0, 0.4, 0.8, 0.9], STATES: [0.9, 0.5, 0.1, 0.1]}, TAKES_OVER, ("yes", 300, None)),
        ({KEYS: [0.0, 0.9, 0.4, 0.9], STATES: [0.9, 0.1, 0.5, 0.1]}, TAKES_OVER, ("yes", 400, None)),
        ({KEYS: [0.9, 0.9], STATES: [0.1, 0.1], CONVOLUTIONS: [0.8, 0.2]}, TAKES_OVER, ("yes", 200, None)),
        ({KEYS: [0.9, 0.3], STATES: [0.1, 0.7]}, TAKES_OVER, ("no", None, None)),
        ({KEYS: [0.9, 0.5], STATES: [0.1, 0.5]}, TAKES_OVER, ("open", None, None)),
        ({KEYS: [0.9, 0.9]}, TAKES_OVER, ("open", None, None)),
        # 0.5 reaches down to 0.4 and 0.2 up to 0.3; 0.35 reaches up to 0.45, which is not below 0.4.
        ({SILENT: [0.1, 0.5, 0.2, 0.2]}, UNLEARNS, ("yes", 300, None)),
        ({SILENT: [0.1, 0.5, 0.35, 0.4]}, UNLEARNS, ("no", None, None)),
        ({SILENT: [0.1, 0.2, 0.4, 0.6]}, UNLEARNS, ("no", None, None)),
        ({SILENT: [0.14, 0.0, 0.0]}, UNLEARNS, ("no", None, None)),  # reaches down to 0.04, its control up to 0.05
        ({SILENT: [0.5, 0.2], CONTROLS[SILENT]: [0.5, 0.0]}, UNLEARNS, ("no", None, None)),
        ({STATES: [0.0, 0.5, 0.2, 0.2]}, LOSES, ("yes", 300, None)),
        ({STATES: [0.0, 0.5, 0.35, 0.6]}, LOSES, ("no", None, None)),
        ({STATES: [0.1, 0.0, 0.0]}, LOSES, ("no", None, None)),  # reaches down to 0
        ({INTACT: [0.9, 0.9]}, LOSES, ("open", None, None)),
        ({TAP: [1.0, 0.0, 1.0, 1.0]}, LAG, ("yes", 300, None)),
        # The last is 1: half of it is told apart at 0.2 and 0.3, not at 0.45. Strength is half at 200.
        ({INTACT: [0.0, 0.2, 0.3, 0.6, 1.0], STRENGTH: [0.1, 0.5, 0.8, 0.9, 0.9]}, STRONG, ("yes", 200, 200)),
        ({INTACT: [0.0, 0.0, 0.6, 0.9, 1.0], STRENGTH: [0.0, 0.0, 0.0, 0.0, 0.9]}, STRONG, ("no", 500, -200)),
        ({INTACT: [0.0, 0.45, 0.6, 0.9, 1.0], STRENGTH: [0.1, 0.5, 0.8, 0.9, 0.9]}, STRONG, ("open", 200, 100)),
        ({INTACT: [0.0, 0.0, 0.6, 0.9, 1.0], STRENGTH: [0.1, 0.1, 0.8, 0.9, 0.9]}, STRONG, ("open", 300, 0)),
        ({INTACT: [0.0, 0.0, 0.6, 0.9, 1.0], STRENGTH: [0.6, 0.1, 0.8, 0.9, 0.9]}, STRONG, ("open", 300, 0)),
        ({INTACT: [0.0, 0.0, 0.0, 0.9, 1.0], STRENGTH: [0.6, 0.7, 0.8, 0.9, 0.9]}, STRONG, ("open", 100, 300)),
        ({INTACT: [0.0, 0.0, 0.1], STRENGTH: [0.1, 0.5, 0.9]}, STRONG, ("open", None, None)),
        ({INTACT: [0.0, 0.5, 1.0], INDUCTION: [0.1, 0.1, 0.0]}, INDUCES, ("open", None, None)),
        ({INTACT: [0.0, 0.5, 1.0], INDUCTION: [0.0, 0.0, 0.009]}, INDUCES, ("open", None, None)),
    ],
)  # fmt: skip
def test_rules_on_planted_curves(
    curves: dict[str, list[float]], question: int, expected: tuple[str, int | None, int | None]
) -> None:
    """By hand; intervals reach 0.1 to either side, those of controls 0.05."""
    assert said(a_run(curves), question) == expected


def test_what_was_followed_before_is_said() -> None:
    """The last step at which answers came from another memory, and none where they never did."""
    sentence = answers(a_run({KEYS: [0.0, 0.2, 0.8], STATES: [0.9, 0.7, 0.1]}))[TAKES_OVER].sentence
    assert sentence.replace("\u00a0", " ") == (
        "From step 300 on, keys and values are followed by 80 %, 70 to 90, recurrent states by 10 %, 0 to 20; "
        "before, at step 200, keys and values are followed by 20 %, 10 to 30, recurrent states by 70 %, 60 to 80."
    )
    assert "at no kept step the other way round" in answers(a_run({KEYS: [0.9], STATES: [0.0]}))[TAKES_OVER].sentence


def test_a_model_without_attention_is_asked_what_it_has_instead() -> None:
    """Its retrieval is that of its states."""
    run = a_run({INTACT: [0.7, 0.8, 0.2]}, attention=False)
    assert said(run, RETRIEVES) == ("open", None, None)
    assert said(run, UNLEARNS) == ("yes", 300, None)
    assert said(run, BARE) == ("no", None, None)


def test_curves_of_several_runs_are_drawn_beside_each_other() -> None:
    """Each line has the run's numbers in percent and its control dotted; what was not measured says why."""
    found = TrainingCurves((a_run({INTACT: [0.2, 0.6], STRENGTH: [0.5, 1.5]}), a_run({INTACT: [0.1, 0.7]}, "other")))
    lines = [trace for trace in found.plot().data if trace.fill is None]
    assert [(list(trace.x), list(trace.y)) for trace in lines] == [
        ([100, 200], [20, 60]), ([100, 200], [10, 70]), ([100, 200], [0, 0]), ([100, 200], [0, 0]),
    ]  # fmt: skip
    assert list(found.plot(STRENGTH).data[0].y) == [0.5, 1.5]
    with pytest.raises(ResultsError, match="tap was not measured \\(a-run: it was not planted; other: "):
        found.plot(TAP)
    with pytest.raises(UnknownNameError, match="quantity 'retreival' does not exist; close names: retrieval"):
        found.plot("retreival")
    frame = found.to_pandas()
    assert list(frame[frame["quantity"] == INTACT]["value"]) == [0.2, 0.6, 0.1, 0.7]
    assert set(frame[frame["value"].isna()]["absent"]) == {"it was not planted"}


def test_work_folders_that_are_none_are_refused(kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line each, before anything is written."""
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    assert "no run is named" in refused(["curves", "--out", out], capsys)
    assert "nowhere is no folder" in refused(["curves", tmp_path / "nowhere", "--out", out], capsys)
    assert "holds no finished checkpoint" in refused(["curves", empty, "--out", out], capsys)
    assert "two runs are named a-run" in refused(["curves", kept, copied(kept, tmp_path), "--out", out], capsys)
    mixed = copied(kept, tmp_path / "mixed")
    account = json.loads((mixed / "step-00002" / "training.json").read_text())
    (mixed / "step-00002" / "training.json").write_text(json.dumps(account | {"seed": 4}))
    assert "step-00001 of name tiny-granite, seed 3" in refused(["curves", mixed, "--out", out], capsys)
    moved = copied(kept, tmp_path / "moved")
    (moved / "step-00001").rename(moved / "step-00009")
    assert "says that it was kept at step 1" in refused(["curves", moved, "--out", out], capsys)
    cut = copied(kept, tmp_path / "cut")
    (cut / "log.jsonl").write_text("{\n" + (cut / "log.jsonl").read_text())
    assert "is damaged in line 1" in refused(["curves", cut, "--out", out], capsys)
    assert not out.exists()


def test_what_a_run_is_writing_is_left_for_the_next_time(kept: Path, tmp_path: Path) -> None:
    """A checkpoint without its account, and half a line of the log."""
    work = copied(kept, tmp_path)
    (work / "step-00003").mkdir()
    with (work / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write('{"step": 3, "sta')
    found = read_training(str(work))
    assert [one.step for one in found.checkpoints] == [1, 2]
    assert sorted(found.log) == [1, 2]
    assert found.recent(3) == []
