"""Experiments on models without attention, of attention alone, and with convolutions only beside it.

What makes sense there is run, what does not is left out with a line, or refused with one where it is asked for.
"""

from functools import cache
from pathlib import Path

import pytest
import torch
from models import make
from niah_tokenizers import KINDS
from random_lens import benchmark_lens
from study_cells import cell, grid
from test_verdict import BASE, paper_like
from test_viz import a_record

import hybridlens as hl
from analyses.circuits import circuits
from analyses.circuits.report import article_of as circuits_page
from analyses.circuits.report import circuits_table
from analyses.experiment.options.crossover import CrossoverConfig
from analyses.experiment.options.states import StatesConfig
from analyses.experiment.options.study import NiahConfig, StudyConfig
from analyses.experiment.running import conduct, result_of
from analyses.kv_cache import mixes
from analyses.kv_cache.crossover_results import CrossCell, Crossover
from analyses.kv_cache.experiment import CrossoverRun
from analyses.kv_cache.following import EVERYTHING, named, whole
from analyses.kv_cache.report import article_of, crossover_table, finding
from analyses.states.experiment import StatesRun
from analyses.study.benchmark_section import benchmarks
from analyses.study.benchmarks.results import BenchmarkRow
from analyses.study.evidence import ModelFacts
from analyses.study.experiments import EXPERIMENTS, NOTHING_TO_SILENCE, check_study
from analyses.study.niah import NiahRun
from analyses.study.running import StudyRun
from analyses.study.verdict import CLAIMS, verdicts
from hybridlens import niah
from hybridlens.errors import InputError
from hybridlens.viz.blocks import Chart, HeatTable, Table

SHORT = {"model": "m", "lengths": (120,), "depths": (50,), "max_new_tokens": 2}
BARE = "mamba2"
"""Of recurrences alone."""


@cache
def study() -> StudyRun:
    """All experiments of a model without attention."""
    return StudyRun(benchmark_lens(BARE), StudyConfig(**SHORT, needles=(niah.NEEDLES["oslo"],)), "")


def test_a_study_without_attention_answers_each_prompt_once_and_says_what_it_leaves_out() -> None:
    """Figure 2's two versions are one; nothing about heads is run, drawn or judged."""
    run = study()
    assert {(key.phase, key.k, key.reading, key.scope) for key in run.study.cells} == {
        ("generation", 0, "keep", "layer")
    }
    assert run.study.experiments == ("fig2", "fig3-jrt", "maps", "needles")
    found = result_of(run)
    left = [note for note in found.notes if note.startswith("left out: ")]
    assert left[0] == f"left out: {NOTHING_TO_SILENCE}"
    assert [line.split()[2] for line in left[1:]] == ["table1", "scope", "boundary", "semantics"]
    assert {verdict.reason for verdict in found.verdicts} == {"not asked: no attention"}
    assert list(run.table(found))[-len(left) :] == left
    page = run.page(found, a_record(sessions=[]))
    sections = {section.name: section for section in page.sections}
    assert page.over.startswith("Retrieval and attention in a model without attention")
    assert sections["fig2"].title == "Retrieval"
    for name, rows in (("fig2", 1), ("fig3-jrt", 1)):
        assert not any(isinstance(block, Chart) for block in sections[name].blocks)
        (table,) = (block for block in sections[name].blocks if isinstance(block, Table))
        assert [row[0] for row in table.rows] == ["as it is"] * rows
        assert all("head" not in name for name in table.header)
    (needles,) = (block for block in sections["needles"].blocks if isinstance(block, HeatTable))
    assert needles.columns == ("as it is",)
    assert page.finding[0].startswith("Without any attention layer, m retrieves the needle with ")
    assert page.finding[-1] == "No claim of the paper can be asked of a model without attention."


@pytest.mark.parametrize("name", [name for name, one in EXPERIMENTS.items() if one.without is not None])
def test_what_is_about_attention_alone_is_refused_by_name(name: str) -> None:
    config = StudyConfig(**SHORT, experiments=(name,))
    with pytest.raises(InputError, match=f"^{name} has nothing to ask of a model without attention: no"):
        check_study(config, benchmark_lens(BARE).cfg)


def test_heads_to_keep_are_refused_where_there_are_none() -> None:
    with pytest.raises(InputError, match=r"--heads 1 given, .* has no attention, so that there is nothing to silence"):
        NiahRun.check(NiahConfig(**SHORT, heads=(0, 1)), benchmark_lens(BARE).cfg)


def test_a_needle_run_without_attention_has_no_patterns() -> None:
    run = NiahRun(benchmark_lens(BARE), NiahConfig(**SHORT), "")
    assert {key.phase for key in run.grid} == {"generation"}
    found = result_of(run)
    page = run.page(found, a_record())
    assert [section.name for section in page.sections] == ["fig2", "maps", "near-ties", "costs"]
    assert any(note.startswith("No attention: nothing to silence") for note in page.notes)
    assert list(run.table(found))[-1] == NOTHING_TO_SILENCE


def test_benchmarks_without_attention_are_scores_alone() -> None:
    rows = [BenchmarkRow("tiny_facts", 0, "acc", 0.5, 0.1, 4, True, None)]
    section = benchmarks(rows, "m", 0)
    assert not any(isinstance(block, Chart) for block in section.blocks)
    (table,) = (block for block in section.blocks if isinstance(block, Table))
    assert table.header == ("task", "as it is")


