"""`Weights`: the linear maps of a model, a layer at a time, from memory or straight from files.

Nothing is kept but the embedding's small parts: each call reads its tensors, turns them to float32 and folds the
norms in, unless they are wanted as they are stored. So of Jamba-Mini's checkpoint only the layers asked for are ever
read, and none of its experts.

How it fails: a layer of the other kind or out of range raises `InputError`; a tensor that is missing or quantised
`CheckpointError` (see `sources`).
"""

from __future__ import annotations

from typing import Any, cast

from jaxtyping import Float
from torch import Tensor, nn

from hybridlens.blocks import Block
from hybridlens.boundary_words import shown
from hybridlens.errors import CheckpointError, InputError
from hybridlens.mixers.attention import HookedAttention
from hybridlens.mixers.latent_attention import LatentParts
from hybridlens.mixers.linear import RecurrentParts
from hybridlens.mixers.rotary import Turning
from hybridlens.mlps import HookedMlp, HookedMoe, MlpParts
from hybridlens.norms import Norm
from hybridlens.projections import Projection
from hybridlens.weights.latent import latent_maps
from hybridlens.weights.sources import ModelTensors
from hybridlens.weights.views import AttentionWeights, MlpWeights, RecurrentWeights
from hybridlens.weights.vocabulary import VocabularyWeights


class Weights(VocabularyWeights):
    """The linear maps of a model.

    What a layer's weights are, its parts say (`hybridlens.mixers`, `hybridlens.mlps`); where they are, `tensors`.

    Args:
        network: the model's parts; its weights may be away (on the meta device).
        tensors: where weights are read from.
        device: where they are put.
        folded: whether norms are folded in, everything float32. If not, maps are of what norms give, norms' weights and
            all, and as they are stored; the maps of recurrent layers are float32 nevertheless.
    """

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
            raise InputError(f"layer {shown(layer)} given, but the model has layers 0..{self.cfg.n_layers - 1}")
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

    def _before(self, block: Block, part: str) -> Float[Tensor, "d_model"] | None:
        """What the norm before a part multiplies by; None for no norm, or none to be folded in."""
        branch = next(branch for branch in block.branches if part in branch.parts)
        return None if branch.norm is None or not self.folded else self.norm(branch.norm.norm)

    def _after(self, block: Block, part: str) -> Float[Tensor, "d_model"] | None:
        """What the norm after a part multiplies by; likewise."""
        after = block.branches[block.number_of(part) - 1].norm_after
        return None if after is None or not self.folded else self.norm(after.norm)

    @property
    def rotary(self) -> Turning | None:
        """Of the attention layers; None where there is none."""
        mixers = [cast(HookedAttention, cast(Block, self.network.blocks[i]).attn) for i in self.cfg.attention_layers]
        return next((mixer.parts.rotary.turning for mixer in mixers if mixer.parts.rotary is not None), None)


def _misshapen(project: Projection, has: tuple[int, ...], asked: tuple[int, ...]) -> CheckpointError:
    return CheckpointError(f"{project.name}.weight has shape {list(has)}, but the configuration asks for {list(asked)}")
