"""A folder with the circuits of one model: `circuits.safetensors`, a ranking for each metric, `run.json`, the report.

How it fails: a folder that holds something else is refused with `ResultsError` before anything is computed; what a
killed run had finished is taken up again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Int
from torch import Tensor

from analyses.circuits.results import HeadCircuits
from analyses.circuits.running import MEMORY, SAMPLE, check_distances, circuits
from analyses.folders import finish, made, opened
from analyses.ranking import HeadRanking
from hybridlens.model import HybridLens
from hybridlens.results import hash_json
from hybridlens.results.record import Manifest
from hybridlens.weights import Weights, digest

FILE = "circuits.safetensors"


@dataclass(frozen=True)
class CircuitsConfig:
    """Every option.

    Attributes:
        model: what results call the model.
        sample_size: see `analyses.circuits.circuits`.
        distances: likewise.
        seed: likewise.
        memory: likewise; changes no result.
        command: the command line, to be recorded.
    """

    model: str
    sample_size: int = SAMPLE
    distances: tuple[int, ...] | None = None
    seed: int = 0
    memory: int = MEMORY
    command: str = ""


class CircuitsResult(NamedTuple):
    """A finished computation."""

    folder: Path
    circuits: HeadCircuits
    rankings: dict[str, HeadRanking]
    record: dict[str, Any]


def run(
    source: HybridLens | Weights,
    config: CircuitsConfig,
    folder: Path,
    tokens: Int[Tensor, "batch pos"] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CircuitsResult:
    """Compute what `folder` does not hold yet, and write it.

    Args:
        source: a lens, or weights read from files.
        config: what to compute.
        folder: made when it does not exist.
        tokens: real text, see `analyses.circuits.circuits`.
        progress: called with the stages done and their number.

    Raises:
        InputError: see `analyses.circuits.circuits`.
        ResultsError: the folder holds something else, or cannot be written.
    """
    weights = source if isinstance(source, Weights) else Weights.of_model(source)
    at = check_distances(weights, config.distances)
    text = None if tokens is None else hash_json(tokens.tolist())
    manifest = Manifest(
        model=config.model,
        arguments={"sample": config.sample_size, "distances": list(at), "text (its hash)": text},
        seed=config.seed,
        max_score=0,
        config_hash=hash_json(weights.config.to_dict()),
        weights_hash=digest(weights),
        job="circuits",
        command=config.command,
        settings={"memory": config.memory, "device": str(weights.cfg.device)},
        facts=_facts(weights),
    )
    record = opened(folder, manifest)
    if record["status"] == "complete" and (folder / FILE).is_file():
        found = HeadCircuits.load(folder / FILE)
    else:
        found = circuits(
            source, tokens, model=config.model, sample_size=config.sample_size, distances=at if at != (0,) else None,
            seed=config.seed, memory=config.memory, folder=folder / "parts", fingerprint=record["fingerprint"],
            progress=progress,
        )  # fmt: skip
        found.save(folder / FILE)
    rankings = {metric: found.ranking(metric) for metric in found.metrics}
    made(folder / "rankings")
    for metric, ranking in rankings.items():
        ranking.save(folder / "rankings" / f"{metric}.json")
    return CircuitsResult(folder, found, rankings, finish(folder, record))


def _facts(weights: Weights) -> dict[str, Any]:
    cfg = weights.cfg
    return {
        "family": cfg.family,
        "attention layers": list(cfg.attention_layers),
        "n_heads": cfg.n_heads,
        "key/value heads": cfg.n_kv_heads,
        "d_head": cfg.d_head,
        "d_model": cfg.d_model,
        "vocabulary": cfg.d_vocab,
        "window": cfg.window,
    }
