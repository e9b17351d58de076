"""Running the zoo: what is read of finished runs, what is run again, what is refused, failed and stopped."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bounds import close
from command_line import refused
from planted_memory import pairs as planted_pairs
from planted_memory import planted
from random_lens import save_checkpoint
from study_cells import LENGTHS, N, grid, sweep
from test_comparing import stored

from analyses import kv_cache
from analyses.cli import main
from analyses.experiment.options.zoo import PARTS as NAMES
from analyses.experiment.running import Stopped
from analyses.kv_cache.following import RECURRENT, following
from analyses.study.zoo import making, reading
from analyses.study.zoo.making import Subject, Task, make, subjects_of
from analyses.study.zoo.of_study import ABOVE, CONTROL, RETRIEVAL, SILENT, at, mode, of_study
from analyses.study.zoo.parts import PARTS
from analyses.study.zoo.results import FILE, Zoo
from hybridlens import tiny
from hybridlens.errors import InputError, ResultsError
from hybridlens.results import Folder, Manifest, bootstrap_interval, paired_difference


def test_a_part_is_a_row_and_its_command_is_one_that_exists() -> None:
    assert tuple(PARTS) == NAMES
    for part in PARTS.values():
        words = part.words("m", Path("o"), "cpu", "auto")
        assert words[-6:] == ["--out", "o", "--device", "cpu", "--dtype", "auto"]
        assert main([words[0], "--help"]) == 0


def test_a_study_is_read_as_its_cells_say(tmp_path: Path) -> None:
    """Against loops over the cells; 20 prompts and 4 without a needle under each condition."""
    falling = sweep({0: 1.0, 1: 2.0, N: lambda length, depth: 5.0 if depth else 4.0}, control=0.5)
    reading_too = sweep({0: 1.0, 1: 2.0}, phase="prefill", control=0.5)
    manipulated = grid(3.0, reading="omit", answering="keep")
    cells = [*falling, *reading_too, *manipulated]
    found = {point.quantity: point for point in of_study(stored(tmp_path / "s", cells, N))}
    whole = [(5.0 if depth else 4.0) / 5 for _ in range(4) for depth in (0, 25, 50, 75, 100)]
    close([found[RETRIEVAL].known], [sum(whole) / 20])
    assert found[RETRIEVAL].n == 20
    close([found[RETRIEVAL + CONTROL].known, found[RETRIEVAL + ABOVE].known], [0.1, sum(whole) / 20 - 0.1])
    close([found[SILENT].known, found[SILENT + ABOVE].known], [0.2, 0.1])
    above = found[SILENT + ABOVE]
    close([above.lowest, above.highest], list(paired_difference([0.2] * 20, [0.1] * 20)))
    close([found[at("generation", 1)].known, found[at("prefill", 0)].known], [0.4, 0.2])
    assert found["tipping point, generation version"].value == 1
    close([found[mode("omit", "keep")].known], [0.6])
    assert found["read twice"].value is None
    assert found[f"mean over needles, k = {N}"].absent == "several needles were not run"


def test_the_other_semantics_is_of_all_prompts_that_it_was_asked(tmp_path: Path) -> None:
    """The main grid's 20 prompts under the study's own; beyond it, too, under the other, whose prompts are longer."""
    beyond = {"lengths": (220, 230, 240), "reading": "binary"}
    cells = [*grid(5.0, reading="binary"), *grid(5.0, **{**beyond, "lengths": (230, 240)})]
    cells += grid(lambda length, depth: 0.0 if length == 220 else 3.0, **beyond, semantics="published")
    study = stored(tmp_path / "s", cells, N, lengths=list(LENGTHS))
    found = {point.quantity: point for point in of_study(study)}
    assert found[mode("binary", "keep")].n == 20
    theirs = found[mode("binary", "keep", "published")]
    assert theirs.n == 15
    close([theirs.known], [(0.0 * 5 + 0.6 * 10) / 15])


def test_without_attention_nothing_is_silenced(tmp_path: Path) -> None:
    cells = sweep({0: 3.0}, control=0.0)
    found = {point.quantity: point for point in of_study(stored(tmp_path / "s", cells, 0))}
    close([found[RETRIEVAL].known], [0.6])
    assert found[SILENT].value is None
    assert "no attention" in found[SILENT + ABOVE].absent


def test_a_crossover_is_read_as_the_project_reads_it(tmp_path: Path) -> None:
    """Of a planted state, which alone is followed."""
    model, *_ = planted("jamba", "state", 1)
    found = kv_cache.crossover(model, planted_pairs(2, seed=1), max_new_tokens=1)
    manifest = Manifest(
        model="m", arguments={}, seed=0, max_score=5, config_hash="c", weights_hash="w", job="crossover"
    )
    with Folder.open(tmp_path / "run", manifest) as folder:
        folder.put("crossover.json", None, found)
        folder.finish()
    points = {point.quantity: point for point in reading.of_crossover(tmp_path / "run")}
    share = following(found, RECURRENT)
    point = points["follows recurrent states"]
    assert (point.value, (point.low, point.high), point.n) == (share.memory.mean, share.memory.interval, share.n)
    assert point.value == 1.0
    assert points["follows keys and values"].value == 0.0
    with pytest.raises(ResultsError, match=r"holds no capacity\.json"):
        reading.of_capacity(tmp_path / "run")


def test_models_are_known_by_their_names_and_weights(tmp_path: Path) -> None:
    one, other = (save_checkpoint(tmp_path / name / "model") for name in ("a", "b"))
    with pytest.raises(InputError, match="are both called model; rename a folder"):
        subjects_of([str(one), str(other)])
    assert subjects_of([str(one)])[0][3:] == subjects_of([str(other)])[0][3:]
    file = other / "tokenizer_config.json"
    file.write_text(file.read_text().replace("{", '{"a": 1,', 1))
    assert subjects_of([str(one)])[0].beside != subjects_of([str(other)])[0].beside
    text = (one / "config.json").read_text()
    (one / "config.json").write_text(text.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert subjects_of([str(one)])[0].digest != subjects_of([str(other)])[0].digest


def test_one_experiment_of_two_models_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hybrid and a recurrence alone: the first is measured, of the second it is not asked; nothing is run twice."""
    hybrid = save_checkpoint(tmp_path / "models" / "hybrid", "jamba")
    alone = save_checkpoint(tmp_path / "models" / "alone", "mamba2")
    call = ["zoo", str(hybrid), str(alone), "--parts", "circuits", "--out", str(tmp_path / "out"), "--jobs", "1"]
    assert main(call) == 0
    said = capsys.readouterr().out
    assert "Does any recurrence retrieve with attention gone? open" in said
    found = Zoo.load(tmp_path / "out" / FILE)
    assert found.names == ("hybrid", "alone")
    assert found.member("hybrid").of("induction strength").value is not None
    assert found.member("hybrid").asked[0].finding[0].startswith("Judged by weights alone")
    assert "has no attention layer" in found.member("alone").asked[0].absent
    page = (tmp_path / "out" / "report.html").read_text()
    assert '<a href="hybrid/circuits/report.html">circuits</a>' in page
    assert not (tmp_path / "out" / "alone" / "circuits").exists()

    monkeypatch.setattr(subprocess, "Popen", lambda *given, **named: pytest.fail("a finished run was begun again"))
    assert main(call) == 0
    assert Zoo.load(tmp_path / "out" / FILE) == found
    monkeypatch.undo()
    (tmp_path / "out" / "hybrid" / "circuits" / "circuits.safetensors").write_bytes(b"x")
    begun: list[str] = []

    def begin(task: Task, threads: int) -> None:
        begun.append(task.said)
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "_begin", begin)  # what was damaged is made again
    assert main(call) == 130
    assert begun == ["circuits of hybrid"]


