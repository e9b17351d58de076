"""The table of docs/peers-tools.md, run: what becomes of every tool of TransformerLens that is given a lens."""

import importlib
import re
import warnings
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import transformer_lens
from bounds import LAYER, close
from models import make, tokens
from transformer_lens import evals, head_detector, patching

import hybridlens as hl
from hybridlens import HybridLens
from hybridlens.act_patching import Metric

interchange = pytest.importorskip("transformer_lens.tools.analysis.interchange", reason="tools of TransformerLens 4.3")
from transformer_lens.tools import analysis, training  # noqa: E402

MODELS = ("tiny-recurrentgemma", "tiny-jamba", "mamba2", "falcon_h1", "qwen3_next")
DOCS = Path(__file__).parent.parent / "docs" / "peers-tools.md"
TENSORS = {
    "EdgeAttributionConfig", "FaithfulnessConfig", "JSpaceDecomposition", "LearnedSubspace", "Node",
    "NormMatchedPlacebo", "SparseProbeConvergenceError", "SubspaceBasis", "SubspaceInterchange", "arbitrary_targets",
    "fit_sparse_probe", "get_sparse_decomposition", "mean_difference_basis", "neuron_basis", "orthonormal_subspace",
    "probe_basis", "projection_kernel", "random_basis", "random_init_bridge", "random_neuron_basis",
    "random_projection_kernel_moments", "solve_coordinate_patch", "sweep_sparse_probe",
}  # fmt: skip
"""What of `tools.analysis` takes no model."""


