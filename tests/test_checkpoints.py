"""Checkpoints that are broken, or meant to do harm: each is one line that names the file and what is wrong in it.

Every case starts from a folder that opens, and changes one thing. That a case is refused for the thing that was
changed, and not for another, is seen by its name in the message.
"""

import json
import math
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from bounds import FORWARD
from checkpoint_folders import make_folders, refused, rewrite
from models import FAMILIES, ROWS, make, tokens
from published import PUBLISHED
from safetensors.torch import save_file

import hybridlens as hl
from analyses.experiment.checkpoints import meta_lens
from hybridlens.errors import CheckpointError, HybridLensError, UnknownNameError
from hybridlens.families.fields import FIELDS, Ids, OneOf, Real, Table, Texts, Whole
from hybridlens.weights.sources import FileTensors

INDEX = "model.safetensors.index.json"
DEEP = "[" * 100_000 + "]" * 100_000
EVERY = (hl.load, hl.load_weights, lambda folder: meta_lens(str(folder)))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_folders(tmp_path_factory.mktemp("good"))


@pytest.fixture(params=FAMILIES)
def folder(request, made, tmp_path):
    return Path(shutil.copytree(made / request.param / "one", tmp_path / request.param))


@pytest.fixture(params=FAMILIES)
def shards(request, made, tmp_path):
    return Path(shutil.copytree(made / request.param / "shards", tmp_path / request.param))


# Configurations.

WRONG = {
    Whole: (-1.5, "x", [], {}, True, -(2**70), 2**70, 10**400, 1e300, math.nan),
    Real: (-1, "x", [], True, math.nan, math.inf, 10**400),
    OneOf: ("nonsense", 7, [], {}),
    Texts: ("x", 5, [], [1], {"a": 1}),
    Table: ([], "x", 3),
    Ids: ("x", 1.5, [None], -7, {"a": 1}, 53, 2**70),
}
"""What a field under each rule must not hold; 53 is the first id beyond the small models' vocabulary."""


def mutations(family):
    declared = make(family).config.to_dict()
    for name in sorted(declared):
        rule = FIELDS.get(name)
        for value in WRONG.get(type(rule), ()):
            yield pytest.param(family, name, value, id=f"{family}-{name}-{str(value)[:12]}")
        if isinstance(rule, Whole):
            yield pytest.param(family, name, rule.least - 1, id=f"{family}-{name}-low")
            yield pytest.param(family, name, rule.most + 1, id=f"{family}-{name}-high")


@pytest.mark.parametrize(("family", "name", "value"), [case for family in FAMILIES for case in mutations(family)])
def test_a_field_that_no_model_can_have(family, name, value, made):
    """Refused before transformers sees it, in the file and in memory, by the field's name."""
    from hybridlens.families.fields import check_values

    config = json.loads((made / family / "one" / "config.json").read_text()) | {name: value}
    with pytest.raises(CheckpointError, match=f"here: {name} is .*expected") as caught:
        check_values(config, "here")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("family", FAMILIES)
def test_most_fields_have_rules(family):
    """A field that transformers adds is seen here, and gets a rule or stands among those that change no number."""
    free = {
        "is_encoder_decoder", "output_attentions", "output_hidden_states", "return_dict", "problem_type", "model_type",
        "chunk_size_feed_forward", "_name_or_path", "transformers_version", "use_mamba_kernels", "use_mambapy",
        "use_associative_scan",
    }  # fmt: skip
    assert set(make(family).config.to_dict()) - set(FIELDS) - free == set()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("hidden_size", 0, "hidden_size is 0, expected a whole number from 1"),
        ("vocab_size", 10**12, "vocab_size is 1000000000000, expected a whole number"),
        ("num_hidden_layers", 10**6, "num_hidden_layers is 1000000, expected a whole number"),
        ("hidden_size", 10**9, "hidden_size is 1000000000, expected"),
        ("num_attention_heads", "4", "num_attention_heads is '4', expected"),
        ("pad_token_id", 53, "pad_token_id is 53, expected below vocab_size = 53"),
        ("eos_token_id", [1, 99], "eos_token_id is [1, 99], expected below vocab_size = 53"),
        ("rms_norm_eps", math.nan, "rms_norm_eps is nan, expected a number above 0"),
        ("dtype", "float12", "dtype is 'float12', expected one of"),
        ("transformers_weights", "../other.safetensors", "transformers_weights is"),
        ("num_key_value_heads", 3, "num_attention_heads is 4, expected a multiple of num_key_value_heads = 3"),
    ],
)
def test_every_way_of_opening_checks_the_fields(folder, name, value, expected):
    rewrite(folder, **{name: value})
    refused(folder, "config.json", expected, ways=EVERY)


