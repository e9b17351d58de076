"""How parts write to the residual stream and read it, as they say it of themselves.

The stream is a sum: the embedding, and what every part of every layer adds. A part that writes by heads says where its
heads' values stand (`HeadWrites`): what each adds is the output projection's map of its own, and they add up to the
part's write less its bias. Attention also says what its heads read through which map (`HeadReads`). Everything that
follows single terms of the stream (direct attribution, paths, edges, circuits) goes over these descriptions, and over
nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

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

    def by_head(self, value: Tensor) -> Float[Tensor, "batch pos head width"]:
        """A value of the point, head by head."""
        return value if value.ndim == 4 else value.unflatten(-1, (self.n, -1))

    def written(self, value: Tensor) -> Float[Tensor, "batch pos head d_model"]:
        """What each head adds to the stream, given a value of the point; linear in it, the bias left out."""
        return self.project.by_head(self.by_head(value))


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
