"""Surgery on what a hybrid remembers, and what it shows: which memory holds the needle.

How it fails: `hybridlens.errors.InputError`, one line; a state is never written to.

Modules:
    places: layers, heads, absolute positions, channels and rows of a state, checked
    dropping: keys and values dropped
    surgery: keys and values zeroed, averaged, quantised, with noise
    swapping: keys and values exchanged
    recurrent_places: channels and rows of states, checked
    recurrent: convolution and recurrent state zeroed, reset, decayed, exchanged, projected
    decoding: all of it before any decode step
    twins: a twin for each needle, with another answer
    pairs: two prompts that differ in a needle, and ask the same question
    telling: how likely each of two needles still is
    mixes: memories of two prompts mixed
    crossover_results: which needle is told, as a typed result
    crossover: answers under mixed memories
    damage: what is lost where memory is taken away, as a typed result
    where: memory taken away place by place
    following: one memory against all others: which of them answers follow
    sections: the report's sections
    report: the report, section by section
    experiment: all of it, part by part
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
