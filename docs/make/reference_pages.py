"""The pages of the reference: one for each package, and one for the modules directly in `hybridlens`.

Which modules there are, their order and what each is for come from the packages' lists (`module_lists`); what stands in
them from their docstrings, which mkdocstrings reads without importing them. A module without a function or class of its
own that has no underscore has nothing to show, and is left out. In searches pages of prose come first.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from module_lists import ROOT, Module, lists

FIRST_PROSE = "---\nsearch:\n  boost: 0.05\n---"


def pages(root: Path = ROOT) -> Iterator[tuple[str, str]]:
    """The address of each page, under `reference/`, and its Markdown."""
    for package, modules in lists(root):
        dotted = ".".join(package.parts)
        shown = [module for module in modules if module.path.suffix == ".py" and public(root / module.path)]
        yield f"reference/{dotted}.md", _page(dotted, modules, shown)


def public(path: Path) -> bool:
    """Whether a module has a function or class of its own that is documented and not private."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return any(isinstance(one, kinds) and not one.name.startswith("_") for one in body)


def _page(dotted: str, modules: list[Module], shown: list[Module]) -> str:
    """The package's own docstring, links to the pages of packages inside it, and then its modules."""
    inner = [module.name for module in modules if (ROOT / module.path / "__init__.py").exists()]
    links = ", ".join(f"[`{dotted}.{name}`]({dotted}.{name}.md)" for name in inner)
    about = f"::: {dotted}\n    options:\n      members: []\n      show_root_heading: false\n"
    parts = [FIRST_PROSE, f"# {dotted}", about + "      show_root_toc_entry: false"]
    parts += [f"Pages of packages in it: {links}."] if inner else []
    parts += [f"::: {dotted}.{module.name}" for module in shown]
    return "\n\n".join(parts) + "\n"
