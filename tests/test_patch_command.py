"""`hybridlens patch`, on random models: a folder that goes on sweep by sweep, pairs and metrics by name."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bounds import FORWARD, close
from command_line import refused
from models import FAMILIES
from random_lens import benchmark_lens
from report_pages import Page

import hybridlens as hl
from analyses.cli import main
from analyses.patching import choosing, effects, sections, sweeps
from analyses.patching import experiment as patch_folder
from analyses.patching.direct import DirectAttribution
from analyses.patching.results import EdgeResult, PatchResult
from hybridlens import niah
from hybridlens.errors import InputError

SMALL = ["--length", "90", "--depth", "80", "--sweeps", "v_by_position,state"]

pytestmark = pytest.mark.usefixtures("small_bundles")


def command(checkpoint: Path, out: Path, *more: str) -> list[str]:
    return ["patch", "--model", str(checkpoint), *SMALL, *more, "--out", str(out)]


def test_the_folder_holds_what_the_functions_give(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sweeps and estimates are those of the library for the same pair; a second call makes nothing and prints the same.

    A sweep added later joins them; another direction does not fit the folder.
    """
    out = tmp_path / "run"
    assert main(command(checkpoint, out)) == 0
    printed = capsys.readouterr().out
    lens = hl.load(str(checkpoint))
    pair = choosing.make_pair(lens, "needle", niah.PAPER_NEEDLE, 90, 80)
    written = json.loads((out / "pair.json").read_text())
    assert (written["clean"], written["corrupt"]) == (list(pair.clean_tokens), list(pair.corrupt_tokens))
    for name in ("v_by_position", "state"):
        expected = sweeps.sweep(lens, name, pair.clean_tokens, pair.corrupt_tokens, pair.logit_difference)
        found = PatchResult.load(out / "sweeps" / f"{name}.safetensors")
        close(found.raw, expected.raw, FORWARD)
        best = effects.strongest(found)[0]
        row = next(line for line in printed.splitlines() if line.split()[:1] == [name])
        assert (best.words if best.effect >= sections.LEAST_SHOWN else sections.NONE) in row
        assert effects.number(best.effect) in row
    assert {path.stem for path in (out / "attribution").iterdir()} == {"v_by_position", "state"}
    edges, direct = EdgeResult.load(out / "edges.safetensors"), DirectAttribution.load(out / "direct.safetensors")
    assert edges.clean_tokens == direct.tokens == pair.clean_tokens
    record = json.loads((out / "run.json").read_text())
    assert (record["status"], record["job"], record["arguments"]["metric"]) == ("complete", "patch", "logit-difference")
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    assert [a.get("id") for tag, a in page.tags if tag == "section"] == [
        "pair", "places", "attention", "recurrent", "gradients", "paths", "direct", "provenance"
    ]  # fmt: skip
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert main(command(checkpoint, out)) == 0
    assert capsys.readouterr().out == printed
    assert main(command(checkpoint, out, "--sweeps", "k")) == 0
    assert re.search(r"^k +L", capsys.readouterr().out, re.MULTILINE)
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert (out / "sweeps" / "k.safetensors").is_file()
    assert "--direction" in refused(command(checkpoint, out, "--direction", "noise"), capsys)


