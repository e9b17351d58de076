"""Shared blocks (Zamba, Zamba2): what they feed, what is no write to the stream, what refuses them; Zamba2's variants.

What Zamba alone has is in `test_zamba`.
"""

import json
import re

import pytest
import torch
from bounds import FORWARD, apart, close
from models import make, tokens
from safetensors.torch import load_file

import hybridlens as hl
from analyses.circuits import circuits
from analyses.patching.direct import direct_logit_attribution
from analyses.patching.edges import edge_attribution
from analyses.patching.metrics import LogitDifference
from analyses.patching.paths import path_patch
from analyses.patching.snapshot import Snapshot
from analyses.patching.writers import Reader, Writer, writers_of
from hybridlens.errors import CheckpointError, InputError
from hybridlens.families import family_for
from hybridlens.loading import read_config
from hybridlens.weights import Weights

VARIANTS = {
    "as the small model": {},
    "one block, no rotary, no adapters of attention": {
        "num_mem_blocks": 1, "use_mem_rope": False, "use_shared_attention_adapter": False, "num_key_value_heads": 2,
    },
    "a block to each layer, untied, without biases": {
        "num_mem_blocks": 3, "tie_word_embeddings": False, "add_bias_linear": False, "hidden_act": "gelu_pytorch_tanh",
    },
    "recurrent layers alone": {"layers_block_type": ["mamba"] * 4},
}  # fmt: skip


HOMES = {"zamba": {"1"}, "zamba2": {"1", "2"}}
"""Layers under whose names a file holds a shared block."""


@pytest.fixture(scope="module", params=HOMES)
def model(request):
    return make(request.param, 3)


@pytest.fixture(scope="module")
def lens(model):
    return hl.HybridLens(model)


def sharing(model):
    """The layers that have a shared block."""
    return [layer for layer, kind in enumerate(model.config.layers_block_type) if kind == "hybrid"]


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_the_logits_are_the_models(changes):
    """In one pass, and in pieces of every length up to one token at a time."""
    model, ids = make("zamba2", 5, **changes), tokens(2, 13)
    lens = hl.HybridLens(model)
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
    close(lens(ids), expected, FORWARD)
    state, parts = None, []
    for piece in ids.split([6, 5, 1, 1], dim=1):
        out = lens.network(piece, None, state)
        parts.append(out.logits.detach())
        state = out.state
    close(torch.cat(parts, dim=1), expected, FORWARD)


def test_the_step_is_clamped_at_every_token():
    """transformers clamps it in passes of several tokens alone, so that its cached decoding is another model's."""
    model, ids = make("zamba2", 3, time_step_min=0.2), tokens(2, 12)
    lens = hl.HybridLens(model)
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits[:, -1]
        cache = model(ids[:, :-1], use_cache=True).past_key_values
        cached = model(ids[:, -1:], past_key_values=cache, use_cache=True).logits[:, -1]
    state = lens.prefill(ids[:, :-1]).state
    close(lens.network(ids[:, -1:], None, state).logits[:, -1].detach(), whole, FORWARD)
    assert apart(cached, whole)


def test_what_is_fed_is_all_that_the_shared_block_does(model, lens):
    """Without it, all is as where `linear` gives nothing; the stream gets the recurrence's write alone."""
    ids = tokens(2, 9)
    other = make(model.config.model_type, 3)
    with torch.no_grad():
        for layer in sharing(model):
            other.model.layers[layer].linear.weight.zero_()
        expected = other(ids, use_cache=False).logits
        fed = [f"blocks.{layer}.hook_shared_out" for layer in sharing(model)]
        with lens.hooks([(fed, lambda x, hook: x * 0)]):
            close(lens.network(ids).logits, expected, FORWARD)
    assert apart(expected, lens(ids))
    cache = lens.run_with_cache(ids)[1]
    for layer in sharing(model):
        name = f"blocks.{layer}"
        close(cache[f"{name}.hook_resid_pre"] + cache[f"{name}.hook_ssm_out"], cache[f"{name}.hook_resid_post"])


def test_the_embedding_is_read_beside_the_stream(model, lens):
    """An edit of the embedding reaches both halves of what the shared attention reads; one of the stream, the first."""
    ids, block = tokens(1, 7), f"blocks.{sharing(model)[-1]}"
    name = f"{block}.ln_attn.hook_normalized"

    def read(point):
        kept = {}
        hooks = [(name, lambda x, hook: kept.__setitem__("x", x.clone()))]
        hooks += [(f"{block}.ln_attn.hook_scale", lambda x, hook: kept.__setitem__("scale", x.clone()))]
        hooks += [] if point is None else [(point, lambda x, hook: x * 1.5 + 0.1)]
        with torch.no_grad(), lens.hooks(hooks):
            lens.network(ids)
        return (kept["x"] * kept["scale"]).chunk(2, dim=-1)

    plain, embed, stream = read(None), read("hook_embed"), read("blocks.0.hook_resid_pre")
    assert apart(plain[0], embed[0])
    assert apart(plain[1], embed[1])
    assert apart(plain[0], stream[0])
    close(plain[1], stream[1])


