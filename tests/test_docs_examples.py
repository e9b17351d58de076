"""docs/analyses has every analysis with all of its parts, the names that it gives exist, and its pictures are there.

Its examples are run by tests/test_pages.py, each in a fresh namespace, and what they show is compared there.
"""

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree

import pictures
import pytest

from tests.page_examples import ROOT

FOLDER = ROOT / "docs" / "analyses"
PAGES = sorted(path for path in FOLDER.glob("*.md") if path.name != "index.md")
PARTS = ("**Source:**", "```python\n", "**How it fails.**", "**Gives**", "![", "<!-- picture:")
LEAST = 38
"""Analyses that there are: one that is lost with its page fails."""
MOST_OF_ONE, MOST_OF_ALL = 60_000, 1_000_000
"""Bytes of pictures."""
LONGEST = 95
"""Letters of a picture's title: what is longer does not fit its width."""

GIVES = {
    "analyses.circuits.composition": {"Composition": ("recurrent", "heads_expected", "excess_recurrent", "to_pandas")},
    "analyses.circuits.results": {
        "HeadCircuits": ("copying", "matching", "matching_share", "ov_eigenvalues", "qk_eigenvalues", "score",
                         "ranking", "profile", "lag_share", "induction_match", "retrieval", "induction_writer",
                         "writers", "notes", "path_error", "gate_error"),
    },
    "analyses.heads.gathering": {"GatherScores": ("gather", "aggregate", "even_gather", "even_aggregate", "ranking")},
    "analyses.heads.needle_heads": {"Look": ("ranking", "patterns", "shown", "queries")},
    "analyses.heads.ranking": {"HeadRanking": ("scores", "order", "best", "source", "lower_is_better")},
    "analyses.heads.scores": {"HeadScores": ("induction", "previous", "duplicate", "mean", "spread", "top", "ranking")},
    "analyses.kv_cache": {
        "Crossover": ("shares", "by_mix", "cells", "regions"), "DamageMap": ("damage", "places", "regions"),
    },
    "analyses.kv_cache.crossover_results": {"Shares": ("a", "b", "neither", "leaning")},
    "analyses.patching.agreement": {"Agreement": ("pearson", "spearman", "largest_error", "patches")},
    "analyses.patching.circuit": {"Circuit": ("edges", "size", "complement")},
    "analyses.patching.circuit_curves": {
        "CircuitCurves": ("sizes", "faithfulness", "completeness", "random_faithfulness", "interval", "smallest"),
    },
    "analyses.patching.direct": {
        "DirectAttribution": ("shares", "writers", "of", "top", "total", "remainder", "before_cap", "logits"),
    },
    "analyses.patching.results": {
        "PatchResult": ("raw", "change", "normalised", "axes", "top", "untouched", "clean", "corrupt"),
        "EdgeResult": ("scores",),
    },
    "analyses.states": {
        "Flow": ("kept", "wrote", "already", "erased"), "Holding": ("share", "even", "rest", "positions"),
        "Knockout": ("value", "untouched", "change", "random", "p_value", "drawn"), "KnockoutMap": ("values", "top"),
        "Sizes": ("norm", "effective_rank", "stable_rank", "positions", "most"),
        "Spectrum": ("half_life", "log_decay", "spread", "beyond"), "StateProbes": ("states", "stream", "convolution"),
    },
    "analyses.stream": {
        "StreamLens": ("places", "entropy", "divergence", "target_logits", "target_probabilities", "target_ranks",
                       "top_tokens", "top_probabilities"),
        "TunedLens": ("places", "weight", "bias", "save", "load", "held_out", "held_out_logit_lens"),
        "Direction": ("unit", "size", "spread", "explained"),
        "SteeringEffect": ("values", "random", "change", "p_value"),
        "FittedProbe": ("accuracy", "shuffled", "read", "weight", "predict", "direction"),
        "SaeQuality": ("recovered", "l0", "explained", "dead"),
        "FeatureAttribution": ("shares", "error", "remainder"), "FeatureExamples": ("of",),
    },
    "analyses.study.capacity": {
        "Capacity": ("recalls", "curve", "most_held", "memory", "answers"),
        "Recall": ("right", "other", "neither", "strange", "control", "above", "held"),
    },
    "analyses.study.comparing": {"Comparison": ("across", "claims", "accuracies", "notes"),
                                 "ClaimRow": ("verdicts", "parts", "unlike")},
    "analyses.study.rankings.deciding": {
        "Decision": ("equal", "behind", "open", "shortfall", "standing", "needed", "difference", "low", "high"),
    },
    "analyses.study.reduced.results": {"ReducedModules": ("retrieval", "control", "cost", "keeps", "knee", "front")},
    "analyses.study.reduced.shapes": {"Cost": ("token_bytes", "multiplications")},
    "analyses.study.training_curves.results": {"TrainingCurves": ("runs", "load"),
                                               "RunCurves": ("checkpoints", "curve", "absent")},
    "analyses.study.view_types": {"Fig2": ("accuracy", "tipping", "intervals")},
    "analyses.study.zoo": {"Zoo": ("members", "member", "table")},
    "analyses.study.points": {"Point": ("value", "low", "high", "n", "absent")},
    "hybridlens.sae": {"SparseAutoencoder": ("encode", "decode")},
}  # fmt: skip
"""Module → class → what pages name of it; some are parts of what a page gives."""
UNNAMED = {"Shares", "RunCurves", "ClaimRow"}
"""Classes that pages speak of without their names."""


