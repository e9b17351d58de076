"""`hybridlens circuits` and `hybridlens rankings` from outside: what they write, going on, bad input."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from benchmarks.choosing import best
from bounds import close
from random_lens import benchmark_lens, save_checkpoint
from safetensors.torch import load_file, save_file

import hybridlens as hl
from analyses.circuits import HeadCircuits, circuits
from analyses.cli import main
from analyses.experiment.filler import linearising_text
from analyses.experiment.options.rankings import RankingsConfig
from analyses.heads.ranking import HeadRanking
from analyses.study.rankings.calibration import calibration_prompts
from analyses.study.rankings.candidates import FROM_WEIGHTS, NAMES, make_rankings
from analyses.study.rankings.sweep import RankingsRun, compare
from hybridlens.errors import UnknownNameError
from hybridlens.results import Folder

SMALL = ["--counts", "0,3,8", "--draws", "1", "--lengths", "140", "--depths", "0,100", "--needles", "paper",
         "--prompts", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random RecurrentGemma with its tokenizer, as a folder."""
    return save_checkpoint(tmp_path_factory.mktemp("models") / "random-recurrentgemma")


def test_circuits_are_read_from_files(checkpoint, tmp_path, capsys, monkeypatch):
    """No model is made; what is written is what the function gives, and a second call computes nothing."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("hybridlens.loading.HybridLens", refuse)
    out = tmp_path / "out"
    command = ["circuits", "--model", str(checkpoint), "--out", str(out), "--distances", "1,2", "--sample", "50"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "linearised at rest" in printed
    assert printed.splitlines()[-1] == f"report: {out / 'report.html'}"
    found = HeadCircuits.load(out / "circuits.safetensors")
    monkeypatch.undo()
    expected = circuits(hl.load(checkpoint), sample_size=50, distances=(1, 2))
    close(found.retrieval, expected.retrieval)
    assert found.model == str(checkpoint)
    for metric in found.metrics:
        assert HeadRanking.load(out / "rankings" / f"{metric}.json").order == found.ranking(metric).order
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "complete"
    monkeypatch.setattr("analyses.circuits.experiment.circuits", refuse)
    assert main([*command, "--metric", "copying"]) == 0
    assert capsys.readouterr().out.splitlines()[2].split()[0] == "1"  # every head, best first


def test_circuits_measured_on_text(tmp_path, capsys):
    """An embedded model is run on filler text: the linear paths' error is printed and stored."""
    assert main(["circuits", "--model", "tiny-jamba", "--out", str(tmp_path / "out"), "--sample", "64"]) == 0
    assert "at the mean of 2048 tokens; error 0." in capsys.readouterr().out
    found = HeadCircuits.load(tmp_path / "out" / "circuits.safetensors")
    assert found.path_error is not None
    assert found.path_error.shape == (6,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metric", "copyin"], "--metric 'copyin' does not exist; close names: copying"),
        (["--metric", "previous", "--model", "tiny-jamba"], "needs rotary embedding, and tiny-jamba has none"),
        (["--distances", "1,64"], "expected different ones of 0..63, the window's"),
        (["--distances", "x"], "--distances"),
        (["--sample", "1"], "--sample 1 given, expected greater than or equal to 2"),
        (["--model", "tiny-gamma"], "neither an embedded checkpoint"),
        (["--device", "abacus"], "abacus"),
        (["--memory", "lots"], "expected a size such as 2GB"),
    ],
)
def test_bad_circuits_say_so_in_one_line(arguments, message, checkpoint, tmp_path, capsys):
    """Status 2, one line on stderr, and no result."""
    model = [] if "--model" in arguments else ["--model", str(checkpoint)]
    assert main(["circuits", *model, "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len([line for line in error.splitlines() if line.startswith("hybridlens:")]) == 1
    assert not (tmp_path / "out" / "report.html").exists() or "--metric" in arguments


def test_a_missing_shard_is_named(tmp_path, capsys):
    """The shard that holds a head's weights, by its file name; nothing is written."""
    lens = benchmark_lens("jamba")
    lens.hf_model.save_pretrained(tmp_path / "model", max_shard_size="30KB")
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())["weight_map"]
    gone = index["model.layers.1.self_attn.q_proj.weight"]
    (tmp_path / "model" / gone).unlink()
    assert main(["circuits", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]) == 2
    assert f"lacks its shard {gone}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_quantised_weights_are_refused(checkpoint, tmp_path, capsys):
    """Whole numbers in place of weights: one line that names the tensor."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.2.temporal_block.q_proj.weight"
    tensors[name] = tensors[name].to(torch.int8)
    save_file(tensors, folder / "model.safetensors")
    assert main(["circuits", "--model", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert f"the weight {name} is stored as int8" in capsys.readouterr().err


def test_rankings_are_compared_and_gone_on_with(checkpoint, tmp_path, capsys):
    """Cells, rankings, record and report; a ranking that joins later costs its own cells alone."""
    out = tmp_path / "out"
    command = ["rankings", "--model", str(checkpoint), "--out", str(out), *SMALL]
    assert main([*command, "--rankings", "copying"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == f"report: {out / 'report.html'}"
    first = pd.read_parquet(out / "cells.parquet")
    assert set(first.ranking) == {"", "copying", "random 0"}
    assert main([*command, "--rankings", "copying,matching,entropy"]) == 0
    both = pd.read_parquet(out / "cells.parquet")
    assert set(both.ranking) == {"", "copying", "random 0", "matching", "entropy"}
    kept = ["ranking", "k", "length", "depth"]
    old = both[both.ranking.isin(["", "copying", "random 0"])].sort_values(kept).seconds
    assert sorted(old) == sorted(first.seconds)
    assert HeadRanking.load(out / "rankings" / "copying.json").source.endswith("(from weights)")
    page = (out / "report.html").read_text()
    assert "copying" in page
    assert json.loads((out / "run.json").read_text())["status"] == "complete"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rankings", "copyin"], "ranking 'copyin' does not exist; close names: copying"),
        (["--rankings", "copying,copying"], "--rankings holds copying more than once"),
        (["--counts", "9"], "expected 0..8, the heads of the model"),
        (["--scope", "head"], "scope 'head' does not exist"),
        (["--phase", "reading"], "phase 'reading' does not exist"),
        (["--needles", "paper,paper"], "paper"),
        (["--needles", "oslo,treasure,violin,tuesday"], "calibrat"),
        (["--draws", "-1"], "--draws -1 given, expected greater than or equal to 0"),
        (["--memory", "1KB"], "needs at least"),
    ],
)
def test_bad_rankings_say_so_in_one_line(arguments, message, checkpoint, tmp_path, capsys):
    """Status 2, one line on stderr, and nothing written."""
    assert main(["rankings", "--model", str(checkpoint), "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert not (tmp_path / "out").exists()


def test_made_rankings_are_those_of_their_modules(tmp_path):
    """All names, in order; from weights as `circuits` has them; kept in a folder and taken from it, not made again.

    One whose file was changed by a digit, or that was made for another seed, is not believed.
    """
    lens = benchmark_lens("recurrentgemma")
    config = RankingsConfig(model="random", lengths=(140,), depths=(0, 100))
    prompts, manifest = calibration_prompts(lens, config), RankingsRun(lens, config).manifest()

    def take(config: RankingsConfig = config) -> tuple[dict[str, HeadRanking], list[str]]:
        with Folder.open(tmp_path, manifest) as folder:
            return make_rankings(lens, config, prompts, folder), folder.damaged

    made, _ = take()
    assert tuple(made) == NAMES
    found = circuits(lens)
    for name, metric in FROM_WEIGHTS.items():
        assert made[name].order == found.ranking(metric).order
    other = HeadRanking(-made["copying"].scores, made["copying"].layers, "turned round", lower_is_better=False)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "rankings").iterdir()}
    assert take()[1] == []
    assert {path: path.stat().st_mtime_ns for path in before} == before
    other.save(tmp_path / "rankings" / "copying.json")
    again, damaged = take()
    assert damaged == ["rankings/copying.json does not match its digest; made again"]
    assert again["copying"].order == made["copying"].order
    _, damaged = take(config.but(seed=1))
    assert len(damaged) == len(NAMES)
    with pytest.raises(UnknownNameError, match="close names: needle mass"):
        take(RankingsConfig(model="random", rankings=("needle mas",)))
    at_means = circuits(lens, linearising_text(lens), level="writers")
    again, damaged = take(config.but(level="writers"))
    assert len(damaged) == len(NAMES)  # after another seed
    for name, metric in FROM_WEIGHTS.items():
        assert again[name].order == at_means.ranking(metric).order
        assert torch.equal(again[name].scores, at_means.score(metric))
    assert not torch.equal(again["induction"].scores, made["induction"].scores)
    assert "beyond the mean over the head's earlier writers" in again["induction"].source
    take()
    _, damaged = take(config.but(level="writers"))
    assert len(damaged) == len(FROM_WEIGHTS)  # after the other level; those of a run are the same


def test_the_best_combination_has_the_largest_area():
    """Of two equal ones the first; of two that differ, the one that keeps more."""
    lens = benchmark_lens("recurrentgemma")
    layers, shape = lens.cfg.attention_layers, (2, lens.cfg.n_heads)
    ranking = HeadRanking(torch.arange(8.0).view(shape), layers, "ascending", lower_is_better=True)
    config = RankingsConfig(
        model="random", run_time=False, draws=0, filler_rows=0, tasks=(), lengths=(140,), depths=(0,), counts=(4,)
    )
    found = compare(lens, {"first": ranking, "second": ranking}, config)
    assert best(found) == "first"
    areas = (found.area[0]._replace(value=0.25), found.area[1])
    assert best(replace(found, area=(areas[0], areas[1]._replace(value=0.5)))) == "second"
