"""Folders whose tensors have the names of published files, which the loader renames, joins and leaves out.

A case says what a published file has that the small model itself has not. What `save_pretrained` writes is mostly named
as published already: experts one by one, convolutions in three.
"""

import json
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from models import VOCAB, make
from safetensors.torch import load_file, save_file

import hybridlens as hl
from hybridlens.errors import CheckpointError, LeftOutWarning
from hybridlens.weights import Weights


class Names(NamedTuple):
    """How the files of a family differ from its model in memory."""

    holds: tuple[str, ...]
    """Names that a published file has, to see that the folder is named as published."""
    renamed: Callable[[str], str] = str
    """What `save_pretrained` calls a tensor → what a published file does."""
    spare: tuple[str, ...] = ()
    """Tensors that a published file holds besides."""
    configured: Callable[[dict[str, Any]], dict[str, Any]] = dict
    """The config.json of the model → the published one's."""
    changes: tuple[tuple[str, Any], ...] = ()
    """Of the small model's configuration."""
    stacked: bool = False
    """Whether a published file has tensors as the model has them in memory: a layer's experts in one, say."""


def multimodal(name: str) -> str:
    """The text model's names in a checkpoint with a vision tower."""
    return name.replace("model.", "model.language_model.", 1)


def nested(kind: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A multimodal model's config.json around a text model's."""

    def configured(text: dict[str, Any]) -> dict[str, Any]:
        config = {name: value for name, value in text.items() if name not in ("architectures", "transformers_version")}
        whole = {"model_type": text["model_type"].removesuffix("_text"), "architectures": [kind], "text_config": config}
        return whole | {"vision_config": {"depth": 2}, "tie_word_embeddings": text["tie_word_embeddings"]}

    return configured


def kimi_linear(name: str) -> str:
    """Layers with experts under another name than dense ones, which keep theirs."""
    return name.replace(".0.block_sparse_moe.", ".0.mlp.")


def olmo_hybrid(name: str) -> str:
    """Norms after the branches of attention layers keep their names; transformers writes others, and reads either."""
    return name.replace(".layers.1.feedforward_layer_norm.", ".layers.1.post_attention_layernorm.")


CASES = {
    "mamba2": Names(("backbone.embeddings.weight",), changes=(("tie_word_embeddings", True),)),
    "qwen3_next": Names(
        ("model.layers.1.mlp.experts.5.gate_proj.weight", "model.layers.0.linear_attn.in_proj_qkvz.weight"),
        spare=("mtp.fc.weight", "mtp.layers.0.mlp.experts.0.up_proj.weight"),
    ),
    "qwen3_5": Names(
        ("model.language_model.layers.0.linear_attn.in_proj_qkv.weight", "model.language_model.embed_tokens.weight"),
        multimodal,
        ("mtp.fc.weight", "model.visual.blocks.0.attn.qkv.weight", "model.visual.merger.norm.weight"),
        nested("Qwen3_5ForConditionalGeneration"),
        (("tie_word_embeddings", True),),
    ),
    "qwen3_5_moe": Names(
        ("model.language_model.layers.0.mlp.experts.5.down_proj.weight", "lm_head.weight"),
        multimodal,
        ("mtp.fc.weight", "model.visual.patch_embed.proj.weight"),
        nested("Qwen3_5MoeForConditionalGeneration"),
    ),
    "qwen3_5_moe, experts in one": Names(
        ("model.language_model.layers.0.mlp.experts.gate_up_proj",),
        multimodal,
        ("mtp.layers.0.mlp.experts.down_proj",),
        nested("Qwen3_5MoeForConditionalGeneration"),
        stacked=True,
    ),
    "mamba": Names(("backbone.embeddings.weight", "backbone.layers.0.mixer.x_proj.weight", "backbone.norm_f.weight")),
    "falcon_mamba": Names(("backbone.embeddings.weight", "lm_head.weight", "backbone.layers.1.mixer.A_log")),
    "nemotron_h": Names(
        (
            "backbone.embeddings.weight",
            "backbone.layers.2.mixer.experts.7.up_proj.weight",
            "backbone.norm_f.weight",
            "backbone.layers.2.mixer.gate.e_score_correction_bias",
        ),
        spare=("mtp.layers.0.eh_proj.weight", "mtp.layers.0.norm.weight"),
    ),
    "nemotron_h, named as in memory": Names(("model.layers.2.mixer.experts.up_proj",), stacked=True),
    "granitemoehybrid": Names(
        ("model.layers.1.block_sparse_moe.input_linear.weight", "model.layers.0.block_sparse_moe.router.layer.weight"),
        changes=(("tie_word_embeddings", True),),
    ),
    "lfm2": Names(("model.embedding_norm.weight", "model.layers.0.conv.conv.weight")),
    "lfm2_moe": Names(("model.layers.1.feed_forward.experts.5.w1.weight", "model.layers.1.feed_forward.expert_bias")),
    "bamba": Names(("model.layers.0.mamba.in_proj.weight",), changes=(("tie_word_embeddings", True),)),
    "llama": Names(("model.layers.0.self_attn.o_proj.bias", "lm_head.weight")),
    "qwen3": Names(("model.layers.0.self_attn.q_norm.weight", "lm_head.weight")),
    "gemma2": Names(("model.layers.0.pre_feedforward_layernorm.weight", "model.embed_tokens.weight")),
    "gemma3": Names(("model.layers.0.self_attn.k_norm.weight", "model.layers.2.post_feedforward_layernorm.weight")),
    "kimi_linear": Names(
        (
            "model.layers.0.self_attn.A_log",
            "model.layers.0.self_attn.f_a_proj.weight",
            "model.layers.2.self_attn.k_conv1d.weight",
            "model.layers.1.block_sparse_moe.experts.5.w2.weight",
            "model.layers.1.block_sparse_moe.gate.e_score_correction_bias",
            "model.layers.0.mlp.up_proj.weight",
            "model.layers.1.self_attn.kv_a_proj_with_mqa.weight",
            "model.layers.2.block_sparse_moe.gate.weight",
        ),
        kimi_linear,
    ),
    "zamba": Names(
        (
            "model.layers.0.mamba.x_proj_weight",
            "model.layers.1.mamba_decoder.mamba.dt_proj_bias",
            "model.layers.1.shared_transf.self_attn.q_proj.weight",
            "model.layers.3.linear.weight",
        ),
    ),
    "minimax": Names(
        (
            "model.layers.0.block_sparse_moe.experts.3.w1.weight",
            "model.layers.1.block_sparse_moe.experts.0.w2.weight",
            "model.layers.2.block_sparse_moe.gate.weight",
            "model.layers.0.self_attn.qkv_proj.weight",
            "model.layers.0.self_attn.output_gate.weight",
            "model.layers.1.self_attn.q_proj.weight",
        ),
    ),
    "olmo_hybrid": Names(
        (
            "model.layers.0.attention_layer_norm.weight",
            "model.layers.0.feedforward_layer_norm.weight",
            "model.layers.1.post_attention_layernorm.weight",
            "model.layers.2.linear_attn.v_conv1d.weight",
        ),
        olmo_hybrid,
    ),
}
"""By family, and what is particular where one has several."""


@pytest.fixture(scope="module", params=CASES)
def folder(request, tmp_path_factory):
    """A case, its model, and a folder of its weights under the published names."""
    names, family = CASES[request.param], request.param.split(",")[0]
    path = tmp_path_factory.mktemp(family)
    model = make(family, 3, **dict(names.changes))
    model.save_pretrained(path)
    held = model.state_dict() if names.stacked else load_file(path / "model.safetensors")
    held = {names.renamed(name): tensor for name, tensor in held.items()} | {
        name: torch.ones(3) for name in names.spare
    }
    assert {*names.holds, *names.spare} <= set(held)
    save_file(held, path / "model.safetensors", metadata={"format": "pt"})
    config = path / "config.json"
    config.write_text(json.dumps(names.configured(json.loads(config.read_text()))))
    return names, model, path


@pytest.mark.parametrize("way", [hl.load, hl.load_weights])
def test_what_is_left_out_is_said(folder, way):
    """One line with their names; nothing is said where nothing is."""
    names, _, path = folder
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        way(path)
    said = [str(warning.message) for warning in caught if issubclass(warning.category, LeftOutWarning)]
    assert len(said) == bool(names.spare)
    for line in said:
        assert f"'{path}': left out, being no part of the text model: " in line
        assert all(name in line for name in names.spare)
        assert "\n" not in line


@pytest.mark.filterwarnings("ignore::hybridlens.errors.LeftOutWarning")
def test_the_model_is_loaded_tensor_for_tensor(folder):
    """Every weight is drawn at random, so that one in another's place is noticed."""
    _, model, path = folder
    found, expected = hl.load(path).hf_model.state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.filterwarnings("ignore::hybridlens.errors.LeftOutWarning")
def test_weights_are_read_tensor_for_tensor(folder):
    """Straight from the files, by the model's names and in its shapes; every view is that of the model, bit for bit."""
    _, model, path = folder
    read, expected = hl.load_weights(path), Weights.of_model(hl.HybridLens(model))
    held = model.state_dict()
    stored = {tensor.data_ptr() for name, tensor in held.items() if read.tensors.has(name)}
    for name, tensor in held.items():
        assert tensor.data_ptr() in stored, name  # of those that are tied one is stored
        if read.tensors.has(name):
            assert torch.equal(read.tensors.read(name), tensor), name
            assert torch.equal(read.tensors.read(name, 1, 3), tensor[1:3]), name
    for layer in expected.cfg.attention_layers:
        if not expected.cfg.layers[layer].shared:  # whose heads' weights are refused
            same(read.attention(layer), expected.attention(layer))
    for layer in expected.cfg.ssm_layers:
        same(read.recurrent(layer).parts, expected.recurrent(layer).parts)
    ids = torch.arange(VOCAB)
    assert torch.equal(read.embed(ids), expected.embed(ids))
    assert torch.equal(read.unembed(ids), expected.unembed(ids))


def same(one, other):
    """Every tensor of two views is the same."""
    read, expected = (view._asdict() if isinstance(view, tuple) else vars(view) for view in (one, other))
    tensors = [name for name, value in expected.items() if isinstance(value, torch.Tensor)]
    assert len(tensors) > 3
    for name in tensors:
        assert torch.equal(read[name], expected[name]), name


@pytest.mark.parametrize("name", ["input_linear", "router.layer"])
def test_a_missing_tensor_is_named_as_files_have_it(name, tmp_path):
    """And not as the model has it in memory, where its holder would not find it."""
    make("granitemoehybrid", 3).save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    name = f"model.layers.1.block_sparse_moe.{name}.weight"
    del held[name]
    save_file(held, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"holds no tensor {name}") as caught:
        hl.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_experts_that_do_not_fit_are_named_as_the_files_have_them(tmp_path):
    """The loader joins them before it looks, and does not say which of them are wrong."""
    make("qwen3_5_moe", 3).save_pretrained(tmp_path)
    held, mixture = load_file(tmp_path / "model.safetensors"), "model.language_model.layers.0.mlp.experts."
    held = {multimodal(name): tensor for name, tensor in held.items()}
    held |= {f"{mixture}{expert}.up_proj.weight": torch.zeros(24, 31) for expert in range(6)}
    save_file(held, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for way in (hl.load, hl.load_weights):
        with pytest.raises(CheckpointError, match=f"{mixture}0.up_proj.weight has shape .24, 31., but"):
            way(tmp_path)
    held = {name: tensor for name, tensor in held.items() if not name.startswith(f"{mixture}2.")}
    save_file(held, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"holds no tensor {mixture}2.down_proj.weight, though it holds an"):
        hl.load(tmp_path)
