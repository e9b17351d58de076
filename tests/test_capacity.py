"""Recall against the number of facts: the prompts, which fact an answer tells, and what oracles' answers come to."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from niah_tokenizers import KINDS
from random_lens import benchmark_lens
from transformers import AutoTokenizer

import hybridlens as hl
from analyses.experiment.options import capacity as options
from analyses.study.capacity import SILENT, UNTOUCHED, Capacity, CapacityConfig, CapacityRun, capacity
from analyses.study.capacity import experiment as capacity_run
from analyses.study.capacity.forms import FORMS, MOST, NEITHER, draw_facts, strangers, telling, told
from analyses.study.capacity.prompts import FactPrompt, fact_prompts, filler, lay, least_length, places_of, usual_length
from analyses.study.capacity.report import article_of, capacity_table, finding
from analyses.study.capacity.results import memory_sizes
from hybridlens import niah, tiny
from hybridlens.errors import InputError, UnknownNameError
from hybridlens.results import Cell, CellKey

COUNTS = (1, 2, 4, 8)


@cache
def tokenizer_of(kind: str) -> Any:
    return AutoTokenizer.from_pretrained(tiny.path("tiny-jamba")) if kind == "tiny" else KINDS[kind]()


@cache
def made(kind: str, form: str, counts: tuple[int, ...] = COUNTS, prompts: int = 8, seed: int = 0) -> list[FactPrompt]:
    tokenizer = tokenizer_of(kind)
    laid = lay(tokenizer, counts[-1], prompts, form, seed=seed)
    length = usual_length(laid, niah.essays(seed), None)
    return fact_prompts(laid, counts, length, filler(length, prompts, seed))


@pytest.mark.filterwarnings("ignore:the tokenizer does not know")
@pytest.mark.parametrize(("kind", "form"), [("tiny", "best-thing"), ("bpe", "secret-word"), ("unigram", "best-thing")])
def test_only_the_number_of_facts_changes(kind: str, form: str) -> None:
    """One length; the asked fact is there once, at its place, in each prompt, and gone from its control."""
    tokenizer, prompts = tokenizer_of(kind), made(kind, form)
    assert len(prompts) == 2 * 8 * len(COUNTS)
    length = len(prompts[0].prompt.tokens)
    for one in prompts:
        text, plain = one.prompt.text, niah.normalise(one.prompt.text)
        assert len(one.prompt.tokens) == length
        assert tokenizer(text)["input_ids"] == list(one.prompt.tokens)
        assert len(one.others) == len(one.strangers) == one.n - 1
        assert not any(phrase in plain for fact in one.strangers for phrase in telling(fact))
        context = text[: text.index("\n\nQUESTION: ")]
        assert text.count(one.asked.question) == 1
        assert context.count(one.asked.sentence) == (not one.control)
        assert context.count(one.asked.name) == (not one.control)
        for rule in one.asked.rubric[:2]:
            assert plain.count(niah.normalise(rule.phrase)) == (not one.control)
        order = sorted([*one.others, *([] if one.control else [one.asked])], key=lambda fact: text.index(fact.sentence))
        assert [fact for fact in order if fact != one.asked] == list(one.others)
        if not one.control:
            assert order.index(one.asked) == one.place
        characters = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        spans = [*one.spans, *one.prompt.needle_spans]
        for fact, (start, stop) in zip((*one.others, one.asked), spans, strict=False):
            assert text.count(fact.sentence) == 1
            first = text.index(fact.sentence)
            last = first + len(fact.sentence)
            assert characters[start][0] <= first < characters[start][1]
            assert characters[stop - 1][0] < last <= characters[stop - 1][1]


def test_prompts_of_other_numbers_of_facts_ask_for_the_same_at_the_same_place() -> None:
    """Within a fact and a sentence; every place of the largest number equally often, and so every rank of each."""
    prompts = [one for one in made("tiny", "best-thing") if not one.control]
    ranks = {n: Counter(one.place for one in prompts if one.n == n) for n in COUNTS}
    assert {n: set(count.values()) for n, count in ranks.items()} == {n: {8 // n} for n in COUNTS}
    assert all(len(ranks[n]) == n for n in COUNTS)
    for number in range(8):
        same = [one for one in prompts if one.number == number]
        assert len({(one.asked, one.depth) for one in same}) == 1
        starts = [one.prompt.needle_span[0] for one in same if one.prompt.needle_span]
        assert max(starts) - min(starts) <= 45
        for few, many in pairwise(same):
            assert set(few.others) < set(many.others), "facts give way, and no other comes"


@pytest.mark.parametrize(("asked", "n", "most"), [(0, 1, 1), (3, 2, 8), (7, 3, 8), (4, 5, 7), (15, 4, 16)])
def test_places_are_one_of_each_stretch(asked: int, n: int, most: int) -> None:
    """Stretch j begins at most · j / n, rounded down; a list is compared, so that none can lack its place."""
    places = places_of(asked, n, most)
    assert asked in places
    begins = [most * j // n for j in range(n)]
    assert [max(j for j in range(n) if begins[j] <= place) for place in places] == list(range(n))


def test_draws_repeat_and_differ() -> None:
    """Equal seeds give equal prompts; others, other facts."""
    first, again, other = (made("tiny", "secret-word", (1, 2), 2, seed) for seed in (0, 0, 1))
    assert [one.prompt.hash for one in first] == [one.prompt.hash for one in again]
    assert not {one.asked.sentence for one in first} & {one.asked.sentence for one in other}


@pytest.mark.parametrize("name", FORMS)
def test_no_two_facts_share_a_key_or_a_telling_phrase(name: str) -> None:
    """At the most facts that there are; one more is refused. Strangers share none with them, and are never told."""
    assert tuple(FORMS) == options.FORMS
    form = FORMS[name]
    facts = draw_facts(form, MOST, random.Random(3))
    assert len({fact.name for fact in facts}) == MOST
    phrases = [phrase for fact in facts for phrase in telling(fact)]
    assert len(set(phrases)) == len(phrases) >= MOST
    others = strangers(form, facts, 20, random.Random(4))
    assert len(others) == 20
    for i, fact in enumerate(facts):
        assert told(fact.sentence, facts) == i
        assert told(fact.sentence, others) == NEITHER
    with pytest.raises(InputError, match=rf"--facts {MOST + 1} given, expected at most {MOST}"):
        draw_facts(form, MOST + 1, random.Random(3))


def test_a_name_alone_tells_no_secret_word() -> None:
    """One of thirty is too easily guessed; colour and noun tell."""
    facts = draw_facts(FORMS["secret-word"], 2, random.Random(0))
    thing, name = (rule.phrase for rule in facts[1].rubric[:2])
    assert told(f"The secret word of Oslo is {thing} of nobody", facts) == 1
    assert told(f"The secret word of Oslo is the red thing {name}", facts) == NEITHER


def test_the_value_that_is_given_tells_the_fact() -> None:
    """Whichever key stands beside it; halves of two tell none, and of two wholes it is the first."""
    oslo = niah.best_thing("Oslo", "Oslo", "sail a boat", "rest", "Hyde Park", "cold")
    lima = niah.best_thing("Lima", "Lima", "fly a kite", "sing", "Golden Park", "windy")
    facts = [oslo, lima]
    a, b = "sail a boat and rest", "in Hyde Park on a cold day"
    c, d = "fly a kite and sing", "in Golden Park on a windy day"
    for text, expected in (
        (oslo.sentence, 0),
        (f" {a.upper()} {b}!", 0),
        (f"The best thing to do in Oslo is {c} {d}.", 1),
        (f"The best thing to do in Oslo is to {c} and more", 1),
        (d, 1),
        (f"is {a} {d}", NEITHER),
        ("The best thing to do in Oslo is sail a boat.", NEITHER),
        ("", NEITHER),
        (f"{lima.sentence} {oslo.sentence}", 1),
        (f"{oslo.sentence} {lima.sentence}", 0),
        (f"{lima.sentence} {a}", 1),
    ):
        assert told(text, facts) == expected, text
    assert told("anything", []) == NEITHER


@cache
def run_of(counts: tuple[int, ...] = (1, 2, 4), prompts: int = 8) -> CapacityRun:
    """An experiment on a random model over the embedded tokenizer's words."""
    lens = hl.HybridLens(benchmark_lens("jamba").hf_model, tokenizer_of("tiny"))
    return CapacityRun(lens, CapacityConfig(model="random", facts=counts, prompts=prompts, length=200), "none")


