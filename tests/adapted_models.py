"""Small models with random adapters of PEFT, which move the logits by about their own size, and lines of refusal."""

import peft
import pytest
import torch
from models import make, tokens

from hybridlens.errors import CheckpointError

IDS = tokens(2, 6)
FAMILY = "jamba"
FEW = ["q_proj", "o_proj", "in_proj", "gate_proj"]


def adapted(model=None, seed=0, **settings):
    """A PEFT model with random adapters."""
    torch.manual_seed(seed)
    settings = {"r": 2, "target_modules": FEW, "init_lora_weights": False, "task_type": "CAUSAL_LM", **settings}
    return peft.get_peft_model(make(FAMILY) if model is None else model, peft.LoraConfig(**settings)).eval()


def refused(call, *words, error=CheckpointError):
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
