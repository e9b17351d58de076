"""The stream taken apart by a cache: what is said to be added is what the untouched model adds, and it adds up.

References are the Hugging Face model's own modules, called or hooked by themselves, and plain loops in float64. All
weights of the random models, biases, norms and multipliers among them, are away from their defaults, so that a term
left out, counted twice, not scaled or given to a neighbour is off by far more than rounding.
"""

from functools import cache

import pytest
import torch
from bounds import FORWARD, LAYER, close
from models import make_calm, tokens

import hybridlens as hl
from hybridlens.errors import InputError, NotCachedError

LENGTH = 9
FAMILIES = (
    "recurrentgemma", "jamba", "mamba2", "falcon_h1", "qwen3_next", "gemma2", "granitemoehybrid", "nemotron_h",
    "kimi_linear", "olmo_hybrid",
)  # fmt: skip
"""Whole recurrences, experts, heads of recurrences, both mixers, a delta rule, norms behind parts, multipliers, layers
of one part, latent attention, layers without a norm before."""
LABELS = {
    "recurrentgemma": "embed 0_ssm_out 0_mlp_out 1_ssm_out 1_mlp_out 2_attn_out 2_mlp_out 3_ssm_out 3_mlp_out",
    "mamba2": "embed 0_ssm_out 1_ssm_out 2_ssm_out",
    "falcon_h1": "embed " + " ".join(f"{i}_ssm_out {i}_attn_out {i}_mlp_out" for i in range(3)),
    "nemotron_h": "embed 0_ssm_out 1_attn_out 2_ssm_out 3_mlp_out 4_mlp_out",
}


@cache
def run(family):
    """A lens, its prompts' logits and its cache."""
    with torch.no_grad():
        lens = hl.HybridLens(make_calm(family, 3))
        return lens, *lens.run_with_cache(tokens(2, LENGTH, 3))


def size(terms):
    """Of what was added up."""
    return float(terms.abs().sum(dim=0).max())


def adds_up(terms, whole):
    close(terms.sum(dim=0), whole, FORWARD, scale=size(terms))


