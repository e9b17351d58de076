"""The benchmark at full size, at the smallest: checkpoints open, sides answer alike, a process is seen as it is."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

models = importlib.import_module("tests.benchmarks.fullsize_models")
steps = importlib.import_module("tests.benchmarks.fullsize_steps")
watching = importlib.import_module("tests.benchmarks.watching")
fullsize = importlib.import_module("tests.benchmarks.fullsize")


@pytest.mark.parametrize("name", list(models.MODELS))
def test_a_checkpoint_is_whole_and_both_sides_answer_alike(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several shards, by published names, nothing left for the library to fill in; rounding may part long texts."""
    monkeypatch.setattr(models, "SHARD", 20_000)
    fields = models.fields_of(name, smallest=True, experts=2)
    sizes: list[int] = []
    folder = models.written(tmp_path, name, fields, sizes.append)
    assert sum(sizes) == models.size_of(name, fields)
    assert len(sizes) >= 3
    stored = [tensor for file in folder.glob("*.safetensors") for tensor in load_file(file)]
    assert len(stored) == len(set(stored))
    assert any("experts.1.up_proj.weight" in tensor for tensor in stored) == (name == "jamba-mini-8")
    opened: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(opened[1].values())
    models.written(tmp_path, name, fields, sizes.append)
    assert sum(sizes) == models.size_of(name, fields)  # it is there, so nothing is written again
    said: dict[str, list[int]] = {}
    for side in ("ours", "theirs"):
        capsys.readouterr()
        steps.main([side, str(folder), "--length", "150", "--new", "1"])
        phases = {told["phase"]: told for told in map(json.loads, capsys.readouterr().out.splitlines())}
        assert phases["answer"]["read"] == 150
        said[side] = phases["answer"]["tokens"]
    assert said["ours"] == said["theirs"]


WORK = """
import json, sys, time
print(json.dumps({"phase": "begin"}), flush=True)
held = bytearray(b"1" * 64_000_000)
sys.stderr.write("tty" if sys.stderr.isatty() else "no tty"); sys.stderr.flush()
time.sleep(0.6)
print("not a phase"); print(json.dumps({"phase": "hold", "n": 3}), flush=True)
"""


def test_a_process_is_seen_from_outside() -> None:
    """What it holds belongs to the phase in which it holds it; a silence is at least as long as it sleeps."""
    seen = watching.watched([sys.executable, "-c", WORK])
    assert list(seen.phases) == ["begin", "hold"]
    assert seen.phases["hold"]["n"] == 3
    assert seen.phases["hold"]["anonymous"] - seen.phases["begin"]["anonymous"] > 0.05
    assert seen.held.anonymous >= seen.phases["hold"]["anonymous"]
    assert seen.shown == "tty"
    assert seen.silence >= 0.6
    assert seen.seconds >= seen.phases["begin"]["seconds"] + seen.phases["hold"]["seconds"]
    with pytest.raises(watching.ProcessFailedError, match="ended with 3"):
        watching.watched([sys.executable, "-c", "raise SystemExit(3)"])


def test_a_clock_that_ticks_is_nothing_new() -> None:
    """What moves with time alone does not count as progress: times, and the codes that put them in place."""
    same = [
        watching.without_clock(text) for text in (" 41% 12/48 cells \x1b[36m0:00:07\x1b[0m", " 41% 12/48 cells 0:01:09")
    ]
    assert same[0] == same[1]
    assert watching.without_clock(" 42% 12/48 cells 0:01:09") != same[0]


def test_experts_are_as_many_as_asked_for_or_as_before(tmp_path: Path) -> None:
    """A checkpoint that is there is kept, whatever is free today."""
    assert fullsize.experts_of("recurrentgemma-2b", tmp_path, None, False) is None
    (tmp_path / "jamba-mini-8").mkdir()
    (tmp_path / "jamba-mini-8" / "config.json").write_text('{"num_experts": 4}')
    assert fullsize.experts_of("jamba-mini-8", tmp_path, None, False) == 4
    assert fullsize.experts_of("jamba-mini-8", tmp_path, 16, False) == 16
