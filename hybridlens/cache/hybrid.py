"""`HybridCache`: what a run computed, with TransformerLens' methods for it, on models of any layers.

It is TransformerLens' `ActivationCache`, so that whoever asks for one, or types its shorthands, is served. What it says
of the stream holds for hybrids: a layer may have attention, a recurrence, both or neither, heads of recurrences count,
norms behind parts and multipliers are in what is added, and a norm's weight is in what it makes of a term. So
`decompose_resid`, `get_full_resid_decomposition` and `stack_head_results(incl_remainder=True)` add up to the stream,
and their `logit_attrs` to the logit before any soft cap.

How it fails: a name that a layer lacks raises `NotCachedError` (a `KeyError` too) that says which layers have it, and
so does what a method needs and the run did not keep; a model whose stream is no sum of what is written to it (MiniMax)
is refused by what decomposes it.
"""

from __future__ import annotations

from hybridlens.cache.reading_out import ReadingCache


class HybridCache(ReadingCache):
    """Activations of a run, by hook point; `run_with_cache` gives one.

    Args:
        cache_dict: by hook point, [batch pos …].
        model: the lens that ran.
        has_batch_dim: whether activations have an axis of rows.
        layout: where rows of different lengths have their tokens, so that positions are counted among them; None where
            all rows hold the same positions.
    """
