"""The engine on the families with matrix states: what runs together, in blocks or again, is what runs alone.

The treatments are those of the study (`Treatment`): heads kept by entropy, attention to a needle rewritten. Of a model
without attention, untouched jobs alone. References are `generate` on a batch of one.
"""

from collections.abc import Hashable, Sequence

import pytest
import torch
from models import MATRIX, MATRIX_WITH_ATTENTION
from random_lens import small_lens

from analyses.heads.treatment import Treatment, treat
from hybridlens import HybridLens
from hybridlens.engine import Budget, Job, Sweep, costs_of, distinct_prefixes
from hybridlens.errors import InputError
from hybridlens.hooks import Edit, Phase
from hybridlens.state import HybridState

NEW = 5
SPANS = ((2, 5),)
STEMS = (tuple(range(3, 19)), (*range(3, 9), *range(40, 52)))


class Treated:
    """Jobs under the study's treatments."""

    def __init__(self, lens: HybridLens) -> None:
        self.lens = lens

    def edits(self, treatments: Sequence[Hashable], spans: Sequence, phase: Phase) -> Sequence[Edit]:
        if all(one is None for one in treatments):
            return []
        return treat(self.lens, [one or Treatment(self.lens.cfg.n_heads) for one in treatments], spans, phase)

    def together(self, treatment: Hashable) -> Hashable:
        return "treated"

    def causal(self, treatment: Hashable) -> bool:
        return treatment.causal

    def places(self, treatment: Hashable) -> bool:
        return treatment.mode != "keep"


def jobs_of(family: str) -> list[Job]:
    """Prompts that share beginnings, of unlike lengths, under unlike treatments in both phases."""
    none = [(None, None)]
    some = [*none, (Treatment(2), None), (None, Treatment(1)), (Treatment(4, "omit"), Treatment(2, "only"))]
    chosen = some if family in MATRIX_WITH_ATTENTION else none
    prompts = [(*stem[:n], 30, 31 + n) for stem in STEMS for n in (6, 16)]
    return [Job(prompt, reading, answering, SPANS) for prompt in prompts for reading, answering in chosen]


def alone(lens: HybridLens, job: Job, boundary: str) -> tuple[int, ...]:
    """A job's tokens by `generate`, in a batch of one."""
    treating = Treated(lens)
    edits = [*treating.edits([job.reading], [job.spans], "prefill")]
    edits += treating.edits([job.answering], [job.spans], "decode")
    out = lens.generate([list(job.tokens)], NEW, edits, boundary)
    return tuple(out.tokens[0, : int(out.lengths[0])].tolist())


@pytest.mark.parametrize("boundary", ["last_prompt_token", "first_new_token"])
@pytest.mark.parametrize("family", MATRIX)
def test_every_answer_is_that_of_a_run_alone(family, boundary):
    """With all the memory there is, and with the least that does: in blocks, with snapshots dropped and read again."""
    lens = small_lens(family, 3)
    jobs = jobs_of(family)
    least = Budget(costs_of(lens.cfg, lens.dtype)).needed(max(len(job.tokens) for job in jobs) + NEW)
    expected = [alone(lens, job, boundary) for job in jobs]
    assert len(set(expected)) > len(STEMS)  # answers differ, so that one in another's place is seen
    for memory in (2**31, least):
        sweep = Sweep(lens, Treated(lens), boundary, NEW, memory)
        answers = {answered.job: answered.answer for batch in sweep.run(jobs) for answered in batch}
        assert sorted(answers) == list(range(len(jobs)))
        compared = [index for index in range(len(jobs)) if answers[index].margin > 1e-4]
        assert len(compared) > len(jobs) // 2
        for index in compared:
            assert answers[index].tokens == expected[index]
        if memory > least:
            end = -1 if boundary == "last_prompt_token" else None
            apart = {(job.reading, job.tokens[:end]) for job in jobs}
            under = {reading for reading, _ in apart}
            once = sum(distinct_prefixes([tokens for other, tokens in apart if other == one]) for one in under)
            assert (sweep.tally.prefilled, sweep.tally.distinct, sweep.tally.dropped) == (once, once, 0)


@pytest.mark.parametrize("family", MATRIX)
def test_a_state_takes_what_the_budget_says(family):
    """Rows and tokens cost what the tensors of a real state take, positions aside; pure recurrences cost no token."""
    lens = small_lens(family)
    costs = costs_of(lens.cfg, lens.dtype)
    for length in (1, 7, 20):
        with torch.no_grad():
            state = lens.prefill([list(range(3, 3 + length))]).state
        held = {name: t for name, t in state.tensors().items() if name.startswith("layers.")}
        assert sum(t.numel() * t.element_size() for t in held.values()) == costs.state(length)
    assert (not costs.keys) == (family == "mamba2")


def test_a_pure_recurrence_has_no_key_slots():
    """Its state does not grow with the text, and rows of unlike length come together, apart, and go on as alone."""
    lens = small_lens("mamba2")
    rows = [list(range(3, 14)), [9, 4], list(range(20, 27))]
    with torch.no_grad():
        apart = [lens.prefill([row]).state for row in rows]
        together = lens.prefill(rows).state
        assert {state.nbytes for state in apart} == {apart[0].nbytes}
        assert together.key_positions.shape == (3, 0)
        joined = HybridState.cat([*together.split()[:2], apart[2]])
        expected = torch.cat([lens.extend(state, [[5, 6]]).logits for state in apart])
        found = lens.extend(joined.select([2, 0, 1]), [[5, 6]] * 3).logits
        scale = expected.abs().max()
        torch.testing.assert_close(found, expected[[2, 0, 1]], atol=1e-5 * float(scale), rtol=1e-5)


@pytest.mark.parametrize("family", MATRIX)
def test_a_budget_without_room_for_one_row_says_what_is_needed(family):
    """One line, before anything runs."""
    lens = small_lens(family)
    with pytest.raises(InputError, match=r"--memory 100 bytes given, but a single row of 25 tokens needs at least"):
        next(Sweep(lens, Treated(lens), max_new_tokens=NEW, memory=100).run([Job(tuple(range(3, 23)), None, None)]))
