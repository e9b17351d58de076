"""Checkpoints whose files do not hold what their configuration asks for: refused, never filled in.

Every case starts from a folder that opens, and changes one thing; the line names it.
"""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoint_folders import change, make_folders, refused, rewrite
from command_line import refused as command_refused
from models import FAMILIES, tokens
from safetensors.torch import load_file

import hybridlens as hl
from hybridlens import tiny
from hybridlens.errors import CheckpointError
from hybridlens.families import FAMILIES as ROWS
from hybridlens.weights.finite import RUN, WHOLE, is_finite
from hybridlens.weights.sources import FileTensors


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_folders(tmp_path_factory.mktemp("good"))


@pytest.fixture(params=FAMILIES)
def folder(request, made, tmp_path):
    return Path(shutil.copytree(made / request.param / "one", tmp_path / request.param))


@pytest.mark.parametrize("part", ["embed_tokens.weight", "o_proj.weight", "up_proj.weight", "norm.weight"])
def test_a_missing_tensor(folder, part):
    """Nothing is filled in: without it the folder does not open, and the line names it."""
    name = max(name for name in load_file(folder / "model.safetensors") if name.endswith(part))
    change(folder, lambda tensors: tensors.pop(name))
    refused(folder, "holds no tensor", name)


def test_every_tensor_is_asked_for(folder):
    """Without any one of them the checkpoint is refused, and the line names it."""
    good = load_file(folder / "model.safetensors")
    for name in good:
        change(folder, lambda tensors, name=name: (tensors.clear(), tensors.update(good), tensors.pop(name)))
        with pytest.raises(CheckpointError, match=r"holds no tensor") as caught:
            hl.load_weights(folder)
        assert name in str(caught.value)


def test_a_surplus_tensor(folder):
    change(folder, lambda tensors: tensors.update({"model.layers.0.extra.weight": torch.zeros(3)}))
    refused(folder, "holds model.layers.0.extra.weight, for which its configuration has no place")


def test_spare_tensors_are_listed_by_the_family(folder, monkeypatch):
    """What a family's row calls spare may be there, and nothing else."""
    change(folder, lambda tensors: tensors.update({"model.extra": torch.zeros(3), "model.more": torch.zeros(3)}))
    spared = tuple(replace(row, spare_tensors=(r"^model\.extra$",)) for row in ROWS)
    monkeypatch.setattr("hybridlens.families.FAMILIES", spared)
    refused(folder, "holds model.more, for which")
    change(folder, lambda tensors: tensors.pop("model.more"))
    hl.load(folder)


def test_a_tensor_of_another_shape(folder):
    name = next(name for name in load_file(folder / "model.safetensors") if name.endswith("o_proj.weight"))
    change(folder, lambda tensors: tensors.update({name: torch.zeros(32, 4)}))
    refused(folder, name, "has shape [32, 4], but the configuration asks for [32, 32]")


def test_experts_in_other_numbers_or_shapes(made, tmp_path):
    """The loader stacks experts in the order of their names, so a gap is closed without a word."""
    folder = Path(shutil.copytree(made / "jamba" / "one", tmp_path / "model"))
    start = "model.layers.1.feed_forward.experts."
    parts = ("gate_proj", "up_proj", "down_proj")
    moved = {f"{start}1.{part}.weight": f"{start}9.{part}.weight" for part in parts}
    change(folder, lambda tensors: tensors.update({new: tensors.pop(old) for old, new in moved.items()}))
    refused(folder, f"holds no tensor {start}1.down_proj.weight, though it holds an expert 9")
    shutil.copy(made / "jamba" / "one" / "model.safetensors", folder)
    change(folder, lambda tensors: tensors.update({f"{start}2.up_proj.weight": torch.zeros(7, 32)}))
    refused(folder, f"{start}2.up_proj.weight has shape [7, 32], but that of expert 0 has [40, 32]")
    narrow = {f"{start}{expert}.up_proj.weight": torch.zeros(40, 31) for expert in range(4)}
    change(folder, lambda tensors: tensors.update(narrow))
    refused(folder, f"{start}0.up_proj.weight has shape [40, 31], but the configuration asks for [40, 32]")


