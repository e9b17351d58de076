"""The architecture: which module may import which, and what a plain import may load.

The source is read by `ast`, so an import inside a function counts as well. One under TYPE_CHECKING loads
nothing and only names a type: it may point back within hybridlens, and still never to analyses. One under
`if __name__ == "__main__"` counts like any other.
"""

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import module_lists
import pytest

ROOT = Path(__file__).resolve().parent.parent

# Reading order is import order: a module imports only from those before it (a package also from itself), as the
# docstring of `hybridlens` lists them. It stands above all of them and loads them only when a name is asked for.
ORDER = tuple(module.name for module in module_lists.listed(Path("hybridlens")))

# What only a command or a model may load; importing these takes seconds.
HEAVY = {
    "torch",
    "transformers",
    "transformer_lens",
    "nnsight",
    "plotly",
    "circuitsvis",
    "pandas",
    "pyarrow",
    "numpy",
    "scipy",
    "sklearn",
}


class Import(NamedTuple):
    """One import statement: the file, its line, the dotted module that it names, and whether it is run."""

    path: Path
    line: int
    target: str
    runs: bool = True


def imports_of(path: Path) -> Iterator[Import]:
    """Every module that a source file imports, relative ones made absolute.

    `from hybridlens import x` counts as `hybridlens.x` when x is a module, since that is what loads.
    """
    package = list(path.relative_to(ROOT).with_suffix("").parts[:-1])
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    unread = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).split(".")[-1] == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(path, node.lineno, alias.name, node not in unread)
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                base = node.module or ""
            else:
                base = ".".join([*package[: len(package) - node.level + 1], *(node.module or "").split(".")])
                base = base.rstrip(".")
            modules = [f"{base}.{alias.name}" for alias in node.names if is_module(f"{base}.{alias.name}")]
            yield from (Import(path, node.lineno, module, node not in unread) for module in modules or [base])


