"""Edge attribution: what every writer would tell every reader, estimated from gradients in a few passes.

To first order, giving one reader another run's output of one writer changes the metric by (writer's output there - its
output here) · gradient at that reader's input (Syed et al. 2023, "Attribution Patching Outperforms Automated Circuit
Discovery"; Hanna et al. 2024, EAP-IG, with `steps`). So it estimates `paths.path_patch` for all pairs at once, from one
differentiated run (or `steps` of them) and one plain one. EAP-IG's own code takes gradients at k ÷ m of the way, k from
1 to m; here they are taken at the middles of m equal parts, which come nearer to the integral. Keys and values are read
once for each shared head, whose gradient is that of all query heads that share it. Heads of matrix states write as
attention's do, the scale of the norm behind their readout, or behind any head's output, as it was in each run.

The gradient at a reader's input is by the residual stream as that reader alone reads it, before its norm. It is taken
at the query, key or value and brought back through the head's map with the norm folded in (`hybridlens.weights`; keys
and values of latent attention through the norm of the latents too), or
at the normalised stream that a mixer, an MLP or the logits read; then through the norm with the scale of that run: with
x̂ = x / s, a gradient v by x̂ is (v - x̂ · mean(x̂ v)) / s by x, the scale's own change included.

Scores are sums over positions, in which effects of both signs may cancel. All writers of one reader add up to the
gradient times the whole difference of its input, biases being the same in both runs.

How it fails: as attribution patching does (`analyses.patching.gradients`): it follows a straight line, and a norm that
the writer would change much, or a saturated softmax, is estimated badly. Only direct edges count. A quantised model,
whose maps cannot be read, is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from analyses.experiment.per_prompt import per_prompt
from analyses.patching.alignment import Sides
from analyses.patching.metrics import MetricLike
from analyses.patching.results import Direction, EdgeResult
from analyses.patching.slopes import Runs, Slopes, compare, wide
from analyses.patching.writers import (
    PART_OF,
    Reader,
    Writer,
    check_ends,
    check_once,
    head_reads,
    head_writes,
    norm_before,
    reaches,
    read_point,
    readers_of,
    terms_of,
    writers_of,
    written_points,
)
from hybridlens.blocks import Block
from hybridlens.boundary import Positive, public
from hybridlens.errors import InputError
from hybridlens.model import HybridLens
from hybridlens.tokens import TokensLike
from hybridlens.weights import AttentionWeights, Weights

ELEMENTS = 1 << 24
"""Numbers of writers' outputs and readers' gradients held at once; more positions than fit are taken in portions."""


@per_prompt("clean", each=["corrupt"], shared={"metric": 1})
@public
def edge_attribution(
    lens: HybridLens,
    clean: TokensLike,
    corrupt: TokensLike,
    metric: MetricLike,
    *,
    writers: Sequence[Writer] | None = None,
    readers: Sequence[Reader] | None = None,
    direction: Direction = "denoise",
    steps: Positive | None = None,
) -> EdgeResult:
    """Estimate for every writer and reader what the direct path between them would change.

    Prompts, metric, direction and steps are as in `gradients.attribution_patch`.

    Args:
        writers: where edges begin; None for all of `writers_of`.
        readers: where they end; None for all of `readers_of`.

    Raises:
        InputError: what `attribution_patch` refuses, or writers or readers that the model lacks or edges cannot join.
        UnknownNameError: a direction that does not exist.
        CheckpointError: the model is quantised.
    """
    sources = tuple(writers_of(lens) if writers is None else writers)
    sinks = tuple(readers_of(lens) if readers is None else readers)
    if not sources or not sinks:
        raise InputError(f"{len(sources)} writers and {len(sinks)} readers given, expected at least one of both")
    check_ends(lens, sources, sinks, "edges")
    check_once([writer.words for writer in sources], [reader.words for reader in sinks])
    sides = Sides.of(lens, clean, corrupt, metric, direction)
    layers = sorted({sink.layer for sink in sinks if sink.head is not None and sink.layer is not None})
    heads = {layer: Weights.of_model(lens).attention(layer) for layer in layers}
    points = [name for writer in sources for name in written_points(lens, writer)]
    points += [name for reader in sinks for name in _read(lens, reader)]
    runs = compare(sides, points, steps)
    scores = torch.zeros(len(sources), len(sinks), dtype=torch.float64)
    for here in runs.passes:
        scores += _scores(lens, runs, here, sources, sinks, heads)
    there = torch.tensor([[reaches(lens, writer, reader) for reader in sinks] for writer in sources])
    scores = torch.where(there, scores / runs.count, torch.nan)
    return EdgeResult(scores=scores, writers=sources, readers=sinks, **runs.said)


def _read(lens: HybridLens, reader: Reader) -> tuple[str, ...]:
    """The hook points that a reader's gradient takes: where it is taken, and those of the norm before it, if any."""
    norm, taken = norm_before(lens, reader), read_point(lens, reader)
    return (taken,) if norm is None else (taken, f"{norm}.hook_normalized", f"{norm}.hook_scale")


