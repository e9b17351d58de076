"""A folder with the crossover of one model: `crossover.json`, maps of where it is written, `run.json`, the report.

The crossover is made needle pair by needle pair, and the maps one by one. Each is written as it is finished, so that a
killed run goes on from there.

The maps are of one prompt each (`examples`): a typical one of those whose needle the last token sees, and, for a model
with a window, of those whose needle it sees nothing of, the one of which it remembers the most.

How it fails: a folder that holds something else is refused with `ResultsError` before anything is computed; a part that
cannot be read whole is made again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from analyses.checkpoints import weights_hash
from analyses.folders import finish, opened
from analyses.kv_cache.crossover import ROWS, crossover
from analyses.kv_cache.crossover_results import CrossCell, Crossover
from analyses.kv_cache.damage import DamageMap
from analyses.kv_cache.following import EVERYTHING, INTACT
from analyses.kv_cache.mixes import Mix, mixes
from analyses.kv_cache.pairs import PromptPair, prompt_pairs
from analyses.kv_cache.twins import needle_pairs
from analyses.kv_cache.where import drop_map, recurrent_map
from hybridlens import niah
from hybridlens.errors import InputError, ResultsError
from hybridlens.model import HybridLens
from hybridlens.results import hash_json
from hybridlens.results.record import Manifest
from hybridlens.tokens import check_context

FILE = "crossover.json"
MAPS, PARTS = "maps", "parts"

DEPTHS = (0, 10, 50)
"""Needle depths in percent. Early needles are those that leave a window."""

PLACES = 32
"""A map has about so many places, each of at least `LEAST_BLOCK` positions."""

LEAST_BLOCK = 8

KINDS = ("dropped", "reset", "replaced")
"""The maps of one prompt: keys and values dropped; recurrent layers reset; recurrent layers given prompt B's."""


_T = TypeVar("_T")


@dataclass(frozen=True)
class CrossoverConfig:
    """Every option.

    Attributes:
        model: what results call the model.
        lengths: of the prompts; None for `default_lengths`.
        depths: of the needles, in percent.
        pairs: names of needles with twins; None for all that the tokenizer cuts into as many tokens.
        max_new_tokens: of each answer.
        block: positions of a map's place; None for about `PLACES` places.
        rows: of a batch; changes no result.
        seed: of the filler.
        command: the command line, to be recorded.
    """

    model: str
    lengths: tuple[int, ...] | None = None
    depths: tuple[int, ...] = DEPTHS
    pairs: tuple[str, ...] | None = None
    max_new_tokens: int = 40
    block: int | None = None
    rows: int = ROWS
    seed: int = 0
    command: str = ""


class CrossoverResult(NamedTuple):
    """A finished computation."""

    folder: Path
    crossover: Crossover
    maps: dict[str, DamageMap]
    """By name: "inside-dropped", "outside-reset", …"""
    record: dict[str, Any]


