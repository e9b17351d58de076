"""README and docs are true: their code runs, what it shows comes out, their commands, links and files exist.

`tests/page_examples.py` says how blocks are run and compared. What every page of docs/analyses has is looked at by
tests/test_docs_examples.py; the tables of docs/coming-from.md and docs/peers-tools.md are run by tests of their own.
"""

import importlib.util
import re
from contextlib import chdir
from pathlib import Path

import pytest
from test_repository import made, targets
from typer.main import get_command
from typer.testing import CliRunner

from analyses.cli import app
from tests.page_examples import ROOT, Block, arrows, blocks, commands, compare, run, same, stray

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PAGES}
EVERY = [block for page, text in TEXTS.items() for block in blocks(page, text)]
PYTHON = [block for block in EVERY if block.language == "python"]
SHELL = [block for block in EVERY if block.language == "bash"]
README = TEXTS["README.md"]


# Code.


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.name)
def test_code_runs_by_itself_and_gives_what_is_shown(block: Block, tmp_path: Path) -> None:
    """Without a warning; an unknown word, a name that changed and another value than the one shown fail here."""
    with chdir(tmp_path):
        run(block, tmp_path)


def test_every_block_is_of_a_kind_that_is_run() -> None:
    assert {block.language for block in EVERY} == {"python", "bash"}
    assert [(page, line) for page, text in TEXTS.items() for line in stray(text)] == []
    assert len(PYTHON) >= 15
    assert sum(len(arrows(block.code)) for block in PYTHON) >= 20


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.name)
def test_commands_can_be_typed_as_they_stand(block: Block) -> None:
    """Parsed by the command line's own code, so that an option, or a value of the wrong kind, fails."""
    for words in commands(block.code):
        while re.fullmatch(r"\w+=\S*", words[0]):
            words = words[1:]
        program, *rest = words
        if program == "hybridlens":
            name, *options = rest
            get_command(app).commands[name].make_context(name, options)  # type: ignore[attr-defined]
        elif program == "make":
            assert set(made(" ".join(words))) <= targets()
        elif program == "python":
            assert rest[0] == "-m"
            assert importlib.util.find_spec(rest[1]) is not None
        elif program == "jupytext":
            assert (ROOT / "notebooks" / rest[-1]).is_file()
        else:
            assert program in ("pip", "pytest", "jupyter"), program


@pytest.mark.parametrize("block", [block for block in SHELL if block.shown is not None], ids=lambda block: block.name)
def test_what_a_command_prints_is_what_is_shown(block: Block, tmp_path: Path) -> None:
    *_, (_, *words) = commands(block.code)
    with chdir(tmp_path):
        result = CliRunner().invoke(app, words, env={"COLUMNS": "200", "TERM": "dumb"}, catch_exceptions=False)
    compare(block, result.stdout)


def test_the_page_of_commands_has_each_of_them() -> None:
    there = {words[1] for block in SHELL if block.page == "docs/commands.md" for words in commands(block.code)}
    assert there == set(get_command(app).commands)  # type: ignore[attr-defined]


def test_the_table_of_sweeps_lists_each_with_its_hook_point() -> None:
    """Every sweep stands in one row; in a row that names hook points, the one at its place is its own."""
    from analyses.patching.sweeps import SWEEPS

    rows = re.findall(r"^\| (`[^|]+`) \| ([^|]+) \| ([^|]+) \|$", TEXTS["docs/states.md"], flags=re.MULTILINE)
    found: dict[str, str] = {}
    for names, points, _ in rows:
        for place, name in enumerate(re.findall(r"`(\w+)`", names)):
            listed = re.findall(r"`([\w.]+)`", points)
            found[name] = listed[place] if listed else found[re.sub(r"_by_\w+", "", name)]
    assert {name: found.get(name) for name in SWEEPS} == {name: sweep.point for name, sweep in SWEEPS.items()}


# The README.


