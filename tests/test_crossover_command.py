"""`hybridlens crossover`, on random models: a folder that a killed run goes on in, and that is repaired."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from bounds import FORWARD, close
from command_line import refused
from markupsafe import Markup
from report_pages import Page

import hybridlens as hl
from analyses import kv_cache
from analyses.cli import main
from analyses.kv_cache import Crossover, DamageMap
from analyses.kv_cache import experiment as crossover_folder

SMALL = ["--lengths", "100", "--depths", "0,100", "--needles", "paper", "--max-new-tokens", "2", "--block", "60"]

pytestmark = pytest.mark.usefixtures("small_bundles")


def command(checkpoint: Path, out: Path, *more: str) -> list[str]:
    return ["crossover", "--model", str(checkpoint), *SMALL, *more, "--out", str(out)]


def test_the_folder_holds_what_the_functions_give(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every cell is that of `kv_cache.crossover` over the same prompts; maps, record, table and report stand beside it.

    A second call prints the same and runs no model.
    """
    out = tmp_path / "run"
    assert main(command(checkpoint, out)) == 0
    printed = capsys.readouterr().out
    lens = hl.load(str(checkpoint))
    pairs = kv_cache.prompt_pairs(lens.tokenizer, [100], [0, 100], kv_cache.needle_pairs(["paper"]))
    expected = kv_cache.crossover(lens, pairs, max_new_tokens=2)
    found = Crossover.load(out / "crossover.json")
    assert found.mixes == expected.mixes
    assert [cell.text for cell in found.cells] == [cell.text for cell in expected.cells]
    close([cell.logprob_b for cell in found.cells], [c.logprob_b for c in expected.cells], FORWARD)
    regions = ["inside"] if lens.cfg.window is None else ["inside", "outside"]
    names = {f"{where}-{kind}" for where in regions for kind in crossover_folder.KINDS}
    maps = {path.stem: DamageMap.load(path) for path in (out / "maps").iterdir()}
    assert set(maps) == names
    (pair,) = [pair for pair in pairs if pair.spans == maps["inside-reset"].spans]
    plain = kv_cache.recurrent_map(lens, pair, every=60, max_new_tokens=0)
    close(maps["inside-reset"].damage, plain.damage, FORWARD)
    record = json.loads((out / "run.json").read_text())
    assert (record["status"], record["job"], record["arguments"]["lengths"]) == ("complete", "crossover", [100])
    assert not (out / "parts").exists()
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    assert {a.get("id") for tag, a in page.tags if tag == "section"} >= {"memories", "layers", "written"}
    told = kv_cache.following.following(found, kv_cache.following.KEYS_AND_VALUES, True)
    line = next(line for line in printed.splitlines() if "keys and values" in line)
    assert f" {100 * told.memory.mean:.1f} (" in line
    before = (out / "crossover.json").read_bytes(), (out / "run.json").read_bytes()
    assert main(command(checkpoint, out)) == 0
    assert capsys.readouterr().out == printed
    assert "--depths" in refused(command(checkpoint, out, "--depths", "50"), capsys), "another run"
    assert ((out / "crossover.json").read_bytes(), (out / "run.json").read_bytes()) == before


