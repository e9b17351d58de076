"""Weights under TransformerLens' names, against what runs of the same model compute with them."""

import copy

import numpy as np
import pytest
import torch
from bounds import FORWARD, LAYER, close
from models import KINDS, ROWS, make, tokens
from transformer_lens import ActivationCache

from hybridlens import HybridLens, HybridLensError
from hybridlens.errors import AbsentError, CheckpointError, InputError, UnknownNameError

FAMILIES = (*KINDS, "zamba2", "olmo_hybrid")
"""One of each kind; shared blocks; norms behind what is written."""


@pytest.fixture(scope="module", params=[family for family in FAMILIES if family in ROWS])
def seen(request):
    """A lens, and everything that a run of it computed."""
    lens = HybridLens(make(request.param))
    with torch.no_grad():
        logits, cache = lens.run_with_cache(tokens(2, 7))
    return lens, cache, logits


def normed(block, cache, layer: int, part: str):
    """What a part reads in the run: the stream behind its norm, weight included."""
    point = f"blocks.{layer}.{block.read_point(part)}"
    norm = block.branches[block.number_of(part) - 1].norm
    value = cache[point]
    return value if norm is None else norm.norm.weighted(value, torch.float32)


def by_head(x, weight, bias):
    return torch.einsum("bpd,hde->bphe", x, weight) + bias


def test_heads_of_a_layer(seen):
    """What each head reads, from the stream as the run had it; a transposed or misplaced map differs at once."""
    lens, cache, _ = seen
    for layer in lens.attn_layers:
        block, at = lens.blocks[layer], f"blocks.{layer}.attn"
        attn, cfg = block.attn, lens.cfg.attention(layer)
        x = normed(block, cache, layer, "attn")
        close(by_head(x, attn.W_Q, attn.b_Q), cache[f"{at}.hook_q"], LAYER)
        shared = cfg.n_heads // cfg.n_kv_heads
        if cfg.latent is None:
            for name in ("k", "v"):
                made = by_head(x, getattr(attn, f"W_{name.upper()}"), getattr(attn, f"b_{name.upper()}"))
                close(made, cache[f"{at}.hook_{name}"].repeat_interleave(shared, dim=2), LAYER)
        if attn.parts.packed_gate:
            close(by_head(x, attn.W_gate, attn.b_gate).sigmoid(), cache[f"{at}.hook_gate"], LAYER)
        if block.branches[block.number_of("attn") - 1].norm_after is None:
            z = cache[f"{at}.{attn.head_writes.point.removeprefix('attn.')}"]
            written = torch.einsum("bphe,hed->bpd", z, attn.W_O) + attn.b_O
            close(written, cache[f"blocks.{layer}.hook_attn_out"], LAYER)


def test_neurons_and_channels_of_a_layer(seen):
    lens, cache, _ = seen
    for layer, block in enumerate(lens.blocks):
        has = lens.cfg.layers[layer]
        if layer in lens.dense_mlp_layers:
            x, at, mlp = normed(block, cache, layer, "mlp"), f"blocks.{layer}.mlp", block.mlp
            gated = has.mlp.gated
            close(x @ mlp.W_in + mlp.b_in, cache[f"{at}.hook_pre_linear" if gated else f"{at}.hook_pre"], LAYER)
            if gated:
                close(x @ mlp.W_gate + mlp.b_gate, cache[f"{at}.hook_pre"], LAYER)
            if block.branches[block.number_of("mlp") - 1].norm_after is None:
                close(cache[f"{at}.hook_post"] @ mlp.W_out + mlp.b_out, cache[f"blocks.{layer}.hook_mlp_out"], LAYER)
        if has.ssm is not None and not has.shared:
            parts = block.ssm.linear_parts(lambda module, name: module.get_parameter(name).detach())
            entered = cache[f"blocks.{layer}.ssm.{parts.source}"].flatten(2)
            entered = entered[..., parts.written] if parts.source == "hook_in" else entered
            x = normed(block, cache, layer, "ssm")
            made = x @ block.ssm.W_in + block.ssm.b_in
            close(made if parts.convolved else parts.activation(made), entered, LAYER)