@pytest.mark.parametrize(
    ("family", "changes", "expected"),
    [
        ("recurrentgemma", {"attention_window_size": 1}, "attention_window_size is 1, expected a whole number from 2"),
        ("recurrentgemma", {"attention_window_size": 2**64}, "attention_window_size is 18446744073709551616"),
        ("recurrentgemma", {"logits_soft_cap": math.inf}, "logits_soft_cap is inf, expected a number above 0"),
        ("recurrentgemma", {"logits_soft_cap": 0}, "logits_soft_cap is 0, expected a number above 0"),
        ("recurrentgemma", {"hidden_activation": "gelu9"}, "hidden_activation is 'gelu9', expected one of"),
        ("recurrentgemma", {"rope_parameters": []}, "rope_parameters is [], expected an object"),
        (
            "recurrentgemma",
            {"rope_parameters": {"partial_rotary_factor": 3, "rope_theta": 1e4}},
            "rope_parameters.partial_rotary_factor is 3, expected",
        ),
        ("recurrentgemma", {"block_types": ["convolution"]}, "block_types is ['convolution'], expected a list"),
        ("recurrentgemma", {"lru_width": 30}, "lru_width is 30, expected a multiple of num_attention_heads = 4"),
        ("jamba", {"attn_layer_period": 0}, "attn_layer_period is 0, expected a whole number from 1"),
        ("jamba", {"attn_layer_offset": 9}, "attention layer offset (9) must be smaller"),
        ("jamba", {"mamba_dt_rank": "some"}, "mamba_dt_rank is 'some', expected a whole number"),
        ("jamba", {"num_experts_per_tok": 9}, "num_experts_per_tok is 9, expected at most"),
        ("jamba", {"hidden_act": 5}, "hidden_act is 5, expected one of"),
        ("jamba", {"architectures": ["GPT2LMHeadModel"]}, "says model_type 'jamba', but architectures GPT2LMHeadModel"),
        ("jamba", {"model_type": "gpt2"}, "of no family that hybridlens knows; it opens RecurrentGemmaForCausalLM"),
        ("jamba", {"model_type": "nothing"}, "is a nothing, of no family that hybridlens knows"),
        ("jamba", {"model_type": ["jamba"]}, "has no configuration that can be read"),
        ("jamba", {"_attn_implementation": "magic"}, "magic"),
    ],
)
def test_fields_of_one_family(family, changes, expected, made, tmp_path):
    folder = Path(shutil.copytree(made / family / "one", tmp_path / "model"))
    rewrite(folder, **changes)
    for way in EVERY:
        with pytest.raises(CheckpointError) as caught:
            way(folder)
        assert "\n" not in str(caught.value)
        assert expected in str(caught.value)


@pytest.mark.parametrize("part", [0.0, 0.25, 0.5, 1.0])
def test_any_rotary_part_is_followed(part):
    """It stands inside another field, where it was not looked at; the untouched model says what is right."""
    parameters = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": part}
    model, ids = make("recurrentgemma", rope_parameters=parameters), tokens(2, 12)
    with torch.no_grad():
        expected = model(ids).logits
        difference = (hl.HybridLens(model)(ids) - expected).abs().max()
    assert float(difference) <= FORWARD * float(expected.abs().max())


