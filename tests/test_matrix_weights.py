"""Weight views of the families with matrix states: every map, applied by hand, gives what the hook points hold.

As in `test_weights`, all weights are random and away from their defaults; multipliers, norms inside mixers, packed
projections and gates too, so that a part that is left out is seen in the first decimals.
"""

import json

import pytest
import torch
from hf_kimi_linear import as_latent
from models import MATRIX, MATRIX_WITH_HEADS, make, tokens
from safetensors import safe_open

import hybridlens as hl
from hybridlens.errors import CheckpointError
from hybridlens.weights import Weights

CLOSE = {"atol": 5e-5, "rtol": 5e-5}
"""Sums of some hundred products of order 1 in float32, in another order."""

CHANGES = {
    "mamba2": [{}, {"use_bias": True}, {"use_conv_bias": False}],
    "falcon_h1": [
        {},
        {"mamba_rms_norm": True},
        {"mamba_rms_norm": True, "mamba_norm_before_gate": False},
        {"mamba_proj_bias": True, "projectors_bias": True, "attention_bias": True},
    ],
    "qwen3_next": [{}, {"attention_bias": True, "partial_rotary_factor": 0.5}],
    "qwen3_5": [{"attention_bias": True, "head_dim": 16}],
    "qwen3_5_moe": [{}],
    "bamba": [{"mamba_proj_bias": True, "attention_bias": True, "mlp_bias": True}],
    "nemotron_h": [{"use_bias": True, "mlp_bias": True}],
    "granitemoehybrid": [{}, {"attention_bias": True, "mamba_proj_bias": True, "position_embedding_type": "rope"}],
    "kimi_linear": [{}, {"attention_bias": True}],
    "olmo_hybrid": [{}, {"attention_bias": True, "linear_allow_neg_eigval": False}],
    "zamba2": [{}, {"use_conv_bias": False}],
}
CASES = [(family, changes) for family in MATRIX for changes in CHANGES.get(family, [{}])]


def seen(family: str, changes: dict) -> tuple[hl.HybridLens, Weights, dict[str, torch.Tensor]]:
    """A random model, its weights, and what a run gave at every point."""
    lens = hl.HybridLens(make(family, 3, **changes))
    with torch.no_grad():
        logits, cache = lens.run_with_cache(tokens(2, 9, seed=1))
    return lens, Weights.of_model(lens), {**cache.cache_dict, "logits": logits}


def read_by_heads(cache: dict[str, torch.Tensor], block: str) -> torch.Tensor:
    """What a layer's heads read: the normalised stream, or the stream where no norm is before them."""
    return cache.get(f"{block}.ln1.hook_normalized", cache[f"{block}.hook_resid_pre"])