def test_stacks_are_the_layers(seen):
    lens, _, _ = seen
    weights = lens.weights()
    if not lens.attn_layers:
        with pytest.raises(AbsentError, match="no layer of this"):
            _ = lens.W_Q
        assert lens.all_head_labels == []
    else:
        latent = lens.cfg.attention(lens.attn_layers[0]).latent is not None
        for name in (
            ("W_Q", "W_O", "b_Q", "b_O") if latent else ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O")
        ):
            stack = getattr(lens, name)
            for place, layer in enumerate(lens.attn_layers):
                assert torch.equal(stack[place], getattr(lens.blocks[layer].attn, name))
        if not latent:
            i, h = len(lens.attn_layers) - 1, lens.cfg.n_heads - 1
            assert torch.equal(lens.OV[i, h].AB, lens.W_V[i, h] @ lens.W_O[i, h])
            close(lens.QK[i, h].AB, lens.W_Q[i, h] @ lens.W_K[i, h].T)
        assert len(lens.all_head_labels) == len(lens.attn_layers) * lens.cfg.n_heads
        assert lens.all_head_labels() == lens.all_head_labels
    if lens.dense_mlp_layers:
        assert torch.equal(lens.W_out[-1], lens.blocks[lens.dense_mlp_layers[-1]].mlp.W_out)
        assert weights.W_in.shape == (len(lens.dense_mlp_layers), lens.cfg.d_model, lens.cfg.d_mlp)


def test_embedding_and_unembedding(seen):
    """`W_E` gives `hook_embed`, `W_U` uncapped logits; `unembed` the model's logits with cap and multiplier."""
    lens, cache, logits = seen
    ids = tokens(2, 7)
    close(lens.W_E[ids], cache["hook_embed"])
    close(lens.embed(ids), cache["hook_embed"])
    last = f"blocks.{lens.cfg.n_layers - 1}.hook_resid_post"
    x = lens.ln_final(cache[last])
    close(lens.unembed(x), logits, LAYER)
    close(lens.unembed(x[0, 1]), logits[0, 1], LAYER)
    uncapped = lens.network.uncapped(x)
    close(x @ lens.W_U + lens.b_U, uncapped, LAYER)
    close(lens.adapter.apply_output_logits_transform(uncapped), logits, LAYER)
    over_scale = cache["ln_final.hook_normalized"]
    close(over_scale @ lens.weights(folded=True).W_U, uncapped, LAYER)
    along = (x * lens.tokens_to_residual_directions(ids)).sum(-1)
    close(along, uncapped.gather(-1, ids[..., None])[..., 0], LAYER)
    assert torch.equal(lens.tokens_to_residual_directions(5), lens.tokens_to_residual_directions(torch.tensor([5]))[0])


def test_an_unembedding_of_its_own_is_read_though_the_configuration_ties_it():
    model = make("gemma2")
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(torch.randn_like(head.weight))
    lens = HybridLens(model)
    assert model.config.tie_word_embeddings
    assert not lens.cfg.tie_word_embeddings
    for folded in (False, True):
        rows = lens.weights(folded).W_U.T / (lens.ln_final.norm.module.weight + 1 if folded else 1)
        close(rows, head.weight, LAYER)
    assert torch.equal(lens.W_E, lens.embed(torch.arange(lens.cfg.d_vocab)))
    assert torch.equal(lens.tokens_to_residual_directions(5), head.weight[5])


