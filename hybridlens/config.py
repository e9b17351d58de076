"""What a model is made of, layer by layer: `LensConfig`; what one layer has is in `hybridlens.layer_config`.

The sizes of the whole model, under TransformerLens' names, are there for models whose layers agree. Everything about
configurations can be imported from here.

How it fails: a size that differs from layer to layer (`n_heads`, say) raises `InputError` where one number is asked
for; `cfg.layers[l]` has them all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from hybridlens.boundary_words import shown
from hybridlens.display.models import ConfigShown
from hybridlens.errors import InputError
from hybridlens.layer_config import (
    AttentionConfig,
    LatentConfig,
    LayerConfig,
    LayerType,
    MemorySize,
    MlpConfig,
    RecurrentConfig,
)
from hybridlens.peer_config import Opened, PeerNames, fixed

__all__ = [
    "AttentionConfig",
    "LatentConfig",
    "LayerConfig",
    "LayerType",
    "LensConfig",
    "MemorySize",
    "MlpConfig",
    "Opened",
    "RecurrentConfig",
]


@fixed
@dataclass(frozen=True)
class LensConfig(PeerNames, ConfigShown):
    """Sizes and structure of a model, under TransformerLens' names where it has them (`hybridlens.peer_config`)."""

    family: str
    layers: tuple[LayerConfig, ...]
    d_model: int
    d_vocab: int
    n_ctx: int | None
    """Longest sequence that the configuration allows; None: no limit."""
    act_fn: str
    eos_token_ids: tuple[int, ...]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where the model's embedding is."""
    dtype: torch.dtype = torch.float32
    """Of the weights."""
    normalization_type: str = "RMS"
    attn_only: bool = False
    opened: Opened | None = field(default=None, repr=False, compare=False)
    """What is known of a model once it is opened; None for a configuration alone."""

    @property
    def n_layers(self) -> int:
        """Layers in all."""
        return len(self.layers)

    @property
    def layer_types(self) -> tuple[LayerType, ...]:
        """What mixes the tokens of each layer."""
        return tuple(layer.type for layer in self.layers)

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Indices of the layers with attention."""
        return tuple(i for i, layer in enumerate(self.layers) if layer.attn is not None)

    @property
    def ssm_layers(self) -> tuple[int, ...]:
        """Indices of the layers with a recurrence; a layer may be among the attention layers as well."""
        return tuple(i for i, layer in enumerate(self.layers) if layer.ssm is not None)

    @property
    def state_layers(self) -> tuple[int, ...]:
        """Those of the layers with a recurrence that hold a state; of the others only the convolution remembers."""
        return tuple(i for i, layer in enumerate(self.layers) if layer.ssm is not None and layer.ssm.state_shape)

    @property
    def conv_layers(self) -> tuple[int, ...]:
        """Those of the layers with a recurrence that have a convolution, which remembers too."""
        return tuple(i for i, layer in enumerate(self.layers) if layer.ssm is not None and layer.ssm.d_conv)

    @property
    def mlp_layers(self) -> tuple[int, ...]:
        """Indices of the layers with an MLP, mixtures of experts included."""
        return tuple(i for i, layer in enumerate(self.layers) if layer.mlp is not None)

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the layers with a mixture of experts."""
        return tuple(i for i, layer in enumerate(self.layers) if layer.mlp is not None and layer.mlp.n_experts)

    # Sizes that are the same in all layers that have the thing; 0 or None where no layer has it.

    @property
    def n_heads(self) -> int:
        """Query heads of an attention layer; 0 where there is no attention."""
        return self._one("n_heads", (a.n_heads for a in self.attentions), 0)

    @property
    def n_kv_heads(self) -> int:
        """Key/value heads of an attention layer."""
        return self._one("n_kv_heads", (a.n_kv_heads for a in self.attentions), 0)

    @property
    def d_head(self) -> int:
        """Width of a query head."""
        return self._one("d_head", (a.d_head for a in self.attentions), 0)

    @property
    def d_mlp(self) -> int:
        """Width of a dense MLP, or of an expert where there is no dense one."""
        mlps = [layer.mlp for layer in self.layers if layer.mlp is not None]
        dense = [mlp.d_mlp for mlp in mlps if mlp.n_experts is None]
        return self._one("d_mlp", dense or [mlp.d_mlp for mlp in mlps], 0)

    @property
    def n_experts(self) -> int | None:
        """Experts of a mixture; None where there is none."""
        return self._one("n_experts", (self._mlp(i).n_experts for i in self.moe_layers), None)

    @property
    def n_experts_per_token(self) -> int | None:
        """Experts that a token is sent to."""
        return self._one("n_experts_per_token", (self._mlp(i).n_experts_per_token for i in self.moe_layers), None)

    @property
    def d_channels(self) -> int:
        """Channels of a recurrent layer that its output projection reads; 0 where no layer is recurrent."""
        return self._one("d_channels", (r.d_channels for r in self.recurrences), 0)

    @property
    def d_state(self) -> int | None:
        """State size of a channel; see `RecurrentConfig.d_state`."""
        return self._one("d_state", (r.d_state for r in self.recurrences), None)

    @property
    def d_conv(self) -> int:
        """Taps of the recurrent layers' convolution."""
        return self._one("d_conv", (r.d_conv for r in self.recurrences), 0)

    @property
    def window(self) -> int | None:
        """Keys that a query of any attention layer sees at most, itself included; None: all."""
        windows = [attention.window for attention in self.attentions]
        return None if not windows or None in windows else max(window for window in windows if window is not None)

    @property
    def window_size(self) -> int | None:
        """`window`, as TransformerLens calls it."""
        return self.window

    @property
    def windows(self) -> tuple[int | None, ...]:
        """`window` of each layer, None where there is no attention; empty where all layers with attention are alike."""
        if len({attention.window for attention in self.attentions}) < 2:
            return ()
        return tuple(None if layer.attn is None else layer.attn.window for layer in self.layers)

    @property
    def recurrences(self) -> tuple[RecurrentConfig, ...]:
        """Of the layers with a recurrence, in order."""
        return tuple(layer.ssm for layer in self.layers if layer.ssm is not None)

    def attention(self, layer: int) -> AttentionConfig:
        """A layer's attention.

        Raises:
            InputError: it has none, saying which layers have.
        """
        found = self._layer(layer).attn
        if found is None:
            raise self.lacks(layer, "attention", self.attention_layers)
        return found

    def recurrence(self, layer: int) -> RecurrentConfig:
        """A layer's recurrence.

        Raises:
            InputError: it has none, saying which layers have.
        """
        found = self._layer(layer).ssm
        if found is None:
            raise self.lacks(layer, "recurrent", self.ssm_layers)
        return found

    def lacks(self, layer: int, what: str, layers: Iterable[int]) -> InputError:
        """The refusal of a layer that is not of some kind."""
        those = ", ".join(map(str, layers))
        return InputError(
            f"layer {shown(layer)} is no {what} layer; " + (f"those are {those}" if those else "there is none")
        )

    def need_attention(self, what: str) -> None:
        """Refuse an analysis of heads for a model that has none.

        Args:
            what: what was to be done, as in "ranking heads".

        Raises:
            InputError: no layer has attention.
        """
        if not self.attention_layers:
            raise InputError(f"{what} needs attention heads, but no layer of this {self.family} model has attention")

    def need_states(self, what: str) -> None:
        """Refuse an analysis of recurrent states for a model that holds none.

        Args:
            what: what was to be done, as in "resetting states".

        Raises:
            InputError: no layer holds a state, saying what remembers instead.
        """
        if not self.state_layers:
            instead = "; its convolutions alone remember, the last tokens" if self.ssm_layers else ""
            raise InputError(
                f"{what} needs recurrent states, but no layer of this {self.family} model holds one{instead}"
            )

    def need_sum(self, what: str) -> None:
        """Refuse an analysis of terms of the residual stream for a model whose stream is no sum of them.

        Args:
            what: what was to be done, as in "direct attribution".

        Raises:
            InputError: in some layers what the norms give goes on in the stream's place.
        """
        layers = [layer for layer, has in enumerate(self.layers) if has.carries_norm]
        if layers:
            where = "every layer" if len(layers) == self.n_layers else f"layers {', '.join(map(str, layers))}"
            raise InputError(
                f"{what} needs a residual stream that is a sum of writes, but in {where} of this {self.family} model "
                "what norms give goes on in its place; patch activations instead"
            )

    def need_stream_heads(self, what: str) -> None:
        """Refuse an analysis of heads as maps of the residual stream for a model that has none, or shared ones.

        Args:
            what: what was to be done, as in "circuits of heads".

        Raises:
            InputError: no layer has attention, that of some is a shared block's, or the stream is no sum of writes.
        """
        self.need_attention(what)
        self.need_sum(what)
        shared = [layer for layer in self.attention_layers if self.layers[layer].shared]
        if shared:
            raise InputError(
                f"{what} needs heads that read the residual stream and write to it, but attention in layers "
                f"{', '.join(map(str, shared))} of this {self.family} model is a shared block's: it reads the "
                "embedding too and feeds the recurrence alone"
            )

    def _layer(self, layer: int) -> LayerConfig:
        if not 0 <= layer < self.n_layers:
            raise InputError(f"layer {shown(layer)} given, but the model has layers 0..{self.n_layers - 1}")
        return self.layers[layer]

    def _mlp(self, layer: int) -> MlpConfig:
        mlp = self.layers[layer].mlp
        assert mlp is not None
        return mlp
