"""What users type from habit, or in the wrong place, ends in one line that says what to type, or works.

`test_coming_from` runs what the tables of habits hold; here are the kinds of it: names of packages, numbers of layers,
keywords, keys of caches, names of the model, shorthands, prompts of the needle benchmark, short names of models.
"""

import importlib
import importlib.util
import subprocess
import sys

import pytest
import torch
from models import EVERY_FAMILY
from random_lens import small_lens

import hybridlens as hl
from hybridlens.__main__ import main
from hybridlens.errors import (
    AbsentError,
    ElsewhereError,
    HybridLensError,
    InputError,
    KeywordError,
    LayerIndexError,
    NotCachedError,
    UnknownNameError,
)


def fn(x, hook):
    return None


@pytest.fixture(scope="module")
def lens():
    return hl.load("tiny-jamba")  # layers M M A M M M A M


@pytest.fixture(scope="module")
def tokens(lens):
    return lens.to_tokens("What is the best thing to do in Lima?")


@pytest.fixture(scope="module")
def cache(lens, tokens):
    with torch.no_grad():
        return lens.run_with_cache(tokens)[1]


# Names of this library that are asked in the wrong place.


@pytest.mark.parametrize(
    ("package", "name", "home"),
    [
        ("hybridlens", "LensConfig", "hybridlens.config"),
        ("hybridlens", "Prompt", "hybridlens.niah"),  # the package that hands it out
        ("hybridlens", "rank_heads", "analyses.heads.entropy"),
        ("analyses", "activation_patch", "analyses.patching.running"),
        ("analyses.patching", "activation_patch", "analyses.patching.running"),
        ("analyses.heads", "keep_heads", "analyses.heads.sparsification"),
    ],
)
def test_a_name_says_which_module_has_it(package, name, home):
    module = importlib.import_module(package)
    assert not hasattr(module, name)
    with pytest.raises(AbsentError, match=rf"^{package} has no {name}; type from {home} import {name}$"):
        getattr(module, name)
    with pytest.raises(ElsewhereError, match=rf"type from {home} import {name}$"):
        exec(f"from {package} import {name}")
    assert hasattr(importlib.import_module(home), name)


def test_names_that_nobody_has_are_not_imported():
    for code, kind in (
        ("import hybridlens.nothing_at_all", ModuleNotFoundError),
        ("from hybridlens import nothing_at_all", ImportError),
        ("from analyses.heads import nothing_at_all", ImportError),
        ("import transformer_lens.nothing_at_all", ModuleNotFoundError),
    ):
        with pytest.raises(kind) as caught:
            exec(code)
        assert not isinstance(caught.value, HybridLensError)
    assert importlib.util.find_spec("hybridlens.nothing_at_all") is None


def test_modules_are_loaded_when_they_are_asked_for():
    """In a process of its own, in which nothing has loaded them."""
    code = "import hybridlens as hl, analyses; hl.habits.LENS, hl.supported.FILE, analyses.patching.__doc__"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_package_runs_as_its_command(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["hybridlens", "hooks", "--model", "nothing-of-the-name"])
    assert main() == 2
    assert "neither an embedded checkpoint" in capsys.readouterr().err
    monkeypatch.setattr("hybridlens.__main__.entry_points", lambda **_: ())
    assert main() == 2
    assert (
        capsys.readouterr().err == "hybridlens: no command is installed; type pip install . in the project's folder\n"
    )


# Other errors of habit.


def test_a_layer_number_beyond_a_stack_says_where_that_layer_stands(lens):
    line = r"stack of 2, which holds layers 2, 6 alone, in that order; type \[lens\.attn_layers\.index\(6\)\]"
    for ask in (lambda: lens.W_Q[6], lambda: lens.W_O[6, 0], lambda: lens.OV[6, 1], lambda: lens.QK[6],
                lambda: lens.weights(folded=True).W_V[6]):  # fmt: skip
        with pytest.raises(LayerIndexError, match=line) as caught:
            ask()
        assert isinstance(caught.value, IndexError)
    with pytest.raises(LayerIndexError, match=r"\[-5\].*layers 0, 2, 4, 6 alone, in that order; type \[0\] to \[3\]"):
        _ = lens.W_in[-5]
    with pytest.raises(IndexError, match="dimension 1") as other:
        _ = lens.W_Q[1, 9]
    assert not isinstance(other.value, HybridLensError)
    assert torch.equal(lens.W_Q[lens.attn_layers.index(6), 3], lens.blocks[6].attn.W_Q[3])
    assert torch.equal(lens.OV[1, 3].AB, lens.W_V[1, 3] @ lens.W_O[1, 3])
    assert len(list(lens.W_Q)) == 2


