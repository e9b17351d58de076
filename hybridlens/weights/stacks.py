"""The weights of all layers at once, under TransformerLens' names: `W_Q`, `OV`, composition scores.

A stack holds the layers that have the thing, in order: `attn_layers` says which layers those of attention are,
`dense_mlp_layers` those of MLPs that are no mixtures. Where query heads share keys and values, `W_K` and `W_V` have
them once for each query head. Row vectors times matrices; every multiplier of the family is in them; a bias that the
model has not is zeros.

With norms folded in (`folded`), maps are of the stream over its scale, float32, and what writes through a norm has that
norm's weight too. Without, they are of what the norms give, in the model's dtype. Nothing here can be written to
(`hybridlens.read_only`); `W_E` and `W_U` are views of the model's own memory where nothing multiplies them.

How it fails: what the model has not raises `AbsentError`, an `AttributeError` in one line: learned positions, heads
that read the stream, dense MLPs, gates. Layers of different sizes cannot be stacked (`InputError`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlens.blocks import Block
from hybridlens.boundary_words import shown
from hybridlens.display.models import WeightsShown
from hybridlens.errors import AbsentError, InputError
from hybridlens.mixers.named import without_matrices
from hybridlens.named_weights import NamedWeight
from hybridlens.peers import CompositionScores, FactoredMatrix, composition_scores
from hybridlens.read_only import read_only, stacked
from hybridlens.stream import WritesBias
from hybridlens.weights.parameters import Parameters
from hybridlens.weights.views import AttentionWeights, MlpWeights, RecurrentWeights
from hybridlens.weights.weights import Weights

Mode: TypeAlias = Literal["Q", "K", "V"]
"""Through what a head reads what others wrote."""


class HeadLabels(list[str]):
    """Names of heads, in order; called, it gives itself, since TransformerLens 3 has a method where 4 has a list."""

    def __call__(self) -> HeadLabels:
        """The names."""
        return self


class NamedStacks:
    """Names of stacks and of the vocabulary's weights, with what they hold."""

    W_E = NamedWeight("W_E", "What each token puts into the residual stream [vocab d_model].")
    W_U = NamedWeight("W_U", "The unembedding [d_model vocab]: maps what the last norm gives to uncapped logits.")
    b_U = NamedWeight("b_U", "Of the unembedding, which no family has: zeros, if nobody gave it one [vocab].")
    W_pos = NamedWeight("W_pos", "Learned positions, which no family has.")
    W_Q = NamedWeight("W_Q", "Queries [attn_layer head d_model d_head].")
    W_K = NamedWeight("W_K", "Keys, of each query head [attn_layer head d_model d_head].")
    W_V = NamedWeight("W_V", "Values, of each query head [attn_layer head d_model d_value].")
    W_O = NamedWeight("W_O", "What each head's value adds to the stream [attn_layer head d_value d_model].")
    b_Q = NamedWeight("b_Q", "Of queries [attn_layer head d_head].")
    b_K = NamedWeight("b_K", "Of keys [attn_layer head d_head].")
    b_V = NamedWeight("b_V", "Of values [attn_layer head d_value].")
    b_O = NamedWeight("b_O", "Of what attention writes [attn_layer d_model].")
    W_in = NamedWeight("W_in", "Into the hidden layer, beside the gate where there is one [mlp_layer d_model d_mlp].")
    W_gate = NamedWeight("W_gate", "What the activation reads, where there is a gate [mlp_layer d_model d_mlp].")
    W_out = NamedWeight("W_out", "What neurons add to the stream [mlp_layer d_mlp d_model].")
    b_in = NamedWeight("b_in", "Of the hidden layer [mlp_layer d_mlp].")
    b_gate = NamedWeight("b_gate", "Of what the activation reads [mlp_layer d_mlp].")
    b_out = NamedWeight("b_out", "Of what MLPs write [mlp_layer d_model].")

    @abstractmethod
    def named_weight(self, name: str) -> Tensor:
        """The weight of that name.

        Raises:
            AbsentError: the model has none of the name.
            InputError: it differs in size from layer to layer.
            CheckpointError: it is no plain matrix.
        """


