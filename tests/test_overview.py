"""The start page of a folder of results: what it finds, what it leaves out and says so, and what it shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from command_line import refused
from planted_zoo import a_member, a_zoo
from report_pages import HOSTILE, Page

from analyses.cli import main
from analyses.commands.experiments import EXPERIMENTS
from analyses.study.overview import Overview, overview
from analyses.study.overview.page import PAGE, overview_page
from analyses.study.overview.questions import QUESTIONS
from analyses.study.zoo.of_study import RETRIEVAL
from hybridlens.results import Manifest
from hybridlens.results.locks import locked
from hybridlens.results.record import started, write_record
from hybridlens.viz.article import Article, render_article, write_article


def a_run(folder: Path, job: str = "reproduce", model: str = "m", report: bool = True, **changes: Any) -> Path:
    """A run as its command leaves it, finished where nothing else is said."""
    folder.mkdir(parents=True)
    record = started(None, Manifest(model=model, arguments={}, seed=0, max_score=1, config_hash="c", weights_hash="w",
                                    job=job, command=f"hybridlens {job} --model {model}"), {})  # fmt: skip
    values = {"status": "complete", "finished": "2026-01-02T03:04:05+00:00", "finding": [f"{model} retrieves."]}
    for name, value in {**values, **changes}.items():
        object.__setattr__(record, name, value)
    write_record(folder, record)
    if report:
        (folder / "report.html").write_text("a report", encoding="utf-8")
    return folder


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Runs of every state, folders that hold none, and a page that is no run's."""
    top = tmp_path / "results"
    a_run(top / "a-study", finding=["With all heads, m retrieves 100 %.", "Without, 0 %."], cells=9, cells_done=9)
    a_run(top / "below" / "memory", "crossover", finding=["Keys and values hold the needle."])
    a_run(
        top / "half", "rankings", status="running", finished=None, finding=[], cells=1200, cells_done=300, report=False
    )
    a_run(top / "pageless", "patch", report=False)
    a_run(top / "future", "divine", model="n")
    (a_run(top / "damaged") / "run.json").write_text('{"format": 4}', encoding="utf-8")
    (top / "empty").mkdir()
    (top / ".hidden").mkdir()
    (top / "a.log").write_text("said", encoding="utf-8")
    (top / "side").mkdir()
    write_article(
        top / "side", Article("two", "over", (), ("They part on & “nothing”.",), (), ()), {"model": "2 <studies>"}
    )
    (top / "z-again").symlink_to(top / "a-study")
    return top


