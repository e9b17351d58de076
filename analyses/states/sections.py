"""The parts of the report on states: half-lives, sizes, flow, what is held, hidden attention, knock-outs, probes.

How it fails: pure; what a recurrence has not (ranks of vectors, erasures without a delta rule) has no picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from analyses.states.found import Found, OfPrompt
from analyses.states.looking import HiddenHeads, shown_positions
from analyses.states.probe import Read, StateProbes
from hybridlens.display import many
from hybridlens.viz.blocks import Block, Chart, ChartGrid, Patterns, Section, Table, Words
from hybridlens.viz.curves import lasting_curves, token_curves
from hybridlens.viz.entries import Entry, percent
from hybridlens.viz.layout import COLORS
from hybridlens.viz.patterns import PatternFigure
from hybridlens.viz.positions import position_heatmap, position_height, position_width, visible
from hybridlens.viz.words import DASH

SURE = 0.05
"""A p-value up to this is said to be further than chance."""

FLOWS = {"kept": "left by decay", "wrote": "written", "already": "stood there already", "erased": "erased"}
"""Field of `Flow` -> its name."""


class SpanShare(NamedTuple):
    """What a span of tokens holds of the states after the last token."""

    tokens: str
    mean: float
    most: float
    where: str
    even: float


class BestProbe(NamedTuple):
    """The state that a label is read from best."""

    where: str
    accuracy: float
    shuffled: float
    p: float
    """The share of shuffles, the labels themselves included, of which the best head of all is as good (Westfall and
    Young 1993, "Resampling-Based Multiple Testing")."""


def half_lives(found: Found) -> Section:
    """How long the parts of each layer's states last."""
    layers = found.prompts[0].spectrum.layers
    lasts = {f"L{layer}": _half_lives(found, i).tolist() for i, layer in _few(layers)}
    figure = lasting_curves(lasts, _length(found), "half-life, tokens", "parts of the state that last so long")
    chosen = "" if len(lasts) == len(layers) else f" Drawn are {len(lasts)} of {many(len(layers), 'layer')}."
    text = (
        "A part of a state that each token multiplies by a has lost half of what it held after ln 2 / E[−ln a] tokens, "
        f"the mean going over the tokens of the prompts.{chosen}"
    )
    chart = Chart(figure, "Share of the parts of each layer's states by half-life", "How long states keep")
    header, *rows = layer_rows(found)
    return Section("half-lives", "Half-lives", (Words(text), chart, Table(header, tuple(rows))))


def layer_rows(found: Found) -> list[tuple[str, ...]]:
    """A heading, and a row a layer: half-lives, size at the end, what tokens do, what stands there at the end."""
    layers = found.prompts[0].spectrum.layers
    ranked = found.prompts[0].sizes.effective_rank is not None
    spans = [kind for kind in (False, True) if _of_span(found.prompts[0], kind) is not None]
    names = [
        "layer", "half-life, median", "5 to 95 %", "norm at the end",
        *([f"effective rank of {found.prompts[0].sizes.most}"] if ranked else []),
        *(FLOWS[name] for name in _flows(found)),
        *(("needle holds" if kind else f"first {found.first} hold") for kind in spans),
    ]  # fmt: skip
    rows = [tuple(names)]
    for i, layer in enumerate(layers):
        low, middle, high = _half_lives(found, i).quantile(torch.tensor([0.05, 0.5, 0.95]).double()).tolist()
        ranks = [of.sizes.effective_rank for of in found.prompts]
        row = [f"L{layer}", tokens(middle), f"{tokens(low)} to {tokens(high)}"]
        row.append(f"{mean([of.sizes.norm[i, ..., -1] for of in found.prompts]):.3g}")
        if ranked:
            row.append(f"{mean([rank[i, ..., -1] for rank in ranks if rank is not None]):.1f}")
        row += [percent(mean([getattr(of.flow, name)[i] for of in found.prompts])) for name in _flows(found)]
        for kind in spans:
            shares = [share for of in found.prompts if (share := _of_span(of, kind)) is not None]
            row.append(percent(mean([share[i] for share in shares])))
        rows.append(tuple(row))
    return rows


