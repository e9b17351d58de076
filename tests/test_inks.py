"""Numbers on coloured squares are read: contrast computed over whole scales, on light pages and on dark ones."""

import json
import re

import pytest

from hybridlens.display.markup import ACCENT, CALM, STYLE, WARM
from hybridlens.viz import Plot
from hybridlens.viz.figures import map_figure
from hybridlens.viz.heads import SIGNED_COLORS, head_heatmap
from hybridlens.viz.inks import CODES, DARK, MAP_COLORS, color_at, contrast, ink_on_percent, inks, on_dark, rgb
from hybridlens.viz.positions import position_heatmap
from hybridlens.viz.templating import asset

READ = 4.5
"""Of text, WCAG 2.2 level AA."""

SHOWN = {code: pair for pair, code in CODES.items()}


def test_contrast_is_that_of_the_standard():
    """Black on white has 21, a colour on itself 1; #767676 is the grey that is known for 4.54 on white."""
    assert contrast(rgb("#000000"), rgb("#ffffff")) == pytest.approx(21)
    assert contrast(rgb("#12908c"), rgb("#12908c")) == 1
    assert contrast(rgb("#767676"), rgb("#ffffff")) == pytest.approx(4.54, abs=0.005)


def test_the_pages_exchange_the_same_colours():
    """What Python takes for the colours of dark pages is what the code of the page puts there, and its style sheet."""
    there = dict(re.findall(r'"(#[0-9a-f]{6})": "(#[0-9a-f]{6})"', str(asset("theme.js"))))
    assert DARK.items() <= there.items()
    for (light, dark), code in CODES.items():
        assert there.get(code, code) == dark
        assert max(abs(a - b) for a, b in zip(rgb(code), rgb(light), strict=True)) <= 1
    light, dark = re.findall(r"--low: (\S+); --mid: (\S+); --high: (#\w{6})", str(asset("page.css")))
    assert light == tuple(color for _, color in MAP_COLORS)
    assert dark == tuple(color for _, color in on_dark(MAP_COLORS))


@pytest.mark.parametrize("kind", ["shares", "signed", "positions", "best first"])
def test_every_number_of_a_heatmap_is_read(kind):
    """The whole scale in steps of half a percent, as the figure's own JSON has its colours, of either page."""
    steps = [i / 200 for i in range(201)]
    rows = [[2 * x - 1 if kind in ("signed", "positions") else x] for x in steps]
    if kind == "positions":
        figure = position_heatmap(rows, [f"r{i}" for i in range(201)], ["0 a"], "", "x", 1.0)
    else:
        figure = head_heatmap(rows, list(range(201)), "x", best_first=kind == "best first")
    (trace,) = json.loads(re.search(r'"plotly", (\{.+\}), \d+\);', Plot(figure)._repr_html_())[1])["data"]
    scale = SIGNED_COLORS if kind in ("signed", "positions") else MAP_COLORS
    for x, (text,) in zip(steps, trace["text"], strict=True):
        code, shown = re.fullmatch(r'<span style="color:(#\w{6})">(.+)</span>', text).groups()
        assert float(shown.replace("−", "-")) == pytest.approx(rows[round(200 * x)][0], abs=0.006)
        place = 1 - x if kind == "best first" else x
        for page, used in zip((scale, on_dark(scale)), SHOWN[code], strict=True):
            assert contrast(rgb(used), color_at(page, place)) >= READ


def test_every_share_of_a_table_and_of_a_map_is_read():
    """The table's squares are mixed by the style sheet, the map's by the page's code, between the same colours."""
    for dark, row in enumerate(inks(MAP_COLORS)):
        scale = on_dark(MAP_COLORS) if dark else MAP_COLORS
        for tenth in range(1001):
            under = color_at(scale, tenth / 1000)
            assert contrast(rgb(ink_on_percent(tenth / 10, bool(dark))), under) >= READ
            assert contrast(rgb(row[round(tenth / 10)]), under) >= READ  # the ink of the nearest whole percent


def test_every_square_of_a_notebook_is_read():
    """Squares are the accents mixed with the page; text and page are of JupyterLab, VS Code, Colab, and our pages."""
    themes = {
        "#ffffff": "#3b3b3b", "#fbfaf8": "#1f2426", "#15181a": "#e6e4df", "#111111": "#dedede", "#1f1f1f": "#cccccc",
        "#383838": "#e3e3e3",
    }  # fmt: skip
    (most,) = re.findall(r"calc\(var\(--v\)\*(\d+)%\)", STYLE)
    for page, text in themes.items():
        for accent in (ACCENT, WARM, CALM):
            for tenth in range(11):
                under = color_at(((0.0, page), (1.0, accent)), int(most) / 100 * tenth / 10)
                assert contrast(rgb(text), under) >= READ, (page, accent, tenth)


def test_empty_squares_and_other_colours_are_left_alone():
    figure = map_figure([10, 20], [0], [[None, 100.0]])
    html = Plot(figure)._repr_html_()
    (trace,) = json.loads(re.search(r'"plotly", (\{.+\}), \d+\);', html)[1])["data"]
    assert trace["text"] == [["", '<span style="color:#fffffe">100</span>']]
    own = figure.update_traces(colorscale="Viridis")
    (trace,) = json.loads(re.search(r'"plotly", (\{.+\}), \d+\);', Plot(own)._repr_html_())[1])["data"]
    assert trace["text"] == [["", "100"]]
