"""The smallest module that retrieves: its rule on synthetic curves, the fine-tune, and a run that is stopped."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from models import ROWS, make
from random_lens import benchmark_lens

import hybridlens as hl
from analyses.experiment.options.reduce import ReduceConfig
from analyses.experiment.running import Stopped, conduct
from analyses.study.reduced import experiment, tuning
from analyses.study.reduced.experiment import ReduceRun
from analyses.study.reduced.reductions import FewBits
from analyses.study.reduced.results import ReducedModules, sentences
from hybridlens import niah
from hybridlens.errors import InputError
from hybridlens.tiny.tokenizer import build_tokenizer
from tests.stored_results import stored

OPTIONS = ReduceConfig(
    model="random", lengths=(110,), depths=(0, 100), needles=(niah.PAPER_NEEDLE,), rankings=("copying",), counts=(1,),
    widths=(9,), bits=(2,), windows=(999,), keys=(999,), steps=2, tokens=110, save_every=1, max_new_tokens=2,
)  # fmt: skip
"""Widths, windows and keys take nothing away, and so are no modules of their own."""
MODULES = 4
"""All, rounded, none, one head; of these none is not fine-tuned."""


@cache
def tiny_lens() -> hl.HybridLens:
    """A random model with the tiny models' tokenizer."""
    tokenizer = build_tokenizer(400)
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    return hl.HybridLens(
        make("recurrentgemma", 0, **{**ROWS["recurrentgemma"].room, **ids, "num_hidden_layers": 3}), tokenizer
    )


def some_modules(share: float = 0.8) -> ReducedModules:
    """A curve written by hand: one tuned module, one as good as the whole, one that scores without a needle too."""
    scores = torch.zeros(6, 100)
    for row, right in enumerate((100, 96, 60, 99, 100, 93)):
        scores[row, :right] = 1.0
    controls = torch.zeros(6, 20)
    controls[3, :19] = 1.0
    return ReducedModules(
        "m", 100, ("all attention", "4 heads by <b>", "1 head by <b>", "2 bits", "all attention", "2 bits"),
        ("all", "heads", "heads", "bits", "all", "bits"), (False, False, False, False, True, True),
        torch.tensor([64.0, 32.0, 8.0, 4.0, 64.0, 4.0]), torch.tensor([900, 400, 100, 950, 900, 950]),
        scores, controls, share, 5,
    )  # fmt: skip


def test_the_knee_by_its_rule() -> None:
    """96 of 100 keep 80 %, 60 do not; what scores without a needle does not count; by another share others do."""
    found = some_modules()
    assert [found.keeps(i) for i in range(6)] == [True, True, False, False, True, True]
    assert (found.knee("bytes"), found.knee("multiplications")) == (1, 1)
    assert (found.knee("bytes", tuned=True), found.knee("multiplications", tuned=True)) == (5, 4)
    assert found.front("bytes") == [3, 0]
    assert some_modules(0.4).knee("bytes") == 2
    assert some_modules(0.99).knee("bytes") is None
    first, second, tuned = sentences(found)[:3]
    assert first.startswith(
        "Without training the knee by bytes is 4 heads by <b>: 32 bytes a token of context, 2 times"
    )
    assert "the knee by multiplications is 4 heads by <b>: 400 multiplications a token decoded, 2.25 times" in second
    assert tuned.startswith("After 5 steps of fine-tuning the knee by bytes is 2 bits: 4 bytes")
    assert "at least 80 % of what the whole module scores under the same training" in sentences(found)[-1]
    assert "the prompts are too few" in sentences(some_modules(0.99))[0]


