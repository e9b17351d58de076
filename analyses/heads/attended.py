"""What heads attend to, of attention and of recurrences, each layer's pattern seen as it is made and then let go.

A recurrent layer's hidden attention (`ssm.hook_pattern`) says what each position's readout takes of each earlier
token's value (Ali et al. 2024, "The Hidden Attention of Mamba Models", arXiv 2403.01590; Dao & Gu 2024). Its entries
may be negative and sum to anything, so each query's are taken as shares of their magnitudes: |A| ÷ Σ |A|. Its heads are
those of a matrix state, or the blocks of channels of a diagonal one.

How it fails: hidden attention leaves out the convolution before it, which mixes the last few tokens into one value, and
the gate behind it; a query that reads nothing has a row of zeros. Both kinds of pattern are made whole, and so grow
with the square of the length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlens.boundary_words import Among
from hybridlens.errors import InputError
from hybridlens.hooks import HookPoint, reads_only
from hybridlens.model import HybridLens
from hybridlens.shapes import Tokens
from hybridlens.tokens import TokensLike

KINDS = ("attention", "recurrent")
"""Whose heads."""

HeadsOf: TypeAlias = Annotated[str, Among(KINDS)]

PREFIX = {"attention": "H", "recurrent": "S"}
"""What a head is called by: L2 H0 of attention, L1 S0 of a recurrence."""

Shares: TypeAlias = Float[Tensor, "batch head query key"]
"""Of each query, the shares of its keys: float32, 0 … 1."""


def layers_of(lens: HybridLens, of: str, what: str) -> tuple[int, ...]:
    """The layers that have heads of a kind.

    Raises:
        InputError: the model has none; `what` says what they were wanted for.
    """
    if of == "attention":
        lens.cfg.need_attention(what)
        return lens.cfg.attention_layers
    lens.cfg.need_states(what)
    return lens.cfg.state_layers


def attended(
    lens: HybridLens, tokens: Tokens, of: str, layers: Sequence[int], measure: Callable[[Shares], Tensor]
) -> Float[Tensor, "score layer head"]:
    """What `measure` makes of each layer's pattern, some numbers a head: float64 on the CPU.

    Args:
        lens: the model.
        tokens: prompts of one length.
        of: whose heads.
        layers: of `layers_of`.
        measure: from shares to numbers for each head [head score], called once a layer.

    Returns:
        [score layer head], NaN where a layer has fewer heads than another.
    """
    names = [f"blocks.{layer}.{'attn' if of == 'attention' else 'ssm'}.hook_pattern" for layer in layers]
    found: dict[str, Tensor] = {}

    @reads_only
    def look(pattern: Tensor, hook: HookPoint) -> None:
        shares = pattern.float()
        if of == "recurrent":
            sizes = shares.abs()
            total = sizes.sum(dim=-1, keepdim=True)
            shares = torch.where(total > 0, sizes / total, 0.0)
        found[cast(str, hook.name)] = measure(shares).to("cpu", torch.float64)

    with torch.no_grad(), lens.hooks([(names, look)]):
        lens.network(tokens, None, None, True)
    most = max(len(values) for values in found.values())
    out = torch.full((len(names), most, found[names[0]].shape[1]), torch.nan, dtype=torch.float64)
    for row, name in enumerate(names):
        out[row, : len(found[name])] = found[name]
    return out.permute(2, 0, 1)


def of_one_length(lens: HybridLens, prompts: TokensLike) -> Tokens:
    """Prompts [b p]; those of unequal length are refused."""
    batch = lens.batch(prompts)
    if batch.lengths is not None:
        lengths = ", ".join(map(str, batch.lengths.tolist()[:8]))
        raise InputError(f"prompts of {lengths} tokens were given, expected equal lengths; give them one by one")
    return batch.tokens


def head_names(of: str, heads: int) -> list[str]:
    """Names of a layer's heads."""
    return [f"{PREFIX[of]}{head}" for head in range(heads)]
