"""The weight views against the model itself: every map, applied by hand, gives what the model's hook points hold.

All weights of the models are random and away from their defaults, norms and biases too, so a transposed matrix, a
head in another's place, or a norm's offset left out is seen in the first decimals.
"""

import copy
import json

import pytest
import torch
from bounds import FORWARD, LAYER, close
from models import FAMILIES, KINDS, ROWS, make, tokens
from safetensors.torch import load_file, save_file

import hybridlens as hl
from hybridlens.errors import CheckpointError, InputError
from hybridlens.weights import FileTensors, Weights

CHANGES = {
    "recurrentgemma": [{}, {"num_key_value_heads": 2}, {"attention_bias": True}, {"tie_word_embeddings": False}],
    "jamba": [
        {}, {"num_key_value_heads": 1}, {"mamba_proj_bias": True}, {"tie_word_embeddings": True},
        {"hidden_act": "gelu"},
    ],
}  # fmt: skip
CASES = [(family, changes) for family in FAMILIES for changes in CHANGES[family]]
MAMBA = ("mamba", "falcon_mamba")


def seen(family: str, changes: dict) -> tuple[hl.HybridLens, Weights, dict[str, torch.Tensor]]:
    """A random model, its weights, and what a run gave at every point."""
    lens = hl.HybridLens(make(family, 3, **changes))
    logits, cache = lens.run_with_cache(tokens(2, 9, seed=1))
    return lens, Weights.of_model(lens), {**cache.cache_dict, "logits": logits}


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_heads(family, changes):
    """Queries before rotary, keys, values and each head's write are the folded matrices times the normalised input."""
    lens, weights, cache = seen(family, changes)
    layer = lens.cfg.attention_layers[0]
    view, name = weights.attention(layer), f"blocks.{layer}"
    x = cache[f"{name}.ln1.hook_normalized"]
    zero = torch.zeros(())
    for head in range(lens.cfg.n_heads):
        one, kv = view.head(head), view.kv_head(head)
        q = x @ one.W_Q + (zero if view.b_Q is None else view.b_Q[head])
        k = x @ one.W_K + (zero if view.b_K is None else view.b_K[kv])
        v = x @ one.W_V + (zero if view.b_V is None else view.b_V[kv])
        close(q, cache[f"{name}.attn.hook_q"][:, :, head], LAYER)
        close(k, cache[f"{name}.attn.hook_k"][:, :, kv], LAYER)
        close(v, cache[f"{name}.attn.hook_v"][:, :, kv], LAYER)
        assert one.W_K.data_ptr() == view.W_K[kv].data_ptr()
    out = torch.einsum("bphe,hed->bpd", cache[f"{name}.attn.hook_z"], view.W_O)
    out = out if view.b_O is None else out + view.b_O
    close(out, cache[f"{name}.hook_attn_out"], LAYER)
    wide = view.expanded(view.W_K)
    assert wide.shape[:2] == (lens.cfg.n_kv_heads, view.n_shared)
    assert wide.data_ptr() == view.W_K.data_ptr()
    assert torch.equal(wide[divmod(lens.cfg.n_heads - 1, view.n_shared)], view.head(lens.cfg.n_heads - 1).W_K)


def test_rotary_scores():
    """Scores follow from unrotated queries and keys and their distance alone."""
    lens, weights, cache = seen("recurrentgemma", {"attention_window_size": 64})
    layer = lens.cfg.attention_layers[0]
    rotary = weights.attention(layer).rotary
    assert rotary is not None
    assert rotary.dims == lens.cfg.d_head // 2
    q, k = cache[f"blocks.{layer}.attn.hook_q"], cache[f"blocks.{layer}.attn.hook_k"]
    scores = cache[f"blocks.{layer}.attn.hook_attn_scores"]
    for query, key in ((8, 8), (8, 7), (8, 0), (5, 2)):
        turned = rotary.turned(q[:, query], query - key)
        expected = (turned * k[:, key]).sum(-1) / lens.cfg.d_head**0.5
        close(expected, scores[:, :, query, key], LAYER)


