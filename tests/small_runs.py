"""A small run, each of whose cells follows from its key, and what tests of results on disk do with it."""

from pathlib import Path

import pandas as pd

from hybridlens.results import Cell, CellKey, Manifest, Run

MODEL = "tiny"
TEXTS = ("eat a sandwich", 'a "quoted"\nline', "</script> &amp; \u2028 é 日本", "")


def cell(phase: str, k: int, length: int, depth: int | None) -> Cell:
    """The one right cell of a key: every value follows from the key, so that a wrong one shows."""
    control = depth is None
    seed = k * 7 + length + (depth or 0)
    return Cell(
        model=MODEL,
        phase=phase,
        k=k,
        length=length,
        depth=depth,
        control=control,
        score=0.0 if control else float(seed % 11) / 2,
        text=TEXTS[seed % len(TEXTS)],
        needle_start=None if control else seed,
        needle_end=None if control else seed + 5,
        seconds=0.125,
        prompt_hash=f"{length}-{depth}",
    )


def grid() -> list[Cell]:
    """24 cells and 8 controls, in running order."""
    return [
        cell(phase, k, length, depth)
        for phase in ("generation", "prefill")
        for k in (0, 4)
        for length in (64, 128)
        for depth in (0, 50, 100, None)
    ]


EXPECTED: dict[CellKey, str] = {c.key: c.prompt_hash for c in grid()}
MANIFEST = Manifest(
    model=MODEL,
    arguments={"lengths": [64, 128], "depths": [0, 50, 100], "needle": "x" * 300},
    seed=0,
    max_score=5.0,
    config_hash="c",
    weights_hash="w",
    command="hybridlens niah --model tiny",
    settings={"batch_size": 8},
)


def run_all(folder: Path, stop_after: int | None = None) -> Run:
    """Run what is still to do, in batches of three; raise KeyboardInterrupt after `stop_after` batches."""
    by_key = {c.key: c for c in grid()}
    with Run.open(folder, MANIFEST, EXPECTED) as run:
        todo = run.todo
        for n, start in enumerate(range(0, len(todo), 3)):
            if n == stop_after:
                raise KeyboardInterrupt
            run.add([by_key[key] for key in todo[start : start + 3]])
        run.finish()
    return run


def damage_both(folder: Path, rows: list[int]) -> None:
    """Spoil the score of some cells in the journal and in the table, as an editor or pandas would."""
    lines = (folder / "cells.jsonl").read_bytes().split(b"\n")
    for row in rows:
        lines[row] = lines[row].replace(b'"score":', b'"score":1')
    (folder / "cells.jsonl").write_bytes(b"\n".join(lines))
    frame = pd.read_parquet(folder / "cells.parquet")
    frame.loc[rows, "score"] = 77.0
    frame.to_parquet(folder / "cells.parquet")


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
