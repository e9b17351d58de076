"""The engine against one run for each job: `generate` on a batch of one, with nothing shared.

Treatments here silence single heads and, one of them, look at a job's spans; they know nothing of the analyses.
The models are random, so answers wander over the whole vocabulary: a row with another row's edits, a state that is
a token off or a snapshot of another prompt changes them at once.
"""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import pytest
import torch
from bounds import FORWARD, close, tied
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FAMILIES, make

from hybridlens import Edit, HybridLens
from hybridlens.engine import Budget, Job, Sweep, costs_of, distinct_prefixes, in_words, parse_memory
from hybridlens.engine import budget as budget_module
from hybridlens.engine.reading import Reader
from hybridlens.engine.work import reading_of, symbols
from hybridlens.errors import InputError

NEW = 6


@cache
def lens_of(family: str) -> HybridLens:
    return HybridLens(make(family, 3))


class Silent(NamedTuple):
    """Silence one head of every attention layer; with `marked`, only at the positions of the job's spans."""

    head: int
    marked: bool = False
    shared: bool = True


class Silencing:
    """The treatments of these tests."""

    def __init__(self, lens: HybridLens) -> None:
        self.lens = lens

    def edits(self, treatments: Sequence[Hashable], spans: Sequence, phase: str) -> list[Edit]:
        out = []
        for row, (one, where) in enumerate(zip(treatments, spans, strict=True)):
            for layer in self.lens.cfg.attention_layers if one is not None else ():
                if one.marked:
                    out.append(Edit(f"blocks.{layer}.attn.hook_pattern", self.blind(where), phase, [row]))
                else:
                    out.append(Edit(f"blocks.{layer}.attn.hook_z", self.silence(one.head), phase, [row]))
        return out

    def silence(self, head: int):
        def fn(z, hook):
            z[:, :, head] = 0

        return fn

    def blind(self, spans):
        def fn(pattern, hook):
            keys = hook.slots.key_positions
            for start, stop in spans:
                pattern.masked_fill_(((keys >= start) & (keys < stop))[:, None, None], 0.0)

        return fn

    def together(self, treatment: Hashable) -> Hashable:
        return "silent"

    def causal(self, treatment: Hashable) -> bool:
        return treatment.shared

    def places(self, treatment: Hashable) -> bool:
        return treatment.marked


def alone(lens: HybridLens, job: Job, boundary: str) -> tuple[int, ...]:
    """A job's tokens by `generate`, in a batch of one."""
    treating = Silencing(lens)
    reading = treating.edits([job.reading], [job.spans], "prefill")
    edits = reading + treating.edits([job.answering], [job.spans], "decode")
    out = lens.generate([list(job.tokens)], NEW, edits, boundary)
    return tuple(out.tokens[0, : int(out.lengths[0])].tolist())


treatments = st.one_of(st.none(), st.builds(Silent, st.integers(0, 3), st.booleans(), st.booleans()))


