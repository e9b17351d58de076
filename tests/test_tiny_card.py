"""Model cards: their numbers come out of the measured files, and out of nowhere else."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bounds import close

from hybridlens import tiny
from hybridlens.errors import ResultsError
from hybridlens.tiny.card import PLAIN, by_heads, by_length_and_depth, card, read_rows

NAME = "tiny-recurrentgemma"


def results(folder: Path, model: str = NAME, highest: float = 5.0) -> Path:
    """A results folder of two lengths, two depths and three k, whose scores are all different."""
    cells: list[dict[str, object]] = []
    for phase in ("generation", "prefill"):
        for k in (0, 4, 8):
            for length in (64, 256):
                for depth in (0.0, 100.0, None):
                    score = (k / 8) * (4.0 + depth / 100 if depth is not None else 0.3) - length / 1000
                    score += 0.5 if phase == "generation" else 0.4
                    cells.append(
                        {
                            "model": model, "phase": phase, "k": k, "length": length, "depth": depth,
                            "control": depth is None, "score": max(0.0, score),
                        }
                    )  # fmt: skip
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(cells), folder / "cells.parquet")
    (folder / "run.json").write_text(json.dumps({"manifest": {"max_score": highest}}))
    return folder


def test_accuracy_by_length_and_depth_is_the_mean_score_over_the_highest(tmp_path: Path) -> None:
    """Every number worked out by hand; only cells with all heads count, and each prompt once."""
    lines = by_length_and_depth(read_rows(results(tmp_path / "r"), NAME), 8).splitlines()
    assert lines[0] == "| tokens | 0 % | 100 % | all depths | chance | prompts |"
    assert lines[2] == "| 64 | 88.7 | 108.7 | 98.7 | 14.7 | 2 |"
    assert lines[3] == "| 256 | 84.9 | 104.9 | 94.9 | 10.9 | 2 |"
    assert len(lines) == 4


def test_of_a_study_the_plain_cells_are_taken(tmp_path: Path) -> None:
    """Other needles, readings and semantics stand in the same table, and are no part of the card."""
    folder = results(tmp_path / "r")
    expected = read_rows(folder, NAME)
    cells = pq.read_table(folder / "cells.parquet").to_pylist()
    others = [{}, {"needle": "oslo"}, {"jrt": True}, {"reading": "omit"}, {"semantics": "published"}]
    study = [{**cell, **PLAIN, **other} for other in others for cell in cells]
    pq.write_table(pa.Table.from_pylist(study), folder / "cells.parquet")
    assert read_rows(folder, NAME) == expected


def test_the_curve_keeps_phases_and_controls_apart(tmp_path: Path) -> None:
    """Largest k first; generation scores a tenth of a point more than prefill by construction."""
    lines = by_heads(read_rows(results(tmp_path / "r"), NAME)).splitlines()
    assert lines[0] == "| heads kept | generation | its chance | prefill too | its chance |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 8", "| 4", "| 0"]
    for line in lines[2:]:
        generation, chance, prefill, chance_too = map(float, line.strip("| ").split(" | ")[1:])
        assert generation - prefill == pytest.approx(2.0, abs=0.11)
        assert chance - chance_too == pytest.approx(2.0, abs=0.11)  # each written with one decimal


def test_scores_are_read_against_the_rubrics_own_maximum(tmp_path: Path) -> None:
    """Half the maximum doubles every accuracy."""
    five = read_rows(results(tmp_path / "five"), NAME)
    ten = read_rows(results(tmp_path / "ten", highest=10.0), NAME)
    close([row.accuracy for row in five], [2 * row.accuracy for row in ten])
    assert max(row.accuracy for row in five) > 0.5


def test_results_of_another_model_and_empty_folders_are_refused(tmp_path: Path) -> None:
    """Both in words that hold what was given."""
    with pytest.raises(ResultsError, match="cells of 'tiny-jamba', expected 'tiny-recurrentgemma'"):
        read_rows(results(tmp_path / "other", model="tiny-jamba"), NAME)
    with pytest.raises(ResultsError, match=r"cells\.parquet does not exist; give a folder"):
        read_rows(tmp_path, NAME)


@pytest.mark.parametrize("name", tiny.names())
def test_the_card_tells_the_checkpoints_own_sizes_and_settings(name: str, tmp_path: Path) -> None:
    """Parameters, seed, steps and minutes are those of the checkpoint's files."""
    rows = read_rows(results(tmp_path / "r", model=name), name)
    text, made = card(name, rows, rows), tiny.training(name)
    info = tiny.info(name)
    assert f"{info.parameters:,} parameters" in text
    assert f"train {name} --seed {made['seed']} --steps {made['steps']}" in text
    assert f"It took\n{made['seconds'] / 60:.0f} minutes" in text
    assert f"| 64 | {'88.7' if info.n_heads else '8.7'} |" in text
