"""The needle experiment as a whole: cells equal independent runs, and a stopped or damaged run is mended."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from bounds import FORWARD, LOUD, close
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FAMILIES
from random_lens import benchmark_lens

import hybridlens as hl
from analyses.experiment.options.study import NiahConfig
from analyses.experiment.running import Outcome, conduct
from analyses.heads import answering
from analyses.heads.answering import work_of
from analyses.heads.needle_heads import MOST_TOKENS, crop, figure, figure_of, look
from analyses.heads.sparsification import top_k
from analyses.heads.treatment import Treatment
from analyses.study import niah as experiment
from analyses.study.niah import NiahRun, make_grid
from hybridlens import niah
from hybridlens.errors import InputError, ResultsError
from hybridlens.results import Cell, CellKey, read_run

SMALL: dict[str, Any] = {"lengths": (110, 131), "depths": (0, 60, 100), "max_new_tokens": 6}


def go(lens: hl.HybridLens, config: NiahConfig, folder: Path, **more: Any) -> Outcome[list[Cell]]:
    return conduct(NiahRun(lens, config), folder, **more)


def independent(lens: hl.HybridLens, config: NiahConfig, cell: Cell, prompt: niah.Prompt) -> str:
    """One cell's text by the lens' own generate, one row, no sharing."""
    phase = "decode" if cell.phase == "generation" else "both"
    edits = top_k(lens, cell.k, phase, semantics=config.semantics)
    boundary: Any = config.boundary
    return lens.generate([list(prompt.tokens)], config.max_new_tokens, edits, boundary).text[0]


@settings(max_examples=6)
@given(st.data())
def test_every_cell_is_what_it_is_alone(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Random grids, k's, phases, boundaries and batch sizes; every text against an independent run of one row.

    A random model's text changes at once when any row got another's state, prompt or heads.
    """
    lens = benchmark_lens(data.draw(st.sampled_from(FAMILIES)), data.draw(st.integers(0, 2)))
    jrt = data.draw(st.booleans())
    shortest = 200 if jrt else 110
    config = NiahConfig(
        model="random",
        lengths=tuple(data.draw(st.lists(st.integers(shortest, shortest + 30), min_size=1, max_size=2, unique=True))),
        depths=tuple(data.draw(st.lists(st.sampled_from([0, 30, 100]), min_size=1, max_size=2, unique=True))),
        control=data.draw(st.booleans()),
        heads=tuple(data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True))),
        phases=data.draw(st.sampled_from([("generation",), ("prefill",), ("generation", "prefill")])),
        boundary=data.draw(st.sampled_from(["last_prompt_token", "first_new_token"])),
        batch_size=data.draw(st.sampled_from([None, 1, 2, 5])),
        jrt=jrt,
        max_new_tokens=5,
    )
    result = go(lens, config, tmp_path_factory.mktemp("run"))
    grid = make_grid(lens, config)
    prompts = len(config.lengths or ()) * (len(config.depths) + config.control)
    assert len(result.result) == len(grid) == prompts * len(config.heads or ()) * len(config.phases)
    for cell in result.result:
        assert cell.text == independent(lens, config, cell, grid[cell.key]), cell.key
        assert cell.score == niah.score(cell.text)
        assert (cell.needle_start, cell.needle_end) == (grid[cell.key].needle_span or (None, None))
        assert cell.prompt_hash == grid[cell.key].hash


@pytest.mark.parametrize("family", FAMILIES)
def test_k_matters(family: str, tmp_path: Path) -> None:
    """The test above compares two users of `top_k`; here the texts are shown to differ between k's and phases."""
    lens = benchmark_lens(family)
    cells = go(lens, NiahConfig(model="random", heads=(0, 2, 4), **SMALL), tmp_path).result
    texts = {(c.phase, c.k): [d.text for d in cells if (d.phase, d.k) == (c.phase, c.k)] for c in cells}
    assert texts["generation", 4] == texts["prefill", 4]
    assert texts["generation", 0] != texts["generation", 4]
    assert texts["prefill", 2] != texts["generation", 2]