def _scores(
    lens: HybridLens,
    runs: Runs,
    here: Slopes,
    writers: Sequence[Writer],
    readers: Sequence[Reader],
    heads: Mapping[int, AttentionWeights],
) -> Float[Tensor, "writer reader"]:
    """Every writer's change times every reader's gradient, summed over positions and the residual stream."""
    x = here.values[_read(lens, readers[0])[0]]
    length, d_model = x.shape[1], lens.cfg.d_model
    step = max(1, ELEMENTS // ((len(writers) + len(readers)) * d_model))
    total = torch.zeros(len(writers), len(readers), dtype=torch.float64)
    for start in range(0, length, step):
        part = slice(start, start + step)
        changes = [change.to(x.device) for change in _changes(lens, runs, writers, part)]
        gradients = [_gradient(lens, here, reader, part, heads).to(x.device) for reader in readers]
        products = einsum(torch.stack(changes), torch.stack(gradients), "w p d, r p d -> w r")
        total += products.to("cpu", torch.float64)
    return total


def _changes(
    lens: HybridLens, runs: Runs, writers: Sequence[Writer], part: slice
) -> Iterator[Float[Tensor, "pos d_model"]]:
    """What each writer writes otherwise in the other run; of the heads of a layer all is made at once."""
    made: dict[str, Tensor] = {}
    for writer in writers:
        names = written_points(lens, writer)
        name = names[0]
        by_head = None if writer.layer is None else head_writes(lens, writer.layer, PART_OF[writer.kind])
        if writer.index is not None and by_head is not None and name in made:
            yield made[name][:, writer.index]
            continue
        there, base = (
            terms_of(lens, writer, {name: wide(run[name][:, part]) for name in names})[0]
            for run in (runs.source, runs.base)
        )
        change = there - base
        if writer.index is None or by_head is None:
            yield change
            continue
        with torch.no_grad():
            made[name] = by_head.written(change[None].to(lens.dtype))[0].to(change.dtype)
        yield made[name][:, writer.index]


def _gradient(
    lens: HybridLens, here: Slopes, reader: Reader, part: slice, heads: Mapping[int, AttentionWeights]
) -> Float[Tensor, "pos d_model"]:
    """How the metric changes with the residual stream as this reader alone reads it."""
    taken, *norm = _read(lens, reader)
    grad = wide(here.gradients[taken][0, part])
    if norm and _folds(lens, reader):
        grad = _unfolded(lens, reader, grad, here.values[norm[0]][0, part])
    elif reader.head is not None and reader.layer is not None:
        weights = heads[reader.layer]
        maps = {"q": weights.W_Q, "k": weights.W_K, "v": weights.W_V, "gate": weights.W_gate}
        W = maps[reader.kind]
        assert W is not None
        slope = head_reads(lens, reader.layer)[reader.kind].slope(wide(here.values[taken][0, part]))
        grad = (grad * slope)[:, reader.head] @ W[reader.head].T.to(grad)
    if not norm:
        return grad
    normalized, scale = norm
    x = wide(here.values[normalized][0, part]).to(grad.device)
    inward = grad - x * (x * grad).mean(dim=-1, keepdim=True)
    return inward / wide(here.values[scale][0, part]).to(grad.device)


def _folds(lens: HybridLens, reader: Reader) -> bool:
    """Whether a reader is of keys or values that are made of latents."""
    attention = None if reader.layer is None else lens.cfg.layers[reader.layer].attn
    return reader.kind in ("k", "v") and attention is not None and attention.latent is not None


def _unfolded(
    lens: HybridLens, reader: Reader, grad: Float[Tensor, "pos head width"], x: Float[Tensor, "pos d_model"]
) -> Float[Tensor, "pos d_model"]:
    """A gradient at keys or values made of latents by the normalised stream `x`, the norm of the latents included."""
    assert reader.layer is not None
    before = cast(Block, lens.blocks[reader.layer]).branches[0].norm
    with torch.enable_grad():
        given = wide(x).detach().requires_grad_()
        stream = given if before is None else before.norm.weighted(given, lens.dtype)
        made = head_reads(lens, reader.layer)[reader.kind].read(stream[None].to(lens.dtype))[0, :, reader.head]
        (found,) = torch.autograd.grad(made, given, grad[:, reader.head].to(made))
    return found
