"""Adapters of PEFT, from their folders, against PEFT's own model and its own merged one.

Every adapter is random and moves the logits by about their own size, so that half of one, or none, is seen at once.
"""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from adapted_models import FAMILY, FEW, IDS, adapted, refused
from bounds import FORWARD, LAYER, close
from models import make
from safetensors.torch import load_file, save_file

import hybridlens as hl
from analyses.cli import main
from analyses.experiment.checkpoints import open_model, weights_hash
from hybridlens.loading import checkpoint
from hybridlens.weights import Weights
from hybridlens.weights.merged import targeted

OTHER = "base_model.model.model.layers.9.self_attn.q_proj"
NORM = "input_layernorm"


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a base model, one with its adapter, and the logits of both."""
    folder = tmp_path_factory.mktemp("adapters")
    model = make(FAMILY)
    model.save_pretrained(folder / "base")
    with torch.no_grad():
        base = model(IDS).logits
        model = adapted(hl.load(folder / "base").hf_model, rank_pattern={"o_proj": 3}, alpha_pattern={"o_proj": 5})
        model.save_pretrained(folder / "lora")
        logits = model(IDS).logits
        assert float((logits - base).abs().max()) > 0.3 * float(base.abs().max())
    return folder, base, logits


@pytest.fixture
def folders(made, tmp_path):
    return Path(shutil.copytree(made[0], tmp_path / "m"))


def both_in_one(folders):
    for file in (folders / "lora").iterdir():
        shutil.copy(file, folders / "base")
    return folders / "base"


# From folders.


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("way", ["alone", "both in one folder", "named beside the model"])
def test_an_adapter_is_followed_or_merged(folders, made, way, merge):
    """A folder that held both gave the base model without a word where PEFT was absent."""
    _, base, logits = made
    if way == "alone":
        lens = hl.load(folders / "lora", merge=merge)
    elif way == "both in one folder":
        lens = hl.load(both_in_one(folders), merge=merge)
        close(hl.load(folders / "base", adapter=False)(IDS), base, FORWARD)
    else:
        lens = hl.load(folders / "base", adapter=folders / "lora", merge=merge)
    close(lens(IDS), logits, FORWARD)
    assert merge is not any("lora" in name for name, _ in lens.hf_model.named_parameters())


def test_a_run_is_of_the_adapted_model_and_says_so(folders):
    """What is recorded as the weights of a run differs with the adapter that lies beside them."""
    files = checkpoint(folders / "base")
    alone = weights_hash(files, open_model(files, "cpu", "float32"))
    both = checkpoint(both_in_one(folders))
    adapted_too = weights_hash(both, open_model(both, "cpu", "float32"))
    assert alone != adapted_too
    weights = load_file(folders / "base" / "adapter_model.safetensors")
    save_file({name: weight * 2 for name, weight in weights.items()}, folders / "base" / "adapter_model.safetensors")
    again = checkpoint(folders / "base")
    assert weights_hash(again, open_model(again, "cpu", "float32")) not in (alone, adapted_too)


def test_points_states_and_decoding_are_the_adapted_models(folders, made):
    """What heads write adds up to attention's output less its bias; in chunks and step by step the logits are its."""
    lens = hl.load(folders / "lora")
    _, cache = lens.run_with_cache(IDS)
    layer = lens.cfg.attention_layers[0]
    close(cache["result", layer].sum(2), cache["attn_out", layer], LAYER)
    state = lens.prefill(IDS[:, :3]).state
    close(lens.extend(state, IDS[:, 3:]).logits[:, -1], made[2][:, -1], FORWARD)
    said = lens.hf_model.generate(IDS[:1], max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert lens.generate(IDS[:1], 5, stop_at_eos=False).tokens.tolist() == said[:, 6:].tolist()


def test_weights_in_files_are_merged_or_refused(folders):
    """W + scale · B · A of the two folders is what PEFT merges, with ranks and alphas of single modules."""
    refused(lambda: hl.load_weights(folders / "lora"), "holds an adapter", "merge=True", "adapter=False")
    merged = hl.load(folders / "lora", merge=True)
    own, files = Weights.of_model(merged), hl.load_weights(folders / "lora", merge=True)
    layer = merged.cfg.attention_layers[0]
    for name in ("W_Q", "W_K", "W_V", "W_O"):
        close(getattr(files.attention(layer), name), getattr(own.attention(layer), name), LAYER)
    recurrent = merged.cfg.ssm_layers[0]
    close(files.recurrent(recurrent).parts.W_in, own.recurrent(recurrent).parts.W_in, LAYER)
    refused(lambda: Weights.of_model(hl.load(folders / "lora")).attention(layer), "merge")


def test_scales_of_rank_stabilised_adapters(folders):
    adapted(hl.load(folders / "base").hf_model, use_rslora=True, r=4).save_pretrained(folders / "rs")
    own = Weights.of_model(hl.load(folders / "rs", merge=True)).attention(1)
    close(hl.load_weights(folders / "rs", merge=True).attention(1).W_Q, own.W_Q, LAYER)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"use_dora": True}, "use_dora True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save ['lm_head']"),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters ['experts.down_proj']"),
        ({"target_modules": ["embed_tokens"]}, "model.embed_tokens"),
    ],
)
def test_other_kinds_are_followed_and_not_read_in_half(folders, settings, word):
    """Their matrices are no W + B · A, or not all that they change."""
    model = adapted(hl.load(folders / "base").hf_model, **settings)
    model.save_pretrained(folders / "other")
    close(hl.load(folders / "other")(IDS), model(IDS).logits, FORWARD)
    refused(lambda: hl.load_weights(folders / "other", merge=True), word, "merge=True")


