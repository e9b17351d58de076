"""What every run of a model takes and gives, in TransformerLens' words.

The words are typed once (`RunOptions`), for the calls of `hybridlens.running`, which check them at their door.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, TypedDict, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlens.caching import PosSlice
from hybridlens.display import Displayed
from hybridlens.padding import Side
from hybridlens.shapes import Lengths, Logits

Checked = TypeVar("Checked", bound=Callable[..., Any])

ReturnType: TypeAlias = Literal["logits", "loss", "both"] | None


class RunOptions(TypedDict, total=False):
    """What every run takes by keyword."""

    loss_per_token: bool
    """The loss of each next token, [batch, pos − 1], not their mean."""
    start_at_layer: int | None
    """What is given as tokens is the residual stream [batch, pos, d_model] that enters this layer."""
    stop_at_layer: int | None
    """Return the residual stream that enters this layer, and run no further; 0 is the embedding."""
    prepend_bos: bool | None
    """Begin texts with the BOS, or not; None for as the tokenizer does. Ids are taken as they are."""
    padding_side: Side | None
    """Of rows of different lengths, as they are given (with `lengths`) and given back."""
    lengths: Sequence[int] | Lengths | None
    """Real tokens of each row of a tensor that is padded, on the right if `padding_side` says nothing else."""
    last_only: bool
    """Logits of each row's last token only, [b 1 v], at `hook_logits` too; all of a long prompt's take gigabytes."""


class HookOptions(RunOptions, total=False):
    """What runs with hooks take besides."""

    reset_hooks_end: bool
    """Take the hooks of the call away at its end."""
    clear_contexts: bool
    """Empty every point's ``ctx`` then."""


class CacheOptions(HookOptions, total=False):
    """What runs with a cache take besides."""

    incl_bwd: bool
    """Gradients too."""
    device: torch.device | str | None
    """Where to keep what is cached; None where it was computed."""
    remove_batch_dim: bool
    """Drop the batch axis of a single prompt."""
    pos_slice: PosSlice
    """Keep only these query positions."""


class _Both(NamedTuple):
    """Fields of `LogitsAndLoss`."""

    logits: Logits
    loss: Float[Tensor, "*place"]
    """Nats: a number, or [batch, pos − 1] for each token."""


class LogitsAndLoss(Displayed, _Both):
    """What ``return_type="both"`` gives."""

    __slots__ = ()


def takes_input(fn: Checked) -> Checked:
    """A method whose `tokens` may be called ``input``, as they are in TransformerLens."""

    @functools.wraps(fn)
    def called(*args: Any, **kwargs: Any) -> Any:
        if "input" in kwargs and len(args) < 2 and "tokens" not in kwargs:
            kwargs["tokens"] = kwargs.pop("input")
        return fn(*args, **kwargs)

    return cast(Checked, called)
