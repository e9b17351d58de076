"""Training documents: filler with facts in it, questions about some of them, and the answers word by word.

Mechanism: a document is the paper's prompt as tokens, ``<bos>CONTEXT: ...`` followed by several question
blocks, each ending in an answer (the fact's own sentence) and ``<eos>``. Several questions make the
supervision dense; blocks use the paper's base template, a short one or the instruct one. A share of documents
is what the benchmark asks for, one fact anywhere in much filler; others hold many facts, more than a
recurrent state of this size keeps. Now and then the prompt is read twice, a question is about a fact that
only training gives, or filler words are replaced by ``<unk>``, as in text from outside the vocabulary.

How it fails: a document that asks for more facts than fit its length silently holds fewer; its `weights` are
then still right. Everything is drawn from the generator passed in, so equal generators give equal documents.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor

from hybridlens.niah.essays import essay_sentences
from hybridlens.niah.templates import AGAIN, BASE_CLOSING, CONTEXT_OPENING, INSTRUCT_CLOSING, QUESTION_BRIDGE
from hybridlens.tiny import facts
from hybridlens.tiny.facts import Fact
from hybridlens.tiny.tokenizer import BOS_ID, EOS_ID, MARKS, PAD_ID, SPECIAL, UNK_ID

CONTEXT_WEIGHT = 0.1
"""Weight of a token outside the answers in the loss; answer tokens weigh 1."""

SHORT_CLOSING = "\n\nANSWER: "
CLOSINGS: tuple[tuple[str, float], ...] = (
    (BASE_CLOSING, 0.55),
    (SHORT_CLOSING, 0.30),
    (INSTRUCT_CLOSING, 0.15),
)
"""What stands between question and answer, and how often."""

TWICE_SHARE = 0.06
"""Documents that are read twice (JRT)."""

CLOSED_BOOK_SHARE = 0.03
"""Questions about facts that no prompt holds."""

UNKNOWN_SHARE = 0.06
"""Documents with words replaced by the unknown token."""

BARE_SHARE = 0.2
"""Answers that follow their template without the space at its end."""

_FIRST_WORD_ID = len(SPECIAL) + len(MARKS)


class Level(NamedTuple):
    """One stage of the curriculum."""

    lengths: tuple[int, ...]
    """Document lengths in tokens, one drawn for every batch."""
    facts: tuple[int, int]
    """Fewest and most facts in a document."""
    questions: int
    """Most questions in a document."""
    single: float
    """Share of documents with exactly one fact."""


class Document(NamedTuple):
    """Token ids and, for each, the weight of predicting it."""

    ids: list[int]
    weights: list[float]


class Source(NamedTuple):
    """What documents are made of."""

    tokenizer: Tokenizer
    filler: list[list[int]]
    """Filler sentences as token ids, in the generator's order."""
    vocabulary: Sequence[str]


N_SENTENCES = 40_000
"""Sentences of a training run's filler."""


def filler_sentences(seed: int, n_sentences: int = N_SENTENCES) -> list[str]:
    """The filler of a training run of that seed; a twenty-fifth of its sentences test agreement."""
    rng = random.Random(f"filler {seed}")
    stream = essay_sentences(rng)
    return [facts.agreement_sentence(rng) if rng.random() < 0.04 else next(stream) for _ in range(n_sentences)]


def make_source(tokenizer: Tokenizer, vocabulary: Sequence[str], seed: int, n_sentences: int = N_SENTENCES) -> Source:
    """Draw the filler of a training run.

    Args:
        tokenizer: the tiny models' tokenizer (its backend).
        vocabulary: words that facts made of arbitrary words may use.
        seed: of the filler.
        n_sentences: how many sentences the pool holds.
    """
    return Source(tokenizer, [_ids(tokenizer, text) for text in filler_sentences(seed, n_sentences)], vocabulary)


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def _closing(rng: random.Random) -> str:
    closing = rng.choices([text for text, _ in CLOSINGS], [share for _, share in CLOSINGS])[0]
    return closing.rstrip(" ") if rng.random() < BARE_SHARE else closing


