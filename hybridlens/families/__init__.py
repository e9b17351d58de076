"""The families of hybrid models that hybridlens opens, one module each.

A family is a row of data (`spec.Family`) and the code where it really differs from the others. To
add one, write its module and name its row here; nothing else asks which family a model is of.

How it fails: a model of no family raises `CheckpointError`.
"""

from collections.abc import Sequence
from typing import Any

import transformers

from hybridlens.errors import CheckpointError, closest
from hybridlens.families.falcon_h1 import FALCON_H1
from hybridlens.families.jamba import JAMBA
from hybridlens.families.mamba2 import MAMBA2
from hybridlens.families.qwen3_next import QWEN3_NEXT
from hybridlens.families.recurrent_gemma import RECURRENT_GEMMA
from hybridlens.families.spec import Family
from hybridlens.families.zamba2 import ZAMBA2

FAMILIES: tuple[Family, ...] = (RECURRENT_GEMMA, JAMBA, MAMBA2, FALCON_H1, QWEN3_NEXT, ZAMBA2)

__all__ = ["FAMILIES", "Family", "family_for"]


def family_for(config: Any, whose: str, named: Sequence[str] | None = None) -> Family:
    """The family that a model is of: the one place where that is decided.

    Args:
        config: the model's configuration.
        whose: the first words of an error, as in "the model".
        named: classes of models that it is said to be; None for what the configuration says, if it does.

    Raises:
        CheckpointError: when it is of none, or `named` is another model than its configuration is made for.
    """
    named = list(getattr(config, "architectures", None) or []) if named is None else named
    for family in FAMILIES:
        if type(config) is getattr(transformers, family.architecture).config_class:
            if named and family.architecture not in named:
                raise CheckpointError(
                    f"{whose}: its configuration says model_type {config.model_type!r}, but architectures "
                    f"{', '.join(named)}, expected {family.architecture}"
                )
            return family
    given = named[0] if named else type(config).__name__
    known = [family.architecture for family in FAMILIES]
    raise CheckpointError(
        f"{whose} is a {given}, of no family that hybridlens knows; it opens {', '.join(known)}{closest(given, known)}"
    )
