"""`report.html` of the head circuits: what the weights say in sentences, then every score as pictures and numbers.

How it fails: see `article_of`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analyses.circuits import sections
from analyses.circuits.composition_section import composition
from analyses.circuits.labels import number, spread, writer_of
from analyses.circuits.results import METRICS, HeadCircuits, name_of
from analyses.circuits.strength import LEVELS
from analyses.experiment.text import columns
from analyses.heads.needle_heads import Look
from hybridlens.display import many
from hybridlens.viz.article import Article

HALF = 0.5
"""A score of -1 … 1 above this is called copying, or matching, in the finding."""

_NAMED = 3

_PATHS = {"copying": "from the token looked at to the logits", "matching": "from a token's query to its own key"}
_DOES = {
    "copying": (
        "copies, that is, raises the logit of the token that it looks at",
        "copy, that is, raise the logit of the token that they look at",
    ),
    "matching": (
        "matches equal tokens, that is, looks at tokens like its own",
        "match equal tokens, that is, look at tokens like their own",
    ),
}
"""What a head that scores high does; and what several do."""


def article_of(circuits: HeadCircuits, record: Mapping[str, Any], patterns: Look | None = None) -> Article:
    """The page's contents.

    Args:
        record: the run's `run.json`.
        patterns: what the heads looked at in one needle prompt, from a lens with a tokenizer; None leaves it out.

    Raises:
        InputError: `patterns` come without the texts of their tokens.
    """
    made = (
        sections.top_heads(circuits),
        *(() if patterns is None else (sections.patterns(circuits, patterns),)),
        sections.scores(circuits),
        sections.eigenvalues(circuits),
        sections.distances(circuits),
        composition(circuits),
        *((sections.linearisation(circuits),) if circuits.ssm_layers else ()),
    )
    over = "Attention heads by their weights alone"
    return Article("head circuits", over, _origin(circuits, record), finding(circuits), (), made)


def finding(circuits: HeadCircuits) -> tuple[str, ...]:
    """Which heads retrieve, copy, match and induct by their weights, through which writer, in sentences."""
    n = circuits.copying.numel()
    said = [
        f"Judged by weights alone, before any run, {_retrieving(circuits)}: by retrieval strength, at most 1, which is "
        "how much a head copies the token that it looks at × how well it finds the token that followed an earlier "
        "occurrence of the present one. (L6 H1 is head 1 of layer 6, both counted from 0.)"
    ]
    for metric, of in (("copying", "OV"), ("matching", "QK")):
        above = int((circuits.score(metric) > HALF).sum())
        which = f"{above} of {many(n, 'head')} {_DOES[metric][above != 1]}"
        by = f"{metric} score Σλ ÷ Σ|λ| above {HALF:g}, over the eigenvalues λ of the {of} circuit, {_PATHS[metric]}"
        said.append(f"{which} ({by}); most: {_best(circuits, metric)}.")
    said.append(_induction(circuits))
    if circuits.ssm_layers:
        said.append(_linearised(circuits))
    return (*said, *circuits.notes)


def _retrieving(circuits: HeadCircuits) -> str:
    if circuits.ranking("retrieval").tied:
        return f"no attention head of {circuits.model} is better made for retrieval than another"
    return (
        f"the attention heads of {circuits.model} that are best made for retrieval are {_best(circuits, 'retrieval')}"
    )


def _best(circuits: HeadCircuits, metric: str) -> str:
    ranking = circuits.ranking(metric)
    if ranking.tied:
        return f"none, every head scores {number(ranking.score(*ranking.order[0]))}"
    return ", ".join(f"{name_of(head)} ({number(ranking.score(*head))})" for head in ranking.leading(_NAMED))


def _strength(circuits: HeadCircuits) -> str:
    """What induction strength is, of the writers that this model has."""
    writers = "another head, or a recurrent layer's convolution" if circuits.ssm_layers else "another head"
    keys = f"a head's keys read of what tells them the token before ({writers})"
    return f"how much {keys}, beyond {LEVELS[circuits.level]}, × how much the head copies"


def _induction(circuits: HeadCircuits) -> str:
    ranking = circuits.ranking("induction")
    found = [head for head in ranking.order if ranking.score(*head) > 0]
    if not found:
        return f"No head has an induction strength above 0: {_strength(circuits)}."
    through = [writer_of(circuits, head) for head in found]
    by_lag = sum("lag" in writer for writer in through)
    best, which = found[0], ""
    if circuits.ssm_layers:
        which = (
            f" The signal of the token before would come from a recurrent layer's convolution for {by_lag} of them, "
            f"from another head for {len(found) - by_lag}."
        )
    return (
        f"Induction strength, {_strength(circuits)}, is above 0 for {len(found)} of "
        f"{many(circuits.copying.numel(), 'head')} and highest for {name_of(best)} "
        f"({number(ranking.score(*best))}, through {through[0]}).{which}"
    )


def _linearised(circuits: HeadCircuits) -> str:
    begin = f"Recurrent layers are taken for linear here, {circuits.linearised}"
    if circuits.path_error is None:
        return f"{begin}; how far that is off was not measured."
    missed = spread(circuits.path_error, number)
    return (
        f"{begin}; on real activations that misses {missed} of the spread of what they write (0: exact, 1: no better "
        "than a constant). So scores say what a layer's convolution can pass on, not all that the layer does."
    )


def _origin(circuits: HeadCircuits, record: Mapping[str, Any]) -> tuple[str, ...]:
    """How much there is, from what."""
    layers, ssm = len(circuits.layers), len(circuits.ssm_layers)
    return (
        f"{many(circuits.copying.numel(), 'head')} in {many(layers, 'attention layer')}",
        *([f"{many(ssm, 'recurrent layer')} taken for writers, linearised {circuits.linearised}"] if ssm else []),
        f"{many(circuits.sample, 'token')} sampled, seed {record.get('seed')}",
    )


def circuits_table(found: HeadCircuits) -> str:
    """The heads that score highest by each metric, with what the metric is."""
    rows = [["metric", "1.", "2.", "3.", "what it is"]]
    for metric in found.metrics:
        ranking = found.ranking(metric)
        same = [f"all {ranking.score(*ranking.order[0]):.2f}", *("" for _ in ranking.order[1:_NAMED])]
        top = [f"{name_of(head)} {ranking.score(*head):.2f}" for head in ranking.leading(_NAMED)] or same
        rows.append([metric, *top, METRICS[metric].words])
    off = "" if found.path_error is None else f"; error {', '.join(f'{e:.2f}' for e in found.path_error.tolist())}"
    how = f"; recurrent layers linearised {found.linearised}{off}" if found.ssm_layers else ""
    title = f"{found.model}: heads by their weights{how}"
    return "\n".join([title, columns(rows, left=5), *found.notes])
