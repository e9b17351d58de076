"""Makes the items of the local tasks: seeded, the same bytes at every run (``python tests/benchmarks/local_tasks.py``).

Mechanism. `tiny_retrieval` and `tiny_recite`: filler sentences with four facts of one form about four topics; a
question about one of them. The choices are the question's own subject with each of the four answers, so that
every choice stands in the prompt and only the binding of subject and answer tells them apart; chance is one in
four. `tiny_facts`: capitals and opposites, which stand in no prompt, among three other capitals or opposites;
chance is one in four. `tiny_grammar`: a sentence up to its verb, singular or plural; chance is one in two.

How it fails: the sentences of `tiny_grammar` and the facts are those of training, so the two tasks measure what
was learned, not what generalises; prompts and answers of retrieval are new, and none joins two parts of the
paper's needle (`hybridlens.tiny.facts.held_out`).
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from tokenizers import Tokenizer

from analyses.study.benchmarks.local_tasks import FOLDER
from hybridlens.errors import InputError
from hybridlens.niah.essays import essay_sentences
from hybridlens.niah.filler import WINDOW, exact_subset
from hybridlens.niah.templates import BASE_CLOSING, CONTEXT_OPENING, QUESTION_BRIDGE
from hybridlens.tiny import facts, words
from hybridlens.tiny.documents import SHORT_CLOSING
from hybridlens.tiny.facts import Fact
from hybridlens.tiny.tokenizer import backend
from hybridlens.tiny.tokenizer import words as known_words

Item: TypeAlias = dict[str, Any]
"""One document of a task, as a line of its JSON Lines file."""

SEED = 0
LONGEST = 256
"""Tokens of a prompt with its longest answer, at most: what both tiny models were trained for."""

LENGTHS = (160, 190, 220)
"""Tokens of the retrieval prompts, without subject and answer: a third of them each."""

TAIL = 50
"""Tokens at the end of the filler that are chosen to sum up exactly; more than any sentence has."""

N_RETRIEVAL, N_GRAMMAR = 72, 100
CHOICES = 4

FORMS: tuple[tuple[str, ...], ...] = (
    tuple(f"The {rank} thing to do in" for rank in words.SUPERLATIVES),
    tuple(f"The {rank} thing to do in" for rank in words.SUPERLATIVES),
    tuple(f"The {job} of" for job in words.JOBS),
)
"""How sentences of one form begin; all are ``<subject> is <answer>``. Other forms of training (codes, passwords) are
left out: there the untouched models name the wrong fact too often to have anything to lose."""


def split(sentence: str) -> tuple[str, str]:
    """A fact's sentence as the subject with its verb, and the answer: at the first " is "."""
    subject, _, answer = sentence.partition(" is ")
    return f"{subject} is", answer


def same_form(rng: random.Random, starts: Sequence[str], vocabulary: Sequence[str]) -> list[Fact]:
    """Four facts of one form, of different topics and answers, that join into no part of the paper's needle."""
    found: list[Fact] = []
    while len(found) < CHOICES:
        fact = facts.draw_fact(rng, vocabulary)
        if " is " not in fact.sentence or not fact.sentence.startswith(tuple(starts)):
            continue
        subject, answer = split(fact.sentence)
        joined = [f"{s} {a}" for s, a in ((subject, split(f.sentence)[1]) for f in found)]
        joined += [f"{split(f.sentence)[0]} {answer}" for f in found]
        known = {part for f in found for part in (f.topic, *split(f.sentence))}
        if not known & {fact.topic, subject, answer} and not any(map(facts.held_out, joined)):
            found.append(fact)
    return found


