"""Several prompts in one trace: each ``with tracer.invoke(prompt):`` sees its own rows, as if it were alone.

The prompts of all invokes are rows of one batch, shorter ones padded on the right. An invoke is given its own rows,
without the padding that others' length brought, so that shapes and last positions are those of a trace of its own; a
pass in which none of its rows read anything (their texts ended before, or are one token long and wait for the first
decode step) is none of its steps. What it writes goes to its rows alone. Key slots of decode steps are the batch's:
those that a row does not use have no weight.

How it fails: a value that has no rows to tell apart, and one that does not fit the rows it is written to, raise
`HookFunctionError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from nnsight.intervention.batching import Batcher
from nnsight.util import apply
from torch import Tensor, nn

from hybridlens.errors import HookFunctionError
from hybridlens.generation import Generation, rows_read
from hybridlens.hook_functions import mismatch
from hybridlens.hooks import Edit, HookPoint
from hybridlens.interleaving import named
from hybridlens.network import Output
from hybridlens.padding import TokenBatch
from hybridlens.visits import HERE


@dataclass(frozen=True)
class Prompts:
    """What one invoke brings, or a whole trace.

    Args:
        batch: its rows.
        edits: of its rows alone.
    """

    batch: TokenBatch
    edits: Sequence[Edit] = ()

    @property
    def size(self) -> int:
        """How many rows."""
        return self.batch.tokens.shape[0]


def together(prompts: Sequence[Prompts], pad: int) -> Prompts:
    """All rows as one batch, and all edits, each for its own rows of it."""
    if len(prompts) == 1:
        return prompts[0]
    rows = [row for one in prompts for row in rows_read(one.batch)]
    counts, edits, first = [len(row) for row in rows], list[Edit](), 0
    for one in prompts:
        for edit in one.edits:
            own = list(range(one.size)) if edit.rows is None else [int(row) for row in cast(Sequence[int], edit.rows)]
            if not all(-one.size <= row < one.size for row in own):
                raise HookFunctionError(
                    f"edit of {edit.hook!r}: rows {own} given, but the invoke has rows 0..{one.size - 1}"
                )
            edits.append(replace(edit, rows=[first + row % one.size for row in own]))
        first += one.size
    device = prompts[0].batch.tokens.device
    filled = torch.tensor([row + [pad] * (max(counts) - len(row)) for row in rows], dtype=torch.long, device=device)
    lengths = torch.tensor(counts, device=device) if len(set(counts)) > 1 else None
    return Prompts(TokenBatch(filled, lengths), edits)


class RowBatcher(Batcher):
    """Gives each invoke its rows of a value, and puts back what it made of them."""

    def __init__(self, envoy: Any, kwargs: dict[str, Any] | None = None) -> None:
        super().__init__(envoy, kwargs)
        self._read: tuple[Tensor | None, dict[int, int]] = (None, {})
        self._lengths: dict[int, int] = {}

    def add(self, *inputs: Any, **kwargs: Any) -> Any:
        """Take an invoke's rows in; which they are of the batch."""
        group: Any = super().add(*inputs, **kwargs)
        if group is not None:
            self._lengths[group[0]] = max(len(row) for row in rows_read(inputs[0].batch))
        return group

    def narrow(self, value: Any, group: Any) -> Any:
        """What an invoke is given of a value; all of it where there is one invoke only, or for an empty one."""
        if not self.batching or group is None:
            return value
        rows = list(range(group[0], group[0] + group[1]))
        if isinstance(value, Output):
            state = value.state.select(rows)
            return Output(value.logits[rows, : int(state.lengths.max())], state)
        if isinstance(value, Generation):
            lengths = value.lengths[rows]
            text, state = [value.text[row] for row in rows], value.state.select(rows)
            return value._replace(
                tokens=value.tokens[rows, : int(lengths.max())], lengths=lengths, text=text, state=state
            )
        return apply(value, lambda tensor: self.own(tensor, group), Tensor)

    def _widen_tensor(self, full: Tensor, group: list[int], edited: Tensor) -> Tensor:
        """A value with what an invoke made of its rows in their place."""
        whole = full.clone()
        place = self.own(whole, group)
        problem = mismatch(place, edited, "the block of an invoke")
        if problem is not None:
            raise HookFunctionError(f"'{named(self._interleaver.location)}': {problem}")
        place.copy_(edited)
        return whole

    def idle(self, group: Any) -> bool:
        """Whether none of an invoke's rows reads anything in the pass that runs now."""
        return self.batching and group is not None and self.longest(group) == 0

    def own(self, tensor: Tensor, group: list[int]) -> Tensor:
        """A view of an invoke's part of a tensor: its rows, and no padding beyond its longest."""
        start, size = group
        positions = 0 if HERE.reading is None else HERE.reading.positions.shape[1]
        longest = min(self.longest(group), positions)
        axes, module = self._known()
        if tensor.ndim and tensor.shape[0] == self.total:
            view = tensor.narrow(0, start, size)
            if axes is None and (isinstance(module, (nn.Linear, nn.Embedding)) or module is None) and tensor.ndim == 3:
                axes = ("b", "p", "")
            for axis, letter in enumerate(axes or ()):
                if letter in ("p", "k") and view.shape[axis] == positions:
                    view = view.narrow(axis, 0, longest)
            return view
        if tensor.ndim and axes is None and tensor.shape[0] == self.total * positions:  # tokens in one row
            return tensor.narrow(0, start * positions, longest if size == 1 else size * positions)
        raise HookFunctionError(
            f"'{named(self._interleaver.location)}' holds a tensor of shape {list(tensor.shape)}, in which the rows of "
            f"one invoke cannot be told from the others' ({self.total} in all); trace that prompt by itself"
        )

    def longest(self, group: list[int]) -> int:
        """How many tokens the longest of an invoke's rows reads in the pass that runs now."""
        run = HERE.reading
        if run is None or run.lengths is None:
            return 1 if run is None else run.positions.shape[1]
        if run.lengths.is_meta:  # a scan, of one pass
            return self._lengths[group[0]]
        if self._read[0] is not run.lengths:
            self._read = (run.lengths, {})
        known = self._read[1]
        if group[0] not in known:
            known[group[0]] = int(run.lengths[group[0] : group[0] + group[1]].max())
        return known[group[0]]

    def _known(self) -> tuple[tuple[str, ...] | None, nn.Module | None]:
        """The axes of what is handed out now, where it is at a hook point, or the module that it is of."""
        place = named(self._interleaver.location).rpartition(".")[0]
        points: dict[str, HookPoint] = self.envoy.lens.hook_dict
        return (points[place].axes, None) if place in points else (None, self._interleaver.modules.get(place))

    @property
    def _interleaver(self) -> Any:
        return self.envoy.interleaver