def test_the_fine_tune_goes_on_and_leaves_the_model_as_it_was() -> None:
    """One stretch of two steps is two of one, to the last bit; attention's weights alone train, towards less loss."""
    lens, plan = tiny_lens(), tuning.TuningPlan(6, 110, 5e-3, 0, 110)
    before = {name: weight.detach().clone() for name, weight in lens.hf_model.named_parameters()}
    source, edits, begun = tuning.documents(lens, plan), FewBits(2).edits(lens), tuning.begin(lens)
    whole = tuning.tune(lens, edits, plan, source, begun, 2)
    parts = tuning.tune(lens, edits, plan, source, tuning.tune(lens, edits, plan, source, begun, 1), 2)
    plain = tuning.tune(lens, [], plan, source, begun, 2)
    assert whole.losses == parts.losses
    assert set(whole.weights) == {name for name in before if ".temporal_block." in name and "_proj." in name}
    for name, weight in whole.weights.items():
        assert torch.equal(weight, parts.weights[name])
        assert not torch.equal(weight, before[name])
    assert any(not torch.equal(weight, plain.weights[name]) for name, weight in whole.weights.items())
    for name, weight in lens.hf_model.named_parameters():
        assert torch.equal(weight, before[name])
        assert weight.requires_grad
        assert weight.grad is None


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle of the second fine-tune: nothing that was done is done again, and nothing is left out."""
    run, done = ReduceRun(tiny_lens(), OPTIONS, "weights"), list[str]()
    tune, answer = tuning.tune, experiment.answer

    def tuned(*given: Any) -> Any:
        done.append("tune")
        if done.count("tune") == 4 and len(done) < 20:
            raise KeyboardInterrupt
        return tune(*given)

    def answered(*given: Any) -> Any:
        done.append("answer")
        return answer(*given)

    monkeypatch.setattr(tuning, "tune", tuned)
    monkeypatch.setattr(experiment, "answer", answered)
    with pytest.raises(Stopped, match="the same command goes on from there"):
        conduct(run, tmp_path)
    assert (done.count("tune"), done.count("answer")) == (4, MODULES + 1)
    done[:] = ["from here on"] * 30
    outcome = conduct(run, tmp_path)
    assert (done.count("tune"), done.count("answer")) == (2 * (MODULES - 1) - 3, MODULES - 2)
    found = outcome.result
    assert found.names.count("2 bits") == 2
    assert len(found.names) >= 2 * MODULES - 1
    assert (found.scores.shape[1], found.controls.shape[1]) == (2, 1)
    assert ReducedModules.load(tmp_path / "modules.json").names == found.names
    tables = stored(tmp_path)["tables"]  # what texts may state of it
    assert [row[0] for row in tables["modules"]["rows"]] == list(found.names)
    knee = found.knee("bytes", tuned=True)
    assert tables["knees"]["rows"][2][:3] == [True, "bytes", None if knee is None else found.names[knee]]
    state = tuning.Tuned.load(tmp_path / "tuned" / "2-bits-2.safetensors")
    edits, source = FewBits(2).edits(run.lens), tuning.documents(run.lens, run.plan)
    expected = tune(run.lens, edits, run.plan, source, tuning.begin(run.lens), 2)
    assert all(torch.equal(weight, expected.weights[name]) for name, weight in state.weights.items())
    assert not (tmp_path / "tuning").exists() or not list((tmp_path / "tuning").iterdir())
    done[:] = ["from here on"] * 30
    conduct(run, tmp_path)
    assert len(done) == 30, "a finished run makes nothing"


def test_a_ranking_that_orders_no_head_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And said to be, in the result, the table and the report; the others stay."""
    options = OPTIONS.but(steps=0, rankings=("matching", "copying"))
    made = experiment.make_rankings

    def equal(*given: Any) -> dict[str, Any]:
        return {
            name: replace(one, scores=torch.zeros_like(one.scores)) if name == "copying" else one
            for name, one in made(*given).items()
        }

    monkeypatch.setattr(experiment, "make_rankings", equal)
    run = ReduceRun(tiny_lens(), options, "weights")
    found = conduct(run, tmp_path).result
    by = {name.partition(" by ")[2] for name, kind in zip(found.names, found.kinds, strict=True) if " by " in name}
    assert by == {"matching"}
    note = "copying is left out: every head scores 0, which orders none before another."
    assert note in found.notes
    assert note in list(run.table(found))
    assert "copying is left out" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_refusals() -> None:
    with pytest.raises(InputError, match="the tiny models' documents, which need their tokenizer"):
        ReduceRun(benchmark_lens("jamba"), OPTIONS, "weights")
    with pytest.raises(InputError, match=r"--counts 9 given, expected 1\.\.8, the model's heads"):
        ReduceRun(benchmark_lens("jamba"), OPTIONS.but(steps=0, counts=(9,)), "weights")
    for wrong, said in (
        ({"bits": "9"}, "--bits holds 9, expected whole numbers from 1 to 8"),
        ({"widths": "0,2"}, "--widths holds 0, expected whole numbers from 1"),
        ({"keys": "2,2"}, "--keys holds 2 more than once"),
    ):
        with pytest.raises(InputError, match=said):
            ReduceConfig(model="random", **wrong)
