"""Rankings compared: every number from plain loops, runs that go on, refusals, and a head whose place is known."""

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bounds import close
from models import FAMILIES
from random_lens import benchmark_lens

import hybridlens as hl
from analyses.experiment.cluster.status import results_digest
from analyses.experiment.filler import filler_tokens
from analyses.experiment.options.rankings import GENERAL_TASKS, Calibration, RankingsConfig
from analyses.heads.ranking import HeadRanking
from analyses.heads.sparsification import keep_heads, top_k
from analyses.study.rankings import sweep
from analyses.study.rankings.ability import filler_loss, measure
from analyses.study.rankings.calibration import calibration_prompts, counts_of, judging_prompts, prompt_lengths
from analyses.study.rankings.candidates import random_rankings
from analyses.study.rankings.results import (
    RANDOM,
    RUN_TIME,
)
from hybridlens import niah
from hybridlens.errors import InputError, ResultsError, UnknownNameError
from hybridlens.results import read_run

NEW = 4
SMALL = RankingsConfig(
    model="toy", lengths=(110, 131), depths=(0, 100), needles=(niah.PAPER_NEEDLE,), counts=(0, 1, 3, 4, 8), draws=2,
    filler_rows=0, tasks=(), max_new_tokens=NEW, prompts=1,
)  # fmt: skip


@pytest.fixture(scope="module", params=["tiny-recurrentgemma", "tiny-jamba"])
def trained(request: pytest.FixtureRequest) -> hl.HybridLens:
    """The embedded models, which do say needles; 8 heads in each of two attention layers."""
    return hl.load(request.param)


def ranking(scores: torch.Tensor, layers: tuple[int, ...] = (1, 5), lower: bool = False) -> HeadRanking:
    return HeadRanking(scores, layers, "by hand", lower)


def drawn(lens: hl.HybridLens, seed: int) -> HeadRanking:
    layers = lens.cfg.attention_layers
    return ranking(torch.randn(len(layers), 4, generator=torch.Generator().manual_seed(seed)), layers, bool(seed % 2))


