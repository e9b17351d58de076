"""How results show themselves: one line, a few kB of HTML with every text in it harmless, a whole table of pandas."""

import pickle
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.experiment.artefacts import Stored
from hybridlens.display import (
    Curve,
    Displayed,
    Grid,
    Named,
    Piece,
    Several,
    Strip,
    Table,
    TokenText,
    Words,
    every,
    many,
    number,
    size,
)
from hybridlens.display.markup import parted
from hybridlens.errors import InputError
from hybridlens.viz import Plot, Plotted, entries, words

HOSTILE = "</div></style><script>alert(1)</script>&<b>"
TAGS = {
    "p",
    "div",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "img",
    "svg",
    "path",
    "polyline",
    "text",
    "span",
    "i",
    "b",
}
A_FEW_KB = 9_000
"""Bytes of one piece, whatever its size; the style that stands before them has 2 kB."""


@dataclass(frozen=True)
class Scores(Plotted, Stored):
    """Of a layer and a head each."""

    scores: Float[Tensor, "layer head"]
    layers: tuple[int, ...]

    def table(self) -> Table:
        return Table.of({"score": self.scores}, {"layer": self.layers, "head": None}, {"score": "0 to 1"})

    def view(self) -> tuple[Piece, ...]:
        names = [f"L{i}" for i in self.layers], [f"H{i}" for i in range(self.scores.shape[1])]
        return (Grid(self.scores, *names, "layers", "heads", "score"),)


class _Fields(NamedTuple):
    a: int
    b: Tensor


class Pair(Displayed, _Fields):
    __slots__ = ()


class Elements(HTMLParser):
    """The elements of some HTML, and its text."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += "" if self.open and self.open[-1] == "style" else data


def a_result() -> Scores:
    return Scores(torch.arange(6.0).reshape(2, 3).bfloat16() - 2, (2, 5))


def test_a_dataclass_has_one_line_and_names_its_axes() -> None:
    """Without the mixin `dataclass` would print every number."""
    assert repr(a_result()) == "<Scores: scores bfloat16 [layer 2, head 3], layers (2, 5)>"
    assert repr(a_result()) == str(a_result())


def test_a_named_tuple_unpacks_as_before() -> None:
    pair = Pair(1, torch.zeros(3))
    a, b = pair
    assert (a, b.shape) == (1, (3,))
    assert isinstance(pair._replace(a=2), Pair)
    assert isinstance(pickle.loads(pickle.dumps(pair)), Pair)
    assert repr(pair) == "<Pair: a 1, b float32 [3]>"
    assert not hasattr(pair, "__dict__")


def test_pandas_has_every_number_in_its_place() -> None:
    """Compared with a loop over the tensor; no two values are alike, so a wrong order shows."""
    result = a_result()
    frame = result.to_pandas()
    expected = [
        (layer, head, float(result.scores[i, head])) for i, layer in enumerate(result.layers) for head in range(3)
    ]
    assert list(frame.itertuples(index=False, name=None)) == expected
    assert list(frame.columns) == ["layer", "head", "score"]
    assert frame.attrs["meanings"] == {"score": "0 to 1"}
    assert [tuple(row) for row in result.table().rows] == expected
    assert result.table().rows[-1] == expected[-1]
    assert result.table().rows[1:3] == expected[1:3]


def test_pandas_keeps_whole_numbers_whole() -> None:
    """A missing one would make floats of them all."""
    frame = Table(("layer", "name"), [(1, "a"), (None, "b")]).to_pandas()
    assert str(frame["layer"].dtype) == "Int64"
    assert frame["layer"][0] == 1
    assert frame["layer"][1] is pd.NA


def test_saved_results_keep_their_kind_of_file(tmp_path) -> None:
    """Both mixins take part in making a class; one that dropped the other's part would not load."""
    result = a_result()
    back = Scores.load(result.save(tmp_path / "scores"))
    assert torch.equal(back.scores, result.scores)


@pytest.mark.parametrize(
    "piece",
    [
        Table((HOSTILE, "n"), [(HOSTILE, float(i)) for i in range(5000)], {HOSTILE: HOSTILE}, ("n",), HOSTILE, HOSTILE),
        Grid(np.ones((2, 2)), [HOSTILE, "b"], [HOSTILE, "d"], HOSTILE, HOSTILE, HOSTILE, HOSTILE),
        Grid(np.random.default_rng(0).normal(size=(700, 900)), [HOSTILE] * 700, [HOSTILE] * 900, "a", "b", HOSTILE),
        Curve(range(9000), {HOSTILE: list(np.sin(np.arange(9000)))}, HOSTILE, HOSTILE, HOSTILE),
        TokenText([HOSTILE[: 7 + i % 3] for i in range(9000)], list(np.arange(9000.0) - 4500), HOSTILE, [(5, 9)]),
        TokenText([HOSTILE], None, title=HOSTILE),
        Strip([(HOSTILE[:9], (HOSTILE,)) for _ in range(20)], {HOSTILE: HOSTILE}, HOSTILE),
        Words(HOSTILE * 900, HOSTILE),
        Words(HOSTILE * 900, HOSTILE, literal=True),
    ],
    ids=lambda piece: type(piece).__name__,
)
def test_pieces_are_small_and_harmless(piece: Piece) -> None:
    """The largest holds 630,000 numbers. Text that got out of its element would be a tag more."""
    source = piece.html()
    assert len(source.encode()) < A_FEW_KB
    found = Elements(source)
    assert found.open == []
    assert set(found.tags) <= TAGS
    assert HOSTILE[:7] in found.text


