"""Checkpoints: what loads, what is refused, and what the published configurations come out as."""

import json

import pytest
import torch
from bounds import close
from models import FAMILIES, make, tokens
from transformers import JambaConfig, JambaForCausalLM, RecurrentGemmaConfig, RecurrentGemmaForCausalLM

from hybridlens import HybridLens, HybridLensError, load, load_weights
from hybridlens.errors import LeftOutWarning


@pytest.fixture(params=FAMILIES)
def folder(request, tmp_path):
    make(request.param).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_folder_loads_in_every_precision(folder, dtype):
    lens = load(folder, dtype=dtype)
    assert str(lens.dtype) == f"torch.{dtype}"
    assert lens.tokenizer is None
    with torch.no_grad():
        assert lens(tokens(1, 8)).isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_offloaded_weights_are_brought_in(family):
    """accelerate keeps the weights away and fetches them at each module's call; ours are fetched all the same."""
    from accelerate import cpu_offload

    ids = tokens(2, 12)
    with torch.no_grad():
        expected = HybridLens(make(family))(ids)
        model = cpu_offload(make(family), execution_device=torch.device("cpu"))
        assert next(model.parameters()).device.type == "meta"
        lens = HybridLens(model)
        got, cache = lens.run_with_cache(ids)
        assert torch.equal(got, expected)
        assert torch.equal(lens(ids), expected)
        assert cache["resid_post", 0].device.type == "cpu"


def test_a_device_map_loads(folder):
    lens = load(folder, device_map={"": "cpu"})
    with torch.no_grad():
        close(lens(tokens(1, 9)), load(folder)(tokens(1, 9)))


