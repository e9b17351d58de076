"""How parts write to the residual stream and read it, as they say it of themselves.

The stream is a sum: the embedding, and what every part of every layer adds. A part that writes by heads says where its
heads' values stand (`HeadWrites`): what each adds is the output projection's map of its own, and they add up to the
part's write less its bias. A norm behind the projection is gone through with its scale as it was in the run. Attention
also says what its heads read through which map (`HeadReads`), and a mixer with a state which part of it is whose head's
(`HeadStates`). Everything that follows single terms of the stream
(direct attribution, paths, edges, circuits) goes over these descriptions, and over nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlens.norms import HookedNorm
from hybridlens.projections import Projection


class HeadWrites(NamedTuple):
    """What the heads of a part write."""

    kind: str
    """"head" of attention, "ssm_head" of a recurrence."""
    n: int
    """How many there are."""
    point: str
    """The hook point, in its layer, that holds what the output projection reads: [b p n width] or [b p (n width)]."""
    project: Projection
    after: HookedNorm | None = None
    """The norm between projection and stream; None for none."""
    scale_point: str = ""
    """The hook point, in its layer, that holds that norm's scale."""

    @property
    def points(self) -> tuple[str, ...]:
        """The hook points, in their layer, that hold what `terms` takes, in the order in which they fire."""
        return (self.point,) if self.after is None else (self.point, self.scale_point)

    def terms(self, seen: Mapping[str, Tensor]) -> Float[Tensor, "batch pos head width"]:
        """What heads' writes are linear in, whatever the run: their values, over the scale of a norm after them.

        Args:
            seen: values of the `points`.
        """
        value = seen[self.point]
        value = value if value.ndim == 4 else value.unflatten(-1, (self.n, -1))
        return value if self.after is None else value / seen[self.scale_point][:, :, None].to(value.device)

    def written(self, terms: Float[Tensor, "batch pos head width"]) -> Float[Tensor, "batch pos head d_model"]:
        """What each head adds to the stream, given its terms; linear in them, the bias left out."""
        return self._behind(self.project.by_head(terms))

    def written_by(
        self, head: int, terms: Float[Tensor, "batch pos head width"], dtype: torch.dtype
    ) -> Float[Tensor, "batch pos d_model"]:
        """What one head adds to the stream, float32, computed in `dtype`."""
        alone = torch.zeros_like(terms)
        alone[:, :, head] = terms[:, :, head]
        out, bias = self.project(alone.flatten(-2).to(dtype)).float(), self.project.bias()
        return self._behind(out if bias is None else out - bias.float())

    def _behind(self, write: Tensor) -> Tensor:
        """What the norm after them makes of terms that are over its scale already."""
        return write if self.after is None else self.after.norm.weighted(write.float(), write.dtype)


class HeadReads(NamedTuple):
    """What attention's heads read in one of their roles."""

    n: int
    """Heads, shared ones once."""
    point: str
    """The hook point, in its layer, that holds it [b p n width]."""
    read: Callable[[Float[Tensor, "*batch d_model"]], Float[Tensor, "*batch head width"]]
    """What stands there, given the normalised stream."""
    slope: Callable[[Tensor], Tensor]
    """How it changes with the linear map before its activation, given its value: 1 where there is no activation."""


class HeadStates(NamedTuple):
    """A recurrent mixer's state by heads, and the points that silence a head's use of it.

    Both points hold a row of numbers for each head, [b p n width] or [b p (n width)]. Those of a head and token set to
    0 do what is said here, exactly, and nothing else; no trajectory of states has to be made for it.
    """

    n: int
    """How many heads: of a matrix state, RG-LRU's or Zamba's blocks of channels, 1 for another Mamba layer."""
    write: str
    """The hook point, in its layer, at which 0 has a token add nothing to its head's state: all that is left is decay.

    A delta rule then erases nothing either.
    """
    read: str
    """The hook point, in its layer, at which 0 has a token read nothing out of its head's state.

    What passes the state by (D x) is still there.
    """

    def by_head(self, state: Float[Tensor, "batch *state"]) -> Float[Tensor, "batch rec_head entry"]:
        """A layer's states, one row of numbers a head."""
        return state.reshape(state.shape[0], self.n, -1)


@runtime_checkable
class StatesByHead(Protocol):
    """A mixer that holds a state, by heads."""

    @property
    def head_states(self) -> HeadStates:
        """Which part of it is whose, and what silences a head."""
        ...


@runtime_checkable
class WritesByHead(Protocol):
    """A part whose heads write apart from each other."""

    @property
    def head_writes(self) -> HeadWrites:
        """What they write."""
        ...


@runtime_checkable
class ReadsByHead(Protocol):
    """A part whose heads read apart from each other."""

    @property
    def head_reads(self) -> dict[str, HeadReads]:
        """What they read, by role: "q", "k", "v", and "gate" where there is one."""
        ...


@runtime_checkable
class WritesBias(Protocol):
    """A part whose output projection may have a bias."""

    def out_bias(self) -> Float[Tensor, "d_model"] | None:
        """What it writes whatever it reads, multipliers included; None for nothing."""
        ...
