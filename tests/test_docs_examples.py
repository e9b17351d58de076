"""docs/analyses.md is true: its examples run as they stand, one after the other, and the names it says exist."""

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from autoencoders import config, saved, weights

PAGE = (Path(__file__).parent.parent / "docs" / "analyses.md").read_text(encoding="utf-8")
SECTIONS = {
    "Logit lens", "Tuned lens", "Steering", "Probes", "Sparse autoencoders",
    "Circuits of edges (EAP-IG) and their curves", "Head scores", "Gather and aggregate heads",
    "Heads that look at the needle", "Direct logit attribution", "Decompositions of a cache",
    "Recall by the number of facts", "Training as curves", "Studies side by side", "Attention replaced by less",
    "Rankings that go on until they can tell", "Many models",
}  # fmt: skip


@pytest.fixture(scope="module")
def scope(tmp_path_factory) -> dict[str, Any]:
    """What all examples leave, run in order; a word that the tiny tokenizer does not know fails here."""
    folder = tmp_path_factory.mktemp("analyses")
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 1 + len(SECTIONS)
    width = 128
    names: dict[str, Any] = {"folder": saved(folder / "sae", config("standard", width), weights("standard", width))}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.chdir(folder)
        warnings.simplefilter("error", UserWarning)
        for number, block in enumerate(blocks):
            exec(compile(block, f"{number}.py", "exec"), names)
    return names


def test_each_analysis_has_an_entry_with_an_example_its_failures_and_its_result():
    entries = dict(entry.split("\n", 1) for entry in PAGE.split("\n## ")[1:])
    assert set(entries) == SECTIONS
    for title, entry in entries.items():
        for part in ("**How it fails.**", "```python", "**Gives**"):
            assert part in entry, f"{title} lacks {part}"


def test_what_the_examples_say_holds(scope):
    """The comments that claim a number: the last place is the answer, shares add up, sums are the stream's."""
    lens, shares, stack = scope["lens"], scope["shares"].detach(), scope["stack"].detach()
    assert scope["seen"].places[-1] == f"blocks.{lens.cfg.n_layers - 1}.hook_resid_post"
    assert float(scope["seen"].divergence[-1].abs().max()) < 1e-5
    size = float(stack.abs().sum(0).max())
    assert float((stack.sum(0) - scope["cache"]["resid_post", -1]).detach().abs().max()) < 1e-5 * size
    with torch.no_grad():
        difference = scope["metric"](scope["logits"])
    assert shares.shape == stack.shape[:-1]
    assert float((shares.sum(0)[0, -1] - difference[0]).abs()) < 1e-4 * float(shares.abs().sum(0).max() + 1)
    assert scope["curves"].sizes[0] <= 20
    assert scope["quality"].tokens == 2 * len(lens.to_tokens(scope["prompt"])[0])
    assert scope["read"].name == "blocks.0.ssm.hook_state"
    assert len(scope["looked"].to_pandas()) == len(lens.cfg.attention_layers) * lens.cfg.n_heads
    assert scope["looked"].ranking.best(1)[0][0] == 6  # the layer that sweeps find
    assert scope["grown"]["tap"] == 1
    assert scope["reduced"].token_bytes < scope["whole"].token_bytes
    assert scope["reduced"].multiplications < scope["whole"].multiplications
    heads = scope["compared"].across[0]
    assert (heads.id, heads.outcome) == ("h1-heads", "not tested here")
    assert "differ in heads a layer; there are 8, 8" in heads.reason
    decision = scope["decision"]
    assert (decision.equal, decision.behind, decision.open) == (("first",), ("second",), ())
    assert decision.shortfall("second").value == pytest.approx(0.5)


def test_names_in_the_text_exist(scope):
    """Fields and methods that **Gives** names of a result are there."""
    of = {
        "seen": ("entropy", "target_logits", "target_probabilities", "top_tokens", "top_probabilities"),
        "tuned": ("places", "weight", "bias", "save", "load", "held_out"),
        "direction": ("unit", "size", "spread", "explained"), "found": ("values", "random", "change", "p_value"),
        "read": ("predict", "weight", "direction", "shuffled"), "scores": ("previous", "duplicate", "ranking"),
        "circuit": ("edges", "size", "complement"), "curves": ("random_faithfulness", "interval", "smallest"),
        "gather": ("aggregate", "even_aggregate", "ranking"), "looked": ("ranking", "patterns", "shown", "queries"),
        "recalled": ("recalls", "curve", "most_held", "memory", "answers"),
        "compared": ("across", "claims", "accuracies", "notes"), "less": ("edits",), "reduced": ("multiplications",),
        "zoo": ("members", "member", "table"),
        "decision": ("equal", "behind", "open", "shortfall", "standing", "needed", "difference", "low", "high"),
    }  # fmt: skip
    for name, parts in of.items():
        for part in parts:
            assert re.search(rf"\b{part}\b", PAGE)
            assert hasattr(scope[name], part), f"{name}.{part}"