def seen(model, module, prompt, what=lambda given, out: out):
    """What a module of the untouched model gives, or was given."""
    kept = []
    handle = module.register_forward_hook(lambda module, given, out: kept.append(what(given, out)))
    with torch.no_grad():
        model(prompt, use_cache=False)
    handle.remove()
    return kept[0][0] if isinstance(kept[0], tuple) else kept[0]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_parts_add_up_to_the_stream_that_each_layer_reads(family):
    """Before every layer and every MLP; the labels are those of the layers' parts, in order."""
    lens, _, found = run(family)
    n = lens.cfg.n_layers
    for layer in range(n + 1):
        whole = found["resid_post", -1] if layer == n else found["resid_pre", layer]
        adds_up(found.decompose_resid(layer), whole)
        if layer < n and f"blocks.{layer}.hook_resid_mid" in lens.hook_points:
            adds_up(found.decompose_resid(layer, mlp_input=True), found["resid_mid", layer])
    stack, labels = found.decompose_resid(return_labels=True)
    assert labels == LABELS.get(family, " ".join(labels)).split()
    assert len(stack) == len(labels) == 1 + sum(bool(part) for i in lens.cfg.layers for part in (i.attn, i.ssm, i.mlp))
    for mode in ("attn", "ssm", "mlp"):
        some, names = found.decompose_resid(mode=mode, incl_embeds=False, return_labels=True)
        assert names == [label for label in labels if label.endswith(f"_{mode}_out")]
        assert some.shape == (len(names), 2, LENGTH, lens.cfg.d_model)
    torch.testing.assert_close(found.decompose_resid(-2), found.decompose_resid(n - 1), rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_everything_adds_up_to_what_each_layer_reads_through_its_norm(family):
    """Heads, neurons, experts, wholes, biases and the embedding; along directions too."""
    lens, _, found = run(family)
    n, onto = lens.cfg.n_layers, torch.randn(lens.cfg.d_model, 3)
    for layer, mlp_input in [(i, m) for i in range(n + 1) for m in (False, True)]:
        block = None if layer == n else lens.blocks[layer]
        if mlp_input and (block is None or "mlp" not in block.parts):
            continue
        name, number = "ln_final", 0 if block is None else block.number_of("mlp") if mlp_input else 1
        if block is not None:
            name = f"blocks.{layer}.ln{number}"
            plain = found["resid_mid", layer] if mlp_input and number == 2 else found["resid_pre", layer]
            adds_up(found.get_full_resid_decomposition(layer, mlp_input), plain)
            if block.branches[number - 1].norm is None:
                same = found.apply_ln_to_stack(plain[None], layer, mlp_input)
                assert torch.equal(same[0], plain)
                continue
        norm = lens.network.get_submodule(name).norm
        read = norm.weighted(found[f"{name}.hook_normalized"], torch.float32)
        terms = found.get_full_resid_decomposition(layer, mlp_input, apply_ln=True)
        adds_up(terms, read)
        along = found.get_full_resid_decomposition(layer, mlp_input, apply_ln=True, project_output_onto=onto)
        close(along, terms @ onto, FORWARD, scale=size(terms))
    coarse, labels = found.get_full_resid_decomposition(expand_neurons=False, return_labels=True)
    adds_up(coarse, found["resid_post", -1])
    assert labels[-2:] == ["embed", "bias"] or labels[-1].endswith("_ssm_out")
    single = found.get_full_resid_decomposition(expand_neurons=False, project_output_onto=onto[:, 0])
    close(single, coarse @ onto[:, 0], FORWARD, scale=size(coarse))


@torch.no_grad()
def test_what_is_labelled_is_what_the_untouched_model_adds():
    """Gemma 2: the norm behind the module. Granite: the module's output times the residual multiplier."""
    prompt = tokens(2, LENGTH, 3)
    lens, _, found = run("gemma2")
    stack, labels = found.decompose_resid(return_labels=True)
    by_name = dict(zip(labels, stack, strict=True))
    for layer, hf in enumerate(lens.hf_model.model.layers):
        for part, module in (("attn", hf.post_attention_layernorm), ("mlp", hf.post_feedforward_layernorm)):
            close(by_name[f"{layer}_{part}_out"], seen(lens.hf_model, module, prompt), LAYER)
    lens, _, found = run("granitemoehybrid")
    model, by = lens.hf_model, lens.hf_model.config.residual_multiplier
    stack, labels = found.decompose_resid(return_labels=True)
    by_name = dict(zip(labels, stack, strict=True))
    assert by != 1.0
    close(by_name["0_ssm_out"], seen(model, model.model.layers[0].mamba, prompt) * by, LAYER)
    close(by_name["1_attn_out"], seen(model, model.model.layers[1].self_attn, prompt) * by, LAYER)
    close(by_name["embed"], model.get_input_embeddings()(prompt) * model.config.embedding_multiplier, LAYER)


@torch.no_grad()
def test_each_head_adds_its_own_columns_of_the_output_projection():
    """In float64, norms behind the projection by hand: Gemma 2's attention; Mamba-2's and Qwen3-Next's recurrences."""
    lens, _, found = run("gemma2")
    stack, labels = found.stack_head_results(return_labels=True)
    assert labels == [f"L{layer}H{i}" for layer in range(3) for i in range(4)]
    for layer, hf in enumerate(lens.hf_model.model.layers):
        z, w = found["z", layer].double(), hf.self_attn.o_proj.weight.double()
        out = z.flatten(-2) @ w.T
        norm = hf.post_attention_layernorm
        scale = (out.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt()
        for i in range(4):
            alone = z[:, :, i] @ w[:, i * 12 : (i + 1) * 12].T
            close(stack[4 * layer + i].double(), alone / scale * (1 + norm.weight.double()), LAYER, dtype=torch.float32)
    for family, out in (("mamba2", "mixer.out_proj"), ("qwen3_next", "linear_attn.out_proj")):
        lens, _, found = run(family)
        stack, labels = found.stack_head_results(mode="ssm", return_labels=True)
        stem = lens.hf_model.backbone if family == "mamba2" else lens.hf_model.model
        wanted, names = [], []
        for layer in lens.cfg.ssm_layers:
            weight, heads = stem.layers[layer].get_submodule(out).weight.double(), lens.cfg.layers[layer].ssm.n_heads
            parts = found["normed", layer].double().unflatten(-1, (heads, -1))
            wanted += [parts[:, :, i] @ weight.unflatten(1, (heads, -1))[:, i].T for i in range(heads)]
            names += [f"L{layer}S{i}" for i in range(heads)]
        close(stack.double(), torch.stack(wanted), LAYER, dtype=torch.float32)
        assert labels == names


@torch.no_grad()
def test_heads_and_their_remainder_before_a_layer():
    lens, _, found = run("jamba")
    stack, labels = found.stack_head_results(2, True, incl_remainder=True)
    assert labels == ["L1H0", "L1H1", "L1H2", "L1H3", "remainder"]
    adds_up(stack, found["resid_pre", 2])
    none, labels = found.stack_head_results(1, return_labels=True)
    assert none.shape == (0, 2, LENGTH, lens.cfg.d_model)
    assert labels == []
    whole = found.stack_head_results(0, incl_remainder=True)
    assert torch.equal(whole[0], found["resid_post", -1])  # as TransformerLens has it
    with pytest.raises(InputError, match=r"layer=0 with incl_remainder stands for the whole stream"):
        found.stack_head_results(0, incl_remainder=True, apply_ln=True)


@pytest.mark.parametrize("family", ["jamba", "falcon_h1", "gemma2"])
@torch.no_grad()
def test_results_of_heads_are_computed_where_they_were_not_kept(family):
    """From what the output projection read, to the last bits what the run had at `hook_result`."""
    lens, _, full = run(family)
    _, found = lens.run_with_cache(tokens(2, LENGTH, 3), lambda name: not name.endswith("hook_result"))
    names = [name for name in full if name.endswith("hook_result")]
    assert names
    assert not any(name in found for name in names)
    close(found.stack_head_results(), full.stack_head_results(), LAYER)
    assert not any(name in found for name in names), "a stack leaves the cache as it is"
    found.compute_head_results()
    for name in names:
        close(found[name], full[name], LAYER)
    kept = found[names[0]]
    found.compute_head_results()
    assert found[names[0]] is kept


@torch.no_grad()
def test_each_neuron_adds_its_row_of_the_last_map():
    """Falcon-H1's multipliers, Gemma 2's norm behind; a mixture has no neurons, and says so."""
    lens, _, found = run("falcon_h1")
    down = lens.hf_model.model.layers[1].feed_forward.down_proj
    by = lens.hf_model.config.mlp_multipliers[1]
    rows = found["post", 1].double()[..., None] * down.weight.T.double() * by
    close(found.get_neuron_results(1).double(), rows, LAYER, dtype=torch.float32)
    one = found.get_neuron_results(1, neuron_slice=3, pos_slice=-1)
    close(one.double(), rows[:, -1, 3], LAYER, dtype=torch.float32)
    onto = torch.randn(lens.cfg.d_model)
    along = found.get_neuron_results(-2, [5, 0], (2, 4), onto)
    close(along.double(), rows[:, 2:4, [5, 0]] @ onto.double(), LAYER, dtype=torch.float32)
    lens, _, found = run("gemma2")
    stack, labels = found.stack_neuron_results(neuron_slice=[4, 7], incl_remainder=True, return_labels=True)
    assert labels == ["L0N4", "L0N7", "L1N4", "L1N7", "L2N4", "L2N7", "remainder"]
    adds_up(stack, found["resid_post", -1])
    hf = lens.hf_model.model.layers[2]
    norm, w = hf.post_feedforward_layernorm, hf.mlp.down_proj.weight
    out = found["post", 2].double() @ w.T.double()
    scale = (out.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt()
    alone = found["post", 2].double()[..., 7, None] * w[:, 7].double() / scale * (1 + norm.weight.double())
    close(stack[5].double(), alone, LAYER, dtype=torch.float32)


@torch.no_grad()
def test_experts_are_told_apart():
    """Each by the untouched module with all other weights of the router at 0, an idle one adding nothing."""
    lens, _, found = run("jamba")
    stack, labels = found.get_full_resid_decomposition(2, return_labels=True)
    hf = lens.hf_model.model.layers[1]
    x = hf.pre_ff_layernorm(found["resid_mid", 1]).flatten(0, 1)
    indices, weights = (found[f"blocks.1.mlp.hook_expert_{what}"].flatten(0, 1) for what in ("indices", "weights"))
    for expert in range(4):
        alone = hf.feed_forward.experts(x, indices, weights * (indices == expert)).unflatten(0, (2, LENGTH))
        term = stack[labels.index(f"L1E{expert}")]
        close(term, alone, LAYER)
        assert (term.flatten(0, 1)[~(indices == expert).any(dim=1)] == 0).all()
    _, _, found = run("qwen3_next")
    _, labels = found.get_full_resid_decomposition(2, return_labels=True)
    assert [label for label in labels if label.startswith("L1") and label[2] in "E_"] == [
        "L1E0", "L1E1", "L1E2", "L1E3", "L1_shared_expert",
    ]  # fmt: skip


@torch.no_grad()
def test_adapters_on_last_maps_are_gone_through():
    """LoRA on the maps that heads and neurons write through, none of it 0: the sums are those of the adapted model."""
    peft = pytest.importorskip("peft")
    lens = hl.HybridLens(make_calm("llama", 3))
    _, plain = lens.run_with_cache(tokens(2, LENGTH, 3))
    config = peft.LoraConfig(target_modules=["o_proj", "down_proj"], init_lora_weights=False)
    peft.get_peft_model(lens.hf_model, config).eval()
    _, found = lens.run_with_cache(tokens(2, LENGTH, 3), lambda name: not name.endswith("hook_result"))
    adds_up(found.get_full_resid_decomposition(), found["resid_post", -1])
    assert float((found["resid_post", -1] - plain["resid_post", -1]).abs().max()) > 1e-2
    down = lens.hf_model.model.layers[0].mlp.down_proj
    one = torch.nn.functional.one_hot(torch.tensor(6), 40).float()
    row = down(one) - down(torch.zeros(40))
    close(found.get_neuron_results(0, [6])[..., 0, :], found["post", 0][..., 6, None] * row, LAYER)


@torch.no_grad()
def test_streams_layer_by_layer():
    lens, _, found = run("nemotron_h")
    stack, labels = found.accumulated_resid(incl_mid=True, return_labels=True)
    assert labels == ["0_pre", "1_pre", "2_pre", "3_pre", "4_pre", "final_post"], "no layer has mixers and an MLP"
    lens, _, found = run("recurrentgemma")
    stack, labels = found.accumulated_resid(2, incl_mid=True, mlp_input=True, return_labels=True)
    assert labels == ["0_pre", "0_mid", "1_pre", "1_mid", "2_pre", "2_mid"]
    assert torch.equal(stack[-1], found["resid_mid", 2])
    last = found.accumulated_resid(apply_ln=True)
    norm = lens.hf_model.model.final_norm
    for entry, resid in zip(last, found.accumulated_resid(), strict=True):
        close(entry, norm(resid), LAYER)
    middle = found.accumulated_resid(2, apply_ln=True)[-1]
    close(middle, lens.hf_model.model.layers[2].temporal_pre_norm(found["resid_pre", 2]), LAYER)


@torch.no_grad()
def test_what_cannot_be_taken_apart_is_refused():
    lens = hl.HybridLens(make_calm("minimax", 3))
    _, found = lens.run_with_cache(tokens(1, 4, 3))
    sums = (found.decompose_resid, found.get_full_resid_decomposition, found.stack_head_results)
    for method in (*sums, found.stack_neuron_results):
        with pytest.raises(InputError, match=r"needs a residual stream that is a sum of writes, but in every layer"):
            method()
    assert len(found.accumulated_resid()) == 4
    lens = hl.HybridLens(make_calm("zamba2", 3))
    _, found = lens.run_with_cache(tokens(1, 4, 3))
    adds_up(found.get_full_resid_decomposition(), found["resid_post", -1])
    with pytest.raises(InputError, match=r"at layer 1, whose norm reads a shared block's output beside the stream"):
        found.decompose_resid(1, apply_ln=True)
    lens, _, found = run("jamba")
    with pytest.raises(InputError, match=r"layer 1 is a mixture of 4 experts, whose neurons are at no hook point"):
        found.get_neuron_results(1)
    with pytest.raises(InputError, match=r"neuron_slice \(of layer 0\) = \[40\] given, but there are 0\.\.39"):
        found.stack_neuron_results(neuron_slice=40)
    with pytest.raises(InputError, match=r"layer 5 given, expected 0\.\.4, where 4, -1 and None stand for"):
        found.decompose_resid(5)
    with pytest.raises(InputError, match=r"mlp_input=True was given with the unembedding, which has no such"):
        found.accumulated_resid(mlp_input=True)
    with pytest.raises(hl.HybridLensError, match=r"mode 'heads' does not exist.*attn, ssm, mlp"):
        found.decompose_resid(mode="heads")
    _, _, found = run("mamba2")
    with pytest.raises(InputError, match=r"layer 0 has no MLP that writes to the stream; no layer has a dense MLP"):
        found.stack_neuron_results()
    with pytest.raises(InputError, match=r"no attn of this mamba2 model writes to the stream by heads"):
        found.stack_head_results(mode="attn")


def test_a_partial_cache_says_what_it_lacks():
    lens, _, _ = run("jamba")
    _, found = lens.run_with_cache(tokens(1, 4, 3), ["blocks.0.hook_resid_pre", "blocks.1.attn.hook_z"])
    for method, first in (
        (found.decompose_resid, "decompose_resid needs hook_embed, blocks.0.hook_ssm_out, blocks.0.hook_mlp_out and"),
        (found.get_full_resid_decomposition, "get_full_resid_decomposition needs hook_embed, "),
        (found.stack_neuron_results, "what neurons added needs blocks.0.mlp.hook_post, blocks.2.mlp.hook_post"),
        (found.accumulated_resid, "accumulated_resid needs blocks.1.hook_resid_pre"),
        (lambda: found.stack_head_results(apply_ln=True), "apply_ln needs ln_final.hook_scale"),
        (found.compute_ssm_state, "compute_ssm_state needs blocks.0.ssm.hook_state, blocks.2.ssm.hook_state"),
    ):
        with pytest.raises(NotCachedError) as caught:
            method()
        line = str(caught.value)
        assert line.startswith(first)
        assert "which this cache does not hold; run_with_cache keeps them if names_filter names them" in line
    assert found.stack_head_results().shape == (4, 1, 4, lens.cfg.d_model)