REFUSED = {
    "unknown name": ("tiny-recurentgemma", "neither an embedded checkpoint.*close names: tiny-recurrentgemma"),
    "missing folder": ("./nowhere", "'./nowhere' is neither an embedded checkpoint"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_names_that_stand_for_nothing_are_refused(case):
    name, message = REFUSED[case]
    with pytest.raises(HybridLensError, match=message):
        load(name)


def rewrite(folder, file="config.json", **changes):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_checkpoints_that_cannot_be_opened_are_refused(folder, tmp_path):
    with pytest.raises(HybridLensError, match="dtype 'int8' given, expected one of float32, bfloat16, float16"):
        load(folder, dtype="int8")
    with pytest.raises(HybridLensError, match="give one of them"):
        load(folder, device="cpu", device_map="auto")
    rewrite(folder, sharpness=3)
    with pytest.raises(HybridLensError, match="configuration field sharpness = 3, expected no such field"):
        load(folder)


def test_another_family_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(HybridLensError, match=r"is a GPT2LMHeadModel, of no family that hybridlens knows"):
        load(tmp_path)
    # Its family is what keeps it from being opened, whatever its values are.
    wrong = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 300, "bos_token_id": 50256}
    (tmp_path / "config.json").write_text(json.dumps(wrong))
    with pytest.raises(HybridLensError, match=r"is a GPT2LMHeadModel, of no family that hybridlens knows"):
        load(tmp_path)
    with pytest.raises(HybridLensError, match="the model is a Linear, of no family that hybridlens knows"):
        HybridLens(torch.nn.Linear(2, 2))


def test_pickled_and_missing_weights_are_refused_before_they_are_read(folder):
    weights = folder / "model.safetensors"
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(HybridLensError, match=r"pickled weights \(pytorch_model.bin\).*convert them to safetensors"):
        load(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(HybridLensError, match=r"holds no weights, expected model\.safetensors"):
        load(folder)


def test_a_damaged_weights_file_is_one_line(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(HybridLensError, match=r"model\.safetensors cannot be read") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_a_git_lfs_pointer_is_named_for_what_it_is(folder):
    """What `git clone` leaves without git-lfs, of weights and of a tokenizer."""
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    (folder / "tokenizer.json").write_bytes(pointer)
    with pytest.raises(HybridLensError, match=r"tokenizer\.json is a Git LFS pointer.*git lfs pull") as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    (folder / "tokenizer.json").unlink()
    (folder / "model.safetensors").write_bytes(pointer)
    for way in (load, load_weights):
        with pytest.raises(HybridLensError, match=r"model\.safetensors is a Git LFS pointer"):
            way(folder)


def test_without_a_vocabulary_there_is_no_tokenizer(folder):
    """Settings of one alone are said to be left out; ids can be used, and text says what is missing."""
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.warns(LeftOutWarning, match=r"no vocabulary \(tokenizer\.json\); opened without a tokenizer"):
        lens = load(folder)
    assert lens.tokenizer is None
    assert lens.to_tokens([1, 2]).tolist() == [[1, 2]]
    with pytest.raises(HybridLensError, match="tokenizer"):
        lens.to_tokens("a city")


def test_answers_end_as_generation_config_says(folder):
    """Models of chats name their end of turn there alone; a row stops where the library's own does."""
    ids = tokens(1, 6)
    free = load(folder).generate(ids, max_new_tokens=8, stop_at_eos=False).tokens[0].tolist()
    end = free[3]
    rewrite(folder, "generation_config.json", eos_token_id=[2, end])
    lens = load(folder)
    made = lens.generate(ids, max_new_tokens=8)
    said = made.tokens[0, : int(made.lengths[0])].tolist()
    theirs = lens.hf_model.generate(ids, max_new_tokens=8, do_sample=False)[0, 6:].tolist()
    assert lens.cfg.eos_token_ids == (2, end)
    assert said == theirs == free[: free.index(end) + 1]
    (folder / "generation_config.json").unlink()
    assert load(folder).cfg.eos_token_ids == (lens.hf_model.config.eos_token_id,)


def test_dtype_and_places_are_passed_on(folder, tmp_path):
    """The checkpoint's own dtype; accelerate's budget, of which 20 kB leave most layers on the disk."""
    assert str(load(folder, dtype="auto").dtype) == "torch.float32"
    load(folder, dtype="bfloat16").hf_model.save_pretrained(tmp_path / "narrow")
    assert str(load(tmp_path / "narrow", dtype="auto").dtype) == "torch.bfloat16"
    away = load(folder, device_map="auto", max_memory={"cpu": "20kB"}, offload_folder=tmp_path / "away")
    assert "disk" in away.hf_model.hf_device_map.values()
    for option in ({"max_memory": {"cpu": "20kB"}}, {"offload_folder": tmp_path}):
        with pytest.raises(HybridLensError, match=f"{next(iter(option))} given without device_map"):
            load(folder, **option)
    with pytest.raises(HybridLensError, match="revision 'main' given for the folder"):
        load(folder, revision="main")


PUBLISHED = {
    "RecurrentGemma-2B": (
        RecurrentGemmaForCausalLM, RecurrentGemmaConfig(num_key_value_heads=1, intermediate_size=15360),
        {"n_layers": 26, "d_model": 2560, "n_heads": 10, "n_kv_heads": 1, "d_head": 256, "window": 2048,
         "attention_layers": tuple(range(2, 24, 3)), "d_vocab": 256000, "d_mlp": 7680, "d_channels": 2560},
        (2_027_502_080, 2_682_862_080), 26 * 9 + 8 * 10 + 18 * 11 + 26 * 3 + 4,
    ),
    "RecurrentGemma-9B": (
        RecurrentGemmaForCausalLM,
        RecurrentGemmaConfig(num_hidden_layers=38, hidden_size=4096, num_attention_heads=16, num_key_value_heads=1,
                             intermediate_size=24576),
        {"n_layers": 38, "d_model": 4096, "n_heads": 16, "d_head": 256, "attention_layers": tuple(range(2, 36, 3)),
         "d_channels": 4096},
        (7_531_401_216, 8_579_977_216), 38 * 9 + 12 * 10 + 26 * 11 + 38 * 3 + 4,
    ),
    "Jamba-Mini": (
        JambaForCausalLM, JambaConfig(),
        {"n_layers": 32, "d_model": 4096, "n_heads": 32, "n_kv_heads": 8, "d_head": 128, "window": None,
         "attention_layers": (4, 12, 20, 28), "d_vocab": 65536, "n_experts": 16, "d_channels": 8192, "d_state": 16},
        (51_033_452_416, 12_110_311_296), 32 * 9 + 4 * 8 + 28 * 12 + 16 * 3 + 16 * 3 + 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_come_out_right_without_weights(name):
    """Names, shapes of a real forward pass on the meta device, and the parameter counts of the paper's appendix."""
    model_class, config, expected, (non_embedding, active), n_points = PUBLISHED[name]
    config._experts_implementation = "batched_mm"  # the only one whose shapes do not depend on values
    with torch.device("meta"):
        lens = HybridLens(model_class(config))
        ids = torch.zeros(2, 5, dtype=torch.long)
    assert {field: getattr(lens.cfg, field) for field in expected} == expected
    assert lens.n_parameters[1:] == (non_embedding, active)
    assert len(lens.hook_points) == n_points
    shapes = {}
    with torch.no_grad():
        lens.run_with_hooks(ids, [(list(lens.hook_points), lambda x, hook: shapes.__setitem__(hook.name, x.shape))])
    assert list(shapes) == list(lens.hook_points)
    for point, spec in lens.hook_points.items():
        sizes = dict(zip(spec.axes, spec.sizes, strict=True)) | {"b": 2, "p": 5, "k": 5}
        assert tuple(shapes[point]) == tuple(sizes[axis] for axis in spec.axes), point
