"""What is taken of TransformerLens, all in one place: everything else in the library imports it from here.

TransformerLens 3.9 and 4.x both have these, under the same names; nothing of theirs that is used here differs in
meaning between the two. (SAELens asks for a TransformerLens below 4.) What two versions have under other names, or at
all, is settled here and nowhere else.
"""

from transformer_lens.ActivationCache import ActivationCache
from transformer_lens.FactoredMatrix import FactoredMatrix
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities.slice import Slice

__all__ = ["ActivationCache", "FactoredMatrix", "HookPoint", "Slice"]