@st.composite
def sweeps(draw) -> list[Job]:
    """Prompts that share beginnings, some equal, under random treatments, with random spans."""
    stems = draw(st.lists(st.lists(st.integers(3, 30), min_size=1, max_size=14), min_size=1, max_size=3))
    jobs = []
    for _ in range(draw(st.integers(1, 8))):
        stem = draw(st.sampled_from(stems))
        tokens = tuple(stem[: draw(st.integers(1, len(stem)))] + draw(st.lists(st.integers(3, 30), max_size=9)))
        start = draw(st.integers(0, len(tokens) - 1))
        spans = ((start, draw(st.integers(start + 1, len(tokens)))),)
        jobs.append(Job(tokens, draw(treatments), draw(treatments), spans))
    return jobs


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_every_answer_is_that_of_a_run_alone(family: str, data: st.DataObject) -> None:
    """Random prompts, conditions, boundaries and budgets: what runs together, in blocks, or again, changes nothing."""
    lens = lens_of(family)
    jobs = data.draw(sweeps())
    boundary = data.draw(st.sampled_from(["last_prompt_token", "first_new_token"]))
    longest = max(len(job.tokens) for job in jobs) + NEW
    least = Budget(costs_of(lens.cfg, lens.dtype)).needed(longest)
    memory = data.draw(st.sampled_from([least, 2 * least, 5 * least, 2**31]))
    sweep = Sweep(lens, Silencing(lens), boundary, NEW, memory, data.draw(st.sampled_from([None, 1, 3])))
    answers = {answered.job: answered.answer for batch in sweep.run(jobs) for answered in batch}
    assert sorted(answers) == list(range(len(jobs)))
    for index, job in enumerate(jobs):
        if not tied(answers[index].margin, float(lens([list(job.tokens)]).detach().abs().max())):
            assert answers[index].tokens == alone(lens, job, boundary)


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_beginnings_are_read_once(family: str) -> None:
    """Ten prompts of two stems under three treatments: as many tokens as there are distinct beginnings."""
    lens = lens_of(family)
    stems = [tuple(range(3, 28)), tuple(range(9, 30))]
    jobs = [
        Job((*stem[:n], 4, 5, n), reading, answering)
        for stem in stems
        for n in (5, 9, 14, 20, 21)
        for reading in (None, Silent(0), Silent(2))
        for answering in (None, Silent(1))
    ]
    sweep = Sweep(lens, Silencing(lens), "first_new_token", 2)
    assert sum(len(batch) for batch in sweep.run(jobs)) == len(jobs)
    prompts = {job.tokens for job in jobs}
    assert sweep.tally.prefilled == sweep.tally.distinct == 3 * distinct_prefixes(sorted(prompts))
    assert sweep.tally.prefilled < 0.6 * 3 * sum(map(len, prompts))
    assert sweep.tally.dropped == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_small_budget_drops_snapshots_and_reads_again(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for one snapshot the same answers come out, some tokens are read twice, and passes are short."""
    lens = lens_of(family)
    monkeypatch.setattr(budget_module, "PASS_TOKENS", 8)
    jobs = [Job((*range(3, 3 + n), 40, n), None, Silent(n % 4)) for n in (4, 9, 13, 18, 22, 26)]
    wide = Sweep(lens, Silencing(lens), max_new_tokens=4)
    expected = {a.job: a.answer.tokens for batch in wide.run(jobs) for a in batch}
    least = Budget(costs_of(lens.cfg, lens.dtype)).needed(32)
    tight = Sweep(lens, Silencing(lens), max_new_tokens=4, memory=least, rows=2)
    monkeypatch.setattr(Budget, "waiting", property(lambda self: 1))
    assert {a.job: a.answer.tokens for batch in tight.run(jobs) for a in batch} == expected
    assert tight.tally.dropped > 0
    assert tight.tally.prefilled > tight.tally.distinct == wide.tally.prefilled
    assert tight.tally.passes > wide.tally.passes


def test_treatments_that_mark_share_only_up_to_the_mark() -> None:
    """A token that one job singles out and the other does not is another symbol; without places, it is not."""
    lens = lens_of("jamba")
    treating = Silencing(lens)
    tokens = tuple(range(5, 15))
    one, other = (Job(tokens, Silent(0, marked=True), None, ((start, start + 2),)) for start in (3, 6))
    first, second = (symbols(reading_of(job, "first_new_token", treating)) for job in (one, other))
    assert distinct_prefixes([first, second]) == 10 + 7
    plain = [reading_of(job._replace(reading=Silent(0)), "first_new_token", treating) for job in (one, other)]
    assert plain[0] == plain[1]


def test_treatments_that_are_not_causal_are_read_whole() -> None:
    """One pass for each prompt, from its first token, even where the budget would have it in blocks."""
    lens = lens_of("recurrentgemma")
    jobs = [Job((*range(3, 20), last), Silent(1, shared=False), None) for last in (30, 31)]
    calls: list[tuple[int, ...]] = []
    real = type(lens.network).forward

    def counting(self, tokens, *rest):
        calls.append(tuple(tokens.shape))
        return real(self, tokens, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget_module, "PASS_TOKENS", 4)
        patch.setattr(type(lens.network), "forward", counting)
        sweep = Sweep(lens, Silencing(lens), "first_new_token", 1)
        list(sweep.run(jobs))
    assert calls == [(1, 18), (1, 18)] or calls == [(2, 18)]
    assert sweep.tally.prefilled == sweep.tally.distinct == 36


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_end_make_room(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the tokens ends a text: rows end early or run on, and each still gives what it gives alone."""
    lens = lens_of(family)
    widths: list[int] = []
    real = type(lens.network).forward

    def watching(self, tokens, lengths=None, state=None, last_only=False):
        if not last_only:  # a decode step
            widths.append(tokens.shape[0])
        return real(self, tokens, lengths, state, last_only)

    ends = tuple(range(0, 53, 3))
    monkeypatch.setattr(lens.network, "cfg", replace(lens.network.cfg, eos_token_ids=ends))
    jobs = [Job((*range(3, 3 + n), n), None, None) for n in range(2, 26)]
    sweep = Sweep(lens, Silencing(lens), max_new_tokens=NEW)
    with monkeypatch.context() as patch:
        patch.setattr(type(lens.network), "forward", watching)
        answers = {a.job: a.answer.tokens for batch in sweep.run(jobs) for a in batch}
    for index, job in enumerate(jobs):
        assert answers[index] == alone(lens, job, "last_prompt_token")
    lengths = sorted(map(len, answers.values()))
    assert lengths[0] < lengths[-1]
    assert min(widths) < max(widths)


def test_margins_are_the_smallest_gap_of_the_two_best_logits() -> None:
    """Recomputed step by step from full forward passes over the text so far."""
    lens = lens_of("jamba")
    job = Job(tuple(range(4, 16)), None, None)
    sweep = Sweep(lens, Silencing(lens), "first_new_token", 4)
    answer = next(sweep.run([job]))[0].answer
    gaps, text, largest = [], list(job.tokens), 0.0
    for token in answer.tokens:
        best = lens(torch.tensor([text]))[0, -1].detach().topk(2)
        gaps.append(float(best.values[0] - best.values[1]))
        largest = max(largest, float(best.values.abs().max()))
        assert int(best.indices[0]) == token
        text.append(token)
    close(answer.margin, min(gaps), FORWARD, scale=largest, dtype=torch.float32)


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2**31), ("500 MB", 500 * 2**20), ("1.5gb", 3 * 2**29), ("64k", 2**16), ("4096", 4096)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1GB", "0", "2 gigs", "1B", "GB"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"expected a size such as 2GB or 500MB"):
        parse_memory(text)


