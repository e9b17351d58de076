"""Runs of a model with hooks and caches: the part of `HybridLens` that reads a prompt and keeps no state.

Hooks of a call are gone when it returns or raises.

How it fails: arguments that cannot be are refused at the door (`hybridlens.boundary`), tokens by `hybridlens.tokens`,
names by `hybridlens.hooks`; each in one line, before anything runs.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Self, TypeAlias, cast

import torch
from torch import Tensor

from hybridlens.boundary import public
from hybridlens.boundary_words import Unchecked, shown
from hybridlens.cache import HybridCache
from hybridlens.devices import usable
from hybridlens.errors import InputError
from hybridlens.hooks import HookFunction, HookPoint, NameFilter, attached, reads_only
from hybridlens.padding import chosen
from hybridlens.peers import Slice
from hybridlens.shapes import Lengths, Logits
from hybridlens.text import TokenFront
from hybridlens.tokens import TokensLike

PosSlice: TypeAlias = Annotated[
    Slice | int | tuple[int | None, ...] | list[int] | Tensor | None, Unchecked("positions")
]
"""Positions as TransformerLens has them: one, a slice as a tuple, or a list."""


class RunFront(TokenFront):
    """Logits, hooks and caches; `HybridLens` builds on it."""

    hook_dict: dict[str, HookPoint]

    @public
    def __call__(self, tokens: TokensLike, lengths: Sequence[int] | Lengths | None = None) -> Logits:
        """Logits at every position; hooks set by ``with lens.hooks(...)`` fire.

        Args:
            tokens: a tensor [batch, pos], ids, or text.
            lengths: real tokens of each row of a tensor padded on the right.

        Returns:
            logits at the positions given; NaN at those of padding. Hook functions see padding on the right.

        Raises:
            InputError: for tokens that cannot be run.
        """
        return self._logits(tokens, lengths)

    forward = __call__

    def _logits(self, tokens: TokensLike, lengths: Sequence[int] | Lengths | None) -> Logits:
        laid = self._laid(tokens, lengths)
        return laid.logits(self.network(*laid.batch).logits)

    @public
    @contextmanager
    def hooks(
        self,
        fwd_hooks: Sequence[tuple[NameFilter, HookFunction]] = (),
        bwd_hooks: Sequence[tuple[NameFilter, HookFunction]] = (),
    ) -> Generator[Self]:
        """Hook functions for the length of a ``with`` block, which gets the lens.

        Args:
            fwd_hooks: (name, names or predicate, ``fn(tensor, hook)``); what `fn` returns, if not None,
                takes the activation's place.
            bwd_hooks: likewise, on the gradient of the loss with respect to the activation. Forward and
                backward pass both have to run inside the block. The gradient of a recurrent state can be
                read, not replaced.

        Raises:
            UnknownNameError: for a name that the model lacks, before anything is attached.
            HookFunctionError: for a function that returns what cannot stand in for its tensor.
        """
        with attached(self.hook_dict, fwd_hooks, bwd_hooks):
            yield self

    @public
    def run_with_hooks(
        self,
        tokens: TokensLike,
        fwd_hooks: Sequence[tuple[NameFilter, HookFunction]] = (),
        lengths: Sequence[int] | Lengths | None = None,
    ) -> Logits:
        """Logits of a run with hooks, which are gone afterwards.

        For hooks on gradients, put ``with lens.hooks(bwd_hooks=...)`` around the forward and backward pass.
        """
        with attached(self.hook_dict, fwd_hooks):
            return self._logits(tokens, lengths)

    @public
    def run_with_cache(
        self,
        tokens: TokensLike,
        names_filter: NameFilter = None,
        *,
        lengths: Sequence[int] | Lengths | None = None,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        pos_slice: PosSlice = None,
    ) -> tuple[Logits, HybridCache]:
        """Logits, and the `HybridCache` of what the run computed.

        Args:
            names_filter: a name, names or a predicate; None for every point but the hidden attention of
                recurrent layers, which grows with the square of the length and must be asked for; an empty list
                for none.
            device: where to keep the activations; None where they were computed.
            remove_batch_dim: drop the batch axis of a single prompt.
            pos_slice: keep only these query positions, counted among each row's own tokens: -1 is the last of each.

        Raises:
            UnknownNameError: for a name that the model lacks.
            InputError: for tokens that cannot be run, or `remove_batch_dim` with several rows.
        """
        place = None if device is None else usable(device)
        laid = self._laid(tokens, lengths)
        batch = laid.batch
        if remove_batch_dim and batch.tokens.shape[0] != 1:
            raise InputError(f"remove_batch_dim needs one prompt, {batch.tokens.shape[0]} were given")
        positions = _positions(pos_slice)
        index = None if pos_slice is None else laid.positions(positions.slice)
        kept: dict[str, Tensor] = {}

        def keep(tensor: Tensor, hook: HookPoint) -> None:
            value = tensor.detach()
            if "k" in hook.axes:
                value = laid.as_given(value, hook.axes.index("k"))
            at = hook.axes.index("p")
            if index is None:
                value = laid.as_given(value, at)
            else:  # a copy, so that the rest is not kept alive
                value = chosen(value, at, index)
                value = value.squeeze(at) if positions.mode == "int" else value
            value = value if place is None else value.to(place)
            kept[cast(str, hook.name)] = value[0] if remove_batch_dim else value

        nothing = names_filter is not None and not callable(names_filter) and len(names_filter) == 0
        wanted = [] if nothing else [(names_filter, reads_only(keep))]
        with attached(self.hook_dict, wanted):
            logits = laid.logits(self.network(batch.tokens, batch.lengths).logits)
        return logits, HybridCache(kept, self, not remove_batch_dim, laid if index is None else None)


def _positions(given: PosSlice) -> Slice:
    """What TransformerLens makes of a choice of positions.

    Raises:
        InputError: it is none.
    """
    try:
        return Slice.unwrap(cast(Any, given))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"pos_slice = {shown(given)} given, expected a position, a slice as a tuple (start, stop), or a list"
        ) from error
