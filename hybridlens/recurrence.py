"""What the recurrent layers of all families share: convolution, edited trajectories, hidden attention.

How a state edit persists: the scan gives the trajectory H, hooks turn it into H', and the trajectory
used is `hybridlens.scan.persistent_states`, the same recurrence with the edited entries put in. The
gradient at `hook_state` is the total one: how the loss changes with that entry, through its own
readout and through every later state that continues from it. So it answers "what if this entry were set to
another value", one entry at a time: setting all entries at once would cut them off from each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridlens import scan, scan_kernels, selective
from hybridlens.hooks import HookPoint, wanted
from hybridlens.layer_state import RecurrentState
from hybridlens.shapes import Channels, ConvState, State, States, Valid


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
    else:
        y = F.conv1d(inputs.transpose(1, 2), weight, bias, groups=x.shape[2]).transpose(1, 2)
    if valid is None:
        return y, inputs[:, inputs.shape[1] - taps :].clone()
    first = valid.sum(dim=1)[:, None] + torch.arange(taps, device=x.device)
    return y, inputs.gather(1, first[..., None].expand(-1, -1, x.shape[2]))


def hold_padding(decay: States, write: States, valid: Valid | None) -> tuple[States, States]:
    """Decay 1 and write 0 on padding, so that a row's state stays that of its last token."""
    if valid is None:
        return decay, write
    mask = valid.reshape(*valid.shape, *[1] * (decay.ndim - 2))
    return torch.where(mask, decay, 1.0), torch.where(mask, write, 0.0)


def hooked_states(decay: States, write: States, held: RecurrentState | None, point: HookPoint) -> States:
    """The state after each token, with the edits of `point`'s hooks put in."""
    initial = torch.zeros_like(write[:, 0]) if held is None else held.recurrent
    if write.shape[1] == 1 and not torch.is_grad_enabled():  # a single token: one step, nothing rearranged
        states = torch.addcmul(write, decay, initial[:, None])
    else:
        states = scan.linear_scan(decay, write, initial)
    edited = _Edited()
    visit = point.edited_lazily(lambda: cast(Tensor, _Gate.apply(states, edited)) if states.requires_grad else states)
    if visit is None:
        return states
    hooked, edited.mask = visit
    if not hooked.requires_grad:
        if edited.mask is None:
            return hooked
        return scan.persistent_states(states, hooked, decay, write, initial, edited.mask)
    return cast(Tensor, _Persist.apply(hooked, decay, write, initial, edited))