def test_a_budget_says_what_a_row_needs_and_that_is_enough() -> None:
    lens = lens_of("jamba")
    sweep = Sweep(lens, Silencing(lens), max_new_tokens=4, memory=100)
    job = Job(tuple(range(3, 20)), None, Silent(0))
    needed = sweep.budget.needed(21)
    with pytest.raises(InputError, match=rf"a single row of 21 tokens needs at least {in_words(needed)}"):
        list(sweep.run([job]))
    enough = Sweep(lens, Silencing(lens), max_new_tokens=4, memory=parse_memory(in_words(needed).replace(" ", "")))
    assert len(next(enough.run([job]))) == 1


def test_bad_work_is_refused_before_anything_runs() -> None:
    lens = lens_of("jamba")
    with pytest.raises(InputError, match="empty prompt"):
        list(Sweep(lens, Silencing(lens)).run([Job((), None, None)]))
    with pytest.raises(InputError, match="rows 0 given, expected at least 1"):
        Sweep(lens, Silencing(lens), rows=0)
    with pytest.raises(InputError, match="max_new_tokens 0 given"):
        Sweep(lens, Silencing(lens), max_new_tokens=0)


def test_a_reader_of_one_token_prompts() -> None:
    """With the last token held back nothing is left to read: the state is that of no token."""
    lens = lens_of("recurrentgemma")
    job, treating = Job((7,), None, None), Silencing(lens)
    (answered,) = next(Sweep(lens, treating, max_new_tokens=3).run([job]))
    assert answered.answer.tokens == alone(lens, job, "last_prompt_token")[:3]
    reader = Reader(lens, treating, Budget(costs_of(lens.cfg, lens.dtype)))
    (read,) = next(reader.read([reading_of(job, "last_prompt_token", treating)]))
    assert read.logits is None
    assert int(read.state.lengths) == 0
