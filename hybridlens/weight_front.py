"""A lens's weights under TransformerLens' names: the part of `HybridLens` that hands them out.

``lens.W_Q``, ``lens.OV`` and their like are those of ``lens.weights()``, as the model has them; with norms folded in
they are those of ``lens.weights(folded=True)``. Composition scores and `tl_parameters` have norms folded in, without
which they would mislead. Everything is read anew when it is asked for, and cannot be written to.

How it fails: see `hybridlens.weights.stacks`.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from hybridlens.boundary import public
from hybridlens.boundary_words import shown
from hybridlens.cache.directions import TokenChoice, token_directions, token_ids
from hybridlens.devices import execution_device
from hybridlens.errors import InputError
from hybridlens.peers import CompositionScores, FactoredMatrix
from hybridlens.text import TokenFront
from hybridlens.weights.stacks import HeadLabels, Mode, NamedStacks, StackedWeights
from hybridlens.weights.weights import Weights


class Embedding:
    """What turns tokens into the stream that enters block 0."""

    def __init__(self, front: WeightFront) -> None:
        self._front = front

    def __call__(self, tokens: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d_model"]:
        """What `hook_embed` holds of these tokens."""
        network = self._front.network
        embedding = network.wrapped[0].get_input_embeddings()
        embedded = embedding(tokens.to(execution_device(embedding, tokens.device)))
        return embedded if network.embed_scale == 1.0 else embedded * network.embed_scale

    @property
    def W_E(self) -> Tensor:
        """The lens's."""
        return self._front.W_E


