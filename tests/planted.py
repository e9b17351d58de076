"""Real Hugging Face hybrids with hand-set weights: one head, or one pair, does one known thing; the rest is random.

The residual stream [128] has a random orthonormal basis, cut into subspaces: TOKEN (32 dimensions, in which 40 tokens
stand nearly at right angles), BACK and MOVED (32 each, for what is written about an earlier token) and one direction
CONSTANT that every token has. No subspace lies along the axes, and every norm has random weights, by which the maps
that are planted are divided: they are meant for the stream as it is, and have to be found with the norms folded in.

What is planted, by kind:

* ``copying``: W_V reads TOKEN and W_O writes it back; ``anti-copying`` writes its negative.
* ``previous``: keys and queries are made of CONSTANT alone, and the query stands turned by one position: the score is
  highest one token back, whatever the tokens. Only rotary heads can.
* ``matching``: queries and keys both read TOKEN, in dimensions of the head that do not turn (or hardly, in a head that
  turns as a whole); ``matching-rotary`` in those that turn, so that it falls with distance; ``matching-back`` also
  there, with the query turned, so that it is best three tokens back.
* ``induction``: a previous-token head writes the previous token's content into a second subspace; a later head's keys
  read that, its queries TOKEN, and its OV copies. Without rotary embedding no head can find the previous token by
  itself: there a recurrent layer's lag-1 tap writes the previous token into BACK, and the head's queries read that,
  its keys TOKEN (it attends to all tokens equal to the previous one, which have the same content) and it writes MOVED.
* ``tap``: the lag-1 tap writes BACK, and the later head's keys read that: induction without another head.

Heads of one group share keys and values, so planting one of them sets keys and values for all. The others keep random
W_O: they read the same values and write them anywhere, so they do not copy. For keys that is not enough: how much an
earlier writer feeds a group's keys is the same for every head that looks at all key dimensions alike. So a planted head
uses some dimensions of the head (`dims`) and the others of its group look at these with a quarter of their strength,
as heads that share keys must if they are to differ; `apart=False` leaves them as random as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import JambaConfig, JambaForCausalLM, RecurrentGemmaConfig, RecurrentGemmaForCausalLM

import hybridlens as hl
from hybridlens.config import LensConfig
from hybridlens.weights import Weights

D_MODEL, N_HEADS, D_HEAD, N_LAYERS, VOCAB, WINDOW = 128, 4, 32, 6, 40, 48
KINDS = ("copying", "anti-copying", "previous", "matching", "matching-rotary", "matching-back", "induction", "tap")
NEED_ROTARY = ("previous", "matching-rotary", "matching-back")
BACK = 3
"""How many tokens back the head of kind "matching-back" matches best."""
FOLLOWERS = 16
"""Dimensions of a head that matching and induction use: half of it, and all that half-rotary heads leave alone."""
CHANNELS = 32
"""Recurrent channels that the tap uses (twice as many in Jamba)."""
QUIET = 0.12
"""What everything but the planted parts writes, for each unit that it reads."""

MODELS = [
    ("recurrentgemma", 0.5, 1, 0),
    ("recurrentgemma", 0.5, 2, 1),
    ("recurrentgemma", 1.0, 1, 2),
    ("recurrentgemma", 1.0, 2, 3),
    ("recurrentgemma", 0.0, 1, 4),
    ("recurrentgemma", 0.0, 2, 5),
    ("jamba", 0.0, 1, 6),
    ("jamba", 0.0, 2, 7),
]
"""Family, the share of a head's dimensions that turns, key/value heads, seed: every model has its own."""

Head = tuple[int, int]


class Plant(NamedTuple):
    """A model in which something is planted, and where."""

    lens: hl.HybridLens
    weights: Weights
    head: Head
    """(layer, head) of the planted head; of a pair the later one."""
    writer: Head | None = None
    """The earlier head of an induction pair."""
    recurrent: int | None = None
    """The recurrent layer with a planted tap."""


class Space(NamedTuple):
    """Orthonormal columns of the residual stream, [d_model n]."""

    token: Tensor
    back: Tensor
    moved: Tensor
    constant: Tensor


@cache
def plant(
    family: str, kind: str, *, kv_heads: int = 1, rotary: float = 0.5, seed: int = 0, apart: bool = True
) -> Plant:
    """A model of six layers (recurrent, attention, …), four heads a layer, with one kind planted at a random place.

    Args:
        family: "recurrentgemma" or "jamba".
        kind: of `KINDS`.
        kv_heads: key/value heads.
        rotary: the share of a head's dimensions that turns; 0 for none, as always in Jamba.
        seed: of weights and of the place.
        apart: whether other heads of a group look away from the dimensions that the planted one uses.
    """
    rng = torch.Generator().manual_seed(1000 + seed)
    model = _background(family, kv_heads, rotary, seed)
    lens = hl.HybridLens(model)
    builder = Builder(family, model, lens.cfg, round(rotary * D_HEAD), rng, apart)
    with torch.no_grad():
        builder.vocabulary()
        found = builder.plant(kind)
    return Plant(lens, Weights.of_model(lens), *found)


