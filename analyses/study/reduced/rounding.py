"""Numbers in few bits, and back: what a key or a value is after it was held so.

Of 2 bits and more, from the least to the greatest of a vector in equal steps (Jacob et al., CVPR 2018, asymmetric):
with m and M these, s = (M - m) / (2^bits - 1), x becomes m + s round((x - m) / s). Of 1 bit that would leave nothing
but the two extremes, so x becomes sign(x) times the mean of |x| (Rastegari et al., ECCV 2016). m, s and the mean are
rounded to float16, as they are counted. A vector is one head's at one position: nothing depends on later tokens.

How it fails: vectors beyond what float16 holds become infinite, which the engine refuses as logits that are not finite.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def few_bits(x: Float[Tensor, "*place width"], bits: int) -> Float[Tensor, "*place width"]:
    """`x` as it is after it was held in so many bits; gradients go straight through (Bengio et al. 2013).

    Args:
        x: vectors along the last axis.
        bits: 1 or more.
    """
    wide = x.detach().float()
    if bits == 1:
        size = _half(wide.abs().mean(-1, keepdim=True))
        out = torch.where(wide >= 0, size, -size)
    else:
        low, high = wide.amin(-1, keepdim=True), wide.amax(-1, keepdim=True)
        most = 2**bits - 1
        low, step = _half(low), _half((high - low) / most)
        codes = ((wide - low) / torch.where(step > 0, step, torch.ones_like(step))).round().clamp(0, most)
        out = low + step * codes
    out = out.to(x.dtype)
    return x + (out - x).detach() if x.requires_grad else out


def _half(x: Tensor) -> Tensor:
    return x.half().float()
