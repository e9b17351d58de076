"""A digest of all that small models give, to see that a change moves no bit: ``python tests/digests.py mamba jamba``.

Of every cached value, every gradient and the state afterwards, a line for each family; of all families without names.
Run before a change and after it, on one machine: the lines are the same, or the change is not what it was said to be.
"""

import hashlib
import sys

import torch
from models import EVERY_FAMILY, make, tokens

import hybridlens as hl


def digest(family):
    """The SHA-256 of what a family's small model gives for two rows of tokens, its first 16 digits."""
    lens, ids, grads = hl.HybridLens(make(family)), tokens(2, 11), {}
    _, cache = lens.run_with_cache(ids, lambda name: True)
    with lens.hooks(bwd_hooks=[(lambda name: True, lambda g, hook: grads.__setitem__(f"{hook.name}, gradient", g))]):
        run = lens.network(ids)
        run.logits.square().sum().backward()
    whole = hashlib.sha256()
    found = {**{name: cache[name] for name in cache}, **grads, **run.state.tensors()}
    for name in sorted(found):
        value = found[name].detach()
        value = value.float() if value.dtype == torch.bfloat16 else value
        whole.update(f"{name} {tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
    return whole.hexdigest()[:16]


if __name__ == "__main__":
    for name in sys.argv[1:] or EVERY_FAMILY:
        print(f"{name:18} {digest(name)}")
