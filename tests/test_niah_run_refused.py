"""What the needle experiment refuses: options that no model, or not this one, can run, and too little memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from random_lens import benchmark_lens

import hybridlens as hl
from analyses.experiment.options.study import NiahConfig
from analyses.experiment.running import Outcome, conduct
from analyses.study.niah import NiahRun
from hybridlens import niah
from hybridlens.errors import InputError, UnknownNameError
from hybridlens.results import Cell

SMALL: dict[str, Any] = {"lengths": (110, 131), "depths": (0, 60, 100), "max_new_tokens": 6}


def go(lens: hl.HybridLens, config: NiahConfig, folder: Path, **more: Any) -> Outcome[list[Cell]]:
    return conduct(NiahRun(lens, config), folder, **more)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"template": "chat"}, UnknownNameError, "template 'chat' does not exist; expected one of base, unspaced"),
        ({"boundary": "last"}, UnknownNameError, "boundary 'last' does not exist"),
        ({"semantics": "publishd"}, UnknownNameError, "close names: published"),
        ({"phases": ("decode",)}, UnknownNameError, "phase 'decode' does not exist"),
        ({"phases": ()}, InputError, "--phase is empty"),
        ({"heads": (1, 2, 1)}, InputError, "--heads holds 1 more than once"),
        ({"heads": (-1,)}, InputError, "--heads -1 given"),
        ({"lengths": ()}, InputError, "--lengths is empty"),
        ({"depths": (0, 101)}, InputError, "--depths holds 101, expected percentages from 0 to 100"),
        ({"depths": (0, 0)}, InputError, "--depths holds 0 more than once"),
        ({"batch_size": 0}, InputError, "--batch-size 0 given"),
        ({"max_new_tokens": 0}, InputError, "--max-new-tokens 0 given"),
    ],
)
def test_options_that_no_model_could_run(changes: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        NiahConfig(model="random", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": (5,)}, r"--heads 5 given, expected 0\.\.4: random has 4 heads"),
        ({"lengths": (120, 390)}, "--lengths 390 given, expected at most 360"),
        ({"lengths": (30,)}, "does not fit length 30"),
        ({"haystack": niah.Haystack("nothing", "")}, "'nothing' is empty"),
    ],
)
def test_options_that_this_model_cannot_run(changes: dict, message: str, tmp_path: Path) -> None:
    """Refused with one line before the folder is made."""
    with pytest.raises(InputError, match=message):
        go(
            benchmark_lens("jamba"),
            NiahConfig(model="random", **{**SMALL, "max_new_tokens": 40, **changes}),
            tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


def test_a_lens_without_tokenizer_is_refused(tmp_path: Path) -> None:
    lens = hl.HybridLens(benchmark_lens("jamba").hf_model)
    with pytest.raises(InputError, match="random has no tokenizer"):
        go(lens, NiahConfig(model="random", **SMALL), tmp_path / "run")


def test_memory_errors_name_the_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lens = benchmark_lens("jamba")

    def full(*args: Any, **more: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(type(lens.network), "forward", full)
    with pytest.raises(InputError, match=r"memory of cpu is not enough.*smaller --memory"):
        go(lens, NiahConfig(model="random", heads=(0, 4), **SMALL), tmp_path)


def test_a_budget_too_small_says_what_is_needed(tmp_path: Path) -> None:
    config = NiahConfig(model="random", heads=(0, 4), memory=1000, **SMALL)
    with pytest.raises(InputError, match=r"--memory 1000 bytes given, but a single row of \d+ tokens needs at least"):
        go(benchmark_lens("jamba"), config, tmp_path / "run")
