"""Sparse autoencoders: what they compute, and how they are read from SAELens' files."""

from hybridlens.sae.autoencoder import SparseAutoencoder
from hybridlens.sae.config import SaeConfig
from hybridlens.sae.loading import load_sae

__all__ = ["SaeConfig", "SparseAutoencoder", "load_sae"]
