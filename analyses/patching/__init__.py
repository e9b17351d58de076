"""Activation patching: which component carries a behaviour, by putting one run's values into another.

`running.activation_patch` and `sweeps` patch between two prompts, `ablation` puts zeros, means or other prompts' values
in, `pairs` makes prompt pairs from the needle benchmark, `metrics` says what is measured and `results` holds it.
"""

from functools import partial
from typing import TYPE_CHECKING

from hybridlens.imports import asked

if not TYPE_CHECKING:  # which goes by the names that there are
    __getattr__ = partial(asked, __name__)
