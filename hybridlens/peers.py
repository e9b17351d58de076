"""What is taken of TransformerLens, all in one place: everything else in the library imports it from here.

TransformerLens 3.9 and 4.x both have these, under the same names; nothing of theirs that is used here differs in
meaning between the two. (SAELens asks for a TransformerLens below 4.) What two versions have under other names, or at
all, is settled here and nowhere else.
"""

from importlib import import_module

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
    "architecture_of",
    "composition_scores",
    "get_act_name",
    "head_detector",
    "official_name",
    "patching",
]


def official_name(name: str) -> str | None:
    """The hub id that TransformerLens means by a short name ("pythia-70m"); None where it means none."""
    aliases: dict[str, list[str]] = getattr(import_module("transformer_lens.supported_models"), "MODEL_ALIASES", {})
    wanted = name.lower()
    return next((model for model, known in aliases.items() if wanted in map(str.lower, (model, *known))), None)


def architecture_of(model: str) -> str | None:
    """The class of the model of a hub id, as TransformerLens' table of models has it; None where it has none."""
    try:
        found: str | None = import_module("transformer_lens.tools.model_registry.api").get_model_architecture(model)
    except (ImportError, AttributeError):  # older versions have no table
        return None
    return found
