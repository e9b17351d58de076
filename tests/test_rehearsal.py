"""A rehearsal against the sweep itself: the same tokens, passes, snapshots and batches, and states of the same size."""

import pytest
import torch
from models import ROWS, make, tokens
from test_engine import Silencing, Silent

from hybridlens import HybridLens
from hybridlens.engine import Budget, Job, Rehearsal, Sweep, costs_of
from hybridlens.engine.rehearsal import Batch, sized
from hybridlens.weights.fit import meta_model

NEW = 3


class Watched(Sweep):
    """A sweep that writes down its batches."""

    def _say(self, batch):
        self.batches = [*getattr(self, "batches", []), tuple(int(row.state.lengths) for row in batch)]
        said = super()._say(batch)
        self.written = getattr(self, "written", 0) + sum(len(one.tokens) for one in said)
        return said


def weightless(lens: HybridLens) -> HybridLens:
    """The same model without memory for its weights."""
    return HybridLens(meta_model(lens.network.family, lens.hf_model.config, "the model"))


def jobs() -> list[Job]:
    """Prompts with common beginnings, of unequal lengths, under several treatments."""
    trunk, made = tokens(1, 20, 5)[0].tolist(), list[Job]()
    for length in (8, 13, 20):
        for tail in range(1 + (length < 20)):
            prompt = (*trunk[:length], *tokens(1, 2 + tail, tail)[0].tolist())
            for reading, answering in (
                (None, None),
                (None, Silent(1)),
                (Silent(0), Silent(1)),
                (Silent(2, shared=False), None),
            ):
                made.append(Job(prompt, reading, answering))
    return made


@pytest.mark.parametrize(
    ("family", "boundary", "tight"),
    [
        ("recurrentgemma", "last_prompt_token", False),
        ("recurrentgemma", "first_new_token", True),
        ("jamba", "first_new_token", False),
        ("jamba", "last_prompt_token", True),
    ],
)
def test_what_is_read_and_answered_together_is_what_the_sweep_does(family, boundary, tight):
    lens = HybridLens(make(family, 3))
    memory = Budget(costs_of(lens.cfg, lens.dtype), 1).needed(30) if tight else 2**31
    real = Watched(lens, Silencing(lens), boundary, NEW, memory)
    said = [answered for batch in real.run(jobs()) for answered in batch]
    bare = weightless(lens)
    planned = Rehearsal(bare, Silencing(bare), boundary, NEW, memory)
    planned.rehearse(jobs())
    assert planned.tally == real.tally
    assert sum(sum(one.counts) for one in planned.passes) == real.tally.prefilled
    assert sum(one.width * len(one.counts) for one in planned.passes) == real.tally.prefilled + real.tally.padding
    assert [batch.lengths for batch in planned.batches] == real.batches
    assert len(said) == len(jobs())
    assert real.written <= sum(batch.written * len(batch.lengths) for batch in planned.batches)
    assert {batch.steps for batch in planned.batches} == {NEW if boundary == "last_prompt_token" else NEW - 1}


@pytest.mark.parametrize("family", ROWS)
def test_states_have_the_size_that_they_have_in_the_engine(family):
    lens = HybridLens(make(family, 3))
    costs = costs_of(lens.cfg, lens.dtype)
    for length in (1, 4, 12):
        with torch.no_grad():
            state = lens.network(tokens(1, length)).state.split(lens.cfg.window)[0]
        assert sized(lens.cfg, costs, length).nbytes == state.nbytes


def test_rows_that_may_not_share_a_batch_are_batches_of_their_own():
    lens = weightless(HybridLens(make("jamba", 3)))
    planned = Rehearsal(lens, Silencing(lens), max_new_tokens=NEW, rows=2)
    planned.rehearse([Job((4, 5, 6), None, None), Job((4, 5, 7), None, Silent(1)), Job((4, 6, 7), None, Silent(2))])
    assert planned.batches == [Batch((2, 2), NEW, NEW, True), Batch((2,), NEW, NEW, False)]


def test_snapshots_that_do_not_fit_are_dropped_as_the_sweep_drops_them():
    lens = HybridLens(make("jamba", 3))
    memory = 4 * sized(lens.cfg, costs_of(lens.cfg, lens.dtype), 8).nbytes  # one snapshot's worth for snapshots
    real, planned = (kind(lens, Silencing(lens), "first_new_token", NEW, memory) for kind in (Sweep, Rehearsal))
    for sweep in (real, planned):
        sweep.budget = Roomy(sweep.budget.costs, memory)
        for _ in sweep.run(jobs()) if sweep is real else ():
            pass
    planned.rehearse(jobs())
    assert planned.tally == real.tally
    assert real.tally.dropped > 0
    assert real.tally.prefilled > real.tally.distinct


def test_rows_of_all_kinds_together_wait_within_the_budget():
    """Prompts read one by one, whose answers may not share a batch: what is left waiting holds no more than it may."""
    lens, left = weightless(HybridLens(make("jamba", 3))), list[int]()

    class Counted(Rehearsal):
        def _answer(self, waiting, jobs, everything):
            yield from super()._answer(waiting, jobs, everything)
            left.append(sum({id(row.state): row.held for rows in waiting.values() for row in rows}.values()))

    work = [Job((3, *range(4, 4 + 2**n)), None, Silent(1) if n % 2 else None) for n in range(6)]
    planned = Counted(lens, Silencing(lens), "first_new_token", NEW)
    planned.budget = Roomy(planned.budget.costs, 4 * sized(lens.cfg, planned.budget.costs, 33).nbytes)
    planned.rehearse([job._replace(tokens=(40 + n, *job.tokens)) for n, job in enumerate(work)])
    assert len(planned.passes) >= 4
    assert 0 < max(left) <= planned.budget.waiting


class Roomy(Budget):
    """A budget that has room for passes, whatever it leaves for snapshots."""

    working = 2**31

    def check(self, tokens: int) -> None:
        """Nothing is refused."""
