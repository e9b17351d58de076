"""Which memory an answer follows: one memory comes from one prompt and all else from the other, either way round.

Where the answers tell the needle of the memory's prompt, both when that is A's and when it is B's, this memory alone
holds the needle, against all others. `shift` is a finer measure of the same, without answers: how far the model's
preference between the two needles' words moves when this memory alone is exchanged.

`together` says how often no memory decides alone: the needle is told where all come from one prompt, and where any one
of them comes from another, neither prompt's is.

How it fails: a needle that two memories hold, each of them enough, follows whichever is read more; one that needs both
is told from neither, and so is one about which they contradict each other: `together` does not tell these apart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from analyses.kv_cache.crossover_results import Crossover, Share
from analyses.kv_cache.mixes import Mix
from hybridlens.boundary import Seed, public
from hybridlens.display import Displayed, Table, many, number
from hybridlens.errors import ResultsError
from hybridlens.results import paired_difference

INTACT = "kv A, conv A, recurrent A"
"""The mix in which nothing comes from prompt B."""


class _Memory(NamedTuple):
    """Fields of `Memory`."""

    words: str
    only: str
    """The mix in which it alone comes from B."""
    all_but: str
    """The mix in which all but it comes from B."""


class Memory(Displayed, _Memory):
    """One memory, and the two mixes that set it against all others."""

    __slots__ = ()

    def summary(self) -> str:
        """Its words."""
        return self.words


EVERYTHING = Memory("everything", "kv B, conv B, recurrent B", INTACT)
"""Nothing stands against it: following it is telling the needle of the prompt that was read."""

KEYS_AND_VALUES = Memory("keys and values", "kv B, conv A, recurrent A", "kv A, conv B, recurrent B")
RECURRENT = Memory("recurrent states", "kv A, conv A, recurrent B", "kv B, conv B, recurrent A")
CONVOLUTION = Memory("convolution inputs", "kv A, conv B, recurrent A", "kv B, conv A, recurrent B")
KINDS = {"kv": KEYS_AND_VALUES, "recurrent": RECURRENT, "conv": CONVOLUTION}
"""The kinds of memory by their names in mixes; of each model (`whole`) those that it has."""


class _LayerMemory(NamedTuple):
    """Fields of `LayerMemory`."""

    layer: int
    kind: str
    """"keys and values", "keys and values of head 0", "convolution and recurrent state", …"""
    memory: Memory


class LayerMemory(Displayed, _LayerMemory):
    """A memory of one layer."""

    __slots__ = ()

    def summary(self) -> str:
        """Its words."""
        return self.memory.words


class _Following(NamedTuple):
    """Fields of `Following`."""

    memory: Share
    """Answers that tell the needle of the memory's prompt."""
    rest: Share
    """Those that tell the needle of the prompt of all else."""
    neither: Share
    shift: float
    """By how much log-probability of B's less A's words rises when this memory comes from B; nats, mean."""
    n: int
    """Prompt pairs."""


class Following(Displayed, _Following):
    """What answers follow; each prompt pair counts once, by both of its answers."""

    __slots__ = ()

    def summary(self) -> str:
        """Which needle is told, and how the preference shifts."""
        return (
            f"its own needle {self.memory.mean:.0%}, that of all else {self.rest.mean:.0%}, neither "
            f"{self.neither.mean:.0%} of {many(self.n, 'prompt pair')}; shift {number(self.shift, 3)} nats"
        )

    def table(self) -> Table:
        """A row for each needle that answers may follow: the share of answers with its interval."""
        rows = [(what, one.mean, *one.interval) for what, one in zip(self._fields[:3], self[:3], strict=True)]
        note = f"shift {number(self.shift)} nats, over {many(self.n, 'prompt pair')}"
        return Table(("follows", "share", "low", "high"), rows, heat=("share",), note=note)


_KINDS = {
    "kv": "keys and values",
    "conv and recurrent": "convolution and recurrent state",
    "conv": "convolution",
    "recurrent": "recurrent state",
}
_ONE = re.compile(r"only (?P<what>[a-z ]+) of layer (?P<layer>\d+)(?P<head>, head \d+)? B")


