"""The part of `HybridCache` that takes the stream apart: layer by layer, by parts, heads, neurons and experts.

How it fails: a model whose stream is no sum of what is written to it (MiniMax) is refused; what a method needs and the
run did not keep is named (`NotCachedError`).
"""

from __future__ import annotations

import logging

from torch import Tensor

from hybridlens.boundary import public
from hybridlens.boundary_words import shown
from hybridlens.cache.base import NamedCache
from hybridlens.cache.heads import HeadMode, compute_results
from hybridlens.cache.held import Chosen, Held, Labelled, counted, slice_of
from hybridlens.cache.neurons import added_by_neurons, check_neurons, has_neurons
from hybridlens.cache.residual import Mode, added, nothing, parts_before, stream_before, streams
from hybridlens.cache.scaling import renormed, through
from hybridlens.cache.terms import Terms, by_heads, by_neurons, every_term, joined
from hybridlens.errors import InputError
from hybridlens.peers import Slice


class StreamCache(NamedCache):
    """What the stream was, and the sum of what."""

    @public
    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: Chosen = None,
        mlp_input: bool = False,
        return_labels: bool = False,
    ) -> Tensor | Labelled:
        """The residual stream at each layer: ``0_pre``, …, ``final_post``.

        Args:
            layer: up to what this layer reads; negative ones count from the unembedding, which is -1, or None.
            incl_mid: between mixers and MLP too (``2_mid``), of the layers that have both.
            apply_ln: through the norm of `layer`; of the unembedding's, the scale is each entry's own.
            pos_slice: at some positions.
            mlp_input: up to what the MLP of `layer` reads.
            return_labels: the entries' names too.

        Raises:
            InputError: there is no such layer, position or MLP.
            NotCachedError: some streams were not kept.
        """
        held, pos = self._held, slice_of(pos_slice, "pos_slice")
        at = counted(layer, held.n_layers)
        stack, labels = streams(held, at, incl_mid, mlp_input, pos)
        if apply_ln and at == held.n_layers:
            stack = renormed(held.network.ln_final, stack)
        elif apply_ln:
            stack = through(held, at, mlp_input, pos, True, None)(stack)
        return self._labelled(held.handed(stack, held.sample, pos), labels, return_labels)

    @public
    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: Mode = "all",
        apply_ln: bool = False,
        pos_slice: Chosen = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Tensor | Labelled:
        """What was added to the stream that a layer reads: ``embed``, ``0_ssm_out``, ``0_mlp_out``, ``1_attn_out``, ….

        Args:
            layer: which; negative ones count from the unembedding, which is -1, or None.
            mlp_input: what its MLP reads is meant, so that its own mixers are among them.
            mode: parts of one kind alone.
            apply_ln: through the norm of `layer`, its scale held, so that they add up to what it gives.
            pos_slice: at some positions.
            incl_embeds: the embedding too.
            return_labels: the entries' names too.

        Raises:
            InputError: there is no such layer, position or MLP, or the stream is no sum of what is written to it.
            NotCachedError: some writes were not kept.
        """
        held, pos = self._held, slice_of(pos_slice, "pos_slice")
        at = counted(layer, held.n_layers)
        parts = parts_before(held, at, mlp_input, mode)
        stack, labels = added(held, parts, incl_embeds, pos, "decompose_resid")
        stack = through(held, at, mlp_input, pos, apply_ln, None)(stack)
        return self._labelled(held.handed(stack, held.sample, pos), labels, return_labels)

    @public
    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: Chosen = None,
        return_labels: bool = False,
        project_output_onto: Tensor | None = None,
    ) -> Tensor | Labelled:
        """The stream that a layer reads, taken apart to the end: heads, neurons or experts, the embedding, biases.

        In this order: heads of attention (``L2H0``) and of recurrences (``L1S0``) by layer; neurons (``L0N5``) and
        experts (``L1E3``), or MLPs (``0_mlp_out``); ``embed``; ``bias``; recurrent parts without heads (``0_ssm_out``).

        Args:
            layer: which; negative ones count from the unembedding, which is -1, or None.
            mlp_input: what its MLP reads is meant.
            expand_neurons: neurons of dense MLPs and experts of mixtures, and not MLPs as a whole.
            apply_ln: through the norm of `layer`, its scale held.
            pos_slice: at some positions.
            return_labels: the entries' names too.
            project_output_onto: [d_model], or [d_model, outputs]: only along these, which takes far less memory.

        Raises:
            InputError: there is no such layer, position or MLP, or the stream is no sum of what is written to it.
            NotCachedError: something needed was not kept.
        """
        held, pos = self._held, slice_of(pos_slice, "pos_slice")
        at = counted(layer, held.n_layers)
        then = through(held, at, mlp_input, pos, apply_ln, project_output_onto)
        terms = every_term(held, parts_before(held, at, mlp_input), expand_neurons, pos, then)
        return self._finished(held, terms, pos, return_labels, project_output_onto)

    def compute_head_results(self) -> None:
        """Have ``hook_result`` of every layer with heads, recurrent ones too, in the cache.

        Raises:
            NotCachedError: what it is computed from was not kept.
        """
        held = self._held
        made = compute_results(held, parts_before(held, held.n_layers, False))
        if not made:
            logging.getLogger(__name__).warning("Tried to compute head results when they were already cached")
        self.cache_dict.update(made)

    @public
    def stack_head_results(
        self,
        layer: int | None = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: Chosen = None,
        apply_ln: bool = False,
        mode: HeadMode = "all",
    ) -> Tensor | Labelled:
        """What each head before a layer added: ``L2H0``, … of attention, ``L1S0``, … of recurrences that have heads.

        Args:
            layer: which; negative ones count from the unembedding, which is -1, or None.
            return_labels: the entries' names too.
            incl_remainder: last, the rest of the stream that `layer` reads; of layer 0, as in TransformerLens, the
                stream that the unembedding reads.
            pos_slice: at some positions.
            apply_ln: through the norm of `layer`, its scale held.
            mode: "attn" for heads of attention alone, "ssm" for recurrent ones.

        Raises:
            InputError: there is no such layer or position, the model has no such heads, or its stream is no sum of what
                is written to it.
            NotCachedError: what heads added was not kept, nor what it is computed from.
        """
        held, pos, what = self._held, slice_of(pos_slice, "pos_slice"), "stack_head_results"
        at, cfg = counted(layer, held.n_layers), held.network.cfg
        cfg.need_sum(what)
        kinds = ("attn", "ssm") if mode == "all" else (mode,)
        every = [part for part in parts_before(held, held.n_layers, False) if part.part in kinds]
        if not any(held.block(part.layer).head_writes(part.part) for part in every):
            raise InputError(
                f"no {'part' if mode == 'all' else mode} of this {cfg.family} model writes to the stream by heads; "
                "decompose_resid tells its parts apart"
            )
        then = through(held, at, False, pos, apply_ln, None)
        found = by_heads(held, [part for part in every if part.layer < at], pos, then)
        return self._with_remainder(held, at, False, found, pos, apply_ln, None, incl_remainder, return_labels, what)

    @public
    def get_neuron_results(
        self,
        layer: int,
        neuron_slice: Chosen = None,
        pos_slice: Chosen = None,
        project_output_onto: Tensor | None = None,
    ) -> Tensor:
        """What each neuron of a dense MLP added, [… neuron d_model].

        Args:
            layer: the MLP's; negative ones count from the last layer, which is -1.
            neuron_slice: some neurons; one alone drops the axis.
            pos_slice: at some positions.
            project_output_onto: [d_model], or [d_model, outputs]: only along these.

        Raises:
            InputError: there is no such layer, position or neuron, or the layer's MLP is a mixture of experts.
            NotCachedError: the neurons' activations were not kept.
        """
        held, pos = self._held, slice_of(pos_slice, "pos_slice")
        n, neurons = held.n_layers, slice_of(neuron_slice, "neuron_slice")
        if not -n <= layer < n:
            raise InputError(f"layer {shown(layer)} given, but the model has layers 0..{n - 1}")
        check_neurons(held, layer % n)
        then = through(held, n, False, pos, False, project_output_onto)
        found = added_by_neurons(held, layer % n, neurons, pos, then)
        found = found.squeeze(-2) if neurons.mode == "int" else found
        found = held.handed(found, f"blocks.{layer % n}.mlp.hook_post", pos, axis=0)
        return found.squeeze(-1) if project_output_onto is not None and project_output_onto.ndim == 1 else found

    @public
    def stack_neuron_results(
        self,
        layer: int | None = -1,
        pos_slice: Chosen = None,
        neuron_slice: Chosen = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        apply_ln: bool = False,
        project_output_onto: Tensor | None = None,
        mlp_input: bool = False,
    ) -> Tensor | Labelled:
        """What each neuron of the dense MLPs before a layer added: ``L0N0``, ….

        Mixtures of experts have no neurons here; what they added is in the remainder.

        Args:
            layer: which; negative ones count from the unembedding, which is -1, or None.
            pos_slice: at some positions.
            neuron_slice: some neurons of each MLP.
            return_labels: the entries' names too.
            incl_remainder: last, the rest of the stream that `layer` reads; of layer 0, as in TransformerLens, the
                stream that the unembedding reads.
            apply_ln: through the norm of `layer`, its scale held.
            project_output_onto: [d_model], or [d_model, outputs]: only along these, which takes far less memory.
            mlp_input: the stream that the MLP of `layer` reads is meant.

        Raises:
            InputError: there is no such layer, position or neuron, no layer has a dense MLP, or the stream is no sum of
                what is written to it.
            NotCachedError: the neurons' activations were not kept.
        """
        held, pos, what = self._held, slice_of(pos_slice, "pos_slice"), "stack_neuron_results"
        at, neurons = counted(layer, held.n_layers), slice_of(neuron_slice, "neuron_slice")
        held.network.cfg.need_sum(what)
        if not any(has_neurons(held, i) for i in range(held.n_layers)):
            check_neurons(held, 0)
        then = through(held, at, mlp_input, pos, apply_ln, project_output_onto)
        found = by_neurons(held, range(at), neurons, pos, then)
        return self._with_remainder(
            held, at, mlp_input, found, pos, apply_ln, project_output_onto, incl_remainder, return_labels, what
        )

    def _with_remainder(
        self,
        held: Held,
        layer: int,
        mlp_input: bool,
        found: list[Terms],
        pos: Slice,
        apply_ln: bool,
        onto: Tensor | None,
        incl_remainder: bool,
        return_labels: bool,
        what: str,
    ) -> Tensor | Labelled:
        """Stacks of terms in one, and what they leave of the stream that a layer reads."""
        then = through(held, layer, mlp_input, pos, apply_ln, onto)
        if incl_remainder:
            if layer == 0 and not mlp_input:
                if apply_ln:
                    raise InputError(
                        "layer=0 with incl_remainder stands for the whole stream, which the norm of layer 0 does not "
                        "read; give layer=-1 for the unembedding's, or leave apply_ln out"
                    )
                layer = held.n_layers
            rest = then(held.rows(stream_before(held, layer, mlp_input, what), pos))
            if found:
                stack, labels = joined(found)
                found, rest = [Terms(stack, labels)], rest - stack.sum(dim=0).to(rest.device)
            found = [*found, Terms(rest[None], ["remainder"])]
        if not found:
            found = [Terms(then(nothing(held, pos)), [])]
        return self._finished(held, joined(found), pos, return_labels, onto)

    def _finished(
        self, held: Held, terms: Terms, pos: Slice, return_labels: bool, onto: Tensor | None
    ) -> Tensor | Labelled:
        """Terms without the axes that are dropped."""
        stack, labels = terms
        stack = held.handed(stack, held.sample, pos)
        stack = stack.squeeze(-1) if onto is not None and onto.ndim == 1 else stack
        return self._labelled(stack, labels, return_labels)