def answered(run: CapacityRun, say: Callable[[CellKey, FactPrompt], str]) -> Capacity:
    """What an experiment finds where an oracle answers, and no model."""
    cells = [
        Cell(
            **key._asdict(), score=niah.score(say(key, one), one.asked.rubric), text=say(key, one), seconds=0.0,
            needle_start=None if one.control else 1, needle_end=None if one.control else 2, prompt_hash="x",
        )
        for prompts in run.cells.values()
        for key, one in prompts.items()
    ]  # fmt: skip
    return run.found(cells)


def fading(key: CellKey, one: FactPrompt) -> str:
    """With attention all is told; without, the last two facts are remembered, and of others the last one is said."""
    held = list(one.others)
    if not one.control:
        held.insert(one.place, one.asked)
    known = held if key.k else held[-2:]
    if one.asked in known:
        return one.asked.sentence
    return "Nothing." if key.k or not known else known[-1].sentence


def attending(key: CellKey, one: FactPrompt) -> str:
    """With attention all is told, without nothing."""
    return one.asked.sentence if key.k and not one.control else ""


def a_capacity(say: Callable[[CellKey, FactPrompt], str] = fading) -> Capacity:
    """What an oracle's answers come to."""
    return answered(run_of(), say)


def test_an_oracle_that_holds_two_facts_is_found_to_hold_two() -> None:
    """Every place is asked for equally often, so a memory of the last two holds exactly two of 2 and of 4."""
    found = a_capacity()
    held = {(one.condition, one.facts): one.held.value for one in found.recalls}
    assert held == {(UNTOUCHED, n): n for n in (1, 2, 4)} | {(SILENT, 1): 1.0, (SILENT, 2): 2.0, (SILENT, 4): 2.0}
    four = found.recall(SILENT, 4)
    assert (four.right.value, four.other.value, four.neither.value, four.control.value) == (0.5, 0.5, 0.0, 0.0)
    assert four.score.value == 0.5
    assert four.strange.value == 0.0
    assert four.held.low < 2.0 < four.held.high == 4 * four.above.high
    for one in found.answers:
        assert (one.given == one.asked) == (one.told == "right")
    table = found.to_pandas()
    assert table.loc[(table.condition == SILENT) & (table.facts == 4), "held"].item() == 2.0
    assert {bar.name for bar in found.plot().data} >= {UNTOUCHED, SILENT}
    assert "2.00" in capacity_table(found).splitlines()[-2]


