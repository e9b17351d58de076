"""Pages and figures on narrow screens and on dark ones: rules of the style sheet, and sizes that figures ask for."""

import re

from hybridlens.viz.heads import SIGNED_COLORS, heatmap_width, pair_heatmap
from hybridlens.viz.inks import MAP_COLORS
from hybridlens.viz.layout import COLORS, INK
from hybridlens.viz.positions import position_width
from hybridlens.viz.templating import asset


def test_pages_are_dark_where_the_reader_is_and_show_what_goes_on_beyond_an_edge() -> None:
    """Every colour of a light page has its counterpart, figures' too; what is moved sideways has shadows."""
    css = str(asset("page.css"))
    light, dark = (set(re.findall(r"(--[\w-]+):", block)) for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL))
    assert light == dark
    assert {"--page", "--card", "--ink", "--shade"} <= light
    used = {*COLORS, INK, *(color for _, color in (*MAP_COLORS, *SIGNED_COLORS))}
    assert used <= set(re.findall(r'"(#[0-9a-f]{6})":', str(asset("theme.js"))))
    (edges,) = re.findall(r"\n\.wide, \.paper \{(.*?)\}", css, re.DOTALL)
    assert "overflow-x: auto" in edges
    assert (edges.count(" local"), edges.count(" scroll")) == (2, 2)
    (names,) = re.findall(r"\n  \.numbers th:first-child \{(.*?)\}", css)
    assert "overflow-wrap: break-word" in names, (
        "a row's name is broken inside a word only where no line has room for it"
    )


def test_labels_of_many_columns_keep_apart_on_narrow_screens():
    """A figure of a phone has about 340 pixels: wider ones say so, with room for a label of every column."""
    widths = {n: (heatmap_width(n), position_width(n)) for n in (2, 8, 12, 13, 16, 24, 40, 64)}
    assert widths[2] == widths[8] == (None, None)
    for n in (16, 24, 40, 64):
        numbers, tokens = widths[n]
        assert numbers >= 110 + 16 * n, "two digits of 12 pixels' height are 14 wide"
        assert tokens >= 130 + 15 * n, "upright text of 11 pixels' height takes 15"
    assert heatmap_width(8, label=40) > 340, "long names of rows leave no room for the squares"


def test_a_notebooks_map_is_as_high_as_its_rows_need():
    """Each name has its line of text; two rows do not fill the screen, and a height that was set is kept."""

    def height(rows, **layout):
        names = [f"L{row}" for row in range(rows)]
        figure = pair_heatmap([[0.5]] * rows, names, ["all"], ("layer", ""), "x").update_layout(**layout)
        return int(re.search(r"height:(\d+)px", figure._repr_html_())[1])

    assert [height(2), height(2, height=333), height(90)] == [240, 333, 900]
    assert height(30) >= 30 * 17 + 96
    assert height(30, xaxis={"tickangle": -90}) > height(30)