class Unembedding:
    """What turns the stream behind the last norm into logits."""

    def __init__(self, front: WeightFront) -> None:
        self._front = front

    def __call__(self, normed: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        """The logits of what the last norm gives (``lens.ln_final(resid)``), multiplier and soft cap included."""
        network, width = self._front.network, self._front.network.cfg.d_model
        if normed.shape[-1] != width:
            raise InputError(f"a tensor {list(normed.shape)} was given to unembed, expected [..., {width}]")
        head = network.wrapped[0].get_output_embeddings()
        rows = normed.reshape(-1, 1, width).to(execution_device(head, normed.device))
        return network.unembed(rows).reshape(*normed.shape[:-1], -1)

    @property
    def W_U(self) -> Tensor:
        """The lens's."""
        return self._front.W_U

    @property
    def b_U(self) -> Tensor:
        """The lens's."""
        return self._front.b_U


class Adapter:
    """What TransformerLens' tools ask of a model's adapter: how logits go on behind the unembedding's matrix."""

    def __init__(self, front: WeightFront) -> None:
        self._front = front

    def apply_output_logits_transform(self, logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch vocab"]:
        """Logits after the soft cap, where the family has one."""
        return self._front.network.capped(logits.reshape(-1, 1, logits.shape[-1])).reshape(logits.shape)


class OwnHeads:
    """Attention as TransformerLens' tools read it: maps of keys and values once for each head that has its own.

    Args:
        attn: a layer's attention, whose maps of keys and values stand once for each query head.
        shared: query heads that share one.
    """

    def __init__(self, attn: Any, shared: int) -> None:
        self._attn, self._shared = attn, shared

    @property
    def W_K(self) -> Float[Tensor, "kv_head d_model d_head"]:
        """Keys."""
        return self._attn.W_K[:: self._shared]

    @property
    def W_V(self) -> Float[Tensor, "kv_head d_model d_head"]:
        """Values."""
        return self._attn.W_V[:: self._shared]

    def __getattr__(self, name: str) -> Any:
        """Whatever else the layer's attention has."""
        return getattr(self._attn, name)


class OwnHeadsBlock:
    """A layer whose attention is `OwnHeads`; everything else is the block's."""

    def __init__(self, block: Any, shared: int) -> None:
        self._block = block
        self.attn = OwnHeads(block.attn, shared)

    def __getattr__(self, name: str) -> Any:
        """Whatever else the block has."""
        return getattr(self._block, name)


class WeightFront(TokenFront, NamedStacks):
    """Weights of a model; `HybridLens` builds on it."""

    @public
    def weights(self, folded: bool = False) -> StackedWeights:
        """The model's weights under TransformerLens' names, and those of each layer.

        Args:
            folded: fold norms' weights into the maps that read what they give, and into what writes through them.

        Raises:
            CheckpointError: the model is quantised.
        """
        return StackedWeights(Weights.of_model(self, folded))

    def named_weight(self, name: str) -> Tensor:
        """See `NamedStacks`."""
        return StackedWeights(Weights.of_model(self, False)).named_weight(name)

    @property
    def embed(self) -> Embedding:
        """The embedding, to call with tokens."""
        return Embedding(self)

    @property
    def unembed(self) -> Unembedding:
        """The unembedding, to call with what the last norm gives: multiplier and soft cap are in the logits."""
        return Unembedding(self)

    @property
    def adapter(self) -> Adapter:
        """For TransformerLens' tools, which look here for the soft cap."""
        return Adapter(self)

    @property
    def attn_layers(self) -> tuple[int, ...]:
        """The layers that stacks of attention's weights hold; see `StackedWeights`."""
        return self.weights().attn_layers

    @property
    def dense_mlp_layers(self) -> tuple[int, ...]:
        """The layers that stacks of MLPs' weights hold; see `StackedWeights`."""
        return self.weights().dense_mlp_layers

    @property
    def all_head_labels(self) -> HeadLabels:
        """`L2H0`, …: the heads of `attn_layers`, in the order of stacks."""
        return self.weights().all_head_labels

    @property
    def QK(self) -> FactoredMatrix:
        """See `StackedWeights.QK`."""
        return self.weights().QK

    @property
    def OV(self) -> FactoredMatrix:
        """See `StackedWeights.OV`."""
        return self.weights().OV

    @public
    def all_composition_scores(self, mode: Mode) -> CompositionScores:
        """Composition of all pairs of heads, norms folded in; see `StackedWeights.all_composition_scores`."""
        return self.weights(folded=True).all_composition_scores(mode)

    @public
    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, "d_model"]:
        """What biases alone have put into the stream; see `StackedWeights.accumulated_bias`."""
        return self.weights().accumulated_bias(layer, mlp_input, include_mlp_biases)

    def tl_parameters(self) -> dict[str, Tensor]:
        """TransformerLens' dictionary of parameters, norms folded in; see `StackedWeights.tl_parameters`."""
        return self.weights(folded=True).tl_parameters()

    def blocks_with(self, part: str) -> list[tuple[int, Any]]:
        """(layer, block) of each layer that has a part, as in ``lens.blocks_with("ssm")``.

        It is for tools of TransformerLens, which take it that keys and values have heads of their own: of "attn", each
        block's ``attn.W_K`` and ``attn.W_V`` have those, where ``lens.blocks[l].attn`` repeats them for query heads.

        Raises:
            InputError: no family has a part of the name.
        """
        if not isinstance(part, str) or part not in ("attn", "ssm", "mlp"):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"blocks_with({shown(part)}) was asked, expected 'attn', 'ssm' or 'mlp'")
        cfg = self.network.cfg
        found = [(layer, block) for layer, block in enumerate(self.network.blocks) if hasattr(block, part)]
        if part != "attn":
            return found
        sizes = [cfg.attention(layer) for layer, _ in found]
        return [
            (layer, OwnHeadsBlock(block, size.n_heads // size.n_kv_heads))
            for (layer, block), size in zip(found, sizes, strict=True)
        ]

    def tokens_to_residual_directions(self, tokens: TokenChoice) -> Float[Tensor, "*batch d_model"]:
        """The directions whose product with what the last norm gives is these tokens' logits, before any soft cap.

        They are `W_U`'s: the last norm's weight is in what it gives (``lens.ln_final(resid)``, or a cache's
        `apply_ln_to_stack`), not in them. ``lens.weights(folded=True).W_U`` has it, for the stream over its scale.

        Args:
            tokens: a text that is one token, an id, several of either, or ids in a tensor of any shape.

        Returns:
            one direction a token, in the model's dtype.

        Raises:
            InputError: for a text that is not one token, or ids outside the vocabulary.
            CheckpointError: the unembedding is quantised, or not in memory.
        """
        return token_directions(self, token_ids(self, tokens, "tokens")).to(self.hf_model.dtype)
