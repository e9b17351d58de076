"""Cells under static rankings: each answer is that of an independent run, and equal choices are answered once."""

import pytest
import torch
from bounds import tied
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FAMILIES
from random_lens import benchmark_lens

import hybridlens as hl
from analyses.heads.answering import answer_cells, treatments, work_of
from analyses.heads.manipulation import manipulate
from analyses.heads.ranking import HeadRanking
from analyses.heads.sparsification import keep_heads, top_k
from analyses.heads.treatment import Treatment
from hybridlens import niah
from hybridlens.engine import Tally
from hybridlens.errors import InputError, UnknownNameError
from hybridlens.results import CellKey

N = 4
"""Heads of a layer; the models have two attention layers."""
NEW = 5
RUBRICS = {("paper", "clean"): niah.PAPER_NEEDLE.rubric}


def random_ranking(lens: hl.HybridLens, seed: int) -> HeadRanking:
    layers = lens.cfg.attention_layers
    scores = torch.randn(len(layers), lens.cfg.n_heads, generator=torch.Generator().manual_seed(seed))
    return HeadRanking(scores, layers, f"drawn with seed {seed}", lower_is_better=bool(seed % 2))


def grid_of(lens: hl.HybridLens, names: list[str], scopes: tuple[str, ...] = ("model",)) -> dict[CellKey, niah.Prompt]:
    """Every ranking at every count in both versions, top-k beside them ("" as a name), at four prompts."""
    prompts = niah.grid(lens.tokenizer, (110, 131), (0, 100))
    return {
        CellKey("m", phase, n, prompt.length, prompt.depth, False, scope=scope, ranking=name): prompt
        for name in names
        for scope in scopes
        for phase in ("generation", "prefill")
        for n in range((2 * N if scope == "model" and name else N) + 1)
        for prompt in prompts
    }


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=3)
@given(data=st.data())
def test_every_cell_is_an_independent_run(family: str, data: st.DataObject) -> None:
    """Random cells of three rankings in either scope and of top-k, with manipulations, whatever the memory.

    The reference is the lens' own `generate` of one row with `keep_heads`, but for near ties. Rankings are random, so
    a cell given another ranking's heads, or another count's, answers otherwise (as the last test shows).
    """
    lens = benchmark_lens(family)
    rankings = {str(seed): random_ranking(lens, seed) for seed in range(3)}
    cells = grid_of(lens, list(rankings), ("model", "layer")) | grid_of(lens, [""], ("layer",))
    chosen = data.draw(st.lists(st.sampled_from(list(cells)), min_size=1, max_size=10, unique=True))
    modes = st.sampled_from(["keep", "keep", "omit", "only", "binary", "null"])
    grid = {key._replace(reading=data.draw(modes), answering=data.draw(modes)): cells[key] for key in chosen}
    tight = (2**22, 3) if data.draw(st.booleans()) else ()
    found = [
        cell
        for batch in answer_cells(lens, grid, list(grid), RUBRICS, NEW, *tight, rankings=rankings)
        for cell in batch
    ]
    assert sorted(cell.key for cell in found) == sorted(grid)
    for cell in found:
        prompt, phase = grid[cell.key], "both" if cell.phase == "prefill" else "decode"
        if cell.ranking:
            edits = keep_heads(lens, rankings[cell.ranking], cell.k, phase, cell.scope)
        else:
            edits = top_k(lens, cell.k, phase, cell.scope)
        edits += manipulate(lens, cell.reading, prompt.needle_spans, "prefill")
        edits += manipulate(lens, cell.answering, prompt.needle_spans, "decode")
        assert cell.margin is not None
        largest = float(lens([list(prompt.tokens)]).detach().abs().max())
        assert cell.text == lens.generate([list(prompt.tokens)], NEW, edits).text[0] or tied(cell.margin, largest)


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_choices_are_answered_once(family: str) -> None:
    """Rankings of one order share every job, all share those of no head and of all heads; others share no more."""
    lens = benchmark_lens(family)
    one = random_ranking(lens, 0)
    doubled = HeadRanking(2 * one.scores + 1, one.layers, "the same order", one.lower_is_better)
    other = random_ranking(lens, 2)
    rankings = {"one": one, "doubled": doubled, "other": other}
    grid = grid_of(lens, [*rankings, ""])
    work = work_of(list(grid), grid, N, rankings)
    sets = {frozenset(r.order[:n]) for r in rankings.values() for n in range(1, 2 * N)}
    versions, prompts = 2, 4
    none, everything = versions * prompts, prompts  # all heads are the untouched model in both versions
    expected = versions * prompts * (len(sets) + N - 1) + none + everything
    assert len(work) == expected
    assert sum(len(piece.keys) for piece in work) == len(grid)
    plain = [piece for piece in work if piece.job.reading is None and piece.job.answering is None]
    assert len(plain) == prompts
    assert {key.k for piece in plain for key in piece.keys} == {N, 2 * N}  # top-k counts the heads of a layer
    tally: list[Tally] = []
    scores: dict[str, list[str]] = {}
    todo = [key for key in grid if key.ranking and key.phase == "prefill"]
    for batch in answer_cells(lens, grid, todo, RUBRICS, NEW, tally=tally.append, rankings=rankings):
        for cell in batch:
            scores.setdefault(cell.ranking, []).append(f"{cell.k} {cell.length} {cell.depth} {cell.text}")
    assert sorted(scores["one"]) == sorted(scores["doubled"])
    assert sorted(scores["one"]) != sorted(scores["other"])


