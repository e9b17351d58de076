"""docs/coming-from.md is true: every right-hand cell runs and gives what it says, every left-hand name exists there.

And what users type from habit ends in one line that names something to type here, which works.
"""

import ast
import copy
import dataclasses
import importlib
import importlib.util
import inspect
import linecache
import pickle
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import transformer_lens
from autoencoders import config, saved, weights
from nnsight import LanguageModel
from nnsight.intervention.tracer import InterleavingTracer
from random_lens import small_lens
from transformer_lens import ActivationCache, head_detector, patching
from transformer_lens.utilities import components_utils

import hybridlens as hl
from hybridlens import habit_modules, habit_parts, habits
from hybridlens.display import Displayed
from hybridlens.errors import AbsentError, ElsewhereError, FixedError, HybridLensError, KeywordError, NotCachedError
from hybridlens.peers import TransformerBridge

PAGE = (Path(__file__).parent.parent / "docs" / "coming-from.md").read_text(encoding="utf-8")
ROWS = [
    (section.split("\n", 1)[0], *(cell.strip() for cell in re.split(r" \|(?: |$)", line[2:])[:2]))
    for section in PAGE.split("\n## ")[1:]
    for line in section.splitlines()
    if line.startswith("| ") and not line.startswith("| ---") and "hybridlens" not in line.split(" | ")[1]
]
IDS = [f"{section}-{number}" for number, (section, *_) in enumerate(ROWS)]

OF_MADE = {"cfg", "blocks", "ln_final", "unembed", "model", "lm_head", "transformer", "tokenizer", "output"}
"""What only a model that was made has."""
GONE = {"generator", "from_pretrained", "run_with_saes", "run_with_cache_with_saes"}
"""What SAELens' subclass has, and what newer versions deprecate or dropped, whose users still type it."""
LATER = set[str]() if version("transformer-lens") >= "4" else {"get_act_patch_direct_path"}
"""What came with TransformerLens 4, where an older one is installed."""
CLASSES: dict[str, Any] = {
    "model": TransformerBridge, "cache": ActivationCache, "lm": LanguageModel, "tracer": InterleavingTracer,
    "patching": patching, "head_detector": head_detector, "TransformerBridge": TransformerBridge,
}  # fmt: skip


def code_of(cell: str) -> str:
    """The code of a cell: its code spans, one line each."""
    return "\n".join(re.findall(r"`([^`]+)`", cell))


