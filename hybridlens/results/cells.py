"""One cell of a sweep, what makes it valid, and how it is written so that damage shows.

A cell is one generation: a model, a prompt (needle, length, depth or control, read once or twice) and what is
done to attention (k, phase, ranking, scope, manipulations, semantics, boundary). Every experiment writes such cells, so
that a figure is a selection of them. Each is stored with a checksum over its values and the fingerprint of its
run, in one line of text, so damage in one place costs the cells in that place and no others. How it fails:
`decode_line` and `cell_from_row` return a `Damage` that names the cell as far as it can still be read.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

PHASES = ("generation", "prefill")
MODES = ("keep", "omit", "only", "binary", "null")
SCOPES = ("layer", "model")
SEMANTICS = ("clean", "published")
BOUNDARIES = ("last_prompt_token", "first_new_token")


class CellKey(NamedTuple):
    """Which cell; the values and their meaning are those of `Cell`. Defaults are the paper's main experiment."""

    model: str
    phase: str
    k: int
    length: int
    depth: float | int | None
    control: bool
    needle: str = "paper"
    jrt: bool = False
    reading: str = "keep"
    answering: str = "keep"
    scope: str = "layer"
    semantics: str = "clean"
    boundary: str = "last_prompt_token"
    ranking: str = ""

    def words(self) -> str:
        """The key as people read it; of what has a default, only what differs from it."""
        where = "control" if self.control else f"depth {self.depth:g} %"
        parts = [self.phase, f"k {self.k}", f"length {self.length}", where]
        for name, default in CellKey._field_defaults.items():
            value = getattr(self, name)
            if value != default:
                parts.append("read twice" if name == "jrt" else f"{name} {value}")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Cell:
    """One scored generation.

    Attributes:
        model: name or path of the model.
        phase: "generation" (top-k acts in decode only) or "prefill" (in both stages).
        k: attention heads kept, 0 ... all there are (untouched): per layer by entropy, 0 ... n_heads; or, under a
            static ranking, of the model with scope "model", and of each layer with scope "layer".
        length: prompt length in tokens, as requested.
        depth: where the needle stands, percent of the context from its start; None for controls.
        control: True where the needle was left out.
        score: the rubric's points, 0 ... max_score.
        text: what the model generated.
        needle_start: first token of the needle in the prompt; None for controls.
        needle_end: one past its last token; None for controls.
        seconds: wall-clock time spent on this cell (its share of the batch).
        prompt_hash: digest of the prompt that was run.
        needle: name of the needle.
        jrt: True where context and question were given twice.
        reading: manipulation of attention weights in prefill, one of `MODES`.
        answering: the same in decode.
        scope: where heads compete for k, one of `SCOPES`.
        semantics: "clean" or "published".
        boundary: "last_prompt_token" or "first_new_token".
        ranking: "" where heads are chosen by entropy at run time; else the name of the static ranking that chose.
        margin: smallest gap between the two best logits over the generated tokens, down to a ten thousandth: what
            is less is rounding, which depends on the batch; None where not measured.
        tokens: tokens generated; None where not counted.
    """

    model: str
    phase: str
    k: int
    length: int
    depth: float | int | None
    control: bool
    score: float | int
    text: str
    needle_start: int | None
    needle_end: int | None
    seconds: float | int
    prompt_hash: str
    needle: str = "paper"
    jrt: bool = False
    reading: str = "keep"
    answering: str = "keep"
    scope: str = "layer"
    semantics: str = "clean"
    boundary: str = "last_prompt_token"
    ranking: str = ""
    margin: float | int | None = None
    tokens: int | None = None

    @property
    def key(self) -> CellKey:
        """Which cell this is."""
        return CellKey(*(getattr(self, name) for name in CellKey._fields))


class Damage(NamedTuple):
    """A stored cell that cannot be trusted: where it stood, what is wrong, and which cell, if known."""

    where: str
    problem: str
    key: CellKey | None


FIELDS = tuple(field.name for field in fields(Cell))
INTEGERS = ("k", "length", "needle_start", "needle_end", "tokens")
FLOATS = ("depth", "score", "seconds", "margin")
BOOLEANS = ("control", "jrt")
_OPTIONAL = ("depth", "needle_start", "needle_end", "margin", "tokens")
_CHOICES = {
    "phase": PHASES,
    "reading": MODES,
    "answering": MODES,
    "scope": SCOPES,
    "semantics": SEMANTICS,
    "boundary": BOUNDARIES,
}


