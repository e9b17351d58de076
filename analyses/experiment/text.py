"""Results as plain text for a terminal: rows of cells in columns, shares with their intervals.

How it fails: rows of unequal length raise `ValueError`, a defect of the caller.
"""

from __future__ import annotations

from collections.abc import Sequence


def columns(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows of cells as aligned text; the first `left` columns to the left, the others to the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for place in range(len(rows[0])):
        table.add_column(justify="left" if place < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(width=100_000, markup=False, highlight=False, emoji=False, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def percent_interval(mean: float, low: float, high: float) -> str:
    """A share with its interval, in percent: "98.4 (96.0 to 100.0)"."""
    return f"{100 * mean:.1f} ({100 * low:.1f} to {100 * high:.1f})"