def is_module(dotted: str) -> bool:
    """Whether a dotted name is a module or package of this repository."""
    path = ROOT.joinpath(*dotted.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def sources(package: str) -> list[Path]:
    """The source files of a package."""
    return sorted((ROOT / package).rglob("*.py"))


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Sets of modules each of which reaches all others of its set along the arrows, itself included."""
    reach = {module: set(targets) for module, targets in arrows.items()}
    for middle in reach:
        for found in reach.values():
            if middle in found:
                found |= reach[middle]
    around = {frozenset(b for b in reach[a] if a in reach[b]) for a in reach if a in reach[a]}
    return sorted(map(sorted, around))


def test_no_import_goes_in_a_circle() -> None:
    """Over both packages, imports inside functions and under `__main__` included; a package itself is a module too."""
    arrows: dict[str, set[str]] = {}
    for path in [*sources("hybridlens"), *sources("analyses")]:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        arrows[name] = {i.target for i in imports_of(path) if i.runs}
    known = {name: {target for target in targets if target in arrows} for name, targets in arrows.items()}
    assert sum(map(len, known.values())) > 500, "hardly an import was found, so the parser missed them"
    assert circles(known) == []


def test_a_circle_would_be_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a", "d"}}) == [["b", "c"], ["d"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_analyses_has_few_modules_at_its_root() -> None:
    """Packages by what they are about; `stream` (lenses, steering, probes, SAEs) is the tenth."""
    root = [path for path in (ROOT / "analyses").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert len([path for path in root if path.name != "__init__.py"]) <= 10


def part_of(path: Path) -> str:
    """The first name below `hybridlens`: "model" for hybridlens/model.py, "niah" for hybridlens/niah/x.py."""
    return path.relative_to(ROOT / "hybridlens").with_suffix("").parts[0]


def test_hybridlens_never_imports_analyses() -> None:
    """A library that imports its users cannot be used without them; one such line anywhere fails this."""
    wrong = [
        f"{i.path.relative_to(ROOT)}:{i.line} imports {i.target}"
        for path in sources("hybridlens")
        for i in imports_of(path)
        if i.target.split(".")[0] == "analyses"
    ]
    assert wrong == []


def test_modules_import_only_from_those_before_them() -> None:
    """Every arrow is compared with the declared order; a cycle needs at least one arrow that goes back."""
    rank = {name: i for i, name in enumerate(ORDER)}
    wrong: list[str] = []
    arrows = 0
    for path in sources("hybridlens"):
        part = part_of(path)
        if part == "__init__":
            continue
        if part not in rank:
            wrong.append(f"hybridlens.{part} is not in the declared order")
            continue
        for i in imports_of(path):
            names = i.target.split(".")
            if names[0] != "hybridlens" or not i.runs:
                continue
            target = names[1] if len(names) > 1 else "__init__"
            arrows += target != part
            if target != part and (target not in rank or rank[target] > rank[part]):
                wrong.append(f"{path.relative_to(ROOT)}:{i.line} ({part}) imports hybridlens.{target}")
    assert wrong == []
    assert arrows > 0, "no import between modules was found, so the parser missed them"


@pytest.mark.parametrize(
    ("source", "target", "runs"),
    [
        ("import hybridlens.model", "hybridlens.model", True),
        ("from hybridlens import viz", "hybridlens.viz", True),
        ("def f():\n    from .viz import x", "hybridlens.viz", True),
        ("from . import viz", "hybridlens.viz", True),
        ("if TYPE_CHECKING:\n    from hybridlens.viz import x", "hybridlens.viz", False),
        ("if not TYPE_CHECKING:\n    from hybridlens.viz import x", "hybridlens.viz", True),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    from hybridlens.viz import x", "hybridlens.viz", True),
    ],
)
def test_import_reader_sees_every_form(
    source: str, target: str, runs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two tests above pass on nothing found, so the reader itself is shown each form of import."""
    (tmp_path / "hybridlens").mkdir()
    for name in ("model", "viz", "probe"):
        (tmp_path / "hybridlens" / f"{name}.py").write_text("", encoding="utf-8")
    probe = tmp_path / "hybridlens" / "probe.py"
    probe.write_text(source, encoding="utf-8")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert [(i.target, i.runs) for i in imports_of(probe)] == [(target, runs)]


def loaded_by(code: str) -> set[str]:
    """The top-level packages in sys.modules after running `code` in a fresh interpreter."""
    ending = "\nimport sys, json\nprint('\\n' + json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code + ending], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_hybridlens_loads_nothing_heavy() -> None:
    """sys.modules of a fresh interpreter lists whatever was loaded, so one eager import shows."""
    assert loaded_by("import hybridlens") & HEAVY == set()
    assert loaded_by("import torch") & HEAVY >= {"torch"}, "the probe does not see a heavy import"


def test_importing_viz_waits_with_plotly() -> None:
    """Plotly comes with the first figure; the probe sees it when it does."""
    drawing = {"plotly", "circuitsvis", "jinja2", "torch"}
    assert loaded_by("import hybridlens.viz") & drawing == set()
    assert loaded_by("from hybridlens.viz import retrieval_map") & drawing == {"plotly"}


@pytest.mark.parametrize("arguments", [["--help"], ["niah", "--help"], ["heads", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    """`hybridlens --help` has to answer within a second, which no heavy import would allow.

    What is measured is the set of loaded modules, not time, so a slow machine changes nothing.
    """
    code = (
        "import sys\n"
        f"sys.argv = ['hybridlens', *{arguments!r}]\n"
        "from analyses.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
    )
    assert loaded_by(code) & HEAVY == set()


def test_shapes_are_checked_while_testing() -> None:
    """Annotations only hold if the checker is on; a wrong type into a checked function has to raise.

    Without the import hook the call would return a value, so this fails when the plugin is off or when
    something imported the package before the plugin could.
    """
    errors = importlib.import_module("hybridlens.errors")
    with pytest.raises(Exception, match=r"(?i)type-check|beartype|violates"):
        errors.closest(3, ["a"])


def walked() -> list[str]:
    """The source files of both packages as paths, in the order of the packages' lists of modules."""
    found = (module.path for top in module_lists.PACKAGES for module in module_lists.walked(Path(top)))
    return [str(path) for path in found if path.suffix == ".py"]


def test_each_package_says_of_every_module_what_is_in_it() -> None:
    """One line a module or package inside it, and for a folder of data at most one; nothing that is not there."""
    seen = 0
    for package, modules in module_lists.lists():
        inside = list((ROOT / package).iterdir())
        wanted = {path.stem for path in inside if path.suffix == ".py"} - {"__init__"}
        wanted |= {path.name for path in inside if any(path.rglob("*.py"))}
        data = {path.name for path in inside if path.is_dir() and path.name != "__pycache__"} - wanted
        names = [module.name for module in modules]
        assert sorted(set(names) - data) == sorted(wanted), package
        assert len(set(names)) == len(names), package
        seen += len(names)
    assert seen > 300, "hardly a module was found, so the lists were not read"


def test_a_new_file_or_a_line_in_another_form_is_found(tmp_path: Path) -> None:
    """Planted: lists are read at all, and what cannot be read is said with the line."""
    (tmp_path / "hybridlens" / "inner").mkdir(parents=True)
    init = tmp_path / "hybridlens" / "__init__.py"
    init.write_text('"""A package.\n\nModules:\n    a: letters\n    inner: more: of it\n"""\n', encoding="utf-8")
    inner = tmp_path / "hybridlens" / "inner" / "__init__.py"
    inner.write_text('"""Inside.\n\nModules:\n    b: figures\n"""\n', encoding="utf-8")
    read = list(module_lists.walked(Path("hybridlens"), tmp_path))
    assert read == [("a", "letters", Path("hybridlens/a.py")), ("b", "figures", Path("hybridlens/inner/b.py"))]
    assert module_lists.listed(Path("hybridlens"), tmp_path)[1].about == "more: of it"
    inner.write_text('"""Inside.\n\nModules:\n    b figures\n"""\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"hybridlens/inner/__init__\.py: '    b figures' given, '    name: what"):
        module_lists.listed(Path("hybridlens/inner"), tmp_path)
    inner.write_text('"""Inside."""\n', encoding="utf-8")
    with pytest.raises(ValueError, match="says of no module what is in it"):
        module_lists.listed(Path("hybridlens/inner"), tmp_path)


def test_the_lists_are_in_import_order() -> None:
    """A module imports only from those above it: of its own package, of others, and of whole packages."""
    order = {path: place for place, path in enumerate(walked())}
    wrong: list[str] = []
    for path, place in order.items():
        for found in imports_of(ROOT / path):
            target = found.target.replace(".", "/")
            places = [at for other, at in order.items() if other == f"{target}.py" or other.startswith(f"{target}/")]
            if path.startswith(f"{target}/") or not found.runs:
                continue
            if places and max(places) > place:
                wrong.append(f"{path}:{found.line} imports {found.target}")
    assert wrong == []
