"""`report.html` of a comparison of rankings: what it says in sentences, then curves, areas, agreement and the rest.

How it fails: an old report stays where the new one cannot be written whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analyses.ranking import HeadRanking
from analyses.rankings import sections
from analyses.rankings.results import RankingComparison, is_draw
from analyses.rankings.words import sentences
from hybridlens.viz.article import Article, write_article


def write_rankings_report(
    folder: Path, comparison: RankingComparison, rankings: Mapping[str, HeadRanking], record: Mapping[str, Any]
) -> Path:
    """Write `report.html` into a folder, atomically; returns its path.

    Args:
        folder: where the comparison's results are.
        comparison: what to show.
        rankings: what was compared, by name; random draws among them are not drawn.
        record: its `run.json`.
    """
    return write_article(folder, article_of(comparison, rankings, record), record)


def article_of(
    comparison: RankingComparison, rankings: Mapping[str, HeadRanking], record: Mapping[str, Any]
) -> Article:
    """The page's contents; arguments as in `write_rankings_report`."""
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
