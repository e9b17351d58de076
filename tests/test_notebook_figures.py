"""Figures in notebooks: which of them holds the library that they are drawn with, and what is in their HTML."""

import base64
import json
import re
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from markupsafe import Markup

from hybridlens.errors import HybridLensError
from hybridlens.viz import Plot, attention_heads, embedding, templating
from hybridlens.viz.embedding import Cell, cell, holds
from hybridlens.viz.heads import head_heatmap

CODE = "// the library"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that has shown nothing, and libraries of a few bytes."""
    monkeypatch.setattr(embedding, "_HELD", {})
    for name in ("CIRCUITSVIS", "PLOTLY"):
        small = getattr(embedding, name)._replace(code=lambda name=name: Markup(f"{CODE} {name}"))
        monkeypatch.setattr(embedding, name, small)
        for module in list(sys.modules.values()):
            if getattr(module, name, None) is not None and module.__name__.startswith("hybridlens.viz."):
                monkeypatch.setattr(module, name, small)


def run(n: int, name: str, *deleted: str) -> Cell:
    return Cell(f"run-{n}", name, frozenset(deleted))


def kernel(monkeypatch: pytest.MonkeyPatch, **parent: Any) -> None:
    """Have cells run in a kernel whose frontend says this of them."""
    message = {"header": {"msg_id": "m"}, "metadata": {}, "content": {}, **parent}
    shell = SimpleNamespace(kernel=SimpleNamespace(get_parent=lambda _: message))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))


def test_one_cell_holds_a_library() -> None:
    assert holds("a", run(1, "one"))
    assert not holds("a", run(1, "one")), "a second figure of the same output"
    assert not holds("a", run(2, "two"))
    assert holds("b", run(2, "two")), "another library"


def test_the_cell_that_holds_it_holds_it_again_when_it_runs_again() -> None:
    """Its old output is gone then; another cell's that runs again had none."""
    assert holds("a", run(1, "one"))
    assert not holds("a", run(2, "two"))
    assert not holds("a", run(3, "two"))
    assert holds("a", run(4, "one"))
    assert not holds("a", run(5, "two"))


def test_another_cell_holds_it_when_the_first_was_deleted() -> None:
    assert holds("a", run(1, "one"))
    assert holds("a", run(2, "two", "one"))
    assert not holds("a", run(3, "three", "one"))


def test_outside_a_notebook_every_figure_holds_it() -> None:
    assert holds("a", None)
    assert holds("a", None)


