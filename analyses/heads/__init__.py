"""Attention heads: their entropy, rankings of them, which are kept, and what becomes of their attention weights."""
