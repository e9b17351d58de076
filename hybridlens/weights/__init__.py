"""Weights as circuits see them: per head and per recurrent branch, norms folded, from memory or from files.

`Weights` has them a layer at a time, `StackedWeights` all layers at once under TransformerLens' names.

Modules:
    finite: weights that are no numbers
    counting: how many weights there are
    naming: which tensors of the files make up each of the model's
    sources: tensors from a model in memory or straight from safetensors files
    merged: the files' tensors with a LoRA adapter's added to them
    views: what the weights of one layer are to a circuit
    latent: the same of latent attention's keys and values
    vocabulary: what all weights are read from, and those of embedding and unembedding
    weights: Weights: a layer at a time
    parameters: a dictionary of them that says which layers have what one lacks
    stacks: the same of all layers at once, under TransformerLens' names
    digest: which weights they were
    fit: whether a checkpoint's files hold what its configuration asks for
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