def test_norms_are_folded_when_asked(seen):
    """Over the stream without its norm's weight, folded maps give what the run had."""
    lens, cache, _ = seen
    weights = lens.weights(folded=True)
    for layer in lens.attn_layers:
        block = lens.blocks[layer]
        if block.branches[block.number_of("attn") - 1].norm is not None:
            x = cache[f"blocks.{layer}.{block.read_point('attn')}"]
            held = weights.attention(layer)
            b_Q = held.b_Q if held.b_Q is not None else 0.0
            close(by_head(x, held.W_Q, b_Q), cache[f"blocks.{layer}.attn.hook_q"], LAYER)
    for layer in lens.dense_mlp_layers:
        block = lens.blocks[layer]
        if block.branches[block.number_of("mlp") - 1].norm is not None:
            x = cache[f"blocks.{layer}.{block.read_point('mlp')}"]
            place = lens.dense_mlp_layers.index(layer)
            linear = "hook_pre_linear" if lens.cfg.layers[layer].mlp.gated else "hook_pre"
            close(x @ weights.W_in[place] + weights.b_in[place], cache[f"blocks.{layer}.mlp.{linear}"], LAYER)


@pytest.mark.parametrize("family", ["llama", "mamba", "zamba2", "lfm2_moe"])
def test_biases_add_up(family):
    """With every read-out set to 0 in a run, what is left of the stream are its token and the biases."""
    lens = HybridLens(make(family))
    ends = [p for p in lens.hook_points if p.endswith(("attn.hook_z", "mlp.hook_post", "ssm.hook_gate"))]
    ends += [p for p in lens.hook_points if p.endswith("hook_expert_weights")]

    def silent(x, hook):
        return torch.zeros_like(x)

    kept = {}
    names = [f"blocks.{i}.hook_resid_{w}" for i in range(lens.cfg.n_layers) for w in ("post", "mid")]
    names = [name for name in names if name in lens.hook_points] + ["hook_embed"]
    with torch.no_grad(), lens.hooks([(ends, silent), (names, lambda x, hook: kept.update({hook.name: x}))]):
        lens(tokens(1, 4))
    total = lens.accumulated_bias(lens.cfg.n_layers)
    assert family == "zamba2" or float(total.abs().max()) > 0.01
    for layer in range(lens.cfg.n_layers):
        left = kept[f"blocks.{layer}.hook_resid_post"] - kept["hook_embed"]
        close(
            lens.accumulated_bias(layer + 1).expand_as(left), left, FORWARD, scale=float(kept["hook_embed"].abs().max())
        )
        if f"blocks.{layer}.hook_resid_mid" in kept:
            left = kept[f"blocks.{layer}.hook_resid_mid"] - kept["hook_embed"]
            made = lens.accumulated_bias(layer, mlp_input=True).expand_as(left)
            close(made, left, FORWARD, scale=float(kept["hook_embed"].abs().max()))
    assert torch.equal(lens.accumulated_bias(0), torch.zeros(lens.cfg.d_model))
    with pytest.raises(InputError, match="expected 0"):
        lens.accumulated_bias(lens.cfg.n_layers, mlp_input=True)


def test_composition_scores_are_ratios_of_norms():
    """The products are made dense and measured one by one; heads are never composed with later ones or themselves."""
    lens = HybridLens(make("qwen3"))
    weights = lens.weights(folded=True)
    for mode in ("Q", "K", "V"):
        found = lens.all_composition_scores(mode)
        assert found.layer_indices == [0, 1, 2]
        assert found.head_labels[5] == "L1H1"
        for (a, h), (b, i) in (((0, 1), (1, 3)), ((0, 2), (2, 0)), ((1, 0), (2, 3))):
            left = weights.OV[a, h].AB
            read = {"Q": weights.QK[b, i].AB, "K": weights.QK[b, i].AB.T, "V": weights.OV[b, i].AB}[mode]
            expected = (left @ read).norm() / left.norm() / read.norm()
            close(found.scores[a, h, b, i], expected, LAYER)
        assert float(found.scores[1, :, 0].abs().max()) == 0.0 == float(found.scores[2, :, 2].abs().max())
    with pytest.raises(UnknownNameError, match="expected one of Q, K, V"):
        lens.all_composition_scores("R")


