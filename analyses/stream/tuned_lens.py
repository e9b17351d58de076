"""The tuned lens: the logit lens behind affine maps that are fitted to the model's own answers, place by place.

Each map x + A x + b starts as the identity (A = 0, b = 0: the logit lens) and is fitted, apart from the others, to
minimise KL(model ‖ read there) over the tokens of given texts (Belrose et al. 2023), by Adam with a rate that falls
linearly to 0. So that one rate does for streams of any size, A is stepped in units of 1 ÷ √d_model and b in units of
the root mean square of the stream at its place. The model's weights stay as they are, and get no gradients.

Some texts are held out, and the loss on them is said beside that of the logit lens: where it is not lower, the map has
learned nothing that holds for other texts.

How it fails: few texts are learned by heart, which the held-out loss shows. The maps are of what a place says about the
next token on texts like these; on others they may mislead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from annotated_types import Gt, Lt
from jaxtyping import Float
from torch import Tensor

from analyses.patching.snapshot import keeping
from analyses.stream.lens_result import StreamLens, Unit
from analyses.stream.logit_lens import Places, Targets, expected, read_places, read_stream
from analyses.stream.reading import BATCH, LOGITS, batches, rows_of
from analyses.stream.translators import TunedLens, affine
from hybridlens.boundary import Positive, Seed, public
from hybridlens.cache.readout import stream_logits
from hybridlens.errors import InputError
from hybridlens.model import HybridLens
from hybridlens.running import PosSlice
from hybridlens.tokens import TokensLike

STEPS, RATE, HELD_OUT = 250, 0.02, 0.2


@public
def tuned_lens(
    lens: HybridLens,
    tuned: TunedLens,
    prompts: TokensLike,
    *,
    targets: Targets = "model",
    positions: PosSlice = None,
    best: Positive = 5,
    unit: Unit = "nats",
    batch_size: Positive = BATCH,
) -> StreamLens:
    """What the residual stream would say at every place that has a map; see `logit_lens` for arguments and result.

    Raises:
        InputError: the maps are of another model; and as `logit_lens`.
    """
    tuned.check(lens)
    places = read_places(lens, tuned.places)
    return read_stream(lens, prompts, "tuned", places, tuned.translate, targets, positions, best, unit, batch_size)


@public
def fit_tuned_lens(
    lens: HybridLens,
    texts: TokensLike,
    *,
    places: Places | None = None,
    held_out: Annotated[float, Gt(0), Lt(1)] = HELD_OUT,
    steps: Positive = STEPS,
    rate: Annotated[float, Gt(0)] = RATE,
    batch_size: Positive = BATCH,
    seed: Seed = 0,
    progress: Callable[[int], None] | None = None,
) -> TunedLens:
    """Fit a map for each place.

    Args:
        lens: the model.
        texts: at least two, of any lengths.
        places: hook points of the residual stream; None for what enters each layer.
        held_out: the share of texts that nothing is fitted to, at least one.
        steps: of Adam, each on a batch of texts.
        rate: of the first step.
        batch_size: texts of a step.
        seed: of which texts are held out, and of their order.
        progress: called with 1 after each step.

    Raises:
        UnknownNameError: a place that the model lacks.
        InputError: fewer than two texts, or a place that is not as wide as the stream.
    """
    rows = rows_of(lens, texts)
    if len(rows) < 2:
        raise InputError(f"{len(rows)} text given, expected at least two: some are held out")
    pre = [f"blocks.{layer}.hook_resid_pre" for layer in range(lens.cfg.n_layers)]
    *own, last = read_places(lens, pre if places is None else places)
    if not own:
        raise InputError(f"the one place given, {last!r}, is the model's own answer; give earlier ones")
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=rng).tolist()
    apart = max(1, round(held_out * len(rows)))
    other, ours = [rows[i] for i in order[:apart]], [rows[i] for i in order[apart:]]
    if not ours:
        raise InputError(f"held_out {held_out:g} of {len(rows)} texts leaves none to fit to; hold out fewer")
    maps = _fitted(lens, ours, own, last, steps, rate, batch_size, rng, progress)
    plain, tuned = _losses(lens, other, own, last, maps, batch_size)
    weight, bias = (torch.stack([part[i].cpu() for part in maps.values()]) for i in (0, 1))
    return TunedLens(
        tuple(own), weight, bias, tuned, plain, len(ours), sum(map(len, ours)), lens.network.signature,
        lens.network.following.check(),
    )  # fmt: skip


_Map = tuple[Float[Tensor, "d_model d_model"], Float[Tensor, "d_model"]]


def _fitted(
    lens: HybridLens,
    rows: Sequence[Sequence[int]],
    places: Sequence[str],
    last: str,
    steps: int,
    rate: float,
    batch_size: int,
    rng: torch.Generator,
    progress: Callable[[int], None] | None,
) -> dict[str, _Map]:
    """A and b of each place."""
    d, most = lens.cfg.d_model, max(1, LOGITS // lens.cfg.d_vocab)
    held: dict[str, tuple[Tensor, Tensor]] = {}
    sizes: dict[str, Tensor] = {}
    optimizer, schedule = None, None
    queue: list[int] = []
    for _ in range(steps):
        if not queue:
            queue = torch.randperm(len(rows), generator=rng).tolist()
        some, queue = queue[:batch_size], queue[batch_size:]
        kept = _streams(lens, [rows[i] for i in some], [*places, last])
        n = len(kept[last])
        at = torch.randperm(n, generator=rng)[:most]
        if optimizer is None:
            for place in places:
                x = kept[place].float()
                sizes[place] = x.square().mean().sqrt()
                held[place] = x.new_zeros(d, d).requires_grad_(), x.new_zeros(d).requires_grad_()
            optimizer = torch.optim.Adam([part for pair in held.values() for part in pair], rate)
            schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1.0 / steps, steps)
        answer = _answer(lens, kept[last][at])
        for place in places:
            weight, bias = held[place]
            with torch.enable_grad():
                moved = affine(kept[place][at], weight / d**0.5, bias * sizes[place])
                loss = _divergence(answer, lens, moved).mean()
                grads = torch.autograd.grad(loss, [weight, bias])
            weight.grad, bias.grad = grads
        optimizer.step()
        assert schedule is not None
        schedule.step()
        if progress is not None:
            progress(1)
    return {place: (weight.detach() / d**0.5, bias.detach() * sizes[place]) for place, (weight, bias) in held.items()}


@torch.no_grad()
def _losses(
    lens: HybridLens,
    rows: Sequence[Sequence[int]],
    places: Sequence[str],
    last: str,
    maps: dict[str, _Map],
    batch_size: int,
) -> tuple[Float[Tensor, "place"], Float[Tensor, "place"]]:
    """The mean divergence over all tokens, without the maps and with them."""
    sums, n, most = torch.zeros(2, len(places), dtype=torch.float64), 0, max(1, LOGITS // lens.cfg.d_vocab)
    for start in range(0, len(rows), batch_size):
        kept = _streams(lens, rows[start : start + batch_size], [*places, last])
        for part in torch.arange(len(kept[last])).split(most):
            answer = _answer(lens, kept[last][part])
            n += len(part)
            for number, place in enumerate(places):
                x = kept[place][part]
                for which, moved in enumerate((x, affine(x, *maps[place]))):
                    sums[which, number] += float(_divergence(answer, lens, moved).double().sum())
    plain, tuned = (sums / n).float()
    return plain, tuned


@torch.no_grad()
def _streams(
    lens: HybridLens, rows: Sequence[Sequence[int]], places: Sequence[str]
) -> dict[str, Float[Tensor, "token d_model"]]:
    """What stands at places, at every token of some texts."""
    kept: dict[str, Tensor] = {}
    (read,) = batches(lens, rows, len(rows))
    with lens.hooks([(place, keeping(kept)) for place in places]):
        lens.network(*read.batch, last_only=True)
    return {place: x[read.valid.to(x.device)] for place, x in kept.items()}


@torch.no_grad()
def _answer(lens: HybridLens, resid: Float[Tensor, "token d_model"]) -> Float[Tensor, "token vocab"]:
    """The model's own log-probabilities."""
    return stream_logits(lens, resid).float().log_softmax(dim=-1)


def _divergence(
    answer: Float[Tensor, "token vocab"], lens: HybridLens, resid: Float[Tensor, "token d_model"]
) -> Float[Tensor, "token"]:
    """KL(model ‖ read there), in nats."""
    log = stream_logits(lens, resid).float().log_softmax(dim=-1).to(answer.device)
    return expected(answer, answer - log)
