"""What the weights of a layer are to a circuit: matrices per head and per branch, norms folded in.

Row vectors times matrices, as in TransformerLens: ``x @ W_Q[h]`` is head h's query. The weight of the norm before a
layer is folded into every map that reads its output (RecurrentGemma's is 1 + w), so that what remains of the norm
is one positive number a token, its scale. Biases stand apart. Norms of queries and keys stand apart too, since they
come after the maps: `compared` folds their weights in. The weight of a norm after a layer's output is folded into what
writes; its scale, one positive number a token that all heads of the layer share, is left out like the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlens.display import Displayed
from hybridlens.errors import InputError
from hybridlens.mixers.linear import RecurrentParts
from hybridlens.mixers.rotary import Turning


class _Head(NamedTuple):
    W_Q: Float[Tensor, "d_model d_head"]
    W_K: Float[Tensor, "d_model d_head"]
    W_V: Float[Tensor, "d_model d_value"]
    W_O: Float[Tensor, "d_value d_model"]


class HeadWeights(Displayed, _Head):
    """One query head; all are views."""

    __slots__ = ()


@dataclass(frozen=True)
class AttentionWeights(Displayed):
    """The heads of one attention layer; float32 where norms are folded in.

    Attributes:
        layer: which layer of the model.
        W_Q: queries.
        W_K: keys, once for each group of query heads that share them.
        W_V: values, likewise.
        W_O: each head's part of the output projection.
        b_Q: bias of the queries; None where there is none.
        b_K: of the keys.
        b_V: of the values.
        b_O: of the layer's output.
        rotary: on queries and keys; None where there is none.
        window: keys that a query sees, itself included; None: all.
        scale: scores are q · k times this.
        q_norm: what a head's query is multiplied by after its root-mean-square norm, which is its own, or of all heads
            at once where each has numbers of its own; None where there is none.
        k_norm: likewise of keys.
        W_gate: the gate's logits; None where what heads read is not gated.
        b_gate: their bias; None where there is none.
        qk_eps: ε of the norms of queries and keys.
        soft_cap: c where scores are c · tanh(scores / c); None for no cap.
        latent_scale: of latent attention, what stands in `W_K` and `W_V` for the scale of the norm of the latents (see
            `weights.latent`): values, and keys but their shared part, are what these give, times this, over a token's
            own scale. None where there are no latents.
    """

    layer: int
    W_Q: Float[Tensor, "head d_model d_head"]
    W_K: Float[Tensor, "kv_head d_model d_head"]
    W_V: Float[Tensor, "kv_head d_model d_value"]
    W_O: Float[Tensor, "head d_value d_model"]
    b_Q: Float[Tensor, "head d_head"] | None
    b_K: Float[Tensor, "kv_head d_head"] | None
    b_V: Float[Tensor, "kv_head d_value"] | None
    b_O: Float[Tensor, "d_model"] | None
    rotary: Turning | None
    window: int | None
    scale: float
    q_norm: Float[Tensor, "*head d_head"] | None = None
    k_norm: Float[Tensor, "*kv_head d_head"] | None = None
    W_gate: Float[Tensor, "head d_model d_value"] | None = None
    b_gate: Float[Tensor, "head d_value"] | None = None
    qk_eps: float = 0.0
    soft_cap: float | None = None
    latent_scale: float | None = None

    @property
    def n_heads(self) -> int:
        """Query heads."""
        return self.W_Q.shape[0]

    @property
    def gate_at_rest(self) -> Float[Tensor, "head d_value"] | None:
        """What multiplies what a head reads, the gate at its value for input 0: ½ without a bias. None: no gate."""
        if self.W_gate is None:
            return None
        return torch.full_like(self.W_O[..., 0], 0.5) if self.b_gate is None else torch.sigmoid(self.b_gate)

    @property
    def W_O_at_rest(self) -> Float[Tensor, "head d_value d_model"]:
        """`W_O` after the gate at rest."""
        rest = self.gate_at_rest
        return self.W_O if rest is None else rest[..., None] * self.W_O

    @property
    def compared(self) -> AttentionWeights:
        """The same with `W_Q` and `W_K` as scores compare them: the weights of their norms folded in.

        What remains of either norm is its scale, one positive number a token and head, or a token.
        """
        if self.q_norm is None or self.k_norm is None:
            return self
        return replace(
            self,
            W_Q=self.W_Q * self.q_norm[..., None, :],
            W_K=self.W_K * self.k_norm[..., None, :],
            b_Q=None if self.b_Q is None else self.b_Q * self.q_norm,
            b_K=None if self.b_K is None else self.b_K * self.k_norm,
            q_norm=None,
            k_norm=None,
        )

    def normed(
        self, x: Float[Tensor, "*batch head d_head"], weight: Float[Tensor, "*head d_head"] | None
    ) -> Float[Tensor, "*batch head d_head"]:
        """Queries or keys after their norm, given its weight (`q_norm` or `k_norm`); as they are where it is None."""
        if weight is None:
            return x
        over = tuple(range(-weight.ndim, 0))
        return x * (x.square().mean(over, keepdim=True) + self.qk_eps).rsqrt() * weight

    @property
    def n_shared(self) -> int:
        """Query heads to a key/value head."""
        return self.W_Q.shape[0] // self.W_K.shape[0]

    def kv_head(self, head: int) -> int:
        """The key/value head that a query head reads.

        Raises:
            InputError: there is no such head.
        """
        if not 0 <= head < self.n_heads:
            raise InputError(f"head {head} given, but layer {self.layer} has heads 0..{self.n_heads - 1}")
        return head // self.n_shared

    def head(self, head: int) -> HeadWeights:
        """One query head with the keys and values that it reads, nothing copied.

        Raises:
            InputError: there is no such head.
        """
        kv = self.kv_head(head)
        return HeadWeights(self.W_Q[head], self.W_K[kv], self.W_V[kv], self.W_O[head])

    def expanded(self, x: Float[Tensor, "kv_head *rest"]) -> Float[Tensor, "kv_head shared *rest"]:
        """`W_K`, `W_V` or their biases for every query head, as a view: query head h is at divmod(h, n_shared)."""
        return x[:, None].expand(x.shape[0], self.n_shared, *x.shape[1:])


@dataclass(frozen=True)
class MlpWeights(Displayed):
    """An MLP: ``(act(x W_gate + b_gate) · (x W_in + b_in)) W_out + b_out``, or ``act(x W_in + b_in) W_out + b_out``.

    Attributes:
        layer: which layer of the model.
        W_in: into the hidden layer; where there is a gate, what it multiplies.
        W_gate: what the activation reads where there is a gate; None where there is none.
        W_out: what each neuron adds to the stream.
        b_in: None where there is none, like the other biases.
        b_gate: of what the activation reads.
        b_out: of what is written.
    """

    layer: int
    W_in: Float[Tensor, "d_model d_mlp"]
    W_gate: Float[Tensor, "d_model d_mlp"] | None
    W_out: Float[Tensor, "d_mlp d_model"]
    b_in: Float[Tensor, "d_mlp"] | None
    b_gate: Float[Tensor, "d_mlp"] | None
    b_out: Float[Tensor, "d_model"] | None


@dataclass(frozen=True)
class RecurrentWeights(Displayed):
    """The linear maps of one recurrent layer, float32, the norm folded into `W_in` and `W_gate` where it was asked for.

    Attributes:
        layer: which layer of the model.
        parts: its maps; see `RecurrentParts`.
    """

    layer: int
    parts: RecurrentParts

    @property
    def n_lags(self) -> int:
        """Taps of the convolution."""
        return self.parts.taps.shape[1]

    def path(
        self,
        lag: int,
        gain: Float[Tensor, "channel"] | None = None,
        gate: Float[Tensor, "channel"] | None = None,
        slope: Float[Tensor, "channel"] | None = None,
    ) -> Float[Tensor, "channel"]:
        """What each channel multiplies by on the linear path from the token `lag` back.

        The path is ``W_in @ diag(path) @ W_out`` with path = tap · slope · gain · gate.

        Args:
            lag: 0 … n_lags - 1.
            gain: of the recurrence, from a token's input to the same token's readout, times the scale of the norm
                after it where there is one; None for the gain at rest and a scale of 1.
            gate: None for 1.
            slope: of the activation after the convolution; None for that at 0.

        Raises:
            InputError: there is no such lag.
        """
        if not 0 <= lag < self.n_lags:
            raise InputError(f"lag {lag} given, but layer {self.layer}'s convolution has lags 0..{self.n_lags - 1}")
        channels = self.parts.taps[:, lag] * (self.parts.slope if slope is None else slope)
        channels = channels * (self.parts.gain_at_rest if gain is None else gain)
        return channels if gate is None else channels * gate