@pytest.mark.parametrize("folded", [False, True])
def test_nothing_is_written_to_what_is_handed_out(folded):
    lens = HybridLens(make("jamba"))
    before = copy.deepcopy(lens.hf_model.state_dict())
    weights = lens.weights(folded=folded)

    def inside(weight):
        weight[0] = 0

    for handed in (
        weights.W_E,
        weights.W_U,
        weights.W_Q,
        weights.OV.A,
        lens.blocks[1].attn.W_O,
        lens.blocks[0].ssm.W_in,
    ):
        for write in (inside, torch.Tensor.zero_, lambda w: w.T.mul_(2), lambda w: torch.exp(w, out=w)):
            with pytest.raises(InputError, match=r"clone\(\) it for a copy"):
                write(handed)
        for array in (handed.numpy(), handed[0].numpy(), np.asarray(handed), handed.mT.numpy()):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 0
        handed.numpy().copy()[0] = 0
        (handed + 0).numpy()[0] = 0
        own = handed.clone()
        own.zero_().numpy()[0] = 1
        assert type(handed @ handed.mT) is torch.Tensor
    assert all(torch.equal(before[name], value) for name, value in lens.hf_model.state_dict().items())
    lens.hf_model.model.layers[1].self_attn.q_proj.weight.data.mul_(2)
    assert torch.equal(
        lens.blocks[1].attn.W_Q.flatten(),
        2 * before["model.layers.1.self_attn.q_proj.weight"].view(4, 8, 32).mT.flatten(),
    )


@pytest.mark.parametrize(
    ("family", "ask", "said"),
    [
        ("jamba", lambda lens: lens.W_pos, "no learned positions; recurrences and masks alone"),
        ("qwen3", lambda lens: lens.W_pos, "heads turn queries and keys"),
        ("jamba", lambda lens: lens.blocks[1].mlp.W_in, "a mixture of 4 experts"),
        ("mamba2", lambda lens: lens.W_in, "no layer of this mamba2 model has a dense MLP$"),
        ("zamba2", lambda lens: lens.OV, "no layer of this zamba2 model has heads of their own"),
        ("kimi_linear", lambda lens: lens.W_K, "made of latents through a norm"),
        ("kimi_linear", lambda lens: lens.blocks[1].attn.W_V, "made of latents through a norm"),
        ("jamba", lambda lens: lens.blocks[1].attn.W_gate, "is not gated"),
        ("jamba", lambda lens: lens.cfg.n_params, r"type lens\.n_parameters \(has the counts\)"),
        ("jamba", lambda lens: lens.network.cfg.eps, "ask lens.cfg"),
    ],
)
def test_what_is_absent_is_said(family, ask, said):
    """In one line, of a class that makes `hasattr` False, as TransformerLens' tools ask."""
    lens = HybridLens(make(family))
    with pytest.raises(AbsentError, match=said) as caught:
        ask(lens)
    assert isinstance(caught.value, AttributeError)
    assert isinstance(caught.value, HybridLensError)
    assert "\n" not in str(caught.value)
    assert not hasattr(lens, "W_pos")
    assert not hasattr(lens.cfg, "seed")
    with pytest.raises(AttributeError, match="no attribute 'W_X'"):
        _ = lens.blocks[0].mlp.W_X if lens.cfg.layers[0].mlp else lens.blocks[0].ssm.W_X


def test_folded_latents_have_maps():
    lens = HybridLens(make("kimi_linear"))
    held = lens.weights(folded=True)
    assert held.W_K.shape == (1, 4, 32, 9)
    assert held.OV.shape == (1, 4, 32, 32)


def test_adapters_are_refused_by_name():
    """An adapter's base weights are not the map that runs: handing them out would be wrong without a word."""
    peft = pytest.importorskip("peft")
    model = make("jamba")
    config = peft.LoraConfig(target_modules=["q_proj", "in_proj"], r=2, init_lora_weights=False)
    lens = HybridLens(peft.get_peft_model(model, config).base_model.model)
    for ask in (lambda: lens.blocks[1].attn.W_Q, lambda: lens.blocks[0].ssm.W_in, lambda: lens.W_Q):
        with pytest.raises(CheckpointError, match=r"merge the adapter|not one matrix|no weight"):
            ask()
    assert lens.blocks[1].attn.W_K.shape == (4, 32, 8)


