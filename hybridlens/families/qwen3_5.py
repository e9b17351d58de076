"""Qwen3.5 to Qwen3.8, dense: the layers of Qwen3-Next with the delta rule's inputs projected flat.

Published files hold a multimodal model; its text model is opened, and the vision tower left out. Rotary embedding has
three parts there, for time, height and width, whose positions are the same for text: on text it is the plain one,
whatever `mrope_section` says.
"""

from __future__ import annotations

from typing import Any

from hybridlens.config import LensConfig, MlpConfig
from hybridlens.families.qwen import FINAL_NORM, OTHER_FIELDS, SPARE, block, lens_config
from hybridlens.families.spec import Family, check_fields

TEXT_FIELDS = {
    **OTHER_FIELDS,
    "attn_output_gate": (True,),
    "output_gate_type": ("swish",),
    "mamba_ssm_dtype": ("float32",),
    "mlp_only_layers": ([],),
    "mtp_num_hidden_layers": (),
    "mtp_use_dedicated_embeddings": (),
}


def configure(config: Any) -> LensConfig:
    """What a Qwen3.5 is made of; refuses what the family was not built for."""
    check_fields(QWEN3_5, config)
    return lens_config("qwen3_5", config, lambda layer: MlpConfig(config.intermediate_size))


QWEN3_5 = Family(
    name="qwen3_5",
    architecture="Qwen3_5ForCausalLM",
    multimodal="Qwen3_5ForConditionalGeneration",
    other_fields=TEXT_FIELDS,
    configure=configure,
    block=block,
    final_norm=FINAL_NORM,
    spare_tensors=(*SPARE, r"^model\.visual\."),
)