def test_a_killed_run_goes_on_and_ends_the_same(
    jamba: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed after the second needle, and again after the first map: nothing finished is made again."""
    monkeypatch.setattr(crossover_folder, "mixes", lambda cfg: kv_cache.mixes(cfg, by_layer=False))
    more = ["--needles", "paper,oslo,code", "--depths", "50"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(command(jamba, whole, *more)) == 0
    done: list[str] = []

    def counted(name: str, real: Any, stop: int) -> None:
        def run(lens: Any, *given: Any, **options: Any) -> Any:
            if done.count(name) == stop:
                raise KeyboardInterrupt
            made = real(lens, *given, **options)
            done.append(name)
            return made

        monkeypatch.setattr(crossover_folder, name, run)

    counted("crossover", kv_cache.crossover, 2)
    counted("recurrent_map", kv_cache.recurrent_map, 1)
    assert main(command(jamba, cut, *more)) == 130
    assert f"kept in {cut}" in capsys.readouterr().err
    assert done == ["crossover", "crossover"]
    counted("crossover", kv_cache.crossover, 99)
    assert main(command(jamba, cut, *more)) == 130
    assert done == ["crossover", "crossover", "crossover", "recurrent_map"]
    for torn in (next((cut / "parts").rglob("oslo.json")), cut / "crossover.json"):
        torn.write_text(torn.read_text()[:100])
    counted("recurrent_map", kv_cache.recurrent_map, 99)
    assert main(command(jamba, cut, *more)) == 0
    assert done[4:] == ["crossover", "recurrent_map"], "the torn part and the map that was not made"
    for name in ("crossover.json", "maps/inside-replaced.json"):
        ours, theirs = (json.loads((folder / name).read_text()) for folder in (cut, whole))
        assert ours == theirs, name


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--needles", "papr"], "'papr' is neither a file nor a built-in needle.*paper"),
        (["--needles", "tokyo"], "needle 'tokyo' has no twin"),
        (["--needles", "oslo,oslo"], "--needles holds oslo more than once"),
        (["--lengths", "many"], "--lengths 'many' given, expected whole numbers"),
        (["--depths", "0,200"], "200"),
        (["--lengths", "12"], "12"),
        (["--block", "0"], "--block 0 given, expected greater than or equal to 1"),
        (["--max-new-tokens", "0"], "--max-new-tokens 0 given"),
        (["--rows", "0"], "--rows 0 given, expected greater than or equal to 1"),
        (["--seed", "-1"], "--seed -1 given, expected greater than or equal to 0"),
        (["--lengths", "399"], "--lengths 399 given, expected at most 398.*400"),
    ],
)
def test_bad_options_are_one_line(
    more: list[str], message: str, jamba: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.search(message, refused(command(jamba, tmp_path / "run", *more), capsys))
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def finished(jamba: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of few mixes, to be copied."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(crossover_folder, "mixes", lambda cfg: kv_cache.mixes(cfg, by_layer=False))
        patched.setattr("hybridlens.viz.bundles.plotly_bundle", lambda bundle: Markup("// plotly"))
        assert main(command(jamba, folder)) == 0
    return folder


@pytest.mark.parametrize(
    ("harm", "again"),
    [
        ({"maps/inside-reset.json": None}, ["recurrent_map"]),
        ({"maps/inside-dropped.json": "{", "maps/inside-replaced.json": '{"format": "another"}'},
         ["drop_map", "recurrent_map"]),
        ({"crossover.json": "damaged"}, ["crossover"]),
        ({"crossover.json": None, "maps/inside-dropped.json": None}, ["crossover", "drop_map"]),
        ({"crossover.json": "fewer cells"}, ["crossover"]),
    ],
)  # fmt: skip
def test_a_finished_folder_is_repaired(
    harm: dict[str, str | None], again: list[str], finished: Path, jamba: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What is missing or damaged is made again, and nothing else; then all files are what they were before."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    kept = sorted(str(path.relative_to(out)) for path in out.rglob("*.json"))
    before = {name: json.loads((out / name).read_text()) for name in kept if name != "run.json"}
    for name, text in harm.items():
        if text == "fewer cells":
            text = json.dumps(before[name] | {"cells": before[name]["cells"][1:]})
        (out / name).unlink() if text is None else (out / name).write_text(text)
    done: list[str] = []

    def counted(name: str, real: Any) -> None:
        monkeypatch.setattr(crossover_folder, name, lambda *given, **more: done.append(name) or real(*given, **more))

    monkeypatch.setattr(crossover_folder, "mixes", lambda cfg: kv_cache.mixes(cfg, by_layer=False))
    for name in ("crossover", "drop_map", "recurrent_map"):
        counted(name, getattr(kv_cache, name))
    assert main(command(jamba, out)) == 0
    assert done == again
    assert {name: json.loads((out / name).read_text()) for name in before} == before
    record = json.loads((out / "run.json").read_text())
    assert (record["status"], len(record["sessions"])) == ("complete", 2)
    assert not (out / "parts").exists()
