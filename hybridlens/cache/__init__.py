"""What a run computed, as TransformerLens' cache has it, on models of any layers.

Modules:
    names: names of activations, as they are typed
    held: activations as rows of positions, whatever axes were dropped
    residual: the stream layer by layer, and what is added to it
    scaling: norms over terms of the stream
    heads: what single heads added
    neurons: what single neurons and experts added
    terms: the stream taken apart to the end
    directions: directions of tokens, and shares in their logits
    readout: the logit lens over a cache
    states: states and hidden attention
    base: the class: names and rows
    taking_apart: the class: the stream, and the sum of what it is
    reading_out: the class: norms, logits, states
    hybrid: HybridCache itself
"""

from hybridlens.cache.hybrid import HybridCache

__all__ = ["HybridCache"]
