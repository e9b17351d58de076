"""Figures about heads hold the numbers that they are given, at their places, and nothing that JSON cannot hold."""

import cmath
import json
import math

import numpy as np
import pytest
from bounds import close, written
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlens.errors import InputError
from hybridlens.viz.circuits import (
    KIND_WORDS,
    Edge,
    Node,
    composition_graph,
    distance_curves,
    eigenvalue_plane,
    strongest,
)
from hybridlens.viz.heads import correlation_matrix, head_heatmap, pair_heatmap, short
from hybridlens.viz.layout import DASHES

NAN, INF = math.nan, math.inf
ANY = st.floats(allow_nan=True, allow_infinity=True, width=32)


def as_page(figure):
    """A figure as a page's code reads it; fails where JSON cannot hold it."""
    return json.loads(json.dumps(figure.to_plotly_json(), allow_nan=False))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.874, ".87"), (-0.051, "−.05"), (1.0, "1"), (-1, "−1"), (0.999, "1"), (0.004, "0"), (-0.004, "0"), (0, "0"),
        (1.25, "1.25"), (-10.4, "−10"), (123.4, "123"), (None, ""), (NAN, ""), (INF, ""),
    ],
)  # fmt: skip
def test_numbers_in_squares(value, text):
    assert short(value) == text


def test_a_small_number_keeps_its_digits():
    """A map whose largest value is 0.0052 would say 0 everywhere with two digits."""
    assert short(0.0052, 4) == ".0052"
    trace = as_page(head_heatmap([[0.0052, 0.0009]], [2], "previous"))["data"][0]
    assert trace["text"] == [[".0052", ".0009"]]


@settings(max_examples=25)
@given(st.lists(st.lists(ANY, min_size=3, max_size=3), min_size=2, max_size=2))
def test_head_heatmap_has_each_value_at_its_head(scores):
    """Rows are layers and columns heads; what is not finite is empty; the scale holds every value."""
    trace = as_page(head_heatmap(scores, [2, 5], "a score"))["data"][0]
    assert (trace["y"], trace["x"]) == (["L2", "L5"], ["H0", "H1", "H2"])
    for row, values in zip(trace["z"], scores, strict=True):
        for drawn, value in zip(row, values, strict=True):
            assert drawn is None if not math.isfinite(value) else drawn == pytest.approx(value, rel=5.01e-4)
    known = [value for row in trace["z"] for value in row if value is not None]
    assert trace["zmin"] < trace["zmax"]
    assert all(trace["zmin"] <= value <= trace["zmax"] for value in known)
    if any(value < 0 for value in known):
        assert trace["zmin"] == -trace["zmax"], "else the colour of nothing would not stand at 0"


def test_the_scale_is_as_told():
    """Signed maps that share a scale compare; a map of shares begins at 0 though no value is there."""
    for low, high, ends in [(-1, 1, (-1, 1)), (0, 1, (0, 1)), (None, None, (0, 0.5)), (0, None, (0, 0.5))]:
        trace = head_heatmap([[0.2, 0.5]], [0], "x", low, high).data[0]
        assert (trace.zmin, trace.zmax) == ends
    signed, shares = (head_heatmap([[0.2]], [0], "x", low, 1).data[0].colorscale for low in (-1, 0))
    assert len(signed) == 5
    assert len(shares) == 3
    assert signed[2][1] == shares[0][1], "0 has one colour in both"


def test_wide_maps_have_no_numbers_in_squares():
    assert head_heatmap([[0.5] * 16], [0], "x").data[0].texttemplate == "%{text}"
    assert head_heatmap([[0.5] * 17], [0], "x").data[0].texttemplate is None


def test_pairs_stand_with_both_names():
    """Writers down and readers across: a transposed map has other values, and another shape."""
    rows, columns = ["L0 lag 1", "</script>"], ["L2 H0", "L2 H1", "<b>"]
    values = [[0.1, 0.2, 0.3], [NAN, -0.5, 0.6]]
    figure = as_page(pair_heatmap(values, rows, columns, ("writer", "reader"), "K"))
    trace, layout = figure["data"][0], figure["layout"]
    assert (trace["y"], trace["x"], trace["z"]) == (rows, columns, [[0.1, 0.2, 0.3], [None, -0.5, 0.6]])
    assert (layout["yaxis"]["title"]["text"], layout["xaxis"]["title"]["text"]) == ("writer", "reader")
    assert layout["yaxis"]["autorange"] == "reversed", "the first writer stands on top"
    names = [f"w{i}" for i in range(300)]
    thin = as_page(pair_heatmap([[0.0]] * 300, names, ["r"], ("writer", "reader"), "K"))
    assert 20 <= len(thin["layout"]["yaxis"]["tickvals"]) <= 50
    assert thin["data"][0]["y"] == names
    square = as_page(correlation_matrix([[1, -0.5], [-0.5, 1]], ["a", "b"]))["data"][0]
    assert (square["x"], square["y"], square["z"]) == (["a", "b"], ["a", "b"], [[1, -0.5], [-0.5, 1]])
    assert (square["zmin"], square["zmax"]) == (-1, 1)