def test_a_rotary_part_of_odd_width_is_refused():
    """Half of it would turn with the other half."""
    parameters = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 3 / 8}
    with pytest.raises(CheckpointError, match=r"partial_rotary_factor is 0\.375, expected one .* an even part of 8"):
        hl.HybridLens(make("recurrentgemma", rope_parameters=parameters))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", DEEP, '{"a":' * 50_000, '{"vocab_size": ' + "9" * 5000 + "}"]
)
def test_a_broken_configuration_file(folder, text):
    (folder / "config.json").write_text(text)
    refused(folder, "config.json is damaged")


def test_what_stands_behind_an_error_is_kept(folder):
    (folder / "config.json").write_text(DEEP)
    with pytest.raises(CheckpointError) as caught:
        hl.load(folder)
    assert isinstance(caught.value.__cause__, RecursionError)


def test_files_that_are_none(folder):
    (folder / "config.json").write_bytes(b"\xff\xfe{}")
    refused(folder, "config.json is damaged")
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    refused(folder, "config.json is no file")


@pytest.mark.parametrize("file", ["generation_config.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("text", ["{", "[]", "null", DEEP])
def test_files_beside_the_weights(folder, file, text):
    (folder / file).write_text(text)
    refused(folder, f"{file} is damaged")


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", DEEP, '{"model": null}', '{"version": "1.0", "model": {"type": "X"}}']
)
def test_a_broken_tokenizer(folder, text):
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match="tokenizer") as caught:
        hl.load(folder)
    assert "\n" not in str(caught.value)


# Indices and files.


@pytest.mark.parametrize(
    "target",
    ["/etc/passwd", "../other.safetensors", "w.bin", "sub/model.safetensors", ".hidden.safetensors", "", None, 5, ["a"],
     "a\0.safetensors", "C:model.safetensors", "..\\a.safetensors"],
)  # fmt: skip
def test_an_index_names_nothing_but_its_own_safetensors(shards, target, monkeypatch):
    """Refused before anything is opened: no file but the index and the configuration is read."""
    held = json.loads((shards / INDEX).read_text())
    held["weight_map"][next(iter(held["weight_map"]))] = target
    (shards / INDEX).write_text(json.dumps(held))
    opened: list[str] = []
    monkeypatch.setattr("hybridlens.weights.sources.safe_open", lambda path, **_: opened.append(path))
    monkeypatch.setattr("transformers.modeling_utils.safe_open", lambda path, **_: opened.append(path))
    monkeypatch.setattr("torch.load", lambda path, **_: opened.append(path))
    refused(shards, INDEX, "expected the plain name of a *.safetensors file", "nothing was opened")
    assert opened == []


def test_a_pickle_behind_a_decoy(shards, tmp_path):
    """A safetensors file nobody asks for does not make a pickled checkpoint safe."""

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    for file in shards.glob("*.safetensors"):
        file.unlink()
    save_file({"x": torch.zeros(1)}, shards / "decoy.safetensors")
    (shards / "w.bin").write_bytes(pickle.dumps(Bomb()))
    held = json.loads((shards / INDEX).read_text())
    (shards / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(held["weight_map"], "w.bin")}))
    refused(shards, "'w.bin'", "nothing was opened")
    (shards / INDEX).unlink()
    refused(shards, "pickled weights (w.bin)")
    (shards / ".metadata").write_bytes(pickle.dumps(Bomb()))
    refused(shards, "pickled parts of a distributed checkpoint (.metadata)")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "held", [{}, [], {"weight_map": None}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": "x"}]
)
def test_an_index_without_a_map(shards, held):
    (shards / INDEX).write_text(json.dumps(held))
    refused(shards, INDEX, "is damaged")