@pytest.mark.parametrize(("family", "changes"), CASES + [(family, {}) for family in MAMBA])
def test_recurrent_maps(family, changes):
    """Input, convolution, gate and output maps, applied one after the other, give the layer's points and its write."""
    lens, weights, cache = seen(family, changes)
    layer = lens.cfg.ssm_layers[0]
    view, name = weights.recurrent(layer), f"blocks.{layer}"
    parts, x = view.parts, cache[f"{name}.ln1.hook_normalized"]
    zero = torch.zeros(())
    u = x @ parts.W_in + (zero if parts.b_in is None else parts.b_in)
    close(u, cache[f"{name}.ssm.hook_in"], LAYER)
    convolved = torch.zeros_like(u) + (zero if parts.b_conv is None else parts.b_conv)
    for lag in range(view.n_lags):
        convolved[:, lag:] += u[:, : u.shape[1] - lag] * parts.taps[:, lag]
    close(parts.activation(convolved), cache[f"{name}.ssm.hook_conv"], LAYER)
    y = cache[f"{name}.ssm.hook_y"] * cache[f"{name}.ssm.hook_gate"]
    out = y @ parts.W_out + (zero if parts.b_out is None else parts.b_out)
    close(out, cache[f"{name}.hook_mixer_out"], LAYER)
    step = 1e-3 * torch.ones(1)
    slope = (parts.activation(step) - parts.activation(-step)) / (2 * step)
    close(slope, torch.tensor([parts.slope]), FORWARD)


@pytest.mark.parametrize("family", FAMILIES + MAMBA)
def test_gain(family):
    """The gain is the derivative of a token's readout by its own input to the recurrence, gates held."""
    lens, weights, cache = seen(family, {})
    layer = lens.cfg.ssm_layers[-1]
    parts, name = weights.recurrent(layer).parts, f"blocks.{layer}.ssm"
    gain = parts.gain({point: cache[f"{name}.{point}"] for point in parts.gain_points})
    u, y, state = cache[f"{name}.hook_conv"], cache[f"{name}.hook_y"], cache[f"{name}.hook_state"]
    carried = cache[f"{name}.hook_decay"][:, 1:] * state[:, :-1]
    if family != "recurrentgemma":
        carried = (carried * cache[f"{name}.hook_C"][:, 1:, None]).sum(-1)
    close((gain * u)[:, 1:], y[:, 1:] - carried, FORWARD)
    close((gain * u)[:, 0], y[:, 0], FORWARD)


@pytest.mark.parametrize("family", FAMILIES + MAMBA)
def test_gain_at_rest(family):
    """On an input of zeros, whose convolution has no bias, gates are what the gain at rest takes them for."""
    model = make(family, 5, num_hidden_layers=2)
    lens = hl.HybridLens(model)
    layer = lens.cfg.ssm_layers[0]
    parts = Weights.of_model(lens).recurrent(layer).parts
    quiet = [(f"blocks.{layer}.ssm.hook_conv", lambda x, hook: x * 0)]
    points = [f"blocks.{layer}.ssm.{point}" for point in parts.gain_points]
    kept: dict[str, torch.Tensor] = {}
    keep = [(points, lambda x, hook: kept.update({hook.name.split(".")[-1]: x.detach()}))]
    with torch.no_grad():
        lens.run_with_hooks(tokens(1, 4), quiet + keep)
    close(parts.gain(kept)[0, 1], parts.gain_at_rest, FORWARD)


@pytest.mark.parametrize(("family", "changes"), CASES + [(family, {}) for family in MAMBA])
def test_vocabulary(family, changes):
    """Embedding and unembedding, scaled and folded, give what enters block 0 and the logits that leave."""
    _, weights, cache = seen(family, changes)
    ids = tokens(2, 9, seed=1)
    close(weights.embed(ids[0]), cache["hook_embed"][0], LAYER)
    blocks = list(weights.vocabulary(block=20))
    assert [block.start for block in blocks] == [0, 20, 40]
    U = torch.cat([block.U for block in blocks])
    close(torch.cat([block.E for block in blocks])[ids], cache["hook_embed"], LAYER)
    logits = cache["ln_final.hook_normalized"] @ U.T
    cap = 30.0 if family == "recurrentgemma" else None
    capped = logits if cap is None else torch.tanh(logits / cap) * cap
    close(capped, cache["logits"], LAYER)
    for few in ([7, 2, 7], [52, 0]):  # fewer than one token in SPARSE are read one by one
        close(weights.unembed(torch.tensor(few)), U[few])


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_files_give_what_the_model_gives(family, dtype, tmp_path):
    """One file, shards, and the model in memory: the same tensors, bit for bit, in any dtype.

    What no file holds (Falcon-H1's multipliers) is made anew, in float32: Gemma 2's multiple of its embedding, too,
    which its module rounds to the model's own dtype.
    """
    model = make(family, 2).to(getattr(torch, dtype))
    live = Weights.of_model(hl.HybridLens(model))
    wide = Weights.of_model(hl.HybridLens(copy.deepcopy(model).float()))
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    for folder in ("one", "shards"):
        stored = hl.load_weights(tmp_path / folder)
        for layer in () if ROWS[family].shared else live.cfg.attention_layers:
            both = zip(vars(stored.attention(layer)).values(), vars(live.attention(layer)).values(), strict=True)
            for ours, theirs in both:
                assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
        for layer in live.cfg.ssm_layers:
            for ours, theirs in zip(stored.recurrent(layer).parts, live.recurrent(layer).parts, strict=True):
                assert not isinstance(ours, torch.Tensor) or torch.equal(ours, theirs)
        for ours, theirs in zip(stored.vocabulary(16), wide.vocabulary(16), strict=True):
            assert torch.equal(ours.E, theirs.E)
            assert torch.equal(ours.U, theirs.U)


