"""A folder with the crossover of one model: `crossover.json`, maps of where it is written, `run.json`, the report.

The crossover is made needle pair by needle pair, and the maps one by one. Each is written as it is finished, so that a
killed run goes on from there.

The maps are of one prompt each (`examples`): a typical one of those whose needle the last token sees, and, for a model
with a window, of those whose needle it sees nothing of, the one of which it remembers the most.

How it fails: a folder that holds something else is refused with `ResultsError` before anything is computed. A part that
cannot be read whole is made again, and so is, in a finished folder, a crossover or a map that is missing or damaged.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from analyses.checkpoints import weights_hash
from analyses.folders import finish, made, opened
from analyses.kv_cache.crossover import ROWS, crossover
from analyses.kv_cache.crossover_results import CrossCell, Crossover
from analyses.kv_cache.damage import DamageMap
from analyses.kv_cache.following import EVERYTHING, INTACT
from analyses.kv_cache.mixes import Mix, mixes
from analyses.kv_cache.pairs import PromptPair, prompt_pairs
from analyses.kv_cache.places import check_whole
from analyses.kv_cache.twins import needle_pairs
from analyses.kv_cache.where import drop_map, recurrent_map
from hybridlens import niah
from hybridlens.errors import ResultsError
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
    for name, given in (("block", config.block), ("max_new_tokens", config.max_new_tokens), ("rows", config.rows)):
        if given is not None:
            check_whole(given, name, 1)
    check_whole(config.seed, "seed", 0)
    lengths = default_lengths(lens, config.seed) if config.lengths is None else config.lengths
    check_context(max(lengths, default=0) + config.max_new_tokens, lens.cfg.n_ctx)
    named = None if config.pairs is None else needle_pairs(config.pairs)
    pairs = prompt_pairs(lens.tokenizer, lengths, config.depths, named, seed=config.seed)
    manifest, chosen = _manifest(lens, config, lengths, pairs), mixes(lens.cfg)
    record = opened(folder, manifest)
    found = _finished(folder / FILE, chosen, pairs)
    if record["status"] == "complete":
        maps = None if found is None else _finished_maps(folder / MAPS, found, pairs)
        if found is not None and maps is not None:
            return CrossoverResult(folder, found, maps, record)
        record = opened(folder, manifest, more=True)
    kept = made(folder / PARTS / str(record["fingerprint"])[:16])
    made(folder / MAPS)
    total = len(chosen) * len(pairs) + len(KINDS) * (1 if lens.cfg.window is None else 2)
    if found is None:
        found = _crossed(lens, config, pairs, chosen, kept, lambda done: progress(done, total))
        found.save(folder / FILE)
    maps = {}
    for name, (pair, kind) in _wanted(found, pairs).items():
        stored = _stored_map(folder / MAPS / f"{name}.json", pair)
        maps[name] = _map(lens, pair, kind, config.block) if stored is None else stored
        if stored is None:
            maps[name].save(folder / MAPS / f"{name}.json")
        progress(len(found.cells) + len(maps), total)
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


def _finished(path: Path, chosen: Sequence[Mix], pairs: Sequence[PromptPair]) -> Crossover | None:
    """The crossover of all pairs that an earlier session wrote; None where it is missing, damaged or of other mixes."""
    found = _stored(path, Crossover.load)
    expected = [(mix.name, pair.name, pair.length, pair.depth) for mix in chosen for pair in pairs]
    if found is None or found.mixes != tuple(chosen):
        return None
    return found if [(c.mix, c.pair, c.length, c.depth) for c in found.cells] == expected else None


def _finished_maps(folder: Path, found: Crossover, pairs: Sequence[PromptPair]) -> dict[str, DamageMap] | None:
    """All maps that belong to a crossover; None where one is missing or damaged."""
    maps = {
        name: _stored_map(folder / f"{name}.json", pair) for name, (pair, _) in _wanted(found, pairs).items()
    }
    there = {name: stored for name, stored in maps.items() if stored is not None}
    return there if len(there) == len(maps) else None


def _wanted(found: Crossover, pairs: Sequence[PromptPair]) -> dict[str, tuple[PromptPair, str]]:
    """The maps by name: of which prompt, and of which kind."""
    return {f"{where}-{kind}": (pair, kind) for where, pair in examples(found, pairs).items() for kind in KINDS}


def _stored_map(path: Path, pair: PromptPair) -> DamageMap | None:
    """The map of a pair that an earlier session wrote; None where it is missing, damaged or of another pair."""
    stored = _stored(path, DamageMap.load)
    if stored is None or (stored.pair, stored.spans, len(stored.tokens)) != (pair.name, pair.spans, pair.length):
        return None
    return stored


def _map(lens: HybridLens, pair: PromptPair, kind: str, block: int | None) -> DamageMap:
    """One map, made now. Answers are not graded: the map is of log-probabilities."""
    step = max(LEAST_BLOCK, -(-pair.length // PLACES)) if block is None else block
    if kind == "dropped":
        return drop_map(lens, pair, block=step, max_new_tokens=0)
    return recurrent_map(lens, pair, how="reset" if kind == "reset" else "replace", every=step, max_new_tokens=0)


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