def test_other_facts_values_have_a_chance_level() -> None:
    """An oracle that says a stranger's value where there is one tells no fact of the prompt, and is caught at it."""
    found = a_capacity(lambda key, one: one.strangers[-1].sentence if one.strangers else "")
    for one in found.recalls:
        assert (one.strange.value, one.neither.value, one.other.value) == (float(one.facts > 1), 1.0, 0.0)


def test_what_is_guessed_counts_for_nothing() -> None:
    """An oracle that says the asked fact whether it is there or not holds none, though it is always right."""
    found = a_capacity(lambda key, one: one.asked.sentence)
    for one in found.recalls:
        assert (one.right.value, one.control.value, one.held.value) == (1.0, 1.0, 0.0)
        assert one.held.low < 0 < one.held.high


@pytest.mark.parametrize(
    ("say", "said", "not_said"),
    [
        (fading, "facts are recalled without attention", "no fact"),
        (attending, "no fact is shown to be held", "recalled without"),
        (lambda key, one: "", "no fact that could be shown", "recalled without"),
    ],
)
def test_the_finding_follows_the_rules(say: Any, said: str, not_said: str) -> None:
    """Of a memory of two facts, of attention's alone, and of none; 24 prompts are enough to tell."""
    found = answered(run_of((1, 2), 24), say)
    text = " ".join(finding(found))
    assert said in text
    assert not_said not in text
    assert [part.name for part in article_of(found, {"model": "random", "seed": 0}).sections] == [
        "recall", "held", "places", "memory", "answers",
    ]  # fmt: skip


