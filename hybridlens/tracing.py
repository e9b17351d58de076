"""nnsight over the hook points: ``with lens.trace(tokens): lens.blocks[2].attn.hook_pattern.output``.

The first trace wraps the hook network (never the Hugging Face model) once; every `HookPoint` then
knows the handle under which nnsight serves its activation. A trace costs milliseconds, whatever the
model, so that inner loops are better written with hooks.

How it fails: as nnsight does. Points are read in forward order, and reading one that has passed
raises nnsight's OutOfOrderError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from nnsight import NNsight

from hybridlens.errors import InputError
from hybridlens.generation import Boundary, check_boundary, generate
from hybridlens.hooks import Edit
from hybridlens.network import Output
from hybridlens.padding import TokenBatch
from hybridlens.shapes import Tokens

if TYPE_CHECKING:
    from hybridlens.model import HybridLens

Tracer: TypeAlias = Any
"""nnsight's InterleavingTracer, which is untyped."""


def wrap(lens: HybridLens) -> Any:
    """nnsight's view of the lens's network; made once, and known to every hook point."""
    root: Any = NNsight(lens.network)
    for name, point in lens.hook_dict.items():
        point.envoy = root.get(name)
    return root


def open_trace(
    lens: HybridLens, batch: TokenBatch, max_new_tokens: int | None, edits: Sequence[Edit], boundary: Boundary
) -> Tracer:
    """A trace of one forward pass, or of a greedy generation of `max_new_tokens`."""
    root = lens.nnsight
    check_boundary(boundary)
    early = [edit.hook for edit in edits if edit.ahead]
    if early:
        raise InputError(
            f"an edit of {early[0]!r} acts in a pass ahead, which a trace would count as one of its own; give edits "
            "that act ahead (those of top_k with scope 'model') to prefill, extend or generate"
        )

    def forward(tokens: Tokens) -> Output:
        with lens.editing(edits, "prefill") as run:
            return run(tokens, batch.lengths)

    if max_new_tokens is None:
        return root.trace(batch.tokens, fn=forward)
    limit = max_new_tokens

    def generation(tokens: Tokens) -> Any:
        with torch.no_grad():
            return generate(lens, TokenBatch(tokens, batch.lengths), limit, edits, boundary, True, None)

    return root.trace(batch.tokens, fn=generation)