@pytest.mark.parametrize("kind", [torch.int8, torch.int64, torch.bool, torch.uint8, torch.float8_e4m3fn])
def test_numbers_that_are_no_weights(folder, kind):
    name = next(name for name in load_file(folder / "model.safetensors") if name.endswith("o_proj.weight"))
    change(folder, lambda tensors: tensors.update({name: tensors[name].to(kind)}))
    for way in (hl.load, hl.load_weights):
        with pytest.raises(CheckpointError, match=f"{name} is stored as {str(kind).removeprefix('torch.')}"):
            way(folder)


@pytest.mark.parametrize(
    "changes", [{"num_hidden_layers": 7}, {"num_hidden_layers": 3}, {"hidden_size": 64}, {"vocab_size": 60}]
)
def test_a_configuration_of_another_model(folder, changes):
    rewrite(folder, **changes)
    with pytest.raises(CheckpointError, match=r"configuration (asks for|has no place)"):
        hl.load(folder)


def test_other_layers_than_the_files_hold(made, tmp_path):
    folder = Path(shutil.copytree(made / "recurrentgemma" / "one", tmp_path / "model"))
    rewrite(folder, block_types=["attention"])
    refused(folder, "holds no tensor model.layers.0.temporal_block.k_proj.weight")


def test_ties_that_do_not_hold(folder):
    """Tied in the configuration, they are the same in the files or one is not there; untied, both are there."""
    change(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    rewrite(folder, tie_word_embeddings=True)
    lens = hl.load(folder)
    assert lens.hf_model.lm_head.weight is lens.hf_model.model.embed_tokens.weight
    change(folder, lambda tensors: tensors["lm_head.weight"].mul_(2))
    refused(folder, "config.json ties lm_head.weight to model.embed_tokens.weight", "different numbers")
    change(folder, lambda tensors: tensors.pop("lm_head.weight"))
    hl.load(folder)
    rewrite(folder, tie_word_embeddings=False)
    refused(folder, "holds no tensor lm_head.weight")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["norm.weight", "bias", "embed_tokens.weight"])
def test_weights_that_are_no_numbers(folder, part, bad):
    """Small tensors are looked at whole: one entry is enough."""
    name = next(name for name in load_file(folder / "model.safetensors") if name.endswith(part))
    change(folder, lambda tensors: tensors[name].view(-1)[5:6].fill_(bad))
    refused(folder, name, "infinite or not a number", ways=(hl.load,))
    with pytest.raises(CheckpointError, match="infinite or not a number"):
        FileTensors(folder).read(name)


def test_large_tensors_are_sampled():
    """Runs at fixed places: what a conversion spoils in stretches is seen, both ends always."""
    x = torch.zeros(64, WHOLE // 16)
    assert is_finite(x)
    for spoilt in (slice(0, 1), slice(-RUN, None), slice(1000, x.numel() // 2)):
        y = x.clone()
        y.view(-1)[spoilt] = math.nan
        assert not is_finite(y)


def test_two_loads_are_the_same_model(folder):
    """Nothing random is left in what opens."""
    ids = tokens(1, 6)
    with torch.no_grad():
        assert torch.equal(hl.load(folder)(ids), hl.load(folder)(ids))


@pytest.mark.parametrize("family", FAMILIES)
def test_shards_hold_the_same_model(family, made):
    ids = tokens(1, 6)
    with torch.no_grad():
        assert torch.equal(hl.load(made / family / "shards")(ids), hl.load(made / family / "one")(ids))


@pytest.mark.parametrize("command", ["niah", "heads", "circuits", "patch", "crossover", "rankings", "reproduce"])
def test_no_command_runs_on_weights_that_are_not_there(command, tmp_path, capsys):
    """One line, status 2, and nothing said to be complete."""
    folder = Path(shutil.copytree(tiny.path("tiny-jamba"), tmp_path / "model"))
    name = "model.layers.3.mamba.out_proj.weight"
    change(folder, lambda tensors: tensors.pop(name))
    out = [] if command == "heads" else ["--out", str(tmp_path / "out")]
    assert f"holds no tensor {name}" in command_refused([command, "--model", folder, *out], capsys)
    assert not list(tmp_path.glob("out/**/report.html"))
