"""The logit lens: the residual stream unembedded at every place, half layers too, as if it were the last one.

What stands in the stream goes through the model's final norm, its unembedding, multipliers and soft cap
(nostalgebraist 2020, "interpreting GPT: the logit lens"), so that the last place gives the model's own logits. Of a
distribution p that is read there and the model's own q: entropy -Σ p log p, divergence Σ q log(q ÷ p), and logit,
probability and rank (0 is the likeliest) of a token asked about. `analyses.stream.tuned_lens` has an affine map before
it.

A stream is read alike behind attention, recurrent layers and MLPs. Nothing is run twice: one forward pass for a batch
of prompts, and an unembedding for each place and position that is asked for.

How it fails: early layers need not write in the basis that the unembedding reads, so that what is read there may be
nothing the model "thinks"; the tuned lens says how much of that is a matter of basis. The norm is of the stream as it
is at the place. Hooks that are on the model act, and should be none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, NamedTuple, TypeAlias

import torch
from annotated_types import MinLen
from jaxtyping import Float, Int
from torch import Tensor

from analyses.patching.alignment import token_strings
from analyses.patching.snapshot import keeping
from analyses.stream.lens_result import UNITS, StreamLens, Unit
from analyses.stream.reading import BATCH, batches, blocks_of, picked, rows_of
from hybridlens.boundary import Natural, Positive, public
from hybridlens.cache.readout import ranks_of, stream_logits
from hybridlens.errors import InputError
from hybridlens.hooks import check_name
from hybridlens.model import HybridLens
from hybridlens.running import PosSlice
from hybridlens.tokens import TokensLike

Targets: TypeAlias = Natural | Sequence[Natural] | Literal["model"]
"""A token, one for each prompt, or what the model itself finds likeliest at each position."""

Places: TypeAlias = Annotated[Sequence[str], MinLen(1)]

Translate: TypeAlias = Callable[[str, Tensor], Tensor]
"""(place, residual streams [row d_model]) → what is unembedded."""


def stream_places(lens: HybridLens) -> tuple[str, ...]:
    """Every place of the residual stream: what enters the first layer, and what stands behind each mixer and MLP."""
    names = ["blocks.0.hook_resid_pre"]
    for layer in range(lens.cfg.n_layers):
        names += [f"blocks.{layer}.hook_resid_{where}" for where in ("mid", "post")]
    return tuple(name for name in names if name in lens.hook_dict)


@public
def logit_lens(
    lens: HybridLens,
    prompts: TokensLike,
    *,
    targets: Targets = "model",
    positions: PosSlice = None,
    places: Places | None = None,
    best: Positive = 5,
    unit: Unit = "nats",
    batch_size: Positive = BATCH,
) -> StreamLens:
    """What the residual stream would say at every place.

    Args:
        lens: the model.
        prompts: one or more, of any lengths.
        targets: the token asked about: one for all, one for each prompt, or the model's own answer at each position.
        positions: of each prompt, among its own tokens: one (-1 is the last of each), a slice as a tuple, a list; None
            for all.
        places: hook points of the residual stream; None for all of them. What leaves the last layer is always read.
        best: how many of the likeliest tokens are kept.
        unit: of entropies and divergences.
        batch_size: prompts in one forward pass.

    Raises:
        UnknownNameError: a place that the model lacks.
        InputError: positions outside a prompt, targets outside the vocabulary or not one for each prompt, a place that
            is not as wide as the stream.
    """
    wanted = read_places(lens, stream_places(lens) if places is None else places)
    return read_stream(lens, prompts, "logit", wanted, lambda place, x: x, targets, positions, best, unit, batch_size)


def read_places(lens: HybridLens, given: Sequence[str]) -> tuple[str, ...]:
    """Hook points as wide as the stream, and the last one, in forward order.

    Raises:
        UnknownNameError: one that the model lacks.
        InputError: one that is not as wide.
    """
    last = f"blocks.{lens.cfg.n_layers - 1}.hook_resid_post"
    names = {check_name(name, lens.hook_dict) for name in given} | {last}
    for name in names:
        if lens.hook_dict[name].axes != ("b", "p", "d"):
            axes = " ".join(lens.hook_dict[name].axes)
            raise InputError(f"{name!r} has the axes {axes}, expected a point of the residual stream (b p d)")
    return (*(name for name in lens.hook_dict if name in names and name != last), last)


@torch.no_grad()
def read_stream(
    lens: HybridLens,
    prompts: TokensLike,
    kind: Literal["logit", "tuned"],
    places: Sequence[str],
    translate: Translate,
    targets: Targets,
    positions: PosSlice,
    best: int,
    unit: str,
    batch_size: int,
) -> StreamLens:
    """What is read at `places` (the last of them the model's own answer) through a map; see `logit_lens`."""
    rows = rows_of(lens, prompts)
    chosen = [picked(len(row), positions) for row in rows]
    asked = _asked(lens, targets, len(rows))
    width, best = max(map(len, chosen)), min(best, lens.cfg.d_vocab)
    if not width:
        raise InputError("no position of any prompt was chosen, expected at least one")
    found = _Found.empty(len(places), len(rows), width, best)
    for read in batches(lens, rows, batch_size):
        kept: dict[str, Tensor] = {}
        with lens.hooks([(place, keeping(kept)) for place in places]):
            lens.network(*read.batch, last_only=True)
        at = [
            (row, read.first + row, place, position)
            for row in range(len(read.batch.tokens))
            for place, position in enumerate(chosen[read.first + row])
        ]
        for start in range(0, len(at), blocks_of(lens, len(at))):
            part = torch.tensor(at[start : start + blocks_of(lens, len(at))])
            inside, own = (part[:, 0], part[:, 3]), (part[:, 1], part[:, 2])
            token = None if asked is None else asked[part[:, 1]]
            found.fill(lens, {place: x[inside] for place, x in kept.items()}, places, translate, token, own)
    filled = torch.full((len(rows), width), -1)
    for row, own in enumerate(chosen):
        filled[row, : len(own)] = torch.tensor(own, dtype=torch.long)
    seen = {*found.top.unique().tolist(), *found.targets.unique().tolist()}
    named = sorted(seen.union(*rows) - {-1})
    return StreamLens(
        kind, tuple(places), found.entropy / UNITS[unit], found.divergence / UNITS[unit], unit, found.top,
        found.likely, found.targets, found.logits, found.probabilities, found.ranks, filled,
        tuple(map(tuple, rows)), dict(zip(map(str, named), token_strings(named, lens.tokenizer), strict=True)),
        lens.network.signature,
    )  # fmt: skip


class _Found(NamedTuple):
    """What is read, filled in batch by batch; in nats."""

    entropy: Float[Tensor, "place prompt pos"]
    divergence: Float[Tensor, "place prompt pos"]
    logits: Float[Tensor, "place prompt pos"]
    probabilities: Float[Tensor, "place prompt pos"]
    ranks: Float[Tensor, "place prompt pos"]
    likely: Float[Tensor, "place prompt pos best"]
    top: Int[Tensor, "place prompt pos best"]
    targets: Int[Tensor, "prompt pos"]

    @classmethod
    def empty(cls, places: int, prompts: int, width: int, best: int) -> _Found:
        """Nothing read yet."""
        shape, nothing = (places, prompts, width), torch.nan
        a, b, c, d, e = (torch.full(shape, nothing) for _ in range(5))
        likely, top = torch.full((*shape, best), nothing), torch.full((*shape, best), -1)
        return cls(a, b, c, d, e, likely, top, torch.full((prompts, width), -1))

    def fill(
        self,
        lens: HybridLens,
        streams: dict[str, Float[Tensor, "row d_model"]],
        places: Sequence[str],
        translate: Translate,
        tokens: Int[Tensor, "row"] | None,
        own: tuple[Int[Tensor, "row"], Int[Tensor, "row"]],
    ) -> None:
        """Read some positions at every place.

        Args:
            lens: the model.
            streams: what stands there, by place.
            places: in their order.
            translate: the map before the unembedding.
            tokens: what is asked about; None for the model's own answer.
            own: prompt and number of each position, where it goes.
        """
        final = stream_logits(lens, streams[places[-1]]).float()
        target = final.argmax(dim=-1) if tokens is None else tokens.to(final.device)
        answer = final.log_softmax(dim=-1)
        self.targets[own] = target.cpu()
        for number, place in enumerate(places):
            last = number == len(places) - 1
            logits = final if last else stream_logits(lens, translate(place, streams[place])).float().to(final.device)
            log = answer if last else logits.log_softmax(dim=-1)
            asked = logits.gather(1, target[:, None])
            best = log.topk(self.likely.shape[-1], dim=-1)
            where = (number, *own)
            self.entropy[where] = -expected(log, log).cpu()
            self.divergence[where] = expected(answer, answer - log).cpu()
            self.logits[where] = asked[:, 0].cpu()
            self.probabilities[where] = log.gather(1, target[:, None])[:, 0].exp().cpu()
            self.ranks[where] = ranks_of(logits, target[:, None])[:, 0].float().cpu()
            self.likely[where], self.top[where] = best.values.exp().cpu(), best.indices.cpu()


def expected(log: Float[Tensor, "row vocab"], of: Float[Tensor, "row vocab"]) -> Float[Tensor, "row"]:
    """Σ p x over the vocabulary, where p is not 0."""
    return torch.where(log.isneginf(), 0.0, log.exp() * of).sum(dim=-1)


def _asked(lens: HybridLens, targets: Targets, n: int) -> Int[Tensor, "prompt"] | None:
    """The token asked about of each prompt; None for the model's own answers."""
    if targets == "model":
        return None
    given = [targets] * n if isinstance(targets, int) else list(targets)
    if len(given) != n:
        raise InputError(f"{len(given)} targets given for {n} prompts, expected one for each, or one for all")
    wrong = next((token for token in given if not 0 <= int(token) < lens.cfg.d_vocab), None)
    if wrong is not None:
        raise InputError(f"target {wrong} is outside the vocabulary, expected 0..{lens.cfg.d_vocab - 1}")
    return torch.tensor(given)