def test_what_a_cell_stands_for() -> None:
    """Written out by hand for a ranking whose best heads are known."""
    scores = torch.tensor([[0.0, 5.0, 1.0, 2.0], [9.0, 3.0, 4.0, 6.0]])
    ranking = HeadRanking(scores, (1, 5), "by hand", lower_is_better=False)
    rankings = {"hand": ranking}
    key = CellKey("m", "prefill", 3, 110, 0, False, scope="model", ranking="hand")
    best = ((1, 1), (5, 0), (5, 3))
    kept = Treatment(4, heads=best)
    assert treatments(key, N, rankings) == (kept, kept)
    assert treatments(key._replace(phase="generation"), N, rankings) == (None, kept)
    assert treatments(key._replace(k=1, scope="layer"), N, rankings)[0] == Treatment(4, heads=((1, 1), (5, 0)))
    assert treatments(key._replace(k=8), N, rankings) == (None, None)
    assert treatments(key._replace(k=0), N, rankings) == (Treatment(0, scope="model"),) * 2
    omitted = treatments(key._replace(answering="omit", phase="generation"), N, rankings)
    assert omitted == (None, Treatment(4, "omit", heads=best))


def test_refusals() -> None:
    lens = benchmark_lens("jamba")
    (prompt,) = niah.grid(lens.tokenizer, (110,), (0,))
    key = CellKey("m", "generation", 3, 110, 0, False, scope="model", ranking="copyng")

    def answer(key: CellKey, **rankings: HeadRanking) -> None:
        list(answer_cells(lens, {key: prompt}, [key], RUBRICS, NEW, rankings=rankings))

    with pytest.raises(UnknownNameError, match=r"ranking 'copyng' was not given; close names: copying; there is 'cop"):
        answer(key, copying=random_ranking(lens, 0))
    with pytest.raises(UnknownNameError, match=r"ranking 'copyng' was not given; there is none"):
        answer(key)
    with pytest.raises(InputError, match=r"the best 9 heads were asked for, expected 0\.\.8"):
        answer(key._replace(k=9), copyng=random_ranking(lens, 0))
    with pytest.raises(InputError, match=r"the ranking has layers \[2, 5\] with 4 heads, but the model has .*\[1, 5\]"):
        answer(key, copyng=random_ranking(benchmark_lens("recurrentgemma"), 0))
