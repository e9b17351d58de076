"""Claims under both semantics: what turns on semantics is said first, what turns on which prompts were run is not."""

from dataclasses import replace

import pytest
from verdict_studies import BASE, RG, curve, hundred, table

from analyses.study.finding import finding
from analyses.study.report import Judged, page_of
from analyses.study.under_both import UnderBoth, splits, under_both
from analyses.study.verdict import CLAIMS, verdicts
from analyses.study.verdict_section import verdict_table
from hybridlens.results import Cell
from hybridlens.viz.article import render_article
from tests.report_pages import Page, a_record
from tests.test_study_report import a_study

MEAN_READ = [("binary", answering) for answering in ("keep", "omit", "only", "binary")]
STEPS = {k: 0.0 if k < 2 else 5.0 for k in range(9)}
SOME = (200, 240, 290)
FEW = (None, 0, 22, 44, 67, 89)


def part(cells: list[Cell]) -> list[Cell]:
    """The cells of three lengths, under published semantics."""
    return [replace(cell, semantics="published") for cell in cells if cell.length in SOME]


@pytest.fixture(scope="module")
def parted() -> list[Cell]:
    """As on tiny-recurrentgemma: a mean while reading costs nothing in clean semantics and all in published."""
    base = [*curve(STEPS), *table({("keep", "keep"): 5.0})]
    here = [c for c in base if (c.reading, c.answering) not in (("binary", "keep"), ("binary", "only"))]
    kept = [c for answering in ("keep", "only") for c in hundred(5.0, reading="binary", answering=answering)]
    return [cell for cell in (*here, *kept, *part(base)) if cell.depth in FEW]


@pytest.fixture(scope="module")
def found(parted: list[Cell]) -> list[UnderBoth]:
    return under_both(parted, verdicts(parted, (), RG), RG)


def test_a_claim_that_turns_stands_first(found: list[UnderBoth]) -> None:
    """All claims are there once, the one made to turn first; the others, whose cells are alike, do not differ."""
    assert sorted(one.own.id for one in found) == sorted(claim.id for claim in CLAIMS)
    assert [one.own.id for one in found if one.differs] == ["h3-weights"]
    assert found[0].turns
    assert (found[0].clean.outcome, found[0].published.outcome) == ("fails", "holds")
    assert "n = 15" in found[0].published.measured
    assert "n = 50" in found[0].clean.measured


def test_conditions_are_split_one_by_one(parted: list[Cell]) -> None:
    """Exactly the two conditions that were changed, at the fifteen places that both have."""
    both = splits(parted, BASE)
    assert {one.words.split(" while")[0] for one in both} == {"Binary"}
    assert [(one.clean.mean, one.published.mean, one.change.mean, one.clean.n) for one in both] == [(1, 0, -1, 15)] * 2
    assert {one.lost for one in both} == {"published"}


def test_what_the_other_prompts_do_is_no_difference() -> None:
    """Three needles of a hundred are told with no head: a claim that holds fails on these three, whatever semantics."""
    cells = [
        replace(cell, score=5.0) if (cell.k, cell.depth) == (0, 0) and cell.length in SOME else cell
        for cell in curve({0: 0.0, 8: 5.0})
    ]
    cells += [cell for cell in part(cells) if cell.depth == 0]
    one = next(one for one in under_both(cells, verdicts(cells, (), RG), RG) if one.own.id == "h1-ablated")
    assert (one.own.outcome, one.shared, one.other.outcome) == ("holds", "fails", "fails")
    assert not one.differs


def test_one_semantics_alone_gives_nothing(parted: list[Cell]) -> None:
    clean = [cell for cell in parted if cell.semantics == "clean"]
    assert under_both(clean, verdicts(clean, (), RG), RG) == []


def test_it_is_said_first(parted: list[Cell], found: list[UnderBoth]) -> None:
    """In the report's first sentences, in the verdicts of report and terminal, and in a notebook."""
    judged = verdicts(parted, (), RG)
    said = finding(parted, (), judged, BASE, "m", found)
    assert said[1].startswith("The method as described (clean semantics) and as the authors' code has it (published")
    assert "part. Binary while reading" in said[1]
    assert "−100.0 points" in said[1]
    assert "“The exact weights matter" in said[2]
    assert "fails under clean semantics and holds under published semantics" in said[2]
    lines = verdict_table(judged, "m", found).splitlines()
    assert lines[1].split() == ["clean", "published"]
    assert lines[2].split()[:3] == ["H3", "fails", "holds"]
    study = Judged(a_study("fig2", "table1", "semantics"), parted, (), judged, (), found)
    assert study.view()[0].to_pandas().iloc[0][["id", "outcome", "published"]].tolist() == [
        "h3-weights",
        "fails",
        "holds",
    ]
    source = render_article(page_of(study, a_record(), ("semantics",)), a_record())
    shown = " ".join(Page(source).text)
    assert shown.index("where the two part") < shown.index("Each claim is judged")
    assert "published semantics: holds" in shown
