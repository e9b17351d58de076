"""What a state, and what a prefill or a generation gives, shows: bytes by layer and memory, and texts.

How it fails: no number of a tensor is read but lengths, so a state on the meta device has none to show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from hybridlens.display.markup import Plain, brief, listed, many, size
from hybridlens.display.several import table_of
from hybridlens.display.shown import Displayed, Piece
from hybridlens.display.tables import Table
from hybridlens.display.texts import Words

if TYPE_CHECKING:
    from hybridlens.continuing import Prefill
    from hybridlens.generation import Generation
    from hybridlens.state import HybridState

_TEXTS = 6
"""Answers that are shown."""
_AXES = {
    "k": ("batch", "kv head", "key slot", "width"),
    "v": ("batch", "kv head", "key slot", "width"),
    "kept": ("batch", "kv head", "key slot"),
    "conv": ("batch", "tap", "channel"),
}
"""Of the tensors of a memory; a recurrent state has the batch first and then axes of its own."""


class StateShown(Displayed):
    """Of `HybridState`."""

    def summary(self) -> str:
        """How much was read, and how large what is remembered of it is."""
        state = cast("HybridState", self)
        layers = [i for i, memories in enumerate(state.layers) if memories]
        return f"{_read(state.lengths)}; {size(state.nbytes)} in {many(len(layers), 'layer')}, on {_device(state)}"

    def table(self) -> Table:
        """A row for each tensor of each memory of each layer."""
        state = cast("HybridState", self)
        rows = [_row(name, tensor) for name, tensor in state.tensors().items() if name.startswith("layers.")]
        return Table(*_columns(rows), {"bytes": "of all rows of the batch"})

    def view(self) -> tuple[Piece, ...]:
        """A row for each memory of each layer: what it holds, of which shape, and its size."""
        state = cast("HybridState", self)
        rows: list[dict[str, Plain]] = []
        for layer, memories in enumerate(state.layers):
            for mixer, memory in memories.items():
                tensors = memory.tensors()
                held = sum(t.numel() * t.element_size() for t in tensors.values())
                holds = ", ".join(f"{name} {brief(tensor)}" for name, tensor in tensors.items())
                rows.append(
                    {"layer": layer, "memory": mixer, "kind": _KINDS[memory.kind], "holds": holds, "bytes": held}
                )
        slots = many(state.key_positions.shape[1], "key slot")
        window = "" if state.window is None else f"; a query sees at most {state.window} keys"
        note = (
            f"attn: keys k and values v [batch, kv head, key slot, width], in {slots} that layers share{window}; ssm: "
            "the convolution's last inputs conv [batch, tap, channel] and the state recurrent [batch, …]"
        )
        return (Table(*_columns(rows), heat=("bytes",), note=note, most=40),)


_KINDS = {"attention": "keys and values", "latent": "latents of keys and values", "ssm": "recurrent"}


class PrefillShown(Displayed):
    """Of `Prefill`."""

    __slots__ = ()

    def summary(self) -> str:
        """What was read, and the shape of the logits."""
        prefill = cast("Prefill", self)
        return f"logits {_shape(prefill.logits, ('batch', 'pos', 'vocab'))}; state: {prefill.state.summary()}"

    def table(self) -> Table:
        """That of its state."""
        return cast("Prefill", self).state.table()

    def view(self) -> tuple[Piece, ...]:
        """That of its state."""
        return cast("Prefill", self).state.view()


class GenerationShown(Displayed):
    """Of `Generation`."""

    __slots__ = ()

    def summary(self) -> str:
        """How many rows and tokens, and the first text."""
        made = cast("Generation", self)
        lengths = _numbers(made.lengths)
        first = f": {made.text[0]!r}" if made.text and made.text[0] else ""
        return f"{many(sum(lengths), 'new token')} in {many(len(lengths), 'row')}{first}"

    def table(self) -> Table:
        """A row for each prompt: how many tokens, their text and ids."""
        made = cast("Generation", self)
        ids = made.tokens.tolist()
        rows: list[dict[str, Plain]] = [
            {"row": i, "tokens": n, "text": made.text[i], "ids": " ".join(map(str, ids[i][:n]))}
            for i, n in enumerate(_numbers(made.lengths))
        ]
        return Table(*_columns(rows), {"tokens": "new ones, the one that ended the row included"})

    def view(self) -> tuple[Piece, ...]:
        """The texts, character by character; ids where there is no tokenizer."""
        made, rows = cast("Generation", self), self.table().rows
        shown = [
            Words(cast(str, row[2]) or cast(str, row[3]), f"row {row[0]}, {many(cast(int, row[1]), 'token')}", True)
            for row in rows[:_TEXTS]
        ]
        more = (
            f"{len(rows) - _TEXTS} more rows are left out here; to_pandas() has all of them. "
            if len(rows) > _TEXTS
            else ""
        )
        return (*shown, Words(f"{more}State after them: {made.state.summary()}"))


def _row(name: str, tensor: Any) -> dict[str, Plain]:
    _, layer, memory, held = name.split(".", 3)
    held_bytes = tensor.numel() * tensor.element_size()
    dtype = str(tensor.dtype).removeprefix("torch.")
    shape = " × ".join(map(str, tensor.shape))
    axes = ", ".join(_AXES.get(held, ("batch", "…")))
    return {"layer": int(layer), "memory": memory, "tensor": held, "axes": axes, "shape": shape, "dtype": dtype,
            "bytes": held_bytes}  # fmt: skip


def _columns(rows: list[dict[str, Plain]]) -> tuple[tuple[str, ...], Any]:
    table = table_of(rows)
    return table.columns, table.rows


def _read(lengths: Any) -> str:
    read = _numbers(lengths)
    if not read:
        return many(lengths.shape[0], "row")
    if len(set(read)) == 1:
        return f"{many(len(read), 'row')} of {many(read[0], 'token')}"
    return f"{many(len(read), 'row')} of {listed(read, 8)} tokens"


def _numbers(lengths: Any) -> list[int]:
    return [] if lengths.is_meta else lengths.tolist()


def _device(state: HybridState) -> str:
    return str(state.lengths.device)


def _shape(tensor: Any, axes: tuple[str, ...]) -> str:
    named = ", ".join(f"{name} {n}" for name, n in zip(axes, tensor.shape, strict=True))
    return f"{str(tensor.dtype).removeprefix('torch.')} [{named}]"