def run(
    lens: HybridLens,
    config: CrossoverConfig,
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CrossoverResult:
    """Compute what `folder` does not hold yet, and write it.

    Args:
        lens: the model, with a tokenizer.
        config: what to compute.
        folder: made when it does not exist.
        progress: called with the answers done, maps counted as one each, and their number.

    Raises:
        InputError: lengths, depths or needles that do not fit, or longer than the model's context.
        ResultsError: the folder holds something else, or cannot be written.
    """
    lengths = default_lengths(lens, config.seed) if config.lengths is None else config.lengths
    check_context(max(lengths, default=0) + config.max_new_tokens, lens.cfg.n_ctx)
    if min(1 if config.block is None else config.block, config.max_new_tokens) < 1:
        raise InputError(
            f"blocks of {config.block} positions and {config.max_new_tokens} new tokens given, expected at least 1"
        )
    named = None if config.pairs is None else needle_pairs(config.pairs)
    pairs = prompt_pairs(lens.tokenizer, lengths, config.depths, named, seed=config.seed)
    record = opened(folder, _manifest(lens, config, lengths, pairs))
    if record["status"] == "complete" and (folder / FILE).is_file():
        maps = {path.stem: DamageMap.load(path) for path in sorted((folder / MAPS).glob("*.json"))}
        return CrossoverResult(folder, Crossover.load(folder / FILE), maps, record)
    kept = folder / PARTS / str(record["fingerprint"])[:16]
    kept.mkdir(parents=True, exist_ok=True)
    chosen = mixes(lens.cfg)
    total = len(chosen) * len(pairs) + len(KINDS) * (1 if lens.cfg.window is None else 2)
    found = _crossed(lens, config, pairs, chosen, kept, lambda done: progress(done, total))
    shown = examples(found, pairs)
    maps: dict[str, DamageMap] = {}
    for where, pair in shown.items():
        for kind in KINDS:
            maps[f"{where}-{kind}"] = _map(lens, pair, kind, config.block, kept / f"{where}-{kind}.json")
            progress(len(found.cells) + len(maps), total)
    found.save(folder / FILE)
    (folder / MAPS).mkdir(exist_ok=True)
    for name, made in maps.items():
        made.save(folder / MAPS / f"{name}.json")
    progress(total, total)
    finish(folder, record)
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    return CrossoverResult(folder, found, maps, record)


def default_lengths(lens: HybridLens, seed: int = 0) -> tuple[int, ...]:
    """The shortest length of the benchmark and a longer one: beyond the window by a quarter, or twice the shortest."""
    shortest = niah.shortest_length(lens.tokenizer, seed=seed)
    if lens.cfg.window is None:
        return shortest, 2 * shortest
    return tuple(sorted({min(shortest, lens.cfg.window), max(lens.cfg.window * 5 // 4, shortest)}))


def examples(found: Crossover, pairs: Sequence[PromptPair]) -> dict[str, PromptPair]:
    """The prompts that the maps are of: "inside", and "outside" where there are such.

    Pairs are ordered by how far exchanging everything moves the preference between their needles' words, those of which
    both needles are told after all others. Inside it is the middle one of those that are told, outside the last of all.

    Args:
        found: the crossover of the pairs.
        pairs: in the order of its cells.
    """
    cells = [[cell for cell in found.cells if cell.mix == mix] for mix in (INTACT, EVERYTHING.only)]
    shown: dict[str, PromptPair] = {}
    for where, seen in (("inside", 1.0), ("outside", 0.0)):
        there = [(_told(a, b), pair) for a, b, pair in zip(*cells, pairs, strict=True) if a.seen == seen]
        there.sort(key=lambda both: both[0])
        told = [pair for (both, _), pair in there if both]
        if there:
            shown[where] = told[len(told) // 2] if told and where == "inside" else there[-1][1]
    return shown


def _told(a: CrossCell, b: CrossCell) -> tuple[bool, float]:
    """Whether both needles are told, and by how much the preference between their words moves."""
    moved = (b.logprob_b - b.logprob_a) - (a.logprob_b - a.logprob_a)
    return a.told == "A" and b.told == "B", moved


def _crossed(
    lens: HybridLens,
    config: CrossoverConfig,
    pairs: Sequence[PromptPair],
    chosen: Sequence[Mix],
    kept: Path,
    progress: Callable[[int], None],
) -> Crossover:
    """The answers of all pairs, those of one needle after those of another; cells as `crossover` orders them."""
    cells: dict[tuple[str, int], CrossCell] = {}
    for number, name in enumerate(dict.fromkeys(pair.name for pair in pairs)):
        at = [i for i, pair in enumerate(pairs) if pair.name == name]
        path, done = kept / f"crossover-{number}.json", len(cells)
        part = _stored(path, Crossover.load)
        if part is None or len(part.cells) != len(at) * len(chosen):
            part = crossover(
                lens, [pairs[i] for i in at], chosen, max_new_tokens=config.max_new_tokens, rows=config.rows,
                done=lambda more, done=done: progress(done + more),
            )  # fmt: skip
            part.save(path)
        for place, cell in enumerate(part.cells):
            cells[cell.mix, at[place % len(at)]] = cell
        progress(len(cells))
    ordered = tuple(cells[mix.name, i] for mix in chosen for i in range(len(pairs)))
    return Crossover(lens.network.signature, tuple(chosen), ordered, config.max_new_tokens)


def _map(lens: HybridLens, pair: PromptPair, kind: str, block: int | None, path: Path) -> DamageMap:
    """One map, stored or made now. Answers are not graded: the map is of log-probabilities."""
    stored = _stored(path, DamageMap.load)
    if stored is not None:
        return stored
    step = max(LEAST_BLOCK, -(-pair.length // PLACES)) if block is None else block
    if kind == "dropped":
        made = drop_map(lens, pair, block=step, max_new_tokens=0)
    else:
        made = recurrent_map(lens, pair, how="reset" if kind == "reset" else "replace", every=step, max_new_tokens=0)
    made.save(path)
    return made


def _stored(path: Path, load: Callable[[Path], _T]) -> _T | None:
    """What an earlier session left; None where that is nothing, or cannot be read."""
    if not path.is_file():
        return None
    try:
        return load(path)
    except ResultsError:
        return None


def _manifest(
    lens: HybridLens, config: CrossoverConfig, lengths: Sequence[int], pairs: Sequence[PromptPair]
) -> Manifest:
    arguments: Mapping[str, Any] = {
        "lengths": list(lengths),
        "depths": list(config.depths),
        "pairs": list(dict.fromkeys(pair.name for pair in pairs)),
        "max-new-tokens": config.max_new_tokens,
        "block": config.block,
        "dtype": str(lens.dtype).removeprefix("torch."),
        "prompts (their hash)": hash_json([[pair.a, pair.b] for pair in pairs]),
    }
    cfg = lens.cfg
    return Manifest(
        model=config.model,
        arguments=arguments,
        seed=config.seed,
        max_score=niah.MAX_SCORE,
        config_hash=hash_json(lens.hf_model.config.to_dict()),
        weights_hash=weights_hash(config.model, lens),
        job="crossover",
        command=config.command,
        settings={"rows": config.rows, "device": str(lens.device)},
        facts={
            "family": cfg.family,
            "attention layers": list(cfg.attention_layers),
            "recurrent layers": list(cfg.ssm_layers),
            "key/value heads": cfg.n_kv_heads,
            "window": cfg.window,
        },
    )
