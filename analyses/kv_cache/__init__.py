"""Surgery on what a hybrid remembers, and what it shows: which memory holds the needle.

`places` says where, `dropping` and `surgery` change keys and values, `recurrent` convolution and recurrent state,
`decoding` does it at any step of a text. `crossover` gives a model the keys and values of one prompt and the recurrent
state of another; `where` finds where in a prompt the needle is written down.

How it fails: `hybridlens.errors.InputError`, one line; a state is never written to.
"""

from analyses.kv_cache.decoding import Surgery, generate_with
from analyses.kv_cache.dropping import compact, drop, keep, keep_ends, keep_last, spans
from analyses.kv_cache.recurrent import decay, project_out, reset, swap_recurrent, zero_recurrent
from analyses.kv_cache.surgery import Means, mean, means, noise, quantise, swap, zero

__all__ = [
    "Surgery",
    "generate_with",
    "compact",
    "drop",
    "keep",
    "keep_ends",
    "keep_last",
    "spans",
    "decay",
    "project_out",
    "reset",
    "swap_recurrent",
    "zero_recurrent",
    "Means",
    "mean",
    "means",
    "noise",
    "quantise",
    "swap",
    "zero",
]