@pytest.mark.parametrize(
    ("change", "said", "of_weights"),
    [
        (lambda held: {name: held[name] for name in held if "q_proj" not in name}, "holds no model.layers.1.self_attn",
         "holds no matrices for model.layers.1.self_attn.q_proj"),
        (lambda held: {name: held[name] for name in held if "q_proj.lora_B" not in name}, "q_proj.lora_B.weight, which",
         "does not fit model.layers.1.self_attn.q_proj"),
        (lambda held: {**held, f"{OTHER}.lora_A.weight": torch.ones(2, 32)}, "q_proj.lora_A.weight, for which",
         f"holds {OTHER}.lora_A.weight, for which"),
        (lambda held: {name: held[name] * float("nan") for name in held}, "infinite or not", "infinite or none"),
    ],
    ids=["no module", "no B", "another module", "no numbers"],
)  # fmt: skip
def test_half_an_adapter_is_refused(folders, change, said, of_weights):
    """PEFT drew what was missing anew, with a warning, and left out without a word what the model had no place for."""
    file = folders / "lora" / "adapter_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(file)).items()}, file)
    refused(lambda: hl.load(folders / "lora"), said)
    refused(lambda: hl.load_weights(folders / "lora", merge=True), of_weights)


def test_settings_that_nobody_knows_are_refused(folders):
    """Of a newer PEFT; they were left out, here without a word."""
    settings(folders, use_something_new=True)
    refused(lambda: hl.load(folders / "lora"), "use_something_new", "pip install -U peft")
    refused(lambda: hl.load_weights(folders / "lora", merge=True), "use_something_new True, of which nothing is known")


def test_names_of_the_files_are_not_taken_for_the_models(tmp_path):
    """Files of Nemotron-H have other names than its model; an adapter under those was read as nothing."""
    make("nemotron_h").save_pretrained(tmp_path / "base")
    adapted(hl.load(tmp_path / "base").hf_model, target_modules=["q_proj"]).save_pretrained(tmp_path / "lora")
    layer = hl.load_weights(tmp_path / "base").cfg.attention_layers[0]
    moved = hl.load_weights(tmp_path / "lora", merge=True).attention(layer).W_Q
    assert not torch.allclose(moved, hl.load_weights(tmp_path / "base").attention(layer).W_Q)
    file = tmp_path / "lora" / "adapter_model.safetensors"
    held = load_file(file)
    save_file({name.replace("model.model.model.", "model.model.backbone."): held[name] for name in held}, file)
    refused(lambda: hl.load_weights(tmp_path / "lora", merge=True), "backbone.layers", "no place")


@pytest.mark.parametrize(
    "chosen",
    [
        {"layers_to_transform": [0, 2]}, {"layers_to_transform": 1, "layers_pattern": "layers"},
        {"target_modules": r".*\.layers\.[01]\..*(q_proj|in_proj)"}, {"exclude_modules": ["mamba.in_proj"]},
        {"exclude_modules": r".*gate_proj"}, {"target_modules": ["model.layers.0.mamba.in_proj"]},
    ],
)  # fmt: skip
def test_which_modules_an_adapter_is_for(folders, chosen):
    """As PEFT understands it, so that a whole adapter is not taken for half of one."""
    adapted(hl.load(folders / "base").hf_model, **chosen).save_pretrained(folders / "chosen")
    named = {"target_modules": FEW, **json.loads((folders / "chosen" / "adapter_config.json").read_text())}
    model = make(FAMILY)
    held = load_file(folders / "chosen" / "adapter_model.safetensors")
    found = {f"base_model.model.{name}.lora_A.weight" for name, _ in model.named_modules() if targeted(named, name)}
    assert found == {name for name in held if "lora_A" in name}


def settings(folders, **changes):
    """Change the adapter's settings."""
    file = folders / "lora" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_folder_with_the_models_configuration_and_no_weights_is_an_adapter_alone(folders, made):
    """As some trainers leave it; it was refused for want of weights."""
    shutil.copy(folders / "base" / "config.json", folders / "lora")
    close(hl.load(folders / "lora")(IDS), made[2], FORWARD)


def test_a_model_that_is_kept_elsewhere_in_part_is_refused(folders, monkeypatch):
    """PEFT would put it where it thinks best, and write the files of a model on a disk anew."""
    monkeypatch.setattr("peft.peft_model.dispatch_model", lambda *_, **__: pytest.fail("PEFT moved the model"))
    places = {"model.embed_tokens": "cpu", "model.layers": "cpu", "model.final_layernorm": "cpu", "lm_head": "disk"}
    options = {"device_map": places, "offload_folder": folders / "off"}
    refused(lambda: hl.load(folders / "lora", **options), "kept elsewhere in part (offloaded)", "merged model")