def test_cells_are_told_by_what_the_frontend_says(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel(monkeypatch, metadata={"cellId": "c", "deletedCells": ["d"]}, content={"code": "x"})
    assert cell() == Cell("m", "c", frozenset({"d"}))
    kernel(monkeypatch, content={"code": "x", "allow_stdin": True})
    assert cell() == Cell("m", "x", frozenset()), "a frontend that names no cells"
    kernel(monkeypatch, content={"code": "x", "allow_stdin": False})
    assert cell() == Cell("m", "", frozenset()), "what runs a notebook once"
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    assert cell() is None, "Colab's outputs do not see each other"


def test_cells_that_never_run_again_hold_it_once() -> None:
    """Two cells of the same code among them are two cells."""
    assert holds("a", run(1, ""))
    assert not holds("a", run(2, ""))


def test_a_pattern_is_drawn_from_json_and_text_stays_text() -> None:
    """A hostile token or name that were read as markup would end the script, or add an element."""
    tokens = ["</script>", "<b>"]
    made = attention_heads(tokens, np.eye(2)[None].repeat(2, 0), name='x"><script>', positions=(4, 9))
    source = made._repr_html_()
    assert source.count(CODE) == 1
    assert source.count("<script") == source.count("</script>") == 2
    call = re.search(r'show\((.+?), "circuitsvis", (\{.+\}), null\);', source)
    assert json.loads(call[1]) == 'x"><script>'
    assert json.loads(call[2])["tokens"] == ["</script>", "", "<b>"]
    assert json.loads(call[2])["places"] == [4, None, 9]
    assert json.loads(call[2])["attentionHeadNames"] == ["Head 0", "Head 1"]
    assert 'id="x&#34;&gt;&lt;script&gt;"' in source
    assert repr(made) == "<Attention of 2 heads over 2 tokens.>", "the bundle stood in the text as well"


def test_two_figures_have_places_of_their_own() -> None:
    """With one id, the second would be drawn into the first."""
    made = attention_heads(["a"], np.ones((1, 1, 1)))
    first, second = (re.search(r'id="([^"]+)"', made._repr_html_())[1] for _ in range(2))
    assert first != second


def test_figures_of_a_notebook_share_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel(monkeypatch, content={"allow_stdin": False})
    pattern, figure = attention_heads(["a"], np.ones((1, 1, 1))), head_heatmap([[1.0]], [2], "x")
    shown = [html for _ in range(2) for html in (pattern._repr_html_(), figure._repr_mimebundle_()["text/html"])]
    assert [source.count(CODE) for source in shown] == [1, 1, 0, 0]
    assert f"{CODE} CIRCUITSVIS" in shown[0]
    assert f"{CODE} PLOTLY" in shown[1]
    assert pattern.text.count(CODE) == 1, "its text stands anywhere"
    assert pattern.to_html().count(CODE) == 1


def test_a_plot_is_its_figure_in_html() -> None:
    """Plotly's own way leaves a kind of output that exports drop."""
    figure = Plot(go.Scatter(x=[1, 2], y=[3, 4], name="</script>")).update_layout(height=300)
    assert isinstance(figure, Plot)
    shown = figure._repr_mimebundle_()
    assert set(shown) == {"text/html", "text/plain"}
    assert shown["text/plain"] == "<Plot: 1 trace (scatter)>"
    data = json.loads(re.search(r'"plotly", (\{.+\}), 300\);', shown["text/html"])[1])
    assert data["data"][0]["name"] == "</script>"
    assert go.Figure(data).data[0].y == (3, 4)
    assert getattr(figure, "_ipython_display_", None) is None


def test_colours_are_kept_in_few_digits() -> None:
    """What is told apart by a colour, whatever it came as; places keep all of theirs."""
    values = np.random.default_rng(0).normal(size=(3, 4))
    for given in (values, values.tolist(), [[None, 1.0], [2, 0.125]]):
        shown = Plot(go.Heatmap(z=given, x=[0.123456789, 1, 2, 3]))._repr_html_()
        (trace,) = json.loads(re.search(r'"plotly", (\{.+\}), \d+\);', shown)[1])["data"]
        assert trace["x"][0] == 0.123456789
        z = trace["z"]
        if given is values:
            assert z["dtype"] == "f4"
            z = np.frombuffer(base64.b64decode(z["bdata"]), "<f4").reshape(3, 4)
        else:
            assert max(len(repr(value)) for row in z for value in row) < 12
        np.testing.assert_allclose(np.array(z, dtype=float), np.array(given, dtype=float), rtol=5.1e-5)


def test_a_figure_that_no_build_draws_is_shown_as_plotly_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(go.Figure, "_repr_mimebundle_", lambda self, *_, **__: {"theirs": True})
    assert Plot(go.Pie(values=[1]))._repr_mimebundle_().get("theirs") is None
    assert Plot(go.Scatter3d(x=[1], y=[1], z=[1]))._repr_mimebundle_() == {"theirs": True}


def test_circuitsvis_asks_for_positions_and_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another version, in which that cannot be asked, no pattern is drawn: its axes would count from 0."""
    code = templating.circuitsvis_bundle.__wrapped__()
    asked = re.findall(r"HybridlensPattern\.(\w+)", code.split("(function (WebAssembly)")[1])
    assert sorted(asked) == ["gap", "ink", "labels", "masked", "paper", "paper", "where"]
    label = templating._ASKING[0]
    monkeypatch.setattr(templating, "_ASKING", ((label[0], label[1], 2),))
    with pytest.raises(HybridLensError, match=r"install 'circuitsvis==1\.43\.3'"):
        templating.circuitsvis_bundle.__wrapped__()
