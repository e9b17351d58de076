"""GGUF files against the model that they were written of, and what transformers would leave out of them."""

import pytest
import torch
from bounds import FORWARD, close
from models import make, tokens

import hybridlens as hl
from hybridlens.errors import CheckpointError

pytest.importorskip("gguf")  # a package of the development extras
from gguf_writing import dequantised, write

IDS = tokens(2, 9)
PLAIN = {"rope_type": "default", "rope_theta": 5e4}
CHANGES = {
    "llama": {"rope_parameters": PLAIN, "attention_bias": False, "mlp_bias": False},
    "qwen3": {"rope_parameters": PLAIN, "layer_types": ["full_attention"] * 3, "use_sliding_window": False},
    "gemma3": {
        "num_hidden_layers": 7, "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
        "query_pre_attn_scalar": 12, "final_logit_softcapping": None,
        "rope_parameters": {"full_attention": PLAIN, "sliding_attention": PLAIN | {"rope_theta": 1e4}},
    },
    "mamba": {"use_bias": False},
    "lfm2": {},
}  # fmt: skip
"""What a GGUF file can say of each family that transformers dequantises: Llama without biases, say."""
LETTERS = ["<unk>", "<bos>", "<eos>", "<pad>", "<mask>", "▁", *"abcdefghijklmnopqrstuvwxyz.", "▁a", "ab", "cd"]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("family", CHANGES)
def test_a_file_is_the_model_that_it_was_written_of(family, tmp_path):
    """Order of rotary halves, norms about 1, -exp(A_log): any of them left as it is moves the logits at once."""
    model = make(family, **CHANGES[family])
    lens = hl.load(write(tmp_path / "model.gguf", model, family))
    close(lens(IDS), model(IDS).logits, FORWARD)
    assert lens.cfg.d_vocab == 53
    assert not getattr(lens.hf_model, "is_quantized", False)


def test_quantised_values_are_dequantised(tmp_path):
    """In 8 bits the logits are those of a model with the values that the package gguf itself gives back."""
    model = make("llama", **CHANGES["llama"], hidden_size=32, intermediate_size=64)
    lens = hl.load(write(tmp_path / "model.gguf", model, "llama", "Q8_0"))
    before = model(IDS).logits
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and not ("q_proj" in name or "k_proj" in name):
            weight.copy_(dequantised(weight, "Q8_0"))
    for layer in model.model.layers:  # rows are quantised one by one, so their order does not count
        for project in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            project.weight.copy_(dequantised(project.weight, "Q8_0"))
    assert float((model(IDS).logits - before).abs().max()) > 1e-3 * float(before.abs().max())
    close(lens(IDS), model(IDS).logits, FORWARD)
    assert lens.W_O.shape[0] == lens.cfg.n_layers


def test_its_tokenizer_comes_with_it(tmp_path):
    model = make("gemma3", **CHANGES["gemma3"], vocab_size=len(LETTERS))
    lens = hl.load(write(tmp_path / "model.gguf", model, "gemma3", tokens=LETTERS))
    ids = lens.to_tokens("abcd ef.")[0].tolist()
    assert ids[0] == LETTERS.index("<bos>")
    assert lens.to_string(ids[1:]) == "abcd ef."
    assert max(ids) < len(LETTERS)


@pytest.mark.parametrize(
    ("family", "entries", "said"),
    [
        ("gemma3", {"rope__scaling__type": "linear", "rope__scaling__factor": 8.0}, "rope.scaling.type = 'linear'"),
        ("gemma3", {"rope__freq_base_swa": 5.0}, "rope.freq_base_swa = 5.0"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0"),
        ("gemma3", {"attention__sliding_window_pattern": 2}, "attention.sliding_window_pattern = 2"),
        ("llama", {"expert_count": 8}, "expert_count = 8"),
        ("mamba", {"ssm__dt_b_c_rms": True}, "ssm.dt_b_c_rms = True"),
        ("lfm2", {"leading_dense_block_count": 2}, "leading_dense_block_count = 2"),
    ],
)
def test_what_transformers_does_not_read_is_refused(family, entries, said, tmp_path):
    """It gave another model than the file holds, without a word."""
    file = write(tmp_path / "model.gguf", make(family, **CHANGES[family]), family, **entries)
    with pytest.raises(CheckpointError) as caught:
        hl.load(file)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_entries_that_say_what_the_model_is_pass(tmp_path):
    more = {"attention__sliding_window_pattern": 6, "rope__freq_base_swa": 1e4, "rope__scaling__type": "none"}
    model = make("gemma3", **CHANGES["gemma3"])
    close(hl.load(write(tmp_path / "model.gguf", model, "gemma3", **more))(IDS), model(IDS).logits, FORWARD)


def test_tensors_without_a_place_are_refused(tmp_path):
    model = make("llama", **{**CHANGES["llama"], "attention_bias": True})
    with pytest.raises(CheckpointError, match=r"holds blk\.0\.attn_k\.bias, for which transformers has no place"):
        hl.load(write(tmp_path / "model.gguf", model, "llama"))


def test_weights_alone_are_refused(tmp_path):
    file = write(tmp_path / "model.gguf", make("llama", **CHANGES["llama"]), "llama")
    with pytest.raises(CheckpointError, match=r"is a GGUF file, whose weights are read with the model"):
        hl.load_weights(file)
    with pytest.raises(CheckpointError, match=r"in GGUF alone \(model\.gguf\); give the file itself: hl\.load"):
        hl.load(tmp_path)


@pytest.mark.parametrize("kind", ["jamba", "falcon-h1"])
def test_other_architectures_are_refused(kind, tmp_path):
    import gguf

    writer = gguf.GGUFWriter(str(tmp_path / "model.gguf"), kind)
    writer.add_context_length(8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=f"is a GGUF file of a {kind}, which transformers does not dequantise"):
        hl.load(tmp_path / "model.gguf")


@pytest.mark.parametrize("data", [b"", b"GGUF", b"GGUF\3\0\0\0" + b"\xff" * 40])
def test_files_that_are_none(data, tmp_path):
    (tmp_path / "model.gguf").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"is no GGUF file that can be read") as caught:
        hl.load(tmp_path / "model.gguf")
    assert "\n" not in str(caught.value)


def test_the_package_that_is_missing_is_named(tmp_path, monkeypatch):
    file = write(tmp_path / "model.gguf", make("llama", **CHANGES["llama"]), "llama")
    monkeypatch.setattr("hybridlens.gguf_files.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="pip install gguf"):
        hl.load(file)
