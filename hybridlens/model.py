"""`HybridLens`: a hybrid model under one set of names.

The lens is a thin front: its text is in `text` and `prompting`, its weights in `weight_front`, hooks in `hooking`, runs
and caches in `running`, states in `continuing`, generation in `generating`, autoencoders in `splicing`, nnsight in
`tracing`, what a torch module has in `moving`, what other libraries have and a lens has not in `elsewhere`; what they
call lives in `network`, `tokens` and `decoding`. The Hugging Face model that it opens goes on working by itself, shares
its weights, and is changed only where that is asked for (``lens.to``, an optimizer over ``lens.parameters()``).

What every way in has in common: hooks fire in forward order at the points of `lens.hook_points`, in
prefill and in every decode step; those of a call are gone when it returns or raises, and others only where they were
added to stay (``lens.add_hook``); so the same call twice gives the same tensors.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from hybridlens.adapters import without_wrapper
from hybridlens.bridges import unwrapped
from hybridlens.config import LensConfig
from hybridlens.continuing import StateFront
from hybridlens.devices import check_places
from hybridlens.display import Displayed
from hybridlens.display.models import LensShown
from hybridlens.elsewhere import HabitFront
from hybridlens.families import family_for
from hybridlens.generating import GenerateFront
from hybridlens.hooks import HookPoint, HookPoints, HookSpec
from hybridlens.moving import ModuleFront
from hybridlens.network import HookedNetwork
from hybridlens.prompting import PromptFront
from hybridlens.running import RunFront
from hybridlens.splicing import SpliceFront
from hybridlens.tracing import TraceFront
from hybridlens.weight_front import WeightFront
from hybridlens.weights.counting import count


class _ParameterCounts(NamedTuple):
    total: int
    non_embedding: int
    """Without the embedding and, where it is separate, the unembedding."""
    active: int
    """Of all, those that one token uses: without the experts it is not sent to."""


class ParameterCounts(Displayed, _ParameterCounts):
    """How many weights a model has."""

    __slots__ = ()


class HybridLens(
    LensShown,
    RunFront,
    StateFront,
    GenerateFront,
    TraceFront,
    WeightFront,
    PromptFront,
    SpliceFront,
    ModuleFront,
    HabitFront,
):
    """Hook points, caches, traces, states and generation over a Hugging Face hybrid model.

    It computes what the model does in evaluation mode; dropout is never applied.

    Args:
        hf_model: a causal language model of one of the families (`hybridlens.families`), left as it is; or a PEFT
            model of one, whose adapters are followed.
        tokenizer: its tokenizer, for text; None to work with token ids only.

    Raises:
        CheckpointError: for a model of another family, a configuration it was not built for, or a layer on two devices.
    """

    def __init__(self, hf_model: Any, tokenizer: Any = None) -> None:
        hf_model = without_wrapper(hf_model)
        family = family_for(getattr(hf_model, "config", None), "the model", [type(hf_model).__name__])
        self.hf_model = hf_model
        self.tokenizer = tokenizer
        self.network = HookedNetwork(hf_model, family, family.configure(hf_model.config))
        check_places(hf_model, self.network.homes)
        self.hook_dict: dict[str, HookPoint] = self.network.points
        self.hook_points = HookPoints({name: _spec(name, point) for name, point in self.hook_dict.items()})

    @classmethod
    def from_bridge(cls, bridge: Any) -> HybridLens:
        """A lens on the model inside a TransformerLens bridge, whose weights it shares; see `hybridlens.bridges`.

        Raises:
            CheckpointError: it is no bridge of a model in memory, its weights were processed, or its family is unknown.
        """
        return cls(*unwrapped(bridge))

    @property
    def cfg(self) -> LensConfig:
        """Sizes, structure, and where the model is now."""
        opened = self.network.opened(self.tokenizer)
        return replace(self.network.cfg, device=self.device, dtype=self.dtype, opened=opened)

    # The model's parts, under the names of the hook points.

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers, each with its hook points as attributes."""
        return self.network.blocks

    @property
    def hook_embed(self) -> HookPoint:
        """What enters block 0."""
        return self.network.hook_embed

    @property
    def ln_final(self) -> nn.Module:
        """The norm before the unembedding."""
        return self.network.ln_final

    @property
    def hook_logits(self) -> HookPoint:
        """The logits, after any soft cap."""
        return self.network.hook_logits

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return cast(torch.dtype, self.hf_model.dtype)

    @property
    def n_parameters(self) -> ParameterCounts:
        """Weights in all, without embeddings, and used by one token.

        Raises:
            CheckpointError: some are packed by a quantisation that does not say how many it holds.
        """
        model = self.hf_model
        total = count(model)
        ends = [end.weight.numel() for end in (model.get_input_embeddings(), model.get_output_embeddings())]
        inner = total - (ends[0] if self.network.tied else sum(ends))
        return ParameterCounts(total, inner, total - self.network.idle_parameters)


def _spec(name: str, point: HookPoint) -> HookSpec:
    parts = name.split(".")
    layer = int(parts[1]) if parts[0] == "blocks" else None
    sizes = tuple(point.sizes.get(axis) for axis in point.axes)
    return HookSpec(name, point.axes, layer, point.lazy, point.read_only, sizes)
