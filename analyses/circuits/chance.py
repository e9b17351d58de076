"""What composition scores random matrices of the same shapes and spectra have.

Turn the writer's output against the reader's input by a random orthogonal matrix Ω (uniform, that is Haar). With the
writer's output Gram G = W_wᵀ W_w and the reader's input Gram N = W_r W_rᵀ, both scaled to trace 1, the squared score
is s² = ⟨Ω G Ωᵀ, N⟩. Write G = 1/d + G₀ and N = 1/d + N₀, whose second parts have trace 0. Traceless symmetric matrices
are an irreducible representation of O(d), of dimension (d − 1)(d + 2)/2, so that by Schur's lemma Ω G₀ Ωᵀ has mean 0
and its square spreads evenly over that many directions:

    E[s²] = 1/d          Var[s²] = 2 ‖G₀‖² ‖N₀‖² / ((d − 1)(d + 2))

Both are exact, whatever the spectra. The mean of s itself is that of the beta distribution on 0 … 1 with this mean
and variance. Where both ranks are 1 that is the true distribution; elsewhere its mean agrees with
√(1/d) (1 − Var / (8 E²)) to first order in Var / E², and what is left out depends on third moments.

How it fails: where one direction has most of a trace and the rest is small, on both sides, the mean is too low, by up
to 2.6 % (by simulation; the first-order formula by 6.5 %); below 0.1 % once either Gram is like one of rank 5 or
more. It is the mean over rotations: a single pair of low rank is often far from it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

SERIES = 100.0
"""From here on the ratio of gamma functions is taken from its series, whose next term is below 1e-9."""


def relative_variance(
    writer: Float[Tensor, "*#pair"], reader: Float[Tensor, "*#pair"], d_model: int
) -> Float[Tensor, "*pair"]:
    """Var[s²] / E[s²]², at most 2 (d − 1) / (d + 2).

    Args:
        writer: ‖G‖² of Grams of trace 1: from 1/d for a flat spectrum to 1 for rank 1.
        reader: ‖N‖² likewise.
        d_model: d, 2 or more.
    """
    flat = 1 / d_model
    spread = (writer.double() - flat).clamp(min=0) * (reader.double() - flat).clamp(min=0)
    return spread * (2 * d_model**2 / ((d_model - 1) * (d_model + 2)))


def expected_score(
    writer: Float[Tensor, "*#pair"], reader: Float[Tensor, "*#pair"], d_model: int
) -> Float[Tensor, "*pair"]:
    """E[s] of pairs, float64; 0 where writer or reader is, of a map that is zero; arguments as `relative_variance`."""
    alpha = (1 - 1 / d_model) / relative_variance(writer, reader, d_model) - 1 / d_model  # α / (α + β) = 1/d
    mean = _root(alpha) / _root(alpha * d_model) / d_model**0.5
    return torch.where((writer > 0) & (reader > 0), mean, 0.0)


def _root(k: Float[Tensor, "*pair"]) -> Float[Tensor, "*pair"]:
    """Γ(k + ½) / (Γ(k) √k), which tends to 1; k is ½ or more, or infinite."""
    small = k.clamp(max=SERIES)
    gammas = torch.exp(torch.lgamma(small + 0.5) - torch.lgamma(small)) / small.sqrt()
    return torch.where(k < SERIES, gammas, 1 - 1 / (8 * k) + 1 / (128 * k**2) + 5 / (1024 * k**3))
