"""What a run computed, as TransformerLens' cache has it, on models of any layers.

`hybrid` is the class, put together from `base` (names, rows), `taking_apart` (the stream, and the sum of what it is)
and `reading_out` (norms, logits, states). What they do stands in files by concern: `names`, `held`, `residual`,
`scaling`, `heads`, `neurons`, `terms`, `directions`, `readout`, `states`.
"""

from hybridlens.cache.hybrid import HybridCache

__all__ = ["HybridCache"]