def held(folder: Path) -> dict[str, bytes]:
    """What files hold."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_run_is_found_once_and_what_is_none_is_named(results: Path) -> None:
    before = held(results)
    found = overview(results)
    assert [run.place for run in found.runs if not run.state] == ["a-study", "below/memory", "future"]
    assert {run.place: run.state for run in found.unfinished} == {
        "half": "stopped with 300 of 1,200 cells done; the same command goes on: hybridlens rankings --model m",
        "pageless": "its report.html is missing; the same command writes it again: hybridlens patch --model m",
    }
    assert {one.place: one.why.split(",")[0] for one in found.unread} == {
        "damaged": "its run.json is damaged",
        "empty": "it holds no run",
    }
    assert [(one.place, one.title, one.says) for one in found.pages] == [
        ("side", "2 <studies>: two", "They part on & “nothing”.")
    ]
    assert found.models == ("m", "n")
    assert found.summary() == "5 runs of m, n; 2 not finished; 2 folders not read"
    assert held(results) == before, "nothing is written, in damaged and unfinished folders neither"


def test_a_run_that_is_being_written_is_said_to_run(results: Path) -> None:
    with locked(results / "half"):
        (half,) = [run for run in overview(results).runs if run.place == "half"]
    assert half.state == "running now with 300 of 1,200 cells done"


def test_the_page_has_each_finding_and_a_link_that_leads_to_it(results: Path) -> None:
    assert main(["report", str(results)]) == 0
    page = Page((results / PAGE).read_text(encoding="utf-8"))
    text = " ".join(" ".join(page.text).split())
    links = [str(a["href"]) for tag, a in page.tags if tag == "a" and not str(a["href"]).startswith("#")]
    assert len(links) == 4
    assert all((results / unquote(link)).is_file() for link in links)
    for words in (
        "With all heads, m retrieves 100 %.", "Without, 0 %.", "1 more sentence", "Keys and values hold the needle.",
        "They part on & “nothing”.", "hybridlens reproduce --model m", "finished 2026-01-02 03:04 UTC", "9 cells",
        "2 runs are not finished, and 2 folders show nothing", "m: keys and values hold the needle.",
    ):  # fmt: skip
        assert words in text, words
    sections = [str(a["id"]) for tag, a in page.tags if tag == "section"]
    assert sections == ["retrieval", "memory", "heads", "path", "others", "pages", "open", "provenance"]
    assert not any(script.startswith("/**") for script in page.scripts), "a library that nothing is drawn with"
    assert main(["report", str(results)]) == 0, "its own page is none of its results"
    assert len(overview(results).pages) == 1


@pytest.mark.parametrize("finished", [True, False])
def test_runs_of_a_zoo_stand_under_it(finished: bool, tmp_path: Path) -> None:
    """In a zoo that is not finished too; a part without a run is named beside it."""
    for model in ("x", "y"):
        a_run(tmp_path / "zoo" / model / "study", model=model)
        a_run(tmp_path / "zoo" / model / "patch", "patch", model=model)
    (tmp_path / "zoo" / "y" / "states").mkdir()
    if finished:
        a_zoo(*(a_member(name, {RETRIEVAL: (0.9, 0.8, 1.0)}) for name in ("x", "y"))).save(
            tmp_path / "zoo" / "zoo.json"
        )
    found = overview(tmp_path)
    (one,) = found.zoos
    assert found.runs == ()
    assert {model: [run.place for run in runs] for model, runs in one.models.items()} == {
        name: [f"zoo/{name}/patch", f"zoo/{name}/study"] for name in ("x", "y")
    }
    assert [unread.place for unread in found.unread] == ["zoo/y/states"]
    assert bool(one.answers) is finished
    assert ("not finished" in one.note) is not finished
    page = Page(render_article(overview_page(found), {"model": "m"}))
    links = [str(a["href"]) for tag, a in page.tags if tag == "a" and not str(a["href"]).startswith("#")]
    assert links == [f"zoo/{name}/{part}/report.html" for name in ("x", "y") for part in ("patch", "study")]


def test_a_zoo_whose_table_is_damaged_still_shows_its_runs(tmp_path: Path) -> None:
    a_run(tmp_path / "zoo" / "x" / "study", model="x")
    (tmp_path / "zoo" / "zoo.json").write_text(json.dumps({"members": []}), encoding="utf-8")
    (one,) = overview(tmp_path).zoos
    assert [run.model for run in one.runs] == ["x"]
    assert one.answers == ()
    assert "hybridlens zoo writes it again" in one.note


def test_any_text_is_shown_literally(tmp_path: Path) -> None:
    """Names, sentences and folders that would be code have the elements of harmless ones, and are given back."""

    def page(word: str) -> Page:
        runs = a_run(tmp_path / f"{len(word)}" / "r", model=word, finding=[word, word], command=word).parent
        return Page(render_article(overview_page(overview(runs)), {"model": word}))

    text = "".join(HOSTILE[:-1]).replace("\u2028\u2029", "")
    plain, hostile = page("harmless"), page(text)
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert "".join(hostile.text).count(text) >= "".join(plain.text).count("harmless") - 1
    odd = a_run(tmp_path / "odd" / "javascript:alert(1) ?#%41", "patch").parent
    (link,) = [str(a["href"]) for tag, a in Page(render_article(overview_page(overview(odd)), {"model": "m"})).tags
               if tag == "a" and not str(a["href"]).startswith("#")]  # fmt: skip
    assert link == "javascript%3Aalert%281%29%20%3F%23%2541/report.html"


def test_what_holds_no_run_is_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "top" / "run")
    assert "is a single run, whose page is" in refused(["report", run], capsys)
    assert "is not there; give a folder" in refused(["report", tmp_path / "nowhere"], capsys)
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert "is a file; give a folder" in refused(["report", tmp_path / "file"], capsys)
    (tmp_path / "none" / "empty").mkdir(parents=True)
    assert "holds no run that can be read (empty: it holds no run)" in refused(["report", tmp_path / "none"], capsys)
    assert not (tmp_path / "none" / PAGE).exists()


def test_every_experiment_answers_one_question() -> None:
    """A new command without a place on the page fails here; `OTHERS` is for those of other versions."""
    asked = [job for question in QUESTIONS for job in question.jobs]
    assert len(asked) == len(set(asked))
    assert {declared.name for declared in EXPERIMENTS} <= set(asked)


def test_it_shows_itself(results: Path) -> None:
    found = overview(results)
    assert isinstance(found, Overview)
    assert list(found.to_pandas()["place"]) == [run.place for run in found.every()]
    assert "it holds no run" in found.to_html()
