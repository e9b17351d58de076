"""Attention heads: their entropy, rankings of them, which are kept, and what becomes of their attention weights.

Modules:
    ranking: HeadRanking
    entropy: head entropy, and heads ranked by it
    selection: the k lowest, inside a layer or across all
    sparsification: top-k by entropy, or a fixed choice of heads, as edits
    needle_slots: which key slots hold a needle
    manipulation: attention weights rewritten around a needle, as edits
    treatment: heads kept and manipulation of each row of a batch
    portions: cells that are read and answered together, however many processes share the work
    answering: from the cells of an experiment to their answers
    needle_heads: heads that look at the needle
    attended: patterns of attention and hidden attention of recurrences, layer by layer
    repeats: random tokens, told twice over
    scores: induction, previous-token and duplicate-token scores on them
    gathering: gather and aggregate heads
"""

from functools import partial
from typing import TYPE_CHECKING

from hybridlens.imports import asked

if not TYPE_CHECKING:  # which goes by the names that there are
    __getattr__ = partial(asked, __name__)
