"""What is taken of TransformerLens, all in one place: everything else in the library imports it from here.

TransformerLens 3.9 and 4.x both have these, under the same names; nothing of theirs that is used here differs in
meaning between the two. (SAELens asks for a TransformerLens below 4.) What two versions have under other names, or at
all, is settled here and nowhere else.
"""

from transformer_lens import head_detector, patching
from transformer_lens.ActivationCache import ActivationCache
from transformer_lens.FactoredMatrix import FactoredMatrix
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.composition_scores import CompositionScores
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.utilities.components_utils import get_act_name
from transformer_lens.utilities.matrix import composition_scores
from transformer_lens.utilities.slice import Slice

__all__ = [
    "ActivationCache",
    "CompositionScores",
    "FactoredMatrix",
    "GeneralizedComponent",
    "HookPoint",
    "Slice",
    "TransformerBridge",
    "composition_scores",
    "get_act_name",
    "head_detector",
    "patching",
]
