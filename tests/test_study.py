"""A study from outside and as functions: cells equal independent runs, folders grow, bad input stops early."""

import json
from pathlib import Path

import pandas as pd
import pytest
from bounds import close, tied
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FAMILIES
from random_lens import benchmark_lens, save_checkpoint

import hybridlens as hl
from analyses import study
from analyses.cli import main
from analyses.heads.answering import answer_cells
from analyses.heads.manipulation import manipulate
from analyses.heads.sparsification import top_k
from analyses.study import StudyConfig
from analyses.study.experiments import plan, rubrics_of
from analyses.study.running import cost_words
from hybridlens import niah
from hybridlens.engine import Tally
from hybridlens.results import CellKey, read_run

SHORT = {"lengths": (110, 131), "depths": (0, 100), "max_new_tokens": 5}
TYPED = ["--lengths", "110,131", "--depths", "0,100"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random RecurrentGemma with its tokenizer, as a folder."""
    return save_checkpoint(tmp_path_factory.mktemp("models") / "random-recurrentgemma")


def alone(lens: hl.HybridLens, key: CellKey, prompt: niah.Prompt, new: int) -> str:
    """One cell by the lens' own generate: a batch of one, whole prompt, edits made here from the key."""
    phase = "both" if key.phase == "prefill" else "decode"
    edits = top_k(lens, key.k, phase, key.scope, key.semantics)
    edits += manipulate(lens, key.reading, prompt.needle_spans, "prefill", key.semantics)
    edits += manipulate(lens, key.answering, prompt.needle_spans, "decode", key.semantics)
    return lens.generate([list(prompt.tokens)], new, edits, key.boundary).text[0]


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=6)
@given(data=st.data())
def test_every_cell_of_every_experiment_is_an_independent_run(family: str, data: st.DataObject) -> None:
    """Random cells of a whole study, whatever runs beside them and in whatever memory, but for near ties."""
    lens = benchmark_lens(family)
    config = StudyConfig(model="random", needles=(niah.NEEDLES["lisbon"],), **SHORT)
    cells = plan(lens, config).cells
    todo = data.draw(st.lists(st.sampled_from(list(cells)), min_size=1, max_size=14, unique=True))
    tight = (2**22, 3) if data.draw(st.booleans()) else ()
    rubrics = rubrics_of(config, todo)
    found = [cell for batch in answer_cells(lens, cells, todo, rubrics, 5, *tight) for cell in batch]
    assert {cell.key for cell in found} == set(todo)
    assert len(found) == len(todo)
    for cell in found:
        assert cell.margin is not None
        text = alone(lens, cell.key, cells[cell.key], 5)
        largest = float(lens([list(cells[cell.key].tokens)]).detach().abs().max())
        assert cell.text == text or tied(cell.margin, largest)
        needle = config.needle_of(cell.needle, cell.semantics)
        assert cell.score == niah.score(cell.text, needle.rubric)


def test_functions_return_what_the_cells_say() -> None:
    """`study.fig2` against means of `alone` by plain loops; a folder changes nothing."""
    lens = benchmark_lens("jamba")
    options = {**SHORT, "heads": (0, 2), "phases": ("generation",)}
    result = study.fig2(lens, **options)
    assert result.ks == (0, 2, 4)
    prompts = niah.grid(lens.tokenizer, SHORT["lengths"], SHORT["depths"])
    for place, k in enumerate(result.ks):
        texts = [alone(lens, CellKey("x", "generation", k, 0, 0, False), prompt, 5) for prompt in prompts]
        mean = sum(niah.score(text) for text in texts) / len(texts) / 5
        close(float(result.accuracy.mean[0, place]), mean)
        assert int(result.accuracy.n[0, place]) == 4


def test_other_functions_return_their_types(tmp_path: Path) -> None:
    """Each experiment runs by itself, with a folder that another adds to."""
    lens = benchmark_lens("recurrentgemma")
    options = {**SHORT, "heads": (0, 4), "needles": (niah.NEEDLES["lisbon"],), "folder": tmp_path / "study"}
    assert study.table1(lens, **options).accuracy.mean.shape == (5, 4)
    assert study.scopes(lens, **options).accuracy.mean.shape[0] == 2
    assert study.boundaries(lens, **options).accuracy.mean.shape[0] == 2
    assert study.needles(lens, **options).needles == ("lisbon",)
    stored = read_run(tmp_path / "study").cells
    assert {cell.answering for cell in stored} == {"keep", "omit", "only", "binary"}
    assert {cell.scope for cell in stored} == {"layer", "model"}
    assert {cell.needle for cell in stored} == {"paper", "lisbon"}


