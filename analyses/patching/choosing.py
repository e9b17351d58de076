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
from analyses.kv_cache.twins import needle_pairs
from analyses.patching import pairs
from analyses.patching.metrics import KullbackLeibler, LogProbability, Metric, NeedleScore, Rank
from analyses.patching.pairs import Pair
from hybridlens import niah
from hybridlens.boundary import Length, Percent, Seed, public
from hybridlens.boundary_words import Among
from hybridlens.display import Displayed, many
from hybridlens.errors import InputError, UnknownNameError, closest
from hybridlens.model import HybridLens

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
    lens: HybridLens, kind: Annotated[str, Among(PAIRS)], needle: str, length: Length, depth: Percent, seed: Seed = 0
) -> Pair:
    """A prompt pair of the needle benchmark, of the built-in needle of a name; see `analyses.patching.pairs`.

    Raises:
        InputError: nothing of as many tokens as the needle was found, or what `analyses.patching.pairs` refuses.
        UnknownNameError: there is no such kind or needle.
    """
    if needle not in niah.NEEDLES:
        known = sorted(niah.NEEDLES)
        near = closest(needle, known)
        raise UnknownNameError(f"--needle {needle!r} given{near}; expected one of {', '.join(known)}")
    clean = niah.NEEDLES[needle]
    if kind == "none":
        return pairs.no_needle(lens, clean, length, depth, seed=seed)
    if kind == "moved":
        return pairs.moved_needle(lens, clean, length, depth, 0 if depth >= 50 else 100, seed=seed)
    return pairs.other_needle(lens, clean, _other(lens, clean), length, depth, seed=seed)


@public
def measure(lens: HybridLens, pair: Pair, needle: str, name: Annotated[str, Among(METRICS)] = METRICS[0]) -> Measure:
    """A metric by name, for a pair.

    Divergences between runs that differ by less than `ALIKE` are rounding, and are refused. Answers are graded by the
    rubric of `needle`, the clean prompt's.

    Raises:
        InputError: the model answers both prompts alike, and the metric needs a token that tells them apart.
        UnknownNameError: there is no such metric.
    """
    if name == "score":  # of whole answers, from the prompts without their beginning
        return Measure(
            name, NeedleScore(niah.NEEDLES[needle].rubric), pair.clean_prompt.tokens, pair.corrupt_prompt.tokens
        )
    sides = pair.clean_tokens, pair.corrupt_tokens
    if name == "kl":
        with torch.no_grad():
            logits, others = (lens(torch.tensor([side], device=lens.device))[:, -1:] for side in sides)
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
    of_right = {"log-probability": LogProbability((right,)), "rank": Rank(right)}
    return Measure(name, of_right.get(name, pair.logit_difference), *sides)


def _other(lens: HybridLens, needle: niah.Needle) -> niah.Needle:
    """A needle with the same question, another answer and as many tokens: its twin, else a counterpart."""
    try:
        (twins,) = needle_pairs([needle.name])
    except InputError:  # one that is not of a study
        twins = None
    if twins is not None and pairs.count(lens, twins.needle_a.sentence) == pairs.count(lens, twins.needle_b.sentence):
        return twins.needle_b
    found = pairs.counterparts(lens, needle)
    if not found:
        raise InputError(
            f"no built-in needle answers {needle.question!r} in as many tokens as {needle.name!r}; give --pair none, "
            "or another --needle"
        )
    return found[0]
