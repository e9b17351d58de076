"""Kernels behind the recurrences: which there are, and which one runs.

Modules:
    triton_scans: elementwise recurrences as Triton kernels
    libraries: kernel libraries behind the same functions
    choice: which kernel runs a scan; use_kernels
"""