def test_a_killed_run_goes_on_sweep_by_sweep(
    jamba: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed in the second sweep; what was finished is not made again, what was torn is."""
    out, done = tmp_path / "run", []
    real = sweeps.sweep

    def stopped(lens: Any, name: str, *given: Any, **options: Any) -> PatchResult:
        if name == "state" and len(done) < 2:
            done.append("killed")
            raise KeyboardInterrupt
        done.append(name)
        return real(lens, name, *given, **options)

    monkeypatch.setattr(patch_folder, "sweep", stopped)
    assert main(command(jamba, out, "--no-attribution")) == 130
    assert f"kept in {out}" in capsys.readouterr().err
    assert done == ["v_by_position", "killed"]
    assert main(command(jamba, out, "--no-attribution")) == 0
    assert done == ["v_by_position", "killed", "state"]
    torn = out / "sweeps" / "state.safetensors"
    whole = torn.read_bytes()
    torn.write_bytes(whole[:100])
    assert main(command(jamba, out, "--no-attribution")) == 0
    assert done[3:] == ["state"]
    assert torn.read_bytes() == whole
    assert not (out / "attribution").exists()
    assert not (out / "edges.safetensors").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--pair", "neddle"], "--pair 'neddle' does not exist.*needle, none, moved"),
        (["--sweeps", "vv"], "sweep 'vv' does not exist; this model has resid_pre"),
        (["--sweeps", "v,v"], "--sweeps holds v more than once"),
        (["--metric", "loss"], "--metric 'loss' does not exist.*expected one of logit-difference"),
        (["--direction", "up"], "direction 'up' does not exist; expected one of denoise, noise"),
        (["--needle", "papr"], "--needle given without --question and --rubric; close names: paper"),
        (["--length", "9"], "9"),
        (["--depth", "101"], "101"),
        (["--batch-size", "0"], "--batch-size 0 given"),
    ],
)
def test_bad_options_are_one_line(
    more: list[str], message: str, jamba: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.search(message, refused(command(jamba, tmp_path / "run", *more), capsys))
    assert not (tmp_path / "run").exists()


# Pairs and metrics by name.


@pytest.mark.parametrize("family", FAMILIES)
def test_metrics_by_name_tell_the_prompts_apart(family: str) -> None:
    """Each metric of a pair, on the prompts that it is measured on, against the logits of plain runs."""
    lens = benchmark_lens(family)
    pair = choosing.make_pair(lens, "needle", niah.PAPER_NEEDLE, 90, 80)
    assert pair.answers is not None
    right, wrong = pair.answers
    with torch.no_grad():
        ends = {side: lens([list(side)])[:, -1:] for side in (pair.clean_tokens, pair.corrupt_tokens)}
    by_hand = {
        "logit-difference": lambda x: x[right] - x[wrong],
        "log-probability": lambda x: x.log_softmax(0)[right],
        "rank": lambda x: float((x > x[right]).sum()),
    }
    for name, value in by_hand.items():
        measure = choosing.measure(lens, pair, niah.PAPER_RUBRIC, name)
        for side in (measure.clean, measure.corrupt):
            ours = float(measure.metric(ends[side])[0])  # type: ignore[operator]
            close(ours, float(value(ends[side][0, -1])), FORWARD)
    kl = choosing.measure(lens, pair, niah.PAPER_RUBRIC, "kl").metric
    p, q = (ends[side][0, -1].log_softmax(0) for side in (pair.clean_tokens, pair.corrupt_tokens))
    close(kl(ends[pair.corrupt_tokens])[0], (p.exp() * (p - q)).sum(), FORWARD)
    score = choosing.measure(lens, pair, niah.PAPER_RUBRIC, "score")
    assert (score.clean, score.corrupt) == (pair.clean_prompt.tokens, pair.corrupt_prompt.tokens)
    with pytest.raises(InputError, match=r"answers both prompts alike .* give --metric kl or score"):
        choosing.measure(lens, replace(pair, answers=None), niah.PAPER_RUBRIC, "rank")
    with pytest.raises(InputError, match=r"differ by .* nats, so that there is nothing to explain"):
        choosing.measure(lens, replace(pair, corrupt_tokens=pair.clean_tokens), niah.PAPER_RUBRIC, "kl")


def test_pairs_by_name() -> None:
    """The twin answers the same question; no needle keeps the question alone; a moved one is the same further on."""
    lens = benchmark_lens("jamba")
    twin = choosing.make_pair(lens, "needle", niah.PAPER_NEEDLE, 110, 50)
    assert twin.clean_prompt.needle_spans == twin.corrupt_prompt.needle_spans
    start, stop = twin.clean_prompt.needle_span
    assert all(start <= d.position < stop for d in twin.differences)
    assert choosing.make_pair(lens, "none", niah.PAPER_NEEDLE, 110, 50).corrupt_prompt.needle_span is None
    back, on = (choosing.make_pair(lens, "moved", niah.PAPER_NEEDLE, 110, depth) for depth in (50, 20))
    assert back.corrupt_prompt.needle_span < back.clean_prompt.needle_span
    assert on.corrupt_prompt.needle_span > on.clean_prompt.needle_span


def test_the_default_sweeps_are_those_that_the_model_has() -> None:
    """A model without experts has no router sweep, and nothing else is missing; all is all that it has."""
    lens = benchmark_lens("recurrentgemma")
    usual = patch_folder.chosen_sweeps(lens, None)
    assert usual == [name for name in patch_folder.DEFAULT if name != "router"]
    assert set(patch_folder.chosen_sweeps(lens, ["all"])) == {n for n in sweeps.SWEEPS if sweeps.SWEEPS[n].hooks(lens)}