def over_time(found: Found) -> Section:
    """Norm and ranks over the middle prompt."""
    of = found.prompts[len(found.prompts) // 2]
    measures: list[tuple[str, str, Tensor | None]] = [
        ("norm", "norm of a head's state", of.sizes.norm),
        ("effective rank", f"effective rank, at most {of.sizes.most}", of.sizes.effective_rank),
        ("stable rank", f"stable rank, at most {of.sizes.most}", of.sizes.stable_rank),
    ]
    charts = [
        Chart(
            token_curves(_by_layer(of, values), of.sizes.positions, title, of.prompt.needle),
            f"{name} of the states over the prompt, by layer", name,
        )
        for name, title, values in measures
        if values is not None
    ]  # fmt: skip
    ranks = (
        "Effective rank is exp of the entropy of the singular values' shares, stable rank Σσ² / max σ²: how many "
        "directions are in use."
        if of.sizes.effective_rank is not None
        else "States without addresses are vectors and have no rank."
    )
    text = f"Means over the heads of each layer, in the prompt with the {of.prompt.words}. {ranks}"
    return Section("sizes", "Size over time", (Words(text), ChartGrid(tuple(charts))))


def flows(found: Found, texts: Sequence[str]) -> Section:
    """What each token of the middle prompt leaves, writes, finds there already and erases."""
    of = found.prompts[len(found.prompts) // 2]
    shown = shown_positions(len(of.prompt.tokens), of.prompt.needle)
    names = [f"L{layer}" for layer in of.flow.layers]
    marked = [i for i, at in enumerate(shown) if of.prompt.needle and of.prompt.needle[0] <= at < of.prompt.needle[1]]
    charts: list[Block] = []
    for name in (name for name in _flows(found) if name != "kept"):
        values = getattr(of.flow, name)[:, 0].nanmean(dim=1)[:, list(shown)]
        figure = position_heatmap(
            values.tolist(), names, [f"{at} {visible(texts[at])}" for at in shown], "layer", FLOWS[name], 1.0, marked
        )
        size = position_height(len(names)), position_width(len(shown))
        charts.append(Chart(figure, f"{FLOWS[name]}, by layer and token", _TITLES[name], *size))
    return Section("flow", "What each token does to the states", (Words(_FLOW), *charts))


_TITLES = {
    "wrote": "Written: all that a token adds, against what then stands there (norms)",
    "already": "Stood there already: the share of what is written that the state held at that address before",
    "erased": "Erased: what a token takes away at its address, against all that stood there (norms)",
}
_FLOW = (
    "Means over the heads of each layer; what decay leaves is in the table above. 1 of “stood there already” means "
    "that just what is written stood there, above 1 more of it, below 0 its opposite."
)


def held(found: Found) -> Section:
    """What the first tokens and the needle hold, over the middle prompt."""
    of = found.prompts[len(found.prompts) // 2]
    charts: list[Block] = []
    for place, span in enumerate(of.holding.spans):
        needle = place == len(of.holding.spans) - 1 and of.prompt.needle is not None
        curves = _by_layer(of, of.holding.share[..., place, :], 5)
        curves["if all held the same"] = of.holding.even[place].tolist()
        title = "The needle" if needle else f"The first {many(span[1], 'token')}"
        figure = token_curves(curves, of.holding.positions, "share of the state", of.prompt.needle)
        charts.append(Chart(figure, f"{title}: share of the states over the prompt, by layer", title))
    text = (
        "A state is the sum of what is left of all that tokens put there. The share of a span's own sum C in the "
        "state S is ⟨C, S⟩ / ⟨S, S⟩; the shares of all tokens add up to 1. Means over the heads of each layer, in "
        f"the prompt with the {of.prompt.words}."
    )
    rows: list[tuple[Entry, ...]] = []
    for needle in (False, True):
        share = span_shares(found, needle)
        if share is not None:
            name = "needle" if needle else f"first {share.tokens}"
            rows.append((name, percent(share.mean), percent(share.even), f"{percent(share.most)} in {share.where}"))
    header = ("after the last token", "mean share", "if all held the same", "at most")
    return Section("held", "What the states hold", (Words(text), *charts, Table(header, tuple(rows))))


def hidden(found: Found, seen: HiddenHeads, texts: Sequence[str]) -> Section:
    """Hidden attention, and erasures, of the heads that matter."""
    of = found.prompts[len(found.prompts) // 2]
    names = [f"L{layer} S{head}" for layer, head in seen.heads]
    shown = [texts[at] for at in seen.positions]
    what = "hold most of the needle at the end" if of.prompt.needle is not None else "keep longest, one a layer"
    note = f"{len(shown)} of {many(len(of.prompt.tokens), 'token')}; the heads that {what}"
    title, at = "What each position reads of each token's value", seen.positions
    figures = [PatternFigure(title, shown, seen.reads.numpy(), names, note, at)]
    if seen.erases is not None:
        title = "What each token takes away of each earlier one's value"
        figures.append(PatternFigure(title, shown, seen.erases.numpy(), names, note, at))
    text = (
        "Hidden attention: what a position reads out of the state is the sum of all earlier values times these "
        "weights, exactly, with all decays and erasures between. Rows need not sum to 1, and weights may be negative."
    )
    return Section("hidden", "Hidden attention", (Words(text), Patterns(tuple(figures))))


def knocked(found: Found) -> Section:
    """Each knock-out beside random heads."""
    rows: list[tuple[Entry, ...]] = []
    for one in found.knockouts.values():
        spread = one.random_change
        what = "what they wrote of the needle" if one.what == "write" else "what they read at the last token"
        drawn = f"{many(len(one.random), 'set')} of {'the same layers' if one.pool == 'layers' else 'the whole model'}"
        rows.append((
            (heads_words(one.heads), what), f"{one.untouched:.3f}", f"{one.value:.3f}", _signed(one.change),
            (_signed(spread.mean()), f"{_signed(spread.min())} to {_signed(spread.max())}, {drawn}"),
            f"{one.p_value:.2g}",
        ))  # fmt: skip
    first = next(iter(found.knockouts.values()))
    text = (
        f"The heads that hold most of the needle after the last token are silenced: what they write at the needle's "
        f"tokens is left out of their states, or what they read at the last token. Measured: {first.metric}. Beside "
        "it as many random heads, at the same tokens; p is the share of random sets, the one itself included, that "
        "change it at least as much."
    )
    header = ("silenced", "untouched", "without", "change", "random heads", "p")
    return Section("knockouts", "Who needs it: heads silenced", (Words(text), Table(header, tuple(rows))))


def probed(probes: StateProbes) -> Section:
    """What probes read of each layer's states, stream and convolution."""
    rows: list[tuple[Entry, ...]] = []
    for i, layer in enumerate(probes.layers):
        best = int(probes.states.accuracy[i].nan_to_num(-1.0).argmax())
        name = f"L{layer} S{best}" if probes.heads[i] > 1 else f"L{layer}"
        rows.append((
            name, _accuracy(probes.states, i, best), percent(float(probes.states.accuracy[i].nanmean())),
            _accuracy(probes.stream, i), _accuracy(probes.convolution, i),
        ))  # fmt: skip
    text = (
        "Which of two needles a prompt has, read off after its last token by a linear probe (ridge regression, "
        f"{probes.folds} folds, both prompts of an essay in one fold): accuracy, its mean when labels are shuffled "
        f"{many(probes.states.shuffled.shape[-1], 'time')}, and p, the share of shuffles, the labels themselves "
        f"included, that are read as well. Guessing is right in {percent(probes.majority)}. The best of several heads "
        "is best by chance too, and its p here is of that head alone. What the stream that enters the layer tells as "
        "well, or its convolution, the state need not have remembered."
    )
    header = ("best head of the layer", "state", "mean over heads", "stream into the layer", "convolution")
    return Section("probes", "What a linear probe reads", (Words(text), Table(header, tuple(rows))))


def best_probe(probes: StateProbes) -> BestProbe:
    """The state that the needle is read from best, with what shuffled labels give there."""
    ((layer, head), accuracy, _), *_ = probes.top(1)
    place = probes.layers.index(layer)
    best = probes.states.shuffled.nan_to_num(-1.0).flatten(0, 1).amax(dim=0)
    p = (1 + int((best >= accuracy).sum())) / (1 + len(best))
    return BestProbe(f"L{layer} S{head}", accuracy, float(probes.states.shuffled[place, head].mean()), p)


def _signed(change: float | Tensor) -> str:
    return f"{float(change):+z.3f}".replace("-", "−")


def _accuracy(read: Read, *place: int) -> Entry:
    accuracy, p = float(read.accuracy[place]), float(read.p_value[place])
    if math.isnan(accuracy):
        return DASH
    return percent(accuracy), f"shuffled {percent(float(read.shuffled[place].mean()))}, p = {p:.2g}"


def heads_words(heads: Sequence[tuple[int, int]]) -> str:
    """Some heads in words: "L2 S3", "L2 S3 and L4 S0", "8 heads (L2 S3, L4 S0, …)"."""
    names = [f"L{layer} S{head}" for layer, head in heads]
    if len(names) <= 3:
        return " and ".join(names)
    return f"{many(len(names), 'head')} ({', '.join(names[:3])}, …)"


def tokens(half_life: float) -> str:
    """A half-life in tokens, as short as it may be."""
    if half_life > 99_999:
        return "over 99,999"
    return f"{half_life:.1f}" if half_life < 10 else f"{half_life:,.0f}"


def span_shares(found: Found, needle: bool) -> SpanShare | None:
    """What the first tokens, or the needle, hold after the last token; None where no prompt has such a span."""
    of = [(one, share) for one in found.prompts if (share := _of_span(one, needle)) is not None]
    if not of:
        return None
    shares = torch.stack([share for _, share in of]).nanmean(dim=0)
    place = int(shares.flatten().nan_to_num(-math.inf).argmax())
    layer, head = of[0][0].holding.layers[place // shares.shape[1]], place % shares.shape[1]
    sizes = {span[1] - span[0] for one, _ in of for span in [_span(one, needle)] if span is not None}
    even = sum(sizes) / len(sizes) / (sum(len(one.prompt.tokens) for one, _ in of) / len(of))
    few, most = (min(sizes), max(sizes))
    size = many(most, "token") if few == most else f"{few} to {many(most, 'token')}"
    return SpanShare(size, float(shares.nanmean()), float(shares.max()), f"L{layer} S{head}", even)


def _span(of: OfPrompt, needle: bool) -> tuple[int, int] | None:
    place = _place(of, needle)
    return None if place is None else of.holding.spans[place]


def _place(of: OfPrompt, needle: bool) -> int | None:
    spans = len(of.holding.spans)
    if needle:
        return spans - 1 if of.prompt.needle is not None else None
    return 0 if spans > (of.prompt.needle is not None) else None


def _of_span(of: OfPrompt, needle: bool) -> Tensor | None:
    """Shares after the last token [layer, head]."""
    place = _place(of, needle)
    return None if place is None else of.holding.share[:, 0, :, place, -1]


def _half_lives(found: Found, layer: int) -> Tensor:
    return torch.cat([of.spectrum.half_life[layer].flatten() for of in found.prompts])


def _flows(found: Found) -> list[str]:
    erases = any(of.flow.erases for of in found.prompts)
    return [name for name in FLOWS if name != "erased" or erases]


def _length(found: Found) -> int:
    return round(sum(len(of.prompt.tokens) for of in found.prompts) / len(found.prompts))


def _few(layers: Sequence[int], most: int = len(COLORS)) -> list[tuple[int, int]]:
    """Places and numbers of at most so many layers, evenly spread."""
    n = min(most, len(layers))
    places = sorted({round(i * (len(layers) - 1) / max(1, n - 1)) for i in range(n)})
    return [(i, layers[i]) for i in places]


def _by_layer(of: OfPrompt, values: Tensor, most: int = len(COLORS)) -> dict[str, list[float]]:
    """Means over heads [layer 1 head pos] by layer."""
    return {f"L{layer}": values[i, 0].nanmean(dim=0).tolist() for i, layer in _few(of.holding.layers, most)}


def mean(parts: Sequence[Tensor]) -> float:
    """Of all entries that are known."""
    return float(torch.cat([part.flatten() for part in parts]).nanmean())
