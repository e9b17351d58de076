"""What the recurrent layers of all families share: convolution, edited trajectories, hidden attention.

How a state edit persists: the scan gives the trajectory H, hooks turn it into H', and the trajectory
used is `hybridlens.recurrences.scan.persistent_states`, the same recurrence with the edited entries put in. The
gradient at `hook_state` is the total one: how the loss changes with that entry, through its own
readout and through every later state that continues from it. So it answers "what if this entry were set to
another value", one entry at a time: setting all entries at once would cut them off from each other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlens.hooks import HookPoint, unchanged
from hybridlens.layer_state import RecurrentState
from hybridlens.recurrences import base
from hybridlens.recurrences import mamba_scan as selective
from hybridlens.recurrences.convolution import causal_convolution as causal_convolution
from hybridlens.recurrences.diagonal import Diagonal, DiagonalTerms, channel_attention
from hybridlens.recurrences.edits import Hook
from hybridlens.recurrences.selective import Selective, SelectiveTerms
from hybridlens.shapes import Channels, ConvState, State, States, Valid


def hold_padding(decay: States, write: States, valid: Valid | None) -> tuple[States, States]:
    """Decay 1 and write 0 on padding, so that a row's state stays that of its last token."""
    if valid is None:
        return decay, write
    mask = valid.reshape(*valid.shape, *[1] * (decay.ndim - 2))
    return torch.where(mask, decay, 1.0), torch.where(mask, write, 0.0)


def hooked_states(decay: States, write: States, held: RecurrentState | None, point: HookPoint) -> States:
    """The state after each token, with the edits of `point`'s hooks put in."""
    initial = torch.zeros_like(write[:, 0]) if held is None else held.recurrent
    op, terms = Diagonal(tuple(write.shape[2:])), DiagonalTerms(decay, write)
    if not point.asked():
        point.skip()
        return op.states(terms, initial)
    return base.hooked_states(op, terms, initial, _hook(point))


def _hook(point: HookPoint) -> Hook:
    """A hook point as recurrences take it: entries that differ are edits."""

    def see(states: Tensor) -> tuple[Tensor, Tensor | None]:
        hooked = point(states)
        return hooked, None if unchanged(states, hooked) else hooked.detach() != states.detach()

    return see


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
    initial = dt.new_zeros(*dt.shape[::2], A.shape[1], dtype=torch.float32) if held is None else held.recurrent
    made = Selective(tuple(A.shape)).hooked(SelectiveTerms(dt, A, B, C, x), initial, _hook(point))
    return selective.SelectiveStates(made.states, made.y)


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
    if not point.asked():
        point.skip()
        return
    point(channel_attention(decay, source(), readout, groups))


def remember(conv: ConvState, final: State) -> RecurrentState:
    """A layer's memory, sharing no storage with the whole trajectory."""
    return RecurrentState(conv, final.float().clone())