def entries() -> Iterator[tuple[Path, str, str]]:
    """Page, title and text of each analysis."""
    for page in PAGES:
        for entry in page.read_text(encoding="utf-8").split("\n## ")[1:]:
            title, _, text = entry.partition("\n")
            yield page, title, text


def test_each_analysis_says_what_it_asks_its_formula_source_example_failures_and_what_it_gives():
    found = list(entries())
    assert len(found) >= LEAST
    for _, title, text in found:
        for part in PARTS:
            assert text.count(part) == 1, f"{title} has not one {part}"
        prose = text.partition("```python")[0]
        assert "?" in prose, f"{title} does not say what it asks"
        assert re.search(r"\n\n    \S", prose), f"{title} has no formula"


def test_the_index_leads_to_each_of_them_once():
    links = re.findall(r"^\* \[[^\]]+\]\(([^)]+)\)", (FOLDER / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    anchors = [
        f"{page.name}#{re.sub(r'[^a-z0-9 -]', '', title.lower()).replace(' ', '-')}" for page, title, _ in entries()
    ]
    assert sorted(links, key=lambda link: link.partition("#")[0]) == anchors, "each once, in its page's order"
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if f"- analyses/{page.name}" not in site] == []


def test_names_in_the_text_exist():
    """Fields and methods that pages name of a result are there, and are named there."""
    told = "\n".join(text for _, _, text in entries())
    for module, classes in GIVES.items():
        for name, parts in classes.items():
            made = getattr(import_module(module), name)
            fields = {key for base in made.__mro__ for key in getattr(base, "__annotations__", {})}
            assert name in UNNAMED or f"`{name}`" in told, f"no page names {name}"
            for part in parts:
                assert part in fields or hasattr(made, part), f"{name}.{part}"
                assert re.search(rf"\b{part}\b", told), f"no page names {part} of {name}"


EVERY = [picture for page in PAGES for picture in pictures.pictures(page)]


def test_every_picture_is_there_and_none_that_no_page_shows():
    files = sorted((FOLDER / "figures").iterdir())
    assert [path.name for path in files] == sorted(f"{picture.name}.svg" for picture in EVERY)
    assert len(EVERY) == len(list(entries()))
    assert sum(path.stat().st_size for path in files) < MOST_OF_ALL


@pytest.mark.parametrize("picture", EVERY, ids=lambda picture: picture.name)
def test_a_picture_has_its_title_and_code_that_draws_it(picture: pictures.Picture):
    """Its title is the words that stand for it, so that other words without a new picture fail."""
    path = FOLDER / "figures" / f"{picture.name}.svg"
    drawn = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    assert path.stat().st_size < MOST_OF_ONE
    assert int(drawn.attrib["width"]) == pictures.WIDTH
    texts = ["".join(node.itertext()) for node in drawn.iter("{http://www.w3.org/2000/svg}text")]
    title = picture.words.partition(": ")[0]
    assert title in texts
    assert len(title) <= LONGEST
    assert isinstance(ast.parse(picture.code.strip()).body[-1], ast.Expr)


def test_a_picture_without_code_or_example_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pictures, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    example = "# T\n\n## A\n\n```python\nx = 1\n```\n\n"
    page.write_text(f"{example}![w](figures/a.svg)\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.svg has no code"):
        list(pictures.pictures(page))
    page.write_text(f"{example}## B\n\n![w](figures/b.svg)\n<!-- picture: x -->\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"b\.svg has no example above it"):
        list(pictures.pictures(page))
    page.write_text(f"{example}![w: v](figures/a.svg)\n<!-- picture:\ny = x\ny\n-->\n", encoding="utf-8")
    (found,) = pictures.pictures(page)
    assert (found.name, found.words, found.example.code, found.code) == ("a", "w: v", "x = 1\n", "y = x\ny\n")
