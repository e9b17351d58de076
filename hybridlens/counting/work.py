"""How many floating-point operations a model does for given tokens, from its sizes alone.

Counted are products with weights (a multiplication and an addition for each number of a matrix and each token), scores
and sums of values of attention for the keys that each query sees, and what recurrences do to their states, token by
token (`layer_config`). Elementwise work (norms, activations, softmax, gates) is not, nor are masked scores that a
kernel computes and drops, nor what a scan in chunks does beyond the recurrence itself.

Weights are counted where the model has them (`HookedNetwork`, one without memory will do), so that every family's own
projections count: a linear map or convolution once for each token, a mixture's experts as often as tokens are sent to
them, weights that a mixer multiplies by itself where it says so (`HasMatrices`).

How it fails: quantised weights, whose numbers are packed, raise `CheckpointError`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import nn

from hybridlens.blocks import Block
from hybridlens.config import LayerConfig
from hybridlens.errors import CheckpointError
from hybridlens.mlps import HookedMoe
from hybridlens.network import HookedNetwork
from hybridlens.projections import Adapted
from hybridlens.shared_block import SharedBlock


@runtime_checkable
class HasMatrices(Protocol):
    """A mixer that multiplies by weights which are no linear map or convolution of its family's."""

    def matrices(self) -> tuple[torch.Tensor, ...]:
        """Those weights."""
        ...


class LayerWork(NamedTuple):
    """What one layer does, in floating-point operations, and what it holds, in numbers."""

    dense: int
    """Numbers of the matrices that every token is multiplied by."""
    expert: int
    """Those of one routed expert; 0 without."""
    experts: int
    """How many experts there are."""
    chosen: int
    """How many of them a token goes to."""
    score: int
    """Operations of one query's scores with one key."""
    pair: int
    """Those of a query and a key in all."""
    window: int | None
    """Keys that a query sees, itself included; None: all."""
    unfolding: int
    """Operations for each key that is held, in every pass."""
    state: int
    """Operations of a token on recurrent states."""

    @property
    def token(self) -> int:
        """Operations of a token, wherever it stands."""
        return 2 * (self.dense + self.chosen * self.expert) + self.state

    def at(self, start: int, count: int, scores: int = 1) -> int:
        """Operations of `count` tokens behind `start` others, read in one pass.

        Args:
            start: tokens read before.
            count: tokens to read.
            scores: how often the scores are computed.
        """
        seen = pairs(start, count, self.window) if self.pair else 0
        held = start if self.window is None else min(start, self.window - 1)
        unfolded = self.unfolding * held if count else 0
        return count * self.token + seen * (self.pair + (scores - 1) * self.score) + unfolded


@dataclass(frozen=True)
class ModelWork:
    """What a model does for tokens, and what weights it does it with."""

    layers: Mapping[LayerWork, int]
    """Kinds of layers, and how many there are of each."""
    unembedding: int
    """Numbers of the matrix that makes logits."""
    parameters: int
    """Weights in all, numbers."""

    @property
    def token(self) -> int:
        """Operations of a token, scores and logits left out."""
        return sum(layer.token * n for layer, n in self.layers.items())

    @property
    def logits(self) -> int:
        """Operations of one token's logits."""
        return 2 * self.unembedding

    @property
    def mixtures(self) -> int:
        """Layers with a mixture of experts."""
        return sum(n for layer, n in self.layers.items() if layer.experts)

    @property
    def n_layers(self) -> int:
        """Layers."""
        return sum(self.layers.values())

    def reading(self, start: int, count: int, scores: int = 1) -> int:
        """Operations of `count` tokens of a row behind `start` others, in one pass, the logits of the last included.

        Args:
            start: tokens read before.
            count: tokens to read.
            scores: how often attention scores are computed: twice where somebody looks at them.
        """
        return sum(layer.at(start, count, scores) * n for layer, n in self.layers.items()) + self.logits

    def decoding(self, start: int, steps: int, scores: int = 1) -> int:
        """Operations of `steps` decode steps of a row that has read `start` tokens; arguments as `reading`."""
        unfolded = sum(layer.unfolding * n for layer, n in self.layers.items())
        once = self.reading(start, steps, scores) + (steps - 1) * self.logits
        if not unfolded:
            return once
        return sum(self.reading(start + step, 1, scores) for step in range(steps))

    def weights_read(self, tokens: int) -> int:
        """Numbers of weights that a pass over so many tokens reads at least; of experts those that can be in use."""
        layers = sum(
            n * (layer.dense + layer.expert * min(layer.experts, layer.chosen * tokens))
            for layer, n in self.layers.items()
        )
        return layers + self.unembedding


