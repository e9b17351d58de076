"""Folders of small checkpoints, one thing in them changed, and that they are refused for it."""

import json
from pathlib import Path

import pytest
from models import FAMILIES, make
from safetensors.torch import load_file, save_file

import hybridlens as hl
from hybridlens.errors import CheckpointError


def make_folders(folder: Path) -> Path:
    """`folder` with each family in one file, and in shards."""
    for family in FAMILIES:
        model = make(family)
        for kind, size in (("one", "1GB"), ("shards", "20KB")):
            model.save_pretrained(folder / family / kind, max_shard_size=size)
    return folder


def rewrite(folder, file="config.json", **changes):
    """Change fields of a JSON file."""
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change(folder, edit):
    """Change the tensors of a checkpoint in one file."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def refused(folder, *words, ways=(hl.load, hl.load_weights)):
    """Each way of opening says one line with all of the words in it, and names the folder."""
    for way in ways:
        with pytest.raises(CheckpointError) as caught:
            way(folder)
        message = str(caught.value)
        assert "\n" not in message
        assert len(message) < 1000
        for word in (str(folder), *words):
            assert word in message
