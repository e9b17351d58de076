"""Which family a checkpoint or a model is of, and one line for what is of none."""

import json

import pytest
import torch
import transformers
from models import make
from niah_tokenizers import KINDS
from published import qwen3_5

import hybridlens as hl
from hybridlens.errors import CheckpointError
from hybridlens.families import FAMILIES, family_for, of_no_family, text_config
from hybridlens.loading import read_config, read_tokenizer

WHOLE = "Qwen3_5ForConditionalGeneration"
SIZES = {
    "num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4,
    "num_key_value_heads": 2, "linear_num_value_heads": 16,
}  # fmt: skip


def refused(call, *words):
    """One line with all of the words in it."""
    with pytest.raises(CheckpointError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def written(folder, config):
    """A folder with this config.json."""
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("Qwen3_6ForCausalLM", "Qwen3_5ForCausalLM"),
        ("JambaLMHeadModel", "JambaForCausalLM"),
        ("falcon_h2", "FalconH1ForCausalLM"),
        ("qwen3_5_moe_omni", "Qwen3_5MoeForCausalLM"),
        ("RecurrentGemma2ForCausalLM", "RecurrentGemmaForCausalLM"),
    ],
)
def test_what_is_near_an_unknown_model(given, near):
    message = str(of_no_family("the model", given))
    assert message.startswith(f"the model is a {given}, of no family that hybridlens knows; it opens Recurrent")
    opened, close = message.split("; close names: ")
    assert all(family.architecture in opened for family in FAMILIES)
    assert near in close.split(", ")[:2]


def test_nothing_is_near_what_only_ends_alike():
    """All classes end alike, which makes no two models near."""
    assert "close names" not in str(of_no_family("the model", "XyzForCausalLM"))
    refused(lambda: hl.HybridLens(torch.nn.Linear(2, 2)), "the model is a Linear, of no family that hybridlens knows")


def test_a_model_that_transformers_does_not_know(tmp_path):
    folder = written(tmp_path, {"model_type": "qwen3_7", "architectures": ["Qwen3_7ForCausalLM"]})
    words = (
        folder,
        "is a qwen3_7, of no family",
        "it opens RecurrentGemmaForCausalLM",
        "close names: Qwen3",
    )
    for way in (hl.load, hl.load_weights):
        refused(lambda way=way: way(folder), *words)


def test_the_name_of_another_family_in_a_checkpoint(tmp_path):
    config = make("qwen3_5").config.to_dict()
    folder = written(tmp_path, config | {"architectures": ["Qwen3NextForCausalLM"]})
    words = ("model_type 'qwen3_5_text'", "architectures Qwen3NextForCausalLM, expected Qwen3_5ForCausalLM")
    refused(lambda: hl.load(folder), folder, *words)
    folder = written(tmp_path, qwen3_5("qwen3_5", "Qwen3_5MoeForConditionalGeneration", True, **SIZES))
    words = ("model_type 'qwen3_5', but architectures Qwen3_5Moe", f"expected {WHOLE} or Qwen3_5ForCausalLM")
    refused(lambda: hl.load(folder), folder, *words)


@pytest.mark.parametrize("field", ["attn_output_gate", "mamba_ssm_dtype", "layer_types", "hidden_act", "no_such_field"])
def test_fields_of_a_nested_configuration_are_looked_at(tmp_path, field):
    """What the text model was not built for is refused though it stands inside."""
    values = {"attn_output_gate": False, "mamba_ssm_dtype": "bfloat16", "hidden_act": "relu", "no_such_field": 3}
    values["layer_types"] = ["linear_attention", "sliding_attention", "linear_attention", "full_attention"]
    config = qwen3_5("qwen3_5", WHOLE, True, **SIZES)
    config["text_config"][field] = values[field]
    folder = written(tmp_path, config)
    bad = "sliding_attention" if field == "layer_types" else values[field]
    refused(lambda: hl.load(folder), field, repr(bad))


def test_the_text_model_of_a_nested_configuration(tmp_path):
    """It is tied where either of the two says so, and quantised where the whole model is."""
    for within, without in ((True, False), (False, True), (False, False)):
        config = qwen3_5("qwen3_5", WHOLE, within, **SIZES) | {"tie_word_embeddings": without}
        text = read_config(written(tmp_path, config | {"quantization_config": {"quant_method": "gptq", "bits": 4}}))
        assert family_for(text, "it").name == "qwen3_5"
        assert text.tie_word_embeddings == (within or without)
        assert text.quantization_config["quant_method"] == "gptq"
    refused(lambda: hl.load_weights(tmp_path), "is quantised, so its stored numbers are not its weights")
    plain = make("jamba").config
    assert text_config(plain, "it") is plain


def test_a_multimodal_model_in_memory_says_what_to_give(tmp_path):
    config = transformers.Qwen3_5Config(**qwen3_5("qwen3_5", WHOLE, True, **SIZES))
    config.vision_config.depth = 1
    with torch.device("meta"):
        model = getattr(transformers, WHOLE)(config)
    refused(lambda: hl.HybridLens(model), f"the model is a {WHOLE}, whose text model alone", "or HybridLens a Qwen3_5F")


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_tokenizer_of_another_sort_than_the_published_one(kind, tmp_path):
    """transformers makes Qwen's own of it for a Qwen3.5, which knows none of its words."""
    made = KINDS[kind]()
    made.save_pretrained(tmp_path)
    make("qwen3_5", vocab_size=len(made)).config.save_pretrained(tmp_path)
    read, text = read_tokenizer(str(tmp_path)), "The best thing to do in San Francisco is eat a sandwich."
    assert read(text)["input_ids"] == made(text)["input_ids"]
    assert len(read) == len(made)
