"""What one layer is made of: its attention, its recurrence, its MLP, and how large each is.

A layer says for itself which mixers it has, whether it has an MLP, and how large they are; nothing assumes that layers
are alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal, NamedTuple, TypeAlias

LayerType: TypeAlias = Literal["attention", "ssm", "hybrid", "mlp"]
"""What mixes a layer's tokens: attention, a recurrence, both side by side, or nothing."""


class MemorySize(NamedTuple):
    """Bytes of what a mixer remembers."""

    row: int
    """Of a row, whatever it has read."""
    token: int
    """Of each token besides."""


@dataclass(frozen=True)
class LatentConfig:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): one latent a token is made all keys and values."""

    d_latent: int
    d_shared: int
    """Of each head's key, what all heads share and no latent makes."""
    d_value: int
    """Width of a head's value."""

    @property
    def d_held(self) -> int:
        """Numbers that are held of a token."""
        return self.d_latent + self.d_shared


@dataclass(frozen=True)
class AttentionConfig:
    """An attention mixer."""

    n_heads: int
    n_kv_heads: int
    d_head: int
    window: int | None = None
    """Keys that a query sees, itself included; None: all."""
    rotary: bool = False
    qk_norm: bool = False
    """Queries and keys are normalised before rotary embedding."""
    gated: bool = False
    """What heads read is multiplied by a gate of the layer's input."""
    normed_after: bool = False
    """What is written goes through a norm before it is added to the stream."""
    latent: LatentConfig | None = None
    """What keys and values are made of, and held instead of them; None where they are held themselves."""

    @property
    def d_value(self) -> int:
        """Width of a value."""
        return self.d_head if self.latent is None else self.latent.d_value

    @property
    def n_held_heads(self) -> int:
        """Heads of what is held of a token."""
        return self.n_kv_heads if self.latent is None else 1

    @property
    def score_work(self) -> int:
        """Floating-point operations of one query's scores with one key, all heads."""
        return 2 * self.n_heads * self.d_head

    @property
    def pair_work(self) -> int:
        """Those of a query and a key: scores, and the sum of values."""
        return self.score_work + 2 * self.n_heads * self.d_value

    @property
    def unfolding_work(self) -> int:
        """Those of making keys and values of a token that is held as a latent, in each pass; 0 without latents."""
        if self.latent is None:
            return 0
        own = self.d_head - self.latent.d_shared
        return 2 * self.latent.d_latent * self.n_kv_heads * (own + self.latent.d_value)

    def memory(self, itemsize: int) -> MemorySize:
        """What is held of each token, in the model's dtype."""
        width = 2 * self.n_kv_heads * self.d_head if self.latent is None else self.latent.d_held
        return MemorySize(0, width * itemsize)


@dataclass(frozen=True)
class RecurrentConfig:
    """A recurrent mixer."""

    kind: str
    """Of its recurrence: "rg_lru", "mamba", "mamba_heads", "mamba2", "gated_delta", "kimi_delta", "lightning",
    "convolution"."""
    state_shape: tuple[int, ...]
    """Of one row's state: (c,), (c, n), or (heads, value width, address width); () where there is none."""
    d_channels: int
    """Channels that the output projection reads."""
    d_conv_channels: int
    """Channels of the convolution; 0 where there is none."""
    d_conv: int
    """Its taps; 0 where there is none."""
    n_heads: int | None = None
    """Recurrent heads, of matrix states."""

    @property
    def d_state(self) -> int | None:
        """State size of a channel, or the address width of a matrix state; None where a channel's is one number."""
        return self.state_shape[-1] if len(self.state_shape) > 1 else None

    @property
    def state_work(self) -> int:
        """Floating-point operations that a token does to the state, done one token after the other.

        A multiplication and an addition for each number of the state, and as many where a readout sums over it; twice
        that where what a key recalls is erased first. What chunks of tokens do beside is not counted.
        """
        size = prod(self.state_shape) if self.state_shape else 0
        passes = 1 + (len(self.state_shape) > 1)
        return 2 * size * passes * (2 if self.kind.endswith("_delta") else 1)

    def memory(self, itemsize: int) -> MemorySize:
        """The convolution's last inputs, in the model's dtype, and the state, in float32."""
        state = 4 * prod(self.state_shape) if self.state_shape else 0
        return MemorySize(state + itemsize * self.d_conv_channels * max(self.d_conv - 1, 0), 0)


@dataclass(frozen=True)
class MlpConfig:
    """An MLP, or a mixture of experts."""

    d_mlp: int
    """Of one expert where there are several."""
    n_experts: int | None = None
    n_experts_per_token: int | None = None
    shared_expert: bool = False
    gated: bool = True
    """Whether what its activation gives is multiplied by another map of the input."""


@dataclass(frozen=True)
class LayerConfig:
    """What one layer has; None for what it lacks."""

    attn: AttentionConfig | None = None
    ssm: RecurrentConfig | None = None
    mlp: MlpConfig | None = None
    shared: bool = False
    """Attention and MLP are a shared block's, which feeds the recurrence and writes nothing to the stream."""
    carries_norm: bool = False
    """What its norms give goes on in the stream's place, so that the stream is no sum of what is written to it."""

    @property
    def type(self) -> LayerType:
        """What mixes its tokens."""
        if self.attn is not None:
            return "attention" if self.ssm is None else "hybrid"
        return "mlp" if self.ssm is None else "ssm"

    def memory(self, itemsize: int) -> tuple[MemorySize, ...]:
        """What each of its mixers remembers.

        Args:
            itemsize: of the model's dtype.
        """
        return tuple(mixer.memory(itemsize) for mixer in (self.attn, self.ssm) if mixer is not None)
