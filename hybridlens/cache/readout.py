"""What the stream would say if the model stopped at each layer: the logit lens over a cache.

Every state of the stream goes through the last norm, its scale computed anew, the unembedding, the family's multiplier
and the soft cap: all that the model does with the last one, so that the last entry is the model's own logits
(nostalgebraist 2020, "interpreting GPT: the logit lens"). Logits are made a few rows at a time; what is not asked for
is dropped.

How it fails: tokens that are none of the vocabulary, and choices that exclude each other, raise `InputError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hybridlens.boundary_words import shown
from hybridlens.cache.directions import token_ids
from hybridlens.devices import execution_device
from hybridlens.display import Displayed, Grid, Piece, Table, many
from hybridlens.errors import InputError
from hybridlens.text import TokenFront

ReturnType: TypeAlias = Literal["logits", "log_probs", "probs"]
"""What is read out of each state of the stream."""

Translator: TypeAlias = Callable[[Tensor, int], Tensor]
"""(entry of the stack, its number) → what is unembedded in its place, as a tuned lens does."""


class Wanted(NamedTuple):
    """Which tokens are kept: at most one of these; none of them for all."""

    vocab: Tensor | None
    """Some tokens."""
    targets: Tensor | None
    """Some tokens with their ranks; [token], or, one a row, [entry *lead]."""
    by_row: bool
    """Whether `targets` are one a row."""
    top_k: int | None
    """So many of the largest logits."""


_WORDS: dict[ReturnType, str] = {"logits": "logit", "log_probs": "log probability", "probs": "probability"}

WIDEST = 24
"""Squares of a line that are shown."""


@dataclass(frozen=True, eq=False)
class LogitLens(Displayed):
    """What each state of the stream says of the next token.

    Attributes:
        values: logits, log probabilities or probabilities, of the tokens that were asked for.
        labels: the states, as ``0_pre``, ``3_mid``, ``final_post``.
        return_type: which of the three.
        entropy: of all tokens' probabilities, in nats.
        lead: what the axes between states and tokens are: "row", "position", both or none.
        top_ids: the tokens along the last axis, where the largest were asked for.
        vocab_ids: the same, where some were asked for.
        target_ids: the tokens asked for; one a row, or [token] for all rows.
        target_ranks: of each of these, how many tokens come before it: 0 is the likeliest (`ranks_of`).
        target_names: the texts that they were asked for by; None where ids were given.
    """

    values: Float[Tensor, "entry *lead selected"]
    labels: tuple[str, ...]
    return_type: ReturnType
    entropy: Float[Tensor, "entry *lead"]
    lead: tuple[str, ...] = ()
    top_ids: Int[Tensor, "entry *lead selected"] | None = None
    vocab_ids: Int[Tensor, "selected"] | None = None
    target_ids: Int[Tensor, "*shape"] | None = None
    target_ranks: Int[Tensor, "entry *lead selected"] | None = None
    target_names: tuple[str | None, ...] | None = None

    def summary(self) -> str:
        """How many states, rows, positions and tokens."""
        axes = [many(size, name) for size, name in zip(self.values.shape[1:-1], self.lead, strict=True)]
        return ", ".join([f"{_WORDS[self.return_type]}s of {many(len(self.labels), 'state')} of the stream", *axes])

    def table(self) -> Table:
        """A row for each state, row, position and token."""
        axes: dict[str, Any] = {"state": self.labels, **dict.fromkeys(self.lead)}
        values: dict[str, Tensor] = {_WORDS[self.return_type]: self.values}
        if self.target_ranks is not None:
            values["rank"] = self.target_ranks
        if self.top_ids is not None:
            return Table.of({"token": self.top_ids, **values}, {**axes, "place": None})
        if self._by_row and self.target_ids is not None:
            return Table.of({"token": self.target_ids, **{name: one[..., 0] for name, one in values.items()}}, axes)
        meanings = {"rank": "how many tokens come before it; 0 is the likeliest"}
        return Table.of(values, {**axes, "token": self._tokens}, meanings)

    def view(self) -> tuple[Piece, ...]:
        """Squares where there is one number a state for each token, row or position; else the table."""
        inside = self.values.shape[1:-1].numel()
        ranks, name = self.target_ranks, _WORDS[self.return_type]
        if inside == 1 and self.values.shape[-1] <= WIDEST and self.top_ids is None and not self._by_row:
            names = [str(token) for token in self._tokens]
            return (Grid(self.values.flatten(1), self.labels, names, "states of the stream", "tokens", name),)
        if ranks is not None and ranks.shape[-1] == 1 and len(self.lead) == 1 and inside <= WIDEST:
            places = [str(i) for i in range(inside)]
            what = "rank of the token, 0 for the likeliest"
            return (Grid(ranks[..., 0], self.labels, places, "states of the stream", f"{self.lead[0]}s", what),)
        return (self.table(),)

    @property
    def _by_row(self) -> bool:
        return self.target_ids is not None and self.target_ids.ndim == self.values.ndim - 1 and self.values.ndim > 2

    @property
    def _tokens(self) -> list[str | int]:
        """What stands along the last axis."""
        ids = self.vocab_ids if self.target_ids is None else self.target_ids
        numbers: list[int] = list(range(self.values.shape[-1])) if ids is None else ids.tolist()
        names = self.target_names or [None] * len(numbers)
        return [number if name is None else name for number, name in zip(numbers, names, strict=True)]

    def rank_trajectory(self, target: str | int | None = None) -> Int[Tensor, "entry *lead"]:
        """The rank of a target, state by state: 0 where it is the likeliest.

        Args:
            target: as it was asked for, a text or an id; None for the only one.

        Raises:
            InputError: no target was asked for, or not this one.
        """
        ranks, ids = self.target_ranks, self.target_ids
        if ranks is None or ids is None:
            raise InputError("ranks are known of targets alone; ask logit_lens for targets=")
        if target is None and ranks.shape[-1] == 1:
            return ranks[..., 0]
        names = self.target_names or ()
        known = [*(name for name in names if name is not None), *(ids.tolist() if ids.ndim == 1 else ())]
        if target is None or target not in known:
            which = ", ".join(map(shown, known)) if ids.ndim == 1 else "one for each row; leave it out"
            raise InputError(f"target {shown(target)} given, expected one of those asked for: {which}")
        return ranks[..., names.index(target) if isinstance(target, str) else ids.tolist().index(target)]


def logit_lens(
    lens: TokenFront,
    stack: Float[Tensor, "entry *lead d_model"],
    labels: Sequence[str],
    normed: bool,
    wanted: Wanted,
    return_type: ReturnType,
    rows: int,
    names: tuple[str | None, ...] | None,
    axes: tuple[str, ...],
) -> LogitLens:
    """The states of a stack, read out.

    Args:
        lens: the model.
        stack: states of the stream.
        labels: of its entries.
        normed: whether the last norm is applied first.
        wanted: which tokens are kept.
        return_type: what is read out.
        rows: how many states are unembedded at once.
        names: texts that targets were asked for by.
        axes: what the stack's axes between entries and width are.
    """
    lead = stack.shape[:-1]
    targets = wanted.targets
    if wanted.by_row and targets is not None:
        targets = targets.expand(lead).reshape(-1)
    parts = list[_Part]()
    for at, some in enumerate(stack.flatten(0, -2).split(rows)):
        own = targets[at * rows : (at + 1) * rows] if wanted.by_row and targets is not None else targets
        parts.append(_read(stream_logits(lens, some, normed), wanted._replace(targets=own), return_type))

    def whole(name: str) -> Tensor | None:
        found = [getattr(part, name) for part in parts]
        return None if found[0] is None else torch.cat(found).unflatten(0, lead).to(stack.device)

    return LogitLens(
        values=cast(Tensor, whole("values")),
        labels=tuple(labels),
        return_type=return_type,
        entropy=cast(Tensor, whole("entropy")),
        lead=axes,
        vocab_ids=wanted.vocab,
        top_ids=whole("top_ids"),
        target_ids=None if targets is None else targets.unflatten(0, lead) if wanted.by_row else targets,
        target_ranks=whole("ranks"),
        target_names=names,
    )


class _Part(NamedTuple):
    """Of some states."""

    values: Float[Tensor, "row selected"]
    entropy: Float[Tensor, "row"]
    top_ids: Int[Tensor, "row selected"] | None
    ranks: Int[Tensor, "row selected"] | None


def stream_logits(
    lens: TokenFront, resid: Float[Tensor, "*batch d_model"], normed: bool = True
) -> Float[Tensor, "*batch vocab"]:
    """The logits that the model would give if a state of the stream were its last one.

    The last norm with its own scale, the unembedding, multipliers and soft cap: the model's, past its hook points, and
    differentiable. Of what leaves the last layer it is the model's own logits.

    Args:
        lens: the model.
        resid: any number of states; read where the unembedding is.
        normed: whether the last norm is applied first.
    """
    network = lens.network
    home = execution_device(lens.hf_model.get_output_embeddings(), resid.device)
    rows = resid.to(home).flatten(0, -2)[None]
    logits = network.unembed(network.ln_final.unhooked(rows) if normed else rows)
    return logits.reshape(*resid.shape[:-1], -1)


def ranks_of(logits: Float[Tensor, "row vocab"], ids: Int[Tensor, "row selected"]) -> Int[Tensor, "row selected"]:
    """The ranks of tokens: how many come before each, from 0 for the likeliest, as TransformerLens' test_prompt counts.

    Of equal logits the lowest id comes first, so that the token of rank 0 is the one that argmax names.
    """
    every = torch.arange(logits.shape[1], device=logits.device)

    def of(one: Int[Tensor, "row"]) -> Int[Tensor, "row"]:
        own = logits.gather(1, one[:, None])
        return ((logits > own) | ((logits == own) & (every < one[:, None]))).sum(dim=1)

    return torch.stack([of(one) for one in ids.unbind(1)], dim=1)


def _read(logits: Float[Tensor, "row vocab"], wanted: Wanted, return_type: ReturnType) -> _Part:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_probs = logits.log_softmax(dim=-1)
    entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
    found = {"logits": logits, "log_probs": log_probs}.get(return_type)
    values = log_probs.exp() if found is None else found
    if wanted.top_k is not None:
        ids = logits.topk(wanted.top_k, dim=-1).indices
        return _Part(values.gather(1, ids), entropy, ids, None)
    if wanted.targets is not None:
        ids = wanted.targets.to(logits.device)
        ids = ids[:, None] if wanted.by_row else ids.expand(len(logits), -1)
        return _Part(values.gather(1, ids), entropy, None, ranks_of(logits, ids))
    if wanted.vocab is not None:
        return _Part(values[:, wanted.vocab.to(logits.device)], entropy, None, None)
    return _Part(values, entropy, None, None)


def wanted_of(lens: TokenFront, vocab: Any, targets: Any, top_k: Any, lead: Sequence[int]) -> Wanted:
    """What was asked for, checked.

    Args:
        lens: the model.
        vocab: tokens to keep.
        targets: a token or several for all rows; a tensor with an axis, one a row.
        top_k: how many of the largest to keep.
        lead: the stack's shape but for its last axis.

    Raises:
        InputError: more than one of the three, or what is none.
    """
    size = lens.network.cfg.d_vocab
    if sum(one is not None for one in (vocab, targets, top_k)) > 1:
        raise InputError("more than one of vocab, targets and top_k was given, expected one at most")
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= size):
        raise InputError(f"top_k = {shown(top_k)} given, expected a whole number from 1 to {size}")
    some = None if vocab is None else token_ids(lens, vocab, "vocab").flatten()
    by_row = isinstance(targets, Tensor) and targets.ndim > 0
    if targets is None or isinstance(targets, Tensor):
        found = None if targets is None else token_ids(lens, targets, "targets")
    else:
        found = torch.cat([token_ids(lens, one, "targets").reshape(-1) for one in _several(targets)])
    if found is not None and by_row:
        shape = found.shape
        if len(shape) > len(lead) or any(
            a not in (b, 1) for a, b in zip(reversed(shape), reversed(list(lead)), strict=False)
        ):
            raise InputError(
                f"targets have shape {list(shape)}, but the states, rows and positions have {list(lead)}; give a list "
                "of tokens for all rows, or a tensor of one a row"
            )
    elif found is not None:
        found = found.reshape(-1)
    return Wanted(some, found, by_row, top_k)


def names_of(targets: Any) -> tuple[str | None, ...] | None:
    """The texts that targets were asked for by; None for a tensor of ids."""
    if targets is None or isinstance(targets, Tensor):
        return None
    return tuple(one if isinstance(one, str) else None for one in _several(targets))


def _several(targets: Any) -> list[Any]:
    """One token or several, as several.

    Raises:
        InputError: there is none.
    """
    one = isinstance(targets, str) or not isinstance(targets, Iterable) or getattr(targets, "ndim", 1) == 0
    found: list[Any] = [targets] if one else list(cast(Iterable[Any], targets))
    if not found:
        raise InputError("targets are empty, expected one token at least")
    return found