def test_the_readme_is_short_and_has_its_parts() -> None:
    lines = README.splitlines()
    assert len(lines) <= 150
    headings = [line for line in lines if line.startswith("## ")]
    assert headings == ["## Ways in", "## What was found", "## What is supported", "## How to cite"]
    first = README.split("\n\n")[1].splitlines()
    assert len(first) <= 5, "what it is, in five lines"
    assert len(re.findall(r"!\[", README)) == 1
    assert [words for block in blocks("README.md", README) for words in commands(block.code) if words[0] == "make"] == [
        ["make", "demo"], ["make", "test"],
    ]  # fmt: skip
    for block in blocks("README.md", README):
        assert len(block.code.strip().splitlines()) <= 14, f"{block.name}: ten lines of code each way in"


def test_the_readme_counts_the_families() -> None:
    from hybridlens.families import FAMILIES

    assert len(FAMILIES) == 23, "README.md says twenty-three"
    assert README.count("wenty-three families") == 2


# Links and files.


def anchors(text: str) -> set[str]:
    """Of a page's headings, as GitHub and the site make them."""
    plain = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    found = [
        re.sub(r"\[([^]]*)\]\([^)]*\)|[`*]", r"\1", line) for line in re.findall(r"^#+ (.*)$", plain, re.MULTILINE)
    ]
    return {re.sub(r"[^\w -]", "", line.lower()).strip().replace(" ", "-") for line in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    text = re.sub(r"<!--.*?-->|^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert not link.startswith("http"), f"{link}: pages are read without a network"
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("page", list(TEXTS))
def test_files_that_pages_name_are_there(page: str) -> None:
    """In code between backticks; NAME stands for any name."""
    names = re.findall(r"`((?:tests|hybridlens|analyses|notebooks|docs|\.ci)/[\w./-]+)`", TEXTS[page])
    made_later = {name for name in names if name.startswith("build/")}
    missing = [name for name in names if "NAME" not in name and name not in made_later and not (ROOT / name).exists()]
    assert missing == []


# The mechanism itself is shown what it must find.


def example(code: str, shown: str | None = None, setup: str = "") -> Block:
    return Block("page.md", 7, "python", code, setup, shown)


def test_values_behind_arrows_are_compared(tmp_path: Path) -> None:
    run(example('x = 3\nx, "a"  # -> (3, "a")\n1 / 3   # -> 0.33\n[x,\n 1.26]  # -> [3, 1.3]\n'), tmp_path)
    with pytest.raises(AssertionError, match=r"page\.md:8: 3 came out, 4 is shown"):
        run(example("x = 3\nx  # -> 4\n"), tmp_path)
    with pytest.raises(AssertionError):
        run(example("0.336  # -> 0.33\n"), tmp_path)
    with pytest.raises(ValueError, match="stands behind what has no value"):
        run(example("x = 3  # -> 3\n"), tmp_path)
    with pytest.raises(ValueError, match="stands behind what has no value"):
        run(example("for i in (1, 2):\n    i  # -> 1\n"), tmp_path)
    assert not same("ab", ["a", "b"])
    assert not same([1], [1, 2])


def test_each_block_has_a_namespace_of_its_own_and_its_setup(tmp_path: Path) -> None:
    (first, second) = blocks("p", "```python\ny = 1\n```\n<!-- setup: z = 2 -->\n```python\nz  # -> 2\ny\n```\n")
    assert "y" in run(first, tmp_path)
    with pytest.raises(NameError, match="'y' is not defined"):
        run(second, tmp_path)


def test_what_is_printed_is_compared(tmp_path: Path) -> None:
    (block,) = blocks("p", "```python\nprint('a'); print('b'); print('c')\n```\n\n```text\na\n…\nc\n```\n")
    run(block, tmp_path)
    with pytest.raises(AssertionError, match="printed was\na\nb\nc"):
        run(block._replace(shown="a\nc\n"), tmp_path)
    assert stray("```text\nalone\n```\n") == ["alone"]
    assert stray("```python\n1\n```\nwords\n```text\nafter words\n```\n") == ["after words"]


def test_a_warning_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserWarning, match="beware"):
        run(example("import warnings\nwarnings.warn('beware')\n"), tmp_path)


def test_commands_are_joined_and_blocks_in_lists_are_read() -> None:
    assert commands("a b \\\n  c # no\n# nothing\nd 'e f'\n") == [["a", "b", "c"], ["d", "e f"]]
    (block,) = blocks("p", "1. so\n\n    ```bash\n    make test\n    ```\n")
    assert block.code == "make test\n"