def cell_problem(cell: Cell, max_score: float | int) -> str | None:
    """What is wrong with a cell's values, in words, or None.

    Args:
        cell: the cell.
        max_score: the most points the rubric gives.
    """
    for name, known in _CHOICES.items():
        if getattr(cell, name) not in known:
            return f"{name} {getattr(cell, name)!r} is none of {', '.join(known)}"
    if cell.k < 0:
        return f"k {cell.k} is negative"
    if cell.length < 1:
        return f"length {cell.length} is not positive"
    if not (math.isfinite(cell.score) and 0 <= cell.score <= max_score):
        return f"score {cell.score} is outside 0 to {max_score:g}"
    if not (math.isfinite(cell.seconds) and cell.seconds >= 0):
        return f"seconds {cell.seconds} is not a duration"
    if cell.margin is not None and not (math.isfinite(cell.margin) and cell.margin >= 0):
        return f"margin {cell.margin} is not a gap between logits"
    if cell.tokens is not None and cell.tokens < 0:
        return f"tokens {cell.tokens} is negative"
    for name in ("prompt_hash", "needle"):
        if not getattr(cell, name):
            return f"{name} is empty"
    span = (cell.needle_start, cell.needle_end)
    if cell.control:
        if cell.depth is not None or span != (None, None):
            return f"a control has no depth and no needle, but depth {cell.depth} and span {span} were given"
        return None
    if cell.depth is None or not 0 <= cell.depth <= 100:
        return f"depth {cell.depth} is outside 0 to 100 %"
    start, end = span
    if start is None or end is None or not 0 <= start < end:
        return f"needle span {span} is not a span of tokens"
    return None


def checksum(cell: Cell, fingerprint: str) -> str:
    """16 hex digits over every value of a cell and the fingerprint of its run."""
    values = [float(v) if n in FLOATS and v is not None else v for n, v in asdict(cell).items()]
    text = json.dumps([fingerprint, *values], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def encode_line(cell: Cell, fingerprint: str) -> bytes:
    """One line of ASCII text that holds a cell and its checksum."""
    text = json.dumps(asdict(cell), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return f"{checksum(cell, fingerprint)} {text}\n".encode("ascii")


def decode_line(line: bytes, where: str, fingerprint: str, max_score: float | int) -> Cell | Damage:
    """The cell of one line, or what is wrong with it.

    Args:
        line: the line, without its newline.
        where: how to name the line in a message.
        fingerprint: the run's.
        max_score: the most points the rubric gives.
    """
    stated, _, text = line.partition(b" ")
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return Damage(where, "is not a whole record", None)
    if not isinstance(row, dict):
        return Damage(where, "is not a record", None)
    return cell_from_row(row, stated.decode("ascii", "replace"), where, fingerprint, max_score)


def cell_from_row(
    row: Mapping[str, Any], stated: object, where: str, fingerprint: str, max_score: float | int
) -> Cell | Damage:
    """The cell of one row of plain values, or what is wrong with it.

    Whole numbers that a table library has turned into floats, and missing values that it has turned into
    NaN, are taken for what they were.

    Args:
        row: column -> value.
        stated: the checksum stored with the row.
        where: how to name the row in a message.
        fingerprint: the run's.
        max_score: the most points the rubric gives.
    """
    values: dict[str, Any] = {}
    for name in FIELDS:
        if name not in row:
            return Damage(where, f"has no {name}", None)
        value = row[name]
        if isinstance(value, float) and math.isnan(value) and name in _OPTIONAL:
            value = None
        if name in INTEGERS and isinstance(value, float) and value.is_integer():
            value = int(value)
        if not _has_type(name, value):
            return Damage(where, f"{name} is {value!r}", _key_of(row))
        values[name] = value
    cell = Cell(**values)
    if (problem := cell_problem(cell, max_score)) is not None:
        return Damage(where, problem, cell.key)
    if stated != checksum(cell, fingerprint):
        return Damage(where, "does not match its checksum", cell.key)
    return cell


def _has_type(name: str, value: object) -> bool:
    """Whether a value is of the type of the column `name`."""
    if value is None:
        return name in _OPTIONAL
    if name in BOOLEANS:
        return isinstance(value, bool)
    if name in (*INTEGERS, *FLOATS):
        allowed = int if name in INTEGERS else (int, float)
        return isinstance(value, allowed) and not isinstance(value, bool)
    return isinstance(value, str)


def _key_of(row: Mapping[str, Any]) -> CellKey | None:
    """The key of a row one of whose other values is wrong; None when the key itself cannot be read."""
    values: dict[str, Any] = {name: row.get(name) for name in CellKey._fields}
    if not all(_has_type(name, value) for name, value in values.items()):
        return None
    if values["control"] != (values["depth"] is None):
        return None
    return CellKey(**values)
