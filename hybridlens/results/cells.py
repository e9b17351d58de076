"""One cell of a sweep, what makes it valid, and how it is written so that damage shows.

A cell is one generation: a model, a prompt (needle, length, depth or control, read once or twice) and what is
done to attention (k, phase, ranking, scope, manipulations, semantics, boundary). Every experiment writes such cells, so
that a figure is a selection of them. Each is stored with a checksum over its values and the fingerprint of its
run, in one line of text, so damage in one place costs the cells in that place and no others.

What a value may be is said once, in the types of `Cell`'s fields, and checked by pydantic where a cell is read or
stored. How it fails: `decode_line` and `cell_from_row` return a `Damage` that names the field, and the cell as far as
it can still be read.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Annotated, Any, NamedTuple, TypeAlias, get_type_hints

from annotated_types import Ge, Le, MinLen
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Strict,
    StrictBool,
    StrictFloat,
    StrictInt,
    TypeAdapter,
    ValidationError,
    with_config,
)

from hybridlens.boundary import Natural
from hybridlens.boundary_words import Among, refusal
from hybridlens.display import Displayed, brief
from hybridlens.display.markup import cut

PHASES = ("generation", "prefill")
MODES = ("keep", "omit", "only", "binary", "null")
SCOPES = ("layer", "model")
SEMANTICS = ("clean", "published")
BOUNDARIES = ("last_prompt_token", "first_new_token")


def _whole(value: Any) -> Any:
    """A whole number that a table library has turned into a float, as it was."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _absent(value: Any) -> Any:
    """A missing value that a table library has turned into NaN, as it was."""
    return None if value != value else value


Named: TypeAlias = Annotated[str, MinLen(1)]
Count: TypeAlias = Annotated[Natural, Strict(), BeforeValidator(_whole)]
Number: TypeAlias = Annotated[StrictFloat | StrictInt, Ge(0)]
MaybeCount: TypeAlias = Annotated[Count | None, BeforeValidator(_absent)]
MaybeNumber: TypeAlias = Annotated[Number | None, BeforeValidator(_absent)]
MaybePercent: TypeAlias = Annotated[Annotated[Number, Le(100)] | None, BeforeValidator(_absent)]


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
        known = isinstance(self.depth, (int, float))
        where = "control" if self.control else f"depth {self.depth:g} %" if known else f"depth {brief(self.depth)}"
        parts = [self.phase, f"k {self.k}", f"length {self.length}", where]
        for name, default in CellKey._field_defaults.items():
            value = getattr(self, name)
            if value != default:
                parts.append("read twice" if name == "jrt" else f"{name} {value}")
        return ", ".join(parts)


@with_config(ConfigDict(revalidate_instances="always", allow_inf_nan=False))
@dataclass(frozen=True, slots=True)
class Cell(Displayed):
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
    phase: Annotated[str, Among(PHASES)]
    k: Count
    length: Annotated[Count, Ge(1)]
    depth: MaybePercent
    control: StrictBool
    score: Number
    text: str
    needle_start: MaybeCount
    needle_end: MaybeCount
    seconds: Number
    prompt_hash: Named
    needle: Named = "paper"
    jrt: StrictBool = False
    reading: Annotated[str, Among(MODES)] = "keep"
    answering: Annotated[str, Among(MODES)] = "keep"
    scope: Annotated[str, Among(SCOPES)] = "layer"
    semantics: Annotated[str, Among(SEMANTICS)] = "clean"
    boundary: Annotated[str, Among(BOUNDARIES)] = "last_prompt_token"
    ranking: str = ""
    margin: MaybeNumber = None
    tokens: MaybeCount = None

    @property
    def key(self) -> CellKey:
        """Which cell this is."""
        return CellKey(*(getattr(self, name) for name in CellKey._fields))

    def summary(self) -> str:
        """Which cell, its score, and how the text begins."""
        which = f"{cut(brief(self.model), 40)}, {cut(self.key.words(), 80)}"
        return f"{which}: score {brief(self.score)}, {cut(brief(self.text), 40)!r}"