def test_adapters_without_effect_show_what_they_stand_around(peft_model):
    """Merged ones have their part in it, those switched off have none; merged and switched off, they take it out."""
    lens, adapted, merged, bare = peft_model
    asked = (
        lambda lens: lens.W_Q, lambda lens: lens.blocks[0].ssm.W_in, lambda lens: lens.W_E,
        lambda lens: lens.blocks[1].attn.W_Q, lambda lens: lens.weights(folded=True).W_O,
        lambda lens: lens.weights().recurrent(0).parts.W_in,
    )  # fmt: skip
    adapted.merge_adapter()
    for ask in asked:
        close(ask(lens), ask(merged))
        assert not torch.equal(ask(lens), ask(bare))
    with adapted.disable_adapter():
        for ask in asked:
            with pytest.raises(CheckpointError, match=r"merge_adapter\(\), or model.merge_and_unload"):
                ask(lens)
        lens([[5, 6]])  # which takes it out
        for ask in asked:
            close(ask(lens), ask(bare), scale=float(ask(merged).abs().max()))  # rounded when it was put in
    for ask in asked:
        with pytest.raises(CheckpointError, match=r"merge_adapter\(\), or model.merge_and_unload"):
            ask(lens)


@pytest.fixture
def peft_model():
    """A lens on a model with an adapter, the PEFT model, and lenses on the model with the adapter in it and without."""
    peft = pytest.importorskip("peft")
    model = make("jamba")
    bare = HybridLens(copy.deepcopy(model))
    modules = ["q_proj", "o_proj", "in_proj", "embed_tokens"]
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=modules, r=2, init_lora_weights=False)).eval()
    lens = HybridLens(adapted.base_model.model)
    return lens, adapted, HybridLens(copy.deepcopy(adapted).merge_and_unload()), bare


def test_blocks_and_parameters_by_name(seen):
    lens, cache, _ = seen
    assert isinstance(cache, ActivationCache)
    assert [i for i, _ in lens.blocks_with("attn")] == list(lens.cfg.attention_layers)
    named = lens.tl_parameters()
    assert named["unembed.W_U"].shape == (lens.cfg.d_model, lens.cfg.d_vocab)
    assert {f"blocks.{i}.attn.W_V" for i in lens.attn_layers} == {n for n in named if n.endswith("attn.W_V")}
    lacking = next(i for i in range(lens.cfg.n_layers + 1) if i not in lens.attn_layers)
    having = ", ".join(map(str, lens.attn_layers))
    with pytest.raises(KeyError) as caught:
        _ = named[f"blocks.{lacking}.attn.W_V"]
    assert f"no parameter 'blocks.{lacking}.attn.W_V'" in str(caught.value)
    assert not having or f": layers with attn.W_V are {having}; see" in str(caught.value)


def test_configuration_under_their_names(seen):
    lens, _, _ = seen
    cfg, config = lens.cfg, lens.hf_model.config
    assert cfg.d_vocab_out == cfg.d_vocab
    assert cfg.n_key_value_heads == cfg.n_kv_heads
    assert cfg.original_architecture == type(lens.hf_model).__name__
    stated = next(getattr(config, n) for n in ("rms_norm_eps", "layer_norm_epsilon", "norm_eps") if hasattr(config, n))
    assert cfg.eps == stated
    assert cfg.tie_word_embeddings == config.tie_word_embeddings
    assert cfg.tokenizer_name is None
    assert cfg.default_prepend_bos is False
    offset = type(lens.hf_model).__name__.startswith(("RecurrentGemma", "Qwen3Next"))
    assert cfg.rmsnorm_uses_offset is offset
    turned = any(hasattr(block, "attn") and hasattr(block.attn, "hook_rot_q") for block in lens.blocks)
    assert cfg.positional_embedding_type == ("rotary" if turned else "none")
    assert copy.deepcopy(cfg) == cfg
