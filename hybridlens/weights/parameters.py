"""A dictionary of parameters that says which layers have what one of them lacks.

How it fails: ``parameters[name]`` of a name that is not there raises `NotHeldError`, a `KeyError`, in one line.
"""

from __future__ import annotations

import re
from typing import NoReturn

from torch import Tensor

from hybridlens.errors import NotHeldError, closest


class Parameters(dict[str, Tensor]):
    """Weights by their names of TransformerLens' (``blocks.2.attn.W_Q``), of the layers that have them."""

    def __missing__(self, name: object) -> NoReturn:
        """Say where what is asked for stands.

        Raises:
            NotHeldError: always.
        """
        parts = re.fullmatch(r"blocks\.\d+\.(.+)", str(name))
        suffix = f".{parts[1]}" if parts else ""
        layers = [key.split(".")[1] for key in self if parts and key.startswith("blocks.") and key.endswith(suffix)]
        there = f": layers with {suffix[1:]} are {', '.join(layers)}" if layers else closest(str(name), self)
        raise NotHeldError(f"there is no parameter {name!r}{there}; see lens.tl_parameters()")