def table():
    """Name or pattern -> (what happens, what to use here)."""
    rows = re.findall(r"^\| (`.+?) \| (.+?) \| (.*?) ?\|$", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {name: (there, here) for names, there, here in rows for name in re.findall(r"`([^`]+)`", names)}


TABLE = {name: row for name, row in table().items() if name != "transformer_lens"}


def tools():
    """Every tool that takes a model, by the name that the table has."""
    found = [f"patching.{name}" for name in dir(patching) if name.startswith("get_act_patch_")]
    found += [f"tools.analysis.{name}" for name in analysis.__all__ if name not in TENSORS]
    found = [name for name in found if not name.startswith("tools.analysis.get_act_patch")]  # those of patching
    found += [f"evals.{name}" for name in ("sanity_check", "evaluate_on_dataset", "ioi_eval", "induction_loss")]
    return [*found, "head_detector.detect_head", "SVDInterpreter", "tools.training.train"]


class Case(NamedTuple):
    lens: HybridLens
    ids: torch.Tensor
    other: torch.Tensor
    cache: hl.HybridCache
    corrupt: hl.HybridCache
    metric: Metric


@pytest.fixture(scope="module")
def cases():
    found = {}
    for name in MODELS:
        lens = hl.load(name) if name.startswith("tiny") else HybridLens(make(name))
        ids = tokens(1, 2)
        other = ids.clone()
        other[0, 1] = (other[0, 1] + 7) % 53
        with torch.no_grad():
            caches = lens.run_with_cache(ids)[1], lens.run_with_cache(other)[1]
        found[name] = Case(lens, ids, other, *caches, lambda logits: logits[0, -1, 3])
    return found


def last(lens):
    return lambda inputs: lens(inputs)[:, -1, :5]


class Rows(torch.utils.data.Dataset):
    def __init__(self, ids):
        self.ids = ids

    def __len__(self):
        return 2

    def __getitem__(self, place):
        return {"tokens": self.ids[0]}


def called(name, case):
    """A tool, given a lens and what it takes beside it."""
    lens, ids, other, cache, corrupt, metric = case
    group, _, tool = name.rpartition(".")
    if tool.startswith("get_act_patch_direct_path"):
        pair = {} if tool.endswith("sources") else {"src_layer": 0, "src_head": 0}
        return getattr(patching, tool)(lens, other, cache, corrupt, metric, verbose=False, **pair)
    if group == "patching":
        return getattr(patching, tool)(lens, other, cache, metric)
    if group == "evals":
        return evaluated(tool, lens, ids)
    point, places = "blocks.0.hook_resid_post", torch.tensor([1])
    held = cache[point][:, 1]
    subspace = analysis.SubspaceInterchange(torch.eye(lens.cfg.d_model))
    at = {"positions": places}
    calls = {
        "detect_head": lambda: head_detector.detect_head(lens, ids, torch.ones(2, 2).tril()),
        "SVDInterpreter": lambda: transformer_lens.SVDInterpreter(lens),
        "train": lambda: trained(lens, ids),
        "logit_lens": lambda: analysis.logit_lens(lens, ids),
        "logit_readout": lambda: analysis.logit_readout(lens, cache["resid_post", -1][0, -1:]),
        "direct_logit_attribution": lambda: analysis.direct_logit_attribution(lens, ids, 3),
        "attribution_patch": lambda: analysis.attribution_patch(lens, ids, other, metric),
        "faithfulness": lambda: analysis.faithfulness(lens, ids, other, metric, []),
        "collect_activations": lambda: analysis.collect_activations(lens, point, ids, last(lens), **at),
        "intervened_logits": lambda: analysis.intervened_logits(lens, point, subspace, ids, held, last(lens), **at),
        "run_with_intervention": lambda: analysis.run_with_intervention(
            lens, point, subspace, ids, held, last(lens), **at
        ),
        "fit_das": lambda: das(lens, point, ids, other),
        "reinitialized": lambda: analysis.reinitialized(lens, 0),
        "attention_head_subspace_affinity": lambda: analysis.attention_head_subspace_affinity(lens, target_role="K"),
        "JacobianLens": lambda: analysis.JacobianLens.fit(lens, ["a"], corpus="none"),
    }
    return calls[tool]()


def evaluated(tool, lens, ids):
    """Its offline evaluations, each a number, where there is text to evaluate."""
    if tool == "evaluate_on_dataset":
        found = evals.evaluate_on_dataset(lens, torch.utils.data.DataLoader(Rows(ids), batch_size=2), device="cpu")
        assert found == pytest.approx(float(lens(ids, "loss")), rel=1e-5)
    if tool == "sanity_check" and lens.tokenizer is not None:
        assert evals.sanity_check(lens).isfinite()
    if tool == "ioi_eval" and lens.tokenizer is not None:
        texts = ["[A] and [B] are in the tower. [B] is with [A]"]
        data = evals.IOIDataset(lens.tokenizer, texts, ["Anna", "Hugo"], {}, num_samples=2, seed=0)
        assert 0 <= evals.ioi_eval(lens, data, batch_size=2)["Accuracy"] <= 1
    if tool == "induction_loss" and lens.tokenizer is None:
        wide = HybridLens(make("mamba2", vocab_size=20_000, hidden_size=8, num_heads=2, head_dim=8))
        assert torch.isfinite(evals.induction_loss(wide, None, 1, 4, prepend_bos=False, device="cpu"))


def das(lens, point, ids, other):
    places = torch.tensor([1])
    found = analysis.fit_das(
        lens, point, ids, other, torch.tensor([1]), last(lens), rank=2, base_positions=places, source_positions=places,
        epochs=2,
    )  # fmt: skip
    basis = found.basis
    close(basis.T @ basis, torch.eye(2), LAYER)
    return found


def trained(lens, ids):
    """A copy learns a row by heart: its loss falls."""
    other = hl.HybridLens(make("falcon_h1") if lens.tokenizer is not None else lens.hf_model)
    before = {name: weight.clone() for name, weight in other.state_dict().items()}
    loss = float(other(ids, "loss"))
    how = training.TrainConfig(num_epochs=2, batch_size=2, device="cpu", print_every=None)
    assert training.train(other, how, Rows(ids)) is other
    other.eval()
    assert float(other(ids, "loss")) < loss
    other.load_state_dict(before)
    return other


def test_the_table_has_every_tool():
    assert [name for name in tools() if not any(fnmatchcase(name, row) for row in TABLE)] == []
    assert [row for row in TABLE if not any(fnmatchcase(name, row) for name in tools())] == []


@pytest.mark.parametrize("name", tools())
def test_every_row_is_true(name, cases):
    row = TABLE.get(name) or next(row for pattern, row in TABLE.items() if fnmatchcase(name, pattern))
    happens = re.match(r"works|some|stops", row[0]).group()
    said = {}
    for model, case in cases.items():
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                called(name, case)
            except (AssertionError, AttributeError, IndexError):  # no line that says what is wrong
                raise
            except Exception as error:
                said[model] = str(error)
        assert ("warns" in row[0]) == any("no nodes for what recurrences write" in str(w.message) for w in warned)
    assert all(line and "\n" not in line for line in said.values())
    assert (not said) if happens == "works" else (len(said) == len(cases)) if happens == "stops" else 0 < len(said) < 5
    for used in re.findall(r"`((?:hybridlens|analyses)[\w.]+)`", row[1]):
        module, _, attribute = used.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute) or importlib.import_module(used)