def pairs(start: int, count: int, window: int | None) -> int:
    """How many keys queries see in all, each its own included: the sum of min(position + 1, window).

    Args:
        start: tokens before the first query.
        count: queries.
        window: keys that a query sees; None: all before it.
    """
    free = count if window is None else max(0, min(count, window - start))  # those that see everything
    whole = free * start + free * (free + 1) // 2
    return whole if window is None else whole + (count - free) * window


def work_of(network: HookedNetwork) -> ModelWork:
    """What a model does; its weights may be without memory.

    Raises:
        CheckpointError: it is quantised.
    """
    model = network.wrapped[0]
    if getattr(model.config, "quantization_config", None) is not None:
        raise CheckpointError("the model is quantised, so its stored numbers are not its weights; give the original")
    layers = Counter(
        _layer(cast(Block, block), has) for block, has in zip(network.blocks, network.cfg.layers, strict=True)
    )
    unembedding: Any = model.get_output_embeddings()
    total = sum(weight.numel() for weight in model.parameters())
    return ModelWork(dict(layers), unembedding.weight.numel(), total)


def _layer(block: Block, has: LayerConfig) -> LayerWork:
    moe = next((part for part in block.parts.values() if isinstance(part, HookedMoe)), None)
    expert = 0
    if moe is not None:
        experts: nn.Module = moe.parts.experts
        expert = sum(w.numel() for w in experts.parameters() if w.ndim > 2) // (moe.cfg.n_experts or 1)
    attn, ssm = has.attn, has.ssm
    return LayerWork(
        dense=sum(matrix.numel() for matrix in _matrices(block, moe)),
        expert=expert,
        experts=0 if moe is None else moe.cfg.n_experts or 0,
        chosen=0 if moe is None else moe.chosen,
        score=0 if attn is None else attn.score_work,
        pair=0 if attn is None else attn.pair_work,
        window=None if attn is None else attn.window,
        unfolding=0 if attn is None else attn.unfolding_work,
        state=0 if ssm is None else ssm.state_work,
    )


def _matrices(block: Block, moe: HookedMoe | None) -> Iterator[torch.Tensor]:
    """The weights of a layer that every token is multiplied by."""
    home = block.home[0]
    apart = set[nn.Module]() if moe is None else set(moe.parts.experts.modules())
    if block.shared is not None:  # of the adapters that a shared block has for each of its uses, one is this layer's
        apart |= {part for module in home.modules() if isinstance(module, nn.ModuleList) for part in module.modules()}
        yield from _adapters(block.shared)
    for module in home.modules():
        if isinstance(module, nn.Linear | nn.Conv1d) and module not in apart:
            yield module.weight
    if moe is not None and not isinstance(moe.parts.router, nn.Linear):
        yield cast(torch.Tensor, moe.parts.router.weight)
    for part in block.parts.values():
        if isinstance(part, HasMatrices):
            yield from part.matrices()


def _adapters(shared: SharedBlock) -> Iterator[torch.Tensor]:
    """The weights of a shared block's adapters in one layer, the first map of each as often as it is used."""
    parts = (*vars(shared.attn.parts).values(), *vars(shared.mlp.parts).values())
    adapted = [part for part in parts if isinstance(part, Adapted)]
    yield from (cast(torch.Tensor, part.narrow.module.weight) for part in adapted)
    yield from {id(part.widen.module): cast(torch.Tensor, part.widen.module.weight) for part in adapted}.values()
