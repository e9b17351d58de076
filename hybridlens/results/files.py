"""The two files that hold a run's cells: the journal, appended to as cells finish, and the table for readers.

`cells.jsonl` has one checksummed line a cell; `cells.parquet` has a row a cell with the same checksum. How it
fails: reading never raises on damage, it returns a `Damage` in the place of each cell that cannot be trusted.
"""

import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from hybridlens.results.cells import (
    BOOLEANS,
    FIELDS,
    FLOATS,
    INTEGERS,
    Cell,
    CellKey,
    Damage,
    cell_from_row,
    checksum,
    decode_line,
    encode_line,
)
from hybridlens.results.provenance import usable, write_atomic

JOURNAL = "cells.jsonl"
TABLE = "cells.parquet"


def append_journal(handle: int, cells: Sequence[Cell], fingerprint: str) -> None:
    """Append a batch of cells to the journal open at `handle`; on return they are on the disk."""
    view = memoryview(b"".join(encode_line(cell, fingerprint) for cell in cells))
    while view:
        view = view[os.write(handle, view) :]
    os.fsync(handle)


def write_journal(folder: Path, cells: Sequence[Cell], fingerprint: str) -> Path:
    """Write the whole journal anew, atomically; returns its path."""
    return write_atomic(folder / JOURNAL, b"".join(encode_line(cell, fingerprint) for cell in cells))


def read_good(folder: Path, fingerprint: str, max_score: float | int) -> tuple[dict[CellKey, Cell], list[Damage]]:
    """Every cell with a good copy in the journal or the table, and every damaged copy."""
    good: dict[CellKey, Cell] = {}
    damage: list[Damage] = []
    table = _read_table(folder / TABLE, fingerprint, max_score)
    for found in [*table, *_read_journal(folder / JOURNAL, fingerprint, max_score)]:
        if isinstance(found, Damage):
            damage.append(found)
        else:
            good[found.key] = found
    return good, damage


def _read_journal(path: Path, fingerprint: str, max_score: float | int) -> list[Cell | Damage]:
    """The cells and damaged lines of a journal, in order; none when it does not exist."""
    if not path.exists():
        return []
    with usable(path):
        lines = path.read_bytes().split(b"\n")
    found = [
        decode_line(line, f"{path.name} line {i}", fingerprint, max_score) for i, line in enumerate(lines, 1) if line
    ]
    if lines[-1] and isinstance(found[-1], Cell):
        # Whole but for its newline, which the next append would need.
        found[-1] = Damage(f"{path.name} line {len(lines)}", "has lost its end", found[-1].key)
    return found


def _read_table(path: Path, fingerprint: str, max_score: float | int) -> list[Cell | Damage]:
    """The cells and damaged rows of a table, in order; one damage for a file that is no table at all."""
    if not path.exists():
        return []
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            rows = file.read().to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        return [Damage(path.name, f"cannot be read ({str(error).splitlines()[0][:120]})", None)]
    return [
        cell_from_row(row, row.get("checksum"), f"{path.name} row {i}", fingerprint, max_score)
        for i, row in enumerate(rows, 1)
    ]


def damage_lines(damage: Sequence[Damage], good: Mapping[CellKey, Cell]) -> list[str]:
    """One line for every damaged copy: where, which cell, what is wrong, and what becomes of it."""
    lines: list[str] = []
    for where, problem, key in damage:
        cell = f" ({key.words()})" if key is not None else ""
        if key is not None and key in good:
            fate = "a good copy is kept"
        elif where == TABLE and good:
            fate = f"its cells are read from {JOURNAL}"
        elif where == TABLE:
            fate = "every cell runs again"
        else:
            fate = "runs again"
        lines.append(f"{where}{cell} {problem}; {fate}")
    return lines


def write_table(folder: Path, cells: Sequence[Cell], fingerprint: str) -> Path:
    """Write `cells.parquet` atomically: the columns of `Cell`, and each row's checksum."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {
        **dict.fromkeys(INTEGERS, pa.int64()),
        **dict.fromkeys(FLOATS, pa.float64()),
        **dict.fromkeys(BOOLEANS, pa.bool_()),
    }
    schema = pa.schema([(name, types.get(name, pa.string())) for name in (*FIELDS, "checksum")])
    columns: dict[str, list[Any]] = {name: [getattr(cell, name) for cell in cells] for name in FIELDS}
    columns["checksum"] = [checksum(cell, fingerprint) for cell in cells]
    sink = BytesIO()
    pq.write_table(pa.table(columns, schema=schema), sink, compression="zstd", write_page_checksum=True)
    return write_atomic(folder / TABLE, sink.getvalue())
