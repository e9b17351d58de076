"""The verdicts as a section of a study's report and as a table for a terminal, under both semantics where both ran.

What differs between clean and published semantics stands first.

How it fails: pure; a study of one semantics has its verdicts alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from analyses.experiment.text import columns
from analyses.heads.entropy import SEMANTICS
from analyses.study.groups import Estimate
from analyses.study.under_both import Split, UnderBoth, other_than
from analyses.study.verdict import HYPOTHESES, UNTESTED, Verdict
from hybridlens.display import many
from hybridlens.viz.blocks import Block, Hypothesis, Section, Table, VerdictRow, Verdicts, Words
from hybridlens.viz.entries import percent
from hybridlens.viz.words import DASH


def verdict_section(verdicts: Sequence[Verdict], both: Sequence[UnderBoth], split: Sequence[Split]) -> Section:
    """Every claim under its hypothesis, below that where the two semantics part.

    Args:
        verdicts: under the study's own semantics.
        both: the claims under both; empty where one was run.
        split: conditions in which they part.
    """
    away = {one.own.id: one for one in both}
    rows: dict[str, list[VerdictRow]] = {name: [] for name in dict.fromkeys(found.hypothesis for found in verdicts)}
    for found in parted_first(verdicts, away):
        measured = tuple(found.measured.split("; "))
        also = _also(away[found.id].other, other_than(away[found.id].semantics)) if found.id in away else ""
        row = VerdictRow(found.claim, found.paper, measured, found.outcome, found.rule, found.reason, also)
        rows[found.hypothesis].append(row)
    words = (
        "Each claim is judged by the rule below it, from 95\u00a0% intervals: it holds, or fails, only where the whole "
        "interval lies on one side of the rule's threshold."
    )
    hypotheses = tuple(Hypothesis(name, HYPOTHESES[name], tuple(claims)) for name, claims in rows.items())
    return Section("verdicts", "Verdicts", (*_parting(split, both), Words(words), Verdicts(hypotheses)))


def _also(found: Verdict, semantics: str) -> str:
    """What becomes of a claim under the other semantics; empty where nothing of it was run there."""
    return f"{semantics} semantics: {found.said}" if found.said else ""


def _parting(split: Sequence[Split], both: Sequence[UnderBoth]) -> list[Block]:
    """Where the two semantics part: conditions and claims, with what was measured under either."""
    if not both:
        return []
    parted = [one for one in both if one.differs]
    if not parted and not split:
        return [Words("Clean and published semantics part on no claim, and nowhere on whether retrieval is lost.")]
    words = (
        "Clean and published semantics part here: what the method does as the paper describes it is not what the "
        "authors' code did. The study's own semantics gives the same at the places that the other was run at; the "
        "other has fewer prompts, and may leave a claim open that the study decides."
    )
    conditions = tuple(
        (one.words, *(_estimated(getattr(one, name), one.lost == name) for name in SEMANTICS)) for one in split
    )
    claims = tuple((one.own.claim, *((side.said or UNTESTED, _told(side)) for side in _sides(one))) for one in parted)
    header = ("where the two part", *SEMANTICS)
    return [Words(words, note=True), Table(header, (*conditions, *claims))]


def _estimated(found: Estimate, lost: bool) -> tuple[str, str]:
    """An accuracy, whether retrieval is lost, and its interval."""
    interval = f"{100 * found.low:.1f} to {100 * found.high:.1f}, n\u00a0=\u00a0{found.n}"
    return f"retrieval {'lost' if lost else 'kept'}: {percent(found.mean)}", interval


def _told(found: Verdict) -> str:
    """What was measured, and what speaks against the claim or leaves it open."""
    return f"{found.measured}. {found.reason}" if found.reason else found.measured


def verdict_table(judged: Sequence[Verdict], model: str, both: Sequence[UnderBoth] = ()) -> str:
    """What became of each of the paper's claims that was tested; the rest, and the numbers, are in the report.

    Where both semantics were run there is a column for either, and the claims on which they part stand first.
    """
    away = {one.own.id: one for one in both}
    tested = [
        found
        for found in parted_first(judged, away)
        if found.outcome != UNTESTED or (found.id in away and away[found.id].other.outcome != UNTESTED)
    ]
    rows = [["", *SEMANTICS, ""]] if both and tested else []
    for found in tested:
        outcomes = [found.outcome]
        if both:
            outcomes = [side.said or DASH for side in _sides(away[found.id])]
        reason = found.reason if found.outcome != UNTESTED else ""
        rows.append([found.hypothesis, *outcomes, f"{found.claim} ({reason})" if reason else found.claim])
    left = len(judged) - len(tested)
    more = f"{many(left, 'claim is', 'claims are')} not tested here; the report says why"
    parted = sum(one.differs for one in both)
    first = "claim" if parted == 1 else many(parted, "claim")
    said = [f"the two semantics part on the first {first}"] if parted and rows else []
    table = [columns(rows, left=4 if both else 3)] if rows else []
    return "\n".join([f"{model}: the paper's claims", *table, *said, *([more] if left else [])])


def _sides(one: UnderBoth) -> tuple[Verdict, Verdict]:
    """The verdicts in the order of `SEMANTICS`."""
    return one.clean, one.published


def parted_first(judged: Sequence[Verdict], away: Mapping[str, UnderBoth]) -> list[Verdict]:
    """Verdicts, those first on which the two semantics part."""
    return sorted(judged, key=lambda found: not (found.id in away and away[found.id].differs))
