"""The command as a user meets it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from analyses.cli import main


def refused(arguments: Sequence[object], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that has to be refused, with nothing on stdout and exit status 2; its one line on stderr."""
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert status == 2
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1, err
    assert lines[0].startswith("hybridlens: ")
    return lines[0]