def test_an_index_that_names_the_wrong_shard(shards):
    """transformers reads all of every shard that is named, whatever the index says; a reader of one would not."""
    held = json.loads((shards / INDEX).read_text())
    name = next(iter(held["weight_map"]))
    other = next(file for file in held["weight_map"].values() if file != held["weight_map"][name])
    (shards / INDEX).write_text(json.dumps({"weight_map": held["weight_map"] | {name: other}}))
    refused(shards, name, f"but {INDEX} maps it to {other}")
    (shards / INDEX).write_text(json.dumps({"weight_map": {k: v for k, v in held["weight_map"].items() if k != name}}))
    refused(shards, name, "does not list it")
    (shards / INDEX).write_text(json.dumps({"weight_map": held["weight_map"] | {"model.new": other}}))
    refused(shards, f"maps model.new to {other}, which holds no such tensor")


def test_a_missing_shard(shards):
    gone = min(shards.glob("*.safetensors"))
    gone.unlink()
    refused(shards, f"lacks its shard {gone.name}", ways=(hl.load,))


def test_one_file_counts_before_an_index(shards, made):
    """Both readers take the same one of two sets of weights."""
    family = shards.name
    other = make(family, seed=5)
    other.save_pretrained(shards.parent / "other")
    shutil.copy(shards.parent / "other" / "model.safetensors", shards)
    assert FileTensors(shards).read("model.embed_tokens.weight").equal(other.model.embed_tokens.weight)
    assert hl.load(shards).hf_model.model.embed_tokens.weight.equal(other.model.embed_tokens.weight)


def test_what_may_not_be_read_is_one_line(folder, monkeypatch):
    """Of another user's files Python's own error came out."""

    def may_not(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    with monkeypatch.context() as changed:
        changed.setattr(Path, "open", may_not)
        refused(folder, "config.json cannot be read", "Permission denied")
    monkeypatch.setattr(Path, "iterdir", may_not)
    refused(folder, "cannot be read", "Permission denied")


def test_an_adapter_beside_the_weights(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/etc"}')
    refused(folder, "holds an adapter (adapter_config.json)")


# Names.


@pytest.mark.parametrize(
    "name", ["gpt2", "", " ", "tiny-jambo", "a" * 500, "a\0b", "owner/na me", "../x/y", "a/b/c", "x/..", "a--b/c"]
)
def test_names_of_nothing(name):
    """The line says what is embedded, what form a hub id has, and where the families are listed."""
    embedded = re.escape(f"neither an embedded checkpoint ({', '.join(hl.tiny.names())})")
    with pytest.raises(UnknownNameError, match=embedded) as caught:
        hl.load(name)
    for word in ("owner/name", f"of {len(ROWS)} families can be opened", "`hybridlens families`"):
        assert word in str(caught.value)
    assert len(str(caught.value)) < 500


def test_the_loader_is_told_in_one_line_too(folder, monkeypatch):
    """Whatever a library raises: an error of several lines of a class of its own."""

    class Strange(Exception):
        pass

    def fail(*args, **kwargs):
        raise Strange("first\n\n  second")

    monkeypatch.setattr("hybridlens.loading.AutoConfig.from_pretrained", fail)
    with pytest.raises(HybridLensError, match="has no configuration that can be read: first second") as caught:
        hl.load(folder)
    assert isinstance(caught.value.__cause__, Strange)


CARRIED = {
    "recurrentgemma": (
        "RecurrentGemma-2B", {"attention_dropout": 0.0, "embeddings_scale_by_sqrt_dim": True, "use_cache": True},
    ),
    "jamba": (
        "Jamba-v0.1", {"eos_token_id": [2, 518], "max_position_embeddings": 262144, "torch_dtype": "bfloat16"},
    ),
}  # fmt: skip
"""Family -> a published model of it, and fields of its file as older versions of the library wrote it."""


@pytest.mark.parametrize("family", FAMILIES)
def test_published_configurations_pass(family, tmp_path):
    """With the fields that old ones carry; a lens of their shapes is made without weights."""
    name, carried = CARRIED[family]
    fields = {field.removeprefix("_"): value for field, value in PUBLISHED[name].fields.items()} | carried
    (tmp_path / "config.json").write_text(json.dumps(fields))
    lens = meta_lens(str(tmp_path))
    assert lens.cfg.d_model == fields["hidden_size"]
    assert lens.cfg.n_layers == fields["num_hidden_layers"]
