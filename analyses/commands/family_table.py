"""What works for each family, as text for a terminal. Loads no model.

How it fails: an installation without the table raises `ResultsError`.
"""

from __future__ import annotations

from analyses.experiment.text import columns
from hybridlens.supported import COLUMNS, Supported, supported

SIGNS = {"works": "yes", "none": "–", "fails": "NO"}

LEGEND = """yes: as the untouched model, or a plain loop, has it, to rounding in float32; –: the family lacks it.
largest error: of all checks, relative to the largest value. Made by the tests, against transformers {version}."""


def family_table(table: Supported | None = None) -> str:
    """Every family and what works for it, with what fails in words.

    Args:
        table: what to show; the installed one by default.
    """
    table = supported() if table is None else table
    rows = [["family", *COLUMNS, "largest error"]]
    for row in table.rows:
        error = row.largest_error
        shown = [SIGNS[row.checks[column].word] for column in COLUMNS]
        rows.append([row.family, *shown, "–" if error is None else f"{error:.0e}"])
    return "\n".join([columns(rows), LEGEND.format(version=table.transformers), *table.failing()])