@pytest.mark.parametrize("values", [[[1.0, 2.0]], [[1.0, 2.0], [1.0]], [[1.0], [1.0]], []])
def test_values_that_do_not_fit_their_names_are_refused(values):
    with pytest.raises(InputError, match="the names need 2 rows of 2"):
        pair_heatmap(values, ["a", "b"], ["c", "d"], ("", ""), "x")


def test_eigenvalues_stand_in_the_plane():
    """Real parts across and imaginary parts up, on one scale; what is not finite is left out."""
    groups = {"L2 H0": [3 + 4j, 3 - 4j, complex(NAN, 1), complex(INF, 0)], "</script>": [-2.0]}
    figure = as_page(eigenvalue_plane(groups, "logits"))
    first, second = figure["data"]
    assert (first["x"], first["y"], first["name"]) == ([3, 3], [4, -4], "L2 H0")
    assert (second["x"], second["y"], second["name"]) == ([-2], [0], "</script>")
    assert first["marker"]["symbol"] != second["marker"]["symbol"]
    axes = figure["layout"]["xaxis"], figure["layout"]["yaxis"]
    assert axes[1]["scaleanchor"] == "x"
    assert axes[0]["range"] == axes[1]["range"]
    assert axes[0]["range"][1] > 5
    assert "logits" in axes[0]["title"]["text"]


@settings(max_examples=25)
@given(st.floats(-math.pi, math.pi), st.integers(-6, 6), st.integers(1, 6))
def test_magnitudes_by_logarithm(angle, exponent, decades):
    """Each power of ten is one step further out, angles stay, and what is too small lies in the centre.

    Points are worked out with logarithms and angles apart, circles from the powers that label them.
    """
    sizes = [10.0 ** (exponent - step) for step in range(decades + 2)]
    figure = as_page(eigenvalue_plane({"h": [cmath.rect(size, angle) for size in sizes]}, decades=decades))
    trace, layout = figure["data"][0], figure["layout"]
    radii = [max(0, decades - step) for step in range(decades + 2)]
    drawn = 5.01e-4 * max(radii)  # four digits
    close(trace["x"], [r * math.cos(angle) for r in radii], extra=drawn)
    close(trace["y"], [r * math.sin(angle) for r in radii], extra=drawn)
    circles = {shape["x1"]: note["text"] for shape, note in zip(layout["shapes"], layout["annotations"], strict=True)}
    for step in range(decades):
        assert circles[decades - step] == f"10<sup>{exponent - step}</sup>".replace("-", "−")


def test_no_eigenvalue_at_all():
    for values in ([], [0j], [complex(NAN)]):
        as_page(eigenvalue_plane({"h": values}))
        as_page(eigenvalue_plane({"h": values}, decades=3))


def test_distances_stand_on_a_logarithmic_axis():
    """Ticks name distances, at the places where the curves have them; 0 is among them."""
    distances = [0, 1, 4, 100]
    curves = {"L2 H0": [0.1, 0.5, NAN, 0.2], "L5 H1": [0.4, 0.3, 0.2, 0.1]}
    figure = as_page(distance_curves(curves, distances, "matching", (0.25, "even"), (-1, 1)))
    first, second, even = figure["data"]
    assert (first["x"], first["y"]) == ([1, 2, 5, 101], [0.1, 0.5, None, 0.2])
    assert first["customdata"] == distances
    assert second["line"]["dash"] != first["line"]["dash"]
    assert (even["y"], even["name"], even["line"]["dash"]) == ([0.25, 0.25], "even", "dot")
    axis = figure["layout"]["xaxis"]
    assert axis["type"] == "log"
    ticks = dict(zip(axis["ticktext"], axis["tickvals"], strict=True))
    assert all(ticks[str(distance)] == distance + 1 for distance in distances)
    assert len(set(ticks)) == len(axis["ticktext"])
    low, high = axis["range"]
    assert 10**low <= 1
    assert 10**high >= 101
    assert figure["layout"]["yaxis"]["range"] == [-1, 1]


