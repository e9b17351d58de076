"""Recurrent heads knocked out: what tokens write into a head's state, or read out of it, taken away as edits.

A head is a pair (layer, head): of matrix states one of their heads, of RG-LRU one of its blocks of channels, of a Mamba
layer its one group. Where it is silenced is the mixer's to say (`hybridlens.stream.HeadStates`): a row of numbers is
set to 0, and no trajectory of states has to be made.

=======  =====================================================================================================
what     at the positions given
=======  =====================================================================================================
write    S_t = a_t S_{t-1}: the token adds nothing to the head's state, which decays as before. A delta rule erases
         nothing either, so that what the token would have replaced stays
read     the head's readout of the state is 0; what passes the state by (D x) is still there, and so is the state
=======  =====================================================================================================

In a matrix state the write is silenced through its address k_t: Δ_t v_t k_tᵀ and β_t (v_t - a_t S_{t-1} k_t) k_tᵀ are
both 0 where k_t is. Its value v_t would not do: in Mamba-2 D x_t is made of it, and a delta rule with a value of 0
still erases.

Positions are absolute, counted from the first token of the text, in decode steps and continued states too. Rows of a
batch may each have their own knock-out (`knock_out_rows`); an `Edit` restricted to rows acts on these.

How it fails: layers without a state, and heads that a layer lacks, raise `InputError`. A position that no pass comes by
is silently none, since an edit does not know the prompt; `knockout.knockout` does. An edit of ``ssm.hook_write`` that
puts a value in puts it in behind a silenced write.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias, cast

import torch
from jaxtyping import Bool
from torch import Tensor

from analyses.heads.selection import check_rows
from hybridlens.blocks import Block
from hybridlens.boundary import Natural, public
from hybridlens.errors import HookFunctionError, InputError
from hybridlens.hooks import Edit, HookFunction, HookPoint, Phase, reads_only
from hybridlens.model import HybridLens
from hybridlens.stream import HeadStates, StatesByHead

What: TypeAlias = Literal["write", "read"]

RecurrentHead: TypeAlias = tuple[int, int]
"""(layer, head)."""


class Silenced(NamedTuple):
    """What one row of a batch goes without."""

    heads: tuple[RecurrentHead, ...]
    positions: tuple[int, ...] | None = None
    """Absolute; None for all."""


def head_states(lens: HybridLens, layer: int) -> HeadStates:
    """A layer's state by heads.

    Raises:
        InputError: the layer does not exist, or holds no state, saying which do.
    """
    cfg = lens.cfg
    if not cfg.recurrence(layer).state_shape:
        those = ", ".join(map(str, cfg.state_layers))
        raise InputError(
            f"layer {layer} holds no state, its convolution alone remembers; "
            + (f"layers with one are {those}" if those else "there is none with one")
        )
    mixer = cast(Block, lens.blocks[layer]).parts["ssm"]
    assert isinstance(mixer, StatesByHead)
    return mixer.head_states


@public
def recurrent_heads(lens: HybridLens) -> list[RecurrentHead]:
    """Every head that has a state, (layer, head), in forward order."""
    return [(layer, head) for layer in lens.cfg.state_layers for head in range(head_states(lens, layer).n)]


@public
def knock_out(
    lens: HybridLens,
    heads: Sequence[tuple[int, int]],
    positions: Sequence[Natural] | None = None,
    what: What = "write",
    phase: Phase = "both",
) -> list[Edit]:
    """Edits that silence recurrent heads at some positions, the same in all rows.

    Args:
        lens: the model.
        heads: (layer, head) pairs.
        positions: absolute positions, 0 for a text's first token; None for all.
        what: "write" or "read"; see the module.
        phase: of the forward passes in which they act.

    Returns:
        one edit for each layer, to give to `generate`, `prefill`, `extend` or `trace`.

    Raises:
        InputError: no head or no position, or heads that the model does not have.
        UnknownNameError: something to knock out, or a phase, that does not exist.
    """
    if not heads:
        raise InputError("no head was given, expected at least one (layer, head) to knock out")
    if positions is not None and not positions:
        raise InputError("no position was given, expected at least one, or None for all")
    places = None if positions is None else tuple(positions)
    return knock_out_rows(lens, [Silenced(tuple(heads), places)], what, phase)


@public
def knock_out_rows(
    lens: HybridLens, rows: Sequence[Silenced], what: What = "write", phase: Phase = "both"
) -> list[Edit]:
    """`knock_out` with heads and positions of its own for each row of the batch; a row without heads stays whole.

    Runs of other batch sizes raise `HookFunctionError`, but where there is one row, which is then every row's.

    Raises:
        InputError: no row, or heads that the model does not have.
        UnknownNameError: as `knock_out`.
    """
    lens.cfg.need_states("knocking out heads")
    if not rows:
        raise InputError("no row was given, expected what each row of the batch goes without")
    for layer, head in {head: None for row in rows for head in row.heads}:
        n = head_states(lens, layer).n
        if not 0 <= head < n:
            raise InputError(f"head {head} of layer {layer} given, but its state has heads 0..{n - 1}")
    positions = _table(rows)
    edits: list[Edit] = []
    for layer in sorted({layer for row in rows for layer, _ in row.heads}):
        states = head_states(lens, layer)
        gone = torch.tensor([[(layer, head) in row.heads for head in range(states.n)] for row in rows])
        point = states.write if what == "write" else states.read
        edits.append(Edit(f"blocks.{layer}.{point}", _silencing(gone, positions), phase))
    return edits


def _table(rows: Sequence[Silenced]) -> Bool[Tensor, "rows position"] | None:
    """True at each row's positions; the last column stands for all that are beyond. None where all are meant."""
    if all(row.positions is None for row in rows):
        return None
    beyond = 1 + max(position for row in rows for position in row.positions or (0,))
    table = torch.zeros(len(rows), beyond + 1, dtype=torch.bool)
    for row, silenced in enumerate(rows):
        table[row, slice(None) if silenced.positions is None else list(silenced.positions)] = True
    return table


def _silencing(gone: Bool[Tensor, "rows rec_head"], positions: Bool[Tensor, "rows position"] | None) -> HookFunction:
    """A hook function that sets the heads' rows of numbers to 0."""

    @reads_only
    def silence(x: Tensor, hook: HookPoint) -> Tensor:
        check_rows("knock-outs", len(gone), x.shape[0], hook)
        here = gone.to(x.device)[:, None]
        if positions is not None:
            here = here & _meant(positions, x, hook)[..., None]
        by_head = x if x.ndim == 4 else x.unflatten(-1, (gone.shape[1], -1))
        return by_head.masked_fill(here[..., None], 0.0).view_as(x)

    return silence


def _meant(positions: Bool[Tensor, "rows position"], x: Tensor, hook: HookPoint) -> Bool[Tensor, "batch pos"]:
    """True at the tokens of a pass that stand at a row's positions."""
    if hook.positions is None:
        raise HookFunctionError(
            f"'{hook.name}' does not say where its tokens stand, since no forward pass of the model is running; "
            "knock heads out in runs of the model, or give no positions"
        )
    at = hook.positions.to(x.device).clamp(max=positions.shape[1] - 1)
    return positions.to(x.device).expand(x.shape[0], -1).gather(1, at)
