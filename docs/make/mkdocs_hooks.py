"""What mkdocs calls while it builds the site: pages that are made, and texts as the site wants them.

* `index.md` is README.md, and `contributing.md`, `changelog.md`, `security.md` are the root's files; links in them lead
  to pages of the site.
* `where-things-are.md`, `reference/*.md` and the tables of hook points and of families are made of the code.
* Notebooks that were executed (`make notebooks`) are pages, what their results show of themselves untouched; all of
  them are listed in `notebooks/index.md`.
* An entry `Title: folder/*` of the navigation is all pages of that folder, in the order of their names.
* Pages are written as GitHub reads them; `markdown_lists` has what Python-Markdown wants otherwise.

How it fails: a page with a marker that nothing fills, or a root file that links to one that is no page, raises
`ValueError`.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import family_pages
import hook_tables
import module_lists
import notebook_pages
import reference_pages
from markdown_lists import site_markdown
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = module_lists.ROOT
ROOT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
"""Files of the root → their pages."""
ROOT_FILES = ("LICENSE", "CITATION.cff", "notebooks/figures/demo.png")
"""Files of the root that pages show or link to, as they are; each is put beside the pages under its own name."""
MADE: Mapping[str, Callable[[], str]] = {"hook points": hook_tables.tables, "families": family_pages.table}
"""What a page's `<!-- made: NAME -->` is filled with."""
MARKER = re.compile(r"<!-- made: (.*?) -->")
LINK = re.compile(r"(\]\()([^)#\s]+)")
OUTPUTS: dict[str, list[str]] = {}
"""Page → the outputs of a notebook, while its Markdown is made into HTML."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made, and fills the navigation's entries of whole folders."""
    made = {"where-things-are.md": module_lists.page(), **dict(reference_pages.pages())}
    made |= {page: linked((ROOT / name).read_text(encoding="utf-8")) for name, page in ROOT_PAGES.items()}
    made |= notebook_pages.pages()
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    for name in ROOT_FILES:
        files.append(File.generated(config, Path(name).name, abs_src_path=str(ROOT / name)))
    config.nav = expanded(
        config.nav or [],
        sorted((file.src_uri for file in files.documentation_pages()), key=lambda name: name.removesuffix(".md")),
    )
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A page's text as the site shows it: tables put in, comments left out."""
    markdown, OUTPUTS[page.file.src_uri] = notebook_pages.set_aside(markdown)
    return site_markdown(MARKER.sub(lambda found: filled(found[1]), within_docs(markdown, page.file.src_uri)))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A page's HTML with the outputs of a notebook as they were."""
    return notebook_pages.put_back(html, OUTPUTS.pop(page.file.src_uri))


def filled(name: str) -> str:
    """What is made of the code for a marker.

    Raises:
        ValueError: nothing is made for it.
    """
    if name not in MADE:
        raise ValueError(f"a page asks for {name!r} to be made; there are {', '.join(MADE)}")
    return MADE[name]()


def linked(text: str) -> str:
    """A root file's text with its links leading to pages of the site.

    Raises:
        ValueError: it links to a file that is no page.
    """
    return LINK.sub(lambda found: found[1] + _page(found[2]), text)


def within_docs(text: str, page: str) -> str:
    """A page's text with its links to files of the root, `../NAME` from docs, leading to their pages."""
    folder = posixpath.dirname(page)

    def leading(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", folder, found[2]))
        if target.startswith("docs/") or "://" in found[2]:
            return found[0]
        return found[1] + posixpath.relpath(_page(target), folder or ".")

    return LINK.sub(leading, text)


def _page(target: str) -> str:
    """Where a file, named from the root, is in the site."""
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    if target in ROOT_PAGES:
        return ROOT_PAGES[target]
    if target in ROOT_FILES:
        return Path(target).name
    raise ValueError(f"a link leads to {target!r}, which is no page of the site; see docs/make/mkdocs_hooks.py")


def expanded(nav: list[Any], pages: list[str]) -> list[Any]:
    """A navigation with its `folder/*` filled in; an entry of a folder without pages is left out."""
    found: list[Any] = []
    for entry in nav:
        title, inside = next(iter(entry.items())) if isinstance(entry, dict) else (None, entry)
        if isinstance(inside, list):
            found.append({title: expanded(inside, pages)})
        elif isinstance(inside, str) and inside.endswith("/*"):
            here = [page for page in pages if page.startswith(inside[:-1])]
            here.sort(key=lambda page: (not page.endswith("/index.md"), page))
            if title is None:
                found += here
            elif here:
                found.append({title: here})
        else:
            found.append(entry)
    return found
