"""A sparse autoencoder as SAELens computes it: activations to features and back, by one of four architectures.

With x the activation, scaled as the configuration says, x' = x - b_dec (or x, where the bias is not taken from it) and
z = x' W_enc + b_enc:

=========  ====================================================================================================
standard   f = ReLU(z)
jumprelu   f = ReLU(z) where z > threshold, else 0
topk       f = ReLU(z) at the k largest z, else 0; with `rescale_acts_by_decoder_norm`, z is multiplied by the
           lengths of the decoder's rows first, and f divided by them before it is decoded
gated      f = ReLU(x' (W_enc · exp r_mag) + b_mag) where x' W_enc + b_gate > 0, else 0
=========  ====================================================================================================

and x̂ = f W_dec + b_dec, scaled back. Scales: "constant_norm_rescale" multiplies x by √d_in ÷ ‖x‖, "layer_norm" takes
off its mean and divides by its standard deviation (unbiased; + 1e-5, not so on the way back); both need the
activation again to scale back, which `decode` is given as `like`. "expected_average_only_in" is a factor for all
activations, that was folded into the weights when the autoencoder was loaded.

Sources: SAELens (sae_lens/saes), Bricken et al. 2023 "Towards Monosemanticity", Rajamanoharan et al. 2024 "Improving
Dictionary Learning with Gated Sparse Autoencoders" and "Jumping Ahead", Gao et al. 2024 "Scaling and evaluating sparse
autoencoders".

How it fails: activations of another width, weights of other names or shapes, and weights that are no finite numbers,
raise one line.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hybridlens.errors import CheckpointError, InputError
from hybridlens.sae.config import SaeConfig

EPS = 1e-5
"""Added to the standard deviation of "layer_norm"."""

OWN = {
    "standard": ("b_enc",), "jumprelu": ("b_enc", "threshold"), "topk": ("b_enc",),
    "gated": ("b_gate", "b_mag", "r_mag"),
}  # fmt: skip
"""Weights [d_sae] besides W_enc, W_dec and b_dec."""


class SparseAutoencoder(nn.Module):
    """Encode and decode; weights as SAELens names them.

    Args:
        cfg: what it computes.
        weights: W_enc [d_in, d_sae], W_dec [d_sae, d_in], b_dec [d_in], and those of the architecture [d_sae].

    Raises:
        CheckpointError: other weights than these, of other shapes, or that are not finite.
    """

    W_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor

    def __init__(self, cfg: SaeConfig, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.cfg = cfg
        d_in, d_sae = cfg.d_in, cfg.d_sae
        shapes = {"W_enc": [d_in, d_sae], "W_dec": [d_sae, d_in], "b_dec": [d_in]}
        shapes |= {name: [d_sae] for name in OWN[cfg.architecture]}
        if sorted(weights) != sorted(shapes):
            raise CheckpointError(
                f"a {cfg.architecture} autoencoder has the weights {', '.join(sorted(shapes))}, but given were "
                f"{', '.join(sorted(weights)) or 'none'}"
            )
        for name, shape in shapes.items():
            weight = weights[name]
            if list(weight.shape) != shape:
                raise CheckpointError(f"{name} has shape {list(weight.shape)}, expected {shape}")
            if not bool(weight.isfinite().all()):
                raise CheckpointError(f"{name} holds NaN or infinity, expected finite numbers; fetch it again")
            self.register_parameter(name, nn.Parameter(weight.detach().clone()))

    @property
    def d_in(self) -> int:
        """Numbers that it reads."""
        return self.cfg.d_in

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights, in which it computes."""
        return self.W_enc.dtype

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """The features of activations.

        Raises:
            InputError: activations of another width.
        """
        x = self._read(x)
        shift, scale = self._scaling(x)
        x = (x - shift) / (scale + EPS if self.cfg.normalize_activations == "layer_norm" else scale)
        x = x - self.b_dec if self.cfg.apply_b_dec_to_input else x
        if self.cfg.architecture == "gated":
            magnitude = x @ (self.W_enc * self.get_parameter("r_mag").exp()) + self.get_parameter("b_mag")
            return magnitude.relu() * (x @ self.W_enc + self.get_parameter("b_gate") > 0)
        z = x @ self.W_enc + self.get_parameter("b_enc")
        if self.cfg.architecture == "topk":
            z = z * self._lengths if self.cfg.rescale_acts_by_decoder_norm else z
            best = z.topk(self.cfg.k or 0, dim=-1)
            return torch.zeros_like(z).scatter(-1, best.indices, best.values.relu())
        return z.relu() * (z > self.get_parameter("threshold")) if self.cfg.architecture == "jumprelu" else z.relu()

    def decode(
        self, features: Float[Tensor, "*batch d_sae"], like: Float[Tensor, "*batch d_in"] | None = None
    ) -> Float[Tensor, "*batch d_in"]:
        """The activations that features stand for.

        Args:
            features: of any number of tokens.
            like: the activations that they were read from, whose scale is put back; needed where
                `SaeConfig.scales_by_input`.

        Raises:
            InputError: `like` is missing, or has another width.
        """
        if self.cfg.rescale_acts_by_decoder_norm:
            features = features / self._lengths
        out = features @ self.W_dec + self.b_dec
        if not self.cfg.scales_by_input:
            return out
        if like is None:
            raise InputError(
                f"this autoencoder scales what it reads ({self.cfg.normalize_activations}), and scales back by it; "
                "give the activations too: sae.decode(features, like=activations)"
            )
        shift, scale = self._scaling(self._read(like))
        return out * scale + shift

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """What it makes of activations: decoded features."""
        return self.decode(self.encode(x), x if self.cfg.scales_by_input else None)

    @property
    def _lengths(self) -> Float[Tensor, "d_sae"]:
        """Of the decoder's rows."""
        return self.W_dec.norm(dim=-1)

    def _read(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.cfg.d_in:
            raise InputError(f"activations {list(x.shape)} given, expected {self.cfg.d_in} numbers on the last axis")
        return x.to(self.dtype)

    def _scaling(self, x: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """What is taken off an activation, and its size, by which it is then divided."""
        match self.cfg.normalize_activations:
            case "constant_norm_rescale":
                return 0.0, x.norm(dim=-1, keepdim=True) / self.cfg.d_in**0.5
            case "layer_norm":
                return x.mean(dim=-1, keepdim=True), x.std(dim=-1, keepdim=True)
            case _:
                return 0.0, 1.0
