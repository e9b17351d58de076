"""Rankings of heads that are made by running the model, each a `HeadRanking` under its name.

* "entropy": the paper's criterion, frozen. At run time the paper ranks heads anew at every query; here the order at
  one query is kept for good: the last token of one prompt, which chooses the answer's first.
* "entropy calibrated": the same, averaged over the last tokens of all prompts.
* "retrieval score", "needle mass": what heads look at while they answer (`retrieval`).
* "ablation": what the answer loses without the head (`ablation`).

`random_rankings` are the level to beat. Which ranking keeps retrieval is not asked here.

How it fails: all of these depend on the prompts; make them on others than those that will judge them. Entropy needs
no needle, but prompts without one are refused all the same, since the others do.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch

from analyses.heads.entropy import rank_heads
from analyses.heads.ranking import HeadRanking
from analyses.study.rankings.ablation import ablation_ranking
from analyses.study.rankings.prompts import check_batch_size, check_heads, in_words, needles_of
from analyses.study.rankings.retrieval import retrieval_rankings
from hybridlens.errors import InputError
from hybridlens.model import HybridLens
from hybridlens.niah import Prompt

RUNTIME = ("entropy", "entropy calibrated", "retrieval score", "needle mass", "ablation")
"""The names of `runtime_rankings`, in its order."""


def runtime_rankings(
    lens: HybridLens, prompts: Sequence[Prompt], seed: int = 0, batch_size: int = 16
) -> dict[str, HeadRanking]:
    """Every ranking that takes a run, by the names and in the order of `RUNTIME`.

    Args:
        lens: the model.
        prompts: the calibration set, with a needle each; of any lengths.
        seed: draws the one prompt of "entropy".
        batch_size: rows of a forward pass.

    Raises:
        InputError: no prompt, one without a needle, a model without attention, a size below 1, or an answer beyond
            the model's context.
    """
    needles_of(lens, prompts)
    check_batch_size(batch_size)
    index = random.Random(f"entropy prompt {seed}").randrange(len(prompts))
    one = prompts[index]
    depth = f"needle at {one.depth} %"
    return {
        "entropy": entropy_ranking(
            lens,
            [one],
            batch_size=batch_size,
            words=f"1 needle prompt of {len(one.tokens)} tokens ({depth}), the paper's criterion frozen at that query",
        ),
        "entropy calibrated": entropy_ranking(lens, prompts, batch_size=batch_size),
        **retrieval_rankings(lens, prompts, batch_size),
        "ablation": ablation_ranking(lens, prompts, batch_size),
    }


def entropy_ranking(
    lens: HybridLens,
    prompts: Sequence[Prompt],
    queries: str = "last",
    batch_size: int = 16,
    words: str | None = None,
) -> HeadRanking:
    """Heads by their mean attention entropy over some prompts, the most focused first.

    Args:
        lens: the model.
        prompts: of any lengths.
        queries: "last": each prompt's last token, which chooses the answer's first; "all": every token of every
            prompt, each counted once.
        batch_size: prompts of a forward pass.
        words: what the prompts are, for the ranking's source.

    Raises:
        InputError: no prompt, no attention, or a size below 1.
        UnknownNameError: other queries.
    """
    check_heads(lens)
    if not prompts:
        raise InputError("no prompt given, expected at least one to measure entropy on")
    found = rank_heads(lens, [list(prompt.tokens) for prompt in prompts], queries=queries, batch_size=batch_size)
    which = "all tokens" if queries == "all" else "the last token"
    return replace(found, source=f"mean attention entropy in bits over {which} of {words or in_words(prompts)}")


def random_rankings(lens: HybridLens, draws: int, seed: int = 0) -> dict[str, HeadRanking]:
    """Independent random orders, "random 0", "random 1", …, of the model's heads.

    Draw i is the same however many are drawn.

    Raises:
        InputError: fewer than one draw, or no attention.
    """
    check_heads(lens)
    if draws < 1:
        raise InputError(f"{draws} random rankings asked for, expected at least 1")
    layers, heads = lens.cfg.attention_layers, lens.cfg.n_heads
    rankings: dict[str, HeadRanking] = {}
    for draw in range(draws):
        places = list(range(len(layers) * heads))
        random.Random(f"random ranking {seed} {draw}").shuffle(places)
        scores = torch.tensor(places, dtype=torch.float32).view(len(layers), heads)
        source = f"a random order of the heads (seed {seed}, draw {draw}); the score is the place in it"
        rankings[f"random {draw}"] = HeadRanking(scores, layers, source, lower_is_better=True)
    return rankings
