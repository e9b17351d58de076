"""`report.html` of patching: which component carries the needle, in sentences, then every sweep as map and numbers.

How it fails: a run without a sweep has nothing to show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch

from analyses.experiment.text import columns
from analyses.kv_cache.pairs import LEAST
from analyses.patching import sections
from analyses.patching.agreement import agreement
from analyses.patching.choosing import WORDS
from analyses.patching.effects import Patched, Place, effect, number, position, strongest
from analyses.patching.maps import maps
from analyses.patching.results import PatchResult
from hybridlens.display import many
from hybridlens.niah import MAX_SCORE
from hybridlens.viz.article import Article
from hybridlens.viz.positions import visible

CARRIES = 0.5
"""A place that moves more than this share of the difference by itself is said to carry the needle."""

WEAK = 0.25
"""What moves less than this is said to carry next to nothing by itself."""

MEMORIES = {
    "values": ("v", "v_by_position"),
    "keys": ("k", "k_by_position"),
    "recurrent states": ("state", "state_by_channel", "write", "write_by_channel"),
}
"""Where a needle may be held, and the sweeps that patch it."""

LAYERS = {"attn_out": "attention", "ssm_out": "recurrent layers", "mlp_out": "MLPs"}
"""Sweep -> whose outputs it patches."""


_READING = (
    "Two prompts are alike but for what is asked about; a token that stands as “a|b” is a in one and b in the other. "
    "An activation of one run is put into the other, and the number says how much of the difference between both "
    "answers that moves: 0 nothing of it, 1 all. L is a layer, H a head, both counted from 0."
)


def article_of(found: Patched, record: Mapping[str, Any]) -> Article:
    """The page's contents; the arguments are what was found, and the run's `run.json`."""
    made = [sections.prompts(found), sections.places(found), *maps(found)]
    if found.estimated:
        made.append(sections.gradients(found))
    if found.edges is not None:
        made.append(sections.paths(found.edges))
    if found.direct is not None:
        made.append(sections.direct(found.direct, WORDS["logit-difference"]))
    return Article(
        subject="patching",
        over="Activations of one prompt put into another",
        origin=_origin(found, record),
        finding=finding(found),
        notes=(_READING, "One prompt pair is an example, not a measurement; other pairs are other runs."),
        sections=tuple(made),
    )


def finding(found: Patched) -> tuple[str, ...]:
    """Which memory carries the needle, what passes it on, where the difference stands, how good gradients are.

    Where the model does not tell the clean prompt's needle, it is not the needle that the numbers are about, and that
    is said first.
    """
    verbs = ("removes", "brings") if found.measure.name == "kl" else ("restores", "destroys")
    does = verbs[0] if found.denoises else verbs[1]
    of = f"of the {WORDS[found.measure.name]}"
    told = found.points is None or found.points >= LEAST
    own = found.pair.kind == "own"
    what = "the needle" if told and not own else "the difference between the two runs"
    said = [] if told or own else [
        f"The model does not tell the needle: to the clean prompt it answers “{visible(found.pair.said[0])}” "
        f"({found.points:g} of {MAX_SCORE:g} points). What follows is about that answer, not about retrieval."
    ]  # fmt: skip
    said += [_memory(found.exact, does, of, what), _outputs(found.exact, does), _stream(found.exact, does)]
    if found.estimated:
        said.append(_estimates(found))
    if found.direct is not None:
        raising = [(w, share) for w, share in found.direct.top(len(found.direct.writers)) if share > 0]
        parts = ", ".join(f"{w.words} ({share:+.1f})" for w, share in raising[:3])
        if parts:
            said.append(f"By direct logit attribution, most for the clean answer comes from {parts}.")
    return tuple(sentence for sentence in said if sentence)


def _memory(exact: Mapping[str, PatchResult], does: str, of: str, what: str) -> str:
    """In which memory the needle is: the best of keys, values and states, each with its number.

    One that moves more than `CARRIES`, and more than twice what any other does, carries it; several do where another
    moves more than `WEAK`.
    """
    best = {name: place for name, sweeps in MEMORIES.items() if (place := _best(exact, sweeps)) is not None}
    if not best:
        return ""
    order = sorted(best, key=lambda name: -best[name].effect)
    first, rest = order[0], order[1:]
    place = best[first]
    moving = [f"{name} at most {_shown(best[name])}" for name in rest if best[name].effect >= sections.LEAST_SHOWN]
    still = " and ".join(name for name in rest if best[name].effect < sections.LEAST_SHOWN)
    others = "".join(f", {part}" for part in [*moving, *([f"{still} under {sections.LEAST_SHOWN:g}"] if still else [])])
    shown = f"patching those of {place.words} alone {does} {number(place.effect)} {of}{others}"
    if place.effect < WEAK:
        return f"No keys, values or recurrent state that was patched carries {what} by itself: {shown}."
    second = best[rest[0]].effect if rest else 0.0
    if second >= WEAK and (place.effect < CARRIES or second > place.effect / 2):
        return f"More than one memory carries {what}, {first} most of it: {shown}."
    if place.effect < CARRIES:
        beside = ", next to nothing by other memories" if rest else ""
        return f"A part of {what} is carried by {first}{beside}: {shown}."
    return f"{what[0].upper()}{what[1:]} is carried by {first}: {shown}."


def _outputs(exact: Mapping[str, PatchResult], does: str) -> str:
    """What passes it on: the best output of each kind of layer, and of heads."""
    parts = [f"{words} {_shown(strongest(exact[name])[0])}" for name, words in LAYERS.items() if name in exact]
    said = (
        [f"Of whole outputs at one position, the strongest of each kind {does}: {', '.join(parts)}."] if parts else []
    )
    if "z" in exact:
        alone = ", ".join(f"{place.words} {number(place.effect)}" for place in strongest(exact["z"], 3))
        said.append(f"Single heads: {alone}.")
    return " ".join(said)


def _stream(exact: Mapping[str, PatchResult], does: str) -> str:
    """At which position of the residual stream the difference stands, layer by layer."""
    where = {"resid_pre": "entering", "resid_mid": "in the middle of", "resid_post": "leaving"}
    name = next((name for name in where if name in exact), None)
    if name is None:
        return ""
    result = exact[name]
    layers, positions = (result.axes[result.axis(axis)].labels for axis in ("layer", "pos"))
    best = [(layer, int(row.argmax()), float(row.max())) for layer, row in zip(layers, effect(result), strict=True)]
    parts: list[str] = []
    for at, run in groupby(best, key=lambda one: one[1]):
        there, _, strengths = zip(*run, strict=True)
        span = " to ".join(dict.fromkeys((there[0], there[-1])))
        ends = " to ".join(dict.fromkeys(number(end) for end in (min(strengths), max(strengths))))
        parts.append(f"{position(positions[at])}, layer{'s' * (len(there) > 1)} {span} ({ends})")
    return f"In the residual stream {where[name]} each layer, the position that {does} most: {'; '.join(parts)}."


def _estimates(found: Patched) -> str:
    agrees = {name: agreement(estimate, found.exact[name]) for name, estimate in found.estimated.items()}
    known = {name: a for name, a in agrees.items() if a.pearson == a.pearson}
    if not known:
        return ""
    middle = float(torch.tensor([a.pearson for a in known.values()]).median())
    low = min(known, key=lambda name: known[name].pearson)
    still = strongest(found.exact[low])[0].effect < sections.LEAST_SHOWN
    where = f"{low}, where {sections.NONE}" if still else low
    worst = max(agrees, key=lambda name: agrees[name].largest_error)
    return (
        "Attribution patching (gradients in place of patches) agrees with patching, with a correlation of "
        f"{number(middle)} (median of {many(len(known), 'sweep')}; lowest {number(known[low].pearson)}, {where}); the "
        f"largest error is {number(agrees[worst].largest_error)}, in {worst}."
    )


def _best(exact: Mapping[str, PatchResult], sweeps: Sequence[str]) -> Place | None:
    """The strongest patch of some sweeps; of equals the one that says the position."""
    found = [strongest(exact[name])[0] for name in sweeps if name in exact]
    return max(found, key=lambda place: (round(place.effect, 2), len(place.words)), default=None)


def _shown(place: Place) -> str:
    return f"{number(place.effect)} ({place.words})" if place.effect >= 0.005 else "0.00"


def _origin(found: Patched, record: Mapping[str, Any]) -> tuple[str, ...]:
    """How much was patched, between what."""
    patches = sum(result.raw.numel() for result in found.exact.values())
    passes = sum(result.forwards for result in found.exact.values())
    arguments: Mapping[str, Any] = record.get("arguments", {})
    return (
        f"{many(patches, 'patch', 'patches')} in {many(len(found.exact), 'sweep')} and "
        f"{many(passes, 'forward pass', 'forward passes')}",
        f"pair: {arguments.get('pair', found.pair.kind)}",
        many(len(found.measure.clean), "token")
        + ("" if found.pair.kind == "own" else f", needle at {arguments.get('depth', '?')} %"),
        "denoising" if found.denoises else "noising",
        f"seed {record.get('seed')}",
    )


def patch_table(found: Patched, model: str) -> str:
    """The strongest patch of each sweep, with its estimate by gradients."""
    rows = [["sweep", "strongest patch", "effect", "by gradient"]]
    for name, result in found.exact.items():
        place = strongest(result)[0]
        words = place.words if place.effect >= sections.LEAST_SHOWN else sections.NONE
        estimate = found.estimated.get(name)
        guessed = "" if estimate is None else number(float(effect(estimate).flatten()[effect(result).argmax()]))
        rows.append([name, words, number(place.effect), guessed])
    verb = "restored" if found.denoises else "destroyed"
    title = f"{model}: share of the {WORDS[found.measure.name]} {verb} by one patch"
    return f"{title}\n{columns(rows, left=2)}"