def hooked_selective_states(
    dt: Channels,
    A: Float[Tensor, "channel state"],
    B: Float[Tensor, "batch pos state"],
    C: Float[Tensor, "batch pos state"],
    x: Channels,
    held: RecurrentState | None,
    point: HookPoint,
) -> selective.SelectiveStates:
    """`hooked_states` of Mamba's recurrence, read out: without gradients, where nobody looks at decay and write.

    These are made a few tokens at a time, so that little memory is needed beside the states; all at once only
    where an edit has to be carried on and there is no CPU's cache to gain from.

    Args:
        dt: Δ, after softplus; 0 on padding.
        A: the diagonal, negative.
        B: write directions.
        C: readout directions.
        x: the channel inputs.
        held: the layer's memory of earlier tokens.
        point: `hook_state`.
    """
    (batch, length, width), n = dt.shape, A.shape[1]
    initial = dt.new_zeros(batch, width, n, dtype=torch.float32) if held is None else held.recurrent
    if dt.device.type == "cpu":
        states, y = selective.selective_states(dt, A, B, C, x, initial)
    else:  # there a loop would be many small launches
        states, previous = dt.new_empty(batch, length, width, n, dtype=torch.float32), initial
        step = max(1, selective.GPU_CHUNKS * selective.CHUNK_ELEMENTS // max(1, batch * width * n))
        for start in range(0, length, step):
            part = slice(start, start + step)
            decay, write = selective.discretise(dt[:, part], A, B[:, part], x[:, part])
            states[:, part] = scan.linear_scan(decay, write, previous)
            previous = states[:, part][:, -1]
        y = selective.read_out(states, C)
    hooked, mask = point.edited(states)
    if mask is None:
        return selective.SelectiveStates(hooked, y)
    if dt.device.type == "cpu":
        return selective.edited_states(selective.SelectiveStates(states, y), hooked, dt, A, B, C, x, initial, mask)
    decay, write = selective.discretise(dt, A, B, x)
    edited = scan.persistent_states(states, hooked, decay, write, initial, mask)
    return selective.SelectiveStates(edited, selective.read_out(edited, C))


def hidden_attention(
    decay: States,
    source: Callable[[], States],
    readout: Float[Tensor, "batch pos state"] | None,
    groups: int,
    point: HookPoint,
) -> None:
    """Show `point` the hidden attention M[t, j]: what position t reads out of position j's input.

    M[t, j] = Σ_n readout[t, n] · ∏_{j<s≤t} decay[s] · source[j], averaged over the channels of each of
    `groups` equal consecutive blocks (Ali et al. 2024, "The Hidden Attention of Mamba Models", per
    channel). `source` gives what a unit of the layer's input puts into the state, and `readout` what the
    output takes from it (None: the state itself). It covers the tokens of this call.

    Time and memory grow with the square of the length times the channels.
    """
    if not wanted(point):
        return
    rows: list[Tensor] = []
    length, put = decay.shape[1], source()
    carried = put[:, :0]
    for t in range(length):
        carried = torch.cat([carried * decay[:, t, None], put[:, t, None]], dim=1)  # [b, j, c, *n]
        read = carried
        if readout is not None:
            read = torch.matmul(carried, readout[:, t, None, :, None].to(carried.dtype))[..., 0]
        row = read.unflatten(2, (groups, -1)).mean(-1).transpose(1, 2)  # [b, h, j]
        rows.append(F.pad(row, (0, length - 1 - t)))
    point(torch.stack(rows, dim=2))


class _Edited:
    """What the backward pass has to know of a hooked trajectory, filled in as it becomes known."""

    mask: Tensor | None = None
    """Entries that the hook changed; known after the hook."""
    total: Tensor | None = None
    """How the loss changes with each entry; known when the backward pass has come by."""


class _Gate(torch.autograd.Function):
    """Identity; backward, what comes through the hook.

    An entry that the hook left alone is made by the recurrence, and hears its own gradient there; through the
    hook it hears only what other, edited entries took from it.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, edited: _Edited) -> Tensor:
        ctx.edited = edited
        return states.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        mask, total = ctx.edited.mask, ctx.edited.total
        taken = grads[0] if total is None else grads[0] - total
        return (taken if mask is None else torch.where(mask, grads[0], taken)), None


class _Persist(torch.autograd.Function):
    """`persistent_states` whose gradient at every entry of the hooked trajectory is the total one."""

    @staticmethod
    def forward(ctx: Any, hooked: Tensor, decay: Tensor, write: Tensor, initial: Tensor, edited: _Edited) -> Tensor:
        mask = edited.mask
        if mask is None:
            used, decay_used = hooked.clone(), decay
        else:
            decay_used = decay.masked_fill(mask, 0.0)
            used = scan.linear_scan(decay_used, torch.where(mask, hooked, write), initial)
        ctx.edited, ctx.kernels = edited, scan_kernels.wanted()
        ctx.save_for_backward(decay_used, used, initial)
        return used

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        decay, used, initial = ctx.saved_tensors
        total = scan.adjoint(decay, grads[0], ctx.kernels)
        ctx.edited.total = total
        mask = ctx.edited.mask
        own = total if mask is None else total.masked_fill(mask, 0.0)
        before = torch.cat([initial[:, None], used[:, :-1]], dim=1)
        return total, own * before, own, decay[:, 0] * total[:, 0], None


def remember(conv: ConvState, final: State) -> RecurrentState:
    """A layer's memory, sharing no storage with the whole trajectory."""
    return RecurrentState(conv, final.float().clone())
