"""Weights as circuits see them: per head and per recurrent branch, norms folded, from memory or from files.

`sources` finds tensors, `views` says what they are, `Weights` puts them together, a layer at a time, `StackedWeights`
all layers at once under TransformerLens' names, and `digest` says which they were. `fit` and `finite` look at a
checkpoint's before they are used, `counting` counts them, and `fingerprint` says which a model in memory has now.
"""

from hybridlens.weights.digest import digest
from hybridlens.weights.sources import FileTensors, ModelTensors, Tensors
from hybridlens.weights.stacks import StackedWeights
from hybridlens.weights.views import AttentionWeights, HeadWeights, MlpWeights, RecurrentWeights
from hybridlens.weights.vocabulary import VocabularyBlock
from hybridlens.weights.weights import Weights

__all__ = [
    "AttentionWeights",
    "FileTensors",
    "HeadWeights",
    "MlpWeights",
    "ModelTensors",
    "RecurrentWeights",
    "StackedWeights",
    "Tensors",
    "VocabularyBlock",
    "Weights",
    "digest",
]
