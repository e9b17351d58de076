"""Folders as people have them: links of a hub cache, resized vocabularies, pickled weights, odd quantisations."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from bounds import FORWARD, close
from models import make, tokens
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import hybridlens as hl
from hybridlens.errors import CheckpointError, HybridLensError

IDS = tokens(2, 6)
FAMILY = "recurrentgemma"
WORDS = [f"w{i}" for i in range(53)]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model = make(FAMILY)
    model.save_pretrained(folder, max_shard_size="20KB")
    tokenizer().save_pretrained(folder)
    with torch.no_grad():
        return folder, model(IDS).logits


def tokenizer(*added: str) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="w0", bos_token="w1", eos_token="w2")
    made.add_tokens(list(added))
    return made


def every(weights):
    """Read some of every layer, so that every shard is opened."""
    return [weights.mlp(layer) for layer in range(4)]


def linked(saved: Path, cache: Path, relative: bool) -> Path:
    """The layout of a hub cache: a snapshot of links to blobs that are named by their digests."""
    blobs, snapshot = cache / "blobs", cache / "snapshots" / ("a" * 40)
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for place, file in enumerate(sorted(saved.iterdir())):
        blob = blobs / f"{place:040x}"
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(Path("../..") / "blobs" / blob.name if relative else blob)
    return snapshot


@pytest.mark.parametrize("relative", [True, False])
def test_a_snapshot_of_links_opens(saved, tmp_path, relative):
    """And so does a link to it; weights alone come from the same files."""
    snapshot = linked(saved[0], tmp_path / "cache", relative)
    (tmp_path / "link").symlink_to(snapshot, target_is_directory=True)
    for folder in (snapshot, tmp_path / "link"):
        lens = hl.load(folder)
        close(lens(IDS), saved[1], FORWARD)
        assert lens.to_tokens("w7 w8")[0].tolist()[-2:] == [7, 8]
    layer = lens.cfg.attention_layers[0]
    assert torch.equal(hl.load_weights(snapshot).attention(layer).W_Q, hl.load_weights(saved[0]).attention(layer).W_Q)


@pytest.mark.parametrize("file", ["config.json", "model-00001", "model.safetensors.index.json", "tokenizer.json"])
@pytest.mark.parametrize("way", [hl.load, hl.load_weights])
def test_a_link_to_nothing_is_named(saved, tmp_path, file, way):
    """A tokenizer whose blob was cleaned away opened without one, and without a word."""
    snapshot = linked(saved[0], tmp_path / "cache", True)
    link = next(path for path in snapshot.iterdir() if path.name.startswith(file))
    link.resolve().unlink()
    said = rf"{link.name} is a link to '\.\./\.\./blobs/.*', which is not there"
    with pytest.raises(CheckpointError, match=said) as caught:
        every(way(snapshot))
    assert "\n" not in str(caught.value)


def test_a_resized_vocabulary(tmp_path):
    """Three tokens more, rounded up to rows of 8: text, logits and the rows that no token has."""
    model = make(FAMILY)
    model.resize_token_embeddings(56, pad_to_multiple_of=8)
    assert model.config.vocab_size == 56
    model.resize_token_embeddings(57, pad_to_multiple_of=8)
    model.save_pretrained(tmp_path)
    tokenizer("xa", "xb", "xc", "xd").save_pretrained(tmp_path)
    lens = hl.load(tmp_path)
    assert lens.cfg.d_vocab == 64
    ids = lens.to_tokens("w5 xa xd")
    assert ids[0].tolist()[-3:] == [5, 53, 56]
    close(lens(ids), model(ids).logits, FORWARD)
    assert lens(ids).shape[-1] == 64
    assert hl.load_weights(tmp_path).attention(lens.cfg.attention_layers[0]).W_Q.shape[0] == lens.cfg.n_heads


def test_a_tokenizer_with_more_tokens_than_rows(saved, tmp_path):
    """It opens, since most texts need none of them; one that does is refused by its number."""
    folder = Path(shutil.copytree(saved[0], tmp_path / "m"))
    tokenizer("xa").save_pretrained(folder)
    lens = hl.load(folder)
    close(lens("w5 w6"), lens.hf_model(torch.tensor(lens.to_tokens("w5 w6"))).logits, FORWARD)
    with pytest.raises(HybridLensError, match="53") as caught:
        lens("w5 xa")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [40, 64])
def test_a_vocabulary_of_another_size_than_the_rows(saved, tmp_path, size):
    folder = Path(shutil.copytree(saved[0], tmp_path / "m"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": size}))
    for way in (hl.load, hl.load_weights):
        with pytest.raises(CheckpointError, match=rf"embed_tokens.*shape \[53, 32\].*\[{size}, 32\]"):
            way(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.ckpt", "model.pt"])
def test_pickled_weights_alone_are_refused(saved, tmp_path, name):
    folder = tmp_path / "m"
    folder.mkdir()
    shutil.copy(saved[0] / "config.json", folder)
    torch.save({}, folder / name)
    for way in (hl.load, hl.load_weights):
        with pytest.raises(CheckpointError, match=rf"holds pickled weights \({name}\).*convert them to safetensors"):
            way(folder)


@pytest.mark.parametrize("method", ["nonsense", "gptq", "awq", "hqq"])
def test_quantisations_that_cannot_run_here(saved, tmp_path, method):
    """Of one that it does not know transformers would take the numbers for the weights."""
    folder = Path(shutil.copytree(saved[0], tmp_path / "m"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"(?i)quantised by 'nonsense'|pip install|version|device|gpu") as caught:
        hl.load(folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="is quantised, so its stored numbers are not its weights"):
        hl.load_weights(folder)
