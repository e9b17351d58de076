"""Checkpoints that are broken, or meant to do harm: each is one line that names the file and what is wrong in it.

Every case starts from a folder that opens, and changes one thing. That a case is refused for the thing that was
changed, and not for another, is seen by its name in the message.
"""

import json
import math
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from models import FAMILIES, MAKERS, make, tokens
from safetensors.torch import load_file, save_file

import hybridlens as hl
from analyses.checkpoints import meta_lens
from hybridlens.errors import CheckpointError, HybridLensError, UnknownNameError
from hybridlens.families.fields import FIELDS, Ids, OneOf, Real, Table, Texts, Whole
from hybridlens.weights.sources import FileTensors

INDEX = "model.safetensors.index.json"
DEEP = "[" * 100_000 + "]" * 100_000
EVERY = (hl.load, hl.load_weights, lambda folder: meta_lens(str(folder)))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of each family in one file, and in shards; with a tokenizer."""
    folder = tmp_path_factory.mktemp("good")
    for family in FAMILIES:
        model = make(family)
        for kind, size in (("one", "1GB"), ("shards", "20KB")):
            model.save_pretrained(folder / family / kind, max_shard_size=size)
    return folder


@pytest.fixture(params=FAMILIES)
def folder(request, made, tmp_path):
    return Path(shutil.copytree(made / request.param / "one", tmp_path / request.param))


@pytest.fixture(params=FAMILIES)
def shards(request, made, tmp_path):
    return Path(shutil.copytree(made / request.param / "shards", tmp_path / request.param))


def rewrite(folder, file="config.json", **changes):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


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
    declared = MAKERS[family]().config.to_dict()
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
    assert set(MAKERS[family]().config.to_dict()) - set(FIELDS) - free == set()


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
        ("jamba", {"model_type": "nothing"}, "has no configuration that can be read"),
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


def test_a_rotary_part_that_the_family_was_not_built_for():
    """It stands inside another field, where it was not looked at."""
    parameters = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}
    model = make("recurrentgemma", rope_parameters=parameters)
    with pytest.raises(CheckpointError, match=r"rope_parameters\.partial_rotary_factor is 0\.25, expected 0\.5"):
        hl.HybridLens(model)


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


def test_an_adapter_beside_the_weights(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/etc"}')
    refused(folder, "holds an adapter (adapter_config.json)")


# Tensors.


def change(folder, edit):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


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
    from dataclasses import replace

    from hybridlens.families import FAMILIES as rows

    spared = tuple(replace(row, spare_tensors=(r"^model\.extra$",)) for row in rows)
    monkeypatch.setattr("hybridlens.loading.FAMILIES", spared)
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
    from hybridlens.weights.finite import RUN, WHOLE, is_finite

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


# Names.


@pytest.mark.parametrize(
    "name", ["gpt2", "", " ", "tiny-jambo", "a" * 500, "a\0b", "owner/na me", "../x/y", "a/b/c", "x/..", "a--b/c"]
)
def test_names_of_nothing(name):
    """The line says what is embedded, what form a hub id has, and which families there are."""
    with pytest.raises(
        UnknownNameError, match=r"neither an embedded checkpoint \(tiny-recurrentgemma, tiny-jamba\)"
    ) as caught:
        hl.load(name)
    for word in ("owner/name", "JambaForCausalLM", "RecurrentGemmaForCausalLM"):
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