def test_a_model_is_measured_the_same_by_its_name_and_by_its_folder(tmp_path: Path) -> None:
    """A command's defaults may depend on whether a model is embedded; what stands side by side must not."""
    copy = shutil.copytree(tiny.path("tiny-qwen3.5"), tmp_path / "copy")
    assert main(["zoo", "tiny-qwen3.5", str(copy), "--parts", "circuits", "--out", str(tmp_path / "out")]) == 0
    one, other = Zoo.load(tmp_path / "out" / FILE).members
    assert one.asked[0].points == other.asked[0].points
    assert one.of("tap").value == 1.0


def a_task(folder: Path, words: list[str], name: str = "m") -> Task:
    return Task(Subject(name, name, None, "d"), PARTS["circuits"], folder / name / "circuits", words)  # type: ignore[arg-type]


def test_what_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    """A refusal that leaves no run is kept as one; anything else that is not done is a failure."""
    bad = a_task(tmp_path, ["zoo", "--parts", "no-such-part"], "bad")
    good = a_task(tmp_path, ["zoo", "--help"], "good")
    ((task, line),) = making._work([bad], 1, 1, tmp_path, lambda left: None)
    assert task is bad
    assert "no-such-part" in line
    bad.folder.mkdir()
    (bad.folder / "run.json").write_text("{}")
    with pytest.raises(ResultsError, match=r"not finished: circuits of bad \(.*no-such-part.*\); the rest is kept"):
        making._work([bad, good], 1, 1, tmp_path, lambda left: None)
    assert good.finished()
    assert not bad.finished()


def test_processes_are_stopped_with_the_one_that_began_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM, and the wait for its end, so that what was done is stored."""
    begun: list[subprocess.Popen[bytes]] = []
    code = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\nprint(1, flush=True)\n"

    def begin(task: Task, threads: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", f"{code}time.sleep(600)"], stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process.stdout as said:
            said.readline()
        begun.append(process)
        return process

    def sleep(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "_begin", begin)
    monkeypatch.setattr(making, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    with pytest.raises(Stopped, match=r"what is done is kept in .*: the same command goes on from there"):
        making._work([a_task(tmp_path, []), a_task(tmp_path, [])], 2, 1, tmp_path, lambda left: None)
    assert [process.returncode for process in begun] == [128 + signal.SIGTERM] * 2


def test_a_needed_interval_over_needles(tmp_path: Path) -> None:
    """Means of needles are drawn again, not prompts."""
    needles = {"paper": 5.0, "oslo": 0.0, "code": 2.5}
    cells = [one for name, score in needles.items() for one in grid(score, k=N, needle=name)]
    found = {point.quantity: point for point in of_study(stored(tmp_path / "s", cells, N))}[
        f"mean over needles, k = {N}"
    ]
    close([found.known], [0.5])
    assert found.n == 3
    assert (found.low, found.high) == pytest.approx(tuple(bootstrap_interval([1.0, 0.0, 0.5])))


def test_bad_words_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out: list[Any] = ["--out", tmp_path / "o"]
    assert "--parts 'studies' does not exist" in refused(["zoo", "--parts", "studies", *out], capsys)
    assert "no-such" in refused(["zoo", "no-such", *out], capsys)
    assert make.__doc__ is not None
    assert not (tmp_path / "o").exists()
