"""The training text: the paper's needle is held out, answers are the facts asked for, chance is low."""

import random

import pytest
from transformers import PreTrainedTokenizerFast

from hybridlens.tiny import words as w
from hybridlens.tiny.documents import Level, Source, make_source, write_batch, write_document
from hybridlens.tiny.facts import PAPER_PARTS, closed_book, draw_fact, draw_facts, held_out
from hybridlens.tiny.probe import NEEDLE, QUESTION
from hybridlens.tiny.recipes import RECIPES
from hybridlens.tiny.tokenizer import EOS_ID, PAD_ID, build_tokenizer, words

TOKENIZER: PreTrainedTokenizerFast = build_tokenizer(256)


@pytest.fixture(scope="module")
def source() -> Source:
    return make_source(TOKENIZER.backend_tokenizer, words(), seed=0, n_sentences=400)


def test_no_fact_joins_two_parts_of_the_papers_needle_yet_every_part_is_trained() -> None:
    """6,000 facts, in which the needle's parts come dozens of times each: a leak of any pair would show."""
    rng, vocabulary = random.Random(0), words()
    sentences = [draw_fact(rng, vocabulary).sentence for _ in range(6_000)]
    assert not any(held_out(sentence) for sentence in sentences)
    for part in PAPER_PARTS:
        assert sum(part in sentence for sentence in sentences) > 15, part
    assert held_out(NEEDLE)


def test_no_training_document_says_the_needle_or_answers_its_question_with_a_part_of_it(
    source: Source,
) -> None:
    """Documents of the last level, sentence by sentence; the question itself may and does occur."""
    rng, asked = random.Random(1), 0
    level = RECIPES["tiny-jamba"].stages[-1].level
    for _ in range(400):
        text = TOKENIZER.decode(write_document(rng, source, level, 320, None).ids)
        asked += QUESTION in text
        for sentence in text.replace("<eos>", ".").split("."):
            assert sum(part in sentence for part in PAPER_PARTS) <= 1, sentence
    assert asked > 0


def test_closed_sets_are_large_enough_that_guessing_pays_nothing() -> None:
    """Sizes of the lists that the paper's rubric draws on, without repeats."""
    for entries, least in ((w.ACTIVITIES, 40), (w.CITIES, 40), (w.PARKS, 30), (w.DAYS, 12)):
        assert len(set(entries)) == len(entries) >= least


def test_a_document_supervises_exactly_its_answers_and_each_is_in_its_context(source: Source) -> None:
    """Supervised runs end in <eos>, and their sentence stands before the question (200 documents)."""
    rng = random.Random(2)
    closed = {fact.sentence for fact in closed_book()}
    level, answers = Level((200,), (1, 5), 3, 0.3), 0
    for _ in range(200):
        document = write_document(rng, source, level, 200, None)
        assert len(document.ids) == len(document.weights) <= 200
        begin = None
        for place, (token, weight) in enumerate(zip(document.ids, document.weights, strict=True)):
            if weight == 1.0 and begin is None:
                begin = place
            if begin is not None and token == EOS_ID:
                answer = TOKENIZER.decode(document.ids[begin:place])
                assert answer in closed or answer in TOKENIZER.decode(document.ids[:begin])
                begin, answers = None, answers + 1
        assert begin is None or len(document.ids) == 200
    assert answers > 250


def test_answers_out_of_the_windows_reach_are_not_trained_on(source: Source) -> None:
    """In documents of 250 tokens a window of 60 leaves many facts out of reach, none leaves none."""
    level = Level((250,), (3, 5), 3, 0.0)
    near = [write_document(random.Random(i), source, level, 250, 60) for i in range(50)]
    wide = [write_document(random.Random(i), source, level, 250, None) for i in range(50)]
    assert all(a.ids == b.ids for a, b in zip(near, wide, strict=True))
    assert sum(0.0 in document.weights for document in near) > 25
    assert not any(0.0 in document.weights for document in wide)


def test_facts_of_one_document_answer_different_questions() -> None:
    """Twelve facts at a time: two with one topic would make a question ambiguous."""
    rng = random.Random(3)
    for _ in range(100):
        drawn = draw_facts(rng, words(), 12)
        assert len({fact.question for fact in drawn}) == 12


def test_a_batch_is_a_function_of_seed_and_step(source: Source) -> None:
    """Equal arguments give equal batches; another step or seed gives another batch."""
    level = Level((96, 128), (1, 3), 2, 0.3)

    def batch(seed: int, step: int) -> list[list[int]]:
        made = write_batch(seed, step, source, level, 600, None)
        assert ((made.tokens == PAD_ID) <= (made.weights == 0)).all()
        return made.tokens.tolist()

    assert batch(0, 5) == batch(0, 5)
    assert batch(0, 5) != batch(0, 6)
    assert batch(0, 5) != batch(1, 5)
