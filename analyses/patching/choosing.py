"""Prompt pairs and metrics by name, as the command has them.

=========  =======================================================================================================
pair       what the corrupt prompt has
=========  =======================================================================================================
needle     the needle's twin in its place: the same question, another answer (`analyses.kv_cache.twins`)
none       filler in its place
moved      the same needle at the other end of the context
=========  =======================================================================================================

=================  ===============================================================================================
metric             what is measured
=================  ===============================================================================================
logit-difference   the first token in which the two answers part, against the other answer's
log-probability    that token's log-probability
rank               its rank
kl                 divergence of the next token's distribution from the clean run's
score              needle score of the answer that is generated from the patched prompt
=================  ===============================================================================================

How it fails: where a model answers both prompts alike no token tells them apart, and only kl and score can be measured,
if anything: a model that finds the needle wherever it stands does the same with a moved one. Moving tells something
where one of the places is out of the model's reach, as beyond a window.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch

from analyses.experiment.options.patch import METRICS, PAIRS
from analyses.kv_cache.twins import FORMS, fits, needle_pairs
from analyses.patching import pairs
from analyses.patching.metrics import KullbackLeibler, LogProbability, Metric, NeedleScore, Rank
from analyses.patching.pairs import Pair
from hybridlens import niah
from hybridlens.boundary import Length, Percent, Seed, public
from hybridlens.boundary_words import Among
from hybridlens.display import Displayed, many
from hybridlens.errors import InputError
from hybridlens.model import HybridLens
from hybridlens.niah import Haystack, Needle, Rubric

WITH_GRADIENT = ("logit-difference", "log-probability", "kl")
"""Metrics of which attribution patching can be made."""

OF_TOKENS = ("logit-difference", "log-probability", "rank")
"""Metrics of the tokens in which the two answers part."""

ALIKE = 1e-3
"""Nats below which two distributions count as the same."""

WORDS = {
    "logit-difference": "logit difference",
    "log-probability": "log-probability",
    "rank": "rank",
    "kl": "divergence",
    "score": "needle score",
}


class _Measure(NamedTuple):
    """Fields of `Measure`."""

    name: str
    metric: Metric
    clean: tuple[int, ...]
    corrupt: tuple[int, ...]


class Measure(Displayed, _Measure):
    """A metric, and the prompts it is measured on."""

    __slots__ = ()

    def summary(self) -> str:
        """What is measured, of prompts of how many tokens."""
        return f"{self.metric.words}, on prompts of {many(len(self.clean), 'token')}"


@public
def make_pair(
    lens: HybridLens,
    kind: Annotated[str, Among(PAIRS)],
    needle: Needle,
    length: Length,
    depth: Percent,
    seed: Seed = 0,
    *,
    twin: Needle | None = None,
    haystack: Haystack | None = None,
) -> Pair:
    """A prompt pair of the needle benchmark; see `analyses.patching.pairs`.

    Args:
        lens: the model.
        kind: what the corrupt prompt has.
        needle: the clean prompt's.
        length: tokens of both prompts.
        depth: of the needle, in percent.
        seed: of the built-in essays.
        twin: of a pair "needle", the corrupt prompt's; one that is built in, or like one, when left out.
        haystack: the filler; the built-in essays by default.

    Raises:
        InputError: nothing of as many tokens as the needle was found, or what `analyses.patching.pairs` refuses.
        UnknownNameError: there is no such kind.
    """
    if kind == "none":
        return pairs.no_needle(lens, needle, length, depth, haystack=haystack, seed=seed)
    if kind == "moved":
        there = 0 if depth >= 50 else 100
        return pairs.moved_needle(lens, needle, length, depth, there, haystack=haystack, seed=seed)
    other = _other(lens, needle) if twin is None else twin
    return pairs.other_needle(lens, needle, other, length, depth, haystack=haystack, seed=seed)


@public
def measure(
    lens: HybridLens, pair: Pair, rubric: Rubric | None, name: Annotated[str, Among(METRICS)] = METRICS[0]
) -> Measure:
    """A metric by name, for a pair.

    Divergences between runs that differ by less than `ALIKE` are rounding, and are refused.

    Args:
        lens: the model.
        pair: the prompts.
        rubric: grades answers, of the clean prompt's needle; None where there is none.
        name: of the metric.

    Raises:
        InputError: the model answers both prompts alike, and the metric needs a token that tells them apart; or there
            is no rubric, and the metric is the score.
        UnknownNameError: there is no such metric.
    """
    if name == "score":  # of whole answers, from the prompts without their beginning
        if rubric is None:
            raise InputError("metric score needs the answer of the clean prompt; give 'answers' in the prompt file")
        return Measure(name, NeedleScore(rubric), pair.clean_prompt.tokens, pair.corrupt_prompt.tokens)
    sides = pair.clean_tokens, pair.corrupt_tokens
    if name == "kl":
        with torch.no_grad():
            logits, others = (lens.prefill([list(side)], last_only=True).logits for side in sides)
        metric = KullbackLeibler(logits[0, -1])
        if float(metric(others)[0]) < ALIKE:
            raise InputError(
                f"the next token's distributions after the two prompts differ by {float(metric(others)[0]):.1e} nats, "
                "so that there is nothing to explain; give another --pair, --length, --depth or --metric"
            )
        return Measure(name, metric, *sides)
    if pair.answers is None:
        raise InputError(
            f"the model answers both prompts alike ({pair.said[0]!r}), so that no token tells them apart; give "
            "--metric kl or score, or another --pair, --needle, --depth or --length"
        )
    right = pair.answers[0]
    words = pair.texts[:1]
    of_right = {"log-probability": LogProbability((right,), words), "rank": Rank(right, words)}
    return Measure(name, of_right.get(name, pair.logit_difference), *sides)


def _other(lens: HybridLens, needle: Needle) -> Needle:
    """A needle with the same question, another answer and as many tokens: its twin, else a counterpart."""
    if niah.NEEDLES.get(needle.name) == needle and needle.name in FORMS:
        (twins,) = needle_pairs([needle.name], lens.tokenizer)
        if fits(lens.tokenizer, *twins):
            return twins.needle_b
    found = pairs.counterparts(lens, needle)
    if not found:
        raise InputError(
            f"no built-in needle answers {needle.question!r} in as many tokens as {needle.name!r}; give --twin, "
            "--pair none, or another --needle"
        )
    return found[0]
