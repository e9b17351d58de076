"""What `make docs` makes: pages from the code, the texts of pages, links from the root's files; see docs/make.

Whether the whole site builds without a warning is `make docs`, which `make test` runs.
"""

import re
import struct
from pathlib import Path

import family_pages
import hook_tables
import markdown
import mkdocs_hooks
import module_lists
import pytest
import reference_pages
import yaml
from markdown_lists import site_markdown, without_comments

from tests.page_examples import ROOT


def html(text: str) -> str:
    return markdown.markdown(site_markdown(text), extensions=["tables", "pymdownx.superfences"])


# Hook points.


@pytest.fixture(scope="module")
def points() -> hook_tables.Found:
    return hook_tables.found()


def test_every_hook_point_of_every_family_has_a_meaning(points: hook_tables.Found) -> None:
    from contract_names import LAYERS, MODEL

    hook_tables.check(points)
    stated = {hook_tables.place(f"blocks.0.{name}") for layers in LAYERS.values() for layer in layers for name in layer}
    stated |= {hook_tables.place(name) for name in MODEL}
    assert stated <= set(points), "names of the contract that no model has"
    families = {family for kinds in points.values() for of_kind in kinds.values() for family in of_kind}
    assert families == set(LAYERS)


def test_a_new_point_without_a_meaning_and_a_meaning_without_a_point_are_found(points: hook_tables.Found) -> None:
    kind = hook_tables.Kind(("b", "p"), False, False)
    with pytest.raises(ValueError, match="says not what 'hook_new' means"):
        hook_tables.check({**points, hook_tables.place("blocks.3.attn.hook_new"): {kind: ["jamba"]}})
    fewer = {place: kinds for place, kinds in points.items() if place[1] != "hook_beta"}
    with pytest.raises(ValueError, match="no family has 'hook_beta'"):
        hook_tables.check(fewer)


def test_the_tables_say_shape_marks_and_families(points: hook_tables.Found) -> None:
    """Against single points of single models, known from the specification."""
    rows = [line.strip("| ").split(" | ") for line in hook_tables.tables(points).splitlines() if line.startswith("| `")]
    assert ["`hook_resid_pre`", "[batch, pos, d_model]", "the residual stream that enters the layer", "all"] in rows
    (state,) = (row for row in rows if row[0] == "`hook_state`" and row[3] == "recurrentgemma")
    assert state[1] == "[batch, pos, channel] *only when asked for*"
    (pattern,) = (row for row in rows if row[0] == "`hook_pattern`" and "rec_head" in row[1])
    assert pattern[1].endswith("*only when asked for* *read-only*")
    assert len(rows) == sum(len(kinds) for kinds in points.values())


def test_families_are_counted_in_few_words() -> None:
    every = set("abcdefgh")
    assert hook_tables.counted(list("abcdefgh"), every) == "all"
    assert hook_tables.counted(list("abcdef"), every) == "all but g, h"
    assert hook_tables.counted(["c", "a"], every) == "c, a"


def test_the_table_of_families_has_every_family() -> None:
    from hybridlens.families import FAMILIES

    lines = family_pages.table().splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2 : 2 + len(FAMILIES)]] == [one.name for one in FAMILIES]


# Where things are, and the reference.


def test_where_things_are_has_a_line_a_module() -> None:
    page = module_lists.page()
    assert page.count("\n* `") + page.count("    * `") == sum(len(modules) for _, modules in module_lists.lists())
    assert "    * `rg_lru.py`: RG-LRU" in page


def test_the_reference_has_a_page_a_package_and_leads_to_what_is_there() -> None:
    pages = dict(reference_pages.pages())
    assert set(pages) == {f"reference/{'.'.join(package.parts)}.md" for package, _ in module_lists.lists()}
    shown = re.findall(r"^::: (.*)$", "\n".join(pages.values()), flags=re.MULTILINE)
    assert {"hybridlens.model", "analyses.patching.sweeps", "hybridlens.niah.builder"} <= set(shown)
    paths = [ROOT / name.replace(".", "/") for name in shown]
    assert all(path.with_suffix(".py").exists() or (path / "__init__.py").exists() for path in paths)
    for page in pages.values():
        assert {f"reference/{link}" for link in re.findall(r"\]\((.*?)\)", page)} <= set(pages)


def test_only_modules_with_something_to_show_are_in_it(tmp_path: Path) -> None:
    for source, public in (("def f(): ...", True), ("class _C: ...\nX = 1", False), ("async def g(): ...", True)):
        (tmp_path / "m.py").write_text(source, encoding="utf-8")
        assert reference_pages.public(tmp_path / "m.py") is public


# Texts.


