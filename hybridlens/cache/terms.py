"""The stream taken apart to the end: heads, neurons or experts, the embedding, and biases.

In this order, each in order of layers: the heads of attention and of recurrences (``L2H0``, ``L1S3``); neurons
(``L0N7``) and experts (``L1E3``, ``L1_shared_expert``), or MLPs as a whole (``0_mlp_out``, their bias in it);
``embed``; ``bias``, all biases that are in no other term; recurrent parts that write as a whole (``0_ssm_out``, their
bias in it). They add up to the stream that the layer reads. What TransformerLens has comes first, in its order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlens.cache.heads import added_by_heads, head_labels, heads_of, needed
from hybridlens.cache.held import Held
from hybridlens.cache.neurons import (
    added_by_experts,
    added_by_neurons,
    chosen_neurons,
    expert_points,
    has_neurons,
    is_mixture,
    neuron_points,
)
from hybridlens.cache.residual import PartOf
from hybridlens.cache.scaling import Through
from hybridlens.peers import Slice
from hybridlens.writes import bias_added, bias_points


class Terms(NamedTuple):
    """A stack of terms."""

    stack: Float[Tensor, "entry batch pos output"]
    labels: list[str]
    """What each of them is."""


def by_heads(held: Held, parts: Iterable[PartOf], pos: Slice, then: Through) -> list[Terms]:
    """What the heads of parts added, a stack a part; nothing of parts without heads.

    Raises:
        NotCachedError: what is needed was not kept, saying what.
    """
    parts = [part for part in parts if heads_of(held, part) is not None]
    held.need([name for part in parts for name in needed(held, part)], "what heads added")
    return [Terms(then(added_by_heads(held, part, pos).movedim(2, 0)), head_labels(held, part)) for part in parts]


def by_neurons(held: Held, layers: Iterable[int], neurons: Slice, pos: Slice, then: Through) -> list[Terms]:
    """What neurons of dense MLPs added, a stack a layer; nothing of layers without them.

    Raises:
        InputError: a layer has no such neurons.
        NotCachedError: what is needed was not kept, saying what.
    """
    layers = [layer for layer in layers if has_neurons(held, layer)]
    held.need([name for layer in layers for name in neuron_points(held, layer)], "what neurons added")
    return [
        Terms(
            added_by_neurons(held, layer, neurons, pos, then).movedim(2, 0),
            [f"L{layer}N{neuron}" for neuron in chosen_neurons(held, layer, neurons)],
        )
        for layer in layers
    ]


def every_term(held: Held, parts: Sequence[PartOf], expand_neurons: bool, pos: Slice, then: Through) -> Terms:
    """What parts added, taken apart as the module's docstring says.

    Args:
        held: the cache.
        parts: which.
        expand_neurons: neurons and experts, and not MLPs as a whole.
        pos: at which positions.
        then: what is done to each term.

    Raises:
        InputError: the stream is no sum of what is written to it.
        NotCachedError: what is needed was not kept, saying what.
    """
    what = "get_full_resid_decomposition"
    held.network.cfg.need_sum(what)
    mlps = [part.layer for part in parts if part.part == "mlp"] if expand_neurons else []
    apart = {part for part in parts if heads_of(held, part) is not None or (part.layer in mlps and part.part == "mlp")}
    wholes = [part for part in parts if part not in apart]
    mixtures = [layer for layer in mlps if is_mixture(held, layer)]
    held.need(
        [
            "hook_embed",
            *(name for part in apart if part.part != "mlp" for name in needed(held, part)),
            *(part.point for part in wholes),
            *(name for layer in mlps if layer not in mixtures for name in neuron_points(held, layer)),
            *(f"blocks.{layer}.{point}" for layer in mixtures for point in expert_points(held.block(layer))),
            *(f"blocks.{p.layer}.{point}" for p in apart for point in bias_points(held.block(p.layer), p.part)),
        ],
        what,
    )
    every, embed = Slice(None), held.rows("hook_embed", pos)
    found = by_heads(held, parts, pos, then)
    for layer in mlps:
        if layer in mixtures:
            found.append(Terms(*added_by_experts(held, layer, pos, then)))
        else:
            found += by_neurons(held, [layer], every, pos, then)
    found += [_whole(held, part, pos, then) for part in wholes if part.part == "mlp"]
    found.append(Terms(then(embed[None]), ["embed"]))
    biased = [part for part in parts if part in apart]
    found.append(Terms(then(_biases(held, biased, pos, embed)[None]), ["bias"]))
    found += [_whole(held, part, pos, then) for part in wholes if part.part != "mlp"]
    return joined(found)


def joined(found: Sequence[Terms]) -> Terms:
    """Stacks one behind the other, on the last one's device and in the widest dtype among them."""
    dtype, device = found[-1][0].dtype, found[-1][0].device
    for stack, _ in found:
        dtype = torch.promote_types(dtype, stack.dtype)
    labels = [label for _, some in found for label in some]
    return Terms(torch.cat([stack.to(device, dtype) for stack, _ in found]), labels)


def _whole(held: Held, part: PartOf, pos: Slice, then: Through) -> Terms:
    return Terms(then(held.rows(part.point, pos)[None]), [part.label])


def _biases(held: Held, parts: Iterable[PartOf], pos: Slice, like: Tensor) -> Tensor:
    """The sum of the biases of some parts, as they reached the stream [batch pos d_model]."""
    total = torch.zeros_like(like, dtype=torch.float32)
    for part in parts:
        block = held.block(part.layer)
        seen = {point: held.rows(f"blocks.{part.layer}.{point}", pos) for point in bias_points(block, part.part)}
        bias = bias_added(block, part.part, seen)
        total = total if bias is None else total + bias.float().to(total.device)
    return total.to(like.dtype)
