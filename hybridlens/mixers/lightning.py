"""Lightning attention (Qin et al. 2024, arXiv 2401.04658): a matrix state a head that decays by a number of its own.

Queries, keys and values go through an activation, and through no convolution; nothing is normalised, scaled or turned.
The state S_t = a S_{t-1} + v_t k_tᵀ is read out as S_t q_t. The decay a = exp(-slope) is the head's, whatever a token
says, and no weight: `hook_decay` shows it for every token all the same, where it can be edited and has a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlens.config import RecurrentConfig
from hybridlens.hooks import HookPoint
from hybridlens.mixers.gated_norm import GatedNorm
from hybridlens.mixers.matrix_state import MatrixState, Projected, ValueWeights
from hybridlens.mixers.recurring import Dynamics, Trajectory, scalar_trajectory
from hybridlens.projections import Projection, Read
from hybridlens.recurrences.scalar import Scalar, ScalarTerms
from hybridlens.shapes import Resid


@dataclass(frozen=True, eq=False)
class LightningParts:
    """A family's lightning attention, taken apart.

    Attributes:
        mixer: the module, with `slope_rate`, one number a head; tables of its powers beside it are not read.
        project: to queries, keys and values, one behind the other head by head.
        gate: to the gate's logits.
        norm: between readout and output projection.
        out: the output projection.
    """

    mixer: Any
    project: Projection
    gate: Projection
    norm: GatedNorm
    out: Projection


class Lightning(MatrixState[Scalar]):
    """A lightning attention mixer.

    Args:
        cfg: its sizes; value and address are equally wide.
        parts: the family's module, taken apart.
        d_model: width of the residual stream.
    """

    strength = None
    hook_decay: HookPoint

    def __init__(self, cfg: RecurrentConfig, parts: LightningParts, d_model: int) -> None:
        own = {"hook_decay": HookPoint("b p s", s=cfg.state_shape[0])}
        super().__init__(cfg, Scalar(cfg.state_shape), parts.mixer, own, parts.norm, parts.out, d_model)
        self.parts = parts
        self.values = slice(None)

    def projected(self, x: Resid) -> Projected:
        """Queries, keys and values, and the gate's logits."""
        return Projected(self.parts.project(x), self.parts.gate(x), ())

    def terms(self, inner: Float[Tensor, "batch pos channel"], rates: tuple[Tensor, ...]) -> ScalarTerms:
        """Values, addresses and decays of each head."""
        q, k, v = inner.unflatten(-1, (self.cfg.state_shape[0], -1)).chunk(3, dim=-1)
        v, k, q = self.hook_v(v), self.hook_k(k), self.hook_q(q)
        return ScalarTerms(self.hook_decay(self._decay(inner)), v, k, q)

    def _decay(self, like: Float[Tensor, "batch pos channel"]) -> Float[Tensor, "batch pos rec_head"]:
        """The heads' decays for every token, float32; where somebody asks for them they may be differentiated by."""
        decay = torch.exp(-self.parts.mixer.slope_rate.float().flatten()).expand(*like.shape[:2], -1)
        if torch.is_grad_enabled() and self.hook_decay.asked():
            return decay.clone().requires_grad_()
        return decay

    @property
    def trajectories(self) -> dict[str, Trajectory]:
        """Its states go on from token to token."""
        return scalar_trajectory(self.recurrence)

    @property
    def dynamics(self) -> Dynamics:
        """Its recurrence, from activations."""
        points = ("hook_decay", "hook_v", "hook_k", "hook_q")
        return Dynamics(self.recurrence, points, lambda seen: ScalarTerms(*(seen[point] for point in points)))

    def value_weights(self, read: Read) -> ValueWeights:
        """The rows that make values and gates. At rest keys and queries are 0, and nothing passes."""
        heads, width, _ = self.cfg.state_shape
        (rows, bias), (gate, b_gate) = self.parts.project.stored(read), self.parts.gate.stored(read)
        made = rows.unflatten(0, (heads, 3, width))[:, 2].flatten(0, 1)
        return ValueWeights(
            W_in=made.T,
            b_in=None if bias is None else bias.unflatten(0, (heads, 3, width))[:, 2].flatten(),
            W_gate=gate.T,
            b_gate=b_gate,
            b_conv=None,
            at_rest=rows.new_zeros(heads),
            skip=None,
        )
