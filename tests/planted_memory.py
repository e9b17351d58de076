"""Real Hugging Face hybrids whose answer is held in one memory alone: one head's values or one recurrent state.

Words are "f0" … "f7" (filler), "v0" … "v3" (values) and "ask". A prompt is filler with one value in it, then "ask"; the
planted memory is all that can answer it. Everything else of the model is random and remembers the text as it will, but
writes nothing to the residual stream: its output maps are 0.

* a head: its queries read "ask", its keys whether a token is a value, its values which one, and its output says so.
* a state: channels that take in which value came by, hardly decay, and are read out at every later token.
* one recurrent head's matrix state: likewise, at one address; a delta rule writes there at values alone, since whatever
  is written anew erases what stood there.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from models import ROWS, make_calm
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import hybridlens as hl
from analyses.kv_cache import PromptPair
from hybridlens.niah import Rule

FILLERS, VALUES = [f"f{i}" for i in range(8)], [f"v{i}" for i in range(4)]
WORDS = ["[UNK]", *FILLERS, *VALUES, "ask"]
D_MODEL, D_HEAD, LAYERS = 32, 8, 6
CONSTANT = D_MODEL - 1
"""The direction of the residual stream that every token has."""
VALUE_AXES = [WORDS.index(value) for value in VALUES]
SLOW = 0.005
"""What the planted state loses with each token."""


class Planted(NamedTuple):
    """A model, and the memory that alone answers."""

    lens: hl.HybridLens
    layer: int
    head: int | None
    """The key/value head, or the recurrent head of a matrix state; None where it is the state of a whole layer."""


def planted(family: str, where: str, seed: int = 0) -> Planted:
    """A model of six layers with the answer in "head" or "state"; of families with matrix states, "state" only."""
    sizes = {
        "num_hidden_layers": LAYERS, "vocab_size": len(WORDS), "hidden_size": D_MODEL, "num_key_value_heads": 2,
        "num_attention_heads": 4,
    }  # fmt: skip
    own: dict[str, dict[str, Any]] = {
        "recurrentgemma": {"attention_window_size": 64}, "jamba": {},
        "mamba2": {"num_key_value_heads": None, "num_attention_heads": None},
        "qwen3_next": {"layer_types": ["linear_attention", "full_attention", *["linear_attention"] * 4]},
    }  # fmt: skip
    given = {name: value for name, value in {**sizes, **own[family]}.items() if value is not None}
    model = make_calm(family, seed, **given)
    lens = hl.HybridLens(model, _tokenizer())
    with torch.no_grad():
        _silence(family, model)
        _vocabulary(family, model)
        rng = torch.Generator().manual_seed(seed)
        layers = lens.cfg.attention_layers if where == "head" else lens.cfg.ssm_layers[1:]
        layer = layers[int(torch.randint(len(layers), (), generator=rng))]
        head = int(torch.randint(4, (), generator=rng))
        if ROWS[family].matrix:
            if family == "mamba2":
                _plant_mamba2(model.backbone.layers[layer].mixer, head)
            else:
                _plant_delta(model.model.layers[layer].linear_attn, head)
            return Planted(lens, layer, head)
        part = model.model.layers[layer]
        if where == "head":
            _plant_head(part.temporal_block if family == "recurrentgemma" else part.self_attn, head)
            return Planted(lens, layer, head // 2)
        if family == "recurrentgemma":
            _plant_rg_lru(part.temporal_block)
        else:
            _plant_mamba(part.mamba)
        return Planted(lens, layer, None)


def pairs(n: int, length: int = 24, seed: int = 0) -> list[PromptPair]:
    """Prompts with two values each, at random places that are far from the end."""
    rng = torch.Generator().manual_seed(seed)
    found: list[PromptPair] = []
    for _ in range(n):
        text = (1 + torch.randint(len(FILLERS), (length,), generator=rng)).tolist()
        text[-1] = WORDS.index("ask")
        place = int(torch.randint(2, length - 8, (), generator=rng))
        one, other = torch.randperm(4, generator=rng)[:2].tolist()
        sides = [(*text[:place], VALUE_AXES[value], *text[place + 1 :]) for value in (one, other)]
        rubrics = [(Rule(VALUES[value], 5.0, "set"),) for value in (one, other)]
        found.append(PromptPair(f"{VALUES[one]}-{VALUES[other]}", *sides, ((place, place + 1),), *rubrics))
    return found


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def _silence(family: str, model: Any) -> None:
    """Every write to the residual stream 0, every norm of the stream without weights."""
    outputs = ("o_proj", "linear_out", "out_proj", "down_proj")
    stream = ("temporal_pre_norm", "channel_pre_norm", "final_norm", "input_layernorm", "pre_ff_layernorm",
              "final_layernorm", "b_layernorm", "c_layernorm", "dt_layernorm", "post_attention_layernorm", "norm",
              "norm_f")  # fmt: skip
    for name, weight in model.named_parameters():
        parts = name.split(".")
        if any(part in outputs for part in parts):
            weight.zero_()
        if any(part in stream for part in parts):
            plus_one = family == "recurrentgemma" or (family == "qwen3_next" and "linear_attn" not in parts)
            weight.fill_(0.0 if plus_one else 1.0)


def _vocabulary(family: str, model: Any) -> None:
    """Each word has an axis of its own; all have the constant."""
    rows = torch.zeros(len(WORDS), D_MODEL)
    rows[:, : len(WORDS)] = torch.eye(len(WORDS))
    rows[:, CONSTANT] = 1.0
    gemma = family == "recurrentgemma"  # its embedding is scaled by √d, and is its unembedding
    model.get_input_embeddings().weight.copy_(rows if gemma else rows * D_MODEL**0.5)
    if not gemma:
        model.lm_head.weight.copy_(rows)


def _plant_head(attention: Any, head: int) -> None:
    """A normalised token is 4 on its axis and on the constant: the score of "ask" with a value is 4·3·4·3/√8 = 51."""
    still = D_HEAD - 1  # not turned by rotary embedding
    q = attention.q_proj.weight[head * D_HEAD : (head + 1) * D_HEAD]
    own = slice(head // 2 * D_HEAD, (head // 2 + 1) * D_HEAD)
    k, v = attention.k_proj.weight[own], attention.v_proj.weight[own]
    for weight in (q, k, v):
        weight.zero_()
    q[still, WORDS.index("ask")] = 3.0
    for i, axis in enumerate(VALUE_AXES):
        k[still, axis] = 3.0
        v[i, axis] = 1.0
        attention.o_proj.weight[axis, head * D_HEAD + i] = 15.0


def _plant_rg_lru(mixer: Any) -> None:
    """Four channels of one block: input gate σ(6), output gate gelu(1.145) = 1, decay exp(-SLOW)."""
    width = mixer.rg_lru.input_gate_weight.shape[1]
    assert width >= len(VALUES)
    block = slice(0, width)
    mixer.linear_x.weight[block], mixer.linear_x.bias[block] = 0.0, 0.0
    mixer.linear_y.weight[block], mixer.linear_y.bias[block] = 0.0, 1.145
    _newest_tap(mixer.conv_1d, block)
    lru = mixer.rg_lru
    lru.input_gate_weight[0], lru.input_gate_bias[0] = 0.0, 6.0
    lru.recurrent_gate_weight[0], lru.recurrent_gate_bias[0] = 0.0, 0.0
    lru.recurrent_param[block] = math.log(math.expm1(SLOW / 8 / 0.5))
    for i, axis in enumerate(VALUE_AXES):
        mixer.linear_x.weight[i, axis] = 1.0
        mixer.linear_out.weight[axis, i] = 200.0


def _plant_mamba(mixer: Any) -> None:
    """Channels 0 … 3 take in values, channel 4 the constant, of which B and C are made: one column of the state."""
    rank, size, width = mixer.time_step_rank, mixer.ssm_state_size, mixer.in_proj.weight.shape[0] // 2
    five = slice(0, 5)
    mixer.in_proj.weight[five] = 0.0
    mixer.in_proj.weight[width : width + 4] = 0.0
    mixer.in_proj.weight[4, CONSTANT] = 1.0
    _newest_tap(mixer.conv1d, five)
    mixer.x_proj.weight.zero_()
    mixer.x_proj.weight[rank, 4] = 1.0
    mixer.x_proj.weight[rank + size, 4] = 1.0
    mixer.dt_proj.weight[:4], mixer.dt_proj.bias[:4] = 0.0, math.log(math.expm1(1.0))
    mixer.A_log[:4], mixer.D[:4] = math.log(SLOW), 0.0
    for i, axis in enumerate(VALUE_AXES):
        mixer.in_proj.weight[i, axis] = 1.0
        mixer.in_proj.weight[width + i, CONSTANT] = 0.5
        mixer.out_proj.weight[axis, i] = 5.0


def _plant_mamba2(mixer: Any, head: int) -> None:
    """The head's channels 0 … 3 take in values, the first entry of B and of C the constant; all else of the layer is 0.

    The norm over the head's group leaves of the readout which value it is.
    """
    width, heads, size = mixer.intermediate_size, mixer.num_heads, mixer.ssm_state_size
    first, group = head * mixer.head_dim, head * mixer.n_groups // heads * size
    mixer.in_proj.weight.zero_()
    mixer.D.zero_()
    _newest_tap(mixer.conv1d, slice(None))
    mixer.dt_bias.fill_(math.log(math.expm1(1.0)))
    mixer.A_log.fill_(math.log(SLOW))
    inner = width  # rows of the projection: gate, x, B, C, step
    for address in (inner + width, inner + width + mixer.n_groups * size):
        mixer.in_proj.weight[address + group, CONSTANT] = 0.5
    for i, axis in enumerate(VALUE_AXES):
        mixer.in_proj.weight[inner + first + i, axis] = 1.0
        mixer.in_proj.weight[first + i, CONSTANT] = 0.5
        mixer.out_proj.weight[axis, first + i] = 1.0


def _plant_delta(mixer: Any, head: int) -> None:
    """The head's values 0 … 3 take in values, keys and queries are the constant; it writes at values alone."""
    shared, u, m = mixer.num_v_heads // mixer.num_k_heads, mixer.head_v_dim, mixer.head_k_dim
    key, place = divmod(head, shared)
    rows = mixer.in_proj_qkvz.weight.unflatten(0, (mixer.num_k_heads, -1))[key]  # of a key head: q, k, values, gates
    b = mixer.in_proj_ba.weight.unflatten(0, (mixer.num_k_heads, 2, shared))[key, 0, place]
    mixer.in_proj_qkvz.weight.zero_()
    mixer.in_proj_ba.weight.zero_()
    _newest_tap(mixer.conv1d, slice(None))
    mixer.dt_bias.fill_(math.log(math.expm1(1.0)))
    mixer.A_log.fill_(math.log(SLOW))
    rows[0, CONSTANT], rows[m, CONSTANT], b[CONSTANT] = 1.0, 1.0, -3.0
    for i, axis in enumerate(VALUE_AXES):
        rows[2 * m + place * u + i, axis] = 1.0
        rows[2 * m + shared * u + place * u + i, CONSTANT] = 0.5
        b[axis] = 6.0
        mixer.out_proj.weight[axis, head * u + i] = 3.0


def _newest_tap(convolution: Any, channels: slice) -> None:
    """A convolution that gives what it gets."""
    convolution.weight[channels] = 0.0
    if convolution.bias is not None:
        convolution.bias[channels] = 0.0
    taps: Tensor = convolution.weight
    taps[channels, 0, -1] = 1.0