def test_a_pass_that_begins_in_the_middle_needs_the_embedding(lens):
    ids = tokens(1, 8)
    whole, cache = lens.network(ids), lens.run_with_cache(ids)[1]
    for layer in (1, 2, 3):
        resid = cache[f"blocks.{layer}.hook_resid_pre"]
        with torch.no_grad():
            out = lens.network.resume(layer, resid, whole.state, embedded=cache["hook_embed"])
            close(out.logits, whole.logits.detach(), FORWARD)
        with pytest.raises(InputError, match="give resume the tokens' hook_embed as embedded="):
            lens.network.resume(layer, resid, whole.state)
    snapshot = Snapshot(lens, ids, range(5), [3], False)
    for layer in range(5):
        for cut in (0, 3):
            close(snapshot.go_on(2, layer, cut).logits, whole.logits.detach().expand(2, -1, -1), FORWARD)


def test_direct_attribution_counts_what_is_added(model, lens):
    """Embedding, recurrent heads (of Zamba all at once) and biases make up the logits; shared blocks are no terms."""
    recurrence = {"zamba": "ssm", "zamba2": "ssm_head"}[model.config.model_type]
    found = direct_logit_attribution(lens, tokens(1, 9), [4, LogitDifference(7, 9)], (-1, 3))
    assert {writer.kind for writer in found.writers} == {"embed", recurrence, "ssm_bias"}
    close(found.total, found.before_cap, FORWARD, scale=float(found.shares.abs().max()), dtype=torch.float32)
    assert {writer.kind for writer in writers_of(lens)} == {"embed", recurrence}


def test_ends_of_paths_in_shared_blocks_are_refused(model, lens):
    first, *_, last = sharing(model)
    clean, corrupt, metric = tokens(1, 6), tokens(1, 6, 1), LogitDifference(3, 4)
    for writer in (Writer("head", first, 0), Writer("mlp", last), Writer("attn_bias", last)):
        with pytest.raises(InputError, match="only the recurrence writes") as caught:
            writer.check(lens)
        assert "\n" not in str(caught.value)
    for reader in (Reader("q", first, 0), Reader("mixer", first), Reader("mlp", last)):
        with pytest.raises(InputError, match="no reader there is followed"):
            reader.check(lens)
    with pytest.raises(InputError, match="no reader there is followed"):
        edge_attribution(lens, clean, corrupt, metric)
    mixer, logits = Writer("ssm", first), Reader("logits")
    with pytest.raises(InputError, match="through_mlps was given"):
        path_patch(lens, clean, corrupt, metric, [mixer], [logits], through_mlps=True)
    scores = edge_attribution(lens, clean, corrupt, metric, writers=[mixer, Writer("embed")], readers=[logits]).scores
    assert bool(scores.isfinite().all())


def test_heads_of_shared_blocks_are_no_maps_of_the_stream(model, lens):
    weights, layers = Weights.of_model(lens), ", ".join(map(str, sharing(model)))
    with pytest.raises(InputError, match="attention in layer 1 is a shared block's"):
        weights.attention(1)
    with pytest.raises(InputError, match=f"attention in layers {layers} of this {lens.cfg.family} model is a"):
        circuits(lens)
    assert weights.mlp_bias(1) is None
    assert weights.recurrent(1).parts.W_in.shape == (model.config.hidden_size, lens.cfg.d_channels)


def test_bfloat16_is_as_near_as_rounding_allows():
    """No further from float32 than the model itself, but for what two ways of rounding differ in."""
    ids, exact = tokens(2, 12), make("zamba2", 3)
    rounded = make("zamba2", 3).to(torch.bfloat16)
    with torch.no_grad():
        truth, theirs = exact(ids).logits, rounded(ids, use_cache=False).logits.float()
        ours = hl.HybridLens(rounded)(ids).float()
    assert float((ours - theirs).abs().max()) <= 2 * float((theirs - truth).abs().max())


def test_greedy_text_is_the_models(model, lens):
    ids = tokens(3, 6)
    expected = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    state, out = None, lens.network(ids)
    made = [ids]
    for _ in range(8):
        made.append(out.logits[:, -1:].argmax(-1))
        state = out.state
        out = lens.network(made[-1], None, state)
    assert torch.equal(torch.cat(made, dim=1), expected)


def test_files_hold_a_shared_block_once(model, tmp_path):
    model.save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    homes = {name.split(".")[2] for name in held if ".shared_transf" in name}
    assert homes == HOMES[model.config.model_type]
    loaded, read, expected = hl.load(tmp_path), hl.load_weights(tmp_path), Weights.of_model(hl.HybridLens(model))
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.hf_model.state_dict()[name], tensor), name
        assert not read.tensors.has(name) or torch.equal(read.tensors.read(name), tensor), name
    for layer in range(4):
        one, other = (weights.recurrent(layer).parts for weights in (read, expected))
        assert torch.equal(one.W_in, other.W_in)
        assert torch.equal(one.W_out, other.W_out)
    assert torch.equal(read.unembed(torch.arange(53)), expected.unembed(torch.arange(53)))


REFUSED = {
    "num_mem_blocks": 0,
    "hybrid_layer_ids": [1, 2],
    "mamba_headdim": 8,
    "attention_head_dim": 8,
    "attention_hidden_size": 32,
    "mamba_ngroups": 3,
    "use_long_context": True,
    "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    "unheard_of": 3,
}


@pytest.mark.parametrize("field", REFUSED)
def test_what_is_not_built_is_refused_by_field_and_value(field, tmp_path):
    """Before any weight is read."""
    make("zamba2", 3).config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: REFUSED[field]}))

    def opened():
        config = read_config(str(tmp_path))
        family_for(config, "it").configure(config)

    with pytest.raises(CheckpointError, match=re.escape(field.split("_")[0])) as caught:
        opened()
    assert "\n" not in str(caught.value)
