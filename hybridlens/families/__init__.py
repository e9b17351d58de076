"""The families of hybrid models that hybridlens opens, one module each.

A family is a row of data (`spec.Family`) and the code where it really differs from the others. To
add one, write its module and name its row here; nothing else asks which family a model is of.
"""

from hybridlens.families.falcon_h1 import FALCON_H1
from hybridlens.families.jamba import JAMBA
from hybridlens.families.mamba2 import MAMBA2
from hybridlens.families.qwen3_next import QWEN3_NEXT
from hybridlens.families.recurrent_gemma import RECURRENT_GEMMA
from hybridlens.families.spec import Family, family_of

FAMILIES: tuple[Family, ...] = (RECURRENT_GEMMA, JAMBA, MAMBA2, FALCON_H1, QWEN3_NEXT)

__all__ = ["FAMILIES", "Family", "family_of"]
