"""Hooks as TransformerLens' hooked root module has them: the part of `HybridLens` that adds, lists and removes them.

A function added by `add_hook` acts in every run of the model, whoever starts it (a plain call, a cache, generation, the
engine, a trace) and in every thread, until it is removed. One given to ``with lens.hooks(...)``, or to a run, acts in
runs of this thread alone, and is gone afterwards. `hybridlens.hook_handles` has both in one list at each point.

How it fails: a name that the model lacks, and a predicate that holds for none, raise `UnknownNameError` before
anything is added.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Self, TypeAlias

import torch
from torch import Tensor

from hybridlens.boundary import Natural, public
from hybridlens.caching import CachingHooks, PosSlice, caching_hooks
from hybridlens.errors import InputError
from hybridlens.hooks import Direction, Directions, HookFunction, HookHandle, HookPoint, NameFilter, attached, resolve
from hybridlens.peer_notices import noticed
from hybridlens.visits import HERE

Names: TypeAlias = str | Sequence[str] | Callable[[str], bool]
Hooks: TypeAlias = Sequence[tuple[NameFilter, HookFunction]]
"""(name, names or predicate, function) each."""


class HookFront:
    """Hooks of a model; `HybridLens` builds on it."""

    hook_dict: dict[str, HookPoint]

    @public
    def add_hook(
        self,
        name: Names,
        hook: HookFunction,
        dir: Direction = "fwd",
        is_permanent: bool = False,
        level: Natural | None = None,
        prepend: bool = False,
    ) -> list[HookHandle]:
        """Have a function act at hook points from now on, in every way of running and in every thread.

        Generation reads token by token, and the engine reads prompts in pieces that they share: a function that looks
        at positions finds them in ``hook.positions``.

        Args:
            name: a name, names, or a predicate on names.
            hook: ``fn(tensor, hook)``; what it returns, if not None, takes the tensor's place. On gradients it may
                also return a tuple of one.
            dir: "fwd" for activations, "bwd" for gradients.
            is_permanent: stay when hooks are removed without ``including_permanent=True``.
            level: removing can be limited to hooks of one level.
            prepend: act before those that are there.

        Returns:
            a handle for each point; ``handle.remove()`` takes the function away.

        Raises:
            UnknownNameError: for a name that the model lacks, or a predicate that holds for none.
        """
        points = [(found, self.hook_dict[found]) for found in resolve(name, self.hook_dict)]
        for found, point in points:
            self.check_hooks_to_add(point, found, hook, dir=dir, is_permanent=is_permanent, prepend=prepend)
        return [point.add_hook(hook, dir, is_permanent, level, prepend) for _, point in points]

    def add_perma_hook(self, name: Names, hook: HookFunction, dir: Direction = "fwd") -> list[HookHandle]:
        """`add_hook` of one that stays when hooks are removed without ``including_permanent=True``."""
        return self.add_hook(name, hook, dir, is_permanent=True)

    def check_hooks_to_add(
        self,
        hook_point: HookPoint,
        hook_point_name: str,
        hook: HookFunction,
        dir: Direction = "fwd",
        is_permanent: bool = False,
        prepend: bool = False,
    ) -> None:
        """What a subclass may refuse, before `add_hook` adds anything; a lens takes every function at every point."""

    @property
    def context_level(self) -> int:
        """How many ``with`` blocks of hooks are open in this thread."""
        return len(HERE.levels)

    @public
    @contextmanager
    def hooks(
        self,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Generator[Self]:
        """Hook functions for the length of a ``with`` block, which gets the lens; for runs of this thread.

        Args:
            fwd_hooks: (name, names or predicate, ``fn(tensor, hook)``); what `fn` returns, if not None,
                takes the activation's place.
            bwd_hooks: likewise, on the gradient of the loss with respect to the activation. Forward and
                backward pass both have to run inside the block. The gradient of a recurrent state can be
                read, not replaced.
            reset_hooks_end: take them away at the end; if not, they stay until `reset_hooks`, in this thread.
            clear_contexts: empty every point's ``ctx`` at the end, if hooks are taken away.

        Raises:
            UnknownNameError: for a name that the model lacks, before anything is attached.
            HookFunctionError: for a function that returns what cannot stand in for its tensor.
        """
        try:
            with attached(self.hook_dict, fwd_hooks, bwd_hooks, stay=not reset_hooks_end):
                noticed((fn for _, fn in (*fwd_hooks, *bwd_hooks)), self.hook_dict)
                yield self
        finally:
            if reset_hooks_end and clear_contexts:
                self.clear_contexts()

    @public
    def remove_all_hook_fns(
        self, direction: Directions = "both", including_permanent: bool = False, level: Natural | None = None
    ) -> None:
        """Remove the functions at every point that act in this thread, those of open ``with`` blocks too.

        Args:
            direction: "fwd", "bwd" or "both".
            including_permanent: permanent ones too.
            level: only those of this level; None for all.
        """
        for point in self.hook_dict.values():
            point.remove_hooks(direction, including_permanent, level)

    @public
    def reset_hooks(
        self,
        clear_contexts: bool = True,
        direction: Directions = "both",
        including_permanent: bool = False,
        level: Natural | None = None,
    ) -> None:
        """`remove_all_hook_fns`, and empty every point's ``ctx``.

        Inside ``with lens.hooks(...)`` nothing is left, and leaving the block afterwards is fine. Hooks that another
        thread attached for its own runs stay.
        """
        if clear_contexts:
            self.clear_contexts()
        self.remove_all_hook_fns(direction, including_permanent, level)

    def clear_contexts(self) -> None:
        """Empty every point's ``ctx``, where hook functions leave each other things."""
        for point in self.hook_dict.values():
            point.clear_context()

    @public
    def list_hooks(
        self, name_filter: NameFilter = None, dir: Directions = "both", including_permanent: bool = True
    ) -> dict[str, list[HookHandle]]:
        """The functions that act in this thread, by point; points without any are left out."""
        names = list(self.hook_dict) if name_filter is None else resolve(name_filter, self.hook_dict)
        acting = {name: self.hook_dict[name].acting(dir) for name in names}
        listed = {name: [h for h in found if h.matches(including_permanent, None)] for name, found in acting.items()}
        return {name: handles for name, handles in listed.items() if handles}

    # Caches that are filled by hooks.

    @public
    def get_caching_hooks(
        self,
        names_filter: NameFilter = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
        pos_slice: PosSlice = None,
    ) -> CachingHooks:
        """Hook functions that fill a cache; none is attached.

        Args:
            names_filter: a name, names or a predicate; None for every point but the hidden attention of recurrent
                layers; an empty list for none.
            incl_bwd: gradients too, under the point's name and ``_grad``.
            device: where to keep what comes by; None where it was computed.
            remove_batch_dim: drop the batch axis of a single prompt.
            cache: the dict that is filled; None for a new one.
            pos_slice: keep only these query positions, counted among each row's own tokens: -1 is the last of each.

        Returns:
            ``cache, fwd_hooks, bwd_hooks``, for ``with lens.hooks(fwd_hooks, bwd_hooks)``.

        Raises:
            UnknownNameError: for a name that the model lacks.
            InputError: for a device that is not there, or positions that are none.
        """
        return caching_hooks(
            self.hook_dict,
            names_filter,
            incl_bwd=incl_bwd,
            device=device,
            remove_batch_dim=remove_batch_dim,
            cache=cache,
            pos_slice=pos_slice,
        )

    @public
    def add_caching_hooks(
        self,
        names_filter: NameFilter = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Have every run from now on fill a cache, until `reset_hooks`; returns it. See `get_caching_hooks`."""
        kept, forward, backward = self.get_caching_hooks(names_filter, incl_bwd, device, remove_batch_dim, cache)
        for name, fn in forward:
            self.add_hook(name, fn, "fwd")
        for name, fn in backward:
            self.add_hook(name, fn, "bwd")
        return kept

    # Switches of TransformerLens for points that cost something; here such points are computed when they are asked for.

    @public
    def set_use_attn_result(self, use_attn_result: bool) -> None:
        """Nothing to switch: ``attn.hook_result`` is there whenever it is asked for, and costs nothing otherwise."""

    @public
    def set_use_attn_in(self, use_attn_in: bool) -> None:
        """TransformerLens' copy of an attention layer's input for every head, which a lens has not.

        Raises:
            InputError: when it is to be switched on.
        """
        _refused(use_attn_in, "hook_attn_in", "attn.hook_q, attn.hook_k or attn.hook_v, which heads make of it")

    @public
    def set_use_split_qkv_input(self, use_split_qkv_input: bool) -> None:
        """Likewise for queries, keys and values apart; see `set_use_attn_in`."""
        _refused(use_split_qkv_input, "hook_q_input", "attn.hook_q, attn.hook_k or attn.hook_v, which heads make of it")

    @public
    def set_use_hook_mlp_in(self, use_hook_mlp_in: bool) -> None:
        """TransformerLens' point for the stream that an MLP reads, which a lens has under another name.

        Raises:
            InputError: when it is to be switched on.
        """
        _refused(use_hook_mlp_in, "hook_mlp_in", "hook_resid_mid, or ln2.hook_normalized behind the norm")


def _refused(wanted: bool, name: str, instead: str) -> None:
    if wanted:
        raise InputError(f"a lens has no point {name} to switch on; hook {instead}; see lens.hook_points")
