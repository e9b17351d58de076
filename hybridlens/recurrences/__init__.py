"""Recurrences as operators: no model and no hook point is in here.

`Recurrence` says what one must know of any of them; `Diagonal`, `Selective`, `Scalar` and `Delta` are the kinds there
are besides the convolution, which has no state. `use_kernels` chooses what runs them on a GPU.

Modules:
    kernels: what runs them on a GPU
    scan: elementwise recurrences, exact, forward and backward, in two speeds
    mamba_scan: Mamba's recurrence, a few tokens at a time
    terms: NamedTuples of tensors over time
    edits: edits of what a recurrence makes, and their gradients counted once
    trajectory: the gradient of a trajectory, whatever the recurrence
    base: what one must know of a recurrence; trajectories that follow from edits
    decomposing: states as sums over what each token put there
    diagonal: RG-LRU's recurrence, and Mamba's where its decays are given
    selective: Mamba's as an operator
    selective_heads: the same in heads: Zamba
    chunks: chunks of time side by side, products of decays without logarithms
    every_state: every state of a matrix recurrence, each written once, and the way back
    matrix: what matrix states have in common
    delta_chunks: the delta rule in chunks, and its hidden attention
    scalar: matrix states with one decay a head: Mamba-2, lightning attention
    delta: matrix states that erase before they write: gated DeltaNet, Kimi delta attention
    convolution: the causal convolution and what it remembers
"""

from hybridlens.recurrences.base import Hooked, Recurrence, Run, hooked_states
from hybridlens.recurrences.convolution import causal_convolution, convolution_attention
from hybridlens.recurrences.decomposing import Decomposable
from hybridlens.recurrences.delta import Delta, DeltaTerms
from hybridlens.recurrences.diagonal import Diagonal, DiagonalTerms
from hybridlens.recurrences.edits import Edited, Hook
from hybridlens.recurrences.kernels.choice import use_kernels
from hybridlens.recurrences.scalar import Scalar, ScalarTerms
from hybridlens.recurrences.selective import Selective, SelectiveTerms
from hybridlens.recurrences.selective_heads import SelectiveHeads
from hybridlens.recurrences.terms import before

__all__ = [
    "Recurrence",
    "Decomposable",
    "Run",
    "Hooked",
    "hooked_states",
    "Edited",
    "Hook",
    "Diagonal",
    "DiagonalTerms",
    "Selective",
    "SelectiveHeads",
    "SelectiveTerms",
    "Scalar",
    "ScalarTerms",
    "Delta",
    "DeltaTerms",
    "causal_convolution",
    "convolution_attention",
    "before",
    "use_kernels",
]
