"""nnsight over the hook points: ``with lens.trace(tokens): lens.blocks[2].attn.hook_pattern.output``.

The first trace wraps the hook network (never the Hugging Face model) once; every `HookPoint` then
knows the handle under which nnsight serves its activation. A trace costs milliseconds, whatever the
model, so that inner loops are better written with hooks.

Threads may trace the same lens at once, each a run of its own (`hybridlens.interleaving`).

How it fails: as nnsight does. Points are read in forward order, and reading one that has passed
raises nnsight's OutOfOrderError. A trace inside a trace of the same lens raises `InputError`.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nnsight import NNsight

from hybridlens.decoding import Boundary
from hybridlens.errors import InputError
from hybridlens.generation import generate
from hybridlens.hooks import Edit
from hybridlens.interleaving import ThreadInterleaver
from hybridlens.network import Output
from hybridlens.padding import TokenBatch
from hybridlens.shapes import Tokens

if TYPE_CHECKING:
    from hybridlens.model import HybridLens, Tracer

WRAPPING = threading.Lock()
"""Held while a lens is wrapped, so that threads which trace it first at the same moment wrap it once."""


def wrap(lens: HybridLens) -> Any:
    """nnsight's view of the lens's network; made once, and known to every hook point."""
    root: Any = NNsight(lens.network, interleaver=ThreadInterleaver(weakref.WeakValueDictionary()))
    parts = dict(lens.network.named_modules())
    for name, point in tuple(lens.hook_dict.items()):
        if name in parts:  # what is spliced in for the length of a block is no part of the network
            point.envoy = root.get(name)
    return root


def open_trace(
    lens: HybridLens, batch: TokenBatch, max_new_tokens: int | None, edits: Sequence[Edit], boundary: Boundary
) -> Tracer:
    """A trace of one forward pass, or of a greedy generation of `max_new_tokens`."""
    root = lens.nnsight
    if root.interleaver.interleaving:
        raise InputError(
            "a trace was opened inside a trace of the same lens, whose forward pass is under way; end the first "
            "`with lens.trace(...)` before the second, or use run_with_cache or run_with_hooks inside it"
        )
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
        given, words = TokenBatch(tokens, batch.lengths), lens.tokenizer
        return generate(lens.network, given, limit, edits, boundary, tokenizer=words, pad=lens.pad_token)

    return root.trace(batch.tokens, fn=generation)
