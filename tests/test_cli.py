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
from analyses.commands.embedded import card_accuracy
from analyses.commands.look import read_prompts
from analyses.experiment import checkpoints
from analyses.experiment.options.base import parse_list
from analyses.experiment.options.needles import read_needle
from analyses.heads.ranking import HeadRanking
from hybridlens import niah
from hybridlens.errors import InputError
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
    rows = [re.sub(r"\[.*?\]", "", line).split() for line in printed.splitlines()[2:-1]]  # without the intervals
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


@pytest.mark.parametrize("command", ["niah", "hooks", "heads"])
def test_unknown_models(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelled embedded model gets the close name; a path that is not there says so."""
    assert "tiny-jamba" in refused([command, "--model", "tiny-jambo"], capsys)
    assert "is neither an embedded checkpoint" in refused([command, "--model", tmp_path / "absent"], capsys)
    assert "Missing option '--model'" in refused([command], capsys)


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
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
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


# The other commands.


@pytest.mark.parametrize("family", ["recurrentgemma", "jamba"])
def test_hooks_lists_every_point_with_its_shape(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against the shapes of a real run: sizes that the table names are the activation's; no weights needed."""
    folder = save_checkpoint(tmp_path / "model", family)
    lens = hl.load(folder)
    _, cache = lens.run_with_cache([[1, 2, 3]], names_filter=lambda name: True)
    (folder / "model.safetensors").unlink()
    capsys.readouterr()
    assert main(["hooks", "--model", str(folder)]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split()[0] for row in rows] == list(lens.hook_points)
    for row in rows:
        name, shape = row.split()[0], row[row.index("[") + 1 : row.index("]")].split(", ")
        found = cache[name].shape
        assert len(shape) == len(found)
        for axis, size in zip(shape, found, strict=True):
            if "=" in axis or axis == "1":
                assert int(axis.rpartition("=")[2]) == size, row
    assert main(["hooks", "--model", str(folder), "--layer", "2"]) == 0
    few = capsys.readouterr().out.splitlines()[1:]
    assert few == [row for row in rows if row.startswith("blocks.2.")] or len(few) > 5
    assert "--layer 9 given, expected 0..5" in refused(["hooks", "--model", folder, "--layer", "9"], capsys)


def test_models_lists_the_embedded_ones(capsys: pytest.CaptureFixture[str]) -> None:
    """Sizes against the checkpoints' own configurations, accuracy against the table in their cards."""
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line, name in zip(lines[1:], hl.tiny.names(), strict=False):
        config = json.loads((hl.tiny.path(name) / "config.json").read_text())
        cells = [cell for cell in line.split("  ") if cell]
        assert cells[0] == name
        assert len(cells[1].split()) == config["num_hidden_layers"]
        assert cells[2] == f"{config['num_attention_heads']} ({config['num_key_value_heads']} kv)"
        measured = float(cells[-1].split()[0])
        assert 95 <= measured <= 100
        assert f"| 8 | {measured} |" in (hl.tiny.path(name) / "README.md").read_text()


def test_a_card_without_measurements_leaves_a_dash(tmp_path: Path) -> None:
    assert card_accuracy(tmp_path, 8) == "–"
    (tmp_path / "README.md").write_text("| 8 | 1.0 | 2.0 |\n| heads kept | generation |\n| 4 | 70.5 | 1.0 |\n")
    assert card_accuracy(tmp_path, 8) == "–"
    assert card_accuracy(tmp_path, 4) == "70.5 (1.0)"


def test_heads_ranks_on_prompts(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The written ranking is the one that the library gives for the same prompts; the table is in its order."""
    from analyses.heads.entropy import rank_heads

    texts = ["What is the best thing to do in Oslo?", "sit in Dolores Park on a sunny day."]
    lines, listed = tmp_path / "prompts.txt", tmp_path / "prompts.json"
    lines.write_text("\n\n".join(texts))
    listed.write_text(json.dumps(texts))
    expected = rank_heads(hl.load(checkpoint), texts)
    for file in (lines, listed):
        out = tmp_path / f"{file.suffix[1:]}-ranking.json"
        assert main(["heads", "--model", str(checkpoint), "--prompts", str(file), "--out", str(out)]) == 0
        printed = capsys.readouterr().out.splitlines()
        found = HeadRanking.load(out)
        assert torch.equal(found.scores, expected.scores)
        assert printed[-1] == f"ranking: {out}"
        order = [(int(row.split()[1]), int(row.split()[2])) for row in printed[2:-1]]
        assert order == expected.order
    assert main(["heads", "--model", str(checkpoint), "--prompt", texts[0], "--queries", "last"]) == 0
    assert "over the last token of 1 prompt; lowest first" in capsys.readouterr().out
    assert main(["heads", "--model", str(checkpoint)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + 8


def test_heads_refuses(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base: list[object] = ["heads", "--model", checkpoint]
    blank = tmp_path / "blank.txt"
    blank.write_text("\n\n")
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{}")
    assert "holds no prompt" in refused([*base, "--prompts", blank], capsys)
    assert "is no list of strings" in refused([*base, "--prompts", wrong], capsys)
    assert "cannot be read" in refused([*base, "--prompts", tmp_path / "absent"], capsys)
    assert "--prompt and --prompts given" in refused([*base, "--prompt", "x", "--prompts", blank], capsys)
    assert "queries 'some'" in refused([*base, "--prompt", "The city", "--queries", "some"], capsys)
    assert "is no folder" in refused([*base, "--out", tmp_path / "absent" / "x.json"], capsys)


def test_an_empty_prompt(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "an empty text was given" in refused(["heads", "--model", checkpoint, "--prompt", ""], capsys)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in ("niah", "hooks", "models", "heads"):
        assert f"  {command} " in text
    assert main(["niah", "--help"]) == 0
    text = capsys.readouterr().out
    wanted = "model lengths depths control needle question rubric haystack template jrt heads phase boundary "
    wanted += "semantics batch-size seed out device dtype no-control"
    for option in wanted.split():
        assert f"--{option}" in text


def test_threads_wait_idle_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """libgomp reads the variable when torch is loaded, so it has to stand before any command runs."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    main(["--help"])
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    main(["--help"])
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_lists() -> None:
    assert parse_list("--heads", "0,4, 8") == (0, 4, 8)
    assert parse_list("--heads", "0..8") == tuple(range(9))
    assert parse_list("--heads", "0..2,8") == (0, 1, 2, 8)
    assert parse_list("--heads", "3..3") == (3,)
    for text in ("", "1,", "1..", "..2", "1.5", "a", "0..999999999"):
        with pytest.raises(InputError, match="--heads"):
            parse_list("--heads", text)


def test_needles(tmp_path: Path) -> None:
    assert read_needle(None, None, None) is None
    assert read_needle("oslo", None, None) is niah.NEEDLES["oslo"]
    rubric = tmp_path / "rubric.json"
    rubric.write_text(json.dumps([["I eat rice", 5, "set"]]))
    needle = read_needle("I eat rice", "What do you do?", rubric)
    assert needle is not None
    assert needle.sentence == "I eat rice."
    assert niah.score("well, I eat RICE", needle.rubric) == 5
    with pytest.raises(InputError, match="oslo"):
        read_needle("madrid", None, None)


def test_prompts_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("b\n\n  \na\n")
    assert read_prompts(path) == ["b", "a"]
