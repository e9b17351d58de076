"""Prompts read along their prefix trees: every shared beginning once, many rows at a time.

For each treatment the prompts make a tree (`tree.grow`). A segment is read from the state at its parent's end,
so states are kept at the ends of segments until all that follows them has been read. Segments of all trees that
are ready and of about the same size are read together, deepest first, which keeps few states waiting; long ones
are read in blocks. When the waiting states outgrow the budget, those needed last are dropped, and read again
from the nearest one kept.

How it fails: a treatment that is not causal (the authors' `binary`) shares no beginnings and cannot be read in
blocks, so that it needs the whole prompt in one pass whatever the budget.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import torch
from torch import Tensor

from hybridlens.engine.budget import Budget
from hybridlens.engine.tree import grow
from hybridlens.engine.work import Reading, Treating, symbols
from hybridlens.hooks import Edit
from hybridlens.model import HybridLens
from hybridlens.state import HybridState

FIT = 1.2
"""A pass may have so many times its real tokens, padding counted."""


class Read(NamedTuple):
    """A prompt that has been read."""

    reading: int
    """Which."""
    state: HybridState
    """Of one row."""
    logits: Tensor | None
    """[1 v], of its last token; None for an empty prompt."""


class Reached(NamedTuple):
    """The end of a stretch of tokens."""

    state: HybridState
    """Of one row."""
    logits: Tensor | None
    """[1 v], of its last token."""


class Stretch(NamedTuple):
    """Tokens of several rows that are read together, in as many passes as they have pieces."""

    rows: tuple[tuple[int, ...], ...]
    """Whole prompts."""
    starts: tuple[int, ...]
    """How many tokens of each have been read."""
    stops: tuple[int, ...]
    """Up to which each is to be read."""
    block: int
    """Tokens of a row in one pass, at most."""
    edits: Sequence[Edit]

    @property
    def new(self) -> int:
        """Tokens to read, of all rows."""
        return sum(self.stops) - sum(self.starts)

    def pieces(self) -> Iterator[list[tuple[int, ...]]]:
        """What each pass reads of each row, which may be nothing."""
        longest = max(stop - start for start, stop in zip(self.starts, self.stops, strict=True))
        for offset in range(0, longest, self.block):
            yield [
                row[start + offset : max(start + offset, min(start + offset + self.block, stop))]
                for row, start, stop in zip(self.rows, self.starts, self.stops, strict=True)
            ]


@dataclass
class Tally:
    """What reading cost."""

    distinct: int = 0
    """Distinct beginnings of the prompts, in tokens, treatment by treatment: what has to be read at least."""
    prefilled: int = 0
    """Tokens read, those read again included."""
    padding: int = 0
    """Padding that went through the model beside them."""
    passes: int = 0
    dropped: int = 0
    """Snapshots dropped for want of memory."""

    def __add__(self, other: Tally) -> Tally:
        """Both together."""
        return Tally(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


@dataclass(eq=False)
class _Segment:
    """A segment of a tree on its way."""

    reading: Reading
    """One that holds its tokens."""
    stop: int
    parent: _Segment | None
    ends: list[int]
    """The readings that end with it."""
    children: list[_Segment] = field(default_factory=list["_Segment"])
    left: int = 0
    """Children still to be read."""
    state: HybridState | None = None
    """At its end, while it is kept."""
    held: int = 0
    """Bytes of that state."""

    def base(self) -> _Segment | None:
        """The nearest segment above whose state is kept; None for the beginning."""
        above = self.parent
        while above is not None and above.state is None:
            above = above.parent
        return above

    def new(self) -> int:
        """Tokens to read from its base to its end."""
        base = self.base()
        return self.stop - (0 if base is None else base.stop)


@dataclass
class Reader:
    """Reads prompts for one lens, one treating and one budget.

    Attributes:
        tally: what it cost so far.
    """

    lens: HybridLens
    treating: Treating
    budget: Budget
    tally: Tally = field(default_factory=Tally)

    def read(self, readings: Sequence[Reading]) -> Iterator[list[Read]]:
        """The state after each of `readings`, in the order in which they become known."""
        ready: list[_Segment] = []
        kept: set[_Segment] = set()
        for root in self._plant(readings):
            if root.ends:
                empty = self.lens.network.empty_state(1)
                yield [Read(index, empty, None) for index in root.ends]
            ready += reversed(root.children)
        ready.reverse()
        while ready:
            batch = self._choose(ready)
            chosen = set(batch)
            ready = [segment for segment in ready if segment not in chosen]
            done: list[Read] = []
            for segment, (state, logits) in zip(batch, self._run(batch), strict=True):
                done += [Read(index, state, logits) for index in segment.ends]
                if segment.children:
                    segment.state, segment.held = state, state.nbytes
                    kept.add(segment)
                above = segment.parent
                if above is not None:
                    above.left -= 1
                    if not above.left:
                        above.state = None
                        kept.discard(above)
                ready += reversed(segment.children)
            self._shrink(ready, kept)
            if done:
                yield done

    def _plant(self, readings: Sequence[Reading]) -> list[_Segment]:
        """The roots of all trees."""
        groups: dict[Hashable, list[int]] = {}
        for index, reading in enumerate(readings):
            alone = reading.treatment is not None and not self.treating.causal(reading.treatment)
            groups.setdefault((reading.treatment, index if alone else None), []).append(index)
        roots: list[_Segment] = []
        for members in groups.values():
            planted: list[_Segment] = []
            for segment in grow([symbols(readings[i]) for i in members]):
                parent = None if segment.parent is None else planted[segment.parent]
                ends = [members[i] for i in segment.ends]
                planted.append(_Segment(readings[members[segment.source]], segment.stop, parent, ends))
                self.tally.distinct += segment.size
                if parent is not None:
                    parent.children.append(planted[-1])
                    parent.left += 1
            roots.append(planted[0])
        return roots

    def _choose(self, ready: Sequence[_Segment]) -> list[_Segment]:
        """The segment that is next, and others that can be read with it."""
        first = ready[-1]
        size, kind, whole = first.new(), self._kind(first), not self._causal(first)
        sizes = [(segment, segment.new()) for segment in ready[:-1] if self._kind(segment) == kind]
        sizes.sort(key=lambda pair: abs(pair[1] - size))
        chosen, real, longest, reach = [first], size, size, first.stop
        for segment, new in sizes:
            longest, reach = max(longest, new), max(reach, segment.stop)
            real += new
            fits = longest * (len(chosen) + 1) <= FIT * real and (new == size or not whole)
            if not fits or len(chosen) >= self.budget.reading_rows(reach, longest):
                break
            chosen.append(segment)
        return chosen

    def _kind(self, segment: _Segment) -> Hashable:
        treatment = segment.reading.treatment
        return None if treatment is None else (self.treating.together(treatment), self._causal(segment))

    def _causal(self, segment: _Segment) -> bool:
        treatment = segment.reading.treatment
        return treatment is None or self.treating.causal(treatment)

    def _run(self, batch: Sequence[_Segment]) -> list[Reached]:
        """The state at the end of each segment, and the logits of its last token."""
        bases = [segment.base() for segment in batch]
        starts = [0 if base is None else base.stop for base in bases]
        rows = [segment.reading for segment in batch]
        edits = self.treating.edits([row.treatment for row in rows], [row.spans for row in rows], "prefill")
        stops = [segment.stop for segment in batch]
        block = max(stop - start for start, stop in zip(starts, stops, strict=True))
        if self._causal(batch[0]):
            block = min(block, self.budget.block(len(batch), max(stops), bool(edits)))
        stretch = Stretch(tuple(row.tokens for row in rows), tuple(starts), tuple(stops), block, edits)
        reached = self._through(stretch, [None if base is None else base.state for base in bases])
        for parts in stretch.pieces():
            self.tally.passes += 1
            self.tally.padding += len(parts) * max(map(len, parts)) - sum(map(len, parts))
        self.tally.prefilled += stretch.new
        return reached

    def _through(self, stretch: Stretch, before: Sequence[HybridState | None]) -> list[Reached]:
        """Read some stretches of tokens at once.

        Args:
            stretch: the tokens.
            before: the state at the start of each; None for nothing read.
        """
        lens, state = self.lens, None
        if any(stretch.starts):
            empty = lens.network.empty_state(1)
            state = HybridState.cat([empty if one is None else one for one in before])
        logits: Tensor | None = None
        with torch.no_grad(), lens.editing(stretch.edits, "prefill") as forward:
            for parts in stretch.pieces():
                tokens, lengths = self._padded(parts)
                out = forward(tokens, lengths, state, True)
                state, now = out.state, out.logits[:, 0]
                if logits is None or lengths is None:
                    logits = now
                else:  # a row that had no more tokens keeps what its last one gave
                    logits = torch.where((lengths > 0).to(now.device)[:, None], now, logits)
        assert state is not None
        assert logits is not None
        return [Reached(one, logits[row : row + 1]) for row, one in enumerate(state.split(lens.cfg.window))]

    def _padded(self, parts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor | None]:
        """The next tokens of each row, padded on the right, and how many they are (None: all alike)."""
        longest = max(map(len, parts))
        tokens = torch.tensor([[*part, *[self.lens.pad_token] * (longest - len(part))] for part in parts])
        counts = torch.tensor([len(part) for part in parts])
        return tokens, None if bool((counts == longest).all()) else counts

    def _shrink(self, ready: Sequence[_Segment], kept: set[_Segment]) -> None:
        """Drop the snapshots that are needed last, until the rest fits the budget."""
        total = sum(segment.held for segment in kept)
        if total <= self.budget.waiting:
            return
        soon: dict[_Segment, int] = {}
        for turn, segment in enumerate(reversed(ready)):
            base = segment.base()
            if base is not None:
                soon.setdefault(base, turn)
        for segment in sorted(kept, key=lambda segment: soon.get(segment, len(ready)), reverse=True):
            if total <= self.budget.waiting:
                return
            total -= segment.held
            segment.state = None
            kept.discard(segment)
            self.tally.dropped += 1
