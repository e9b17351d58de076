"""The part of `HybridCache` that reads: norms over terms, shares in logits, the logit lens, states, hidden attention.

How it fails: stacks, tokens and layers that do not fit raise `InputError`; what was not kept is named
(`NotCachedError`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlens.boundary import Positive, public
from hybridlens.cache.directions import TokenChoice, attributed, fitted, token_directions, token_ids
from hybridlens.cache.held import Chosen, Labelled, counted, slice_of, taken
from hybridlens.cache.readout import LogitLens, ReturnType, Translator, logit_lens, names_of, wanted_of
from hybridlens.cache.scaling import norm_before, renormed, scaled
from hybridlens.cache.states import PerLayer, hidden_attention, states
from hybridlens.cache.taking_apart import StreamCache
from hybridlens.errors import InputError


class ReadingCache(StreamCache):
    """What is read of the stream, and of states."""

    @public
    def apply_ln_to_stack(
        self,
        residual_stack: Float[Tensor, "entry *rest"],
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: Chosen = None,
        batch_slice: Chosen = None,
        has_batch_dim: bool = True,
        recompute_ln: bool = False,
    ) -> Float[Tensor, "entry *chosen"]:
        """Terms of the stream as terms of what a layer reads: through its norm, weight included, its scale held.

        A layer that reads the stream itself (its norms stand behind its parts) gives the terms back as they are.

        Args:
            residual_stack: [entry … d_model], of the positions that `pos_slice` chooses, and of all rows.
            layer: whose norm; negative ones count from the unembedding, which is -1, or None.
            mlp_input: the norm before its MLP.
            pos_slice: the positions that the stack is at.
            batch_slice: rows to take of it.
            has_batch_dim: whether it has an axis of rows; without one, `batch_slice` says which row it is.
            recompute_ln: divide each entry by its own scale instead, as the logit lens does.

        Raises:
            InputError: the stack does not fit the scale, or there is no such layer, position or row.
            NotCachedError: the norm's scale was not kept.
        """
        held, pos = self._held, slice_of(pos_slice, "pos_slice")
        some = slice_of(batch_slice, "batch_slice")
        width = held.network.cfg.d_model
        if residual_stack.ndim < 2 or residual_stack.shape[-1] != width:
            raise InputError(f"residual_stack has shape {list(residual_stack.shape)}, expected [entry, …, {width}]")
        if has_batch_dim and some.mode != "identity":
            residual_stack = taken(residual_stack, some, 1, "batch_slice")
        norm = norm_before(held, counted(layer, held.n_layers), mlp_input)
        if norm is None:
            return residual_stack
        if recompute_ln:
            return renormed(norm[0], residual_stack)
        return scaled(held, residual_stack, *norm, pos, some, has_batch_dim)

    @public
    def logit_attrs(
        self,
        residual_stack: Float[Tensor, "entry *rest"],
        tokens: TokenChoice,
        incorrect_tokens: TokenChoice | None = None,
        pos_slice: Chosen = None,
        batch_slice: Chosen = None,
        has_batch_dim: bool = True,
    ) -> Float[Tensor, "entry *lead"]:
        """What each entry of a stack adds to the logits of tokens, or to differences of logits, before any soft cap.

        Args:
            residual_stack: terms of the stream, as `decompose_resid` gives them without `apply_ln`.
            tokens: a text that is one token, an id, or a tensor: one a row, one a position where there are not as many
                rows, or [batch, pos].
            incorrect_tokens: tokens whose logits are subtracted, in the same shape.
            pos_slice: the positions that the stack is at.
            batch_slice: rows to take of it; tokens are of these.
            has_batch_dim: whether the stack has an axis of rows.

        Raises:
            InputError: tokens that are none, or do not fit the stack; or as `apply_ln_to_stack`.
            NotCachedError: the last norm's scale was not kept.
        """
        lens, ids = self._lens, token_ids(self._lens, tokens, "tokens")
        directions = token_directions(lens, ids)
        if incorrect_tokens is not None:
            others = token_ids(lens, incorrect_tokens, "incorrect_tokens")
            if others.shape != ids.shape:
                raise InputError(
                    f"tokens have shape {list(ids.shape)} and incorrect_tokens {list(others.shape)}, expected the same"
                )
            directions = directions - token_directions(lens, others)
        stack = self.apply_ln_to_stack(residual_stack, -1, False, pos_slice, batch_slice, has_batch_dim)
        return attributed(stack, fitted(directions, stack.shape[1:-1], "tokens"))

    @public
    def logit_lens(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        *,
        layers: Sequence[int] | None = None,
        incl_mid: bool = False,
        positions: Chosen = -1,
        batch_slice: Chosen = None,
        lens: Translator | None = None,
        apply_ln: bool = True,
        vocab: TokenChoice | None = None,
        targets: TokenChoice | None = None,
        return_type: ReturnType = "logits",
        top_k: int | None = None,
        chunk_size: Positive = 64,
    ) -> LogitLens:
        """What the model would say if it stopped at each layer: the last norm, the unembedding, soft cap and all.

        Args:
            layers: entries of `accumulated_resid`, by number; None for all.
            incl_mid: between mixers and MLPs too.
            positions: where; the last of each row, if not said.
            batch_slice: of which rows.
            lens: (entry, number) → what is read in its place, as a tuned lens does.
            apply_ln: through the last norm, each entry's scale its own.
            vocab: keep these tokens alone.
            targets: keep these tokens and their ranks: a token or a list for all rows; a tensor with an axis, one a
                row, right-aligned with the rows and positions that are read.
            return_type: "logits", "log_probs" or "probs".
            top_k: keep the largest alone.
            chunk_size: states that are unembedded at once.

        Raises:
            InputError: choices that exclude each other, or that there are not.
            NotCachedError: some streams were not kept.
        """
        stack, labels = cast(Labelled, self.accumulated_resid(None, incl_mid, False, positions, False, True))
        n = len(labels)
        wrong = [i for i in layers or () if not -n <= i < n]
        if wrong:
            raise InputError(f"layers {wrong} given, but there are the entries 0..{n - 1}: {', '.join(labels)}")
        keep = list(range(n)) if layers is None else [i % n for i in layers]
        stack, some = stack[keep], slice_of(batch_slice, "batch_slice")
        if some.mode != "identity" and not self.has_batch_dim:
            raise InputError("batch_slice was given for a cache of one prompt without an axis of rows; leave it out")
        stack = taken(stack, some, 1, "batch_slice") if self.has_batch_dim else stack
        if lens is not None:
            stack = torch.stack([lens(entry, i) for entry, i in zip(stack, keep, strict=True)])
        axes = ("row",) if self.has_batch_dim and some.mode != "int" else ()
        axes = (*axes, "position") if stack.ndim > len(axes) + 2 else axes
        wanted = wanted_of(self._lens, vocab, targets, top_k, stack.shape[:-1])
        with torch.no_grad():
            return logit_lens(
                self._lens,
                stack,
                [labels[i] for i in keep],
                apply_ln,
                wanted,
                return_type,
                chunk_size,
                names_of(targets),
                axes,
            )

    def ssm_layers(self, mixer_type: type | tuple[type, ...] | None = None) -> list[int]:
        """The layers with a recurrence; with `mixer_type`, those whose mixer is of such a class."""
        held = self._held
        layers = held.network.cfg.ssm_layers
        return [i for i in layers if mixer_type is None or isinstance(held.block(i).mixers["ssm"], mixer_type)]

    @public
    def compute_ssm_state(self, layer: int | None = None, time_step: int | None = None) -> PerLayer:
        """The recurrent states after each token [batch pos …], or after one of them, as ``ssm.hook_state`` held them.

        Args:
            layer: which; None for every layer that holds one: one tensor where all layers of the model do and are
                alike, else a dictionary by layer.
            time_step: a position; None for all.

        Raises:
            InputError: the layer, or the model, holds no state, or there is no such position.
            NotCachedError: the states were not kept.
        """
        return states(self._held, layer, time_step)

    @public
    def compute_ssm_effective_attention(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, layer: int | None = None, include_dt_scaling: bool = True
    ) -> PerLayer:
        """Hidden attention [batch head query key], as ``ssm.hook_pattern`` held it: readouts are this times inputs.

        Args:
            layer: which; None for every layer with a recurrence, as `compute_ssm_state` gives them.
            include_dt_scaling: always; step sizes are part of what a token writes.

        Raises:
            InputError: the layer, or the model, has no recurrence, or step sizes are to be left out.
            NotCachedError: it was not kept; it has to be named in names_filter.
        """
        if not include_dt_scaling:
            raise InputError(
                "include_dt_scaling=False was given, but hidden attention here is of each token's input, step size "
                "included; divide by cache['dt', layer] of the keys"
            )
        return hidden_attention(self._held, layer)
