"""What all of a model's weights are read from, and those of its vocabulary.

The matrices over the vocabulary are read in blocks, or a row at a time, so that a few tokens cost little.

How it fails: tokens outside the vocabulary raise `InputError`; a tensor that is missing or of another shape than the
configuration asks for `CheckpointError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybridlens.config import LensConfig
from hybridlens.display import Displayed
from hybridlens.display.models import WeightsShown
from hybridlens.errors import CheckpointError, InputError
from hybridlens.network import HookedNetwork
from hybridlens.norms import Norm
from hybridlens.weights.sources import Tensors

BLOCK = 8192
"""Tokens of the vocabulary that are read at once."""

SPARSE = 16
"""Where less than one token in so many is wanted, each is read by itself."""


class _VocabularyBlock(NamedTuple):
    start: int
    E: Float[Tensor, "token d_model"]
    """What enters the residual stream."""
    U: Float[Tensor, "token d_model"]
    """What the residual stream is compared with: the unembedding's rows, times the final norm's weight."""


class VocabularyBlock(Displayed, _VocabularyBlock):
    """Some tokens of the vocabulary, from `start` on."""

    __slots__ = ()


class VocabularyWeights(WeightsShown):
    """Embedding, unembedding and norms; `hybridlens.weights.weights.Weights` builds on it.

    Args:
        network: the model's parts; its weights may be away (on the meta device).
        tensors: where weights are read from.
        device: where they are put.
        folded: whether norms are folded in, everything float32. If not, maps are of what norms give, norms' weights and
            all, and as they are stored; the maps of recurrent layers are float32 nevertheless.
    """

    def __init__(
        self, network: HookedNetwork, tensors: Tensors, device: torch.device | str = "cpu", folded: bool = True
    ) -> None:
        model = network.wrapped[0]
        self.folded = folded
        self.network = network
        self.cfg: LensConfig = replace(network.cfg, device=torch.device(device))
        self.config = model.config
        self.tensors = tensors
        inside = torch.tensor(network.family.embed_inside(model.config), dtype=model.dtype, device="cpu")
        self.embed_scale = network.embed_scale * float(inside)
        """What the embedding is multiplied by, by its own module or behind it."""
        self.unembed_scale = network.unembed_scale
        """What logits are multiplied by, before any cap."""
        self.tied = network.tied
        """Whether embedding and unembedding are the same weights."""
        self._names = {id(module): name for name, module in model.named_modules()}

    def embed(self, tokens: Int[Tensor, "token"]) -> Float[Tensor, "token d_model"]:
        """What tokens put into the residual stream."""
        return self._rows(self._embed_name, tokens) * self.embed_scale

    def unembed(self, tokens: Int[Tensor, "token"]) -> Float[Tensor, "token d_model"]:
        """The directions whose product with the (scaled) residual stream is these tokens' logits, before any cap.

        Where norms are not folded in, with what the last norm gives.
        """
        return self._rows(self._unembed_name, tokens) * self._unembed_by

    def readout(self, tokens: Int[Tensor, "token"]) -> Float[Tensor, "token d_model"]:
        """The same with what the last norm gives, its weight included: the gradients of the logits by it."""
        return self._rows(self._unembed_name, tokens) * self.unembed_scale

    def vocabulary(self, block: int = BLOCK) -> Iterator[VocabularyBlock]:
        """All tokens, `block` at a time."""
        norm = self._unembed_by
        for start in range(0, self.cfg.d_vocab, block):
            stop = min(start + block, self.cfg.d_vocab)
            stored = self._float(self.tensors.read(self._embed_name, start, stop))
            other = stored if self.tied else self._float(self.tensors.read(self._unembed_name, start, stop))
            yield VocabularyBlock(start, stored * self.embed_scale, other * norm)

    def embedding(self) -> Float[Tensor, "token d_model"]:
        """What all tokens put into the residual stream, at once: where nothing multiplies it, the stored tensor."""
        return _times(self._float(self.tensors.read(self._embed_name)), self.embed_scale)

    def unembedding(self) -> Float[Tensor, "token d_model"]:
        """`unembed` of all tokens at once: where nothing multiplies it, the stored tensor."""
        return _times(self._float(self.tensors.read(self._unembed_name)), self._unembed_by)

    def unembed_bias(self) -> Float[Tensor, "token"]:
        """What all tokens' logits have whatever the stream, before any cap: zeros where the unembedding has no bias."""
        head = self.network.wrapped[0].get_output_embeddings()
        if getattr(head, "bias", None) is not None:
            return _times(self._of(head, "bias"), self.unembed_scale)
        dtype = torch.float32 if self.folded else self.network.wrapped[0].dtype
        return torch.zeros(self.cfg.d_vocab, device=self.cfg.device, dtype=dtype)

    @property
    def _unembed_by(self) -> Float[Tensor, "d_model"] | float:
        """What the unembedding's rows are multiplied by."""
        return self.final_norm * self.unembed_scale if self.folded else self.unembed_scale

    @property
    def final_norm(self) -> Float[Tensor, "d_model"]:
        """What the last norm multiplies by."""
        return self.norm(self.network.ln_final.norm)

    @property
    def _embed_name(self) -> str:
        return f"{self._names[id(self.network.wrapped[0].get_input_embeddings())]}.weight"

    @property
    def _unembed_name(self) -> str:
        head = self.network.wrapped[0].get_output_embeddings()
        return self._embed_name if self.tied else f"{self._names[id(head)]}.weight"

    def norm(self, norm: Norm) -> Float[Tensor, "width"]:
        """What a norm multiplies by."""
        return self._of(norm.module, "weight") + norm.style.offset

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

    def _of(self, module: nn.Module, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """A weight of a module, float32 where norms are folded in."""
        full = f"{self._names[id(module)]}.{name}"
        tensor = self.tensors.read(full)
        if shape is not None and tuple(tensor.shape) != shape:
            has, asked = list(tensor.shape), list(shape)
            raise CheckpointError(f"{full} has shape {has}, but the configuration asks for {asked}")
        return self._float(tensor)

    def _float(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.cfg.device, torch.float32) if self.folded else tensor.to(self.cfg.device)


def _times(rows: Tensor, factor: Tensor | float) -> Tensor:
    return rows if isinstance(factor, float) and factor == 1.0 else rows * factor
