"""What each module is for: the section `Modules:` of each package's docstring, read without importing anything.

A package says it in its `__init__`, a line a module, in import order; a package inside it and a folder of data have a
line there too::

    Modules:
        axes: the letters of axes
        kernels: what runs on a GPU

`lists` reads these, `page` makes "Where things are" of them, and `tests/test_layering.py` holds them against the files.

How it fails: `ValueError` for a package without such a section, or a line in it that is not `name: what is in it`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("hybridlens", "analyses")
LINE = re.compile(r"    (\w+): (\S.*)")


class Module(NamedTuple):
    """A line of a list.

    Attributes:
        name: of the module, package or folder, inside its package.
        about: what is in it.
        path: from the root: `hybridlens/axes.py`, or a folder.
    """

    name: str
    about: str
    path: Path


def listed(package: Path, root: Path = ROOT) -> list[Module]:
    """The lines of one package, in their order.

    Args:
        package: its folder, from the root.
        root: of the repository.

    Raises:
        ValueError: it says nothing of its modules, or says it in another form.
    """
    source = (root / package / "__init__.py").read_text(encoding="utf-8")
    said = (ast.get_docstring(ast.parse(source)) or "").partition("\nModules:\n")[2]
    if not said:
        raise ValueError(f"{package}/__init__.py says of no module what is in it; its docstring ends in 'Modules:'")
    found: list[Module] = []
    for line in said.splitlines():
        match = LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"{package}/__init__.py: {line!r} given, '    name: what is in it' expected")
        path = package / match[1]
        found.append(Module(match[1], match[2], path if (root / path).is_dir() else path.with_suffix(".py")))
    return found


def lists(root: Path = ROOT) -> Iterator[tuple[Path, list[Module]]]:
    """Every package with its lines, those of `analyses` last; a package inside another comes behind it."""
    for top in PACKAGES:
        for path in sorted((root / top).rglob("__init__.py")):
            package = path.parent.relative_to(root)
            yield package, listed(package, root)


def walked(package: Path, root: Path = ROOT) -> Iterator[Module]:
    """All modules of a package as they are read, top to bottom: those of a package inside it stand in its place."""
    for module in listed(package, root):
        if (root / module.path / "__init__.py").exists():
            yield from walked(module.path, root)
        else:
            yield module


def page(root: Path = ROOT) -> str:
    """The page "Where things are", as Markdown: a list for each package, deeper ones indented."""
    parts = [
        "# Where things are",
        "A module a line, as each package's `__init__` says it. Top to bottom is import order: a module imports only "
        "from those above it, `analyses` from `hybridlens` and never the other way round.",
    ]
    for top in PACKAGES:
        parts += [f"## {top}", "\n".join(_items(Path(top), root, 0))]
    return "\n\n".join(parts) + "\n"


def _items(package: Path, root: Path, depth: int) -> Iterator[str]:
    for module in listed(package, root):
        folder = (root / module.path).is_dir()
        yield f"{'    ' * depth}* `{module.name}{'/' if folder else '.py'}`: {module.about}"
        if (root / module.path / "__init__.py").exists():
            yield from _items(module.path, root, depth + 1)
