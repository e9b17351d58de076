"""What becomes of a name that is asked of a package and is not in it, as in ``hybridlens.utils.get_act_name``.

`asked` is what ``__getattr__`` of a package calls: it loads a submodule that nobody has imported yet, or raises an
`AttributeError`, so that ``hasattr`` and ``getattr`` with a default work. Python drops what an `AttributeError` says
where ``from package import name`` meets one, and looks for a submodule of that name; so `Pointers`, the last of
Python's finders, says it as an `ImportError`. (No exception can be both in CPython.) What is said is what to type from
habit (`hybridlens.habit_modules`), or which module has the name.

How it fails: it is itself how things fail, in one line. Names that nobody has, and those that begin with an underscore,
get Python's own errors.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

PACKAGES = ("hybridlens", "analyses")
"""Those whose names are looked after."""


class Pointers:
    """The last of Python's finders: it finds nothing, and says what to type instead of some names."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Nothing was found so far.

        Raises:
            ElsewhereError: the name is one that stands elsewhere.
        """
        package, _, name = fullname.rpartition(".")
        if package.partition(".")[0] in PACKAGES and (said := pointer(package, name)) is not None:
            from hybridlens.errors import ElsewhereError

            raise ElsewhereError(said)

    @classmethod
    def stand_ready(cls) -> None:
        """Be asked from now on, once however often this is called."""
        if not any(isinstance(finder, cls) for finder in sys.meta_path):
            sys.meta_path.append(cls())


def asked(package: str, name: str) -> Any:
    """A name that a package has not: its submodule, loaded now.

    Args:
        package: its dotted name.
        name: what it was asked for.

    Raises:
        AbsentError: an `AttributeError` that says what to type.
        AttributeError: nobody knows the name.
    """
    if any((folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file() for folder in _at(package)):
        return import_module(f"{package}.{name}")
    said = pointer(package, name)
    if said is not None:
        from hybridlens.errors import AbsentError

        raise AbsentError(said)
    raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package])


def pointer(package: str, name: str) -> str | None:
    """The line that says what to type instead of a name that a package has not; None where nothing is known of it."""
    if name.startswith("_"):
        return None
    from hybridlens.elsewhere import typed_here
    from hybridlens.habit_modules import MODULES

    habits = MODULES.get(package, {})
    known = next((word for word in habits if fnmatchcase(name, word)), None)
    homes = [] if known is not None else _homes(package, name)
    if known is None and not homes:
        return None
    instead = typed_here(habits[known]) if known else f"type from {' or '.join(homes)} import {name}"
    return f"{package} has no {name}; {instead}"


@cache
def _homes(package: str, name: str) -> list[str]:
    """The modules that define a name, or hand it out, three at most: of the package, or else of the analyses.

    Their text is read, and none is imported.
    """
    defined = re.compile(rf"^(?:class|def) {re.escape(name)}\b|^{re.escape(name)}(?:: [^=\n]+)? = ", re.MULTILINE)
    for top in (package, "analyses") if package == "hybridlens" else (package,):
        found: dict[str, None] = {}
        for folder in _at(top):
            for path in sorted(folder.rglob("*.py"), key=lambda path: (len(path.parts), path)):
                if not defined.search(path.read_text(encoding="utf-8")):
                    continue
                parts = path.relative_to(folder).with_suffix("").parts
                given = path.with_name("__init__.py")
                handed = len(parts) > 1 and f'"{name}"' in given.read_text(encoding="utf-8")
                parts = parts[:-1] if path == given or handed else parts
                found[".".join((top, *parts))] = None
        found.pop(package, None)
        if found:
            return list(found)[:3]
    return []


def _at(package: str) -> list[Path]:
    """The folders of a package; none of a module that is no package, or of a package that is not installed."""
    if package not in sys.modules:
        spec = importlib.util.find_spec(package) if package in PACKAGES else None
        return [Path(folder) for folder in (spec.submodule_search_locations or () if spec else ())]
    return [Path(folder) for folder in getattr(sys.modules[package], "__path__", ())]
