"""Runs of a model with hooks and caches: the part of `HybridLens` that reads a prompt and keeps no state.

All of them take the words of TransformerLens (`hybridlens.run_options`): what comes out (logits, a loss, both,
nothing), at which layer to begin and to stop, and how text and padding are read.

Hooks of a call are gone when it returns or raises, unless they are to stay (``reset_hooks_end=False``).

How it fails: arguments that cannot be are refused at the door (`hybridlens.boundary`), tokens by `hybridlens.tokens`,
names by `hybridlens.hooks`; each in one line, before anything runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, Unpack, cast, overload

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlens.blocks import Block
from hybridlens.boundary import public
from hybridlens.boundary_words import Unchecked, shown
from hybridlens.cache import HybridCache
from hybridlens.caching import PosSlice, caching_hooks
from hybridlens.errors import InputError
from hybridlens.hooking import HookFront, Hooks
from hybridlens.hooks import HookPoint, NameFilter, attached
from hybridlens.losses import next_token_losses
from hybridlens.padding import Layout, Side
from hybridlens.run_options import CacheOptions, HookOptions, LogitsAndLoss, ReturnType, RunOptions, takes_input
from hybridlens.shapes import Lengths, Logits, Resid
from hybridlens.text import TokenFront
from hybridlens.tokens import TokensLike
from hybridlens.visits import given_as


class Rows(NamedTuple):
    """What a run reads."""

    laid: Layout
    given: Tensor
    """Tokens, or the stream that enters the first layer, as computed."""


class RunFront(TokenFront, HookFront):
    """Logits, losses, hooks and caches; `HybridLens` builds on it."""

    hook_dict: dict[str, HookPoint]

    @overload
    def __call__(
        self, tokens: TokensLike, return_type: Literal["logits", "loss"] = "logits", **options: Unpack[RunOptions]
    ) -> Tensor: ...
    @overload
    def __call__(
        self, tokens: TokensLike, return_type: Literal["both"], **options: Unpack[RunOptions]
    ) -> LogitsAndLoss: ...
    @overload
    def __call__(self, tokens: TokensLike, return_type: None, **options: Unpack[RunOptions]) -> Tensor | None: ...
    @takes_input
    @public
    def __call__(
        self,
        tokens: TokensLike,
        return_type: ReturnType = "logits",
        *,
        loss_per_token: bool = False,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        lengths: Sequence[int] | Lengths | None = None,
        last_only: bool = False,
    ) -> Tensor | LogitsAndLoss | None:
        """Logits at every position, or a loss; hooks that were added, or set by ``with lens.hooks(...)``, fire.

        Args:
            tokens: a tensor [batch, pos], ids, or text; with `start_at_layer`, a residual stream.
            return_type: "logits"; "loss", the cross entropy of each next token in nats, the mean over all; "both", as
                ``logits, loss``; None for nothing, when hooks are all that is wanted: logits are then computed only
                where a hook asks for them.
            loss_per_token: see `RunOptions`, as for all that follow.

        Returns:
            logits at the positions given, NaN at those of padding; or what `return_type` or `stop_at_layer` ask for.
            Hook functions see padding on the right.

        Raises:
            InputError: for tokens or a stream that cannot be run, layers that are none, or a loss that cannot be
                computed.
        """
        start, stop = self._layer(start_at_layer, "start_at_layer"), self._layer(stop_at_layer, "stop_at_layer")
        if stop is not None and return_type in ("loss", "both"):
            raise InputError(
                f"stop_at_layer = {shown(stop_at_layer)} gives a residual stream, of which there is no loss"
            )
        if start is not None and return_type in ("loss", "both"):
            raise InputError("a loss needs tokens, and start_at_layer has none; use lens.loss_fn(logits, tokens)")
        if start is not None and stop is not None and stop < start:
            raise InputError(f"stop_at_layer = {stop} given, which comes before start_at_layer = {start}")
        if last_only and (stop is not None or return_type in ("loss", "both")):
            wanted = "a residual stream" if stop is not None else "a loss"
            raise InputError(f"last_only = True given, which leaves out logits, where {wanted} is asked for")
        laid, given = self._rows(tokens, start, lengths, prepend_bos, padding_side)
        counts = laid.batch.lengths
        with given_as(counts, laid.left):
            if stop is None and return_type is None:
                return self.network.unread(given, counts, start, last_only)
            if start is None and stop is None:
                out = self.network(given, counts, None, last_only).logits
            else:
                out = self.network.stretch(given, counts, start, stop, last_only)
        if last_only:
            return out
        if stop is not None or return_type == "logits" or return_type is None:
            return laid.blanked(out)
        loss = self._loss(laid, out, loss_per_token)
        return LogitsAndLoss(laid.blanked(out), loss) if return_type == "both" else loss

    forward = __call__

    @public
    def loss_fn(
        self,
        logits: Logits,
        tokens: TokensLike,
        attention_mask: Annotated[Any, Unchecked("a mask of 0s and 1s")] = None,
        per_token: bool = False,
        *,
        lengths: Sequence[int] | Lengths | None = None,
    ) -> Float[Tensor, "*place"]:
        """The cross entropy of each next token, in nats.

        Args:
            logits: at the positions of `tokens`.
            tokens: as they were run.
            attention_mask: 0 at padding, which is left out.
            per_token: of each token, [batch, pos − 1], NaN where there is none; not the mean.
            lengths: real tokens of each row that is padded on the right.

        Raises:
            InputError: logits of other positions than the tokens, or no next token.
        """
        laid = self._laid(
            tokens if attention_mask is None else {"input_ids": tokens, "attention_mask": attention_mask}, lengths
        )
        if logits.shape[:2] != laid.batch.tokens.shape:
            raise InputError(f"logits {list(logits.shape)} given for tokens {list(laid.batch.tokens.shape)}")
        return self._loss(laid, laid.as_computed(logits), per_token)

    @overload
    def run_with_hooks(
        self,
        tokens: TokensLike,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        *,
        return_type: Literal["logits", "loss"] = "logits",
        **options: Unpack[HookOptions],
    ) -> Tensor: ...
    @overload
    def run_with_hooks(
        self,
        tokens: TokensLike,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        *,
        return_type: ReturnType = "logits",
        **options: Unpack[HookOptions],
    ) -> Any: ...
    @takes_input
    @public
    def run_with_hooks(
        self,
        tokens: TokensLike,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        *,
        return_type: ReturnType = "logits",
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **options: Unpack[RunOptions],
    ) -> Any:
        """A run with hooks, which are gone afterwards.

        Args:
            tokens: as for a plain call.
            fwd_hooks: (name, names or predicate, ``fn(tensor, hook)``).
            bwd_hooks: likewise on gradients. They need ``reset_hooks_end=False``, since the backward pass comes after
                this call; `reset_hooks` takes them away when it is done. Or put ``with lens.hooks(bwd_hooks=...)``
                around both passes.
            return_type: as for a plain call, and `options` too.
            reset_hooks_end: take hooks away at the end.
            clear_contexts: empty every point's ``ctx`` then.

        Raises:
            InputError: for backward hooks that would be gone before a backward pass.
        """
        if bwd_hooks and reset_hooks_end:
            raise InputError(
                "bwd_hooks would be gone before a backward pass can run; give reset_hooks_end=False, and call "
                "lens.reset_hooks() after it, or put `with lens.hooks(bwd_hooks=...)` around both passes"
            )
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            return cast(Any, self)(tokens, return_type, **options)

    @overload
    def run_with_cache(
        self,
        tokens: TokensLike,
        names_filter: NameFilter = None,
        *,
        return_cache_object: Literal[True] = True,
        return_type: Literal["logits", "loss"] = "logits",
        **options: Unpack[CacheOptions],
    ) -> tuple[Tensor, HybridCache]: ...
    @overload
    def run_with_cache(
        self,
        tokens: TokensLike,
        names_filter: NameFilter = None,
        *,
        return_cache_object: bool = True,
        return_type: ReturnType = "logits",
        **options: Unpack[CacheOptions],
    ) -> tuple[Any, Any]: ...
    @takes_input
    @public
    def run_with_cache(
        self,
        tokens: TokensLike,
        names_filter: NameFilter = None,
        *,
        return_cache_object: bool = True,
        return_type: ReturnType = "logits",
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        pos_slice: PosSlice = None,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **options: Unpack[RunOptions],
    ) -> tuple[Any, Any]:
        """What a plain call gives, and a cache of what the run computed.

        Args:
            tokens: as for a plain call.
            names_filter: a name, names or a predicate; None for every point but the hidden attention of
                recurrent layers, which grows with the square of the length and must be asked for; an empty list
                for none. The logits that come beside the cache are of all positions whatever is kept: gigabytes of a
                long prompt, which ``return_type=None`` leaves out, and ``last_only=True`` but for the last.
            return_cache_object: an `ActivationCache`, not a dict.
            return_type: as for a plain call, and `options` too.
            incl_bwd: also the gradients of the loss, under the point's name and ``_grad``; the weights get none.
            device: where to keep the activations; None where they were computed.
            remove_batch_dim: drop the batch axis of a single prompt.
            pos_slice: keep only these query positions, counted among each row's own tokens: -1 is the last of each.
            reset_hooks_end: take the caching hooks away at the end; if not, they fill this cache until `reset_hooks`.
            clear_contexts: empty every point's ``ctx`` then.

        Raises:
            UnknownNameError: for a name that the model lacks.
            InputError: for tokens that cannot be run, `remove_batch_dim` with several rows, or gradients of what is
                no number.
        """
        if incl_bwd and (return_type != "loss" or options.get("loss_per_token")):
            raise InputError("incl_bwd = True given, which needs one number to differentiate: return_type='loss'")
        if incl_bwd and not torch.is_grad_enabled():
            raise InputError("incl_bwd = True given where gradients are off; leave no_grad or inference_mode")
        layouts: list[Layout] = []
        kept, forward, backward = caching_hooks(
            self.hook_dict,
            names_filter,
            incl_bwd=incl_bwd,
            device=device,
            remove_batch_dim=remove_batch_dim,
            pos_slice=pos_slice,
            layouts=layouts,
        )
        if options.get("last_only") and pos_slice is not None and any(name == "hook_logits" for name, _ in forward):
            raise InputError(
                "last_only = True and pos_slice given, but hook_logits then holds the last position alone; leave one "
                "of them out, or hook_logits of names_filter"
            )
        with self.hooks(forward, backward, reset_hooks_end, clear_contexts):
            if incl_bwd:
                out = self._differentiated(tokens, options)
            else:
                out = cast(Any, self)(tokens, return_type, **options)
        if not return_cache_object:
            return out, kept
        return out, HybridCache(kept, self, not remove_batch_dim, layouts[0] if layouts and pos_slice is None else None)

    # How a run goes.

    def _differentiated(self, tokens: TokensLike, options: RunOptions) -> Float[Tensor, ""]:
        """The loss of a run whose backward pass has run: by every point, whether or not weights take gradients."""
        nothing = torch.zeros((), dtype=self.network.wrapped[0].dtype, device=self.device, requires_grad=True)
        with attached(self.hook_dict, [("hook_embed", lambda x, hook: x + nothing.to(x.device, x.dtype))]):
            loss = self(tokens, "loss", **options)
        weights = {id(weight) for weight in self.hf_model.parameters()}
        torch.autograd.backward(loss, inputs=[leaf for leaf in _leaves(loss) if id(leaf) not in weights])
        return loss

    def _rows(
        self,
        tokens: Any,
        start: int | None,
        lengths: Sequence[int] | Lengths | None,
        prepend_bos: bool | None,
        padding_side: Side | None,
    ) -> Rows:
        """Tokens, or a residual stream, checked and laid out."""
        if start is None:
            laid = self._laid(tokens, lengths, prepend_bos, padding_side)
            return Rows(laid, laid.batch.tokens)
        resid = self._stream(tokens)
        counts = [resid.shape[1]] * resid.shape[0] if lengths is None else lengths
        places = torch.zeros(resid.shape[:2], dtype=torch.long)
        laid = self._laid(places, counts, None, padding_side)
        resid = laid.as_computed(resid)
        real = laid.real(resid.device)
        return Rows(laid, resid if real is None else resid.masked_fill(~real[..., None], 0.0))  # NaN may stand there

    def _stream(self, given: Any) -> Resid:
        """What was given as a residual stream, if it can be one."""
        width = self.network.cfg.d_model
        if not isinstance(given, Tensor) or given.ndim != 3 or given.shape[-1] != width:
            raise InputError(f"start_at_layer takes a residual stream [batch, pos, {width}], {shown(given)} given")
        wide = cast(Block, self.network.blocks[0]).wide
        dtype = cast(torch.dtype, self.hf_model.dtype)
        if given.dtype != dtype and not (wide and given.dtype == torch.float32):
            raise InputError(f"start_at_layer was given a stream of {given.dtype}, but the model is {dtype}")
        return given

    def _layer(self, layer: int | None, argument: str) -> int | None:
        """A layer, counted from the front."""
        if layer is None:
            return None
        n = self.network.cfg.n_layers
        if not -n <= layer <= n:
            raise InputError(f"{argument} = {shown(layer)} given, expected a layer from 0 to {n}, or -{n} to -1")
        return layer + n if layer < 0 else layer

    def _loss(self, laid: Layout, logits: Logits, per_token: bool) -> Float[Tensor, "*place"]:
        """The loss of logits as computed; of each token, at the positions given."""
        losses = next_token_losses(logits, laid.batch.tokens, laid.real(logits.device))
        if not per_token:
            return losses.mean()
        none = losses.each.new_full((losses.each.shape[0], 1), torch.nan)  # the last position of all
        return laid.as_given(torch.cat([losses.each, none], dim=1))[:, :-1]


def _leaves(of: Tensor) -> list[Tensor]:
    """The tensors that a result was computed from, and that take gradients."""
    found: list[Tensor] = []
    seen: set[Any] = set()
    left: list[Any] = [of.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        left += [before for before, _ in node.next_functions]
    return found
