"""Studies side by side: what several models decide, what is paired, what is incomparable, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bounds import close
from study_cells import grid

from analyses.cli import main
from analyses.study.benchmarks.results import BenchmarkResult
from analyses.study.comparing import Comparison, compare_studies
from analyses.study.comparing.across import across
from analyses.study.comparing.paired import side_by_side
from analyses.study.comparing.reading import read_studies, read_study
from analyses.study.verdict import Verdict
from hybridlens.errors import InputError, ResultsError
from hybridlens.results import Cell, Folder, Manifest, Run, bootstrap_interval, paired_difference
from hybridlens.results.record import read_record, write_record
from tests.stored_results import stored as stored_results
from tests.stored_results import text_of

LENGTHS, DEPTHS = (200, 220, 240, 260, 280), (0, 25, 50, 75, 100)


def cells(scores: dict[int, Any], **fields: Any) -> list[Cell]:
    """A sweep of 25 prompts and five controls under each k."""
    return [one for k, score in scores.items() for one in grid(score, LENGTHS, DEPTHS, k=k, **fields)]


def falling(tip: int, n_heads: int, **fields: Any) -> list[Cell]:
    """A sweep whose tipping point is `tip`."""
    return cells({k: 5.0 if k > tip else 0.0 for k in range(n_heads + 1)}, **fields)


def stored(folder: Path, found: list[Cell], n_heads: int, *, finish: bool = True, **changes: Any) -> Path:
    """A study's folder that holds these cells: clean ones as those of its own semantics, others as they are."""
    values: dict[str, Any] = {
        "model": folder.name,
        "semantics": "clean",
        "job": "reproduce",
        "parameters": 1000,
    } | changes
    manifest = Manifest(
        model=values["model"],
        arguments={"haystack": "built-in essays", "template": "base", "max_new_tokens": 40, "dtype": "float32"},
        seed=0,
        max_score=5,
        config_hash="c",
        weights_hash="w",
        job=values["job"],
        command="hybridlens reproduce --model m",
        settings={
            "semantics": values["semantics"],
            "boundary": "last_prompt_token",
            "lengths": values.get("lengths", []),
        },
        facts={"family": "jamba", "n_heads": n_heads, "window": None, "parameters": values.get("parameters", 1000)},
        growing={},
    )
    own = values["semantics"]
    found = [
        replace(cell, model=values["model"], semantics=own if cell.semantics == "clean" else cell.semantics)
        for cell in found
    ]
    with Run.open(folder, manifest, {cell.key: cell.prompt_hash for cell in found}) as run:
        run.add(found if finish else found[:-1])
        if finish:
            run.finish()
    return folder


def of_others(found: list[Cell]) -> list[Cell]:
    """The same scores, of prompts that nobody else has."""
    return [replace(cell, prompt_hash=f"other {cell.prompt_hash}") for cell in found]


