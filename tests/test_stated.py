"""What README, docs and notebooks state in numbers is what is stored, to the decimals written."""

import json
from pathlib import Path

import pytest

from tests.stated import STORE, Stated, numbers, stated, unsourced, values, wrong

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "notebooks").glob("*.py"))]
TIMED = ("gpu.md", "real-size.md", "speed.md", "recipes.md")
"""Pages of what a machine took on a day, or would take: they say which."""


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_number_that_names_a_source_is_stored(page: Path) -> None:
    claims = list(stated(page.name, page.read_text(encoding="utf-8")))
    assert [found for one in claims if (found := wrong(one))] == []


def test_every_table_of_numbers_names_its_source() -> None:
    """Pages of times are exempt; the others' tables say which command stored or timed them."""
    pages = [page for page in PAGES if page.name not in TIMED and page.suffix == ".md"]
    assert [line for page in pages for line in unsourced(page.name, page.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(("page", "least"), [("README.md", 5), ("docs/paper.md", 30), ("docs/what-we-found.md", 15)])
def test_pages_name_sources(page: str, least: int) -> None:
    """The mechanism reads the page at all: a comment in another form would be passed over."""
    claims = list(stated(page, (ROOT / page).read_text(encoding="utf-8")))
    assert len(claims) >= least
    assert all(values(one.source, one.key) for one in claims)


def test_what_is_stored_says_how_it_was_made() -> None:
    for path in sorted(STORE.glob("*.json")):
        held = json.loads(path.read_text(encoding="utf-8"))
        assert held["made"]["command"].startswith(("hybridlens ", "python -m tests.benchmarks."))
        assert {"model", "weights", "finished", "torch"} <= set(held["made"])
        for table in held["tables"].values():
            assert {len(row) for row in table["rows"]} <= {len(table["columns"])}
        assert path.stat().st_size < 200_000


@pytest.fixture
def store(tmp_path: Path) -> Path:
    rows = [["a", 0, 0.984, -0.82], ["a", 1, 0.5, -0.0], ["b | c", 0, 1234.5, 2e-6]]
    held = {"made": {}, "tables": {"t": {"columns": ["name", "k", "mean", "change"], "rows": rows}}}
    (tmp_path / "one.json").write_text(json.dumps(held), encoding="utf-8")
    return tmp_path


def problem(text: str, store: Path) -> list[str | None]:
    return [wrong(one, store) for one in stated("page.md", text)]


def test_numbers_are_compared_as_they_are_written(store: Path) -> None:
    """Rounding, percent, signs, thousands, powers; a wrong last digit is told with what is stored."""
    good = "Of 7 heads 98.4 % are left, 98 %, that is 82 points less, in 95 % intervals.\n"
    ref = "<!-- from one/t: mean[name=a & k=0] in %; mean[name=a & k=0] in %; change[name=a & k=0] in minus % -->"
    assert problem(good + ref, store) == [None]
    (said,) = problem(good.replace("98.4", "98.3") + ref, store)
    assert said is not None
    assert "98.3 is written, stored is 98.4" in said
    assert problem("It is 1,234.5 and −0.820, or 2e-6.\n<!-- from one/t: mean[k=0 & name=b | c]; "
                   "change[name=a & k=0]; change[name=b | c] -->", store) == [None]  # fmt: skip


def test_what_is_stored_has_to_be_written_and_the_other_way_round(store: Path) -> None:
    (lacking,) = problem("Only 98 % here. <!-- from one/t: mean[name=a] in % -->", store)
    assert lacking is not None
    assert "50 is stored and not written" in lacking
    (more,) = problem("98 % here, and 3 points. <!-- from one/t: mean[name=a & k=0] in % -->", store)
    assert more is not None
    assert "3 is written, nothing more is stored" in more


def test_rows_of_a_table_are_found_by_their_key(store: Path) -> None:
    """`*` is the first cell's text, or what its comment says; a row's own comment stands for the one below."""
    table = "| k | mean |\n| --- | --- |\n| 0 | 98 % |\n| one <!-- key: 1 --> | 50 % |\n"
    below = "<!-- from one/t: mean[name=a & k=*] in % -->"
    assert problem(table + below, store) == [None, None]
    assert problem(table.replace("98 %", "97 %") + below, store)[0] is not None
    own = table.replace("50 % |", "1,234.50 <!-- from one/t: mean[name=b | c] --> |")
    assert problem(own + below, store) == [None, None]
    assert problem(table.replace("50 % |", "51 % <!-- not stored: by hand --> |") + below, store) == [None]


def test_what_cannot_be_read_is_told(store: Path) -> None:
    for source, told in {
        "two/t: mean": "two.json is not stored",
        "one/u: mean": "one/u is not stored; there are t",
        "one/t: meen": "has no column 'meen'",
        "one/t: mean[name=z]": "has no number mean",
        "one/t: mean[k=*]": "in no row of a table",
        "one/t: mean in kg": "is no reference",
        "mean": "is no reference",
    }.items():
        found = wrong(Stated("p", "1.0", source), store)
        assert found is not None
        assert told in found


def test_tables_without_a_source_are_found() -> None:
    table = "| a | b |\n| --- | --- |\n| 1 | 2.5 |\n"
    assert unsourced("p", table) == ["p: | a | b |"]
    assert unsourced("p", table + "<!-- not stored: python -m tests.benchmarks.sweep -->") == []
    assert unsourced("p", table.replace("2.5", "`2.5`").replace("| 1", "| 1.5")) == []
    named = numbers("layer 5, k = 3, lag 1", row=True)
    assert not any(number.bound for number in named)
    assert [n.value for n in numbers("layer5 at 1.5e-3, −2, 10,000 and tiny-qwen3.5")] == [1.5e-3, -2, 10000]
