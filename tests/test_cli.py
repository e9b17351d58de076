"""The `hybridlens` command from outside: what it prints, and one clear line for everything that is wrong."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from command_line import refused
from niah_tokenizers import word_level
from random_lens import save_checkpoint
from transformers import BertConfig, PreTrainedTokenizer

import hybridlens as hl
from analyses.cli import main
from analyses.commands.experiments import EXPERIMENTS
from analyses.experiment import checkpoints
from hybridlens import niah
from hybridlens.results import read_run

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--lengths", "110", "--depths", "0,100", "--heads", "0,4"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random RecurrentGemma with its tokenizer, as a folder."""
    return save_checkpoint(tmp_path_factory.mktemp("models") / "random-recurrentgemma")


@pytest.fixture(scope="module")
def jamba(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Jamba with its tokenizer, as a folder."""
    return save_checkpoint(tmp_path_factory.mktemp("models") / "random-jamba", "jamba")


def test_niah_writes_a_run_and_prints_its_table(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table's numbers are recomputed from the written cells by pandas; a second call runs nothing."""
    out = tmp_path / "run"
    command = ["niah", "--model", str(checkpoint), *SMALL, "--out", str(out), "--batch-size", "3"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    table = pd.read_parquet(out / "cells.parquet")
    assert len(table) == 2 * 2 * 3
    assert sorted(table["k"].unique()) == [0, 4]
    rows = [re.sub(r"\(.*?\)", "", line).split() for line in printed.splitlines()[2:-1]]  # without the intervals
    assert [row[0] for row in rows] == ["4", "0"]
    for row in rows:
        for column, (phase, control) in enumerate(
            [("generation", False), ("generation", True), ("prefill", False), ("prefill", True)], start=1
        ):
            cells = table[(table.k == int(row[0])) & (table.phase == phase) & (table.control == control)]
            assert float(row[column]) == pytest.approx(100 * cells.score.mean() / 5, abs=0.051)  # one decimal
    assert printed.splitlines()[-1] == f"report: {out / 'report.html'}"
    record = json.loads((out / "run.json").read_text())
    assert record["command"].startswith("hybridlens niah --model ")
    before = (out / "cells.jsonl").read_bytes()
    assert main(command) == 0
    assert capsys.readouterr().out == printed
    assert (out / "cells.jsonl").read_bytes() == before


def test_own_needle_haystack_and_instruct_template(
    jamba: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The user's own needle, rubric and essays reach the prompts: the record and a stored prompt hash say so."""
    rubric = tmp_path / "rubric.json"
    rubric.write_text(
        json.dumps([["sail a boat", 2.0, "add"], ["The best thing to do in Oslo is sail a boat", 5, "set"]])
    )
    essays = tmp_path / "essays"
    essays.mkdir()
    (essays / "one.txt").write_text(niah.essays(3, 80).text)
    own = [
        "--needle",
        "The best thing to do in Oslo is sail a boat.",
        "--question",
        "What is the best thing to do in Oslo?",
        "--rubric",
        str(rubric),
    ]
    more = ["--haystack", str(essays), "--template", "instruct", "--phase", "generation", "--no-control"]
    out = tmp_path / "run"
    assert main(["niah", "--model", str(jamba), *SMALL, *own, *more, "--out", str(out)]) == 0
    run = read_run(out)
    assert run.record["arguments"]["needle"] == "The best thing to do in Oslo is sail a boat."
    assert run.record["arguments"]["rubric"] == [
        ["sail a boat", 2.0, "add"],
        ["The best thing to do in Oslo is sail a boat", 5.0, "set"],
    ]
    needle = niah.Needle("own", own[1], own[3], niah.load_rubric(rubric, own[1]))
    expected = niah.grid(word_level(), [110], [0, 100], niah.read_haystack(essays), needle, template="instruct")
    assert {cell.prompt_hash for cell in run.cells} == {prompt.hash for prompt in expected}
    capsys.readouterr()


def test_damage_is_named_and_mended(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A cut-off table and a broken line: the good cells stay, the damaged one is named and made again."""
    out = tmp_path / "run"
    command = ["niah", "--model", str(checkpoint), *SMALL, "--out", str(out)]
    assert main(command) == 0
    whole = pd.read_parquet(out / "cells.parquet")
    (out / "cells.parquet").write_bytes((out / "cells.parquet").read_bytes()[:200])
    lines = (out / "cells.jsonl").read_bytes().split(b"\n")
    (out / "cells.jsonl").write_bytes(b"\n".join([lines[0], lines[1][:40], *lines[2:]]))
    capsys.readouterr()
    assert main(command) == 0
    err = capsys.readouterr().err
    assert "cells.jsonl line 2" in err
    assert "runs again" in err
    assert "cells.parquet cannot be read" in err
    again = pd.read_parquet(out / "cells.parquet")
    columns = [name for name in whole.columns if name not in ("seconds", "checksum", "margin")]
    pd.testing.assert_frame_equal(whole[columns], again[columns])


def test_another_run_in_the_folder_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["niah", "--model", str(checkpoint), *SMALL, "--out", str(out), "--phase", "generation"]
    assert main(command) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    line = refused([*command, "--seed", "1"], capsys)
    assert "holds a run with --seed 0, and this one has 1" in line
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert "is a file" in refused([*command[:-4], "--out", out / "run.json"], capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--heads", "0..9"], "--heads 9 given, expected 0..4"),
        (["--heads", "4..0"], "--heads '4..0' given, but 4..0 is no range"),
        (["--heads", "9" * 5000], "expected whole numbers like 0,4,8 or 0..8"),
        (["--memory", "9" * 5000], "expected a size such as 2GB"),
        (["--device", "meta"], "--device 'meta' cannot be used"),
        (["--heads", "one"], "--heads 'one' given, expected whole numbers like 0,4,8 or 0..8"),
        (["--heads", "1,1"], "--heads holds 1 more than once"),
        (["--lengths", "999999"], "--lengths 999999 given, expected at most 262,144"),
        (["--haystack", "no\udcff"], "is not UTF-8 text"),
        (["--lengths", "-5"], "--lengths '-5' given, expected whole numbers"),
        (["--lengths", "20"], "does not fit length 20"),
        (["--depths", "0,120"], "--depths holds 120, expected percentages from 0 to 100"),
        (["--phase", "decode"], "phase 'decode' does not exist; expected one of generation, prefill, both"),
        (["--phase", "generate"], "close names: generation"),
        (["--boundary", "first"], "boundary 'first' does not exist"),
        (["--semantics", "dirty"], "semantics 'dirty' does not exist"),
        (["--template", "chat"], "template 'chat' does not exist"),
        (["--needle", "A city."], "--needle given without --question and --rubric"),
        (["--question", "Why?"], "--question given without --needle and --rubric"),
        (["--haystack", "no/such/folder"], "haystack 'no/such/folder' is not a folder"),
        (["--batch-size", "0"], "--batch-size 0 given"),
        (["--batch-size", "many"], "--batch-size"),
        (["--device", "tpu9"], "--device 'tpu9' cannot be used"),
        (["--dtype", "int8"], "dtype 'int8' given, expected one of float32, bfloat16, float16"),
        (["--dtype", "float16", "--semantics", "published", "--lengths", "250"], "float16"),
        (["--colour", "red"], "No such option: --colour"),
        (["--colour", "red"], "see hybridlens niah --help"),
    ],
)
def test_bad_options(
    options: list[str], message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line with what was given and what was expected, status 2, and no folder made."""
    given = dict(zip(SMALL[::2], SMALL[1::2], strict=True)) | dict(zip(options[::2], options[1::2], strict=True))
    arguments = [word for pair in given.items() for word in pair]
    line = refused(["niah", "--model", checkpoint, *arguments, "--out", tmp_path / "run"], capsys)
    assert message in line
    assert not (tmp_path / "run").exists()


def test_a_prompt_longer_than_the_context(jamba: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["niah", "--model", jamba, "--lengths", "390", "--out", tmp_path / "run"], capsys)
    assert "--lengths 390 given, expected at most 360" in line
    assert not (tmp_path / "run").exists()


def test_a_terminal_shows_something_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is opened, before anything is; a file gets the error alone."""
    assert main(["circuits", "--model", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("hybridlens: ")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["circuits", "--model", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("opening nowhere\nhybridlens: ")
    assert main(["heads", "--model", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("opening nowhere\nhybridlens: ")


@pytest.mark.parametrize("command", ["niah", "hooks", "heads"])
def test_unknown_models(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelled embedded model gets the close name; a path that is not there says so."""
    assert "tiny-jamba" in refused([command, "--model", "tiny-jambo"], capsys)
    assert "is neither an embedded checkpoint" in refused([command, "--model", tmp_path / "absent"], capsys)
    assert f"Missing option '--model'; see hybridlens {command} --help" in refused([command], capsys)


def test_nothing_asked_for_is_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    """As people read it, on many lines."""
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("Usage: hybridlens [OPTIONS] COMMAND [ARGS]...\n\n  Read, edit and test")


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"hybridlens {hl.__version__}\n"


def test_other_families_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    BertConfig(architectures=["BertForMaskedLM"]).save_pretrained(tmp_path)
    for command in ("hooks", "niah"):
        line = refused([command, "--model", tmp_path], capsys)
        assert "of no family that hybridlens knows; it opens RecurrentGemmaForCausalLM, JambaForCausalLM" in line


def test_broken_checkpoints_are_refused(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pickled weights, no weights, no tokenizer, a slow tokenizer: each says what is wrong with the folder."""
    folder, out = tmp_path / "model", tmp_path / "run"
    shutil.copytree(checkpoint, folder)
    weights = (folder / "model.safetensors").rename(tmp_path / "kept")
    run: list[object] = ["niah", "--model", folder, *SMALL, "--out", out]
    assert "holds no weights" in refused(run, capsys)
    torch.save({"weight": torch.zeros(1)}, folder / "pytorch_model.bin")
    assert "holds pickled weights (pytorch_model.bin)" in refused(run, capsys)
    (folder / "pytorch_model.bin").unlink()
    weights.rename(folder / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert "has no tokenizer" in refused(run, capsys)
    (folder / "config.json").write_text("{ no json")
    assert "config.json is damaged (Expecting property name" in refused(run, capsys)
    assert not out.exists()


@pytest.fixture(scope="module")
def wordless(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same folder without the files of its tokenizer."""
    folder = tmp_path_factory.mktemp("wordless") / "model"
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*token*"))
    return folder


@pytest.mark.parametrize("name", [one.name for one in EXPERIMENTS if one.options.model_fields["model"].is_required()])
def test_no_experiment_goes_without_a_tokenizer(
    name: str, wordless: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each says in one line what is missing and how to mend it, before it makes a folder."""
    more = ["--measure"] if name == "circuits" else []  # which reads weights alone without
    line = refused([name, *more, "--model", wordless, "--out", tmp_path / "run"], capsys)
    assert f"{wordless} has no tokenizer, which the prompts are made with; add its files (tokenizer.json" in line
    assert not (tmp_path / "run").exists()


class SlowTokenizer(PreTrainedTokenizer):
    """A tokenizer in plain Python, which has no offsets."""

    @property
    def vocab_size(self) -> int:
        return 300

    def get_vocab(self) -> dict[str, int]:
        return {str(i): i for i in range(300)}

    def _tokenize(self, text: str, **more: object) -> list[str]:
        return [str(ord(letter) % 300) for letter in text]

    def _convert_token_to_id(self, token: str) -> int:
        return int(token)

    def _convert_id_to_token(self, index: int) -> str:
        return str(index)


def test_a_tokenizer_without_offsets(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = checkpoints.open_model

    def slow(name: str, device: str, dtype: str) -> hl.HybridLens:
        return hl.HybridLens(real(name, device, dtype).hf_model, SlowTokenizer())

    monkeypatch.setattr(checkpoints, "open_model", slow)
    line = refused(["niah", "--model", checkpoint, *SMALL, "--out", tmp_path / "run"], capsys)
    assert "SlowTokenizer gives no character offsets" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["eat rice", 1, "add"], ["rice in", 1, "add"], ["I eat rice in Rome", 5, "set"]], "phrases overlap"),
        ([["eat fish", 1, "add"], ["I eat rice in Rome", 5, "set"]], "'eat fish' is missing from the needle"),
        ([], "has no rules"),
        ([["eat rice", "one", "add"]], "expected a number"),
    ],
)
def test_bad_rubrics(
    rows: list, message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rubric = tmp_path / "rubric.json"
    rubric.write_text(json.dumps(rows))
    own = ["--needle", "I eat rice in Rome.", "--question", "What?", "--rubric", rubric]
    line = refused(["niah", "--model", checkpoint, *own, "--out", tmp_path / "run"], capsys)
    assert message in line
    assert str(rubric) in line


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "is empty: no file ends in .txt"),
        (lambda folder: (folder / "a.txt").write_text(" \n"), "is empty: its 1 text files hold no words"),
        (lambda folder: (folder / "a.txt").write_bytes(b"\xff\xfe\x00bad"), "is not UTF-8 text"),
        (lambda folder: (folder / "a.txt").write_text(niah.PAPER_SENTENCE * 9), "already holds the needle"),
        (lambda folder: (folder / "a.txt").symlink_to(folder / "absent.txt"), "cannot be read"),
    ],
)
def test_bad_haystacks(
    make: Callable[[Path], object], message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Empty, blank, not text, holding the needle, unreadable (a link that leads nowhere)."""
    folder = tmp_path / "essays"
    folder.mkdir()
    make(folder)
    options = [*SMALL, "--haystack", folder, "--out", tmp_path / "run"]
    assert message in refused(["niah", "--model", checkpoint, *options], capsys)
    assert not (tmp_path / "run").exists()


STOPPED = """
import os, signal, sys
from analyses.cli import main
from hybridlens.results import store

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background ignores it

add = store.Run.add

def add_and_stop(run, cells):
    add(run, cells)
    if len(run.done) >= {cells}:
        os.kill(os.getpid(), {signal})

store.Run.add = add_and_stop
sys.exit(main())
"""
"""A command that sends itself a signal once so many cells are stored."""


@pytest.mark.parametrize("cells", [8])
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_killed_command_goes_on(
    sent: signal.Signals, status: int, cells: int, checkpoint: Path, tmp_path: Path
) -> None:
    """A real process is stopped in the middle; what it had stored is kept and the same command ends the run."""
    out = tmp_path / "run"
    arguments = [
        "niah",
        "--model",
        str(checkpoint),
        "--lengths",
        "110,115,120",
        "--depths",
        "0,50,100",
        "--heads",
        "0..4",
    ]
    arguments += ["--batch-size", "4", "--phase", "generation", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    code = STOPPED.format(cells=cells, signal=int(sent))
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    err = process.stderr
    assert process.returncode == status, err
    if sent != signal.SIGKILL:
        assert "the same command goes on from there" in err
        assert "Traceback" not in err
    stored = {cell.key: cell for cell in read_run(out).cells}
    total = 3 * 4 * 5
    assert cells <= len(stored) < total
    assert main(arguments) == 0
    finished = {cell.key: cell for cell in read_run(out).cells}
    assert len(finished) == total
    assert all(finished[key] == cell for key, cell in stored.items())  # seconds too: not run again
