"""The families of hybrid models that hybridlens opens, one module each.

A family is a row of data (`spec.Family`) and the code where it really differs from the others. To
add one, write its module and name its row here; nothing else asks which family a model is of.
"""

from hybridlens.families.jamba import JAMBA
from hybridlens.families.recurrent_gemma import RECURRENT_GEMMA
from hybridlens.families.spec import Family, family_of

FAMILIES: tuple[Family, ...] = (RECURRENT_GEMMA, JAMBA)

__all__ = ["FAMILIES", "Family", "family_of"]
