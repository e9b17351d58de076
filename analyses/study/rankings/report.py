"""`report.html` of a comparison of rankings: what it says in sentences, then curves, areas, agreement and the rest.

How it fails: pure; what was not measured is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from analyses.experiment.text import columns
from analyses.heads.ranking import HeadRanking
from analyses.study.rankings import sections
from analyses.study.rankings.results import RankingComparison, is_draw
from analyses.study.rankings.words import sentences
from hybridlens.viz.article import Article


def article_of(
    comparison: RankingComparison, rankings: Mapping[str, HeadRanking], record: Mapping[str, Any]
) -> Article:
    """The page's contents.

    Args:
        comparison: what to show.
        rankings: what was compared, by name; random draws among them are not drawn.
        record: the run's `run.json`.
    """
    given = {name: ranking for name, ranking in rankings.items() if not is_draw(name)}
    made = [sections.curves(comparison), sections.areas(comparison), sections.each(comparison)]
    if len(comparison.ranked) > 1:
        made.append(sections.agreement(comparison))
    made += [sections.ability(comparison), sections.orders(comparison, given)]
    said = sentences(comparison)
    return Article(
        subject="rankings of heads",
        over="Which heads keep retrieval? Rankings of attention heads side by side",
        origin=_origin(comparison, record),
        finding=tuple(line for line in said if line not in comparison.notes),
        notes=comparison.notes,
        sections=tuple(section for section in made if section is not None),
    )


def _origin(comparison: RankingComparison, record: Mapping[str, Any]) -> tuple[str, ...]:
    """How much was run, under which rules."""
    when = "while reading and answering" if comparison.phase == "both" else "while answering only"
    return (
        f"{len(comparison.names)} rankings, {comparison.scores.shape[1]} prompts",
        f"other heads silent {when}",
        f"seed {record.get('seed')}",
    )


def rankings_table(found: RankingComparison) -> str:
    """Each ranking's area under accuracy against heads kept, and the fewest heads that keep half of it."""
    rows = [["ranking", "area [95 %]", "fewest heads", "accuracy at a quarter, half of the heads"]]
    most = found.counts[-1]
    at = [min(range(len(found.counts)), key=lambda i, n=n: abs(found.counts[i] - n)) for n in (most / 4, most / 2)]
    for row, name in enumerate(found.names):
        area, needed = found.area[row], found.heads_needed[row]
        shares = [float(found.accuracy[row, i]) for i in at]
        texts = ["–" if math.isnan(share) else f"{100 * share:.0f} %" for share in shares]
        rows.append([name, f"{area.value:.2f} [{area.low:.2f}, {area.high:.2f}]", str(needed.heads), ", ".join(texts)])
    return f"{found.model}: rankings of {most} heads\n{columns(rows, left=1)}"