def _context(rng: random.Random, source: Source, chosen: list[list[int]], budget: int) -> tuple[list[int], list[int]]:
    """Filler and the chosen sentences in `budget` tokens, in random places.

    Returns:
        the tokens, and where each chosen sentence starts.
    """
    room = budget - sum(map(len, chosen))
    sentences: list[list[int]] = []
    at = rng.randrange(len(source.filler))
    while len(source.filler[at % len(source.filler)]) <= room:
        sentence = source.filler[at % len(source.filler)]
        sentences.append(sentence)
        room -= len(sentence)
        at += 1
    if room > 0 and rng.random() < 0.3:
        sentences.append(source.filler[at % len(source.filler)][:room])
    if rng.random() < UNKNOWN_SHARE:
        share = rng.uniform(0.2, 0.95)
        sentences = [
            [UNK_ID if t >= _FIRST_WORD_ID and rng.random() < share else t for t in sentence] for sentence in sentences
        ]
    slots = sorted(rng.randint(0, len(sentences)) for _ in chosen)
    order = list(range(len(chosen)))
    rng.shuffle(order)
    tokens: list[int] = []
    starts = [0] * len(chosen)
    for index in range(len(sentences) + 1):
        while slots and slots[0] == index:
            slots.pop(0)
            fact = order.pop()
            starts[fact] = len(tokens)
            tokens += chosen[fact]
        if index < len(sentences):
            tokens += sentences[index]
    return tokens, starts


def write_document(rng: random.Random, source: Source, level: Level, length: int, window: int | None) -> Document:
    """One document of at most `length` tokens.

    Args:
        rng: the only source of chance.
        source: filler and vocabulary.
        level: how many facts and questions.
        length: most tokens it may have.
        window: an answer whose fact is further back than this is not trained on; None for no limit.
    """
    tokenizer = source.tokenizer
    n_facts = 1 if rng.random() < level.single else rng.randint(*level.facts)
    drawn = facts.draw_facts(rng, source.vocabulary, n_facts)
    encoded = [_ids(tokenizer, fact.sentence) for fact in drawn]
    opening = _ids(tokenizer, CONTEXT_OPENING.rstrip())
    twice = rng.random() < TWICE_SHARE
    blocks: list[tuple[int | None, list[int], list[int]]] = []
    room = length - 1 - len(opening)
    used = 0
    for asked in rng.sample(range(n_facts), min(level.questions, n_facts)):
        if rng.random() < CLOSED_BOOK_SHARE:
            fact: Fact = rng.choice(facts.closed_book())
            block = (
                None,
                _ids(tokenizer, QUESTION_BRIDGE + fact.question + _closing(rng)),
                _ids(tokenizer, fact.sentence),
            )
        else:
            question = _ids(tokenizer, QUESTION_BRIDGE + drawn[asked].question + _closing(rng))
            block = (asked, question, encoded[asked])
        size = len(block[1]) + len(block[2]) + 1
        if blocks and used + size + sum(map(len, encoded)) > room * (0.5 if twice else 1.0):
            break
        blocks.append(block)
        used += size
    asked_now = {block[0] for block in blocks}
    kept = list(range(n_facts))
    budget = room - used
    if twice:
        first = _ids(tokenizer, QUESTION_BRIDGE + drawn[blocks[0][0] or 0].question + AGAIN)
        budget = (budget - len(first) - len(opening)) // 2
    else:
        first = []
    while sum(len(encoded[i]) for i in kept) > budget and any(i not in asked_now for i in kept):
        kept.remove(next(i for i in reversed(kept) if i not in asked_now))
    context, places = _context(rng, source, [encoded[i] for i in kept], budget)
    start_of = dict(zip(kept, places, strict=True))
    ids = [BOS_ID, *opening, *context]
    if twice:
        ids += [*first, *opening, *context]
    begin = len(ids) - len(context)
    weights = [CONTEXT_WEIGHT] * len(ids)
    for asked_fact, question, answer in blocks:
        ids += question
        weights += [CONTEXT_WEIGHT] * len(question)
        far = asked_fact is not None and window is not None and len(ids) - begin - start_of[asked_fact] >= window
        ids += [*answer, EOS_ID]
        weights += [0.0 if far else 1.0] * (len(answer) + 1)
    return Document(ids[:length], weights[:length])


class Batch(NamedTuple):
    """A batch of documents padded on the right."""

    tokens: Int[Tensor, "batch pos"]
    weights: Float[Tensor, "batch pos"]


def write_batch(seed: int, step: int, source: Source, level: Level, tokens_per_step: int, window: int | None) -> Batch:
    """The batch of one training step: a function of its arguments alone, so a run can go on from any step."""
    rng = random.Random(f"batch {seed} {step}")
    length = rng.choice(level.lengths)
    documents = [
        write_document(rng, source, level, length, window) for _ in range(max(1, round(tokens_per_step / length)))
    ]
    longest = max(len(document.ids) for document in documents)
    tokens = torch.full((len(documents), longest), PAD_ID)
    weights = torch.zeros(len(documents), longest)
    for row, document in enumerate(documents):
        tokens[row, : len(document.ids)] = torch.tensor(document.ids)
        weights[row, : len(document.ids)] = torch.tensor(document.weights)
    return Batch(tokens, weights)
