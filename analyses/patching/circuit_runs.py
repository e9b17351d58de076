"""Running circuits: every edge outside of one carries what it carries in the corrupt run.

A circuit is run over the clean prompt. What a part reads is the corrupt run's residual stream plus, for each of its
edges in the circuit, what that edge's writer writes now, less what it wrote in the corrupt run; the norm before the
part is computed again on that sum, and the part itself, its cache and state included, on what the norm gives. So all
edges outside are patched at once and exactly, in one forward pass (Hanna, Pezzelle & Belinkov 2024, arXiv
2403.17806): with all edges the run is the clean one, with none the corrupt one. A part none of whose edges is in the
circuit does what it did in the corrupt run.

Circuits go through the model as rows of a batch, from the first position at which the prompts differ. Heads of one
layer that hear the same writers share one stream, and their maps are applied to it once. What writers wrote is held for
those that any of the circuits has an edge from: ``rows × writers × positions × d_model`` numbers.

How it fails: differences are held in float32 and a stream is rounded to the model's precision once, so the identities
hold to rounding, not to the bit. A circuit of many heads, each of which hears other writers, takes a stream for each:
up to as many maps of all heads as there are heads. What a metric reads on from the prompt's memory it reads with no
edge taken away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, cast

import torch
from annotated_types import Ge
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.patching.alignment import Sides
from analyses.patching.circuit import Circuit, ends_of
from analyses.patching.metrics import MetricLike
from analyses.patching.path_inputs import reading, site_name
from analyses.patching.results import Axis, PatchResult
from analyses.patching.running import BATCH, MEMORY
from analyses.patching.schedule import BYTES, SHARE
from analyses.patching.slopes import wide
from analyses.patching.snapshot import Snapshot, captured
from analyses.patching.targets import EMBEDDING
from analyses.patching.writers import PART_OF, head_writes, read_point, terms_of, written_points
from hybridlens.boundary import Positive, public
from hybridlens.errors import InputError
from hybridlens.hooks import HookFunction, HookPoint, NameFilter, reads_only
from hybridlens.model import HybridLens
from hybridlens.tokens import TokensLike


@public
def run_circuits(
    lens: HybridLens,
    clean: TokensLike,
    corrupt: TokensLike,
    metric: MetricLike,
    circuits: Sequence[Circuit],
    *,
    batch_size: Positive = BATCH,
    memory: Annotated[int, Ge(1)] = MEMORY,
    skip_positions: bool = True,
    progress: Callable[[int], None] | None = None,
) -> PatchResult:
    """Run circuits over the clean prompt, all edges outside of each carrying the corrupt run's values.

    Prompts and metric are as in `running.activation_patch`; hooks that are on the model act, and should be none.

    Args:
        circuits: of this model.
        batch_size: circuits in one forward pass, at most.
        memory: bytes; a batch has fewer rows where what their writers wrote would take more than 1 ÷ `SHARE` of them.
        skip_positions: begin behind what both prompts have in common, which is faster and rounds differently in the
            last bits.
        progress: called with the number of circuits done after each forward pass.

    Returns:
        a result with one axis, circuit; `normalised` is each circuit's faithfulness,
        (m(circuit) - m(corrupt)) ÷ (m(clean) - m(corrupt)): 1 for all of the model, 0 for nothing of it.

    Raises:
        InputError: no circuits, circuits of another model, or what `activation_patch` refuses.
    """
    ours = (*ends_of(lens), lens.network.signature)
    for circuit in circuits:
        if (circuit.writers, circuit.readers, circuit.model) != ours:
            raise InputError(f"the circuit of {circuit.source} is of another model; give circuits of this one")
    if not circuits:
        raise InputError("no circuits were given, expected at least one")
    sides = Sides.of(lens, clean, corrupt, metric, "noise")
    length, last = sides.clean.shape[1], sides.metric.last_only
    cut = sides.same if skip_positions else 0
    untouched = Snapshot(lens, sides.base, (), [cut], last)
    kept = torch.stack([circuit.kept for circuit in circuits])
    corrupted = _Corrupted(sides, circuits[0], cut)
    ends = sides.ends(sides.value(untouched.output, sides.base), sides.value(corrupted.output, sides.source))
    used = max(1, int(kept.any(dim=2).any(dim=0).sum()))
    streams = max(1, memory // SHARE // (BYTES * lens.cfg.d_model * (length - cut)))
    size = min(batch_size, max(1, streams // used))
    values: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, len(circuits), size):
            rows = kept[start : start + size]
            with lens.hooks(_Flow(corrupted, rows, streams).hooks()):
                output = untouched.go_on(len(rows), EMBEDDING, cut)
            values.append(sides.measured(output, [f"circuit {start + row}" for row in range(len(rows))]))
            if progress is not None:
                progress(len(rows))
    labels = tuple(f"{number}: {circuit.source}" for number, circuit in enumerate(circuits))
    points = tuple(dict.fromkeys(read_point(lens, reader) for reader in circuits[0].readers))
    said = sides.said(ends, untouched.forwards + 1)
    return PatchResult(raw=torch.cat(values), axes=(Axis("circuit", labels),), hooks=points, **said)


class _Corrupted:
    """What circuits take from the corrupt run, from position `cut` on.

    Attributes:
        sites: the hook points of the residual stream before readers, and which readers.
        ends: the last hook point of what writers write, and which writers.
        streams: what the residual stream held, by site [1 p d].
        reads: what heads read, by hook point [1 p n width].
        terms: what writers' writes are linear in, by the last of their points.
        output: what the run gave.
    """

    def __init__(self, sides: Sides, circuit: Circuit, cut: int) -> None:
        self.lens = lens = sides.lens
        self.writers, self.readers = circuit.writers, circuit.readers
        self.sites: dict[str, list[int]] = {}
        for r, reader in enumerate(self.readers):
            self.sites.setdefault(site_name(lens, reader.order(lens.cfg.n_layers)), []).append(r)
        heads = dict.fromkeys(read_point(lens, reader) for reader in self.readers if reader.head is not None)
        self.ends: dict[str, list[int]] = {}
        for w, writer in enumerate(self.writers):
            self.ends.setdefault(written_points(lens, writer)[-1], []).append(w)
        written = {name for writer in self.writers for name in written_points(lens, writer)}
        names = list(dict.fromkeys([*self.sites, *heads, *written]))
        held, self.output = captured(lens, sides.source, names, sides.metric.last_only, lambda x: x[:, cut:].clone())
        self.streams = {name: held[name] for name in self.sites}
        self.reads = {name: held[name] for name in heads}
        self.terms = {name: self.terms_of(writers[0], held) for name, writers in self.ends.items()}

    def terms_of(self, writer: int, seen: Mapping[str, Tensor]) -> Tensor:
        """See `writers.terms_of`, in float32."""
        points = written_points(self.lens, self.writers[writer])
        return terms_of(self.lens, self.writers[writer], {name: wide(seen[name]) for name in points})

    def changes(self, name: str, seen: Mapping[str, Tensor]) -> dict[int, Float[Tensor, "row place d_model"]]:
        """What the writers of a point write now, less what they wrote in the corrupt run."""
        writers = self.ends[name]
        first = self.writers[writers[0]]
        change = self.terms_of(writers[0], seen) - self.terms[name]
        if first.layer is None or first.index is None:
            return {writers[0]: change}
        heads = head_writes(self.lens, first.layer, PART_OF[first.kind])
        assert heads is not None
        made = heads.written(change.to(self.lens.dtype)).to(change.dtype)
        return {w: made[:, :, cast(int, self.writers[w].index)] for w in writers}


class _Flow:
    """One batch of circuits on its way through the model.

    Args:
        corrupted: what the corrupt run held.
        kept: the circuits' edges.
        most: streams that are read at once.
    """

    def __init__(self, corrupted: _Corrupted, kept: Bool[Tensor, "row writer reader"], most: int) -> None:
        self.corrupted, self.kept, self.most = corrupted, kept, most
        self.used = kept.any(dim=2).any(dim=0).tolist()
        self.deltas: dict[int, Float[Tensor, "row place d_model"]] = {}
        self.seen: dict[str, Tensor] = {}
        self.given: dict[str, Tensor] = {}

    def hooks(self) -> list[tuple[NameFilter, HookFunction]]:
        """What keeps writes as they are made, and gives each part its own input; writes of a point come first."""
        corrupted = self.corrupted
        points = dict.fromkeys(name for writer in corrupted.writers for name in written_points(corrupted.lens, writer))
        return [
            *((name, self._keep) for name in points),
            *((name, self._enter) for name in corrupted.sites),
            *((name, self._give) for name in corrupted.reads),
        ]

    @reads_only
    def _keep(self, tensor: Tensor, hook: HookPoint) -> None:
        name = cast(str, hook.name)
        self.seen[name] = tensor
        writers = self.corrupted.ends.get(name)
        if writers is None:
            return
        if any(self.used[w] for w in writers):
            made = self.corrupted.changes(name, self.seen)
            self.deltas.update({w: change for w, change in made.items() if self.used[w]})
        for point in written_points(self.corrupted.lens, self.corrupted.writers[writers[0]]):
            del self.seen[point]

    @reads_only
    def _enter(self, tensor: Tensor, hook: HookPoint) -> Tensor:
        """Give a whole part the stream that it reads; what heads read is made ready."""
        name, readers = cast(str, hook.name), self.corrupted.readers
        base, at_site = self.corrupted.streams[name], self.corrupted.sites[name]
        heads = [r for r in at_site if readers[r].head is not None]
        if heads:
            self._read(base, heads)
        whole = [r for r in at_site if readers[r].head is None]
        if not whole:
            return tensor
        return self._streams(base, torch.arange(len(self.kept)), self.kept[:, :, whole[0]])

    @reads_only
    def _give(self, tensor: Tensor, hook: HookPoint) -> Tensor:
        return self.given.pop(cast(str, hook.name)).to(tensor.dtype)

    def _streams(
        self,
        base: Float[Tensor, "one place d_model"],
        rows: Int[Tensor, "stream"],
        writers: Bool[Tensor, "stream writer"],
    ) -> Float[Tensor, "stream place d_model"]:
        """The corrupt stream with what some writers changed in some rows of the batch."""
        out = base.float().repeat(len(rows), 1, 1)
        for w, delta in self.deltas.items():
            into = writers[:, w].nonzero()[:, 0]
            if len(into):
                change = delta.to(out.device)[rows[into].to(out.device)]
                out.index_add_(0, into.to(out.device), change.to(out.dtype))
        return out.to(base.dtype)

    def _read(self, base: Float[Tensor, "one place d_model"], heads: Sequence[int]) -> None:
        """Make ready what heads read, for all of a layer: one stream for all that hear the same writers in a row."""
        lens, readers = self.corrupted.lens, self.corrupted.readers
        wanted: dict[tuple[int, bytes], list[int]] = {}
        for r in heads:
            name = read_point(lens, readers[r])
            if name not in self.given:
                self.given[name] = self.corrupted.reads[name].repeat(len(self.kept), 1, 1, 1)
            for row, writers in enumerate(self.kept[:, :, r]):
                if bool(writers.any()):
                    wanted.setdefault((row, writers.numpy().tobytes()), []).append(r)
        streams = [(row, hearing) for (row, _), hearing in wanted.items()]
        for start in range(0, len(streams), self.most):
            part = streams[start : start + self.most]
            rows = torch.tensor([row for row, _ in part])
            altered = self._streams(base, rows, self.kept[rows, :, [hearing[0] for _, hearing in part]])
            for reader in {readers[r].kind: readers[r] for _, hearing in part for r in hearing}.values():
                value, given = reading(lens, reader, altered), self.given[read_point(lens, reader)]
                places = [
                    (number, row, readers[r].head)
                    for number, (row, hearing) in enumerate(part)
                    for r in hearing
                    if readers[r].kind == reader.kind
                ]
                numbers, into, which = torch.tensor(places, device=value.device).unbind(dim=1)
                given[into, :, which] = value[numbers, :, which]