def test_the_command_writes_a_study_that_grows(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another experiment goes into the same folder; what is there is not run again; the report has both."""
    out = tmp_path / "study"
    command = ["reproduce", "--model", str(checkpoint), *TYPED, "--heads", "0,4", "--out", str(out)]
    assert main([*command[:1], "fig2", *command[1:]]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == f"report: {out / 'report.html'}"
    assert "are not tested here; the report says why" in printed
    first = pd.read_parquet(out / "cells.parquet")
    assert len(first) == 2 * 2 * (4 + 2)
    seconds = first.set_index(["phase", "k", "length", "depth"])["seconds"]
    assert main([*command[:1], "table1", *command[1:]]) == 0
    both = pd.read_parquet(out / "cells.parquet")
    assert len(both) == len(first) + 20 * 6 - 6  # keep by keep is figure 2's untouched model
    plain = both[(both.reading == "keep") & (both.answering == "keep")]
    assert seconds.equals(plain.set_index(["phase", "k", "length", "depth"])["seconds"])
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "complete"
    page = (out / "report.html").read_text()
    assert "Manipulated attention weights" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "experiment 'nonsense' does not exist"),
        (["fig2", "fig2"], "names an experiment twice"),
        (["all", "fig2"], "name it alone"),
        (["fig3-jrt", "--phase", "prefill"], "fig3-jrt has no prefill version"),
        (["fig2", "--semantics", "tidy"], "semantics 'tidy' does not exist"),
        (["fig2", "--heads", "0,0"], "holds 0 more than once"),
        (["fig2", "--heads", "9"], "expected 0..4"),
        (["fig2", "--memory", "1KB"], "needs at least"),
        (["fig2", "--memory", "lots"], "expected a size such as 2GB"),
        (["needles", "--needles", "nobody"], "neither a file nor a built-in needle"),
        (["scope", "--semantics", "published"], "scope has no published semantics"),
        (["benchmarks", "--tasks", "tiny_factz"], "tiny_facts"),
        (["fig2", "--device", "abacus"], "abacus"),
    ],
)
def test_bad_input_is_one_line_before_the_model_is_loaded(
    arguments: list[str],
    message: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is written, no weight is read, and the line says what to do."""
    monkeypatch.setattr(hl, "load", None)
    out = tmp_path / "study"
    status = main(["reproduce", *arguments, "--model", str(checkpoint), "--out", str(out)])
    shown = capsys.readouterr().err.splitlines()
    assert status == 2
    assert len(shown) == 1
    assert message in shown[0]
    assert not out.exists()


def test_a_needle_file_with_a_missing_field_names_line_and_field(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.json"
    path.write_text('[\n  {\n    "name": "one",\n    "sentence": "The fox sleeps."\n  }\n]\n')
    assert main(["reproduce", "needles", "--model", str(checkpoint), "--needles", str(path)]) == 2
    shown = capsys.readouterr().err
    assert "line 2" in shown
    assert "question" in shown


def test_published_table_1_is_refused_where_the_authors_code_does_nothing() -> None:
    """On Jamba their code sets attributes that nothing reads."""
    lens = benchmark_lens("jamba")
    with pytest.raises(hl.errors.InputError, match="table1 has no published semantics in jamba models"):
        study.table1(lens, semantics="published", **SHORT)


def test_costs_are_said_in_words() -> None:
    assert cost_words(Tally()) == "Nothing was left to read."
    words = cost_words(Tally(distinct=1000, prefilled=1020, dropped=3))
    assert (
        "1,020 tokens were read, 1.020 times as many as are distinct. For want of memory 3 snapshots were dropped"
        in words
    )


def test_near_ties_are_kept_with_the_cells() -> None:
    """Every cell has a margin, and it is that of the answer."""
    lens = benchmark_lens("jamba")
    cells, _ = study.answers(lens, "fig2", **{**SHORT, "heads": (4,), "phases": ("generation",)})
    for cell in cells:
        assert cell.margin is not None
        assert cell.tokens == 5
        assert cell.margin >= 0
