"""What studies were asked for that makes their rows incomparable, claim by claim.

Semantics, where answering begins, the needle, the haystack, the template and the number of new tokens change what an
accuracy is; the options of benchmarks what a score is. Lengths, depths, seed and dtype do not: they make other prompts
and other rounding, which is said once of all rows.

How it fails: pure; what a record does not state counts as "not given".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from analyses.study.comparing.reading import StoredStudy
from hybridlens.display import listed

Settings: TypeAlias = dict[str, Callable[[StoredStudy], Any]]


def _argument(name: str) -> Callable[[StoredStudy], Any]:
    return lambda study: study.record["arguments"].get(name, "not given")


def _needle(study: StoredStudy) -> Any:
    growing = study.record.get("growing") or {}
    return growing.get(f"the needle {study.base.needle} ({study.base.semantics})", "not given")


def _benchmarks(study: StoredStudy) -> Any:
    growing = study.record.get("growing") or {}
    return {name: value for name, value in growing.items() if "benchmarks'" in name or "lm-eval" in name}


PROMPTED: Settings = {
    "semantics": lambda study: study.base.semantics,
    "boundary": lambda study: study.base.boundary,
    "needle": _needle,
    "haystack": _argument("haystack"),
    "template": _argument("template"),
    "new tokens": _argument("max_new_tokens"),
}
"""Settings that change what an accuracy is."""

SCORED: Settings = {"options of benchmarks": _benchmarks}
"""Settings that change what a benchmark score is."""

ELSEWISE: Settings = {
    "lengths": lambda study: _ends([cell.length for cell in study.cells if not cell.jrt]),
    "depths": lambda study: _ends([float(cell.depth) for cell in study.cells if cell.depth is not None]),
    "seed": lambda study: study.record["seed"],
    "dtype": _argument("dtype"),
}
"""Settings that make other prompts, or other rounding."""


def _ends(values: Sequence[float | int]) -> str:
    found = sorted(set(values))
    return f"{found[0]:g} to {found[-1]:g} ({len(found)})" if found else "none"


def unlike(studies: Sequence[StoredStudy], claim: str) -> tuple[str, ...]:
    """Settings of other values that make a claim's row incomparable, with the values where they are short.

    Args:
        studies: those side by side.
        claim: its id, as in `analyses.study.verdict.CLAIMS`.
    """
    scored = claim.startswith("h2-") and claim != "h2-few-prefill"
    asked = {**({} if scored and claim != "h2-contrast" else PROMPTED), **(SCORED if scored else {})}
    some = [study for study in studies if study.rows] if scored else studies
    return differing(some, asked)


def differing(studies: Sequence[StoredStudy], settings: Settings) -> tuple[str, ...]:
    """The settings that have not one value in all studies, in words: "semantics (clean, published)"."""
    found: list[str] = []
    for name, value in settings.items():
        values = [value(study) for study in studies]
        if any(one != values[0] for one in values[1:]):
            short = all(isinstance(one, (str, int, float)) for one in values)
            found.append(f"{name} ({', '.join(map(str, values))})" if short else name)
    return tuple(found)


def notes(studies: Sequence[StoredStudy]) -> tuple[str, ...]:
    """What a reader has to know of all rows, one sentence each."""
    others = differing(studies, ELSEWISE)
    return (f"The studies differ in {listed(others, 8)}: not the same prompts throughout.",) if others else ()
