"""`HybridLens`: a hybrid model under one set of names.

The lens is a thin front: the forward pass lives in `network`, tokens in `tokens`, decoding in
`generation`, nnsight in `tracing`. It never changes the Hugging Face model it opens, which goes on
working by itself and shares its weights.

What every way in has in common: hooks fire in forward order at the points of `lens.hook_points`, in
prefill and in every decode step; they are gone when the call returns or raises; and no call leaves
anything on the model, so the same call twice gives the same tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn
from transformer_lens.ActivationCache import ActivationCache
from transformer_lens.utilities.slice import Slice

from hybridlens import tokens as tokens_module
from hybridlens.errors import InputError
from hybridlens.families import FAMILIES, LensConfig, family_of
from hybridlens.generation import Boundary, Generation, Sampling, generate
from hybridlens.hooks import (
    Edit,
    HookFunction,
    HookPoint,
    HookSpec,
    NameFilter,
    attached,
    check_phase,
    reads_only,
    resolve,
)
from hybridlens.network import HookedNetwork, Output
from hybridlens.padding import chosen
from hybridlens.shapes import KeyPositions, Lengths, Logits, Tokens
from hybridlens.state import HybridState
from hybridlens.text import TokenFront
from hybridlens.tokens import TokensLike

if TYPE_CHECKING:
    from hybridlens.tracing import Tracer


Forward: TypeAlias = Callable[..., Output]
"""A forward pass under edits; takes what `HookedNetwork.forward` takes."""


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


class HybridLens(TokenFront):
    """Hook points, caches, traces, states and generation over a Hugging Face hybrid model.

    It computes what the model does in evaluation mode; dropout is never applied.

    Args:
        hf_model: a `RecurrentGemmaForCausalLM` or `JambaForCausalLM`, left as it is.
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
        self.hook_points: dict[str, HookSpec] = {
            name: _spec(name, point, self.network.cfg) for name, point in self.hook_dict.items()
        }
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
        """Weights in all, without embeddings, and used by one token."""
        model = self.hf_model
        total = sum(weight.numel() for weight in model.parameters())
        ends = {id(w): w.numel() for w in (model.get_input_embeddings().weight, model.get_output_embeddings().weight)}
        inner = total - sum(ends.values())
        return ParameterCounts(total, inner, total - self.network.family.inactive_expert_parameters(model))

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
                recurrent layers, which grows with the square of the length and must be asked for.
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

        with self.hooks([(resolve(names_filter, self.hook_dict), reads_only(keep))]):
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

        return open_trace(self, self.batch(tokens, lengths), max_new_tokens, edits, boundary)

    # States and generation.

    @contextmanager
    def editing(self, edits: Sequence[Edit], phase: Literal["prefill", "decode"]) -> Generator[Forward]:
        """Those of `edits` that act in `phase`, for the length of a ``with`` block, which gets the forward pass.

        Raises:
            UnknownNameError: for a phase, or a name in any of the edits, that does not exist.
        """
        check_phase(phase)
        resolved = [(resolve(edit.hook, self.hook_dict), edit) for edit in edits]
        acting = [(names, edit.function(), edit.ahead) for names, edit in resolved if edit.acts_in(phase)]
        ahead: list[tuple[NameFilter, HookFunction]] = [(names, fn) for names, fn, before in acting if before]
        now: list[tuple[NameFilter, HookFunction]] = [(names, fn) for names, fn, before in acting if not before]
        if not ahead:
            with attached(self.hook_dict, now):
                yield self.network
            return

        def twice(
            tokens: Tokens, lengths: Lengths | None = None, state: HybridState | None = None, last_only: bool = False
        ) -> Output:
            lent = nullcontext() if state is None else state.lent()
            with attached(self.hook_dict, ahead), lent, torch.no_grad():
                self.network(tokens, lengths, state, True)
            with attached(self.hook_dict, now):
                return self.network(tokens, lengths, state, last_only)

        yield twice

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
            InputError: for a state of another model or batch size, or past the model's context.
        """
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
        """
        return generate(self, self.batch(tokens, lengths), max_new_tokens, edits, boundary, stop_at_eos, sampling)

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
        from hybridlens.tracing import wrap  # nnsight takes seconds to import

        if self._nnsight is None:
            self._nnsight = wrap(self)
        return self._nnsight

def _spec(name: str, point: HookPoint, cfg: LensConfig) -> HookSpec:
    parts = name.split(".")
    layer = int(parts[1]) if parts[0] == "blocks" else None
    sizes = dict(zip(point.axes, cfg.dimensions(point.axes), strict=True))
    if point.blocks is not None:
        sizes["h"] = point.blocks
    return HookSpec(name, point.axes, layer, point.lazy, point.read_only, tuple(sizes.values()))