def cases(*kinds: str, of: Sequence[tuple] = MODELS) -> list[tuple]:
    """(kind, model) for each model that can have it."""
    return [(kind, model) for kind in kinds for model in of if model[1] or kind not in NEED_ROTARY]


def made(kind: str, model: tuple) -> Plant:
    """The plant of a case, made once."""
    family, rotary, kv_heads, seed = model
    return plant(family, kind, kv_heads=kv_heads, rotary=rotary, seed=seed)


def tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    """Random token ids [batch length]."""
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def repeated(batch: int, period: int, seed: int = 0) -> Tensor:
    """Different tokens in random order, twice: [batch, 2 · period]."""
    rng = torch.Generator().manual_seed(seed)
    rows = torch.stack([torch.randperm(VOCAB, generator=rng)[:period] for _ in range(batch)])
    return torch.cat([rows, rows], dim=1)


def _background(family: str, kv_heads: int, rotary: float, seed: int) -> Any:
    """A random model whose mixers and MLPs write little, so that a planted pair is not drowned on its way.

    Biases, norms and other parameters of one number a channel are shaken, so that none is at its default; the norms
    before mixers have any sign, so that a map from which the norm is left out is another map altogether.
    """
    sizes: dict[str, Any] = {
        "num_hidden_layers": N_LAYERS, "hidden_size": D_MODEL, "num_attention_heads": N_HEADS, "vocab_size": VOCAB,
        "num_key_value_heads": kv_heads, "intermediate_size": 64,
    }  # fmt: skip
    torch.manual_seed(seed)
    if family == "recurrentgemma":
        rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": rotary}
        more = {"block_types": ("recurrent", "attention"), "attention_window_size": WINDOW, "rope_parameters": rope}
        config = RecurrentGemmaConfig(**sizes, **more, w_init_variance_scale=4 / D_MODEL)
        model: Any = RecurrentGemmaForCausalLM(config)
    else:
        more = {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_d_state": 5}
        model = JambaForCausalLM(JambaConfig(**sizes, **more, initializer_range=D_MODEL**-0.5))
    writes = ("o_proj.weight", "linear_out.weight", "out_proj.weight", "down_proj.weight", "down_proj")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(writes):
                weight.normal_(std=QUIET / weight.shape[-1] ** 0.5)
            elif weight.ndim == 1:
                weight.add_(0.1 * torch.randn_like(weight))
            if name.endswith(("temporal_pre_norm.weight", "input_layernorm.weight")):
                signs = torch.randint(2, weight.shape) * 2.0 - 1.0
                weight.copy_(signs * (0.5 + torch.rand_like(weight)) - float(family == "recurrentgemma"))
    return model.eval()


class Builder:
    """Writes maps of the residual stream into one model's own tensors.

    Args:
        family: the model's.
        model: of Hugging Face.
        cfg: its sizes.
        turning: dimensions of a head that turn.
        rng: of everything random.
        apart: see `plant`.
    """

    def __init__(
        self, family: str, model: Any, cfg: LensConfig, turning: int, rng: torch.Generator, apart: bool
    ) -> None:
        self.family, self.model, self.cfg, self.turning, self.rng, self.apart = family, model, cfg, turning, rng, apart
        basis = self.orthonormal(D_MODEL, D_MODEL)
        self.space = Space(*basis.split([32, 32, 32, 1, 31], dim=1)[:4])
        self.gemma = family == "recurrentgemma"

    def orthonormal(self, rows: int, columns: int) -> Tensor:
        """Random orthonormal columns."""
        return torch.linalg.qr(torch.randn(rows, columns, generator=self.rng)).Q

    def pick(self, options: Sequence[int]) -> int:
        """One of them."""
        return options[int(torch.randint(len(options), (), generator=self.rng))]

    # The vocabulary.

    def vocabulary(self) -> None:
        """Tokens of equal length: 7/8 of it (in square) in TOKEN, 1/8 CONSTANT; and a little of everything."""
        frame = self.orthonormal(VOCAB, 32)
        frame = frame / frame.norm(dim=1, keepdim=True)
        rows = (7 / 8) ** 0.5 * frame @ self.space.token.T + (1 / 8) ** 0.5 * self.space.constant.T
        rows = rows + 0.05 * torch.randn(VOCAB, D_MODEL, generator=self.rng) / D_MODEL**0.5
        self.model.model.embed_tokens.weight.copy_(rows if self.gemma else rows * D_MODEL**0.5)
        if not self.gemma:  # untied
            self.model.lm_head.weight.copy_(rows)

    # What is planted.

    def plant(self, kind: str) -> tuple[Head, Head | None, int | None]:
        """Plant one kind; returns (head, writer, recurrent layer)."""
        attention, ssm, token = self.cfg.attention_layers, self.cfg.ssm_layers, self.space.token
        if self.turning == 0 and kind in NEED_ROTARY:
            raise ValueError(f"{kind} needs rotary embedding")
        layer, head = self.pick(attention), self.pick(range(N_HEADS))
        if kind in ("copying", "anti-copying"):
            self.move(layer, head, token, token if kind == "copying" else -token)
        elif kind == "previous":
            self.look_back(layer, head)
        elif kind == "matching":
            self.match(layer, head, token, token, self.still_dims(), 4.0)
        elif kind in ("matching-rotary", "matching-back"):
            back = BACK if kind == "matching-back" else 0
            self.match(layer, head, token, token, list(range(self.turning)), 4.0, back)
        elif kind == "tap":
            layer = self.pick(attention)
            recurrent = self.pick([i for i in ssm if i < layer])
            self.tap(recurrent, token, self.space.back)
            self.induce(layer, head, self.space.back)
            return (layer, head), None, recurrent
        elif kind == "induction":
            layer = self.pick(attention[1:])
            first, other = self.pick([i for i in attention if i < layer]), self.pick(range(N_HEADS))
            recurrent = None
            if self.turning:
                self.look_back(first, other)
            else:
                recurrent = self.pick([i for i in ssm if i < first])
                self.tap(recurrent, token, self.space.back)
                self.match(first, other, self.space.back, token, self.still_dims(), 6.0)
            self.move(first, other, token, self.space.moved)
            self.induce(layer, head, self.space.moved)
            return (layer, head), (first, other), recurrent
        return (layer, head), None, None

    def move(self, layer: int, head: int, source: Tensor, target: Tensor, strength: float = 1.0) -> None:
        """The head's OV takes what stands in `source` to `target`. Its group shares the values, not W_O."""
        self.rows(layer, "v", self.kv(head)).copy_((source / self.norm(layer)).T)
        self.output(layer, head).copy_(strength * target)

    def look_back(self, layer: int, head: int) -> None:
        """Scores by distance alone, highest one token back; in the fast pairs, whose angles differ most there.

        A pair that turns by f a token gives cos(f (distance - 1)).
        """
        half = self.turning // 2
        fast = [pair for pair in range(half) if self.frequencies()[pair] > 0.05]
        key = torch.zeros(1, D_HEAD)
        key[:, fast] = 1.0
        query, constant = self.turned_back(key, 1), self.space.constant
        self.attend(layer, head, constant @ query, constant @ key, [*fast, *(i + half for i in fast)], 12.0)

    def match(
        self, layer: int, head: int, query: Tensor, key: Tensor, dims: list[int], strength: float, back: int = 0
    ) -> None:
        """Queries read one subspace, keys another, with the same random map to `dims` of the head.

        The query is turned, so that it meets its key `back` tokens on.
        """
        reader = torch.zeros(32, D_HEAD)
        reader[:, dims] = self.orthonormal(32, len(dims))
        self.attend(layer, head, query @ self.turned_back(reader, back), key @ reader, dims, strength)

    def frequencies(self) -> Tensor:
        """Radians a token of each pair of dimensions that turns."""
        return 10000.0 ** (-torch.arange(0, self.turning, 2) / max(self.turning, 1))

    def turned_back(self, x: Tensor, back: int) -> Tensor:
        """Rows [n d_head], turned against the rotary embedding by `back` tokens."""
        half = self.turning // 2
        cos, sin = (self.frequencies() * back).cos(), (self.frequencies() * back).sin()
        first, second = x[:, :half], x[:, half : self.turning]
        return torch.cat([first * cos + second * sin, second * cos - first * sin, x[:, self.turning :]], dim=1)

    def induce(self, layer: int, head: int, written: Tensor) -> None:
        """Keys read what was written of the token before, queries the token itself, and OV copies."""
        self.match(layer, head, self.space.token, written, self.still_dims(), 8.0)
        self.move(layer, head, self.space.token, self.space.token, strength=4.0)

    def attend(self, layer: int, head: int, query: Tensor, key: Tensor, dims: list[int], strength: float) -> None:
        """Queries [d_model d_head] and keys in `dims` of the head; the strength is the query's, which it alone has."""
        norm, group = self.norm(layer), self.cfg.n_heads // self.cfg.n_kv_heads
        self.rows(layer, "k", self.kv(head))[dims] = (key / norm).T[dims]
        for other in range(self.kv(head) * group, (self.kv(head) + 1) * group):
            if self.apart and other != head:
                self.rows(layer, "q", other)[dims] *= 0.25
        own = self.rows(layer, "q", head)
        own *= 0.25
        own[dims] = (strength * query / norm).T[dims]

    def tap(self, layer: int, source: Tensor, target: Tensor) -> None:
        """A recurrent layer whose lag-1 tap alone takes `source` to `target`: gates at 1, no memory.

        Its other channels stay random.
        """
        mixer = self.mixer(layer)
        if self.gemma:
            self._tap_gemma(mixer, source / self.norm(layer), target)
        else:
            self._tap_jamba(mixer, source / self.norm(layer), target, self.space.constant / self.norm(layer))

    def _tap_gemma(self, mixer: Any, source: Tensor, target: Tensor) -> None:
        """One block of channels; decay exp(-8 σ(6) softplus(4)) < 1e-13, input gate σ(6), output gate gelu(1.145)."""
        block = self.pick(range(N_HEADS))
        at = slice(CHANNELS * block, CHANNELS * (block + 1))
        mixer.linear_x.weight[at], mixer.linear_x.bias[at] = source.T, 0.0
        mixer.linear_y.weight[at], mixer.linear_y.bias[at] = 0.0, 1.145
        _lag_one(mixer.conv_1d, at)
        mixer.linear_out.weight[:, at] = target
        lru = mixer.rg_lru
        lru.input_gate_weight[block], lru.input_gate_bias[block] = 0.0, 6.0
        lru.recurrent_gate_weight[block], lru.recurrent_gate_bias[block] = 0.0, 6.0
        lru.recurrent_param[at] = 4.0

    def _tap_jamba(self, mixer: Any, source: Tensor, target: Tensor, constant: Tensor) -> None:
        """Pairs of channels with opposite signs, because silu(u) - silu(-u) = u; D passes, and Δ = softplus(-12).

        The gate has no bias, so it is made of CONSTANT: silu(1.278) = 1 where nothing else stands in the stream.
        """
        width = self.cfg.d_channels
        chosen = torch.randperm(width, generator=self.rng)[: 2 * CHANNELS]
        mixer.in_proj.weight[chosen] = torch.cat([source, -source], dim=1).T
        mixer.in_proj.weight[width + chosen] = (1.278 / (D_MODEL / 8) ** 0.5 * constant).T
        _lag_one(mixer.conv1d, chosen)
        mixer.x_proj.weight[:, chosen] = 0.0
        mixer.dt_proj.weight[chosen], mixer.dt_proj.bias[chosen] = 0.0, -12.0
        mixer.D[chosen] = 1.0
        mixer.out_proj.weight[:, chosen] = torch.cat([target, -target], dim=1)

    # Where a model keeps them.

    def mixer(self, layer: int) -> Any:
        """Attention or recurrence of a layer."""
        hf = self.model.model.layers[layer]
        if self.gemma:
            return hf.temporal_block
        return hf.self_attn if self.cfg.layer_types[layer] == "attention" else hf.mamba

    def norm(self, layer: int) -> Tensor:
        """[d_model 1], what the norm before the mixer multiplies by."""
        hf = self.model.model.layers[layer]
        return (1 + hf.temporal_pre_norm.weight if self.gemma else hf.input_layernorm.weight)[:, None]

    def rows(self, layer: int, part: str, head: int) -> Tensor:
        """[d_head d_model] of q, k or v: the stored rows of one head, to be written to."""
        stored = getattr(self.mixer(layer), f"{part}_proj").weight
        return stored[head * D_HEAD : (head + 1) * D_HEAD]

    def output(self, layer: int, head: int) -> Tensor:
        """[d_model d_head] of o, likewise."""
        return self.mixer(layer).o_proj.weight[:, head * D_HEAD : (head + 1) * D_HEAD]

    def kv(self, head: int) -> int:
        """The key/value head that a head reads."""
        return head * self.cfg.n_kv_heads // self.cfg.n_heads

    def still_dims(self) -> list[int]:
        """The dimensions of a head that turn least: the last half, or, where all turn, the slow half of the pairs."""
        half = self.turning // 2
        free = list(range(self.turning, D_HEAD))
        slow = [i for pair in reversed(range(half)) for i in (pair, pair + half)]
        return (free[::-1] + slow)[:FOLLOWERS]


def _lag_one(convolution: Any, channels: slice | Tensor) -> None:
    """A tap on the token before, and no other."""
    convolution.weight[channels], convolution.bias[channels] = 0.0, 0.0
    convolution.weight[channels, :, -2] = 1.0
