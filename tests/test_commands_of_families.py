"""Every command on every family that is not embedded: it is carried out, or says in one line why it cannot be."""

import json
from pathlib import Path

import pytest
from models import EVERY_FAMILY, FAMILIES, WITH_ATTENTION, WITH_RECURRENCE
from random_lens import save_checkpoint

from analyses.cli import main

SHORT = ["--lengths", "120", "--depths", "50"]
COMMANDS = {
    "niah": [*SHORT, "--heads", "1,2"],
    "reproduce": ["fig2", "maps", *SHORT, "--heads", "0,1"],
    "rankings": [*SHORT, "--rankings", "copying", "--draws", "1", "--counts", "0,2"],
    "crossover": [*SHORT, "--pairs", "oslo", "--max-new-tokens", "2"],
    "circuits": ["--sample", "50", "--distances", "1,2"],
    "patch": ["--length", "110", "--sweeps", "resid_pre,state"],
}


PLAIN = set(EVERY_FAMILY) - set(WITH_RECURRENCE)
"""Attention alone: no states to patch, and nothing to cross over to."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random model of each with a tokenizer."""
    made = tmp_path_factory.mktemp("families")
    return {family: save_checkpoint(made / family, family) for family in EVERY_FAMILY if family not in FAMILIES}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command(command, folders, tmp_path, capsys, small_bundles):
    """Without attention, all that is about it is refused before anything is made; patching is not."""
    for family, folder in folders.items():
        out = tmp_path / family
        options = (
            [option.removesuffix(",state") for option in COMMANDS[command]] if family in PLAIN else COMMANDS[command]
        )
        status = main([command, *options, "--model", str(folder), "--out", str(out)])
        printed = capsys.readouterr()
        if family in PLAIN and command == "crossover":
            assert status == 2
            (line,) = printed.err.splitlines()
            assert "has no recurrent layer, and a crossover compares attention's memory with that of" in line
            assert not out.exists()
        elif family in WITH_ATTENTION or command == "patch":
            assert status == 0, printed.err
            assert json.loads((out / "run.json").read_text())["status"] == "complete"
            assert (out / "report.html").is_file()
        else:
            assert status == 2
            (line,) = printed.err.splitlines()
            assert f"has no attention layer, and {command} is about attention" in line
            assert not out.exists()