@pytest.mark.parametrize("family", FAMILIES)
def test_published_semantics_run_ragged_prompts(family: str, tmp_path: Path) -> None:
    """The published builder's prompts differ in length within a batch; each text still is what it is alone."""
    lens = benchmark_lens(family, words="unigram")
    config = NiahConfig(
        model="random", lengths=(260,), depths=(0, 50, 100), heads=(1, 4), semantics="published", max_new_tokens=4
    )
    grid = make_grid(lens, config)
    assert len({len(prompt.tokens) for prompt in grid.values()}) > 1
    result = go(lens, config, tmp_path)
    assert {cell.semantics for cell in result.result} == {"published"}
    for cell in result.result:
        assert cell.text == independent(lens, config, cell, grid[cell.key])


def test_work_shares_the_untouched_model() -> None:
    """k = n_heads of both phases is one piece of work; everything else is its own, of its own treatment."""
    lens = benchmark_lens("jamba")
    config = NiahConfig(model="random", heads=(0, 4), **SMALL)
    grid = make_grid(lens, config)
    work = work_of(list(grid), grid, 4)
    placed = [key for piece in work for key in piece.keys]
    assert len(placed) == len(grid)
    assert set(placed) == set(grid)
    shared = [piece for piece in work if len(piece.keys) == 2]
    assert len(shared) == 8
    for piece in work:
        assert all(grid[key].tokens == piece.job.tokens for key in piece.keys)
        reading, answering = piece.job.reading, piece.job.answering
        if piece in shared:
            assert (reading, answering) == (None, None)
        else:
            assert answering == Treatment(0)
            assert reading == (Treatment(0) if piece.keys[0].phase == "prefill" else None)


def same(cell: Cell) -> Cell:
    """A cell without what may differ between two runs."""
    return replace(cell, seconds=0.0, margin=None)


class Stop(Exception):
    """Stands for whatever ends a run early."""