def named(found: Crossover, name: str) -> str:
    """What a crossover calls a mix of the whole model: of the kinds of memory that it lacks, nothing is said."""
    names, has = {mix.name for mix in found.mixes}, kinds(found)
    short = ", ".join(part for part in name.split(", ") if part.split()[0] in has)
    return short if name not in names and short in names else name


def kinds(found: Crossover) -> list[str]:
    """The kinds of memory that a crossover's mixes of the whole model name."""
    parts = {part for mix in found.mixes for part in mix.name.split(", ")}
    return [kind for kind in KINDS if parts & {f"{kind} A", f"{kind} B"}]


def whole(found: Crossover) -> tuple[Memory, ...]:
    """The memories of the whole model, as far as it has them: everything, then each kind where there are several."""
    has = kinds(found)
    return (EVERYTHING, *(KINDS[kind] for kind in has if len(has) > 1))


def layer_memories(mixes: Sequence[Mix]) -> list[LayerMemory]:
    """The memories of single layers that a crossover's mixes set against all others, in order."""
    names = [mix.name for mix in mixes]
    found: list[LayerMemory] = []
    for name in names:
        match, other = _ONE.fullmatch(name), name.replace("only", "all but", 1)
        if match is None or other not in names:
            continue
        what, layer, head = _KINDS[match["what"]], match["layer"], match["head"] or ""
        memory = Memory(f"{what} of layer {layer}{head}", name, other)
        found.append(LayerMemory(int(layer), what + head.replace(",", " of"), memory))
    return found


@public
def following(found: Crossover, memory: Memory, inside: bool | None = None, *, seed: Seed = 0) -> Following:
    """Which needle is told where one memory stands against all others.

    Args:
        found: with both mixes of the memory, and the one in which nothing is exchanged.
        memory: such as `KEYS_AND_VALUES`.
        inside: as in `Crossover.shares`.
        seed: of the intervals' draws, 0 or more.

    Raises:
        InputError: a seed below 0.
        ResultsError: there are no such answers.
    """
    only, intact = (found.answers(named(found, name), inside) for name in (memory.only, INTACT))

    def share(one: str, other: str) -> Share:
        return Share.of(_told(found, memory, inside, one, other), seed)

    shift = sum(cell.leaning - base.leaning for cell, base in zip(only, intact, strict=True)) / len(only)
    return Following(share("B", "A"), share("A", "B"), share("neither", "neither"), shift, len(only))


@public
def together(found: Crossover, inside: bool | None = None, *, seed: Seed = 0) -> Share:
    """How often no memory decides alone: answers that follow everything, less those that follow any one memory.

    Of each prompt pair, both ways round: the share of answers that tell the needle of the prompt that all memories come
    from, less the sum of the shares that `following` has of each single memory, at most 1. It is 0 where one memory
    holds the needle, or each of several does, and below 0 where a mixture tells more than the whole does.

    Args:
        found: with the mixes of all memories of the whole model.
        inside: as in `Crossover.shares`.
        seed: of the interval's draws, 0 or more.

    Raises:
        InputError: a seed below 0.
        ResultsError: the model has one memory alone, or there are no such answers.
    """
    everything, *single = whole(found)
    if not single:
        raise ResultsError("the model has one memory alone, so that no other could decide with it")
    whole_told = _told(found, everything, inside)
    each = zip(*(_told(found, memory, inside) for memory in single), strict=True)
    alone = [min(1.0, sum(shares)) for shares in each]
    mean = (sum(whole_told) - sum(alone)) / len(alone)
    return Share(mean, paired_difference(whole_told, alone, seed=seed))


def _told(found: Crossover, memory: Memory, inside: bool | None, one: str = "B", other: str = "A") -> list[float]:
    """Of each prompt pair, how many of its two answers tell one needle where the memory is B's, the other where A's."""
    only, all_but = (found.answers(named(found, name), inside) for name in (memory.only, memory.all_but))
    return [((a.told == one) + (b.told == other)) / 2 for a, b in zip(only, all_but, strict=True)]