def test_claims_about_what_is_left_beside_attention_need_a_state_there() -> None:
    """The same cells: judged of a hybrid, not asked of what could hold nothing without attention."""
    hybrid, alone = (
        {one.id: one for one in verdicts(paper_like(), (), ModelFacts("toy", "f", None, BASE, beside))}
        for beside in (True, False)
    )
    left = [claim.id for claim in CLAIMS if claim.left]
    assert left == ["h1-ablated", "h1-twice-ablated"]
    for name, verdict in alone.items():
        if name in left:
            assert hybrid[name].outcome != "not tested here"
            assert (verdict.outcome, verdict.measured) == ("not tested here", "–")
            assert verdict.reason == "not asked: no state beside attention that could hold a needle"
        else:
            assert verdict == hybrid[name]


def test_no_claim_passes_or_fails_without_attention() -> None:
    """Also where the cells would decide it: a model that tells every needle, and one that tells none."""
    for score in (0, 5):
        cells = [*grid(score, k=0), cell(160, 0, score, k=0, jrt=True)]
        found = verdicts(cells, (), ModelFacts("toy", "f", None, BASE._replace(n_heads=0)))
        assert {(one.outcome, one.reason) for one in found} == {("not tested here", "not asked: no attention")}


@pytest.mark.parametrize(
    ("family", "has", "memories"),
    [
        ("mamba2", "conv A, recurrent A", ["everything", "recurrent states", "convolution inputs"]),
        ("qwen3", "kv A", ["everything"]),
        ("lfm2", "kv A, conv A", ["everything", "keys and values", "convolution inputs"]),
    ],
)
def test_a_crossover_exchanges_the_memories_that_there_are(
    family: str, has: str, memories: list[str], tmp_path: Path
) -> None:
    """Everything exchanged answers as prompt B does; the page has the maps that the model can have, and no others."""
    options = CrossoverConfig(
        model="m", lengths=(120,), depths=(0,), needles=(niah.NEEDLES["oslo"],), max_new_tokens=1, block=60
    )
    run = CrossoverRun(benchmark_lens(family), options, "")
    assert run.mixes[0].name == has
    found = conduct(run, tmp_path / "run").result
    crossed = found.crossover
    assert [memory.words for memory in whole(crossed)] == memories
    (b,) = crossed.answers(named(crossed, EVERYTHING.only))
    pair = run.pairs[0]
    lens = benchmark_lens(family)
    assert b.text == lens.generate([list(pair.b)], max_new_tokens=1).text[0]
    where = "inside" if lens.cfg.attention_layers else "outside"
    kinds = [*(["dropped"] if lens.cfg.attention_layers else []), *(["reset", "replaced"] * bool(lens.cfg.ssm_layers))]
    assert list(found.maps) == [f"{where}-{kind}" for kind in kinds]
    page = article_of(crossed, found.maps, a_record(facts={"window": lens.cfg.window}))
    text = " ".join(page.finding)
    assert ("keys and values" in text) == bool(lens.cfg.attention_layers)
    assert ("recurrent" in text) == bool(lens.cfg.ssm_layers)
    assert len(crossover_table(crossed, "m", None).splitlines()) == 2 + len(memories)


def told(family: str, follows: str) -> Crossover:
    """Twelve pairs of prompts whose answers follow one kind of memory, made by hand."""
    made = mixes(benchmark_lens(family).cfg, by_layer=False)
    seen = 1.0 if benchmark_lens(family).cfg.attention_layers else 0.0
    cells: list[CrossCell] = []
    for mix in made:
        says = "B" if f"{follows} B" in mix.name.split(", ") else "A"
        lean = 5.0 if says == "B" else -5.0
        cells += [CrossCell(mix.name, f"n{i}", 99, 0, seen, says, 0.0, 0.0, 0.0, lean, says) for i in range(12)]
    return Crossover("m", tuple(made), tuple(cells), 1)


@pytest.mark.parametrize(
    ("family", "follows", "words"),
    [
        ("mamba2", "recurrent", "The recurrent states hold the needle, and not the convolutions' inputs: with"),
        ("mamba2", "conv", "The convolutions' inputs hold the needle, and not the recurrent state: with memories"),
        ("lfm2", "kv", "Keys and values hold the needle, and not the convolutions' inputs: with memories exchanged "
         "between two prompts, keys and values decide 100"),
        ("qwen3", "kv", "Keys and values are all that this model remembers by: the model tells its needle in 100"),
    ],
)  # fmt: skip
def test_the_verdict_is_over_the_memories_that_there_are(family: str, follows: str, words: str) -> None:
    said = finding(told(family, follows), {}, None)
    assert said[0].startswith(words)
    assert not any("window" in sentence for sentence in said)


def test_knockouts_are_left_out_where_the_needles_are_answered_alike(tmp_path: Path) -> None:
    """No mixer writes, so that the last token alone tells the next: states are measured, a metric asked for refused."""
    tokenizer = KINDS["word"]()
    model = make(BARE, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    with torch.no_grad():
        for layer in model.backbone.layers:
            layer.mixer.out_proj.weight.zero_()
    lens = hl.HybridLens(model, tokenizer)
    options = {"model": "m", "length": 100, "depths": (50,), "probes": False}
    with pytest.warns(UserWarning, match="^knock-outs are left out: the next token's distributions"):
        found = result_of(StatesRun(lens, StatesConfig(**options), ""))
    assert not found.knockouts
    assert len(found.prompts) == 1
    with pytest.raises(InputError, match="the next token's distributions"):
        result_of(StatesRun(lens, StatesConfig(**options, metric="kl"), ""))


def test_circuits_of_attention_alone_speak_of_no_recurrent_layer() -> None:
    found = circuits(benchmark_lens("qwen3"), sample_size=20)
    page = circuits_page(found, a_record())
    assert "recurrent" not in " ".join([circuits_table(found), *page.origin, *page.finding])