def test_only_what_is_asked_for_is_read(tmp_path):
    """Shards of experts and of other layers may be missing as long as nothing of them is asked for."""
    make("jamba", 2).save_pretrained(tmp_path, max_shard_size="5KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    wanted = {file for name, file in index.items() if "layers.1.self_attn" in name or "layers.1.input_layern" in name}
    for file in set(index.values()) - wanted:
        (tmp_path / file).unlink()
    weights = hl.load_weights(tmp_path)
    assert weights.attention(1).W_Q.shape == (4, 32, 8)
    gone = index["model.layers.0.mamba.in_proj.weight"]
    with pytest.raises(CheckpointError, match=f"lacks its shard {gone}"):
        weights.recurrent(0)


def test_bad_checkpoints_say_what_is_wrong(tmp_path):
    """Missing tensors, wrong shapes, quantised numbers and damaged files: one line, naming the tensor or file."""
    model = make("jamba", 2)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    good = load_file(file)

    def written(**changes: torch.Tensor | None) -> Weights:
        tensors = {**good, **{name.replace("__", "."): x for name, x in changes.items()}}
        save_file({name: x for name, x in tensors.items() if x is not None}, file)
        return hl.load_weights(tmp_path)

    q = "model.layers.1.self_attn.q_proj.weight".replace(".", "__")
    with pytest.raises(CheckpointError, match=r"holds no tensor model\.layers\.1\.self_attn\.q_proj\.weight"):
        written(**{q: None}).attention(1)
    with pytest.raises(CheckpointError, match=r"q_proj.weight has shape \[4, 32\], but .* \[32, 32\]"):
        written(**{q: torch.zeros(4, 32)}).attention(1)
    with pytest.raises(CheckpointError, match="stored as int8: the checkpoint is quantised"):
        written(**{q: torch.zeros(32, 32, dtype=torch.int8)}).attention(1)
    with pytest.raises(CheckpointError, match="stored as float8_e4m3fn: the checkpoint is quantised"):
        written(**{q: torch.zeros(32, 32, dtype=torch.float8_e4m3fn)}).attention(1)
    with pytest.raises(CheckpointError, match=r"holds no tensor lm_head\.weight"):
        list(written(lm_head__weight=None).vocabulary())
    file.write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        hl.load_weights(tmp_path)
    file.unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        hl.load_weights(tmp_path)
    with pytest.raises(CheckpointError, match=r"holds no weights, expected model\.safetensors or its shards"):
        FileTensors(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"index\.json is damaged"):
        FileTensors(tmp_path)


def test_quantised_configuration_is_refused(tmp_path):
    """A checkpoint whose configuration says that it is quantised is refused before any tensor is read."""
    make("jamba", 2).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="is quantised"):
        hl.load_weights(tmp_path)


def test_layers_and_heads_out_of_range():
    """One line that says what there is."""
    weights = Weights.of_model(hl.HybridLens(make("jamba", 0)))
    with pytest.raises(InputError, match=r"layer 0 is no attention layer; those are 1"):
        weights.attention(0)
    with pytest.raises(InputError, match=r"layer 1 is no recurrent layer; those are 0, 2, 3"):
        weights.recurrent(1)
    with pytest.raises(InputError, match=r"layer 4 given, but the model has layers 0\.\.3"):
        weights.attention(4)
    with pytest.raises(InputError, match=r"head 4 given, but layer 1 has heads 0\.\.3"):
        weights.attention(1).head(4)
    with pytest.raises(InputError, match=r"lag 4 given, but layer 0's convolution has lags 0\.\.3"):
        weights.recurrent(0).path(4)
    with pytest.raises(InputError, match=r"tokens 3\.\.53 given, expected 0\.\.52"):
        weights.embed(torch.tensor([3, 53]))
