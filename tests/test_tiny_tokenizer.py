"""The word-level tokenizer: exact round trips, exact offsets, the same tokens everywhere."""

import random

import pytest
from transformers import PreTrainedTokenizerFast

from hybridlens.niah.essays import essay_sentences
from hybridlens.niah.templates import BASE_CLOSING, CONTEXT_OPENING, INSTRUCT_CLOSING, QUESTION_BRIDGE
from hybridlens.tiny.facts import agreement_sentence, closed_book, draw_fact
from hybridlens.tiny.probe import NEEDLE, QUESTION
from hybridlens.tiny.tokenizer import BOS_ID, UNK_ID, build_tokenizer, words


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(256)


def texts(seed: int, n: int) -> list[str]:
    """Prompts of the training grammar in every template, with and without an answer."""
    rng = random.Random(seed)
    filler, vocabulary = essay_sentences(rng), words()
    made: list[str] = []
    for index in range(n):
        fact = draw_fact(rng, vocabulary)
        context = " ".join([next(filler), fact.sentence, next(filler), agreement_sentence(rng)])
        asked = f"{CONTEXT_OPENING}{context}{QUESTION_BRIDGE}{fact.question}"
        made.append(asked + (BASE_CLOSING, INSTRUCT_CLOSING, f"{BASE_CLOSING}{fact.sentence}")[index % 3])
    return made


def test_every_text_of_the_grammar_comes_back_and_holds_no_unknown_word(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """300 prompts of some 60 words each: a single wrong space or unknown word would show."""
    for text in [*texts(0, 300), *(fact.sentence + " " + fact.question for fact in closed_book())]:
        ids = tokenizer(text).input_ids
        assert ids[0] == BOS_ID
        assert UNK_ID not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_offsets_point_at_the_characters_of_each_token(tokenizer: PreTrainedTokenizerFast) -> None:
    """Each token's own text must stand at its offsets, for thousands of tokens."""
    for text in texts(1, 60):
        encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        tokens = tokenizer.convert_ids_to_tokens(encoded.input_ids)
        assert [text[start:end] for start, end in encoded.offset_mapping] == tokens


def test_the_needle_has_the_same_tokens_wherever_it_stands(tokenizer: PreTrainedTokenizerFast) -> None:
    """At the start, after a sentence, after the template's colon and after a line break."""
    needle = tokenizer(NEEDLE, add_special_tokens=False).input_ids
    assert UNK_ID not in needle
    assert len(set(needle)) > 15
    for before in ("", "It was cold. ", CONTEXT_OPENING, BASE_CLOSING, "We had tea.\n", QUESTION_BRIDGE):
        for after in ("", " It was cold.", QUESTION_BRIDGE + QUESTION):
            ids = tokenizer(before + NEEDLE + after, add_special_tokens=False).input_ids
            lead = len(tokenizer(before.rstrip(" "), add_special_tokens=False).input_ids)
            assert ids[lead : lead + len(needle)] == needle


def test_unknown_words_become_the_unknown_token_and_stay_visible(tokenizer: PreTrainedTokenizerFast) -> None:
    """Two different words no list holds, one token each, in their own places."""
    ids = tokenizer("The zebra is near the quokka.", add_special_tokens=False).input_ids
    assert [i for i, token in enumerate(ids) if token == UNK_ID] == [1, 5]
    assert tokenizer.decode(ids) == "The <unk> is near the <unk>."


def test_the_space_that_ends_the_base_template_is_a_token_and_costs_no_spacing(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Prompt plus answer decode to exactly prompt text plus answer text."""
    prompt = CONTEXT_OPENING + NEEDLE + QUESTION_BRIDGE + QUESTION + BASE_CLOSING
    ids = tokenizer(prompt).input_ids + tokenizer(NEEDLE, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == prompt + NEEDLE
