"""Sparse autoencoders: what they compute, and how they are read from SAELens' files.

Modules:
    config: what cfg.json says, checked field by field
    autoencoder: activations to features and back, by four architectures
    loading: load_sae: a folder or a hub id
"""

from hybridlens.sae.autoencoder import SparseAutoencoder
from hybridlens.sae.config import SaeConfig
from hybridlens.sae.loading import load_sae

__all__ = ["SaeConfig", "SparseAutoencoder", "load_sae"]
