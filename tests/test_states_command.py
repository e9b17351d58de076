"""`hybridlens states`, on random models: a folder that a killed run goes on in, own texts, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from bounds import FORWARD, near
from command_line import refused
from report_pages import Page

import hybridlens as hl
from analyses import states
from analyses.cli import main
from analyses.states import experiment as states_folder
from hybridlens import niah

SMALL = ["--length", "100", "--depths", "0,100", "--controls", "3", "--haystacks", "6", "--shuffles", "3"]

pytestmark = pytest.mark.usefixtures("small_bundles")


def command(checkpoint: Path, out: Path, *more: str) -> list[str]:
    return ["states", "--model", str(checkpoint), *SMALL, *more, "--out", str(out)]


def test_the_folder_holds_what_the_functions_give(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every measure is that of the function over the same prompt; a second call prints the same and runs no model."""
    out = tmp_path / "run"
    assert main(command(checkpoint, out)) == 0
    printed = capsys.readouterr().out
    lens = hl.load(str(checkpoint))
    prompts = niah.grid(lens.tokenizer, [100], [0, 100])
    for prompt in prompts:
        folder = out / "prompts" / f"depth-{prompt.depth}"
        rows = [list(prompt.tokens)]
        near(states.Spectrum.load(folder / "spectrum.safetensors").log_decay, states.spectrum(lens, rows).log_decay)
        near(states.Sizes.load(folder / "sizes.safetensors").norm, states.sizes(lens, rows).norm, FORWARD)
        flow, again = states.Flow.load(folder / "flow.safetensors"), states.flow(lens, rows)
        near(flow.wrote, again.wrote, FORWARD, dtype=torch.float32)
        held = states.Holding.load(folder / "holding.safetensors")
        assert held.spans[-1] == prompt.needle_span
        shares = states.holding(lens, rows, held.spans).share
        near(held.share, shares, FORWARD, dtype=torch.float32, scale=max(1.0, float(shares.abs().max())))
    knocked = {path.stem for path in (out / "knockouts").iterdir()}
    assert {name.partition("-")[0] for name in knocked} == {"write", "read"}
    record = json.loads((out / "run.json").read_text())
    assert (record["status"], record["job"], record["arguments"]["needle"]) == ("complete", "states", "paper")
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    sections = {"half-lives", "sizes", "flow", "held", "hidden", "knockouts", "probes"}
    assert {a.get("id") for tag, a in page.tags if tag == "section"} >= sections
    for layer in lens.cfg.state_layers:
        assert f"\nL{layer} " in printed
    before = {path: path.read_bytes() for path in out.rglob("*.safetensors")}
    assert main(command(checkpoint, out)) == 0
    assert capsys.readouterr().out == printed
    assert {path: path.read_bytes() for path in out.rglob("*.safetensors")} == before


def test_a_killed_run_goes_on_and_ends_the_same(
    jamba: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(command(jamba, whole)) == 0
    done: list[str] = []

    def counted(name: str, real: Any, stop: int) -> None:
        def run(*given: Any, **options: Any) -> Any:
            if done.count(name) == stop:
                raise KeyboardInterrupt
            made = real(*given, **options)
            done.append(name)
            return made

        monkeypatch.setattr(states_folder, name, run)

    real = {name: getattr(states_folder, name) for name in ("flow", "knockout")}
    counted("flow", real["flow"], 1)
    counted("knockout", real["knockout"], 1)
    assert main(command(jamba, cut)) == 130
    assert f"kept in {cut}" in capsys.readouterr().err
    counted("flow", real["flow"], 9)
    assert main(command(jamba, cut)) == 130
    (cut / "hidden.safetensors").write_bytes(b"torn")
    counted("knockout", real["knockout"], 99)
    assert main(command(jamba, cut)) == 0
    assert "damaged and made again" in capsys.readouterr().err
    knocked = len(list((whole / "knockouts").iterdir()))
    assert done == ["flow", "flow", *["knockout"] * knocked], "nothing that was finished is made again"
    for path in whole.rglob("*.safetensors"):
        assert path.read_bytes() == (cut / path.relative_to(whole)).read_bytes(), path.name


def test_own_texts_of_several_lengths(jamba: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is measured by itself; what needs a needle is left out."""
    texts = tmp_path / "mine.json"
    words = niah.grid(hl.load(str(jamba)).tokenizer, [60], [50])[0].text
    texts.write_text(json.dumps([words, words[: len(words) // 2]]))
    out = tmp_path / "run"
    arguments = ["states", "--model", str(jamba), "--texts", str(texts), "--out", str(out)]
    assert main(arguments) == 0
    assert "first 4 hold" in capsys.readouterr().out
    assert {path.name for path in (out / "prompts").iterdir()} == {"text-0", "text-1"}
    assert not (out / "knockouts").exists()
    assert not (out / "probes.safetensors").exists()
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    found = {a.get("id") for tag, a in page.tags if tag == "section"}
    assert "held" in found
    assert not found & {"knockouts", "probes"}
    shutil.rmtree(out)
    texts.write_text("{}")
    assert "holds something else than texts" in refused(arguments, capsys)
    texts.write_text("[")
    assert "is no JSON" in refused(arguments, capsys)
    texts.unlink()
    assert "cannot be read" in refused(arguments, capsys)
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--needle", "papr"], "--needle given without --question and --rubric; close names: paper"),
        (["--length", "12"], "12"),
        (["--length", "0"], "--length 0 given, expected greater than or equal to 1"),
        (["--depths", "0,200"], "--depths holds 200, expected percentages from 0 to 100"),
        (["--layers", "1"], "layer 1 is no recurrent layer"),
        (["--layers", "0,0"], "--layers holds 0 more than once"),
        (["--metric", "rank"], "--metric 'rank' does not exist"),
        (["--haystacks", "2"], "--haystacks 2 given, expected greater than or equal to 5"),
        (["--controls", "0"], "--controls 0 given, expected greater than or equal to 1"),
        (["--texts", "a.txt"], "--texts and --length are given; own texts have no needle of ours"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_made(
    jamba: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    out = tmp_path / "run"
    assert message in refused(command(jamba, out, *more), capsys)
    assert not out.exists()
