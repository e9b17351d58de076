"""Names of TransformerLens' configuration that its tools and users read, where a hybrid has a truth to tell by them.

How it fails: a name of theirs that would tell none raises `AbsentError`, an `AttributeError`, and says what to type
(`hybridlens.habits`); so do names that are known of an opened model alone (``lens.cfg``), where only a configuration
was read. Sizes that differ from layer to layer raise `InputError`, as in `LensConfig`. An assignment raises
`FixedError`, an `AttributeError`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from hybridlens.bos import prepends_bos
from hybridlens.elsewhere import missing, typed_here
from hybridlens.errors import AbsentError, FixedError, InputError
from hybridlens.habits import ASSIGNED, CONFIG, OPENED_ANEW
from hybridlens.layer_config import AttentionConfig, LayerConfig

T = TypeVar("T")


def fixed(kind: type[T]) -> type[T]:
    """A frozen dataclass of what a model is, whose refusal of an assignment says what to type instead."""

    def refuse(_: object, name: str, value: object) -> NoReturn:
        instead = typed_here(ASSIGNED.get(name, OPENED_ANEW))
        raise FixedError(f"cfg.{name} cannot be assigned to, since cfg only says what the model is; {instead}")

    kind.__setattr__ = refuse  # pyright: ignore[reportAttributeAccessIssue]
    return kind


@dataclass(frozen=True)
class Opened:
    """What is known of a model once it is opened."""

    name: str
    """Folder or hub id; the family where it came from neither."""
    architecture: str
    """Its class in transformers."""
    tokenizer: Any
    """Its tokenizer; None for none."""
    eps: float
    """ε of the last norm."""
    norm_offset: float
    """Added to its weight."""
    soft_cap: float | None
    """Of logits."""
    tied: bool
    """Whether embedding and unembedding are the same weights."""


class PeerNames:
    """TransformerLens' names for what a configuration says; `LensConfig` builds on it."""

    family: str
    layers: tuple[LayerConfig, ...]
    d_vocab: int
    opened: Opened | None

    @property
    def n_key_value_heads(self) -> int:
        """Key/value heads of an attention layer."""
        return self._one("n_key_value_heads", (a.n_kv_heads for a in self.attentions), 0)

    @property
    def d_vocab_out(self) -> int:
        """Logits of a token."""
        return self.d_vocab

    @property
    def gated_mlp(self) -> bool:
        """Whether what MLPs' activations give is multiplied by another map; False where there is no MLP."""
        return self._one("gated_mlp", (layer.mlp.gated for layer in self.layers if layer.mlp is not None), False)

    @property
    def num_experts(self) -> int | None:
        """Experts of a mixture; None where there is none."""
        return self._one("num_experts", (x.mlp.n_experts for x in self.layers if x.mlp and x.mlp.n_experts), None)

    @property
    def experts_per_token(self) -> int | None:
        """Experts that a token is sent to; None where there is no mixture."""
        chosen = (x.mlp.n_experts_per_token for x in self.layers if x.mlp and x.mlp.n_experts)
        return self._one("experts_per_token", chosen, None)

    @property
    def positional_embedding_type(self) -> str:
        """Whether layers turn queries and keys ("rotary") or not ("none")."""
        return "rotary" if any(attention.rotary for attention in self.attentions) else "none"

    parallel_attn_mlp = False
    """MLPs read what mixers wrote."""
    final_rms = True
    """The last norm is a root mean square."""
    uses_rms_norm = True
    """All norms are."""
    attention_dir = "causal"
    """A token never sees later ones."""
    use_attn_result = True
    """`attn.hook_result` is there whenever it is hooked."""
    use_split_qkv_input = False
    """Queries, keys and values have no inputs of their own; `attn.hook_q`, `hook_k` and `hook_v` stand behind them."""
    use_attn_in = False
    """Heads have no inputs of their own."""
    use_hook_mlp_in = False
    """`ln2.hook_normalized` is what MLPs read, but for the norm's weight; `hook_resid_mid` is what the norm reads."""

    # Of opened models.

    @property
    def model_name(self) -> str:
        """Folder or hub id; the family of a model that was made in memory."""
        return self._known("model_name").name

    @property
    def original_architecture(self) -> str:
        """The model's class in transformers."""
        return self._known("original_architecture").architecture

    @property
    def tokenizer_name(self) -> str | None:
        """Of the tokenizer; None where there is none."""
        return getattr(self._known("tokenizer_name").tokenizer, "name_or_path", None)

    @property
    def eps(self) -> float:
        """ε of the norms, as the last one has it."""
        return self._known("eps").eps

    @property
    def rmsnorm_uses_offset(self) -> bool:
        """Whether norms multiply by 1 + their weight."""
        return self._known("rmsnorm_uses_offset").norm_offset == 1.0

    @property
    def output_logits_soft_cap(self) -> float:
        """c where logits are c · tanh(logits / c); -1 for no cap, as in TransformerLens."""
        cap = self._known("output_logits_soft_cap").soft_cap
        return -1.0 if cap is None else cap

    @property
    def tie_word_embeddings(self) -> bool:
        """Whether embedding and unembedding are the same weights."""
        return self._known("tie_word_embeddings").tied

    @property
    def default_prepend_bos(self) -> bool:
        """Whether a text gets a BOS when nothing is said of it: whether the tokenizer puts one there."""
        return prepends_bos(self._known("default_prepend_bos").tokenizer)

    @property
    def tokenizer_prepends_bos(self) -> bool:
        """The same."""
        return prepends_bos(self._known("tokenizer_prepends_bos").tokenizer)

    def __getattr__(self, name: str) -> Any:
        """Say what to ask instead of a name of TransformerLens' that tells nothing here."""
        found = getattr(type(self), name, None)
        if isinstance(found, property):  # it raised; Python asks here, and what it said must not be lost
            return found.__get__(self)
        raise missing(self, "cfg", name, CONFIG)

    @property
    def attentions(self) -> tuple[AttentionConfig, ...]:
        """Of the layers with attention, in order."""
        return tuple(layer.attn for layer in self.layers if layer.attn is not None)

    def _known(self, name: str) -> Opened:
        if self.opened is None:
            raise AbsentError(f"{name} is known of an opened model alone; ask lens.cfg")
        return self.opened

    def _one(self, name: str, sizes: Iterable[T], nothing: T) -> T:
        """The size that all layers agree on."""
        found = sorted(set(sizes), key=repr)
        if len(found) > 1:
            each = ", ".join(map(str, found))
            raise InputError(f"{name} differs from layer to layer ({each}); ask cfg.layers[l] of this {self.family}")
        return found[0] if found else nothing
