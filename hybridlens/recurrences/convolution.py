"""The causal convolution before a recurrence, and all there is of one in layers whose state is a convolution's memory.

How it fails: a bfloat16 sum of a single token's taps and the library's convolution round differently.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hybridlens.shapes import Channels, ConvState, Valid

AT_ONCE = 64
"""Tokens whose taps are summed while they are in cache."""


def causal_convolution(
    x: Channels,
    held: ConvState | None,
    weight: Float[Tensor, "channel 1 width"],
    bias: Float[Tensor, "channel"] | None,
    valid: Valid | None,
) -> tuple[Channels, ConvState]:
    """Depthwise causal convolution, and the inputs that the next token's convolution needs.

    Args:
        x: inputs of the new tokens.
        held: inputs of the (width - 1) tokens before; zeros if None.
        weight: taps, the newest token's last.
        bias: per channel, or None.
        valid: False on padding, which stands at the end of a row and is not remembered.
    """
    taps = weight.shape[-1] - 1
    if held is None:
        held = x.new_zeros(x.shape[0], taps, x.shape[2])
    inputs = torch.cat([held, x], dim=1)
    if x.shape[1] == 1 and not torch.is_grad_enabled():  # a single token: a weighted sum, far cheaper than the call
        y = (inputs * weight[:, 0].t()).sum(dim=1, keepdim=True)
        y = y if bias is None else y + bias
    elif x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64):
        y = _tap_by_tap(inputs, weight[:, 0].t(), bias)
    else:  # in low precision the sum would round after every tap, and elsewhere be many launches
        y = F.conv1d(inputs.transpose(1, 2), weight, bias, groups=x.shape[2]).transpose(1, 2)
    if valid is None:
        return y, inputs[:, inputs.shape[1] - taps :].clone()
    first = valid.sum(dim=1)[:, None] + torch.arange(taps, device=x.device)
    return y, inputs.gather(1, first[..., None].expand(-1, -1, x.shape[2]))


def _tap_by_tap(
    inputs: Float[Tensor, "batch earlier_and_pos channel"], taps: Float[Tensor, "lag channel"], bias: Tensor | None
) -> Channels:
    """The sums of taps, oldest first; on a CPU far faster than the library's convolution, which turns its inputs."""
    length = inputs.shape[1] - len(taps) + 1
    start = inputs.new_zeros(inputs.shape[2]) if bias is None else bias
    if torch.is_grad_enabled():
        y = start
        for j, tap in enumerate(taps):
            y = torch.addcmul(y, inputs[:, j : j + length], tap)
        return y
    y, taps = torch.empty_like(inputs[:, :length]), taps.contiguous()
    for first in range(0, length, AT_ONCE):
        part = y[:, first : first + AT_ONCE]
        torch.addcmul(start, inputs[:, first : first + part.shape[1]], taps[0], out=part)
        for j in range(1, len(taps)):
            part.addcmul_(inputs[:, first + j : first + j + part.shape[1]], taps[j])
    return y


def convolution_attention(source: Channels, taps: Float[Tensor, "channel lag"]) -> Float[Tensor, "batch one pos pos"]:
    """M[t, j] = mean over channels of taps[t - j] · source[j]: what a convolution's output takes of each input.

    Over the tokens of this call; per channel it is exact, but for the bias.

    Args:
        source: what a unit of the layer's input puts into the convolution.
        taps: by tokens back; lag 0 is the token itself.
    """
    length, wide = source.shape[1], source.float()
    out = wide.new_zeros(source.shape[0], 1, length, length)
    for lag in range(min(taps.shape[1], length)):
        weighed = (wide[:, : length - lag] * taps[:, lag].float()).mean(-1)
        out[:, 0].diagonal(-lag, 1, 2).copy_(weighed)
    return out