def test_comments_leave_pages_and_stay_in_code() -> None:
    text = "a <!-- from t: x -->\n\n| b |\n| --- |\n| 1 |\n<!-- not\nstored -->\n\n```\n<!-- shown -->\n```\n<!-- c -->"
    assert without_comments(text) == "a\n\n| b |\n| --- |\n| 1 |\n\n\n```\n<!-- shown -->\n```\n"
    assert html(text).count("<tr>") == 2
    assert without_comments("in all\n<!-- a --><!-- b -->\n<!-- c -->, each <!-- d --> is") == "in all, each is"


def test_lists_as_github_writes_them_become_lists() -> None:
    first = "So:\n1. one\n   more\n   * in\n     it\n\n   after\n"
    made = html(first + "2. two\n\n   ```bash\n   make test\n   ```\n\nend\n* a\n* b\n")
    assert re.sub(r"\s+", "", re.sub(r"<(div|pre|span|code)[^>]*>|</(div|pre|span|code)>", "", made)) == (
        "<p>So:</p><ol><li><p>onemore</p><ul><li>init</li></ul><p>after</p></li>"
        "<li><p>two</p>maketest</li></ol><p>end</p><ul><li>a</li><li>b</li></ul>"
    )


def test_what_is_no_list_stays_as_it_is() -> None:
    text = "a paragraph with\n* a star in it?\n"
    assert site_markdown("x\n\n    indented = code\n\ny - z\n- 3\n").startswith("x\n\n    indented = code\n\ny - z\n")
    assert "<ul>" in html(text)
    code = "```python\nx = [\n  1,\n]\n* y\n```\n"
    assert site_markdown(code) == code


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda path: path.name)
def test_no_item_of_a_page_is_lost_in_a_paragraph(page: Path) -> None:
    """As many items in the site's page as lines that begin one, outside code."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"<!--.*?-->|^( *)```.*?^\1``` *$", "", text, flags=re.MULTILINE | re.DOTALL)
    begun = re.findall(r"^ *(?:[*+-]|\d+\.) +\S", text, flags=re.MULTILINE)
    assert html(text).count("<li>") == len(begun)


# The root's files, and the navigation.


def test_links_of_root_files_lead_to_pages() -> None:
    text = "[a](docs/hooks.md#b) [c](CONTRIBUTING.md) ![d](notebooks/figures/demo.png) [e](#f)"
    assert mkdocs_hooks.linked(text) == "[a](hooks.md#b) [c](contributing.md) ![d](demo.png) [e](#f)"
    text = "[s](../SECURITY.md) [h](hooks.md)"
    assert mkdocs_hooks.within_docs(text, "start.md") == "[s](security.md) [h](hooks.md)"
    text = "[c](../commands.md#a) [s](../../SECURITY.md) ![f](figures/f.svg) [e](#f)"
    stays = "[c](../commands.md#a) [s](../security.md) ![f](figures/f.svg) [e](#f)"
    assert mkdocs_hooks.within_docs(text, "analyses/heads.md") == stays
    with pytest.raises(ValueError, match=r"a link leads to 'pyproject\.toml', which is no page of the site"):
        mkdocs_hooks.linked("[p](pyproject.toml)")


def test_a_marker_that_nothing_fills_is_an_error() -> None:
    with pytest.raises(ValueError, match="a page asks for 'nothing' to be made; there are hook points, families"):
        mkdocs_hooks.filled("nothing")
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    assert sorted(mkdocs_hooks.MARKER.findall(text)) == sorted(mkdocs_hooks.MADE)


def test_whole_folders_of_the_navigation_are_filled() -> None:
    """A folder's index stands first."""
    nav = [{"A": "a.md"}, {"B": ["b.md", "b/*"]}, {"C": "c/*"}, {"D": "d/*"}]
    pages = ["a.md", "b.md", "b/1.md", "b/2.md", "d/1.md", "d/index.md"]
    filled = [{"A": "a.md"}, {"B": ["b.md", "b/1.md", "b/2.md"]}, {"D": ["d/index.md", "d/1.md"]}]
    assert mkdocs_hooks.expanded(nav, pages) == filled


def test_nothing_is_fetched_and_warnings_are_errors() -> None:
    """Fonts and search would come from elsewhere by default; assets are the project's own."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    settings = yaml.safe_load(text)
    assert "http" not in text
    assert settings["theme"]["font"] is False
    assert settings["strict"] is True
    assert set(settings["validation"].values()) == {"warn"}
    assert {"search", "offline"} <= {one for one in settings["plugins"] if isinstance(one, str)}
    for name in (*settings["extra"]["polyfills"], *settings["extra_css"]):
        assert "http" not in (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_the_picture_is_one() -> None:
    width, height = struct.unpack(">II", (ROOT / "notebooks" / "figures" / "demo.png").read_bytes()[16:24])
    assert width > height > 100
