"""`report.html` of what states say: how long they keep, what they hold, and who needs it, in sentences and then shown.

How it fails: pure but for the tokens' text, which the lens' tokenizer gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from analyses.experiment.text import columns
from analyses.patching.alignment import token_strings
from analyses.states import sections
from analyses.states.found import Found
from hybridlens.display import many
from hybridlens.model import HybridLens
from hybridlens.viz.article import Article
from hybridlens.viz.entries import percent

UNSURE = (
    "Shares, norms and half-lives are of these prompts and describe; whether the answer needs what a state holds is "
    "told by the knock-outs alone, and that a probe reads something does not say that the model does. "
    "L is a layer, S a head of its state, both counted from 0.",
)


def article_of(found: Found, record: Mapping[str, Any], lens: HybridLens) -> Article:
    """The page's contents; the arguments are what was found, the run's `run.json`, and the model for its tokenizer."""
    middle = found.prompts[len(found.prompts) // 2]
    texts = token_strings(middle.prompt.tokens, lens.tokenizer)
    made = [
        sections.half_lives(found),
        sections.over_time(found),
        sections.flows(found, texts),
        sections.held(found),
        None if found.hidden is None else sections.hidden(found, found.hidden, texts),
        sections.knocked(found) if found.knockouts else None,
        None if found.probes is None else sections.probed(found.probes),
    ]
    lengths = sorted({len(of.prompt.tokens) for of in found.prompts})
    return Article(
        subject="states",
        over="What recurrent states hold",
        origin=(
            many(len(found.prompts), "prompt"),
            f"{' to '.join(map(str, dict.fromkeys((lengths[0], lengths[-1]))))} tokens",
            f"recurrent layers {', '.join(map(str, found.prompts[0].spectrum.layers))}",
        ),
        finding=finding(found),
        notes=UNSURE,
        sections=tuple(section for section in made if section is not None),
    )


def finding(found: Found) -> tuple[str, ...]:
    """How long states keep, what stands there at the end, what knock-outs and probes say of it."""
    said = [_keeping(found), _standing(found), *_knocked(found), *_probed(found)]
    return tuple(sentence for sentence in said if sentence)


def states_table(found: Found, model: str) -> Iterable[str]:
    """What was found, a line a layer, for a terminal."""
    header, *rows = sections.layer_rows(found)
    yield f"{model}: means over {many(len(found.prompts), 'prompt')} and all heads; shares in percent"
    yield columns([header, *rows])
    yield from finding(found)


def _keeping(found: Found) -> str:
    """Half-lives, all layers together."""
    lasts = torch.cat([of.spectrum.half_life.flatten() for of in found.prompts])
    low, middle, high = (sections.tokens(float(x)) for x in lasts.quantile(torch.tensor([0.05, 0.5, 0.95]).double()))
    beyond = torch.stack([of.spectrum.beyond.mean() for of in found.prompts]).mean()
    erased = [of.flow.erased for of in found.prompts if of.flow.erases]
    more = (
        f" Besides, a token erases {percent(sections.mean(erased))} of what decay leaves (by norm)." if erased else ""
    )
    return (
        f"The recurrent states forget half of what a token writes after {middle} tokens (median over their entries; "
        f"{low} to {high} in nine of ten); {percent(float(beyond))} of the entries keep half of it for longer than the "
        f"prompt.{more}"
    )


def _standing(found: Found) -> str:
    """What the first tokens and the needle hold at the end."""
    said: list[str] = []
    sink = sections.span_shares(found, needle=False)
    if sink is not None:
        said.append(
            f"At the end of the prompt its first {sink.tokens} hold {percent(sink.mean)} of the states on average "
            f"({percent(sink.even)} if all tokens held the same), at most {percent(sink.most)} ({sink.where})"
        )
    needle = sections.span_shares(found, needle=True)
    if needle is not None:
        said.append(
            f"{'the' if said else 'At the end of the prompt the'} needle's {needle.tokens} hold {percent(needle.mean)} "
            f"({percent(needle.even)}), at most {percent(needle.most)} ({needle.where})"
        )
    if any(one is not None and one.mean < 0 for one in (sink, needle)):
        said.append("a share below 0 is of what points against the state")
    return f"{'; '.join(said)}." if said else ""


def _knocked(found: Found) -> Iterable[str]:
    """Whether the answer needs what the heads wrote of the needle, against random heads."""
    for one in found.knockouts.values():
        if one.what == "write" and len(one.heads) == max(len(k.heads) for k in found.knockouts.values()):
            far = one.p_value <= sections.SURE
            least = 1 / (1 + len(one.random))
            sets = many(len(one.random), "set")
            could = "" if least <= sections.SURE else f"; with {sets} it cannot be below {least:.2g}"
            yield (
                f"Erasing what {sections.heads_words(one.heads)} wrote of the needle moves the {one.metric} from "
                f"{one.untouched:.2f} to {one.value:.2f}, {'further than' if far else 'no further than'} erasing it of "
                f"as many random state heads (p = {one.p_value:.2g}{could})."
            )


def _probed(found: Found) -> Iterable[str]:
    """Where the needle can be read off."""
    probes = found.probes
    if probes is None:
        return
    best, n = sections.best_probe(probes), sum(probes.heads)
    chance = f", which the best of {many(n, 'head')} may be by chance (p = {best.p:.2g})"
    sure = "" if best.p <= sections.SURE else chance
    yield (
        f"A linear probe reads off the state of {best.where} which of two needles the prompt has, in "
        f"{percent(best.accuracy)} of the prompts; with shuffled labels in {percent(best.shuffled)}{sure}."
    )