def stop_after(cells: int) -> Any:
    def progress(done: int, total: int) -> None:
        if done >= cells:
            raise Stop

    return progress


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
def test_a_stopped_run_goes_on(error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the third batch: the two before are kept and not run again, and the end is the same table."""
    lens = benchmark_lens("recurrentgemma")
    config = NiahConfig(model="random", heads=(1, 4), batch_size=4, **SMALL)
    whole = go(lens, config, tmp_path / "whole")
    answered: list[list[CellKey]] = []
    real = answering.answer_cells

    def breaking(*args: Any) -> Any:
        for cells in real(*args):
            answered.append([cell.key for cell in cells])
            if len(answered) == 3:
                raise error
            yield cells

    monkeypatch.setattr(answering, "answer_cells", breaking)
    with pytest.raises(error):
        go(lens, config, tmp_path / "broken")
    kept = [key for batch in answered[:2] for key in batch]
    assert {cell.key for cell in read_run(tmp_path / "broken").cells} == set(kept)
    assert not (tmp_path / "broken" / "report.html").exists()
    result = go(lens, config, tmp_path / "broken")
    again = [key for batch in answered[3:] for key in batch]
    assert not set(again) & set(kept)
    assert [same(cell) for cell in result.result] == [same(cell) for cell in whole.result]
    largest = float(lens([list(range(3, 40))]).detach().abs().max())
    for one, other in zip(result.result, whole.result, strict=True):  # other batches round otherwise
        close(one.margin, other.margin, LOUD, scale=largest, dtype=torch.float32, extra=1e-4)
    assert (tmp_path / "broken" / "report.html").exists()
    assert not result.damaged


def test_damaged_cells_run_again_and_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte of one stored text changed in both files: that cell alone is answered again, and named."""
    lens = benchmark_lens("jamba")
    config = NiahConfig(model="random", heads=(1,), phases=("generation",), **SMALL)
    first = go(lens, config, tmp_path)
    victim = first.result[2]
    lines = (tmp_path / "cells.jsonl").read_bytes().split(b"\n")
    values = {"length": victim.length, "depth": victim.depth, "control": victim.control}
    parts = [json.dumps({name: value}, separators=(",", ":"))[1:-1].encode() for name, value in values.items()]
    (at,) = [i for i, line in enumerate(lines) if all(part in line for part in parts)]
    lines[at] = lines[at].replace(b'"score":0.0', b'"score":5.0')
    (tmp_path / "cells.jsonl").write_bytes(b"\n".join(lines))
    table = pd.read_parquet(tmp_path / "cells.parquet")
    table.loc[2, "score"] = 5.0
    table.to_parquet(tmp_path / "cells.parquet")
    answered: list[CellKey] = []
    real = answering.answer_cells

    def counting(*args: Any) -> Any:
        for cells in real(*args):
            answered.extend(cell.key for cell in cells)
            yield cells

    monkeypatch.setattr(answering, "answer_cells", counting)
    second = go(lens, config, tmp_path)
    assert answered == [victim.key]
    assert any(victim.key.words() in line and "runs again" in line for line in second.damaged)
    assert [same(cell) for cell in second.result] == [same(cell) for cell in first.result]


def test_batch_size_and_device_are_not_arguments(tmp_path: Path) -> None:
    """What changes no cell may change between sessions; what changes cells may not."""
    lens = benchmark_lens("jamba")
    config = NiahConfig(model="random", heads=(4,), **SMALL)
    go(lens, config, tmp_path)
    assert go(lens, config.but(batch_size=1), tmp_path).result
    for change, named in (
        ({"heads": (3,)}, "--heads"),
        ({"lengths": (110, 132)}, "--lengths"),
        ({"depths": (0, 60)}, "--depths"),
        ({"control": False}, "--control"),
        ({"boundary": "first_new_token"}, "--boundary"),
        ({"seed": 1}, "--seed"),
        ({"needle": niah.NEEDLES["oslo"]}, "--needle"),
        ({"haystack": niah.essays(5)}, "--haystack"),
        ({"template": "instruct"}, "--template"),
        ({"phases": ("prefill",)}, "--phase"),
    ):
        with pytest.raises(ResultsError, match=named):
            go(lens, config.but(**change), tmp_path)
    with pytest.raises(ResultsError, match="weights"):
        conduct(NiahRun(lens, config, "0" * 64), tmp_path)


def test_the_folder_holds_what_is_needed(tmp_path: Path) -> None:
    """`cells.parquet` with the columns of the specification, `run.json` with everything to run it again."""
    lens = benchmark_lens("recurrentgemma")
    config = NiahConfig(model="random", heads=(0, 4), command="hybridlens niah --model random", **SMALL)
    seen: list[tuple[int, int]] = []
    result = go(lens, config, tmp_path, progress=lambda done, total: seen.append((done, total)))
    table = pd.read_parquet(tmp_path / "cells.parquet")
    wanted = "model phase k length depth control score text needle_start needle_end seconds prompt_hash"
    assert set(wanted.split()) <= set(table.columns)
    assert len(table) == len(result.result) == 2 * 4 * 2 * 2
    assert int(table["control"].sum()) == 2 * 2 * 2
    assert seen[0] == (0, 32)
    assert seen[-1] == (32, 32)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["status"] == "complete"
    assert record["command"] == "hybridlens niah --model random"
    assert record["arguments"]["heads"] == [0, 4]
    assert record["arguments"]["dtype"] == "float32"
    assert record["facts"]["n_heads"] == 4
    assert len(record["weights_hash"]) == 64
    page = result.report.read_text()
    assert "CircuitsVis" in page
    assert "last 64 tokens only" in page  # the window is shorter than the prompts, which the report says


def test_defaults_fill_the_context() -> None:
    """Ten lengths by ten depths that end where context, tokenizer and answer meet."""
    lens = benchmark_lens("jamba")
    grid = make_grid(lens, NiahConfig(model="random", heads=(4,), phases=("generation",)))
    lengths = sorted({key.length for key in grid})
    assert len(lengths) == 10
    assert lengths[-1] == 400 - 40
    assert len(grid) == 10 * 11


@pytest.mark.parametrize("name", ["tiny-recurrentgemma", "tiny-jamba", "tiny-falcon-h1"])
def test_the_embedded_models_retrieve(name: str, tmp_path: Path) -> None:
    """The paper's needle, never trained on, word by word; without it the same prompts score next to nothing.

    A model that guesses repeats some other sentence: the controls show what that scores.
    """
    lens = hl.load(name)
    config = NiahConfig(model=name, lengths=(150, 240), depths=(0, 44, 100), heads=(0, 8), phases=("generation",))
    cells = go(lens, config, tmp_path).result
    scores = {
        (k, control): [cell.score for cell in cells if cell.k == k and cell.control == control]
        for k in (0, 8)
        for control in (False, True)
    }
    assert sum(scores[8, False]) >= 0.95 * 5 * 6
    assert sum(scores[8, True]) <= 0.2 * 5 * 2
    assert sum(scores[0, False]) < sum(scores[8, False])


# The heads that look at the needle.


@pytest.mark.parametrize("family", FAMILIES)
def test_needle_mass_is_read_from_the_pattern(family: str) -> None:
    """Against the cached pattern of the same run, summed in plain loops over queries and needle keys."""
    lens = benchmark_lens(family)
    prompt, answer = list(range(3, 33)), [40, 41, 42]
    seen = look(lens, prompt, answer, [(4, 9), (12, 14)])
    _, cache = lens.run_with_cache([prompt + answer])
    needle = [*range(4, 9), *range(12, 14)]
    for row, layer in enumerate(lens.cfg.attention_layers):
        pattern, scores = cache["pattern", layer][0], cache["attn_scores", layer]
        # A softmax hands on a quarter of an error of its scores, at the most: p (1 - p) of it.
        size = max(1.0, float(scores[scores.isfinite()].abs().max()) / 4)
        for head in range(4):
            mass = [sum(float(pattern[head, q, k]) for k in needle) for q in (29, 30, 31)]
            close(seen.ranking.score(layer, head), sum(mass) / 3, FORWARD, scale=size, dtype=torch.float32)
        close(seen.patterns[row], pattern[:, seen.shown][:, :, seen.shown], FORWARD, scale=size)
    drawn = figure(seen, "title", n_heads=2)
    assert len(drawn.heads) == 2
    best = seen.ranking.order[0]
    assert drawn.heads[0].startswith(f"L{best[0]} H{best[1]}:")
    assert len(drawn.tokens) == len(seen.shown)
    worst = seen.ranking.order[-1]
    chosen = figure_of(seen, {worst: "worst", best: "best"}, "title", "a word")
    assert chosen.heads == ["worst", "best"]
    for i, (layer, head) in enumerate((worst, best)):
        expected = seen.patterns[lens.cfg.attention_layers.index(layer), head]
        close(torch.as_tensor(chosen.pattern[i]), expected)
    with pytest.raises(InputError, match="layer 77, head 0 is not ranked"):
        figure_of(seen, {(77, 0): "no such"}, "title", "a word")


def test_needle_heads_refuse() -> None:
    lens = benchmark_lens("jamba")
    with pytest.raises(InputError, match=r"needle tokens 4\.\.9 do not lie in a prompt of 6 tokens"):
        look(lens, list(range(6)), [], [(4, 9)])
    with pytest.raises(InputError, match="without a needle"):
        look(lens, list(range(6)), [], [])
    bare = hl.HybridLens(lens.hf_model)
    with pytest.raises(InputError, match="no tokenizer"):
        figure(look(bare, list(range(6)), [], [(1, 3)]), "title")


@given(st.integers(2, 5000), st.integers(0, 60), st.data())
def test_crop_keeps_what_matters(n_prompt: int, n_answer: int, data: st.DataObject) -> None:
    """At most 120 positions, ascending, all real; the needle whole where it fits, the prompt's last token."""
    start = data.draw(st.integers(0, n_prompt - 1))
    end = data.draw(st.integers(start + 1, min(n_prompt, start + 200)))
    shown = crop(n_prompt, n_answer, (start, end))
    assert shown == sorted(set(shown))
    assert len(shown) == min(MOST_TOKENS, n_prompt + min(n_answer, MOST_TOKENS // 3))
    assert 0 in shown
    assert shown[-1] < n_prompt + n_answer
    if end - start < 70:
        assert set(range(start, end)) <= set(shown)
        assert n_prompt - 1 in shown
    if n_answer:
        assert n_prompt in shown


def test_the_figure_shows_a_well_answered_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the cells at the largest k, the best scored one nearest the middle is drawn, never a control."""
    lens = benchmark_lens("jamba")
    config = NiahConfig(model="random", heads=(0, 4), phases=("generation",), **SMALL)
    grid = make_grid(lens, config)
    cells = []
    for key, prompt in grid.items():
        start, end = prompt.needle_span or (None, None)
        score = 5.0 if key.control or key.k == 0 or (key.length, key.depth) == (110, 100) else 1.0
        cells.append(
            Cell(
                **key._asdict(), score=score, text="", needle_start=start, needle_end=end, seconds=0.0,
                prompt_hash=prompt.hash,
            )
        )  # fmt: skip
    figures = experiment.needle_figures(lens, grid, cells)
    assert [drawn.title for drawn in figures] == ["110 tokens, needle at depth 100 %"]
    assert len(figures[0].tokens) <= MOST_TOKENS
