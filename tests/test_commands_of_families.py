"""Every command on every family that is not embedded: it is carried out, or says in one line why it cannot be."""

import json
from pathlib import Path

import pytest
from models import FAMILIES, PATCHED, ROWS, WITH_ATTENTION, WITH_STATE
from random_lens import save_checkpoint

from analyses.cli import main

SHORT = ["--lengths", "120", "--depths", "50"]
COMMANDS = {
    "niah": [*SHORT, "--heads", "1,2"],
    "reproduce": ["fig2", "maps", *SHORT, "--heads", "0,1"],
    "rankings": [*SHORT, "--rankings", "copying", "--draws", "1", "--counts", "0,2", "--prompts", "1"],
    "crossover": [*SHORT, "--needles", "oslo", "--max-new-tokens", "2"],
    "circuits": ["--sample", "50"],
    "patch": ["--length", "110", "--sweeps", "resid_pre,state"],
    "capacity": ["--facts", "1", "--prompts", "1", "--max-new-tokens", "2"],
    "states": ["--length", "110", "--controls", "2", "--haystacks", "6", "--shuffles", "2"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random model of each with a tokenizer."""
    made = tmp_path_factory.mktemp("families")
    return {family: save_checkpoint(made / family, family) for family in PATCHED if family not in FAMILIES}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command(command, folders, tmp_path, capsys, small_bundles):
    """Without attention, heads to keep are refused before anything is made; without states, what needs them.

    So is what reads heads' weights, where they are a shared block's.
    """
    for family, folder in folders.items():
        out = tmp_path / family
        swept = "state" if family in WITH_STATE else "conv" if ROWS[family].recurrence else "z"
        options = [text.replace("state", swept) for text in COMMANDS[command]]
        if command == "patch" and family not in WITH_STATE:
            options += ["--metric", "kl"]  # some answer both prompts alike
        status = main([command, *options, "--model", str(folder), "--out", str(out)])
        printed = capsys.readouterr()
        bare = family not in WITH_ATTENTION
        silent = command == "states" and family not in WITH_STATE
        shared = command in ("rankings", "circuits") and ROWS[family].shared
        if not silent and not shared and not (bare and command in ("niah", "reproduce", "rankings", "circuits")):
            assert status == 0, printed.err
            assert json.loads((out / "run.json").read_text())["status"] == "complete"
            assert (out / "report.html").is_file()
        else:
            assert status == 2
            (line,) = printed.err.splitlines()
            expected = "needs recurrent states" if silent else f"has no attention layer, and {command} is about"
            expected = "has no attention, so that there is nothing" if command in ("niah", "reproduce") else expected
            expected = f"of this {family} model is a shared block's" if shared else expected
            assert expected in line
            assert not out.exists()
