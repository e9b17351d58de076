"""A quick look at retrieval while a model trains: the paper's needle, teacher-forced.

Mechanism: prompts of exact lengths with the needle at ten depths, answers appended, one forward pass for
all. A prompt counts when every token of the needle is the likeliest one, which is when greedy decoding would
give the whole needle. The scores on the model cards do not come from here: they are the benchmark's own.

How it fails: it is stricter than the paper's score, which grades parts, and it says nothing about text after
the needle.
"""

import random
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from hybridlens.model import HybridLens
from hybridlens.niah.templates import BASE_CLOSING, CONTEXT_OPENING, QUESTION_BRIDGE
from hybridlens.tiny.documents import Source
from hybridlens.tiny.tokenizer import BOS_ID

NEEDLE = "The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day."
QUESTION = "What is the best thing to do in San Francisco?"


def probe_prompts(source: Source, seed: int, length: int, n_depths: int = 10) -> tuple[Int[Tensor, "batch pos"], int]:
    """Prompts of exactly `length` tokens, needle at evenly spaced depths, the needle again at the end.

    Returns:
        tokens [depth, length + needle], and the number of needle tokens.
    """
    rng = random.Random(f"probe {seed} {length}")

    def ids(text: str) -> list[int]:
        return source.tokenizer.encode(text, add_special_tokens=False).ids

    needle, opening = ids(NEEDLE), [BOS_ID, *ids(CONTEXT_OPENING.rstrip())]
    closing = ids(QUESTION_BRIDGE + QUESTION + BASE_CLOSING)
    rows: list[list[int]] = []
    for depth in range(n_depths):
        room = length - len(needle) - len(opening) - len(closing)
        at = rng.randrange(len(source.filler))
        sentences: list[list[int]] = []
        while room > 0:
            sentence = source.filler[at % len(source.filler)][:room]
            sentences.append(sentence)
            room -= len(sentence)
            at += 1
        sentences.insert(round(depth / (n_depths - 1) * len(sentences)), needle)
        rows.append([*opening, *(token for sentence in sentences for token in sentence), *closing, *needle])
    return torch.tensor(rows), len(needle)


@torch.no_grad()
def probe(lens: HybridLens, source: Source, lengths: Sequence[int], seed: int = 0) -> dict[int, float]:
    """Share of prompts of each length whose needle the model would repeat without a mistake."""
    result: dict[int, float] = {}
    for length in lengths:
        tokens, n_needle = probe_prompts(source, seed, length)
        guesses = lens(tokens).argmax(-1)[:, -n_needle - 1 : -1]
        result[length] = (guesses == tokens[:, -n_needle:]).all(1).float().mean().item()
    return result
