"""The plain way, for comparison: Hugging Face's `generate`, one prompt at a time, hooks that zero heads.

It is what one would write today: an attention function registered with the library, which the hooks of both
families go through, ranks the heads of each query by entropy, zeroes the others' output and edits the
attention weights. Nothing of hybridlens computes here.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.models.jamba.modeling_jamba import eager_attention_forward

NAME = "hybridlens_benchmark_plain"


class Stage(NamedTuple):
    """What is done to attention in prefill or in decode."""

    k: int | None = None
    """Heads kept; None for all."""
    mode: str = "keep"


def manipulated(pattern: Tensor, mode: str, columns: Sequence[int], first: int) -> Tensor:
    """The attention weights [1 head query key] under a mode; `first` is the position of the first query."""
    if mode == "keep":
        return pattern
    device = pattern.device
    inside = torch.zeros(pattern.shape[-1], dtype=torch.bool, device=device)
    inside[list(columns)] = True
    if mode == "omit":
        return pattern * ~inside
    if mode == "null":
        return pattern * 0
    if mode == "only":
        return pattern * inside
    queries = torch.arange(first, first + pattern.shape[2], device=device)
    seen = inside & (torch.arange(pattern.shape[-1], device=device) <= queries[:, None])
    count = seen.sum(-1, keepdim=True).clamp(min=1)
    return (pattern * seen).sum(-1, keepdim=True) / count * seen


@contextmanager
def patched(model: Any, prefill: Stage, decode: Stage, columns: Sequence[int]) -> Generator[None]:
    """The model with both stages' treatments, for the length of a ``with`` block."""

    def attend(module: Any, q: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **kw: Any) -> Any:
        z, pattern = eager_attention_forward(module, q, key, value, mask, scaling)
        stage = decode if q.shape[2] == 1 else prefill
        if stage.mode != "keep":
            edited = manipulated(pattern, stage.mode, columns, key.shape[2] - q.shape[2])
            groups = q.shape[1] // value.shape[1]
            z = (edited @ value.repeat_interleave(groups, dim=1)).transpose(1, 2)
        if stage.k is not None:
            entropy = -(pattern * pattern.clamp_min(1e-38).log2()).sum(-1)
            order = entropy.argsort(dim=1, stable=True)[:, stage.k :]  # [1 dropped query]
            z = z.scatter(2, order.transpose(1, 2)[..., None].expand(-1, -1, -1, z.shape[-1]), 0.0)
        return z, pattern

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, eager_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def answer(lens: Any, tokens: Sequence[int], prefill: Stage, decode: Stage, columns: Sequence[int] = ()) -> str:
    """One cell: the greedy text of 40 tokens."""
    return lens.tokenizer.decode(said(lens.hf_model, tokens, prefill, decode, columns), skip_special_tokens=True)


def said(
    model: Any, tokens: Sequence[int], prefill: Stage, decode: Stage, columns: Sequence[int] = (), new: int = 40
) -> list[int]:
    """One cell: the `new` tokens that the model says, greedily."""
    for module in model.modules():  # the library keeps recurrent state on its modules
        for name in ("conv1d_state", "recurrent_states"):
            if hasattr(module, name):
                setattr(module, name, None)
    ids = torch.tensor([list(tokens)], device=model.device)
    named: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "max_new_tokens": new, "do_sample": False}
    untouched = Stage()
    with torch.no_grad():
        if prefill == untouched and decode == untouched:
            out = model.generate(ids, **named)
        else:
            with patched(model, prefill, decode, columns):
                out = model.generate(ids, **named)
    return out[0, len(tokens) :].tolist()