def test_a_piece_shows_itself_with_its_style() -> None:
    """A grid as a cell's last expression: its own HTML below one style, and a line in place of all its numbers."""
    grid = Grid(torch.arange(6.0).reshape(2, 3), ["a", "b"], ["x", "y", "z"], "rows", "columns", "number")
    assert (
        re.fullmatch(r'<div class="hl"><style>[^<]*</style>(.*)</div>', grid._repr_html_(), re.DOTALL)[1] == grid.html()
    )
    assert repr(grid) == "<Grid, drawn in a notebook>"


@pytest.mark.parametrize(
    ("tokens", "shown"),
    [
        (["In", "Lima", "\n", "it"], "In Lima ⏎\nit"),
        (["In", " Lima", "\n", "it"], "In Lima⏎\nit"),
        (["\u2581In", "\u2581Li", "ma"], "\u2581In\u2581Lima"),
    ],
)
def test_tokens_stand_apart_where_none_has_a_space(tokens: list[str], shown: str) -> None:
    """Words of a word-level vocabulary would run together; tokens that bring their spaces stay as they are."""
    assert f'<div class="hl-t">{shown}</div>' in TokenText(tokens).html()


def test_the_end_of_an_axis_that_is_all_but_0_is_0() -> None:
    """By the length of the axis: 1e-6 is an end of its own where all values are as small."""
    assert ">0<" in Curve([0, 1], {"": [-1.43e-6, 1.0]}, "x", "y").html()
    assert ">−1.43e−06<" in Curve([0, 1], {"": [-1.43e-6, 0.0]}, "x", "y").html()


def test_a_grid_shows_the_strongest_of_each_block() -> None:
    """One value of a million is not lost where squares stand for several."""
    import base64
    import zlib

    values = np.zeros((480, 960))
    values[123, 456] = -1.0
    source = Grid(values, ["r"] * 480, ["c"] * 960, "rows", "columns", "x").html()
    assert "each square is the strongest of 10 × 10 values" in source
    data = base64.b64decode(re.search(r"base64,([^\"]+)", source)[1])
    pixels = zlib.decompress(data[data.index(b"IDAT") + 4 : data.index(b"IEND") - 8])
    rows = [pixels[i * 97 + 1 : (i + 1) * 97] for i in range(48)]
    assert {(y, x) for y in range(48) for x in range(96) if rows[y][x]} == {(12, 45)}
    assert rows[12][45] == 31, "the last colour of those below 0"


def test_a_long_text_keeps_its_ends_what_is_marked_and_the_strongest() -> None:
    values = [0.0] * 1000
    values[500] = 9.0
    text = Elements(TokenText([f" t{i}" for i in range(1000)], values, marked=[(300, 302)]).html()).text
    for kept in ("t0", "t999", "t300", "t301", "t500"):
        assert kept in text
    assert "t600" not in text
    shown = len(re.findall(r"\bt\d+", text))
    left = sum(int(n.replace(",", "")) for n in re.findall(r"([\d,]+) more", text))
    assert shown + left == 1000


