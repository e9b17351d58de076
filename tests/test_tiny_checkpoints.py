"""The checked-in models: what they are, that they load, and that they retrieve."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    FalconH1ForCausalLM,
    GraniteMoeHybridForCausalLM,
    JambaForCausalLM,
    Lfm2ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3_5ForCausalLM,
    Qwen3ForCausalLM,
    RecurrentGemmaForCausalLM,
)

from hybridlens import tiny
from hybridlens.errors import CheckpointError, UnknownNameError
from hybridlens.model import HybridLens
from hybridlens.tiny.architectures import build
from hybridlens.tiny.documents import make_source
from hybridlens.tiny.probe import probe
from hybridlens.tiny.recipes import recipe
from hybridlens.tiny.tokenizer import build_tokenizer, words

CLASSES = {
    "tiny-recurrentgemma": RecurrentGemmaForCausalLM,
    "tiny-jamba": JambaForCausalLM,
    "tiny-granite": GraniteMoeHybridForCausalLM,
    "tiny-qwen3.5": Qwen3_5ForCausalLM,
    "tiny-falcon-h1": FalconH1ForCausalLM,
    "tiny-lfm2": Lfm2ForCausalLM,
    "tiny-qwen3": Qwen3ForCausalLM,
    "tiny-mamba2": GraniteMoeHybridForCausalLM,
    "tiny-deltanet": Qwen3_5ForCausalLM,
}
ALONE = ("tiny-mamba2", "tiny-deltanet")
"""Recurrences alone, which do not repeat the needle without a mistake; their cards say how far they come."""


@pytest.mark.parametrize("name", tiny.names())
def test_a_checkpoint_is_a_small_folder_of_the_real_class(name: str) -> None:
    """Loaded by the library alone; every file that a user expects is there, under 8 MB of weights."""
    folder = tiny.path(name)
    for file in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "README.md"):
        assert (folder / file).is_file(), file
    assert (folder / "model.safetensors").stat().st_size <= 8_000_000
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model) is CLASSES[name]
    assert model.dtype == torch.float32


def test_the_layers_are_those_that_were_asked_for() -> None:
    """From the files, as `hybridlens models` shows them."""
    gemma, jamba, *zoo = tiny.describe()
    in_turn = ("ssm", "ssm", "attention") * 2
    for info in zoo:
        kinds = {"tiny-qwen3": ("attention",) * 6, "tiny-falcon-h1": ("attention+ssm",) * 6}
        wanted = ("ssm",) * 6 if info.name in ALONE else kinds.get(info.name, in_turn)
        assert info.layers == wanted
        assert (info.n_heads, info.n_kv_heads) == ((0, 0) if info.name in ALONE else (8, 2))
        assert info.context == 256
        assert 1_000_000 < info.parameters < 1_200_000
    assert gemma.layers == ("ssm", "ssm", "attention", "ssm", "ssm", "attention")
    assert (gemma.n_heads, gemma.n_kv_heads, gemma.window, gemma.context) == (8, 1, 256, 256)
    assert jamba.layers.count("attention") >= 2
    assert jamba.layers.count("ssm") >= 4
    assert (jamba.n_heads, jamba.n_kv_heads, jamba.window, jamba.context) == (8, 2, None, 512)
    config = json.loads((jamba.path / "config.json").read_text())
    assert (config["num_experts"], config["num_experts_per_tok"], config["mamba_d_state"]) == (4, 2, 8)
    for info in (gemma, jamba):
        model = AutoModelForCausalLM.from_pretrained(info.path)
        assert sum(p.numel() for p in model.parameters()) == info.parameters


@pytest.mark.parametrize("name", tiny.names())
def test_the_tokenizer_is_the_one_that_the_code_builds(name: str) -> None:
    """The training command would otherwise make another model than the one that is checked in."""
    loaded = AutoTokenizer.from_pretrained(tiny.path(name))
    assert isinstance(loaded, PreTrainedTokenizerFast)
    assert loaded.get_vocab() == build_tokenizer(recipe(name).max_length).get_vocab()
    assert loaded.model_max_length == recipe(name).max_length


@pytest.mark.parametrize("name", [name for name in tiny.names() if name not in ALONE])
def test_the_paper_needle_is_repeated_without_a_mistake_at_every_length(name: str) -> None:
    """Forty prompts of exact lengths at ten depths, teacher-forced; an untrained model gets none of them.

    By chance a prompt is right with probability 725 ** -23: the needle's parts never came together in
    training, so it can only be read from the prompt.
    """
    limit = recipe(name).max_length
    tokenizer = build_tokenizer(limit)
    source = make_source(tokenizer.backend_tokenizer, words(), seed=123, n_sentences=400)
    model = AutoModelForCausalLM.from_pretrained(tiny.path(name))
    found = probe(HybridLens(model), source, [limit // 4 + 16, limit // 2, 3 * limit // 4, limit], seed=9)
    assert sum(found.values()) / 4 >= 0.95, found
    untrained = probe(HybridLens(build(name, len(tokenizer), 0)), source, [limit // 2], seed=9)
    assert set(untrained.values()) == {0.0}


def test_names_and_paths_need_no_heavy_import() -> None:
    """In a fresh interpreter; torch alone takes seconds."""
    code = (
        "import sys\nfrom hybridlens import tiny\n"
        "tiny.describe()\nprint([m for m in ('torch', 'transformers', 'tokenizers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_offers_the_closest() -> None:
    """The user's own word, and the two there are."""
    with pytest.raises(UnknownNameError, match=r"'tiny-jamb'.*close names: tiny-jamba.*choose one of"):
        tiny.path("tiny-jamb")


def test_a_missing_checkpoint_says_how_to_make_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As after an installation without package data."""
    monkeypatch.setattr(tiny, "_FOLDER", tmp_path)
    with pytest.raises(CheckpointError, match=r"python -m hybridlens\.tiny\.train tiny-jamba --out"):
        tiny.path("tiny-jamba")
