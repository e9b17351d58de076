"""The rankings that are compared, each a `HeadRanking` under its name: made by running the model, or from its weights.

* "entropy": the paper's criterion, frozen. At run time the paper ranks heads anew at every query; here the order at
  one query is kept for good: the last token of one prompt, which chooses the answer's first.
* "entropy calibrated": the same, averaged over the last tokens of all prompts.
* "retrieval score", "needle mass": what heads look at while they answer (`retrieval`).
* "ablation": what the answer loses without the head (`ablation`).
* Those of `FROM_WEIGHTS` need no run (`analyses.circuits`), but for the mean stream with `--level writers`.

`random_rankings` are the level to beat. Which ranking keeps retrieval is not asked here. Each ranking that
`make_rankings` makes is a stage, signed with the calibration prompts and the seed, so that a run that was killed goes
on with the same orders, and no order of another model, seed or prompt is taken for one of these.

How it fails: rankings that take a run depend on the prompts; make them on others than those that will judge them.
Entropy needs no needle, but prompts without one are refused all the same, since the others do.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

import torch

from analyses.circuits import circuits
from analyses.experiment.filler import linearising_text
from analyses.experiment.options.rankings import RankingsConfig
from analyses.heads.entropy import rank_heads
from analyses.heads.ranking import HeadRanking, check_name
from analyses.study.rankings.ablation import ablation_ranking
from analyses.study.rankings.prompts import in_words, needles_of
from analyses.study.rankings.retrieval import retrieval_rankings
from hybridlens.boundary import Positive, public
from hybridlens.model import HybridLens
from hybridlens.niah import Prompt
from hybridlens.results import Folder

KINDS = (("entropy",), ("entropy calibrated",), ("retrieval score", "needle mass"), ("ablation",))
"""The names of `runtime_rankings`, in its order, those together that one run makes."""

RUNTIME = tuple(name for kind in KINDS for name in kind)

FROM_WEIGHTS: Mapping[str, str] = {
    "copying": "copying",
    "matching": "matching",
    "induction": "induction",
    "induction matching": "induction_match",
    "retrieval strength": "retrieval",
}
"""Name of a ranking -> metric of `HeadCircuits`."""

NAMES: tuple[str, ...] = (*RUNTIME, *FROM_WEIGHTS)
"""All rankings that are made here, in the order in which they are shown."""


def make_rankings(
    lens: HybridLens,
    config: RankingsConfig,
    prompts: Sequence[Prompt],
    folder: Folder,
    names: Sequence[str] | None = None,
) -> dict[str, HeadRanking]:
    """The rankings that a comparison wants, by name.

    Args:
        lens: the model, with a tokenizer.
        config: the comparison's.
        prompts: the calibration prompts.
        folder: of the run.
        names: some of those that are wanted; all when left out.

    Raises:
        UnknownNameError: one that is wanted does not exist.
        InputError: see the modules that make them.
    """

    @cache
    def running(kind: tuple[str, ...]) -> dict[str, HeadRanking]:
        return runtime_rankings(lens, prompts, config.seed, names=kind)

    @cache
    def static() -> dict[str, HeadRanking]:
        text = None if config.level == "random" else linearising_text(lens, config.seed)
        found = circuits(lens, text, model=config.model, seed=config.seed, level=config.level)
        return {name: found.ranking(metric) for name, metric in FROM_WEIGHTS.items()}

    def one(name: str) -> HeadRanking:
        kind = next((kind for kind in KINDS if name in kind), None)
        return (static() if kind is None else running(kind))[name]

    depends = [config.seed, [prompt.hash for prompt in prompts]]
    return {
        name: folder.take(
            f"rankings/{name.replace(' ', '-')}.json",
            [*depends, name, *([config.level] if name in FROM_WEIGHTS and config.level != "random" else [])],
            HeadRanking.load, partial(one, name),
        )
        for name in (check_names(config) if names is None else names)
    }  # fmt: skip


def kinds_of(config: RankingsConfig) -> list[tuple[str, ...]]:
    """The names of the rankings wanted, those together that are made together; errors as `check_names`."""
    names = check_names(config)
    kinds = (tuple(name for name in kind if name in names) for kind in (*KINDS, tuple(FROM_WEIGHTS)))
    return [kind for kind in kinds if kind]


def check_names(config: RankingsConfig) -> tuple[str, ...]:
    """The rankings wanted, in the order in which they are shown.

    Raises:
        UnknownNameError: one does not exist.
    """
    for name in config.rankings or ():
        check_name(name, NAMES, "does not exist")
    return NAMES if config.rankings is None else tuple(name for name in NAMES if name in config.rankings)


@public
def runtime_rankings(
    lens: HybridLens,
    prompts: Sequence[Prompt],
    seed: int = 0,
    batch_size: Positive = 16,
    names: Sequence[str] | None = None,
) -> dict[str, HeadRanking]:
    """Rankings that take a run, by their names and in the order of `RUNTIME`.

    Args:
        lens: the model.
        prompts: the calibration set, with a needle each; of any lengths.
        seed: draws the one prompt of "entropy".
        batch_size: rows of a forward pass.
        names: some of `RUNTIME`, the others being left unmade; all when left out.

    Raises:
        UnknownNameError: a name that is none of these.
        InputError: no prompt, one without a needle, a model without attention, a size below 1, or an answer beyond
            the model's context.
    """
    needles_of(lens, prompts)
    one = prompts[random.Random(f"entropy prompt {seed}").randrange(len(prompts))]
    at = f"1 needle prompt of {len(one.tokens)} tokens (needle at {one.depth} %)"
    frozen = f"{at}, the paper's criterion frozen at that query"
    for name in names or ():
        check_name(name, RUNTIME, "takes no run, or does not exist")
    seen = cache(lambda: retrieval_rankings(lens, prompts, batch_size))
    made: Mapping[str, Callable[[], HeadRanking]] = {
        "entropy": lambda: entropy_ranking(lens, [one], batch_size=batch_size, words=frozen),
        "entropy calibrated": lambda: entropy_ranking(lens, prompts, batch_size=batch_size),
        "retrieval score": lambda: seen()["retrieval score"],
        "needle mass": lambda: seen()["needle mass"],
        "ablation": lambda: ablation_ranking(lens, prompts, batch_size),
    }
    return {name: made[name]() for name in RUNTIME if names is None or name in names}


def entropy_ranking(
    lens: HybridLens, prompts: Sequence[Prompt], queries: str = "last", batch_size: int = 16, words: str | None = None
) -> HeadRanking:
    """`rank_heads` over prompts of any lengths, whose last token chooses the answer's first; errors as there.

    Args:
        lens: the model.
        prompts: as many as there are.
        queries: "last" or "all".
        batch_size: prompts of a forward pass.
        words: what the prompts are, for the ranking's source.
    """
    found = rank_heads(lens, [list(prompt.tokens) for prompt in prompts], queries=queries, batch_size=batch_size)
    which = "all tokens" if queries == "all" else "the last token"
    return replace(found, source=f"mean attention entropy in bits over {which} of {words or in_words(prompts)}")


@public
def random_rankings(lens: HybridLens, draws: Positive, seed: int = 0) -> dict[str, HeadRanking]:
    """Independent random orders, "random 0", "random 1", …, of the model's heads.

    Draw i is the same however many are drawn.

    Raises:
        InputError: fewer than one draw, or no attention.
    """
    lens.cfg.need_attention("ranking heads")
    layers, heads = lens.cfg.attention_layers, lens.cfg.n_heads
    rankings: dict[str, HeadRanking] = {}
    for draw in range(draws):
        places = list(range(len(layers) * heads))
        random.Random(f"random ranking {seed} {draw}").shuffle(places)
        scores = torch.tensor(places, dtype=torch.float32).view(len(layers), heads)
        source = f"a random order of the heads (seed {seed}, draw {draw}); the score is the place in it"
        rankings[f"random {draw}"] = HeadRanking(scores, layers, source, lower_is_better=True)
    return rankings
