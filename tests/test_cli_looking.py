"""Commands that look at models, hook points and heads, help, and how lists, needles and prompts are read."""

import json
import os
from pathlib import Path

import pytest
import torch
from command_line import refused
from random_lens import save_checkpoint

import hybridlens as hl
from analyses.cli import main
from analyses.commands.embedded import card_accuracy
from analyses.commands.look import read_prompts
from analyses.experiment.options.base import parse_list
from analyses.experiment.options.needles import read_needle
from analyses.heads.ranking import HeadRanking
from hybridlens import niah
from hybridlens.errors import InputError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random RecurrentGemma with its tokenizer, as a folder."""
    return save_checkpoint(tmp_path_factory.mktemp("models") / "random-recurrentgemma")


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
        alone = set(cells[1].split()) == {"R"}
        heads = "–" if alone else f"{config['num_attention_heads']} ({config['num_key_value_heads']} kv)"
        assert cells[2].strip() == heads
        measured = float(cells[-1].split()[0])
        assert measured <= 100
        assert alone or measured >= 95
        assert f"| {0 if alone else 8} | {measured} |" in (hl.tiny.path(name) / "README.md").read_text()


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
    summaries = " ".join(text.partition("Commands:")[2].split())
    assert "reproduce The paper's experiments, and what they say of its claims: one report with every" in summaries
    assert "..." not in summaries
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
