"""Recurrences as operators: no model and no hook point is in here.

`Recurrence` says what one must know of any of them; `Diagonal`, `Selective`, `Scalar` and `Delta` are the kinds there
are besides the convolution, which has no state. `use_kernels` chooses what runs them on a GPU.
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
