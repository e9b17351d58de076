"""States: the part of `HybridLens` that reads, remembers and goes on; what it says then is in `generating`.

How it fails: arguments that cannot be are refused at the door (`hybridlens.boundary`), tokens by `hybridlens.tokens`;
a state of another model, batch size or other weights, and going on under autocast, raise `InputError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal, NamedTuple

import torch

from hybridlens.boundary import Few, public
from hybridlens.decoding import Forward, editing
from hybridlens.display.memories import PrefillShown
from hybridlens.errors import InputError
from hybridlens.hooks import Edit
from hybridlens.shapes import KeyPositions, Lengths, Logits
from hybridlens.state import HybridState
from hybridlens.text import TokenFront
from hybridlens.tokens import TokensLike, check_context


class _Fields(NamedTuple):
    state: HybridState
    logits: Logits


class Prefill(PrefillShown, _Fields):
    """What `prefill` and `extend` give: unpack as ``state, logits``."""

    __slots__ = ()


def no_autocast(device: torch.device) -> None:
    """Refuse to go on from a state under autocast, which makes keys in another dtype than the model's."""
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
        raise InputError(
            f"autocast to {dtype} is on, under which no state can be continued; leave it, or open the model in that "
            f"dtype: hl.load(..., dtype='{str(dtype).removeprefix('torch.')}')"
        )


class StateFront(TokenFront):
    """Prefill and extension; `HybridLens` builds on it."""

    def editing(self, edits: Sequence[Edit], phase: Literal["prefill", "decode"]) -> AbstractContextManager[Forward]:
        """Those of `edits` that act in `phase`, for the length of a ``with`` block, which gets the forward pass.

        Raises:
            UnknownNameError: for a phase, or a name in any of the edits, that does not exist.
        """
        return editing(self.network, edits, phase)

    @public
    def prefill(
        self,
        tokens: TokensLike,
        edits: Sequence[Edit] = (),
        *,
        lengths: Sequence[int] | Lengths | None = None,
        last_only: bool = False,
    ) -> Prefill:
        """Read a prompt: its state, and its logits.

        The weights are read anew, so that the state knows by which it was made, whatever way they were changed.
        With gradients on, the state holds the graph that made it; `HybridState.detach` cuts it off.

        Args:
            edits: those of phase "prefill" or "both" act.
            lengths: real tokens of each row of a tensor padded on the right.
            last_only: logits of each row's last token only, [b 1 v].
        """
        batch = self._laid(tokens, lengths).batch
        self.network.following.check(fresh=True)
        with self.editing(edits, "prefill") as forward:
            logits, state = forward(batch.tokens, batch.lengths, None, last_only)
        return Prefill(state, logits)

    @public
    def extend(
        self,
        state: HybridState,
        tokens: TokensLike,
        edits: Sequence[Edit] = (),
        *,
        lengths: Sequence[int] | Lengths | None = None,
        phase: Literal["prefill", "decode"] = "decode",
        last_only: bool = False,
    ) -> Prefill:
        """Go on from a state by any number of tokens; the same as one run over all of them.

        Args:
            state: what was read before; it is not changed.
            edits: those that act in `phase`.
            phase: which edits act: "decode", or "prefill" for a prompt read in pieces.
            last_only: logits of each row's last new token only, [b 1 v].

        Raises:
            InputError: for a state of another model or batch size, past the model's context, or under autocast.
        """
        batch = self._laid(tokens, lengths).batch
        no_autocast(batch.tokens.device)
        n_ctx = self.network.cfg.n_ctx
        if n_ctx is not None:
            new = [batch.tokens.shape[1]] * state.batch if batch.lengths is None else batch.lengths.tolist()
            plan = state.plan
            read = (0,) * state.batch if plan is None else plan.lengths
            check_context(max(map(sum, zip(read, new, strict=False)), default=0), n_ctx)
        with self.editing(edits, phase) as forward:
            logits, after = forward(batch.tokens, batch.lengths, state, last_only)
        return Prefill(after, logits)

    @public
    def key_positions(self, state: HybridState, new_tokens: Few = 1, layer: int | None = None) -> KeyPositions:
        """The absolute position of each key slot of scores and pattern in the next forward pass.

        In a sliding window only the newest positions have slots. Held slots that a row does not use hold -1.

        Args:
            state: what that pass continues from.
            new_tokens: how many tokens it reads.
            layer: whose scores and pattern; None for all, where all have the same window.

        Raises:
            InputError: the layer has no attention, or none is given and layers have windows of their own.
        """
        if layer is not None:
            self.network.cfg.attention(layer)
        elif state.windows:
            raise InputError(
                "layers of this model have windows of their own, so each has its own key slots; give layer="
            )
        new = state.lengths[:, None] + torch.arange(new_tokens, device=state.lengths.device)
        return torch.cat([state.key_positions if layer is None else state.positions_in(layer), new], dim=1)