def test_too_many_heads_for_the_colours_are_refused():
    many = {f"h{i}": [0.5] for i in range(7)}
    with pytest.raises(InputError, match="7 heads to draw given, expected at most 6"):
        eigenvalue_plane(many)
    with pytest.raises(InputError, match="7 heads to draw given, expected at most 6"):
        distance_curves(many, [0], "x")
    with pytest.raises(InputError, match="0 decades given"):
        eigenvalue_plane({"h": [1.0]}, decades=0)


NODES = [
    *(Node(f"L{layer} lag {lag}", layer, f"lag {lag}", True) for layer in (0, 3) for lag in range(3)),
    *(Node(f"L{layer} H{head}", layer, f"H{head}", False) for layer in (2, 5) for head in range(4)),
]


def lines_of(figure):
    """The lines drawn, from what is said under the pointer."""
    return [trace for trace in figure["data"] if trace["mode"] == "lines" and trace.get("customdata")]


def test_the_graph_draws_the_strongest():
    """Of 40 edges the five with the most excess, none without; the thickest is the strongest."""
    draw = np.random.default_rng(0)
    edges = [
        Edge(f"L0 lag {lag}", f"L{layer} H{head}", kind, float(excess))
        for (lag, layer, head, kind), excess in zip(
            [(a, b, c, k) for a in range(2) for b in (2, 5) for c in range(4) for k in KIND_WORDS],
            draw.normal(size=48) / 10,
            strict=True,
        )
    ]
    figure = as_page(composition_graph(NODES, edges, most=5))
    expected = sorted((e for e in edges if e.excess > 0), key=lambda e: e.excess, reverse=True)[:5]
    assert strongest(edges, 5) == expected
    drawn = lines_of(figure)
    said = {(*line["customdata"][0][:2], line["legendgroup"]): line for line in drawn}
    assert set(said) == {(e.writer, e.reader, e.kind) for e in expected}
    widths = [said[e.writer, e.reader, e.kind]["line"]["width"] for e in expected]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > widths[-1]
    for edge in expected:
        written(said[edge.writer, edge.reader, edge.kind]["customdata"][0][2], edge.excess)
    assert len(lines_of(as_page(composition_graph(NODES, edges, most=100)))) == sum(e.excess > 0 for e in edges)


def test_lines_end_at_their_nodes():
    """Each line begins at its writer's dot and ends at its reader's, and columns stand in the order of layers."""
    edges = [Edge("L0 lag 1", "L5 H3", "k", 0.5), Edge("L2 H0", "L5 H0", "v", 0.2), Edge("L3 lag 2", "L5 H1", "q", 0.1)]
    figure = as_page(composition_graph(NODES, edges))
    dots = [trace for trace in figure["data"] if trace["mode"] == "markers+text"]
    places = {
        name: (x, y) for trace in dots for name, x, y in zip(trace["customdata"], trace["x"], trace["y"], strict=True)
    }
    assert set(places) == {node.name for node in NODES}
    assert len(set(places.values())) == len(NODES), "no two nodes in one place"
    for line in lines_of(figure):
        writer, reader, _ = line["customdata"][0]
        close((line["x"][0], line["y"][0]), places[writer])
        close((line["x"][-1], line["y"][-1]), places[reader])
    axis = figure["layout"]["xaxis"]
    columns = dict(zip(axis["tickvals"], axis["ticktext"], strict=True))
    assert list(columns.values()) == ["L0", "L2", "L3", "L5"]
    assert all(columns[round(x)] == name.split()[0] for name, (x, _) in places.items())
    labels = {label for trace in dots for label in trace["text"] if label}
    assert labels == {"lag 1", "lag 2", "H0", "H1", "H3"}
    assert len({trace["marker"]["symbol"] for trace in dots}) == 2


def test_kinds_differ_without_colour():
    edges = [Edge("L0 lag 0", f"L5 H{i}", kind, 0.1) for i, kind in enumerate(KIND_WORDS)]
    drawn = lines_of(as_page(composition_graph(NODES, edges)))
    assert len({line["line"]["dash"] for line in drawn}) == len({line["line"]["color"] for line in drawn}) == 3
    assert len(set(DASHES)) == 6


def test_a_graph_without_lines_or_with_unknown_names():
    assert lines_of(as_page(composition_graph(NODES, [Edge("L0 lag 0", "L5 H0", "q", -1.0)]))) == []
    with pytest.raises(InputError, match="an edge names 'L9 H9', which is no node"):
        composition_graph(NODES, [Edge("L0 lag 0", "L9 H9", "q", 0.1)])
