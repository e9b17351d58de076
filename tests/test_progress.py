"""Bars show where somebody would see them, one at a time, with the right numbers; elsewhere nothing is written."""

import io
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import tqdm.auto
from models import make

import hybridlens as hl
from analyses import circuits
from analyses.commands.declared import progress_bar
from analyses.patching.metrics import Rank
from analyses.patching.sweeps import sweep
from hybridlens.effort import layer_done, turn_to
from hybridlens.progress import counted, hidden, shown, sized, staged, wanted

IDS, OTHER = [3, 4, 5, 6, 7], [3, 4, 20, 6, 7]


class Terminal(io.StringIO):
    """Standard error of somebody who looks at it."""

    def isatty(self) -> bool:
        return True


def watched(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Called in the test itself: pytest puts its own standard error back after the fixtures."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(tqdm.auto, "tqdm", partial(tqdm.auto.tqdm, mininterval=0))  # every step is drawn
    return stream


@pytest.fixture(scope="module")
def lens() -> hl.HybridLens:
    return hl.HybridLens(make("jamba", 3))


def test_nothing_is_written_where_nobody_looks(lens: hl.HybridLens, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard error of a test is no terminal; neither is a file or a pipe."""
    assert not wanted()
    sweep(lens, "z", [IDS, OTHER], [OTHER, IDS], Rank(3))
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


def test_generation_shows_a_bar_when_it_is_asked_to(lens: hl.HybridLens, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watched(monkeypatch)
    said = lens.generate([IDS], 3, stop_at_eos=False)
    assert terminal.getvalue() == ""
    assert lens.generate([IDS], 3, stop_at_eos=False, verbose=True).tokens.tolist() == said.tokens.tolist()
    assert "new tokens" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()


def test_bytes_are_counted_from_any_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few enough have no bar; `shown` brings it back where a command hides others'."""
    terminal = watched(monkeypatch)
    with sized(1000, "fetching") as advance:
        advance(1000)
    with hidden(), sized(8 << 20, "fetching") as advance:
        advance(8 << 20)
    assert terminal.getvalue() == ""
    with hidden(), shown(), sized(8 << 20, "fetching us/model") as advance, ThreadPoolExecutor(4) as pool:
        list(pool.map(advance, [1 << 20] * 8))
    assert "fetching us/model" in terminal.getvalue()
    assert "8.00M/8.00M" in terminal.getvalue()
    assert wanted()


def test_a_notebook_is_somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", sys)
    assert wanted()
    with hidden():
        assert not wanted()
    assert wanted()


def test_a_notebook_keeps_no_empty_strip_of_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """JupyterLab shows what is on standard error on red, wiped or not; other output goes on where the bar was."""
    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", sys)
    with counted(4, "things") as done:
        done(4)
    said = capsys.readouterr()
    assert "things:" in said.out
    assert said.out.endswith("\r")
    assert said.out.rsplit("\r", 2)[1].strip() == ""
    assert said.err == ""


def test_a_bar_counts_to_the_end_and_hides_those_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watched(monkeypatch)
    with counted(4, "outer things") as done:
        for _ in range(2):
            with counted(7, "inner things") as more:
                more(7)
            done(2)
    with staged("stages") as tell:
        tell(0, 3)
        tell(3, 3)
    with counted(1, "one thing") as done:
        done(1)
    text = terminal.getvalue()
    assert "outer things: 100%" in text
    assert "4/4" in text
    assert "inner" not in text
    assert "one thing" not in text
    assert re.search(r"stages:\s+100%.* 3/3", text)


def test_functions_show_theirs_or_tell_their_caller(lens: hl.HybridLens, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watched(monkeypatch)
    n = sweep(lens, "z", IDS, OTHER, Rank(3), batch_size=1).raw.numel()
    assert f"{n}/{n}" in terminal.getvalue()
    circuits.circuits(lens, sample_size=2)
    assert "circuits: 100%" in terminal.getvalue()
    before, told = terminal.getvalue(), list[int]()
    sweep(lens, "z", IDS, OTHER, Rank(3), progress=told.append)
    assert sum(told) == n
    assert terminal.getvalue() == before
    sweep(lens, "z", [IDS, OTHER], [OTHER, IDS], Rank(3))
    assert "prompts: 100%" in terminal.getvalue()
    assert terminal.getvalue().count("patches:") == before.count("patches:")


def test_a_command_shows_stages_tokens_and_what_it_turns_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of four layers over 80 tokens are 60 through all; the report has no cells. A pipe shows nothing."""
    with progress_bar("model", "cell") as tell:
        tell(0, 8)
        layer_done(80, 4)
    terminal = watched(monkeypatch)
    monkeypatch.setenv("COLUMNS", "100")
    with progress_bar("model", "cell") as tell:
        tell(2, 8)
        for _ in range(3):
            layer_done(80, 4)
    first = terminal.getvalue()
    assert "25%" in first
    assert "2/8 cells, 60 tokens" in first
    with progress_bar("model", "cell") as tell:
        tell(8, 8)
        turn_to("report")
        layer_done(80, 4)
    last = terminal.getvalue().removeprefix(first).splitlines()[-2]
    assert "report" in last
    assert "cells" not in last
    assert "20 tokens" in last


def test_an_error_leaves_no_bar_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    watched(monkeypatch)
    with pytest.raises(ZeroDivisionError), counted(3, "things"):
        raise ZeroDivisionError
    assert wanted()