class Damage(NamedTuple):
    """A stored cell that cannot be trusted: where it stood, what is wrong, and which cell, if known."""

    where: str
    problem: str
    key: CellKey | None


FIELDS = tuple(field.name for field in fields(Cell))
INTEGERS = ("k", "length", "needle_start", "needle_end", "tokens")
FLOATS = ("depth", "score", "seconds", "margin")
BOOLEANS = ("control", "jrt")
_values = attrgetter(*FIELDS)


def _consistent(cell: Cell, info: Any) -> Cell:
    """Refuse values that are right one by one and not together, or not under the rubric."""
    start, end = span = (cell.needle_start, cell.needle_end)
    if cell.score > info.context:
        raise ValueError(f"score {cell.score} is outside 0 to {info.context:g}")
    if cell.control and (cell.depth, *span) != (None, None, None):
        raise ValueError(f"a control has no depth and no needle, but depth {cell.depth} and span {span} were given")
    if not cell.control and cell.depth is None:
        raise ValueError("depth is None, expected one from 0 to 100 %: the cell is no control")
    if not cell.control and (start is None or end is None or start >= end):
        raise ValueError(f"needle span {span} is not a span of tokens")
    return cell


_HINTS = get_type_hints(Cell, include_extras=True)
_CELL: TypeAdapter[Cell] = TypeAdapter(Annotated[Cell, AfterValidator(_consistent)])
_KEY = TypeAdapter(CellKey, config=ConfigDict(strict=True))


def _checked(cell: Cell | Mapping[str, Any], max_score: float | int) -> Cell | str:
    """A cell, given as such or as its values, when all are allowed; else what is wrong, in words."""
    try:
        return _CELL.validate_python(cell, context=max_score)
    except ValidationError as error:
        faults = error.errors(include_url=False)
    first = faults[0]
    if not first["loc"]:
        return str(first.get("ctx", {})["error"])
    name = str(first["loc"][0])
    paths = [fault["loc"][1:] for fault in faults if fault["loc"][0] == name]
    return str(refusal(name, first["input"], _HINTS[name], paths))


def cell_problem(cell: Cell, max_score: float | int) -> str | None:
    """What is wrong with a cell's values, in words, or None; `max_score` is the most points the rubric gives."""
    found = _checked(cell, max_score)
    return found if isinstance(found, str) else None


def checksum(cell: Cell, fingerprint: str) -> str:
    """16 hex digits over every value of a cell and the fingerprint of its run."""
    values = [float(v) if n in FLOATS and v is not None else v for n, v in zip(FIELDS, _values(cell), strict=True)]
    text = json.dumps([fingerprint, *values], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def encode_line(cell: Cell, fingerprint: str) -> bytes:
    """One line of ASCII text that holds a cell and its checksum."""
    text = json.dumps(
        dict(zip(FIELDS, _values(cell), strict=True)), ensure_ascii=True, separators=(",", ":"), allow_nan=False
    )
    return f"{checksum(cell, fingerprint)} {text}\n".encode("ascii")


def decode_line(line: bytes, where: str, fingerprint: str, max_score: float | int) -> Cell | Damage:
    """The cell of one line without its newline, or what is wrong with it; arguments as `cell_from_row`."""
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

    Whole numbers and missing values are also read as a table library may have left them: as floats, and as NaN.

    Args:
        row: column -> value.
        stated: the checksum stored with the row.
        where: how to name the row in a message.
        fingerprint: the run's.
        max_score: the most points the rubric gives.
    """
    missing = next((name for name in FIELDS if name not in row), None)
    if missing is not None:
        return Damage(where, f"has no {missing}", None)
    cell = _checked(row, max_score)
    if isinstance(cell, str):
        return Damage(where, cell, _key_of(row))
    if stated != checksum(cell, fingerprint):
        return Damage(where, "does not match its checksum", cell.key)
    return cell


def _key_of(row: Mapping[str, Any]) -> CellKey | None:
    """The key of a row one of whose other values is wrong; None when the key itself cannot be read."""
    try:
        key = _KEY.validate_python({name: row[name] for name in CellKey._fields})
    except ValidationError:
        return None
    return key if key.control == (key.depth is None) else None