def over(claim: str, *folders: Path) -> Verdict:
    """What becomes of a claim across models."""
    return next(one for one in across(read_studies(folders)) if one.id == claim)


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of 4 and 8 heads: one tips at 1, others at 1 and 3; the small one loses more with the prefill version."""
    folder = tmp_path_factory.mktemp("studies")
    small = falling(1, 4) + cells(dict.fromkeys(range(4), 0.0), phase="prefill")
    large = falling(3, 8) + cells({k: 5.0 if k > 3 else 0.0 for k in range(8)}, phase="prefill")
    return {
        "small": stored(folder / "small", small, 4),
        "large": stored(folder / "large", large, 8, parameters=5000),
        "same": stored(folder / "same", of_others(falling(1, 8)), 8, parameters=5000),
        "coarse": stored(folder / "coarse", cells({0: 0.0, 4: 5.0, 8: 5.0}), 8),
        "published": stored(folder / "published", falling(3, 8), 8, semantics="published"),
    }


@pytest.fixture(scope="module")
def found(studies: dict[str, Path]) -> Comparison:
    return compare_studies([studies["small"], studies["large"]])


def test_more_heads_tip_later(studies: dict[str, Path], found: Comparison) -> None:
    """1 of 4 against 3 of 8 holds, 1 of 8 fails, 0 to 3 of 8 stays open, and in one model there is nothing to order."""
    one = next(one for one in found.across if one.id == "h1-heads")
    assert (one.outcome, one.reason) == ("holds", "")
    assert one.measured == (
        "small and large: tipping point 1 of 4 heads and tipping point 3 of 8 heads, second less first +2 to +2, "
        "on the same prompts"
    )
    equal = over("h1-heads", studies["small"], studies["same"])
    assert equal.outcome == "fails"
    assert "other prompts in each" in equal.measured
    between = over("h1-heads", studies["coarse"], studies["small"])
    assert "undecided" in between.reason
    assert "tipping point 0 to 3 of 8 heads" in between.measured
    alike = over("h1-heads", studies["large"], studies["same"])
    assert alike.reason == "needs studies of models that differ in heads a layer; there are 8, 8"


def test_the_larger_loses_less_while_reading(studies: dict[str, Path], found: Comparison) -> None:
    """Small: 2 of 4 k are kept, none in the prefill version, 50 points; large: none lost. The difference is paired."""
    one = next(one for one in found.across if one.id == "h1-prefill-size")
    assert one.outcome == "holds"
    assert "+50.0 points" in one.measured
    assert "25 prompts that both have" in one.measured
    lacking = over("h1-prefill-size", studies["small"], studies["same"])
    assert "same: figure 2 was not run in the prefill version" in lacking.reason


def test_differences_are_paired_where_prompts_are_the_same(tmp_path: Path) -> None:
    """On the prompts that both have by hash, and only on these; else as of independent means."""
    one = cells({0: lambda n, d: 5.0 if d > 25 else 0.0, 4: 5.0})
    two = [replace(c, score=min(5.0, float(c.score) + 0.5)) for c in one]
    two = [replace(c, prompt_hash=c.prompt_hash + "q" * (c.length > 240)) for c in two]
    far = [replace(c, prompt_hash=c.prompt_hash + "z") for c in two]
    names = {"one": one, "two": two, "far": far}
    folders = [stored(tmp_path / name, of, 4) for name, of in names.items()]
    row = next(row for row in side_by_side(read_studies(folders)) if row.condition == "no head, generation")
    paired, apart = row.differences[1], row.differences[2]
    assert row.differences[0] is None
    assert paired is not None
    assert apart is not None
    assert (paired.paired, paired.estimate.n, apart.paired) == (True, 15, False)
    before = [5.0 if d > 25 else 0.0 for _ in LENGTHS[:3] for d in DEPTHS]
    after = [min(5.0, score + 0.5) for score in before]
    interval = paired_difference(after, before, highest=5)
    close([paired.estimate.low, paired.estimate.high], [interval.low / 5, interval.high / 5])
    alone = bootstrap_interval(before[:5] * 5, highest=5)
    assert apart.estimate.high - apart.estimate.low > (alone.high - alone.low) / 5, "two spreads, not one"


def test_what_is_incomparable_is_said_in_the_row(studies: dict[str, Path]) -> None:
    """Semantics differ: each verdict stands, no claim across models is decided, and no row counts as parting."""
    mixed = compare_studies([studies["small"], studies["published"]])
    assert "unlike settings: semantics (clean, published)" in mixed.across[0].reason
    first = next(row for row in mixed.claims if row.id == "h1-tipping")
    assert first.unlike == ("semantics (clean, published)",)
    assert not any(row.parts for row in mixed.claims)
    assert mixed.notes == ()


def test_claims_on_which_studies_part_stand_first(studies: dict[str, Path], tmp_path: Path) -> None:
    flat = stored(tmp_path / "flat", cells(dict.fromkeys(range(9), 5.0)), 8)
    found = compare_studies([studies["large"], flat])
    parted = [row.id for row in found.claims if row.parts]
    assert parted == [row.id for row in found.claims][: len(parted)]
    assert parted == ["h1-tipping"], "25 prompts leave it open whether k = 0 is zero"
    assert found.to_pandas().query("claim == 'h1-tipping'")["outcome"].tolist() == ["holds", "fails"]


def test_the_command(studies: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It prints the table, writes one page, and writes nothing where a run is."""
    small, large = str(studies["small"]), str(studies["large"])
    assert main(["compare", small, large, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "H1  holds" in shown
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "The more heads a layer has, the higher the tipping point" in page
    assert main(["compare", small, large, "--out", small]) == 2
    assert "holds a run, whose report would be lost" in capsys.readouterr().err


def test_what_texts_state_is_stored_in_small(studies: dict[str, Path]) -> None:
    """A study as docs/results keeps it: how it was made, what can be read back, and no place of a machine."""
    held = json.loads(text_of(written := stored_results(studies["large"])))
    assert held == written
    assert held["made"]["command"] == "hybridlens reproduce --model large"
    columns, rows = held["tables"]["conditions"].values()
    found = [dict(zip(columns, row, strict=True)) for row in rows]
    assert {(row["phase"], row["k"]): row["mean"] for row in found} == {
        **{("generation", k): float(k > 3) for k in range(9)},
        **{("prefill", k): float(k > 3) for k in range(8)},
    }
    assert held["tables"]["tipping"]["rows"][0] == ["generation", 3, 3, 3]
    assert str(studies["large"].parent) not in text_of(held)


def test_what_cannot_be_compared_is_refused_in_one_line(studies: dict[str, Path], tmp_path: Path) -> None:
    small = studies["small"]
    with pytest.raises(InputError, match=r"^1 folder given, expected those of at least two studies$"):
        compare_studies([small])
    with pytest.raises(InputError, match="is given more than once"):
        compare_studies([small, small.parent / "." / "small"])
    with pytest.raises(ResultsError, match=r"run\.json is missing"):
        compare_studies([small, tmp_path])
    other = stored(tmp_path / "other", falling(1, 4), 4, job="niah")
    with pytest.raises(ResultsError, match="holds a run of hybridlens niah, expected studies of hybridlens reproduce"):
        compare_studies([small, other])
    half = stored(tmp_path / "half", falling(1, 4), 4, finish=False)
    with pytest.raises(ResultsError, match=r"is not finished .149 of 150 cells.; end it with its own command"):
        compare_studies([small, half])
    lost = stored(tmp_path / "lost", falling(1, 4), 4)
    (lost / "cells.parquet").unlink()
    lines = (lost / "cells.jsonl").read_bytes().splitlines(keepends=True)
    (lost / "cells.jsonl").write_bytes(b"".join(lines[:-2]))
    with pytest.raises(ResultsError, match="has lost 2 cells of 150"):
        compare_studies([small, lost])


def test_scores_that_were_changed_are_refused(studies: dict[str, Path], tmp_path: Path) -> None:
    """A benchmark's file is taken as it was signed, or not at all."""
    folder = stored(tmp_path / "scored", falling(1, 4), 4)
    manifest = Manifest(model="scored", arguments={}, seed=0, max_score=5, config_hash="c", weights_hash="w")
    with Folder.open(tmp_path / "beside", manifest) as beside:
        beside.put("benchmarks.json", {}, BenchmarkResult("scored", 4, (), {}))
    record, listed = read_record(folder), read_record(tmp_path / "beside")
    assert record is not None
    assert listed is not None
    write_record(folder, replace(record, artefacts=listed.artefacts))
    with pytest.raises(ResultsError, match=r"benchmarks\.json is missing"):
        compare_studies([studies["small"], folder])
    (folder / "benchmarks.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ResultsError, match="does not match its digest"):
        compare_studies([studies["small"], folder])


def test_lengths_read_twice_are_paired_by_where_their_needles_begin(tmp_path: Path) -> None:
    """Read twice, a context has its needle where it is read once, give or take what rounding moves."""
    once = grid(5.0, LENGTHS, DEPTHS, k=4)
    twice = [
        replace(cell, jrt=True, length=2 * cell.length - 14,
                needle_start=None if cell.needle_start is None else cell.needle_start + (cell.length == 280),
                needle_end=None if cell.needle_end is None else cell.needle_end + (cell.length == 280))
        for cell in grid(4.0, LENGTHS[2:], DEPTHS, k=4)
    ]  # fmt: skip
    study = read_study(stored(tmp_path / "s", [*once, *twice], 4))
    assert study.base.jrt_lengths == tuple((length, 2 * length - 14) for length in LENGTHS[2:])
    same = [replace(cell, length=length) for length in (600, 700) for cell in twice if cell.length == 2 * 280 - 14]
    assert read_study(stored(tmp_path / "t", [*once, *same], 4)).base.jrt_lengths == ()
    assert read_study(stored(tmp_path / "u", once, 4)).base.jrt_lengths == ()
