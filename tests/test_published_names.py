"""Folders in the naming of each family's published files: they load tensor for tensor, and weights are read from them.

The naming is written out here a second time, as rules over the names of the model in memory.
"""

import json
import re

import pytest
import torch
from bounds import FORWARD, close
from models import make, tokens
from safetensors.torch import load_file, save_file

import hybridlens as hl
from hybridlens.errors import CheckpointError


def renamed(tensors, *rules):
    """Tensors under the names of files; rules are regular expressions and what each becomes."""
    found = {}
    for name, tensor in tensors.items():
        for old, new in rules:
            name = re.sub(old, new, name)
        found[name] = tensor.clone()
    return found


def _granite(tensors):
    """Experts of a layer in two tensors, under other names than in memory; one matrix for both ends."""
    rules = (
        (r"block_sparse_moe\.experts\.gate_up_proj$", "block_sparse_moe.input_linear.weight"),
        (r"block_sparse_moe\.experts\.down_proj$", "block_sparse_moe.output_linear.weight"),
        (r"block_sparse_moe\.router\.weight$", "block_sparse_moe.router.layer.weight"),
    )
    tied = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    return renamed(tied, *rules)


FILES = {
    "granitemoehybrid": (_granite, {"tie_word_embeddings": True}),
}
"""The tensors of a file, given those of the model; and changes to the small model."""


def written(family, folder):
    """The small model, and a folder of it in the published naming."""
    naming, changes = FILES[family]
    model = make(family, 7, **changes)
    model.config.architectures = [type(model).__name__]
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.config.to_diff_dict()))
    save_file(naming(dict(model.state_dict())), folder / "model.safetensors", metadata={"format": "pt"})
    return model


@pytest.mark.parametrize("family", FILES)
def test_a_folder_in_the_published_naming(family, tmp_path):
    """Every tensor is the model's own, and so are the logits; the library writes the same names."""
    model = written(family, tmp_path / "published")
    lens = hl.load(tmp_path / "published")
    held = lens.hf_model.state_dict()
    assert held.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(held[name], tensor), name
    with torch.no_grad():
        close(lens(tokens(1, 9)), hl.HybridLens(model)(tokens(1, 9)), FORWARD)
    model.save_pretrained(tmp_path / "saved")
    files = (load_file(tmp_path / folder / "model.safetensors") for folder in ("published", "saved"))
    ours, theirs = ({name: tensor.shape for name, tensor in file.items()} for file in files)
    assert ours == theirs


@pytest.mark.parametrize("family", FILES)
def test_weights_read_from_either_folder_are_those_in_memory(family, tmp_path):
    """Maps of every layer and both ends of the vocabulary, without a model."""
    model = written(family, tmp_path / "published")
    model.save_pretrained(tmp_path / "saved")
    expected = hl.weights.Weights.of_model(hl.HybridLens(model))
    for folder in ("published", "saved"):
        weights = hl.load_weights(tmp_path / folder)
        for layer in weights.cfg.attention_layers:
            ours, theirs = weights.attention(layer), expected.attention(layer)
            for part in ("W_Q", "W_K", "W_V", "W_O"):
                assert torch.equal(getattr(ours, part), getattr(theirs, part)), part
        for layer in weights.cfg.ssm_layers:
            ours, theirs = weights.recurrent(layer).parts, expected.recurrent(layer).parts
            for part in ("W_in", "W_gate", "W_out", "taps", "gain_at_rest"):
                assert torch.equal(getattr(ours, part), getattr(theirs, part)), part
        ids = torch.tensor([3, 52])
        assert torch.equal(weights.embed(ids), expected.embed(ids))
        assert torch.equal(weights.unembed(ids), expected.unembed(ids))


@pytest.mark.parametrize(("family", "name"), [
    ("granitemoehybrid", "model.layers.1.block_sparse_moe.input_linear.weight"),
    ("granitemoehybrid", "model.layers.0.block_sparse_moe.router.layer.weight"),
])  # fmt: skip
def test_a_missing_tensor_is_named_as_files_have_it(family, name, tmp_path):
    written(family, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        hl.load(tmp_path)
    assert f"holds no tensor {name}" in str(caught.value)
    assert "\n" not in str(caught.value)
