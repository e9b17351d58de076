"""`HybridLens`: a hybrid model under one set of names.

The lens is a thin front: the forward pass lives in `network`, tokens in `tokens`, decoding in
`decoding`, nnsight in `tracing`. It never changes the Hugging Face model it opens, which goes on
working by itself and shares its weights.

What every way in has in common: hooks fire in forward order at the points of `lens.hook_points`, in
prefill and in every decode step; they are gone when the call returns or raises; and no call leaves
anything on the model, so the same call twice gives the same tensors.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformer_lens.ActivationCache import ActivationCache
from transformer_lens.utilities.slice import Slice

from hybridlens import tokens as tokens_module
from hybridlens.choosing import Sampling
from hybridlens.config import LensConfig
from hybridlens.decoding import Boundary, Forward, editing
from hybridlens.errors import InputError
from hybridlens.families import FAMILIES, family_of
from hybridlens.generation import Generation, generate
from hybridlens.hooks import (
    Edit,
    HookFunction,
    HookPoint,
    HookSpec,
    NameFilter,
    attached,
    reads_only,
)
from hybridlens.network import HookedNetwork
from hybridlens.padding import chosen
from hybridlens.shapes import KeyPositions, Logits
from hybridlens.state import HybridState
from hybridlens.text import TokenFront
from hybridlens.tokens import TokensLike
from hybridlens.weights.counting import count

if TYPE_CHECKING:
    from hybridlens.tracing import Tracer


class ParameterCounts(NamedTuple):
    """How many weights a model has."""

    total: int
    non_embedding: int
    """Without the embedding and, where it is separate, the unembedding."""
    active: int
    """Of all, those that one token uses: without the experts it is not sent to."""


class Prefill(NamedTuple):
    """What `prefill` and `extend` give: unpack as ``state, logits``."""

    state: HybridState
    logits: Logits


def _no_autocast(device: torch.device) -> None:
    """Refuse to go on from a state under autocast, which makes keys in another dtype than the model's."""
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
        raise InputError(
            f"autocast to {dtype} is on, under which no state can be continued; leave it, or open the model in that "
            f"dtype: hl.load(..., dtype='{str(dtype).removeprefix('torch.')}')"
        )


