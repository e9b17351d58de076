"""Activation patching: which component carries a behaviour, by putting one run's values into another.

`running.activation_patch` and `sweeps` patch between two prompts, `ablation` puts zeros, means or other prompts' values
in, `pairs` makes prompt pairs from the needle benchmark, `metrics` says what is measured and `results` holds it.
"""
