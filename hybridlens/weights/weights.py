"""`Weights`: the linear maps of a model, a layer at a time, from memory or straight from files.

Nothing is kept but the embedding's small parts: each call reads its tensors, turns them to float32 and folds the
norms in, unless they are wanted as they are stored. So of Jamba-Mini's checkpoint only the layers asked for are ever
read, and none of its experts.

How it fails: a layer of the other kind or out of range raises `InputError`; a tensor that is missing or quantised
`CheckpointError` (see `sources`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybridlens.blocks import Block
from hybridlens.config import LensConfig
from hybridlens.display import Displayed
from hybridlens.display.models import WeightsShown
from hybridlens.errors import CheckpointError, InputError
from hybridlens.mixers.attention import HookedAttention
from hybridlens.mixers.latent_attention import LatentParts
from hybridlens.mixers.linear import RecurrentParts
from hybridlens.mixers.rotary import Turning
from hybridlens.mlps import HookedMlp, HookedMoe, MlpParts
from hybridlens.network import HookedNetwork
from hybridlens.norms import Norm
from hybridlens.projections import Projection
from hybridlens.weights.latent import latent_maps
from hybridlens.weights.sources import ModelTensors, Tensors
from hybridlens.weights.views import AttentionWeights, MlpWeights, RecurrentWeights

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


class Weights(WeightsShown):
    """The linear maps of a model.

    What a layer's weights are, its parts say (`hybridlens.mixers`, `hybridlens.mlps`); where they are, `tensors`.

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

    @classmethod
    def of_model(cls, lens: Any, folded: bool = True) -> Weights:
        """Those of a lens, where the model is.

        Raises:
            CheckpointError: the model is quantised.
        """
        return cls(lens.network, ModelTensors(lens.hf_model), lens.device, folded)

    # Layers.

    def attention(self, layer: int) -> AttentionWeights:
        """The heads of an attention layer.

        Raises:
            InputError: the layer is none, or has no attention, or a shared block's, which is no map of the stream.
            CheckpointError: a tensor is missing or cannot be read.
        """
        cfg = self.cfg.attention(layer)
        if self.cfg.layers[layer].shared:
            raise InputError(
                f"attention in layer {layer} is a shared block's: it reads the embedding beside the residual stream "
                "and writes nothing to it, so its heads are no maps from stream to stream"
            )
        block = cast(Block, self.network.blocks[layer])
        parts = cast(HookedAttention, block.mixers["attn"]).parts
        norm, d = self._before(block, "attn"), self.cfg.d_model

        def split(project: Projection, heads: int, width: int) -> tuple[Tensor, Tensor | None]:
            """[heads d_model width] of a projection stored [heads · width, d_model], and its bias [heads width]."""
            matrix, bias = project.heads(self._of, heads, width)
            if matrix.shape[1] != d:
                raise _misshapen(project, (heads * width, matrix.shape[1]), (heads * width, d))
            return matrix if norm is None else matrix * norm[:, None], bias

        def normed(norm: Norm | None, heads: int) -> Tensor | None:
            """What a norm of queries or keys multiplies by: for each head, or for all of them alike."""
            if norm is None:
                return None
            return self.norm(norm).view(heads, -1) if parts.joint_norm else self.norm(norm)

        e = cfg.d_head
        W_Q, b_Q = split(parts.q, cfg.n_heads, 2 * e if parts.packed_gate else e)
        scale: float | None = None
        if isinstance(parts, LatentParts):
            inside = parts.norm
            W_K, W_V, b_K, b_V, scale = latent_maps(cfg, parts, self._of, norm, lambda: self.norm(inside))
        else:
            W_K, b_K = split(parts.k, cfg.n_kv_heads, e)
            W_V, b_V = split(parts.v, cfg.n_kv_heads, e)
        W_O, b_O = parts.o.from_heads(self._of, cfg.n_heads)
        if W_O.shape[1:] != (cfg.d_value, d):
            has, asked = cfg.n_heads * W_O.shape[1], cfg.n_heads * cfg.d_value
            raise _misshapen(parts.o, (W_O.shape[2], has), (d, asked))
        behind = self._after(block, "attn")
        if behind is not None:
            W_O, b_O = W_O * behind, None if b_O is None else b_O * behind
        return AttentionWeights(
            layer=layer,
            W_Q=W_Q[..., :e],
            W_K=W_K,
            W_V=W_V,
            W_O=W_O,
            b_Q=None if b_Q is None else b_Q[..., :e],
            b_K=b_K,
            b_V=b_V,
            b_O=b_O,
            rotary=None if parts.rotary is None else parts.rotary.turning,
            window=cfg.window,
            scale=parts.scale,
            q_norm=normed(parts.q_norm, cfg.n_heads),
            k_norm=normed(parts.k_norm, cfg.n_kv_heads),
            qk_eps=0.0 if parts.q_norm is None else parts.q_norm.eps,
            soft_cap=parts.soft_cap,
            W_gate=W_Q[..., e:] if parts.packed_gate else None,
            b_gate=b_Q[..., e:] if parts.packed_gate and b_Q is not None else None,
            latent_scale=scale,
        )

    def recurrent(self, layer: int) -> RecurrentWeights:
        """The maps of a recurrent layer.

        Raises:
            InputError: the layer is none, or has no recurrence.
            CheckpointError: a tensor is missing or cannot be read.
        """
        self.cfg.recurrence(layer)
        block = cast(Block, self.network.blocks[layer])
        mixer: Any = block.mixers["ssm"]
        parts: RecurrentParts = mixer.linear_parts(lambda module, name: self._of(module, name).float())
        norm = self._before(block, "ssm")
        if norm is not None:
            parts = parts._replace(W_in=parts.W_in * norm[:, None], W_gate=parts.W_gate * norm[:, None])
        return RecurrentWeights(layer, parts)

    def mlp(self, layer: int) -> MlpWeights:
        """The maps of a layer's MLP.

        Raises:
            InputError: there is no such layer, or it has no MLP, a mixture of experts, or a shared block's.
            CheckpointError: a tensor is missing or cannot be read.
        """
        cfg = self.cfg
        if not 0 <= layer < cfg.n_layers or cfg.layers[layer].mlp is None:
            raise cfg.lacks(layer, "MLP", cfg.mlp_layers)
        block = cast(Block, self.network.blocks[layer])
        if cfg.layers[layer].shared:
            raise InputError(f"the MLP of layer {layer} is a shared block's, which reads and writes no stream")
        parts = getattr(block.parts["mlp"], "parts", None)
        if not isinstance(parts, MlpParts):
            dense = tuple(i for i in cfg.mlp_layers if i not in cfg.moe_layers)
            raise cfg.lacks(layer, "dense MLP", dense)
        norm, behind = self._before(block, "mlp"), self._after(block, "mlp")

        def read(name: str) -> Any:
            found = parts.stored(name, self._of)
            if found is not None and norm is not None and name in ("W_in", "W_gate"):
                return found * norm[:, None]
            return found if found is None or behind is None or not name.endswith("_out") else found * behind

        return MlpWeights(layer, *map(read, ("W_in", "W_gate", "W_out", "b_in", "b_gate", "b_out")))

    def mlp_bias(self, layer: int) -> Float[Tensor, "d_model"] | None:
        """The bias of what a layer's MLP writes to the stream; None where it has none.

        Raises:
            InputError: there is no such layer.
            CheckpointError: the tensor is missing or cannot be read.
        """
        if not 0 <= layer < self.cfg.n_layers:
            raise InputError(f"layer {layer} given, but the model has layers 0..{self.cfg.n_layers - 1}")
        mlp = cast(Block, self.network.blocks[layer]).parts.get("mlp")
        project, scale = None, 1.0
        if isinstance(mlp, HookedMlp):
            project = mlp.parts.down
        elif isinstance(mlp, HookedMoe):  # the shared expert's bias is a part of its own write
            project, scale = mlp.parts.widen, mlp.parts.scale
        if project is None or project.bias() is None:
            return None
        bias = self._of(cast(nn.Linear, project.module), "bias", (self.cfg.d_model,)) * (project.scale * scale)
        behind = self._after(cast(Block, self.network.blocks[layer]), "mlp")
        return bias if behind is None else bias * behind

    # Vocabulary.

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

    def _before(self, block: Block, part: str) -> Float[Tensor, "d_model"] | None:
        """What the norm before a part multiplies by; None for no norm, or none to be folded in."""
        branch = next(branch for branch in block.branches if part in branch.parts)
        return None if branch.norm is None or not self.folded else self.norm(branch.norm.norm)

    def _after(self, block: Block, part: str) -> Float[Tensor, "d_model"] | None:
        """What the norm after a part multiplies by; likewise."""
        after = block.branches[block.number_of(part) - 1].norm_after
        return None if after is None or not self.folded else self.norm(after.norm)

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

    @property
    def rotary(self) -> Turning | None:
        """Of the attention layers; None where there is none."""
        mixers = [cast(HookedAttention, cast(Block, self.network.blocks[i]).attn) for i in self.cfg.attention_layers]
        return next((mixer.parts.rotary.turning for mixer in mixers if mixer.parts.rotary is not None), None)

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


def _misshapen(project: Projection, has: tuple[int, ...], asked: tuple[int, ...]) -> CheckpointError:
    return CheckpointError(f"{project.name}.weight has shape {list(has)}, but the configuration asks for {list(asked)}")
