"""Folders whose tensors have the names of published files, which transformers' loader renames, joins and leaves out.

A case says what a published file has that the small model itself has not. What `save_pretrained` writes is mostly named
as published already: experts one by one, convolutions in three.
"""

import json
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from models import make
from safetensors.torch import load_file, save_file

import hybridlens as hl
from hybridlens.weights import Weights


class Names(NamedTuple):
    """How the files of a family differ from its model in memory."""

    holds: tuple[str, ...]
    """Names that a published file has, to see that the folder is named as published."""
    publish: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = dict
    """What `save_pretrained` writes → what a published file holds."""
    changes: dict = {}  # noqa: RUF012
    """Of the small model."""


CASES = {
    "llama": Names(("model.layers.0.self_attn.o_proj.bias", "lm_head.weight")),
    "qwen3": Names(("model.layers.0.self_attn.q_norm.weight", "lm_head.weight")),
    "gemma2": Names(("model.layers.0.pre_feedforward_layernorm.weight", "model.embed_tokens.weight")),
    "gemma3": Names(("model.layers.0.self_attn.k_norm.weight", "model.layers.2.post_feedforward_layernorm.weight")),
    "qwen3_next": Names(("model.layers.1.mlp.experts.5.gate_proj.weight", "model.layers.0.linear_attn.conv1d.weight")),
    "mamba2": Names(("backbone.embeddings.weight",), changes={"tie_word_embeddings": True}),
}


@pytest.fixture(scope="module", params=CASES)
def folder(request, tmp_path_factory):
    """A model, and a folder of its weights under the published names."""
    names, path = CASES[request.param], tmp_path_factory.mktemp(request.param)
    model = make(request.param, 3, **names.changes)
    model.save_pretrained(path)
    published = names.publish(load_file(path / "model.safetensors"))
    assert set(names.holds) <= set(published)
    save_file({name: tensor.contiguous() for name, tensor in published.items()}, path / "model.safetensors")
    return model, path


def test_the_model_is_loaded_tensor_for_tensor(folder):
    """Every weight is drawn at random, so that one in another's place is noticed."""
    model, path = folder
    found, expected = hl.load(path).hf_model.state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_weights_are_read_tensor_for_tensor(folder):
    """Straight from the files: every view is that of the model, bit for bit."""
    model, path = folder
    read, expected = hl.load_weights(path), Weights.of_model(hl.HybridLens(model))
    for layer in expected.cfg.attention_layers:
        same(read.attention(layer), expected.attention(layer))
    for layer in expected.cfg.ssm_layers:
        same(read.recurrent(layer).parts, expected.recurrent(layer).parts)
    ids = torch.arange(53)
    assert torch.equal(read.embed(ids), expected.embed(ids))
    assert torch.equal(read.unembed(ids), expected.unembed(ids))


def same(one, other):
    """Every tensor of two views is the same."""
    read, expected = (view._asdict() if isinstance(view, tuple) else vars(view) for view in (one, other))
    tensors = [name for name, value in expected.items() if isinstance(value, torch.Tensor)]
    assert len(tensors) > 3
    for name in tensors:
        assert torch.equal(read[name], expected[name]), name


def test_config_is_as_written(folder):
    """The folder's config.json names the class whose model it holds."""
    model, path = folder
    assert json.loads((path / "config.json").read_text())["architectures"] == [type(model).__name__]
