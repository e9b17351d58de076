"""The paper's edits of attention on the untouched Hugging Face model, one row and one query at a time.

Nothing of hybridlens or analyses is used here. A registered attention function does what `semantics.md` says, over
the whole text in one pass without a cache: queries before `boundary` are under the rules of reading, those from
it on under the rules of answering. That is the same as reading and then answering token by token.
"""

import math
from typing import NamedTuple

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

NAME = "hybridlens_test_edited"


class Rules(NamedTuple):
    """What acts in one phase."""

    mode: str = "keep"
    k: int | None = None  # heads kept of each layer; None: all
    semantics: str = "clean"


def edited_logits(model, tokens, boundary: int, reading: Rules, answering: Rules, needle: set[int]) -> torch.Tensor:
    """Logits [pos vocab] of one row of tokens."""
    window = getattr(model.config, "attention_window_size", None)

    def attend(module, q, k, v, mask, scaling, **kwargs):
        heads, shared = q.shape[1], q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(shared, dim=1)[0], v.repeat_interleave(shared, dim=1)[0]
        length = q.shape[2]
        pattern = torch.zeros(heads, length, length)
        for t in range(length):
            seen = [j for j in range(t + 1) if window is None or t - j < window]
            for h in range(heads):
                pattern[h, t, seen] = torch.softmax(k[h, seen] @ q[0, h, t] * scaling, dim=0)
        new = torch.stack([_answer(pattern[:, t], t, answering, needle, window) for t in range(length)], dim=1)
        new[:, :boundary] = _read(pattern[:, :boundary], boundary, reading, needle, window)
        z = new @ v
        for t in range(length):
            rules = reading if t < boundary else answering
            if rules.k is not None:
                for h in _ranked(pattern[:, t], rules.semantics)[rules.k :]:
                    z[h, t] = 0
        return z.transpose(0, 1)[None].contiguous(), None

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, eager_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        with torch.no_grad():
            return model(torch.as_tensor(tokens)[None], use_cache=False).logits[0]
    finally:
        model.set_attn_implementation(before)


def _ranked(weights, semantics):
    """Heads by entropy of their weights [head key], the lowest first; ties by index."""
    keys = []
    for row in weights.double().tolist():
        if semantics == "published":
            keys.append(-sum((a + 1e-12) * math.log2(a + 1e-12) for a in row))
        else:
            keys.append(-sum(a * math.log2(a) for a in row if a > 0))
    return sorted(range(len(keys)), key=lambda h: (round(keys[h], 7), h))


def _seen(t, needle, window):
    return [j for j in sorted(needle) if j <= t and (window is None or t - j < window)]


def _columns(weights, mode, needle):
    """Every mode but binary, on weights [head key]."""
    new = weights.clone()
    for j in range(weights.shape[-1]):
        if mode == "null" or (mode == "omit" and j in needle) or (mode == "only" and j not in needle):
            new[..., j] = 0
    return new


def _answer(weights, t, rules, needle, window):
    """One query's weights [head key] while answering; `clean` while reading too."""
    seen = _seen(t, needle, window)
    if rules.semantics == "published" and not seen:
        return weights
    if rules.mode != "binary":
        return _columns(weights, rules.mode, needle)
    new = torch.zeros_like(weights)
    if rules.semantics == "published":
        new[:, seen] = sum(float(weights[h, j]) for h in range(len(weights)) for j in seen) / len(weights) / len(seen)
    elif seen:
        for h in range(len(weights)):
            new[h, seen] = sum(float(weights[h, j]) for j in seen) / len(seen)
    return new


def _read(pattern, boundary, rules, needle, window):
    """The weights [head query key] of all queries that read the prompt."""
    if rules.semantics == "clean":
        return torch.stack([_answer(pattern[:, t], t, rules, needle, window) for t in range(boundary)], dim=1)
    if rules.mode != "binary":
        return _columns(pattern, rules.mode, needle)
    held = [j for j in sorted(needle) if j < boundary]
    new = torch.zeros_like(pattern)
    if held:
        new[:, :, held] = float(pattern[:, :, held].double().sum()) / pattern.shape[0] / len(held)
    return new