class HybridLens(TokenFront):
    """Hook points, caches, traces, states and generation over a Hugging Face hybrid model.

    It computes what the model does in evaluation mode; dropout is never applied.

    Args:
        hf_model: a causal language model of one of the families (`hybridlens.families`), left as it is.
        tokenizer: its tokenizer, for text; None to work with token ids only.

    Raises:
        CheckpointError: for a model of another family, or a configuration it was not built for.
    """

    def __init__(self, hf_model: Any, tokenizer: Any = None) -> None:
        family = family_of(type(hf_model).__name__, FAMILIES)
        self.hf_model = hf_model
        self.tokenizer = tokenizer
        self.network = HookedNetwork(hf_model, family, family.configure(hf_model.config))
        self.hook_dict: dict[str, HookPoint] = self.network.points
        self.hook_points: dict[str, HookSpec] = {name: _spec(name, point) for name, point in self.hook_dict.items()}
        self._nnsight: Any = None

    @property
    def cfg(self) -> LensConfig:
        """Sizes, structure, and where the model is now."""
        return replace(self.network.cfg, device=self.device, dtype=self.dtype)

    # The model's parts, under the names of the hook points.

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers, each with its hook points as attributes."""
        return self.network.blocks

    @property
    def hook_embed(self) -> HookPoint:
        """What enters block 0."""
        return self.network.hook_embed

    @property
    def ln_final(self) -> nn.Module:
        """The norm before the unembedding."""
        return self.network.ln_final

    @property
    def hook_logits(self) -> HookPoint:
        """The logits, after any soft cap."""
        return self.network.hook_logits

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return cast(torch.dtype, self.hf_model.dtype)

    @property
    def n_parameters(self) -> ParameterCounts:
        """Weights in all, without embeddings, and used by one token.

        Raises:
            CheckpointError: some are packed by a quantisation that does not say how many it holds.
        """
        model = self.hf_model
        total = count(model)
        ends = {id(w): w.numel() for w in (model.get_input_embeddings().weight, model.get_output_embeddings().weight)}
        inner = total - sum(ends.values())
        return ParameterCounts(total, inner, total - self.network.idle_parameters)

    def eval(self) -> HybridLens:
        """Put the model into evaluation mode, as TransformerLens' models can be; returns the lens."""
        self.hf_model.eval()
        return self

    # Running.

    def __call__(self, tokens: TokensLike, lengths: Sequence[int] | Tensor | None = None) -> Logits:
        """Logits at every position; hooks set by ``with lens.hooks(...)`` fire.

        Args:
            tokens: a tensor [batch, pos], ids, or text.
            lengths: real tokens of each row of a tensor padded on the right.

        Returns:
            logits at the positions given; NaN at those of padding. Hook functions see padding on the right.

        Raises:
            InputError: for tokens that cannot be run.
        """
        laid = self.laid_out(tokens, lengths)
        return laid.logits(self.network(*laid.batch).logits)

    forward = __call__

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Sequence[tuple[NameFilter, HookFunction]] = (),
        bwd_hooks: Sequence[tuple[NameFilter, HookFunction]] = (),
    ) -> Generator[HybridLens]:
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

    def run_with_hooks(
        self,
        tokens: TokensLike,
        fwd_hooks: Sequence[tuple[NameFilter, HookFunction]] = (),
        lengths: Sequence[int] | Tensor | None = None,
    ) -> Logits:
        """Logits of a run with hooks, which are gone afterwards.

        For hooks on gradients, put ``with lens.hooks(bwd_hooks=...)`` around the forward and backward pass.
        """
        with self.hooks(fwd_hooks):
            return self(tokens, lengths)

    def run_with_cache(
        self,
        tokens: TokensLike,
        names_filter: NameFilter = None,
        *,
        lengths: Sequence[int] | Tensor | None = None,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        pos_slice: Slice | int | tuple[int | None, ...] | list[int] | None = None,
    ) -> tuple[Logits, ActivationCache]:
        """Logits, and TransformerLens' `ActivationCache` of what the run computed.

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
        laid = self.laid_out(tokens, lengths)
        batch = laid.batch
        if remove_batch_dim and batch.tokens.shape[0] != 1:
            raise InputError(f"remove_batch_dim needs one prompt, {batch.tokens.shape[0]} were given")
        positions = Slice.unwrap(pos_slice)  # pyright: ignore[reportArgumentType]
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
            value = value if device is None else value.to(device)
            kept[cast(str, hook.name)] = value[0] if remove_batch_dim else value

        nothing = names_filter is not None and not callable(names_filter) and len(names_filter) == 0
        wanted = [] if nothing else [(names_filter, reads_only(keep))]
        with self.hooks(wanted):
            logits = laid.logits(self.network(batch.tokens, batch.lengths).logits)
        return logits, ActivationCache(kept, self, has_batch_dim=not remove_batch_dim)

    def trace(
        self,
        tokens: TokensLike,
        *,
        lengths: Sequence[int] | Tensor | None = None,
        max_new_tokens: int | None = None,
        edits: Sequence[Edit] = (),
        boundary: Boundary = "last_prompt_token",
    ) -> Tracer:
        """nnsight's trace: inside the block, ``lens.blocks[2].attn.hook_pattern.output`` is live.

        Read points in forward order, assign to ``.output`` to edit, ``.save()`` what is to outlive the
        block. With `max_new_tokens` the trace covers a greedy generation, and ``tracer.iter`` walks its
        forward passes, prefill first.
        """
        from hybridlens.tracing import open_trace  # nnsight takes seconds to import

        if max_new_tokens is not None:
            _no_autocast(self.device)
        return open_trace(self, self.batch(tokens, lengths), max_new_tokens, edits, boundary)

    # States and generation.

    def editing(self, edits: Sequence[Edit], phase: Literal["prefill", "decode"]) -> AbstractContextManager[Forward]:
        """Those of `edits` that act in `phase`, for the length of a ``with`` block, which gets the forward pass.

        Raises:
            UnknownNameError: for a phase, or a name in any of the edits, that does not exist.
        """
        return editing(self.network, edits, phase)

    def prefill(
        self,
        tokens: TokensLike,
        edits: Sequence[Edit] = (),
        *,
        lengths: Sequence[int] | Tensor | None = None,
        last_only: bool = False,
    ) -> Prefill:
        """Read a prompt: its state, and its logits.

        With gradients on, the state holds the graph that made it; `HybridState.detach` cuts it off.

        Args:
            edits: those of phase "prefill" or "both" act.
            lengths: real tokens of each row of a tensor padded on the right.
            last_only: logits of each row's last token only, [b 1 v].
        """
        batch = self.batch(tokens, lengths)
        with self.editing(edits, "prefill") as forward:
            logits, state = forward(batch.tokens, batch.lengths, None, last_only)
        return Prefill(state, logits)

    def extend(
        self,
        state: HybridState,
        tokens: TokensLike,
        edits: Sequence[Edit] = (),
        *,
        lengths: Sequence[int] | Tensor | None = None,
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
        _no_autocast(self.device)
        batch = self.batch(tokens, lengths)
        n_ctx = self.network.cfg.n_ctx
        if n_ctx is not None:
            new = batch.tokens.shape[1] if batch.lengths is None else batch.lengths
            tokens_module.check_context(max((state.lengths + new).tolist(), default=0), n_ctx)
        with self.editing(edits, phase) as forward:
            logits, after = forward(batch.tokens, batch.lengths, state, last_only)
        return Prefill(after, logits)

    def generate(
        self,
        tokens: TokensLike,
        max_new_tokens: int = 40,
        edits: Sequence[Edit] = (),
        boundary: Boundary = "last_prompt_token",
        *,
        lengths: Sequence[int] | Tensor | None = None,
        stop_at_eos: bool = True,
        sampling: Sampling | None = None,
    ) -> Generation:
        """Continue each prompt; greedy unless `sampling` is given.

        Args:
            tokens: the prompts, of any lengths.
            max_new_tokens: at most so many for each row.
            edits: act in their phases and rows.
            boundary: "last_prompt_token": the last token of the prompt is read under decode rules, so that
                the first new token is already made by them; "first_new_token": all of the prompt is prefill.
            stop_at_eos: a row ends with its end-of-text token.
            sampling: temperature, top-k, top-p and seed.

        Raises:
            InputError: for tokens that cannot be run, or when prompt and new tokens exceed the context.
            HybridLensError: the model's logits are not finite; said with the row and the token.
        """
        _no_autocast(self.device)
        return generate(
            self.network,
            self.batch(tokens, lengths),
            max_new_tokens,
            edits,
            boundary,
            stop_at_eos=stop_at_eos,
            sampling=sampling,
            tokenizer=self.tokenizer,
            pad=self.pad_token,
        )

    def key_positions(self, state: HybridState, new_tokens: int = 1) -> KeyPositions:
        """The absolute position of each key slot of scores and pattern in the next forward pass.

        In a sliding window only the newest positions have slots. Held slots that a row does not use hold -1.

        Args:
            state: what that pass continues from.
            new_tokens: how many tokens it reads.
        """
        new = state.lengths[:, None] + torch.arange(new_tokens, device=state.lengths.device)
        return torch.cat([state.key_positions, new], dim=1)

    @property
    def nnsight(self) -> Any:
        """nnsight's view of the hook network, made when first asked for."""
        if self._nnsight is None:
            from hybridlens.tracing import WRAPPING, wrap  # nnsight takes seconds to import

            with WRAPPING:
                self._nnsight = self._nnsight or wrap(self)
        return self._nnsight

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle keeps: all but nnsight's view, which a copy makes anew of itself."""
        return {**self.__dict__, "_nnsight": None}


def _spec(name: str, point: HookPoint) -> HookSpec:
    parts = name.split(".")
    layer = int(parts[1]) if parts[0] == "blocks" else None
    sizes = tuple(point.sizes.get(axis) for axis in point.axes)
    return HookSpec(name, point.axes, layer, point.lazy, point.read_only, sizes)
