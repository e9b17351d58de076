"""hybridlens: read, edit and differentiate anything inside hybrid language models.

The public names are loaded when they are first used, so that ``import hybridlens`` is quick.
"""

import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hybridlens.imports import Pointers, asked

if TYPE_CHECKING:
    from hybridlens import niah, tiny
    from hybridlens.act_names import get_act_name
    from hybridlens.cache import HybridCache
    from hybridlens.choosing import Sampling
    from hybridlens.errors import HybridLensError
    from hybridlens.hooks import Edit, HookPoint, HookSpec
    from hybridlens.loading import load, load_weights
    from hybridlens.model import HybridLens
    from hybridlens.sae import load_sae
    from hybridlens.state import HybridState

if "ipykernel" in sys.modules:  # tqdm warns once where a notebook has no ipywidgets, and writes its bars as text
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        import_module("tqdm.auto")

Pointers.stand_ready()

__version__ = "0.2.0"

_HOMES = {
    "Edit": "hooks",
    "HookPoint": "hooks",
    "HookSpec": "hooks",
    "HybridCache": "cache",
    "HybridLens": "model",
    "HybridLensError": "errors",
    "HybridState": "state",
    "Sampling": "choosing",
    "get_act_name": "act_names",
    "load": "loading",
    "load_sae": "sae",
    "load_weights": "loading",
}

__all__ = [
    "Edit",
    "HookPoint",
    "HookSpec",
    "HybridCache",
    "HybridLens",
    "HybridLensError",
    "HybridState",
    "Sampling",
    "get_act_name",
    "load",
    "load_sae",
    "load_weights",
    "niah",
    "tiny",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    return asked(__name__, name) if home is None else getattr(import_module(f"hybridlens.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
