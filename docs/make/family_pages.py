"""The table of the page "Families": what the tests found to work for each, from `hybridlens/supported.json`."""

from __future__ import annotations

SIGNS = {"works": "yes", "none": "–", "fails": "**no**"}


def table() -> str:
    """A row a family, as Markdown; what fails stands below in words."""
    from hybridlens.supported import COLUMNS, supported

    held = supported()
    rows = [["family", "class in transformers", *COLUMNS, "largest error"]]
    rows.append(["---"] * len(rows[0]))
    for row in held.rows:
        error = row.largest_error
        signs = [SIGNS[row.checks[column].word] for column in COLUMNS]
        rows.append([row.family, f"`{row.architecture}`", *signs, "–" if error is None else f"{error:.0e}"])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    legend = (
        "*yes*: as the untouched model, or a plain loop, has it, to rounding in float32. *Largest error*: of all "
        f"checks, relative to the largest value. Made by the tests, against transformers {held.transformers}."
    )
    failing = [f"* {line}" for line in held.failing()]
    return "\n\n".join(["\n".join(lines), legend, *(["\n".join(failing)] if failing else [])])
