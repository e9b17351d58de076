"""Each page has the smallest build of plotly.js that draws its figures, and none where it has no figure."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_circuit_report
import test_crossover_report
import test_patch_report
import test_rankings_report
import test_study_report
from markupsafe import Markup
from plotly.graph_objects import Figure, Heatmap
from plotly.offline import get_plotlyjs_version
from report_pages import Page, a_pattern, a_record, rendered, sweep

import hybridlens.viz
from analyses.kv_cache import report as crossover_report
from analyses.patching import report as patch_report
from hybridlens.errors import InputError
from hybridlens.viz import bundles
from hybridlens.viz.article import Article, render_article
from hybridlens.viz.blocks import Block, Chart, Patterns, Section, Words
from hybridlens.viz.charts import Curve, line_chart
from hybridlens.viz.entries import Value

BASIC, CARTESIAN = bundles.BUNDLES
ASSETS = Path(hybridlens.viz.__file__).parent / "assets"


@pytest.mark.parametrize("bundle", bundles.BUNDLES, ids=lambda bundle: bundle.file)
def test_the_table_says_what_is_in_the_file(bundle: bundles.Bundle) -> None:
    """The file is the one that was looked at, of the version named, and registers these types of trace and no other.

    Its major version is that of the installed Python package, whose figures it draws.
    """
    source = (ASSETS / bundle.file).read_bytes()
    assert hashlib.sha256(source).hexdigest() == bundle.sha256
    text = source.decode("utf-8")
    assert set(re.findall(r'moduleType:"trace",name:"(\w+)"', text)) == bundle.traces
    assert f"v{bundles.VERSION}\n" in text[:200]
    assert bundles.VERSION.split(".")[0] == get_plotlyjs_version().split(".")[0]
    assert "MIT License" in (ASSETS / "plotly-LICENSE").read_text(encoding="utf-8")
    assert not re.search(r"\bnew Function\b|\beval\(", text), "which the pages' policy forbids"


def test_builds_stand_smallest_first_and_fit_a_wheel() -> None:
    sizes = [(ASSETS / bundle.file).stat().st_size for bundle in bundles.BUNDLES]
    assert sizes == sorted(sizes)
    assert max(sizes) < 2_000_000


def drawn(*types: str | None) -> dict[str, Any]:
    """A figure as JSON with traces of these types; None is a trace that does not say its type."""
    return {"data": [{} if kind is None else {"type": kind} for kind in types]}


@pytest.mark.parametrize(
    ("figures", "bundle"),
    [
        ([], None),
        ([drawn()], BASIC),
        ([drawn(None)], BASIC),
        ([drawn("scatter", "bar"), drawn("pie")], BASIC),
        ([drawn("scatter"), drawn("heatmap")], CARTESIAN),
        ([drawn("violin")], CARTESIAN),
    ],
)
def test_the_smallest_build_that_draws_all(figures: list[dict[str, Any]], bundle: bundles.Bundle | None) -> None:
    assert bundles.bundle_for(figures) == bundle


def test_a_trace_that_no_build_draws_is_refused() -> None:
    with pytest.raises(InputError, match="of type 'scatter3d', which no page draws; expected one of bar, box, contour"):
        bundles.bundle_for([drawn("scatter"), drawn("scatter3d", "heatmap")])


def crossover() -> str:
    found, maps, *_ = test_crossover_report.made("jamba", "head")
    return render_article(crossover_report.article_of(found, maps, a_record()), a_record())


def patch() -> str:
    result = test_patch_report.a_result("v_by_position", {(1, 1, 50): 0.9})
    found = test_patch_report.patched({"v_by_position": result, "z": test_patch_report.a_result("z", {})})
    return render_article(patch_report.article_of(found, a_record()), a_record())


def article(*blocks: Block) -> str:
    """A page of one section."""
    return render_article(Article("s", "over", (), ("found",), (), (Section("a", "A", blocks),)), a_record())


CURVE = Curve("a", {0: Value(0.1, 0.0, 0.2, 9), 4: Value(0.9, 0.8, 1.0, 9)})
PAGES: dict[str, tuple[Callable[[], str], str | None]] = {
    "niah": (lambda: rendered(sweep(), a_record(), [a_pattern(["a", "b"])]), CARTESIAN.file),
    "study": (test_study_report.rendered, CARTESIAN.file),
    "benchmarks": (lambda: test_study_report.rendered(["benchmarks"], []), BASIC.file),
    "rankings": (lambda: test_rankings_report.rendered(test_rankings_report.a_comparison()), CARTESIAN.file),
    "circuits": (lambda: test_circuit_report.rendered(test_circuit_report.standard()), CARTESIAN.file),
    "crossover": (crossover, CARTESIAN.file),
    "patch": (patch, CARTESIAN.file),
    "one curve": (lambda: article(Chart(line_chart([CURVE], 4, "accuracy"), "words")), BASIC.file),
    "no figure": (lambda: article(Words("text")), None),
}


@pytest.mark.parametrize("name", PAGES)
def test_every_report_has_its_build(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every figure of every report goes through the choice; of all builds one stands in the page, or none."""
    monkeypatch.setattr("hybridlens.viz.bundles.plotly_bundle", lambda bundle: Markup(f"// the build {bundle.file}"))
    monkeypatch.setattr("hybridlens.viz.templating.circuitsvis_bundle", lambda: Markup("// circuitsvis"))
    make, file = PAGES[name]
    scripts = [script.strip() for script in Page(make()).scripts]
    assert [s for s in scripts if s.startswith("// the build ")] == ([f"// the build {file}"] if file else [])


def test_a_page_without_figures_is_small() -> None:
    """No library at all: less than a tenth of the smallest of them, where every page had 4.8 MB."""
    assert len(article(Words("text"))) < 100_000
    assert len(article(Chart(line_chart([CURVE], 4, "accuracy"), "words"))) < 650_000


def test_pages_with_both_libraries_stay_under_two_megabytes() -> None:
    """Unpacked they are 2.8 MB; half a megabyte is left to a page's own numbers."""
    largest = article(Chart(Figure(Heatmap(z=[[0.0, 1.0]])), "words"), Patterns((a_pattern(["a", "b"]),)))
    assert len(largest) < 1_500_000
    assert [len(script) > 1_000_000 for script in Page(largest).scripts] == [False, True, True, False]
