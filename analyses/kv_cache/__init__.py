"""Surgery on what a hybrid remembers, and what it shows: which memory holds the needle.

`places` says where, `dropping` and `surgery` change keys and values, `recurrent` convolution and recurrent state,
`decoding` does it at any step of a text. `crossover` gives a model memories of two prompts that differ in a needle
(`twins`, `pairs`), mixed in all ways (`mixes`); `where` finds where in a prompt the needle is written down.

How it fails: `hybridlens.errors.InputError`, one line; a state is never written to.
"""

from analyses.kv_cache.crossover import crossover, read_pairs
from analyses.kv_cache.crossover_results import CrossCell, Crossover, Share, Shares
from analyses.kv_cache.damage import DamageMap, Retrieval
from analyses.kv_cache.decoding import Surgery, generate_with
from analyses.kv_cache.dropping import drop, keep, keep_ends, keep_last
from analyses.kv_cache.mixes import Mix, mixes
from analyses.kv_cache.pairs import PromptPair, own_prompts, prompt_pairs
from analyses.kv_cache.recurrent import decay, project_out, reset, swap_recurrent, zero_recurrent
from analyses.kv_cache.surgery import Means, mean, means, noise, quantise, zero
from analyses.kv_cache.swapping import swap
from analyses.kv_cache.telling import Contrast, LogProbabilities, contrast, logprobs
from analyses.kv_cache.twins import NeedlePair, needle_pairs, paired
from analyses.kv_cache.where import Group, attention_groups, drop_map, recurrent_groups, recurrent_map, retrieval

__all__ = [
    "Surgery",
    "generate_with",
    "drop",
    "keep",
    "keep_ends",
    "keep_last",
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
    "NeedlePair",
    "needle_pairs",
    "paired",
    "PromptPair",
    "own_prompts",
    "prompt_pairs",
    "Contrast",
    "LogProbabilities",
    "contrast",
    "logprobs",
    "Mix",
    "mixes",
    "crossover",
    "read_pairs",
    "CrossCell",
    "Crossover",
    "Share",
    "Shares",
    "Group",
    "attention_groups",
    "recurrent_groups",
    "drop_map",
    "recurrent_map",
    "retrieval",
    "DamageMap",
    "Retrieval",
]