def test_what_is_not_finite_is_no_number() -> None:
    source = Grid([[float("nan"), 2.0]], ["r"], ["a", "b"], "x", "y", "n").html()
    assert "<td></td>" in source
    gap = Curve([0, 1, 2, 3, 4], {"": [1.0, 2.0, float("nan"), 2.0, 1.0]}, "x", "y").html()
    assert gap.count("<polyline") == 2
    assert "there is no number" in Curve([0.0], {"": [float("nan")]}, "x", "y").html()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Table(("a", "a"), []), "columns a, a given, expected no two of one name"),
        (lambda: Table(("a",), [(1, 2)]), "a row of 2 values given under 1 columns"),
        (lambda: Table.of({"x": torch.zeros(2, 3)}, {"layer": None}), r"shape \(2, 3\) given for axes layer"),
        (lambda: Table.of({"x": torch.zeros(2)}, {"layer": [1]}), "1 labels given for axis 'layer' of 2 places"),
        (
            lambda: Table.of({"x": torch.zeros(2), "y": torch.zeros(3)}, {"l": None}),
            "expected one or more of one shape",
        ),
        (lambda: Grid(torch.zeros(2, 2), ["a"], ["b"], "", "", ""), r"shape \(2, 2\) given for 1 rows and 1 columns"),
        (lambda: Curve([1], {"a": []}, "", ""), "line 'a' has 0 values for 1 places"),
        (lambda: TokenText(["a"], []), "0 numbers given for 1 tokens"),
        (lambda: Strip([("a", ("x",))], {}), "a strip of x given, expected up to 6 kinds, each named"),
    ],
)
def test_what_does_not_fit_is_refused(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_a_page_stands_alone() -> None:
    """It may load nothing, so that a link which crept in would fail in the browser."""
    source = a_result().to_html()
    assert "default-src 'none'" in source
    assert "color-scheme:light dark" in source
    assert not re.search(r"(src|href)=\"(?!data:)", source)
    assert Elements(source.split("<body>")[1].split("</body>")[0]).open == []


def test_a_result_plots_the_grid_of_its_view() -> None:
    figure = a_result().plot()
    assert isinstance(figure, Plot)
    assert [list(row) for row in figure.data[0].z] == [[-2.0, -1.0, 0.0], [1.0, 2.0, 3.0]]

    class Limited(Plotted):
        def view(self) -> tuple[Piece, ...]:
            return (Grid([[0.2]], ["r"], ["c"], "x", "y", "n", limit=1),)

    assert (Limited().plot().data[0].zmin, Limited().plot().data[0].zmax) == (0, 1)

    class Wordy(Plotted):
        def view(self) -> tuple[Piece, ...]:
            return (Words("x"),)

    with pytest.raises(InputError, match="a Wordy has no picture; to_pandas"):
        Wordy().plot()


def test_lists_and_dicts_are_what_they_were() -> None:
    several = Several([a_result(), a_result()])
    assert several == list(several)
    assert isinstance(several[:1], Several)
    assert isinstance(several[0], Scores)
    assert repr(several) == "<Several: 2 items: Scores>"
    assert list(several.to_pandas()["layers"]) == ["(2, 5)"] * 2
    named = Named({"a": 1, "b": 2})
    assert named == {"a": 1, "b": 2}
    assert named.to_pandas().to_dict("list") == {"name": ["a", "b"], "value": [1, 2]}
    assert Elements(Several([]).to_html()).text.count("0 items") == 1


def test_numbers_in_words() -> None:
    assert [number(x) for x in (-0.123456, 12, float("nan"), float("-inf"))] == ["−0.1235", "12", "–", "−∞"]
    assert [number(x, 2) for x in (99.4, 99.6, -123.4, 45_678.0, 1e12)] == ["99", "100", "−123", "45678", "1e+12"]
    assert [size(n) for n in (0, 999, 33_149, 999_600, 2_500_000_000)] == [
        "0 B",
        "999 B",
        "33.1 kB",
        "1.0 MB",
        "2.5 GB",
    ]


def test_a_rounded_zero_has_no_sign() -> None:
    """What a table shows of a share just below 0 is 0; what is further below has a minus, not a hyphen."""
    assert [number(x) for x in (-0.0, 0.0, -1e-9)] == ["0", "0", "−1e−09"]
    shares, wholes = ("0.0", "0.0", "−0.1", "97.3"), ("0", "0", "−2", "0.4")
    assert [entries.percent(x) for x in (-0.0, -4e-4, -6e-4, 0.973)] == [f"{said}\u00a0%" for said in shares]
    assert [words.percent(x) for x in (-0.0, -4e-3, -0.02, 0.004)] == [f"{said}\u00a0%" for said in wholes]
    assert entries.signed(-0.04, -1.5, 0.04) == "+0.0 to −1.5 to +0.0"
    assert entries.interval(entries.Value(0.0, -0.0004, 0.02, 9)) == "0.0 to 2.0"


def test_counts_in_words_are_grammatical() -> None:
    assert [many(n, "mix", "mixes") for n in (0, 1, 1200)] == ["0 mixes", "1 mix", "1,200 mixes"]
    assert [every(n, "answer") for n in (1, 12)] == ["The one answer", "All 12 answers"]


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ("eat a pie", "fly a kite", ("eat a pie", "fly a ki…")),
        ("0123456789abcdefX", "0123456789abcdefY", ("…efX", "…efY")),
        ("0123456789abcdefXtail", "0123456789abcdef", ("…efXtail", "…ef")),
        ("0123456789abcdefXlong tail", "0123456789abcdefYlong tail", ("…efXlong…", "…efYlong…")),
        ("0123456789", "0123456789", ("01234567…", "01234567…")),
    ],
)
def test_texts_that_begin_alike_are_shown_where_they_part(one: str, other: str, said: tuple[str, str]) -> None:
    assert parted(one, other, 9) == said
