"""The random-init control: a model of the same make that has learned nothing.

``from hybridlens.untrained import reinitialized`` stands in the place of
``transformer_lens.tools.analysis.reinitialized``, which resets standard layers alone and refuses every hybrid.

How it fails: an untrained model is no neutral one; its norms, decays and widths are the architecture's own. A model of
quantised weights raises `InputError`, since none could be drawn.
"""

from __future__ import annotations

import copy

import torch

from hybridlens.boundary import Seed, public
from hybridlens.errors import InputError
from hybridlens.model import HybridLens


@public
def reinitialized(lens: HybridLens, seed: Seed = 0) -> HybridLens:
    """A lens on a model of the same configuration, its weights drawn as the family's own class draws them.

    Args:
        lens: of the trained model, which is left as it is.
        seed: of the draw; torch's global generator is not touched.

    Raises:
        InputError: a quantised model.
    """
    model = lens.hf_model
    config = copy.deepcopy(model.config)
    if getattr(config, "quantization_config", None) is not None:
        raise InputError("a quantised model was given; open it unquantised to draw new weights")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made = type(model)(config)
    return type(lens)(made.to(lens.device, lens.dtype).eval(), lens.tokenizer)