def test_keywords_near_those_that_there_are(lens, tokens):
    pairs = [("hook_embed", fn)]
    for call, said in (
        (lambda: lens.run_with_hooks(tokens, fwd_hook=pairs), r"lens\.run_with_hooks got .* 'fwd_hook'; .*: fwd_hooks"),
        (lambda: lens.run_with_cache(tokens, name_filter="hook_embed"), r"lens\.run_with_cache got .*: names_filter"),
        (lambda: lens.run_with_cache(tokens, fwd_hooks=pairs), r"type with lens\.hooks\(fwd_hooks="),
        (lambda: lens.add_hook(name="hook_embed", fn=1), r"lens\.add_hook got .* it takes name, hook, dir, is_perm"),
        (lambda: hl.load("tiny-jamba", dtpye="float32"), r"^hl\.load got .* 'dtpye'; close names: dtype\b"),
        (lambda: hl.Edit(name="hook_embed", fn=1), r"^Edit got an unexpected keyword argument 'name'; it takes hook"),
        (lambda: lens.hook_points(), r"a table and no method; type lens\.hook_dict\.values\(\)"),
    ):
        with pytest.raises(KeywordError, match=said):
            call()


def test_keys_of_caches(cache):
    assert cache["attn.hook_z", -2].equal(cache["z", 6])
    assert cache["ln1.hook_scale", 2].equal(cache["scale", 2, "ln1"])
    assert cache["hook_resid_post", 2].equal(cache["resid_post", 2])
    assert cache["scale", None, "ln_final"].equal(cache["scale"])
    for key, said in (
        (("scale", "ln_final"), r"type cache\['ln_final\.hook_scale'\]"),
        (("embed", 0), r"hook_embed is a point of the whole model; type cache\['hook_embed'\]"),
        ("resid_post", r"without its layer; type cache\['resid_post', layer\]"),
        ("pattern", r"without its layer; type cache\['pattern', layer\]"),
    ):
        with pytest.raises(NotCachedError, match=said):
            _ = cache[key]


def test_names_of_the_model_and_of_its_configuration(lens, cache):
    for name in ("share_memory", "get_input_embeddings", "named_children"):
        with pytest.raises(AbsentError, match=rf"a lens has no {name}; type lens\.hf_model\.{name}$"):
            getattr(lens, name)
    for name in ("d_model", "n_layers", "attention_layers"):
        with pytest.raises(AbsentError, match=rf"a lens has no {name}; type lens\.cfg\.{name}$"):
            getattr(lens, name)
    x = cache["resid_pre", 3]
    assert torch.allclose(lens.blocks[3].ln1(x), cache["normalized", 3, "ln1"] * lens.blocks[3].ln1.w)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_shorthands_of_every_family(family):
    """What `get_act_name` gives of a point's short name is the point, or stands in another part; gates need theirs."""
    lens = small_lens(family)
    for point in lens.hook_points:
        start, _, short = point.rpartition(".hook_")
        if start.count(".") == 2 and not start.split(".")[2].startswith("ln"):
            layer, part = start.split(".")[1:]
            if short == "gate":
                with pytest.raises(UnknownNameError, match="give the part, as in"):
                    hl.get_act_name(short, layer)
                assert hl.get_act_name(short, layer, part) == point
            elif part != "ssm" or short not in ("q", "k", "v", "pattern", "result"):
                assert hl.get_act_name(short, layer) == point or short == "shared_out"


def test_prompts_of_the_needle_benchmark_are_tokens(lens):
    one, two = hl.niah.grid(lens.tokenizer, [110, 120], [50])
    with torch.no_grad():
        assert torch.equal(lens(one), lens([list(one.tokens)]))
        both = lens(hl.niah.grid(lens.tokenizer, [110, 120], [50]))
        assert torch.allclose(both[1], lens(two)[0], atol=1e-4)
    assert lens.to_tokens(one).tolist() == [list(one.tokens)]
    assert lens.to_string(one) == lens.to_string(list(one.tokens))
    assert lens.to_string([one, two])[1] == lens.to_string(two)
    assert lens.generate(two, 2).tokens.equal(lens.generate(list(two.tokens), 2).tokens)
    with pytest.raises(InputError, match="tokens are a list of Prompt, str"):
        lens([one, "a text"])


def test_short_names_of_models():
    for name in ("gpt2", "gpt2-small", "distilgpt2"):
        with pytest.raises(UnknownNameError, match=rf"; {name} is a gpt2, of no family .*`hybridlens families` lists"):
            hl.load(name)
    with pytest.raises(UnknownNameError, match="owner/name; close names: tiny-jamba"):
        hl.load("jamba")


def test_short_names_of_transformer_lens():
    pytest.importorskip("transformer_lens.tools.model_registry.api", reason="tables of TransformerLens 4")
    with pytest.raises(UnknownNameError, match=r"; pythia-70m is a GPTNeoXForCausalLM, of no family"):
        hl.load("pythia-70m")
    with pytest.raises(UnknownNameError, match=r"owner/name; type hl.load\('google/gemma-2-2b'\); "):
        hl.load("gemma-2-2b")