def run(code: str, names: dict[str, Any], at: Path) -> Any:
    """The value of a piece of code's last line, run from a file, as nnsight wants it; None if that is a statement."""
    at.write_text(code, encoding="utf-8")
    linecache.checkcache(str(at))
    tree = ast.parse(code)
    last = tree.body[-1] if isinstance(tree.body[-1], ast.Expr) else None
    if last is not None:
        tree.body.pop()
    exec(compile(tree, str(at), "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), str(at), "eval"), names)


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the page says stands ready."""
    folder, made = tmp_path_factory.mktemp("coming"), dict[str, Any]()
    (setup,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    run(setup, made, folder / "setup.py")
    width = made["lens"].cfg.d_model
    made["folder"] = saved(folder / "sae", config("standard", width), weights("standard", width))
    made["sae"] = hl.load_sae(made["folder"])
    return made


@pytest.fixture(autouse=True)
def no_hook_stays(request):
    yield
    if "names" in request.fixturenames:
        lens = request.getfixturevalue("names")["lens"]
        lens.reset_hooks(including_permanent=True)
        lens.zero_grad()


def test_the_page_has_a_table_for_each_section():
    assert tuple(dict.fromkeys(section for section, *_ in ROWS)) == habits.SECTIONS
    assert len(ROWS) >= 70


@pytest.mark.parametrize(("section", "left", "right"), ROWS, ids=IDS)
def test_what_one_types_here(section, left, right, names, tmp_path):
    """In a fresh namespace; what stands behind an arrow is compared."""
    code, _, expected = code_of(right).partition(" # -> ")
    scope = dict(names)
    found = run(code, scope, tmp_path / "cell.py")
    if expected:
        wanted = eval(expected, scope)
        same = torch.equal(found, wanted) if isinstance(wanted, torch.Tensor) else found == wanted
        assert bool(same), f"{found} is not {wanted}"
    elif code.count("\n") == 0 and not code.startswith(("with ", "from ")):
        assert found is not None or isinstance(ast.parse(code).body[-1], ast.Expr)


def test_what_one_types_there_exists_there():
    """The first name asked of a model, cache or tracer is one of its class; MambaLens is not installed to be asked."""
    lefts = [code_of(left) for section, left, _ in ROWS if section != habits.STATES]
    asked = [found for left in lefts for found in re.findall(r"\b(\w+)\.(\w+)", left)]
    known = [(owner, name) for owner, name in asked if owner in CLASSES and name not in OF_MADE | GONE | LATER]
    assert len(known) > 40
    assert [f"{owner}.{name}" for owner, name in known if not hasattr(CLASSES[owner], name)] == []


def test_a_made_up_name_would_be_found():
    assert not hasattr(TransformerBridge, "run_with_nothing")
    assert hasattr(transformer_lens, "SVDInterpreter")
    assert hasattr(components_utils, "get_act_name")


def test_nothing_of_it_stays(names):
    """After all cells, hooks that were added included, the model gives what it gave."""
    with torch.no_grad():
        assert torch.equal(names["lens"](names["tokens"]), names["logits"])


# What is typed from habit.

TABLES = {"LENS": habits.LENS, "BLOCK": habits.BLOCK, "POINT": habits.POINT, "CONFIG": habits.CONFIG}
TABLES |= {"SPEC": habits.SPEC}
TABLES |= {"NORM": habit_parts.NORM}
TABLES |= {"ATTENTION": habit_parts.ATTENTION, "MLP": habit_parts.MLP, "RECURRENCE": habit_parts.RECURRENCE}
TABLES |= {f"WORDS {where}": words for where, words in habits.WORDS.items()}
EVERY = [(where, name, habit) for where, table in {**TABLES, **habit_modules.MODULES}.items()
         for name, habit in table.items()]  # fmt: skip
EVERY += [("ASSIGNED", name, habit) for name, habit in {**habits.ASSIGNED, "n_ctx": habits.OPENED_ANEW}.items()]


def asked(where: str, name: str, names: dict[str, Any]) -> Any:
    """Ask for something that a lens has not, as its users do."""
    lens, tokens = names["lens"], names["tokens"]
    if where == "LENS":
        return getattr(lens, name)
    if where == "BLOCK":
        return getattr(lens.blocks[0 if name == "attn" else 2], name)
    if where == "POINT":
        return getattr(lens.hook_embed, name)
    if where == "SPEC":
        return getattr(lens.hook_points["hook_embed"], name)
    if where == "NORM":
        return getattr(lens.blocks[2].ln1, name)
    if where == "CONFIG":
        return getattr(lens.cfg, name)
    if where in ("ATTENTION", "RECURRENCE"):
        return getattr(lens.blocks[2].attn if where == "ATTENTION" else lens.blocks[1].ssm, name)
    if where == "MLP":
        return getattr(lens.blocks[1 if name in ("hook_pre", "hook_post", "hook_pre_linear") else 2].mlp, name)
    if where == "WORDS load":
        return hl.load("tiny-jamba", **{name: True})
    name_of_method = where.rpartition(".")[2]
    method = lens if name_of_method == "__call__" else getattr(lens, name_of_method)
    return method(tokens, **{name: True})


@pytest.mark.parametrize("where", TABLES)
def test_a_habit_ends_in_a_line_that_says_what_to_type(where, names):
    kind, pythons = (KeywordError, TypeError) if where.startswith("WORDS") else (AbsentError, AttributeError)
    for name, habit in ((name, habit) for table, name, habit in EVERY if table == where):
        if name in ("ssm", "mlp"):
            continue  # this model's layer 2 has an MLP; see below
        with pytest.raises(kind) as caught:
            asked(where, name, names)
        said = str(caught.value)
        assert re.search(rf"(has|takes) no {name}; type {re.escape(habit.here)}( |;)", said), said
        assert said.endswith(f"; see {habit.section!r} in docs/coming-from.md")
        assert "\n" not in said
        assert isinstance(caught.value, HybridLensError)
        assert isinstance(caught.value, pythons)


def test_an_assignment_to_the_configuration_says_what_to_type(names):
    cfg = names["lens"].cfg
    for name, habit in ((name, habit) for table, name, habit in EVERY if table == "ASSIGNED"):
        before = getattr(cfg, name)
        with pytest.raises(
            FixedError, match=rf"^cfg\.{name} cannot be .*; type {re.escape(habit.here)}( |;)"
        ) as caught:
            setattr(cfg, name, None)
        assert isinstance(caught.value, dataclasses.FrozenInstanceError)
        assert getattr(cfg, name) == before
    assert dataclasses.replace(cfg, n_ctx=7).n_ctx == 7


def test_layers_and_parts_that_are_called_alone_say_what_gives_the_same(names, tmp_path):
    """What they say to type gives what the part, or the layer, writes for a stream."""
    lens, cache = names["lens"], names["cache"]
    for layer, part in ((1, ""), (1, "ssm"), (1, "mlp"), (2, "attn"), (2, "mlp")):
        called, resid = lens.blocks[layer], cache["resid_pre", layer]
        called = getattr(called, part) if part else called
        with pytest.raises(KeywordError, match=rf"^blocks\.{layer}\.?{part} was called with a tensor alone") as caught:
            called(resid)
        assert isinstance(caught.value, TypeError)
        found = run(
            re.search(r"; type (lens.*?\)) \(resid", str(caught.value))[1], {**names, "resid": resid}, tmp_path / "c.py"
        )
        given = found[1][f"blocks.{layer}.hook_{part}_out"] if part else found
        assert given.allclose(cache[f"{part}_out" if part else "resid_post", layer], atol=1e-5)


@pytest.mark.parametrize("package", habit_modules.MODULES)
def test_names_of_modules_say_it_asked_or_imported(package):
    """`hasattr` is false of them, `getattr` takes its default, and an import ends in the same line."""
    module = importlib.import_module(package)
    for pattern, habit in habit_modules.MODULES[package].items():
        name = pattern.replace("*", "Any")
        assert not hasattr(module, name)
        assert getattr(module, name, None) is None
        with pytest.raises(AbsentError) as asked:
            getattr(module, name)
        said = str(asked.value)
        assert re.search(rf"^{package} has no {name}; type {re.escape(habit.here)}( |;)", said), said
        assert said.endswith(f"; see {habit.section!r} in docs/coming-from.md")
        for code in (f"from {package} import {name}", f"import {package}.{name}", f"from {package}.{name} import x"):
            with pytest.raises(ElsewhereError) as imported:
                exec(code)
            assert str(imported.value) == said
            assert isinstance(imported.value, ImportError)


@pytest.mark.parametrize("section", habits.SECTIONS)
def test_what_a_line_says_to_type_works(section, names, tmp_path, capsys):
    assert f"\n## {section}\n" in PAGE
    for here in sorted({habit.here for *_, habit in EVERY if habit.section == section}):
        run(here, dict(names), tmp_path / "habit.py")
        names["lens"].reset_hooks()


POINTS = [
    "hook_pos_embed", "pos_embed.hook_out", "embed.hook_out", "hook_tokens", "unembed.hook_out", "unembed.hook_in",
    "ln_final.hook_out", "hook_norm", "ln_final.hook_in", "blocks.1.hook_in", "blocks.1.hook_layer_input",
    "blocks.1.hook_out", "blocks.1.ln1.hook_in", "blocks.1.ln2.hook_in", "blocks.1.hook_normalized",
    "blocks.1.hook_normalized_input", "blocks.1.ln1.hook_out", "blocks.2.attn.hook_in", "blocks.2.hook_attn_in",
    "blocks.2.hook_scale", "blocks.2.mlp.hook_in", "blocks.2.hook_mlp_in", "blocks.2.attn.hook_out",
    "blocks.2.attn.o.hook_out", "blocks.2.attn.o.hook_in", "blocks.2.hook_q_input", "blocks.2.attn.q.hook_out",
    "blocks.2.hook_k_input", "blocks.2.attn.v.hook_out", "blocks.2.mlp.hook_mid", "blocks.2.mlp.gate.hook_out",
    "blocks.2.mlp.hook_out", "blocks.1.mixer.hook_out", "blocks.1.hook_out_proj", "blocks.1.hook_skip",
    "blocks.1.hook_in_proj", "blocks.1.hook_conv", "blocks.1.hook_ssm_input", "blocks.1.hook_delta",
    "blocks.1.hook_delta_1", "blocks.1.hook_A", "blocks.1.hook_A_bar", "blocks.1.hook_B", "blocks.1.hook_C",
    "blocks.1.hook_B_bar", "blocks.1.mixer.hook_ssm_write", "blocks.1.hook_h_start", "blocks.1.hook_h.5",
    "blocks.1.mixer.hook_ssm_state", "blocks.1.hook_y", "blocks.1.hook_ssm_output", "blocks.1.hook_after_skip",
]  # fmt: skip


def pointed(said: str) -> str:
    return re.search(r"; type '([\w.]+)'", said)[1]


def test_a_hook_point_of_theirs_ends_in_a_line_that_names_one_here(names):
    """Of the same layer, in hooks and in caches."""
    lens = names["lens"]
    for name in POINTS:
        with pytest.raises(HybridLensError) as caught:
            lens.run_with_hooks(names["tokens"], fwd_hooks=[(name, names["fn"])])
        here = pointed(str(caught.value))
        assert here in lens.hook_points
        assert here.split(".")[:2] == name.split(".")[:2] or not name.startswith("blocks")
        assert re.search(r"; see '(Hooks|States)' in docs/coming-from.md$", str(caught.value))
        with pytest.raises(NotCachedError) as missed:
            _ = names["cache"][name]
        assert here in str(missed.value), name


def test_every_hook_point_of_the_table_is_tried():
    suffixes = [re.sub(r"^blocks\.\d+\.", "", name) for name in POINTS]
    for habit in habits.POINTS:
        assert any(re.fullmatch(habit.theirs, suffix) for suffix in suffixes), habit.theirs


@pytest.mark.parametrize(
    ("family", "name", "here"),
    [
        ("mamba2", "blocks.1.hook_B", "blocks.1.ssm.hook_k"),  # matrix states have B under another name
        ("mamba2", "blocks.0.hook_h.3", "blocks.0.ssm.hook_state"),
        ("jamba", "blocks.0.attn.q.hook_out", None),  # names a layer that has it, or says which have
    ],
)
def test_the_point_named_is_one_of_the_model(family, name, here):
    lens = small_lens(family)
    with pytest.raises(HybridLensError) as caught:
        lens.run_with_cache([[5, 6]], name)
    found = pointed(str(caught.value))
    assert found in lens.hook_points
    assert found == (here or f"blocks.{lens.cfg.attention_layers[0]}.attn.hook_q")
    if here is None:
        assert f"layers with attn.hook_q are {', '.join(map(str, lens.cfg.attention_layers))}" in str(caught.value)


def test_a_part_that_a_layer_lacks_says_which_have_it(names):
    with pytest.raises(AbsentError, match=r"this layer has no mlp; type lens\.cfg\.mlp_layers \(the layers that have"):
        _ = small_lens("mamba2").blocks[0].mlp
    with pytest.raises(AbsentError, match=r"this layer has no ssm; type lens\.cfg\.ssm_layers"):
        _ = names["lens"].blocks[2].ssm


def test_a_module_of_hugging_faces_says_how_steps_are_walked(names):
    for module in (names["lens"].lm_head, names["lens"].model.layers[2]):
        with pytest.raises(AbsentError, match=r"no next; type lens\.trace\(tokens, max_new_tokens=3\)"):
            module.next()
        assert module.weight is not None if hasattr(module, "weight") else module.self_attn.q_proj.weight is not None


def test_a_full_name_in_a_cache_is_no_shorthand(names):
    """What another library calls ``hook_in`` is the stream; that of the recurrence is another tensor."""
    cache = names["cache"]
    with pytest.raises(NotCachedError, match=r"type 'blocks\.1\.hook_resid_pre'"):
        _ = cache["blocks.1.hook_in"]
    assert cache["in", 1].equal(cache["blocks.1.ssm.hook_in"])
    with pytest.raises(NotCachedError, match=r"blocks\.1\.ssm\.hook_pattern is not in this cache"):
        _ = cache["pattern", 1, "ssm"]


# What must go on as it is.


def test_missing_names_that_nobody_has_are_pythons(names):
    lens = names["lens"]
    for thing, owner in ((lens, "HybridLens"), (lens.cfg, "LensConfig"), (lens.hook_embed, "HookPoint"),
                         (lens.blocks[2], "Block")):  # fmt: skip
        with pytest.raises(AttributeError, match=rf"'{owner}' object has no attribute 'nothing_at_all'") as caught:
            _ = thing.nothing_at_all
        assert not isinstance(caught.value, HybridLensError)
    with pytest.raises(AttributeError, match="no attribute 'nothing_at_all'"):
        _ = hl.nothing_at_all
    for call in (lens, lens.generate, lens.trace):
        with pytest.raises(TypeError, match="nothing_at_all"):
            call(names["tokens"], nothing_at_all=1)


def test_what_a_property_raises_comes_out_as_it_is(names):
    with pytest.raises(AbsentError, match="there is no W_pos"):
        _ = names["lens"].W_pos

    class Broken(hl.HybridLens):
        @property
        def broken(self) -> Any:
            raise AttributeError("the property's own words")

    broken = Broken(small_lens("jamba").hf_model)
    with pytest.raises(AttributeError, match="the property's own words"):
        _ = broken.broken


def test_hasattr_copies_and_inspection(names):
    lens = small_lens("recurrentgemma")
    assert not hasattr(lens, "from_pretrained")
    assert not hasattr(hl.HybridLens, "from_pretrained")
    assert getattr(lens, "transformer", None) is None
    assert not hasattr(lens.hook_embed, "next")
    assert [hasattr(block, "attn") for block in lens.blocks] == [
        layer in lens.cfg.attention_layers for layer in range(lens.cfg.n_layers)
    ]
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        for other in (copy.copy(lens), copy.deepcopy(lens), pickle.loads(pickle.dumps(lens))):
            assert torch.equal(other(ids), lens(ids))
    assert isinstance(lens, Displayed)
    assert "generate" in dict(inspect.getmembers(hl.HybridLens))
    assert {"LanguageModel", "HookedTransformer"}.isdisjoint(dir(hl))
