"""`Weights`: the linear maps of a model, a layer at a time, from memory or straight from files.

Nothing is kept but the embedding's small parts: each call reads its tensors, turns them to float32 and folds the
norms in. So of Jamba-Mini's checkpoint only the layers asked for are ever read, and none of its experts.

How it fails: a layer of the other kind or out of range raises `InputError`; a tensor that is missing or quantised
`CheckpointError` (see `sources`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hybridlens.errors import CheckpointError, InputError
from hybridlens.families.layout import RecurrentParts, Rotary
from hybridlens.families.spec import Family, LensConfig
from hybridlens.weights.sources import ModelTensors, Tensors
from hybridlens.weights.views import AttentionWeights, RecurrentWeights

BLOCK = 8192
"""Tokens of the vocabulary that are read at once."""

SPARSE = 16
"""Where less than one token in so many is wanted, each is read by itself."""


class VocabularyBlock(NamedTuple):
    """Some tokens of the vocabulary, from `start` on."""

    start: int
    E: Float[Tensor, "token d_model"]
    """What enters the residual stream."""
    U: Float[Tensor, "token d_model"]
    """What the residual stream is compared with: the unembedding's rows, times the final norm's weight."""


class Weights:
    """The linear maps of a model.

    Args:
        family: the model's.
        config: its transformers configuration.
        tensors: where they are read from.
        device: where they are put.

    Raises:
        CheckpointError: a configuration the family was not built for.
    """

    def __init__(
        self, family: Family, config: Any, tensors: Tensors, device: torch.device | str = "cpu"
    ) -> None:
        self.cfg: LensConfig = replace(family.configure(config), device=torch.device(device))
        self.family = family
        self.layout = family.layout
        self.config = config
        self.tensors = tensors
        self.embed_scale = self.layout.embed_scale(config)
        """What the embedding is multiplied by."""
        self.tied = bool(config.tie_word_embeddings)
        """Whether embedding and unembedding are the same weights."""

    @classmethod
    def of_model(cls, lens: Any) -> Weights:
        """Those of a lens, where the model is.

        Raises:
            CheckpointError: the model is quantised.
        """
        model = lens.hf_model
        return cls(lens.network.family, model.config, ModelTensors(model), lens.device)

    @property
    def rotary(self) -> Rotary | None:
        """Of every attention layer; None where there is none."""
        return self.layout.rotary(self.config)

    # Layers.

    def attention(self, layer: int) -> AttentionWeights:
        """The heads of an attention layer.

        Raises:
            InputError: the layer is none, or recurrent.
            CheckpointError: a tensor is missing or cannot be read.
        """
        self._check(layer, "attention")
        cfg, layout = self.cfg, self.layout
        norm, name = self._norm(layer), layout.attention

        def split(part: str, heads: int) -> Tensor:
            """[heads d_model d_head] of a projection stored [heads · d_head, d_model]."""
            stored = self._layer(layer, f"{name}{part}.weight", (heads * cfg.d_head, cfg.d_model))
            return (stored * norm).view(heads, cfg.d_head, cfg.d_model).transpose(1, 2)

        def bias(part: str, heads: int) -> Tensor | None:
            if not layout.qkv_bias(self.config):
                return None
            return self._layer(layer, f"{name}{part}.bias", (heads * cfg.d_head,)).view(heads, cfg.d_head)

        out = self._layer(layer, f"{name}o_proj.weight", (cfg.d_model, cfg.n_heads * cfg.d_head))
        return AttentionWeights(
            layer=layer,
            W_Q=split("q_proj", cfg.n_heads),
            W_K=split("k_proj", cfg.n_kv_heads),
            W_V=split("v_proj", cfg.n_kv_heads),
            W_O=out.T.view(cfg.n_heads, cfg.d_head, cfg.d_model),
            b_Q=bias("q_proj", cfg.n_heads),
            b_K=bias("k_proj", cfg.n_kv_heads),
            b_V=bias("v_proj", cfg.n_kv_heads),
            b_O=self._layer(layer, f"{name}o_proj.bias", (cfg.d_model,)) if layout.o_bias else None,
            rotary=self.rotary,
            window=cfg.window,
        )

    def recurrent(self, layer: int) -> RecurrentWeights:
        """The maps of a recurrent layer.

        Raises:
            InputError: the layer is none, or attention.
            CheckpointError: a tensor is missing or cannot be read.
        """
        self._check(layer, "ssm")
        parts: RecurrentParts = self.layout.recurrent(self.config, lambda name: self._layer(layer, name))
        norm = self._norm(layer)[:, None]
        return RecurrentWeights(layer, parts._replace(W_in=parts.W_in * norm, W_gate=parts.W_gate * norm))

    def mlp_bias(self, layer: int) -> Float[Tensor, "d_model"] | None:
        """The bias of what a layer's MLP writes; None where it has none.

        Raises:
            InputError: there is no such layer.
            CheckpointError: the tensor is missing or cannot be read.
        """
        self._check_layer(layer)
        name = self.layout.mlp_bias
        return None if name is None else self._layer(layer, name, (self.cfg.d_model,))

    # Vocabulary.

    def embed(self, tokens: Int[Tensor, "token"]) -> Float[Tensor, "token d_model"]:
        """What tokens put into the residual stream."""
        return self._rows(self.layout.embed, tokens) * self.embed_scale

    def unembed(self, tokens: Int[Tensor, "token"]) -> Float[Tensor, "token d_model"]:
        """The directions whose product with the (scaled) residual stream is these tokens' logits, before any cap."""
        return self._rows(self._unembed_name, tokens) * self.final_norm

    def vocabulary(self, block: int = BLOCK) -> Iterator[VocabularyBlock]:
        """All tokens, `block` at a time."""
        norm = self.final_norm
        for start in range(0, self.cfg.d_vocab, block):
            stop = min(start + block, self.cfg.d_vocab)
            stored = self._float(self.tensors.read(self.layout.embed, start, stop))
            other = stored if self.tied else self._float(self.tensors.read(self._unembed_name, start, stop))
            yield VocabularyBlock(start, stored * self.embed_scale, other * norm)

    @property
    def final_norm(self) -> Float[Tensor, "d_model"]:
        """What the last norm multiplies by."""
        return self._read(self.layout.final_norm, (self.cfg.d_model,)) + self.layout.norm_offset

    @property
    def _unembed_name(self) -> str:
        return self.layout.embed if self.tied else self.layout.unembed

    # Reading.

    def _rows(self, name: str, tokens: Tensor) -> Tensor:
        """Rows of a matrix over the vocabulary, without reading much else."""
        wanted = tokens.cpu()
        if wanted.numel() and not 0 <= int(wanted.min()) <= int(wanted.max()) < self.cfg.d_vocab:
            given = f"{int(wanted.min())}..{int(wanted.max())}"
            raise InputError(f"tokens {given} given, expected 0..{self.cfg.d_vocab - 1}")
        found = torch.empty(len(wanted), self.cfg.d_model, device=self.cfg.device)
        if len(wanted) < self.cfg.d_vocab // SPARSE:
            for place, token in enumerate(wanted.tolist()):
                found[place] = self._float(self.tensors.read(name, token, token + 1))[0]
            return found
        for start in range(0, self.cfg.d_vocab, BLOCK):
            inside = (wanted >= start) & (wanted < start + BLOCK)
            if bool(inside.any()):
                block = self.tensors.read(name, start, min(start + BLOCK, self.cfg.d_vocab))
                found[inside.to(found.device)] = self._float(block[(wanted[inside] - start).to(block.device)])
        return found

    def _norm(self, layer: int) -> Tensor:
        return self._layer(layer, self.layout.ln1, (self.cfg.d_model,)) + self.layout.norm_offset

    def _layer(self, layer: int, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        return self._read(self.layout.layer.format(layer) + name, shape)

    def _read(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        tensor = self.tensors.read(name)
        if shape is not None and tuple(tensor.shape) != shape:
            has, asked = list(tensor.shape), list(shape)
            raise CheckpointError(f"{name} has shape {has}, but the configuration asks for {asked}")
        return self._float(tensor)

    def _float(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.cfg.device, torch.float32)

    def _check_layer(self, layer: int) -> None:
        if not 0 <= layer < self.cfg.n_layers:
            raise InputError(f"layer {layer} given, but the model has layers 0..{self.cfg.n_layers - 1}")

    def _check(self, layer: int, kind: str) -> None:
        self._check_layer(layer)
        cfg = self.cfg
        if cfg.layer_types[layer] != kind:
            word, layers = ("attention", cfg.attention_layers) if kind == "attention" else ("recurrent", cfg.ssm_layers)
            raise InputError(f"layer {layer} is no {word} layer; those are {', '.join(map(str, layers))}")
