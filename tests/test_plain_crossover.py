"""Crossover against the plain way: memories exchanged between two runs of the untouched Hugging Face model.

Nothing of hybridlens computes on the plain side but the prompts: the library's own cache is filled by reading either
prompt, whole layers of it change sides, and the model's own forward goes on a token at a time.
"""

from copy import deepcopy

import pytest
import torch
from transformers import DynamicCache

import hybridlens as hl
from analyses import kv_cache

STATES = ("conv1d_state", "recurrent_states")
"""Where RecurrentGemma keeps recurrent memory: on its modules."""


def holders(model, layer):
    """The modules of a layer that hold memory, and the names they hold it under; none where the cache has it."""
    return [(part, name) for part in model.model.layers[layer].modules() for name in STATES if hasattr(part, name)]


def read(model, tokens):
    """What each layer remembers of some tokens: its part of the library's cache, and what its modules hold."""
    for layer in range(len(model.model.layers)):
        for part, name in holders(model, layer):
            setattr(part, name, None)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.tensor([tokens]), past_key_values=cache, use_cache=True)
    held = [[getattr(part, name) for part, name in holders(model, i)] for i in range(len(model.model.layers))]
    return deepcopy([(part, states) for part, states in zip(cache.layers, held, strict=True)])


def answer(lens, memories, last, n=40):
    """Greedy text from what each layer remembers."""
    model, cache = lens.hf_model, DynamicCache(config=lens.hf_model.config)
    said, token = [], last
    for layer, (part, states) in enumerate(deepcopy(memories)):
        cache.layers[layer] = part
        for (module, name), state in zip(holders(model, layer), states, strict=True):
            setattr(module, name, state)
    for _ in range(n):
        with torch.no_grad():
            token = int(model(torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits[0, -1].argmax())
        said.append(token)
        if token in lens.cfg.eos_token_ids:
            break
    return lens.tokenizer.decode(said, skip_special_tokens=True)


@pytest.mark.parametrize("name", ["tiny-recurrentgemma", "tiny-jamba"])
def test_crossed_memories_say_what_the_untouched_model_says_from_them(name):
    """Text for text: nothing exchanged, keys and values, recurrent memory, one attention or recurrent layer, all."""
    lens = hl.load(name)
    pairs = kv_cache.prompt_pairs(lens.tokenizer, [150], [50], kv_cache.needle_pairs(["paper", "code"]))
    cfg, everything = lens.cfg, set(range(lens.cfg.n_layers))
    exchanged = {
        "kv A, conv A, recurrent A": set(),
        "kv B, conv A, recurrent A": set(cfg.attention_layers),
        "kv A, conv B, recurrent B": set(cfg.ssm_layers),
        "kv B, conv B, recurrent B": everything,
        f"only kv of layer {cfg.attention_layers[-1]} B": {cfg.attention_layers[-1]},
        f"only conv and recurrent of layer {cfg.ssm_layers[-1]} B": {cfg.ssm_layers[-1]},
    }
    chosen = [mix for mix in kv_cache.mixes(cfg) if mix.name in exchanged]
    assert len(chosen) == len(exchanged)
    told = kv_cache.crossover(lens, pairs, chosen)
    assert len({cell.text for cell in told.cells}) >= 2 * len(pairs)
    for number, pair in enumerate(pairs):
        a, b = read(lens.hf_model, pair.a[:-1]), read(lens.hf_model, pair.b[:-1])
        for at, mix in enumerate(told.mixes):
            memories = [(b if layer in exchanged[mix.name] else a)[layer] for layer in range(cfg.n_layers)]
            cell = told.cells[at * len(pairs) + number]
            assert (cell.mix, cell.pair) == (mix.name, pair.name)
            assert cell.text == answer(lens, memories, pair.a[-1]), mix.name
