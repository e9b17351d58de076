"""What a tool of TransformerLens leaves out on a hybrid without saying so is said here, in one warning.

Its attribution patching (`transformer_lens.tools.analysis.attribution_patch`) scores the embedding, attention heads and
MLPs. Where every layer has these and a recurrence beside them, as in Falcon-H1, it runs, and gives scores in which what
recurrences write is missing. It is known by its hook functions, which say the module that they come from.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

ATTRIBUTION = "transformer_lens.tools.analysis.attribution_patching"
"""The module whose functions know nothing of recurrences."""


def noticed(functions: Iterable[Any], names: Iterable[str]) -> None:
    """Warn of a tool that is about to run with points left out.

    Args:
        functions: hook functions that are being attached.
        names: of all points of the model.
    """
    if not any(getattr(fn, "__module__", None) == ATTRIBUTION for fn in functions):
        return
    layers = [name.split(".")[1] for name in names if name.endswith(".hook_ssm_out")]
    if layers:
        warnings.warn(
            "TransformerLens' attribution patching has no nodes for what recurrences write (hook_ssm_out of layers "
            f"{', '.join(layers)}); use analyses.patching.gradients.attribution_patch, which has them",
            stacklevel=5,
        )
