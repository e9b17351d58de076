"""What stands under a folder of results, read from records and saved results: no model is opened, nothing written.

A folder with a `run.json` is a run, one with a `zoo.json` a zoo with its runs below it, one with a report alone a page;
all others are looked into. Hidden folders are passed over, and folders that are reached twice are read once.

How it fails: `InputError` for what is no folder of runs; what is damaged, unfinished or no run is named in what comes
out, beside all that can be read.
"""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from analyses.experiment.cluster.plan import read_plan
from analyses.study.overview.results import FoundPage, FoundRun, FoundZoo, Overview, Unread
from analyses.study.zoo.parts import PARTS
from analyses.study.zoo.report import sentence
from analyses.study.zoo.results import FILE, Zoo
from analyses.study.zoo.rules import answers
from analyses.study.zoo.stored import beside_stored
from hybridlens.boundary import public
from hybridlens.display import listed
from hybridlens.display.markup import cut, visible
from hybridlens.errors import HybridLensError, InputError
from hybridlens.results.locks import is_locked
from hybridlens.results.provenance import usable
from hybridlens.results.record import RECORD, Record, read_record
from hybridlens.viz.article import REPORT

NO_RUN = "it holds no run"
DAMAGED = (
    f"its {RECORD} is damaged, or was written by another version; nothing in it was changed, and the command that made "
    "it, into another --out folder, makes it anew"
)


@public
def overview(folder: str | Path) -> Overview:
    """The runs, zoos and other reports under a folder.

    Args:
        folder: that the `--out` folders of commands are in, at any depth.

    Raises:
        InputError: there is no such folder, it is itself a run, or nothing under it is of a hybridlens command.
        ResultsError: the system refuses to read it.
    """
    top, name = Path(folder), cut(visible(str(folder)))
    with usable(top):
        there, is_run = top.exists(), (top / RECORD).exists()
    if not top.is_dir():
        raise InputError(f"{name} is {'a file' if there else 'not there'}; give a folder that holds results")
    if is_run:
        raise InputError(f"{name} is a single run, whose page is its {REPORT}; give the folder that it stands in")
    found = _Under(top)
    found.look(top)
    if not (found.runs or found.zoos or found.pages):
        held = f" ({listed([one.summary() for one in found.unread], 3)})" if found.unread else ""
        raise InputError(
            f"{name} holds no run that can be read{held}; give the folder that the --out folders of commands are in"
        )
    return Overview(top, tuple(found.runs), tuple(found.zoos), tuple(found.pages), tuple(found.unread))


class _Under:
    """What was found so far under one folder."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.runs: list[FoundRun] = []
        self.zoos: list[FoundZoo] = []
        self.pages: list[FoundPage] = []
        self.unread: list[Unread] = []
        self._seen: set[Path] = set()

    def look(self, folder: Path) -> None:
        """A folder and all below it."""
        if folder.resolve() in self._seen:
            return
        self._seen.add(folder.resolve())
        try:
            if (folder / RECORD).exists():
                self._run(folder)
            elif read_plan(folder) is not None:
                self._leave(folder, f"jobs of a cluster share its work; hybridlens status {folder} says how far it is")
            elif (folder != self.top and _is_zoo(folder)) or (folder / FILE).exists():
                self._zoo(folder)
            else:
                self._others(folder)
        except HybridLensError as error:
            self._leave(folder, str(error))

    def _run(self, folder: Path) -> None:
        record = read_record(folder)
        if record is None:
            self._leave(folder, DAMAGED)
        else:
            self.runs.append(_run_of(folder, self._place(folder), record))

    def _zoo(self, folder: Path) -> None:
        below = _Under(self.top)
        below._seen = self._seen
        for child in _folders(folder):
            below.look(child)
        said, note = _answers(folder)
        report = (folder / REPORT).is_file()
        self.zoos.append(FoundZoo(self._place(folder), tuple(below.runs), said, note, report))
        self.zoos += below.zoos
        self.pages += below.pages
        self.unread += below.unread

    def _others(self, folder: Path) -> None:
        """A folder that is no run: a page, or what holds others."""
        children = _folders(folder)
        if folder != self.top and (folder / REPORT).is_file():
            self.pages.append(_page_of(folder / REPORT, self._place(folder)))
        elif not children and folder != self.top:
            self._leave(folder, NO_RUN)
        for child in children:
            self.look(child)

    def _leave(self, folder: Path, why: str) -> None:
        self.unread.append(Unread(self._place(folder), why))

    def _place(self, folder: Path) -> str:
        return folder.relative_to(self.top).as_posix()


def _folders(folder: Path) -> list[Path]:
    """The folders in one, by name, without hidden ones."""
    with usable(folder):
        return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _is_zoo(folder: Path) -> bool:
    """Whether `hybridlens zoo` writes, or wrote, a folder: a run stands where it puts them."""
    return any((child / part / RECORD).exists() for child in _folders(folder) for part in PARTS)


def _run_of(folder: Path, place: str, record: Record) -> FoundRun:
    status = "complete" if record.status == "complete" else "running" if is_locked(folder) else "stopped"
    return FoundRun(
        place=place,
        job=record.job,
        model=record.model,
        status=status,
        command=record.command,
        started=record.created,
        finished=record.finished,
        cells=record.cells,
        done=record.cells_done,
        finding=tuple(record.finding),
        report=(folder / REPORT).is_file(),
    )


def _answers(folder: Path) -> tuple[tuple[str, ...], str]:
    """What the models of a zoo say together, and what is to be known of that."""
    if not (folder / FILE).exists():
        return (), "This zoo is not finished, so nothing is said of its models together; the same command goes on."
    try:
        whole, note = beside_stored(Zoo.load(folder / FILE))
    except HybridLensError as error:
        return (), f"What its models say together cannot be read ({error}); hybridlens zoo writes it again."
    return tuple(sentence(one) for one in answers(whole)), note


def _page_of(path: Path, place: str) -> FoundPage:
    with usable(path):
        head = _Head(path.read_text(encoding="utf-8", errors="replace"))
    return FoundPage(place, " ".join(head.title.split()) or place, head.says)


class _Head(HTMLParser):
    """The title of a page and its description."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.title, self.says, self._inside = "", "", False
        self.feed(source.partition("</head>")[0])
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self._inside = tag == "title"
        if tag == "meta" and named.get("name") == "description":
            self.says = named.get("content") or ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.title += data