def test_a_vocabulary_of_another_size_is_said(folders):
    model = hl.load(folders / "base").hf_model
    model.resize_token_embeddings(60)
    adapted(model, modules_to_save=["embed_tokens", "lm_head"]).save_pretrained(folders / "wide")
    refused(lambda: hl.load(folders / "wide"), "vocabulary of 60 tokens", "has 53", "resize_token_embeddings(60)")


def test_commands_take_an_adapter_alone(folders, capsys):
    """As `hl.load` does; they asked for a merged model. Weights alone say what to do."""
    assert main(["hooks", "--model", str(folders / "lora"), "--layer", "0"]) == 0
    assert "blocks.0.hook_resid_pre" in capsys.readouterr().out
    files = checkpoint(folders / "lora")
    lens = open_model(files, "cpu", "float32")
    before = weights_hash(files, lens)
    assert before == weights_hash(files, lens)
    settings(folders, lora_alpha=16)
    assert before != weights_hash(files, open_model(files, "cpu", "float32"))
    assert main(["circuits", "--model", str(folders / "lora"), "--out", str(folders / "out")]) == 2
    assert "a command reads the merged model" in capsys.readouterr().err


def broken(name):
    """Changes to the folders, and what is then said."""

    def pickled(folders):
        (folders / "lora" / "adapter_model.safetensors").rename(folders / "lora" / "adapter_model.bin")

    def misfit(folders):
        save_file(
            {"base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight": torch.ones(2, 5)},
            folders / "lora" / "adapter_model.safetensors",
        )

    return {
        "no base": (lambda f: settings(f, base_model_name_or_path=None), "names no base model"),
        "base gone": (lambda f: settings(f, base_model_name_or_path="./gone/x"), "'./gone/x', which is neither"),
        "base too long": (lambda f: settings(f, base_model_name_or_path="x" * 300), "neither a folder here nor"),
        "revision": (lambda f: settings(f, revision=3), "has revision 3"),
        "base empty": (lambda f: settings(f, base_model_name_or_path=str(f)), "holds no model (config.json)"),
        "pickled": (pickled, "pickled adapter weights (adapter_model.bin)"),
        "prompts": (lambda f: settings(f, peft_type="XLORA"), "the adapter"),
        "misfit": (misfit, "the adapter"),
        "damaged": (lambda f: (f / "lora" / "adapter_config.json").write_text("["), "adapter_config.json is damaged"),
    }[name]


@pytest.mark.parametrize(
    "name",
    ["no base", "base gone", "base too long", "revision", "base empty", "pickled", "prompts", "misfit", "damaged"],
)
def test_adapters_that_cannot_be_opened(folders, name):
    change, said = broken(name)
    change(folders)
    refused(lambda: hl.load(folders / "lora"), said)


def test_what_is_asked_for_and_is_not_there(folders, monkeypatch):
    refused(lambda: hl.load(folders / "base", merge=True), "merge=True given", "holds no adapter")
    refused(lambda: hl.load(folders / "base", adapter="x" * 300), "given, expected a folder")
    refused(lambda: hl.load(folders / "base", adapter="no/such/one"), "adapter 'no/such/one' given, expected a folder")
    refused(lambda: hl.load(folders / "base", adapter=folders / "base"), "holds no adapter (adapter_config.json)")
    refused(lambda: hl.load(folders / "lora", adapter=False), "is an adapter alone")
    monkeypatch.setattr("hybridlens.adapters.find_spec", lambda name: None)
    refused(lambda: hl.load(folders / "lora"), "PEFT", "pip install peft")
    refused(lambda: hl.load(both_in_one(folders)), "PEFT", "pip install peft", "adapter=False")


def test_a_tied_embedding_is_followed_and_not_merged(tmp_path):
    """PEFT would merge what is on the one into both."""
    make("gemma3").save_pretrained(tmp_path / "base")
    model = adapted(hl.load(tmp_path / "base").hf_model, target_modules=["embed_tokens"])
    model.save_pretrained(tmp_path / "lora")
    close(hl.load(tmp_path / "lora")(IDS), model(IDS).logits, FORWARD)
    refused(lambda: hl.load(tmp_path / "lora", merge=True), "tie_word_embeddings", "leave merge out")


def test_an_adapter_on_norms_is_merged_or_refused(folders):
    """Its layer shows nothing of the norm: Python's own error came out."""
    model = peft.get_peft_model(hl.load(folders / "base").hf_model, peft.LNTuningConfig(target_modules=[NORM])).eval()
    for name, weight in model.named_parameters():
        weight.add_(torch.rand_like(weight) * ("ln_tuning" in name))
    model.save_pretrained(folders / "norms")
    close(hl.load(folders / "norms", merge=True)(IDS), model(IDS).logits, FORWARD)
    for call in (lambda: hl.load(folders / "norms"), lambda: hl.HybridLens(model.get_base_model())):
        refused(call, f"stands around model.layers.0.{NORM}", "merge=True")
