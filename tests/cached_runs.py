"""One run of each small random model with everything cached, for tests of the cache."""

from functools import cache

import torch
from models import make_calm, tokens

import hybridlens as hl

LENGTH = 8


@cache
def lens_of(family):
    return hl.HybridLens(make_calm(family, 5))


@cache
def run(family):
    """A lens, its prompts, their logits and the cache, hidden attention in it."""
    lens, prompt = lens_of(family), tokens(3, LENGTH, 5)
    with torch.no_grad():
        return lens, prompt, *lens.run_with_cache(prompt, lambda name: True)
