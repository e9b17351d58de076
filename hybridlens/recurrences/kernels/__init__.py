"""Kernels behind the recurrences: which there are, and which one runs."""