def plus(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`x` with a bias that may be none."""
    return x if bias is None else x + bias


@pytest.mark.parametrize(("family", "changes"), [case for case in CASES if case[0] in MATRIX_WITH_HEADS])
def test_heads(family, changes):
    """Queries, gates, keys, values, normed and turned scores, and each head's write, from the folded matrices."""
    lens, weights, cache = seen(family, changes)
    for layer in lens.cfg.attention_layers:
        view, name = weights.attention(layer), f"blocks.{layer}"
        x, made = read_by_heads(cache, name), {}
        for point, matrix, bias in (
            ("q", view.W_Q, view.b_Q), ("k", view.W_K, view.b_K), ("v", view.W_V, view.b_V)
        ):  # fmt: skip
            made[point] = plus(torch.einsum("bpd,hde->bphe", x, matrix), bias)
            if view.latent_scale is not None and point in "kv":
                made[point] = as_latent(lens, layer, x, view, made[point], point)
            torch.testing.assert_close(made[point], cache[f"{name}.attn.hook_{point}"], **CLOSE)
        z = cache[f"{name}.attn.hook_z"]
        q, k = view.normed(made["q"], view.q_norm), view.normed(made["k"], view.k_norm)
        if view.W_gate is not None:
            logits = torch.einsum("bpd,hde->bphe", x, view.W_gate)
            gate = torch.sigmoid(plus(logits, view.b_gate))
            torch.testing.assert_close(gate, cache[f"{name}.attn.hook_gate"], **CLOSE)
            rest = torch.sigmoid(plus(torch.zeros(4, 16), view.b_gate))
            torch.testing.assert_close(view.W_O_at_rest, rest[..., None] * view.W_O)
            z = z * cache[f"{name}.attn.hook_gate"]
        if view.q_norm is not None:
            torch.testing.assert_close(q, cache[f"{name}.attn.hook_q_normed"], **CLOSE)
            torch.testing.assert_close(k, cache[f"{name}.attn.hook_k_normed"], **CLOSE)
        out = plus(torch.einsum("bphe,hed->bpd", z, view.W_O), view.b_O)
        if lens.blocks[layer].branches[0].norm_after is not None:
            out = out / cache[f"{name}.ln1_post.hook_scale"]
        torch.testing.assert_close(out, cache[f"{name}.hook_attn_out"], **CLOSE)
        assert (view.rotary is None) == (f"{name}.attn.hook_rot_q" not in cache)
        for query, key in ((8, 8), (8, 7), (8, 0), (5, 2)):
            turned = q[:, query] if view.rotary is None else view.rotary.turned(q[:, query], query - key)
            scores = (turned.unflatten(1, (-1, view.n_shared)) * k[:, key, :, None]).sum(-1).flatten(1) * view.scale
            torch.testing.assert_close(scores, cache[f"{name}.attn.hook_attn_scores"][:, :, query, key], **CLOSE)


@pytest.mark.parametrize("family", MATRIX_WITH_HEADS)
def test_compared_folds_the_norms_of_queries_and_keys(family):
    """Products of folded queries and keys are the scores' up to a positive number for each query and each key."""
    lens, weights, cache = seen(family, {})
    layer = lens.cfg.attention_layers[0]
    view, x = weights.attention(layer), read_by_heads(cache, f"blocks.{layer}")
    folded = view.compared
    q, k = (torch.einsum("bpd,hde->bphe", x, matrix) for matrix in (folded.W_Q, folded.W_K))
    plain = [torch.einsum("bpd,hde->bphe", x, matrix) for matrix in (view.W_Q, view.W_K)]
    if view.q_norm is not None:
        over = (-2, -1) if family == "olmo_hybrid" else -1
        q, k = (
            folded * (raw.square().mean(over, keepdim=True) + view.qk_eps).rsqrt()
            for folded, raw in zip((q, k), plain, strict=True)
        )
    if view.latent_scale is not None:
        k = as_latent(lens, layer, x, view, k, "k")
    for made, point, norm in ((q, "q", view.q_norm), (k, "k", view.k_norm)):
        held = cache[f"blocks.{layer}.attn.hook_{point}" + ("" if norm is None else "_normed")]
        torch.testing.assert_close(made, held, **CLOSE)
    assert folded.compared is folded
    assert (folded is view) == (view.q_norm is None)


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_recurrent_maps(family, changes):
    """Input, convolution, gate, norm and output maps, one after the other, give the layer's points and its write."""
    lens, weights, cache = seen(family, changes)
    for layer in lens.cfg.ssm_layers:
        view, name = weights.recurrent(layer), f"blocks.{layer}"
        parts, x = view.parts, cache[f"{name}.ln1.hook_normalized"]
        u = plus(x @ parts.W_in, parts.b_in)
        if parts.convolved:
            torch.testing.assert_close(u, cache[f"{name}.ssm.hook_in"][..., parts.written], **CLOSE)
        convolved = plus(torch.zeros_like(u), parts.b_conv)
        for lag in range(view.n_lags):
            convolved[:, lag:] += u[:, : u.shape[1] - lag] * parts.taps[:, lag]
        v = parts.activation(convolved)
        if parts.convolved:
            torch.testing.assert_close(v, cache[f"{name}.ssm.hook_conv"][..., parts.written], **CLOSE)
        torch.testing.assert_close(v, cache[f"{name}.ssm.hook_v"].flatten(2), **CLOSE)
        activation = torch.sigmoid if family in ("kimi_linear", "minimax") else torch.nn.functional.silu
        gate = activation(plus(x @ parts.W_gate, parts.b_gate))
        torch.testing.assert_close(gate, cache[f"{name}.ssm.hook_gate"], **CLOSE)
        points = {point: cache[f"{name}.ssm.{point}"] for point in (*parts.gain_points, *parts.norm_points)}
        assert parts.norm is not None
        written = cache[f"{name}.ssm.hook_y"].flatten(2) * gate * parts.norm(points)
        out = plus(written @ parts.W_out, parts.b_out)
        torch.testing.assert_close(out, cache[f"{name}.hook_ssm_out"], **CLOSE)


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_gain(family, changes):
    """At a text's first token nothing is carried over, and the readout is the gain times what is written."""
    lens, weights, cache = seen(family, changes)
    for layer in lens.cfg.ssm_layers:
        parts, name = weights.recurrent(layer).parts, f"blocks.{layer}.ssm"
        gain = parts.gain({point: cache[f"{name}.{point}"] for point in parts.gain_points})
        v, y = (cache[f"{name}.{point}"].flatten(2) for point in ("hook_v", "hook_y"))
        torch.testing.assert_close((gain * v)[:, 0], y[:, 0], **CLOSE)
        kept: list[torch.Tensor] = []
        empty = (f"{name}.hook_decay", lambda x, hook: x * 0)  # nothing is carried over to later ones either
        keep = (f"{name}.hook_y", lambda x, hook, kept=kept: kept.append(x))
        with torch.no_grad():
            lens.run_with_hooks(tokens(2, 9, seed=1), [empty, keep])
        torch.testing.assert_close(gain * v, kept[0].flatten(2), **CLOSE)


@pytest.mark.parametrize("family", ["mamba2", "falcon_h1", "granitemoehybrid"])
def test_gain_at_rest(family):
    """On an input of zeros the gain is what it is taken for at rest; a delta rule's is 0 there."""
    lens = hl.HybridLens(make(family, 5))
    layer = lens.cfg.ssm_layers[-1]
    parts = Weights.of_model(lens).recurrent(layer).parts
    kept: dict[str, torch.Tensor] = {}
    points = [f"blocks.{layer}.ssm.{point}" for point in parts.gain_points]
    quiet = [(f"blocks.{layer}.ln1.hook_normalized", lambda x, hook: x * 0)]
    keep = [(points, lambda x, hook: kept.update({hook.name.split(".")[-1]: x.detach()}))]
    with torch.no_grad():
        lens.run_with_hooks(tokens(1, 4), quiet + keep)
    torch.testing.assert_close(parts.gain(kept)[0, 1], parts.gain_at_rest, **CLOSE)


@pytest.mark.parametrize("family", MATRIX)
def test_vocabulary(family):
    """Embedding and unembedding with the family's multipliers give what enters block 0 and the logits."""
    _, weights, cache = seen(family, {})
    ids = tokens(2, 9, seed=1)
    torch.testing.assert_close(weights.embed(ids[0]), cache["hook_embed"][0], **CLOSE)
    U = torch.cat([block.U for block in weights.vocabulary(40)])
    torch.testing.assert_close(cache["ln_final.hook_normalized"] @ U.T, cache["logits"], **CLOSE)
    torch.testing.assert_close(weights.unembed(torch.tensor([7, 52])), U[[7, 52]])


def test_experts_may_be_missing_and_are_refused_by_name(tmp_path):
    """No circuit reads an expert: their shards may be gone; asked for by the model's name the shard is named."""
    make("qwen3_next", 2).save_pretrained(tmp_path, max_shard_size="5KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    experts = {name for name in index if ".experts." in name}
    assert any(name.endswith("experts.0.gate_proj.weight") for name in experts)  # one by one in files
    for file in {index[name] for name in experts} - {index[name] for name in set(index) - experts}:
        (tmp_path / file).unlink()
    weights = hl.load_weights(tmp_path)
    assert weights.attention(1).W_gate.shape == (4, 32, 16)
    assert weights.recurrent(0).parts.W_in.shape == (32, 20)
    with pytest.raises(CheckpointError, match=r"lacks its shard model-\d+-of-\d+\.safetensors"):
        weights.tensors.read("model.layers.1.mlp.experts.gate_up_proj")
    with pytest.raises(CheckpointError, match=r"holds no tensor model\.layers\.0\.mlp\.experts\.gate_up_proj"):
        weights.tensors.read("model.layers.0.mlp.experts.gate_up_proj")  # which is a dense layer


def test_packed_rows_are_not_read_as_queries(tmp_path):
    """The gate's rows of a packed query projection are neither queries nor another head's."""
    model = make("qwen3_next", 1)
    model.save_pretrained(tmp_path)
    with safe_open(str(tmp_path / "model.safetensors"), "pt") as file:
        stored = file.get_tensor("model.layers.1.self_attn.q_proj.weight")
        norm = 1 + file.get_tensor("model.layers.1.input_layernorm.weight")
    view = hl.load_weights(tmp_path).attention(1)
    for head in range(4):
        rows = stored[32 * head : 32 * head + 32] * norm
        assert torch.equal(view.W_Q[head].T, rows[:16])
        assert torch.equal(view.W_gate[head].T, rows[16:])
