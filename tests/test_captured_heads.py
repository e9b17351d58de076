"""Top-k, choices of heads and manipulations in captured steps: what the plain steps give, alone and in the engine."""

from collections.abc import Sequence
from functools import cache

import pytest
import torch
from models import FAMILIES, make, rounding, tokens

from analyses.heads.answering import Treated
from analyses.heads.manipulation import MODES
from analyses.heads.treatment import Treatment, treat
from hybridlens import HybridLens, at_once, machine
from hybridlens.decoding import Decoded, Decoding, begin, decode
from hybridlens.engine import Answer, Job, Sweep
from hybridlens.hook_functions import capturing
from hybridlens.network import HookedNetwork
from hybridlens.tokens import TokenBatch

LENGTHS = torch.tensor([12, 5, 9, 12, 7, 11])
NEEDLES = [(6, 9), [(1, 3)], (5, 8), (), (2, 4), (8, 12)]
ROWS = [(2, "keep"), (1, "binary"), (4, "omit"), (3, "only"), (0, "keep"), (4, "null")]


@cache
def lens_of(family: str) -> HybridLens:
    return HybridLens(make(family, 3))


def said(lens: HybridLens, treatments: Sequence[Treatment], capture: bool, **how) -> Decoded:
    """Rows of different lengths and treatments; edits are made anew for those that are left."""

    def edits(rows):
        return treat(lens, [treatments[row] for row in rows], [NEEDLES[row] for row in rows], "decode")

    start = begin(lens.network, TokenBatch(tokens(len(treatments), 12), LENGTHS), (), "last_prompt_token")
    return decode(lens.network, start, Decoding(8, edits=edits, ended="leave", capture=capture, **how))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("scope", "semantics"), [("layer", "clean"), ("layer", "published"), ("model", "clean")])
def test_captured_rows_are_the_plain_ones(family: str, scope, semantics, monkeypatch) -> None:
    """Another k and mode in every row, over windows: tokens and margins; the layers' Python runs twice a recording.

    A pass ahead that moved the state on, a ranking kept from the step recorded, or a free slot that counts as a key
    says something else.
    """
    lens = lens_of(family)
    treatments = [Treatment(k, mode, scope, semantics) for k, mode in ROWS]
    plain = said(lens, treatments, False)
    bare = said(lens, [Treatment(4)] * 6, False)
    called, through = list[int](), HookedNetwork.through
    monkeypatch.setattr(HookedNetwork, "through", lambda self, *given: called.append(1) or through(self, *given))
    fixed = said(lens, treatments, True)
    assert fixed.tokens == plain.tokens
    noise = 16 * rounding(lens.hf_model, tokens(1, 12))
    assert float((fixed.margins - plain.margins).abs().max()) <= noise
    assert int(((plain.margins - bare.margins).abs() > 10 * noise).sum()) >= 3
    assert len(called) == (4 if scope == "model" else 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_leave_are_recorded_anew(family: str) -> None:
    """With ends that come at different steps, and a fixed choice of heads in one row."""
    lens = lens_of(family)
    layer = lens.cfg.attention_layers[0]
    treatments = [Treatment(k, mode) for k, mode in ROWS[:5]] + [Treatment(4, "omit", heads=((layer, 0), (layer, 2)))]
    plain, fixed = (said(lens, treatments, capture, ends=tuple(range(0, 53, 4))) for capture in (False, True))
    assert fixed.tokens == plain.tokens
    assert len({len(row) for row in plain.tokens}) > 2


@pytest.mark.parametrize("family", FAMILIES)
def test_the_engine_answers_the_same_captured(family: str) -> None:
    """Several k and every mode over prompts that begin alike, untouched jobs and a reading under top-k among them."""
    lens = lens_of(family)
    row = tokens(1, 14)[0].tolist()
    prompts = [tuple(row), (*row[:9], 7, 11), tuple(row[:6])]
    conditions = [Treatment(k) for k in range(4)] + [Treatment(4, mode) for mode in MODES[1:]] + [None]
    jobs = [Job(ids, None, one, ((2, 5),)) for ids in prompts for one in conditions]
    jobs += [Job(ids, Treatment(k), Treatment(k)) for ids in prompts for k in (1, 3)]
    jobs += [Job(ids, None, Treatment(k, scope="model")) for ids in prompts for k in (1, 3)]

    def answers(capture: bool) -> dict[int, Answer]:
        sweep = Sweep(lens, Treated(lens), max_new_tokens=7, memory=2**30, capture=capture)
        return {one.job: one.answer for batch in sweep.run(jobs) for one in batch}

    plain, fixed = answers(False), answers(True)
    noise = 16 * rounding(lens.hf_model, tokens(1, 12))
    assert set(plain) == set(fixed) == set(range(len(jobs)))
    for job, answer in plain.items():
        assert fixed[job].tokens == answer.tokens
        assert abs(fixed[job].margin - answer.margin) <= noise
    assert len({answer.tokens for answer in plain.values()}) > len(prompts)


def test_a_captured_step_asks_no_device_what_is_free(monkeypatch) -> None:
    """Pieces are of the size that is taken without asking, and as many as there have to be."""
    monkeypatch.setattr(machine, "free", lambda device: pytest.fail("asked"))
    with capturing():
        step = at_once.rows_at_once(4096, 1 << 14, torch.device("meta"), on_cpu=1, each=16)
    assert step == at_once.UNASKED // (1 << 14)