class StackedWeights(WeightsShown, NamedStacks):
    """The weights of a model under TransformerLens' names.

    Args:
        weights: where they come from, a layer at a time.
    """

    def __init__(self, weights: Weights) -> None:
        self.of_layers = weights
        self.cfg = weights.cfg
        self.folded = weights.folded

    # Which layers the stacks hold.

    @property
    def attn_layers(self) -> tuple[int, ...]:
        """The layers whose heads read the stream and write to it: those of `W_Q` and of all stacks of attention."""
        return tuple(layer for layer in self.cfg.attention_layers if not self.cfg.layers[layer].shared)

    @property
    def dense_mlp_layers(self) -> tuple[int, ...]:
        """The layers with a dense MLP of their own: those of `W_in`, `W_gate` and `W_out`."""
        layers = self.cfg.layers
        return tuple(i for i in self.cfg.mlp_layers if i not in self.cfg.moe_layers and not layers[i].shared)

    @property
    def all_head_labels(self) -> HeadLabels:
        """`L2H0`, …: the heads of `attn_layers`."""
        return HeadLabels(f"L{i}H{h}" for i in self.attn_layers for h in range(self.cfg.attention(i).n_heads))

    # A layer.

    def attention(self, layer: int) -> AttentionWeights:
        """The heads of one layer; see `Weights.attention`."""
        return self.of_layers.attention(layer)

    def mlp(self, layer: int) -> MlpWeights:
        """The MLP of one layer; see `Weights.mlp`."""
        return self.of_layers.mlp(layer)

    def recurrent(self, layer: int) -> RecurrentWeights:
        """The maps of one recurrent layer, float32; see `Weights.recurrent`."""
        return self.of_layers.recurrent(layer)

    def named_weight(self, name: str) -> Tensor:
        """See `NamedStacks`."""
        if name == "W_E":
            return self.of_layers.embedding()
        if name == "W_U":
            return self.of_layers.unembedding().T
        if name == "b_U":
            return self.of_layers.unembed_bias()
        if name == "W_pos":
            turned = any(attention.rotary for attention in self.cfg.attentions)
            instead = "heads turn queries and keys instead" if turned else "recurrences and masks alone know of order"
            raise AbsentError(f"there is no W_pos: this {self.cfg.family} model has no learned positions; {instead}")
        return self._heads(name) if name[2:] in ("Q", "K", "V", "O") else self._mlps(name)

    # Circuits.

    @property
    def QK(self) -> FactoredMatrix:
        """``W_Q[l, h] @ W_K[l, h].T``, as scores compare queries and keys before positions turn them.

        With norms folded in, those of queries and keys are too, up to their scales.
        """
        return _factored(self._heads("W_Q", True), read_only(self._heads("W_K", True)).mT)

    @property
    def OV(self) -> FactoredMatrix:
        """``W_V[l, h] @ W_O[l, h]``; a gate on what heads read, where there is one, is left out."""
        return _factored(self.W_V, self.W_O)

    def all_composition_scores(self, mode: Mode) -> CompositionScores:
        """How much of what a head writes an other one reads through its queries, keys or values.

        ‖W_OV W‖ / (‖W_OV‖ ‖W‖), with the Frobenius norm and W the later head's QK, its transpose, or OV (Elhage et al.
        2021, "A Mathematical Framework for Transformer Circuits").

        Args:
            mode: "Q", "K" or "V": what the later head reads through.

        Returns:
            scores [layer head layer head], the earlier head first and 0 where it is not earlier, with
            `layer_indices` and `head_labels`.

        Raises:
            InputError: for another mode, or a stream that is no sum of what is written to it.
        """
        if mode not in ("Q", "K", "V"):
            raise InputError(f"mode = {shown(mode)} given, expected 'Q', 'K' or 'V'")
        self.cfg.need_sum("composition of heads")
        left = self.OV
        right = left if mode == "V" else self.QK if mode == "Q" else self.QK.T
        scores = composition_scores(left, right, broadcast_dims=True)
        order = torch.arange(len(self.attn_layers), device=scores.device)
        earlier = order[:, None, None, None] < order[None, None, :, None]
        return CompositionScores(scores * earlier, list(self.attn_layers), list(self.all_head_labels))

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, "d_model"]:
        """What biases alone have put into the stream where it enters a layer, those of recurrent layers too.

        Args:
            layer: 0 … n_layers, the last for the stream that leaves the model.
            mlp_input: where it enters the layer's MLP instead, behind its mixers.
            include_mlp_biases: those of MLPs too, and not of mixers alone.

        Raises:
            InputError: for a layer that is none; where the stream is no sum of writes, or what a bias adds depends on
                the token, since a norm stands behind it.
        """
        blocks = cast(Sequence[Block], self.of_layers.network.blocks)
        if not 0 <= layer <= self.cfg.n_layers - mlp_input:
            raise InputError(f"layer {shown(layer)} given, expected 0..{self.cfg.n_layers - mlp_input}")
        self.cfg.need_sum("an accumulated bias")
        total = torch.zeros(self.cfg.d_model, device=self.cfg.device)
        for number in range(layer + mlp_input):
            for branch in blocks[number].branches:
                for name, part in branch.parts.items():
                    wanted = (include_mlp_biases and number < layer) if name == "mlp" else True
                    bias = part.out_bias() if wanted and isinstance(part, WritesBias) else None
                    if bias is None:
                        continue
                    if branch.norm_after is not None:
                        raise InputError(
                            f"what biases add differs by token: in layer {number} a norm is behind what {name} writes"
                        )
                    total = total + bias.detach().to(total)
        return total

    def tl_parameters(self) -> dict[str, Tensor]:
        """TransformerLens' dictionary of parameters (``blocks.2.attn.W_Q``), of layers that have them.

        Raises:
            CheckpointError: some are no plain matrices.
        """
        found = Parameters({"embed.W_E": self.W_E, "unembed.W_U": self.W_U, "unembed.b_U": self.b_U})
        for layer in self.attn_layers:
            names = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O")
            found.update({f"blocks.{layer}.attn.{name}": read_only(self._of_heads(layer, name)) for name in names})
        for layer in self.dense_mlp_layers:
            gated = self.cfg.layers[layer].mlp is not None and self.mlp(layer).W_gate is not None
            names = ("W_in", "W_out", "b_in", "b_out", *(("W_gate", "b_gate") if gated else ()))
            found.update({f"blocks.{layer}.mlp.{name}": read_only(self._of_mlp(layer, name)) for name in names})
        return found

    # Reading.

    def _heads(self, name: str, compared: bool = False) -> Tensor:
        if not self.attn_layers:
            shared = " of their own: attention here is a shared block's" if self.cfg.attention_layers else ""
            raise AbsentError(f"there is no {name}: no layer of this {self.cfg.family} model has heads{shared}")
        return self._stack(name, "attn_layers", lambda layer: self._of_heads(layer, name, compared))

    def _mlps(self, name: str) -> Tensor:
        if not self.dense_mlp_layers:
            has = ", but mixtures of experts or shared ones" if self.cfg.mlp_layers else ""
            raise AbsentError(f"there is no {name}: no layer of this {self.cfg.family} model has a dense MLP{has}")
        return self._stack(name, "dense_mlp_layers", lambda layer: self._of_mlp(layer, name))

    def _of_heads(self, layer: int, name: str, compared: bool = False) -> Tensor:
        """One layer's, keys and values of each query head, zeros where there is no bias."""
        if name[2:] in ("K", "V") and not self.folded and self.cfg.attention(layer).latent is not None:
            raise AbsentError(without_matrices(name))
        held = self.attention(layer)
        held = held.compared if compared and self.folded else held
        found: Tensor | None = getattr(held, name)
        if found is None:
            matrix: Tensor = getattr(held, f"W{name[1:]}")
            found = matrix.new_zeros(matrix.shape[-1] if name == "b_O" else (matrix.shape[0], matrix.shape[-1]))
        return held.expanded(found).flatten(0, 1) if name[2:] in ("K", "V") else found

    def _of_mlp(self, layer: int, name: str) -> Tensor:
        """One layer's, zeros where there is no bias."""
        held = self.mlp(layer)
        found: Tensor | None = getattr(held, name)
        if found is not None:
            return found
        matrix: Tensor | None = getattr(held, f"W{name[1:]}")
        if matrix is None:
            raise AbsentError(f"there is no {name}: the MLP of layer {layer} has no gate")
        return matrix.new_zeros(matrix.shape[1])

    def _stack(self, name: str, where: str, read: Callable[[int], Any]) -> Tensor:
        layers: tuple[int, ...] = getattr(self, where)
        found: list[Tensor] = [read(layer) for layer in layers]
        shapes = sorted({tuple(one.shape) for one in found})
        if len(shapes) > 1:
            each = " and ".join(str(list(shape)) for shape in shapes)
            raise InputError(
                f"{name} cannot be stacked, since layers have it in the shapes {each}; ask a layer for its own, as in "
                "lens.blocks[0]"
            )
        return stacked(found, layers, f"lens.{where}")


def _factored(left: Tensor, right: Tensor) -> FactoredMatrix:
    """The product of two stacks; the first, which is indexed first, stays the one that knows its layers."""
    product = FactoredMatrix(left, right)
    product.A = left
    return product