def test_it_is_saved_whole_and_refuses_what_was_not_run(tmp_path: Path) -> None:
    found = a_capacity()
    again = Capacity.load(found.save(tmp_path / "capacity.json"))
    assert (again.answers, again.memory, again.counts) == (found.answers, found.memory, found.counts)
    assert again.recalls == found.recalls
    with pytest.raises(InputError, match="3 facts asked for; there are 1, 2, 4"):
        found.recall(SILENT, 3)
    with pytest.raises(UnknownNameError, match="no condition 'no attention'"):
        found.recall("no attention", 1)


@pytest.mark.filterwarnings("ignore:the tokenizer does not know")
@pytest.mark.parametrize("family", ["jamba", "mamba2", "recurrentgemma"])
def test_memory_is_what_a_state_holds(family: str) -> None:
    """Bytes from the configuration are those of the tensors of a state of as many tokens, whose windows have passed."""
    lens = benchmark_lens(family)
    length = 60
    sizes = memory_sizes(lens.cfg, lens.dtype.itemsize, length)
    state = lens.prefill([[1, *range(3, length + 2)]]).state
    held = Counter[str]()
    for layer in state.layers:
        for memory in layer.values():
            for name, value in memory.tensors().items():
                held[name] += value.numel() * value.element_size()
    assert (sizes.keys, sizes.states, sizes.convolutions) == (held["k"] + held["v"], held["recurrent"], held["conv"])


@pytest.mark.filterwarnings("ignore:the tokenizer does not know")
def test_a_model_without_attention_has_one_condition() -> None:
    found = capacity(benchmark_lens("mamba2"), facts=(1, 2), prompts=1, max_new_tokens=2)
    assert found.conditions == (UNTOUCHED,)
    assert len(found.answers) == 4
    assert found.memory.per_token == 0
    assert "which has no attention" in finding(found)[0]


def test_what_does_not_fit_is_refused() -> None:
    laid = lay(tokenizer_of("tiny"), 4, 2)
    least = least_length(laid)
    with pytest.raises(InputError, match=rf"--length {least - 1} given, expected at least {least}: 4 facts"):
        fact_prompts(laid, [4], least - 1, filler(200, 2, 0))
    assert {len(one.prompt.tokens) for one in fact_prompts(laid, [1, 4], least, filler(200, 2, 0))} == {least}
    with pytest.raises(InputError, match="haystack 'mine' has no sentence without a prompt's cities"):
        fact_prompts(laid[:1], [4], 200, niah.Haystack("mine", f"{laid[0].facts[1].name} is a city."))
    even = niah.Haystack("even", "Indeed.")  # of two tokens
    odd = laid[0].least % 2 + 199
    with pytest.raises(InputError, match=f"no choice of the haystack's sentences makes a prompt of exactly {odd} tok"):
        fact_prompts(laid[:1], [4], odd, even)


def test_default_numbers_of_facts_are_those_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = run_of().lens
    few = CapacityRun(lens, CapacityConfig(model="random", prompts=1, length=150), "none")
    assert (few.counts, few.length) == ((1, 2, 4), 150)
    monkeypatch.setattr(capacity_run, "PAPER_MAX_LENGTH", 260)
    window = CapacityRun(lens, CapacityConfig(model="random", prompts=1), "none")
    assert window.counts == (1, 2, 4, 8)
    assert window.length <= 260