def test_scores_are_those_of_independent_runs(trained: hl.HybridLens) -> None:
    """Every number of a comparison's curves, by the lens' own `generate` with `keep_heads`, or `top_k` at run time.

    The trained models say the needle with some choices of heads, parts of it with others, and nothing with no head:
    the scores are shown to differ, so that a wrong ranking, count, prompt or row shows.
    """
    lens, counts = trained, (0, 2, 4, 7, 16)
    layers = lens.cfg.attention_layers
    scores = torch.randn(2, 8, generator=torch.Generator().manual_seed(5))
    sets = {"one": ranking(scores, layers), "two": ranking(scores, layers, lower=True)}
    config = SMALL.but(lengths=(150,), depths=(50,), counts=counts, max_new_tokens=24)
    found = sweep.compare(lens, sets, config)
    assert found.names == (RUN_TIME, "one", "two", RANDOM)
    assert found.counts == counts
    ((prompt,),) = judging_prompts(lens, config).values()
    parts = random_rankings(lens, 2)
    ends = {n: score(lens, prompt, top_k(lens, n // 2, "both")) for n in (0, 16)}

    def curve(one: HeadRanking) -> list[float]:
        return [ends[n] if n in ends else score(lens, prompt, keep_heads(lens, one, n)) for n in counts]

    run_time = [score(lens, prompt, top_k(lens, n // 2, "both")) for n in (2, 4)]
    draws = torch.tensor([curve(one) for one in parts.values()])
    rows = [[ends[0], *run_time, float("nan"), ends[16]], *map(curve, sets.values()), draws.mean(0).tolist()]
    expected = torch.tensor(rows)
    close(found.scores[:, 0], expected, equal_nan=True)
    assert (ends[0], ends[16]) == (0, 1)
    assert len({tuple(row[:3]) for row in [*rows, *draws.tolist()]}) > 2
    close(found.accuracy, expected, equal_nan=True)
    close(found.draw_accuracy, draws)
    widths = torch.tensor([1.0, 2.0, 2.5, 6.0, 4.5]) / 16  # of the trapezoid rule at 0, 2, 4, 7, 16
    close(torch.tensor([v.value for v in found.area[1:]]), (expected[1:] * widths).sum(1))
    close(found.draw_area, (draws * widths).sum(1))
    fewer = torch.tensor([1.0, 2.0, 7.0, 6.0]) / 16  # at 0, 2, 4, 16
    close(found.area[0].value, float((expected[0, [0, 1, 2, 4]] * fewer).sum()), dtype=torch.float32)
    against = (expected[1] - expected[0])[[0, 1, 2, 4]]
    close(found.above_reference[1].value, float((against * fewer).sum()), dtype=torch.float32)
    assert found.above_reference[0].value == 0


def score(lens: hl.HybridLens, prompt: niah.Prompt, edits: list[hl.Edit]) -> float:
    """One prompt by itself."""
    return niah.score(lens.generate([list(prompt.tokens)], 24, edits).text[0], niah.PAPER_NEEDLE.rubric) / 5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_that_alone_matters(family: str) -> None:
    """All heads but one write nothing, so that only its place in a ranking can matter; the rubric pays for its word.

    The ranking that holds it first keeps the answer down to one head, and the one that holds it last loses it with
    the first head silenced. Areas are 15/16 and 1/16 of the untouched score, and nothing between.
    """
    lens, (layer, head), needle = one_loud_head(family)
    layers = lens.cfg.attention_layers
    scores = torch.arange(8.0).view(2, 4)
    scores[layers.index(layer), head] = 99.0
    config = SMALL.but(needles=(needle,), counts=None, draws=0, run_time=False, lengths=(131,), depths=(0,))
    sets = {"first": ranking(scores, layers), "last": ranking(scores, layers, lower=True)}
    found = sweep.compare(lens, sets, config)
    full = found.full
    assert full > 0
    close(found.accuracy[0].tolist(), [0.0] + [full] * 8)
    close(found.accuracy[1].tolist(), [0.0] * 8 + [full])
    close(found.area[0].value, full * 15 / 16)
    close(found.area[1].value, full / 16)
    assert (found.heads_needed[0].heads, found.heads_needed[1].heads) == (1, 8)
    close(float(found.spearman[0, 1]), -1)


def one_loud_head(family: str) -> tuple[hl.HybridLens, tuple[int, int], niah.Needle]:
    """A random model in which one head alone writes, that head, and a needle of a word that is said only with it."""
    for seed in range(8):
        lens = benchmark_lens.__wrapped__(family, seed)  # a copy of its own, whose weights may be changed
        layers = lens.cfg.attention_layers
        for place, head in itertools.product(range(2), range(4)):
            mask = torch.zeros(2, 4)
            mask[place, head] = 1
            alone = keep_heads(lens, ranking(mask, layers), 1)
            for word in said(lens, niah.PAPER_NEEDLE, alone):
                sentence = f"The best thing to do in Lima is {word} and then read."
                rubric = (niah.Rule(word, 2.0, "add"), niah.Rule(sentence, 5.0, "set"))
                needle = niah.Needle("loud", sentence, "What is it?", rubric)
                if word in said(lens, needle, alone) and word not in said(lens, needle, top_k(lens, 0, "both")):
                    mute(lens, (layers[place], head))
                    return lens, (layers[place], head), needle
    raise AssertionError("no head of eight random models says a word of its own")


def said(lens: hl.HybridLens, needle: niah.Needle, edits: list[hl.Edit]) -> list[str]:
    (prompt,) = niah.grid(lens.tokenizer, (131,), (0,), needle=needle)
    words = lens.generate([list(prompt.tokens)], NEW, edits).text[0].split()
    return [word for word in words if word.isalpha()]


def mute(lens: hl.HybridLens, loud: tuple[int, int]) -> None:
    """Let the output projections take nothing from any head but one."""
    size = lens.cfg.d_head
    with torch.no_grad():
        for name, weight in lens.hf_model.named_parameters():
            if name.endswith("o_proj.weight"):
                keep = torch.zeros(weight.shape[1])
                if int(name.split("layers.")[1].split(".")[0]) == loud[0]:
                    keep[loud[1] * size : (loud[1] + 1) * size] = 1
                weight.mul_(keep)


def test_counts() -> None:
    """All of a small model's; the coarser ladder of a large one says so."""
    lens = benchmark_lens("jamba")
    assert counts_of(lens.cfg, SMALL.but(counts=None)) == (tuple(range(9)), None)
    assert counts_of(lens.cfg, SMALL.but(counts=(2,), scope="layer")) == ((0, 2, 4), None)
    with pytest.raises(InputError, match=r"--counts 9 given, expected 0\.\.8, the heads of the model"):
        counts_of(lens.cfg, SMALL.but(counts=(9,)))
    large = benchmark_lens("jamba", num_hidden_layers=34)  # 9 attention layers
    counts, note = counts_of(large.cfg, SMALL.but(counts=None))
    assert counts == (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 36)
    assert note is not None
    assert note.startswith("Of the 36 heads of the model, so many were kept in turn: 0, 1, 2, 3, 4, 6, 8, 12, 16, 24, ")


def test_calibration_prompts_share_nothing_with_the_test(trained: hl.HybridLens) -> None:
    """No needle, no question and no sentence of the filler in common; lengths that fit both."""
    config = RankingsConfig(model="toy")
    judged = [prompt for made in judging_prompts(trained, config).values() for prompt in made]
    made = calibration_prompts(trained, config)
    assert (len(judged), len(made)) == (3 * 2 * 5, 4 * 2 * 3)
    for mine, others in ((config.hidden, made), (config.learned, judged)):
        for needle, prompt in itertools.product(mine, others):
            assert needle.sentence not in prompt.text
            assert needle.question not in prompt.text
    filler = [{s for p in some for s in niah.Haystack("", p.text).sentences[1:-1]} for some in (made, judged)]
    assert min(map(len, filler)) > 10
    assert not filler[0] & filler[1]
    shorter, longer = prompt_lengths(trained, config)
    assert 150 <= shorter < longer


def test_a_run_that_was_stopped_goes_on(tmp_path: Path) -> None:
    """Stopped after the first portion; then nothing is answered twice, another ranking joins, and a changed one not."""
    lens = benchmark_lens("jamba")
    sets = {"one": drawn(lens, 0), "two": drawn(lens, 1)}
    config = SMALL.but(counts=(0, 3, 8), batch_size=2, draws=0, lengths=(110,), filler_rows=1, filler_length=24)
    whole = sweep.compare(lens, sets, config)
    seen: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if (folder / "cells.jsonl").exists() and (folder / "cells.jsonl").stat().st_size:
            raise KeyboardInterrupt

    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        sweep.compare(lens, sets, config, folder, "w", stop)
    kept = len(read_run(folder).cells)
    assert 0 < kept < seen[-1][1]
    again: list[tuple[int, int]] = []
    found = sweep.compare(lens, sets, config, folder, "w", lambda *at: again.append(at))
    assert again[0] == (kept, seen[-1][1])
    close(found.scores, whole.scores, equal_nan=True)
    close(found.ability.loss, whole.ability.loss, equal_nan=True)
    stamp = (folder / "ability.json").stat().st_mtime_ns
    repeated = sweep.compare(lens, sets, config, folder, "w")
    assert (folder / "ability.json").stat().st_mtime_ns == stamp
    close(repeated.ability.loss, found.ability.loss, equal_nan=True)
    more = sweep.compare(lens, {**sets, "three": drawn(lens, 2)}, config, folder, "w")
    assert more.names == (RUN_TIME, "one", "two", "three")
    changed = {"one": drawn(lens, 4)}
    with pytest.raises(ResultsError, match=r"holds a run with the ranking one \"\w+\", and this one has \"\w+\""):
        sweep.compare(lens, changed, config, folder, "w")
    rescaled = {"one": ranking(sets["one"].scores * 3, sets["one"].layers, sets["one"].lower_is_better)}
    assert sweep.compare(lens, rescaled, config, folder, "w").names == (RUN_TIME, "one")


def test_without_lm_eval_the_usual_tasks_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison ends all the same and says so; others are refused at once; what was stored with tasks stays."""
    lens = benchmark_lens("jamba")
    sets = {"one": drawn(lens, 0)}
    usual = SMALL.but(counts=(0, 8), draws=0, lengths=(110,), tasks=GENERAL_TASKS, task_counts=(8,), task_limit=2)
    folder = tmp_path / "run"
    with monkeypatch.context() as missing:
        missing.setitem(sys.modules, "lm_eval", None)
        found = sweep.compare(lens, sets, usual, folder, "w")
        with pytest.raises(InputError, match=r"not installed; install hybridlens\[benchmarks\]"):
            sweep.compare(lens, sets, usual.but(tasks=("tiny_facts",)))
    assert found.ability.tasks == {}
    assert sum("need lm-eval, which is not installed" in line for line in found.notes) == 1
    added = sweep.compare(lens, sets, usual, folder, "w")
    assert list(added.ability.tasks) == list(GENERAL_TASKS)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    again = sweep.compare(lens, sets, usual, folder, "w")
    for task, values in added.ability.tasks.items():
        close(again.ability.tasks[task], values, equal_nan=True)
    assert again.notes == added.notes


@pytest.mark.usefixtures("small_bundles")
def test_looks_go_on_until_all_is_told_or_the_budget_is_spent(tmp_path: Path) -> None:
    """Cells of a look are the same with a larger budget, after a stop, and at once; none is taken without need."""
    lens = benchmark_lens("jamba")
    sets = {"one": drawn(lens, 0), "two": drawn(lens, 1)}
    common = niah.PAPER_NEEDLE.sentence
    letter = niah.Needle("letter", common, "What?", (niah.Rule("e", 2.0, "add"), niah.Rule(common, 5.0, "set")))
    how = {"counts": (0, 3, 8), "draws": 0, "lengths": (110,), "run_time": False, "max_new_tokens": 2}
    config = SMALL.but(needles=(letter,), **how)
    more = config.but(prompts=7)  # looks at 2 and 4, and not at 8
    once = sweep.compare(lens, sets, more, tmp_path / "once", "w")
    assert (once.decision.looks[:3], once.decision.prompts, once.decision.open) == ((2, 4, 8), 4, ("one", "two"))
    assert once.full > 0
    first = sweep.compare(lens, sets, config, tmp_path / "later", "w")
    kept = (tmp_path / "later" / "cells.jsonl").read_bytes()
    assert first.decision.prompts == 2
    seen: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done > 14:  # of 12 cells in either look
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep.compare(lens, sets, more.but(batch_size=1), tmp_path / "later", "w", stop)
    assert seen[:2] == [(12, 12), (12, 24)]
    later = sweep.compare(lens, sets, more, tmp_path / "later", "w")
    assert (tmp_path / "later" / "cells.jsonl").read_bytes().startswith(kept)
    assert results_digest(tmp_path / "later") == results_digest(tmp_path / "once")
    close(later.scores, once.scores)
    close(later.scores[:, :2], first.scores)
    assert {cell.needle for cell in read_run(tmp_path / "once").cells} == {"letter", "letter, filler 2"}
    alike = sweep.compare(lens, {"one": sets["one"], "again": sets["one"]}, more)
    assert (alike.scores.shape[1], alike.decision.equal) == (2, ("one", "again"))
    equal = ranking(torch.full_like(sets["one"].scores, 0.25), lens.cfg.attention_layers)
    without = sweep.compare(lens, {"equal": equal, **sets}, more)
    assert (without.names, without.ranked) == (("one", "two"), ("one", "two"))
    assert without.notes == ("equal is left out: every head scores 0.25, which orders none before another.",)
    close(without.scores, once.scores)
    mute = sweep.compare(lens, sets, more.but(needles=(niah.PAPER_NEEDLE,)))
    assert (mute.full, mute.scores.shape[1]) == (0, 2)


def test_losses_are_those_of_every_choice() -> None:
    """Each row and count against `filler_loss` of its own mask; random is the mean of its draws."""
    lens = benchmark_lens("recurrentgemma")
    sets = {"one": drawn(lens, 0)} | random_rankings(lens, 2)
    config = SMALL.but(filler_rows=2, filler_length=20, scope="layer")
    found = measure(lens, sets, (0, 3, 4), config).loss
    tokens = filler_tokens(lens, 20, 2)
    expected = torch.stack(
        [torch.cat([filler_loss(lens, [one.kept(n, "layer")], tokens) for n in (0, 3, 4)]) for one in sets.values()]
    )
    assert found[0].isnan().all()
    close(found[1], expected[0])
    close(found[2], expected[1:].mean(0))
    assert expected.unique().numel() > 3


def test_refusals() -> None:
    lens = benchmark_lens("jamba")
    with pytest.raises(UnknownNameError, match="ranking 'copyng' was not given; close names: copying"):
        sweep.compare(lens, {"copying": drawn(lens, 0)}, SMALL.but(rankings=("copyng",)))
    with pytest.raises(InputError, match="a ranking is named 'random', a name that has another meaning here"):
        sweep.compare(lens, {"random": drawn(lens, 0)}, SMALL)
    with pytest.raises(InputError, match="rank this model's heads"):
        sweep.compare(lens, {"one": drawn(benchmark_lens("recurrentgemma"), 0)}, SMALL)
    layers = lens.cfg.attention_layers
    with pytest.raises(InputError, match="there is no ranking to compare: zeros is left out: every head scores 0, wh"):
        sweep.compare(lens, {"zeros": ranking(torch.zeros(len(layers), 4), layers)}, SMALL.but(run_time=False))
    with pytest.raises(InputError, match="no ranking was given"):
        sweep.compare(lens, {}, SMALL.but(draws=0, run_time=False))
    for change, message in [
        ({"scope": "head"}, "scope 'head' does not exist"),
        ({"phase": "reading"}, "phase 'reading' does not exist"),
        ({"counts": (1, 1)}, "--counts holds 1 more than once"),
        ({"counts": (-1,)}, "--counts -1 given"),
        ({"draws": -1}, "--draws -1 given"),
        ({"depths": ()}, "--depths is empty"),
        ({"needles": ()}, "--needles is empty"),
        ({"precision": 0.0}, "--precision 0.0 given, expected greater than 0"),
        ({"prompts": 0}, "--prompts 0 given, expected greater than or equal to 1"),
        ({"needles": (replace(niah.PAPER_NEEDLE, name="a, filler 2"),)}, "needle 'a, filler 2' given, but ', filler '"),
        ({"calibration": Calibration(seed=0)}, "give two essay seeds"),
        ({"calibration": Calibration(needles=(niah.PAPER_NEEDLE,))}, "needle 'paper' is both tested and calibrated on"),
    ]:
        with pytest.raises((InputError, UnknownNameError), match=message):
            SMALL.but(**change)
