"""Folders in the naming that a family's published files have: opened, and their weights read, tensor for tensor."""

import re
import warnings

import pytest
import torch
from models import make, tokens
from safetensors import safe_open
from safetensors.torch import save_file

import hybridlens as hl
from hybridlens.errors import CheckpointError, LeftOutWarning
from hybridlens.weights import FileTensors
from hybridlens.weights.naming import NamedTensors

PUBLISHED = {
    "nemotron_h": (
        r"backbone\.embeddings\.weight", r"backbone\.layers\.2\.mixer\.experts\.7\.up_proj\.weight",
        r"backbone\.layers\.2\.mixer\.gate\.e_score_correction_bias", r"backbone\.norm_f\.weight", r"lm_head\.weight",
    ),
}  # fmt: skip
"""Some names that a family's files have, none of which is the model's own but the last."""
SPARE = {"nemotron_h": {"mtp.layers.0.eh_proj.weight": (32, 64), "mtp.layers.0.norm.weight": (32,)}}
"""Tensors of parts that are left out."""


def held(folder):
    """All tensors of a folder's file."""
    with safe_open(str(folder / "model.safetensors"), "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def same(folder, model):
    """Whether a lens on a folder and the weights read from it hold the model's tensors."""
    lens, weights = hl.load(folder), hl.load_weights(folder)
    ours = lens.hf_model.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(ours[name], tensor), name
        assert weights.tensors.has(name)
        assert weights.tensors.shape(name) == tensor.shape
        assert torch.equal(weights.tensors.read(name), tensor), name
        assert torch.equal(weights.tensors.read(name, 1, 3), tensor[1:3]), name
    with torch.no_grad():
        assert torch.equal(lens(tokens(1, 7)), hl.HybridLens(model)(tokens(1, 7)))


@pytest.mark.parametrize("family", PUBLISHED)
def test_a_folder_in_the_published_naming(family, tmp_path):
    """What transformers writes has the published names; so have the model's own names a place."""
    model = make(family, 4)
    model.save_pretrained(tmp_path)
    names = held(tmp_path)
    for pattern in PUBLISHED[family]:
        assert any(re.fullmatch(pattern, name) for name in names), pattern
    assert not set(names) >= set(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error", LeftOutWarning)
        same(tmp_path, model)
        save_file(
            {name: value.contiguous() for name, value in model.state_dict().items()},
            tmp_path / "model.safetensors", metadata={"format": "pt"},
        )  # fmt: skip
        same(tmp_path, model)


@pytest.mark.parametrize("family", SPARE)
def test_parts_that_are_left_out_are_said_to_be(family, tmp_path):
    model = make(family, 4)
    model.save_pretrained(tmp_path)
    spare = {name: torch.ones(shape) for name, shape in SPARE[family].items()}
    save_file({**held(tmp_path), **spare}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    listed = ", ".join(map(re.escape, sorted(spare)))
    for opened in (hl.load, hl.load_weights):
        with pytest.warns(LeftOutWarning, match=rf"{listed} left out, as no part of the {family} model") as caught:
            opened(tmp_path)
        assert all("\n" not in str(warning.message) for warning in caught)
    with pytest.warns(LeftOutWarning):
        same(tmp_path, model)


def test_parts_that_do_not_make_up_a_tensor_are_named(tmp_path):
    """Experts are joined by number: where one is missing, the folder is refused, and the tensor by the model's name."""
    model = make("nemotron_h", 4)
    model.save_pretrained(tmp_path)
    stored = {name: value for name, value in held(tmp_path).items() if not name.endswith("experts.7.up_proj.weight")}
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"holds no tensor backbone\.layers\.2\.mixer\.experts\.7\.up_proj"):
        hl.load_weights(tmp_path)
    tensors = NamedTensors(FileTensors(tmp_path), model)
    name = "model.layers.2.mixer.experts.up_proj"
    line = rf"the parts of {re.escape(name)} make up shape \[7, 24, 16\], but the configuration asks for \[8, 24, 16\]"
    with pytest.raises(CheckpointError, match=line):
        tensors.read(name)
    with pytest.raises(CheckpointError, match=r"holds no tensor model\.layers\.9\.norm\.weight"):
        tensors.read("model.layers.9.norm.weight")
