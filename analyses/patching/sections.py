"""The parts of the patching report: the pair, the places that matter, gradients, direct paths, direct shares.

All numbers of sweeps are effects (`analyses.patching.effects`). How it fails: pure; what a model or a metric lacks has
no section.
"""

from __future__ import annotations

from collections.abc import Sequence

from analyses.patching.agreement import agreement
from analyses.patching.alignment import neighbours
from analyses.patching.choosing import OF_TOKENS
from analyses.patching.direct import DirectAttribution
from analyses.patching.effects import Patched, Place, number, strongest
from analyses.patching.results import EdgeResult
from analyses.patching.sweeps import SWEEPS
from hybridlens.display import many
from hybridlens.viz.blocks import Section, Table, Words
from hybridlens.viz.entries import Entry
from hybridlens.viz.positions import visible

_TOP = 12

LEAST_SHOWN = 0.01
"""An effect smaller than this is not called strong."""

NONE = f"none moves {LEAST_SHOWN:g}"
"""In place of a strongest patch."""


def prompts(found: Patched) -> Section:
    """The two prompts side by side, and what the model answers."""
    pair, one, differ = found.pair, found.one, found.pair.differences
    rows: list[tuple[Entry, ...]] = []
    for run in neighbours(differ):
        where = str(run[0].position) if len(run) == 1 else f"{run[0].position}–{run[-1].position}"
        rows.append((where, _quoted([d.clean for d in run]), _quoted([d.corrupt for d in run])))
    rows.append(("answer", *pair.said))
    behind = bool(pair.begun) and found.measure.clean == pair.clean_tokens
    begun = f" {_quoted(pair.begun)}, with which both answers begin, stands behind both prompts." if behind else ""
    answers = zip(pair.answers or (), found.answers or (), strict=True)
    tokens = " and ".join(f"{token} “{visible(text)}”" for token, text in answers)
    parts = f" (tokens {tokens})" if tokens and found.measure.name in OF_TOKENS else ""
    into, back = ("clean run are put into the corrupt", "comes back"), ("corrupt run are put into the clean", "is lost")
    put, happens = into if found.denoises else back
    text = (
        f"Both prompts have {many(len(found.measure.clean), 'token')}, at {len(differ)} of which they differ.{begun} "
        f"Measured: {one.metric}{parts}; {number(one.clean)} after the clean prompt, {number(one.corrupt or 0.0)} "
        f"after the corrupt one. Values of the {put} one; an effect is the share of the difference that {happens}."
    )
    return Section("pair", "Two prompts", (Words(text), Table(("position", "clean", "corrupt"), tuple(rows))))


def places(found: Patched) -> Section:
    """The strongest patches of each sweep."""
    rows: list[tuple[Entry, ...]] = []
    for name, result in found.exact.items():
        first, *others = strongest(result, 3)
        best = [shown(first), *(shown(place) for place in others if place.effect >= LEAST_SHOWN)]
        what = SWEEPS[name].words, f"{SWEEPS[name].point} · {many(result.raw.numel(), 'patch', 'patches')}"
        rows.append((what, *best, *[""] * (3 - len(best))))
    text = (
        "One patch at a time. Each row is a kind of place, with its three strongest patches and the share of the "
        "difference that each moves by itself, where that is at least 0.01. Shares of different patches do not add up "
        "to 1: one value may pass through many places, and some only work together."
    )
    table = Table(("patched", "1st", "2nd", "3rd"), tuple(rows))
    return Section("places", "The strongest patches", (Words(text), table))


def shown(place: Place) -> Entry:
    """A sweep's strongest patch and what it moves, where that is anything."""
    return (place.words, number(place.effect)) if place.effect >= LEAST_SHOWN else NONE


def gradients(found: Patched) -> Section:
    """How well gradients estimate the same patches."""
    rows: list[tuple[Entry, ...]] = []
    for name, estimate in found.estimated.items():
        exact = found.exact[name]
        agrees = agreement(estimate, exact)
        numbers = map(number, agrees[:3])
        best = [shown(*strongest(estimate)), shown(*strongest(exact))]
        rows.append((SWEEPS[name].words, *numbers, f"{agrees.patches:,}", *best))
    text = (
        "The same patches estimated from gradients, all of a sweep in one pass forward and backward: rank correlation "
        "(Spearman), correlation (Pearson) and the largest error, on the scale of the effects. Rank correlations are "
        "over all patches of a sweep, most of which do next to nothing; where none moves 0.01 they compare noise."
    )
    header = (
        "patched", "rank correlation", "correlation", "largest error", "patches", "strongest by gradient", "measured",
    )  # fmt: skip
    return Section("gradients", "Attribution by gradients", (Words(text), Table(header, tuple(rows))))


def paths(edges: EdgeResult) -> Section:
    """The strongest direct paths."""
    scale = edges.clean - edges.corrupt
    sign = 1 if edges.direction == "denoise" else -1
    rows = tuple(
        (writer.words, reader.words, number(sign * score / scale)) for writer, reader, score in edges.top(_TOP)
    )
    text = (
        "Each writer into the residual stream with each later reader of it: what the difference between the two runs "
        "does on this direct path alone, estimated from gradients; the strongest first. Put together they tell the way "
        "of the needle: what writes into keys or values, which heads read these, and what then reaches the logits."
    )
    return Section("paths", "Direct paths", (Words(text), Table(("writer", "reader", "effect"), rows)))


def direct(found: DirectAttribution, metric: str) -> Section:
    """What the parts of the model add to the difference of the two answers' logits, in the clean run."""
    rows = tuple((writer.words, number(share, "+")) for writer, share in found.top(_TOP))
    total, own, capped = (float(x[-1, 0]) for x in (found.total, found.before_cap, found.logits))
    rest = total - sum(share for _, share in found.top(_TOP))
    squeezed = number(own, "+") != number(capped, "+")  # not so of rounding
    cap = f" before its soft cap, {number(capped, '+')} after it" if squeezed else ""
    text = (
        f"In the clean run alone, the {metric} at the last position as a sum over all parts of the model, each through "
        f"the final norm at its scale in this run. All {len(found.writers)} shares add up to {number(total, '+')}; the "
        f"model's own is {number(own, '+')}{cap}. A share is what a part writes, not what happens because of it."
    )
    more = (("all the others", number(rest, "+")),) if len(found.writers) > _TOP else ()
    return Section("direct", "Direct shares of the answer", (Words(text), Table(("part", "logits"), (*rows, *more))))


def _quoted(tokens: Sequence[str]) -> str:
    """Tokens as one text: joined as they are where they bring their spaces, else with spaces."""
    joined = "".join(tokens) if any(token.startswith((" ", "▁")) for token in tokens) else " ".join(tokens)
    return f"“{visible(joined)}”"
