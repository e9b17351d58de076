"""Composition of every earlier writer with every later head, from weights.

Score of Elhage et al. 2021 ("A Mathematical Framework for Transformer Circuits"): ‖W_w W_r‖ / (‖W_w‖ ‖W_r‖) with
Frobenius norms, 0 … 1. Writers are a head's W_V W_O and a recurrent layer's linear path at each lag of its convolution
(see `paths`); where both stand side by side in a layer, neither reads the other. Readers are a head's W_Q W_Kᵀ ("q":
the writer feeds the queries), W_K W_Qᵀ ("k": the keys) and W_V W_O ("v": the values). Norm weights are folded in, those
of queries and keys too, biases left out, and a norm's scale, one positive number a token, is left out too; an output
gate is at rest. Beside each score stands what random matrices of the same shapes and spectra
would have (`chance`).

Rotary embedding R is left out of "q" and "k", whose reader at a distance is W_Q R W_Kᵀ. The scores are exact without
rotary and at distance 0; elsewhere as far as R leaves the Gram of the other side alone, R W_KᵀW_K Rᵀ for "q" and
Rᵀ W_QᵀW_Q R for "k", as it does where that side treats the two dimensions of each pair alike. "v" is exact.

How it is computed: no pair's product is formed. The writers' Grams (see `grams`) are made and kept, as many as fit in
memory; then each later layer's readers pass by, their Grams made a band at a time, and all pairs of a band are one
batched matrix product. So the cost is one d × d product a writer, half of one of width d_head a reader and group, and
d² a pair. Layers are read one at a time, attention layers again for each group.

How it fails: see `grams` for rounding; a layer that has no linear path given is no writer. Scores say that a reader
could see a writer's output, not that it does: what other layers put into the same directions is left out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.circuits.chance import expected_score
from analyses.circuits.grams import BAND, Grams, Packing, dtype_for, head_writers, path_writer, readers
from analyses.circuits.paths import LinearPath
from hybridlens.config import LensConfig
from hybridlens.display import Grid, Piece, Table, count, many
from hybridlens.effort import pieces
from hybridlens.errors import InputError, UnknownNameError
from hybridlens.viz.plotted import Plotted
from hybridlens.weights import Weights

if TYPE_CHECKING:
    import pandas

KINDS = ("q", "k", "v")


class _Scores(NamedTuple):
    """Scores, and what chance would give; NaN where the writer is not earlier, 0 where writer or reader is zero.

    Kinds are in the order asked for, attention layers in the model's, recurrent layers in that of the paths given.
    """

    heads: Float[Tensor, "kind attn_layer head writer_layer writer_head"]
    """Reader by kind, layer and head; writer by attention layer and head."""
    recurrent: Float[Tensor, "kind attn_layer head ssm_layer lag"]
    """Writer by recurrent layer and tokens back."""
    heads_expected: Float[Tensor, "kind attn_layer head writer_layer writer_head"]
    recurrent_expected: Float[Tensor, "kind attn_layer head ssm_layer lag"]

    @property
    def excess_heads(self) -> Float[Tensor, "kind attn_layer head writer_layer writer_head"]:
        """Scores less what chance gives."""
        return self.heads - self.heads_expected

    @property
    def excess_recurrent(self) -> Float[Tensor, "kind attn_layer head ssm_layer lag"]:
        """The same of recurrent layers."""
        return self.recurrent - self.recurrent_expected


class Composition(Plotted, _Scores):
    """`_Scores` that show themselves: writer by writer as a table, the strongest of each reader as a picture."""

    __slots__ = ()

    def summary(self) -> str:
        """How many pairs there are."""
        pairs = sum(int((~part.isnan()).sum()) for part in (self.heads, self.recurrent))
        above = sum(int((part > 0).sum()) for part in (self.excess_heads, self.excess_recurrent))
        return f"{many(pairs, 'pair')} of a writer and a later head, {count(above)} above chance"

    def table(self) -> Table:
        """A row for each pair of a head that writes and one that reads."""
        axes = ("kind", "attn_layer", "head", "writer_layer", "writer_head")
        values = {"score": self.heads, "by_chance": self.heads_expected}
        kinds = KINDS if self.heads.shape[0] == len(KINDS) else None
        return Table.of(values, dict.fromkeys(axes) | {"kind": kinds}, _MEANINGS)

    def to_pandas(self) -> pandas.DataFrame:
        """Every pair, those whose writer is a recurrent layer at a lag below the others; see `_Scores`."""
        import pandas as pd

        axes = ("kind", "attn_layer", "head", "ssm_layer", "lag")
        values = {"score": self.recurrent, "by_chance": self.recurrent_expected}
        kinds = KINDS if self.recurrent.shape[0] == len(KINDS) else None
        frames = [self.table(), Table.of(values, dict.fromkeys(axes) | {"kind": kinds})]
        made = pd.concat([frame.to_pandas() for frame in frames], keys=["head", "recurrent"], names=["writer", None])
        made = made.reset_index(level=0).reset_index(drop=True)
        places = ["writer_layer", "writer_head", "ssm_layer", "lag"]  # each kind of writer has two of them
        made[places] = made[places].astype("Int64")
        made.attrs["meanings"] = dict(_MEANINGS)
        return made

    def view(self) -> tuple[Piece, ...]:
        """The strongest writer of each reader, beyond chance."""
        best = torch.stack([
            part.nan_to_num(-torch.inf).flatten(3).amax(-1) if part.numel() else torch.full(part.shape[:3], -torch.inf)
            for part in (self.excess_recurrent, self.excess_heads)
        ]).amax(0)  # fmt: skip
        shown = best.masked_fill(best.isinf(), torch.nan).flatten(1).T
        readers = [f"{layer}, H{head}" for layer in range(best.shape[1]) for head in range(best.shape[2])]
        kinds = list(KINDS) if best.shape[0] == len(KINDS) else [str(i) for i in range(best.shape[0])]
        name = "composition of the strongest earlier writer, beyond chance"
        return (Grid(shown, readers, kinds, "readers: attention layer (by its place) and head", "kinds", name),)


_MEANINGS = {
    "kind": "what the writer feeds: queries, keys or values",
    "attn_layer": "of the reader, by its place among attention layers",
    "writer_layer": "by its place among attention layers",
    "ssm_layer": "the recurrent layer that writes, by its place among the paths",
    "lag": "tokens back",
    "score": "‖W_w W_r‖ ÷ (‖W_w‖ ‖W_r‖), 0 to 1; NaN where the writer is not earlier",
    "by_chance": "what random matrices of the same shapes and spectra would have",
}


def compositions(
    weights: Weights, paths: Sequence[LinearPath], kinds: Sequence[str] = KINDS, memory: int = 2 * 10**9
) -> Composition:
    """Composition of every head with every earlier head and recurrent layer.

    Args:
        paths: linear paths of recurrent layers, each layer once: `paths_at_rest` or `measured_paths`.
        kinds: of `KINDS`.
        memory: bytes for writers' Grams and a band of readers', beside the weights of the layer at hand. With less,
            readers pass by more often; one writer is always held.

    Returns:
        float32, on the CPU.

    Raises:
        InputError: no attention layer, no kind, a path of another model or a layer given twice.
        UnknownNameError: there is no such kind.
    """
    _check(weights.cfg, paths, kinds)
    with torch.no_grad():
        return _Compositions(weights, paths, kinds, memory).run()


class _Compositions:
    """The pass over all layers; writers' Grams of the group at hand stand one a row in `held`, band by band."""

    def __init__(self, weights: Weights, paths: Sequence[LinearPath], kinds: Sequence[str], memory: int) -> None:
        cfg = weights.cfg
        self.weights, self.paths, self.kinds = weights, paths, kinds
        self.dtype = dtype_for(cfg.d_model)
        layers, heads = len(cfg.attention_layers), cfg.n_heads
        passing, size = len(kinds) * heads, self.dtype.itemsize
        fits = memory // (8 * size * passing * cfg.d_model)
        self.packing = Packing(cfg.d_model, max(1, min(BAND, fits, cfg.d_model)))
        sizes = [self.packing.entries(*band) for band in self.packing.bands]
        written = layers * heads + len(paths) * cfg.d_conv
        fit = (memory - passing * sizes[0] * size) // (sum(sizes) * size)
        self.capacity = max(1, min(written, fit))
        self.held = [torch.empty(self.capacity, entries, dtype=self.dtype, device=cfg.device) for entries in sizes]
        self.scratch = torch.empty(passing * sizes[0], dtype=self.dtype, device=cfg.device)
        self.layers: list[int] = []
        self.columns: list[int] = []
        self.scores = torch.full((len(kinds), layers, heads, written), torch.nan, dtype=torch.float64)
        self.writer_squared = torch.zeros(written, dtype=torch.float64)
        self.reader_squared = torch.zeros(len(kinds), layers, heads, dtype=torch.float64)
        self._moved = pieces(1)

    def run(self) -> Composition:
        """All scores."""
        written = len(self.writer_squared)
        reading = -(-written // self.capacity) * len(self.weights.cfg.attention_layers) * len(self.packing.bands)
        self._moved = pieces(written + reading)
        for layer, column, grams in self._writers():
            if len(self.layers) == self.capacity:
                self._read()
            self._hold(layer, column, grams)
        self._read()
        expected = expected_score(self.writer_squared, self.reader_squared[..., None], self.weights.cfg.d_model)
        return Composition(*self._split(self.scores), *self._split(expected.where(~self.scores.isnan(), torch.nan)))

    def _writers(self) -> Iterator[tuple[int, int, Grams]]:
        """(layer, column of the scores, its Gram) of all that some reader follows, layer by layer."""
        cfg = self.weights.cfg
        attention = {layer: i for i, layer in enumerate(cfg.attention_layers)}
        recurrent = {path.layer: i for i, path in enumerate(self.paths)}
        for layer in range(max(attention)):
            if layer in attention:
                heads = head_writers(self.weights.attention(layer), self.dtype)
                for head in range(cfg.n_heads):
                    one = slice(head, head + 1)
                    yield layer, attention[layer] * cfg.n_heads + head, Grams(heads.left[one], heads.right[one])
            if layer in recurrent:
                i, maps = recurrent[layer], self.weights.recurrent(layer)
                first = len(attention) * cfg.n_heads + i * cfg.d_conv
                for lag in range(cfg.d_conv):
                    yield layer, first + lag, path_writer(maps, self.paths[i], lag, self.dtype)

    def _hold(self, layer: int, column: int, grams: Grams) -> None:
        """Put a writer into the group."""
        for band, held in zip(self.packing.bands, self.held, strict=True):
            row = held[len(self.layers)][None]
            self.packing.fill(grams, band, row)
            self.writer_squared[column] += self.packing.squared(band, row).item()
            self.packing.double(band, row)
        self.layers.append(layer)
        self.columns.append(column)
        self._moved()

    def _read(self) -> None:
        """Let the readers of later layers pass by the group, and empty it."""
        cfg = self.weights.cfg
        for i, layer in enumerate(cfg.attention_layers):
            earlier = bisect_left(self.layers, layer)
            if not earlier:
                continue
            attention = self.weights.attention(layer)
            by_kind = [readers(attention, kind, self.dtype) for kind in self.kinds]
            new = not bool(self.reader_squared[:, i].any())
            total = torch.zeros(earlier, len(self.kinds) * cfg.n_heads, dtype=torch.float64, device=cfg.device)
            for band, held in zip(self.packing.bands, self.held, strict=True):
                entries = self.packing.entries(*band)
                passing = self.scratch[: total.shape[1] * entries].view(-1, entries)
                for grams, rows in zip(by_kind, passing.split(cfg.n_heads), strict=True):
                    self.packing.fill(grams, band, rows)
                total += self.packing.products(band, held[:earlier], passing)
                if new:
                    self.reader_squared[:, i] += self.packing.squared(band, passing).view(-1, cfg.n_heads).cpu()
                self._moved()
            scores = total.clamp(min=0).sqrt().T.reshape(len(self.kinds), cfg.n_heads, earlier)
            self.scores[:, i, :, self.columns[:earlier]] = scores.cpu()
        self.layers, self.columns = [], []

    def _split(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """[… writer] as heads [… layer head] and recurrent [… layer lag], float32."""
        cfg = self.weights.cfg
        layers = len(cfg.attention_layers)
        heads, recurrent = columns.float().split([layers * cfg.n_heads, len(self.paths) * cfg.d_conv], dim=-1)
        return heads.unflatten(-1, (layers, cfg.n_heads)), recurrent.unflatten(-1, (len(self.paths), cfg.d_conv))


def _check(cfg: LensConfig, paths: Sequence[LinearPath], kinds: Sequence[str]) -> None:
    """Refuse what cannot be computed; see `compositions`."""
    cfg.need_stream_heads("composition with heads")
    for kind in kinds:
        if kind not in KINDS:
            raise UnknownNameError(f"kind {kind!r} of composition does not exist; expected some of {', '.join(KINDS)}")
    if not kinds or len(set(kinds)) < len(kinds):
        raise InputError(f"kinds {list(kinds)} given, expected at least one of {', '.join(KINDS)}, each once")
    given = [path.layer for path in paths]
    if len(set(given)) < len(given) or not set(given) <= set(cfg.ssm_layers):
        known = ", ".join(map(str, cfg.ssm_layers)) or "none"
        raise InputError(f"linear paths of layers {given} given, expected recurrent layers ({known}), each once")
    for path in paths:
        sizes = cfg.recurrence(path.layer)
        if tuple(path.channels.shape) != (sizes.d_channels, sizes.d_conv):
            raise InputError(
                f"layer {path.layer}'s linear path has shape {list(path.channels.shape)}, expected "
                f"{[sizes.d_channels, sizes.d_conv]}; take the paths of this model"
            )