def context_of(rng: random.Random, chosen: Sequence[Fact], room: int, tokenizer: Tokenizer) -> str:
    """Filler with the facts at random places among its sentences: exactly `room` tokens."""

    def size(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    room -= sum(size(fact.sentence) for fact in chosen)
    stream = (text for text in essay_sentences(rng) if "thing to do" not in text)  # such a one would answer a question
    filler: list[str] = []
    while room >= TAIL:
        filler.append(next(stream))
        room -= size(filler[-1])
    window: list[str] = []
    while (ending := exact_subset([size(text) for text in window], room)) is None:
        window = list(islice(stream, WINDOW))
    filler += [window[index] for index in ending]
    slots = sorted(rng.randint(0, len(filler)) for _ in chosen)
    for slot, fact in reversed(list(zip(slots, chosen, strict=True))):
        filler.insert(slot, fact.sentence)
    return " ".join(filler)


def retrieval_items(seed: int = SEED) -> Iterator[Item]:
    """The items of `tiny_retrieval` and `tiny_recite`."""
    rng = random.Random(f"local retrieval {seed}")
    vocabulary = known_words()
    tokenizer = backend(vocabulary)
    for i in range(N_RETRIEVAL):
        chosen = same_form(rng, FORMS[i % len(FORMS)], vocabulary)
        asked = chosen[rng.randrange(CHOICES)]
        subject, answer = split(asked.sentence)
        choices = [split(fact.sentence)[1] for fact in chosen]
        rng.shuffle(choices)
        question = QUESTION_BRIDGE + asked.question + BASE_CLOSING
        around = len(tokenizer.encode(CONTEXT_OPENING + question).ids)
        context = context_of(rng, chosen, LENGTHS[i // len(FORMS) % len(LENGTHS)] - around, tokenizer)
        prompt = CONTEXT_OPENING + context + question
        longest = max(len(tokenizer.encode(f"{prompt}{subject} {choice}").ids) for choice in choices)
        if longest > LONGEST:
            raise InputError(f"item {i} has {longest} tokens, expected at most {LONGEST}; lower LENGTHS")
        yield {
            "prompt": prompt,
            "subject": subject,
            "choices": choices,
            "label": choices.index(answer),
            "sentence": asked.sentence,
        }


def fact_items(seed: int = SEED) -> Iterator[Item]:
    """The items of `tiny_facts`: every closed-book fact after each of two closings."""
    rng = random.Random(f"local facts {seed}")
    known = facts.closed_book()
    for closing in (SHORT_CLOSING, BASE_CLOSING):
        for fact in known:
            subject, answer = split(fact.sentence)
            kind = subject.split(" of ")[0]
            others = sorted({split(f.sentence)[1] for f in known if f.sentence.startswith(kind)} - {answer})
            choices = [answer, *rng.sample(others, CHOICES - 1)]
            rng.shuffle(choices)
            yield {
                "prompt": QUESTION_BRIDGE.lstrip() + fact.question + closing,
                "subject": subject,
                "choices": [choice.rstrip(".") for choice in choices],
                "label": choices.index(answer),
            }


def grammar_items(seed: int = SEED) -> Iterator[Item]:
    """The items of `tiny_grammar`: distinct sentences, half of them with a noun of the other number before the verb."""
    rng = random.Random(f"local grammar {seed}")
    verbs = {verb: pair for pair in words.MOTIONS for verb in pair}
    seen: set[str] = set()
    misleading = 0
    while len(seen) < N_GRAMMAR:
        sentence = facts.agreement_sentence(rng)
        opening, _, verb = sentence.rstrip(".").rpartition(" ")
        label = verbs[verb].index(verb)
        other = label == int(not opening.endswith("s"))
        full = misleading == N_GRAMMAR // 2 if other else len(seen) - misleading == N_GRAMMAR - N_GRAMMAR // 2
        if sentence in seen or full:
            continue
        seen.add(sentence)
        misleading += other
        yield {
            "prompt": CONTEXT_OPENING + opening,
            "choices": list(verbs[verb]),
            "label": label,
            "misleading": other,
        }


def files(seed: int = SEED) -> dict[str, bytes]:
    """File name -> content of every file of items."""
    made = {
        "tiny_retrieval.jsonl": retrieval_items(seed),
        "tiny_facts.jsonl": fact_items(seed),
        "tiny_grammar.jsonl": grammar_items(seed),
    }
    return {
        name: "".join(json.dumps(item, ensure_ascii=True) + "\n" for item in items).encode("ascii")
        for name, items in made.items()
    }


def main(folder: Path = FOLDER) -> None:
    """Write the files beside the tasks' YAML, or into `folder`."""
    for name, content in files().items():
        (folder / name).write_bytes(content)
        sys.stdout.write(f"{name}: {len(content.splitlines())} items\n")


if __name__ == "__main__":
    main()
