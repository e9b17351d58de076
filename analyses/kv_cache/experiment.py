"""The crossover of one model as an experiment: `crossover.json`, and maps of where the needle is written.

The crossover is made needle pair by needle pair, and the maps one by one, each kept as it is finished. The maps are of
one prompt each (`examples`): a typical one of those whose needle the last token sees, and, for a model with a window,
of those whose needle it sees nothing of, the one of which it remembers the most.

How it fails: see `analyses.experiment`; lengths, depths or needles that do not fit are refused before the folder is
touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from analyses.experiment.options.crossover import CrossoverConfig
from analyses.experiment.parts import Part, stage
from analyses.experiment.running import Experiment, Progress
from analyses.kv_cache.crossover import crossover
from analyses.kv_cache.crossover_results import Crossover
from analyses.kv_cache.damage import DamageMap
from analyses.kv_cache.following import EVERYTHING, INTACT, named
from analyses.kv_cache.mixes import mixes
from analyses.kv_cache.pairs import PromptPair, own_prompts, prompt_pairs
from analyses.kv_cache.report import article_of, crossover_table
from analyses.kv_cache.sections import KINDS
from analyses.kv_cache.twins import paired
from analyses.kv_cache.where import drop_map, recurrent_map
from hybridlens import niah
from hybridlens.display import Piece, Table, listed
from hybridlens.model import HybridLens
from hybridlens.results import Folder, Manifest, hash_json
from hybridlens.tokens import check_context
from hybridlens.viz.article import Article
from hybridlens.viz.plotted import Plotted

if TYPE_CHECKING:
    from hybridlens.viz.plot import Plot

PLACES = 32
"""A map has about so many places, each of at least `LEAST_BLOCK` positions."""

LEAST_BLOCK = 8


class _Crossed(NamedTuple):
    """Fields of `Crossed`."""

    crossover: Crossover
    maps: dict[str, DamageMap]
    """By name: "inside-dropped", "outside-reset", …"""


class Crossed(Plotted, _Crossed):
    """Everything that a run gives."""

    __slots__ = ()

    def summary(self) -> str:
        """The answers, and which maps there are."""
        return f"{self.crossover.summary()}; maps {listed(self.maps)}"

    def table(self) -> Table:
        """The answers."""
        return self.crossover.table()

    def view(self) -> tuple[Piece, ...]:
        """What each mix tells."""
        return self.crossover.view()

    def plot(self) -> Plot:
        """What each mix tells; the maps draw themselves."""
        return self.crossover.plot()


class CrossoverRun(Experiment[CrossoverConfig, Crossed]):
    """Which memory holds the needle: keys and values of one prompt, recurrent states of another, and which is told.

    Raises:
        InputError: lengths, depths or needles that do not fit, or longer than the model's context.
    """

    job = "crossover"
    unit = "answer"
    waves = 2
    of_heads = False

    def __init__(self, lens: HybridLens, options: CrossoverConfig, weights_hash: str | None = None) -> None:
        super().__init__(lens, options, weights_hash)
        self.pairs = self._pairs()
        self.lengths = tuple(dict.fromkeys(pair.length for pair in self.pairs))
        check_context(max(self.lengths) + options.max_new_tokens, lens.cfg.n_ctx)
        self.mixes = tuple(mixes(lens.cfg))

    def _pairs(self) -> list[PromptPair]:
        lens, options = self.lens, self.options
        if options.prompts is not None:
            return own_prompts(lens.tokenizer, options.prompts)
        lengths = default_lengths(lens, options.seed) if options.lengths is None else options.lengths
        check_context(max(lengths) + options.max_new_tokens, lens.cfg.n_ctx)
        twins = None if options.needles is None else paired(options.needles, lens.tokenizer)
        return prompt_pairs(lens.tokenizer, lengths, options.depths, twins, options.haystack, seed=options.seed)

    def manifest(self) -> Manifest:
        """See `Experiment`."""
        options = self.options
        arguments = {
            "lengths": list(self.lengths),
            "depths": list(options.depths),
            "pairs": list(dict.fromkeys(pair.name for pair in self.pairs)),
            "max-new-tokens": options.max_new_tokens,
            "block": options.block,
            "prompts (their hash)": hash_json([[pair.a, pair.b] for pair in self.pairs]),
        }
        return self.identity(arguments, {"rows": options.rows})

    def run(self, folder: Folder, progress: Progress) -> Crossed:
        """See `Experiment`."""
        total = len(self.mixes) * len(self.pairs) + len(kinds_of(self.lens)) * (
            1 if self.lens.cfg.window is None else 2
        )
        progress(0, total)
        found = self._found(folder, lambda done: progress(done, total))
        maps: dict[str, DamageMap] = {}
        for name, take in self._maps(folder, found).items():
            maps[name] = take()
            progress(len(found.cells) + len(maps), total)
        progress(total, total)
        folder.drop("parts")
        return Crossed(found, maps)

    def parts(self, folder: Folder, wave: int) -> Sequence[Part]:
        """See `Experiment`: the answers of the pairs of each needle, then each map of those that are shown."""
        if wave:
            found = self._found(folder, lambda done: None)
            return [stage(name, take) for name, take in self._maps(folder, found).items()]
        if folder.stored("crossover.json", self._mixed, Crossover.load) is not None:
            return []
        names = [pair.name for pair in self.pairs]
        return [
            Part(name, len(self.mixes) * names.count(name), names.count(name), partial(self._part, folder, name))
            for name in dict.fromkeys(names)
        ]

    def _found(self, folder: Folder, progress: Callable[[int], None]) -> Crossover:
        """The answers of all pairs."""
        return folder.take("crossover.json", self._mixed, Crossover.load, partial(self._crossed, folder, progress))

    @property
    def _mixed(self) -> list[list[str]]:
        return [[mix.name, mix.group] for mix in self.mixes]

    def _maps(self, folder: Folder, found: Crossover) -> dict[str, Callable[[], DamageMap]]:
        """Each map by its name, as what takes it from the folder or makes it."""
        maps: dict[str, Callable[[], DamageMap]] = {}
        for where, pair in examples(found, self.pairs).items():
            step = self.options.block or max(LEAST_BLOCK, -(-pair.length // PLACES))
            for kind in kinds_of(self.lens):
                made = partial(_map, self.lens, pair, kind, step)
                depends, file = [pair.a, pair.b, kind, step], f"maps/{where}-{kind}.json"
                maps[f"{where}-{kind}"] = partial(folder.take, file, depends, DamageMap.load, made)
        return maps

    def _crossed(self, folder: Folder, progress: Callable[[int], None]) -> Crossover:
        """The answers of all pairs, those of one needle after those of another; cells as `crossover` orders them."""
        parts: list[Crossover] = []
        done = 0
        for name in dict.fromkeys(pair.name for pair in self.pairs):  # whose pairs stand together
            parts.append(self._part(folder, name, lambda more, done=done: progress(done + more)))
            done += len(parts[-1].cells)
            progress(done)
        cells = tuple(cell for mix in self.mixes for part in parts for cell in part.answers(mix.name))
        return Crossover(self.lens.network.signature, self.mixes, cells, self.options.max_new_tokens)

    def _part(self, folder: Folder, name: str, done: Callable[[int], None]) -> Crossover:
        """The answers of the pairs of one needle."""
        made = partial(
            crossover, self.lens, [pair for pair in self.pairs if pair.name == name], self.mixes,
            max_new_tokens=self.options.max_new_tokens, rows=self.options.rows, done=done,
        )  # fmt: skip
        return folder.take(f"parts/{name}.json", [mix.name for mix in self.mixes], Crossover.load, made)

    def page(self, result: Crossed, record: Mapping[str, Any]) -> Article:
        """See `Experiment`."""
        return article_of(result.crossover, result.maps, record)

    def table(self, result: Crossed) -> Iterable[str]:
        """See `Experiment`."""
        return [crossover_table(result.crossover, self.options.model, self.lens.cfg.window)]


def default_lengths(lens: HybridLens, seed: int = 0) -> tuple[int, ...]:
    """The shortest length of the benchmark and a longer one: beyond the window by a quarter, or twice the shortest."""
    shortest = niah.shortest_length(lens.tokenizer, seed=seed)
    if lens.cfg.window is None:
        return shortest, 2 * shortest
    return tuple(sorted({min(shortest, lens.cfg.window), max(lens.cfg.window * 5 // 4, shortest)}))


def kinds_of(lens: HybridLens) -> tuple[str, ...]:
    """The kinds of maps that a model has: keys and values to drop, recurrent layers to reset."""
    dropped, *others = KINDS
    has = lens.cfg
    return (*((dropped,) if has.attention_layers else ()), *(others if has.ssm_layers else ()))


def examples(found: Crossover, pairs: Sequence[PromptPair]) -> dict[str, PromptPair]:
    """The prompts that the maps are of: "inside", and "outside" where there are such.

    Pairs are ordered by how far exchanging everything moves the preference between their needles' words, those of which
    both needles are told after all others. Inside it is the middle one of those that are told, outside the last of all.

    Args:
        found: the crossover of the pairs.
        pairs: in the order of its cells.
    """
    shown: dict[str, PromptPair] = {}
    both = (INTACT, EVERYTHING.only)
    for where, seen in (("inside", 1.0), ("outside", 0.0)):
        there = [
            (a.told == "A" and b.told == "B", b.leaning - a.leaning, pair)
            for a, b, pair in zip(*(found.answers(named(found, mix)) for mix in both), pairs, strict=True)
            if a.seen == seen
        ]
        there.sort(key=lambda one: one[:2])
        told = [one for one in there if one[0]]
        if there:
            shown[where] = (told[len(told) // 2] if told and where == "inside" else there[-1])[2]
    return shown


def _map(lens: HybridLens, pair: PromptPair, kind: str, step: int) -> DamageMap:
    """One map, made now. Answers are not graded: the map is of log-probabilities."""
    if kind == "dropped":
        return drop_map(lens, pair, block=step, max_new_tokens=0)
    return recurrent_map(lens, pair, how="reset" if kind == "reset" else "replace", every=step, max_new_tokens=0)
