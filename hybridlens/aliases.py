"""Other names for hook points: Mamba-2's own letters, and what TransformerLens' bridges call the same tensors.

An alias is accepted wherever a name is; what is listed, cached and documented is the name of the table. A bridge's name
for another tensor is none: its ``mixer.hook_conv`` stands before the activation, its ``linear_attn.hook_ssm_state`` has
addresses before values, ``linear_attn.hook_log_decay`` is the logarithm of the decay, and a Jamba's states have
channels before positions. Queries and keys of the delta rule are those of the table, as used (unit vectors, queries
scaled, repeated to heads), where the bridge's are what leaves the convolution.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

MAMBA2 = {
    "ssm.hook_x": "ssm.hook_v",
    "ssm.hook_B": "ssm.hook_k",
    "ssm.hook_C": "ssm.hook_q",
    "mixer.hook_ssm_state": "ssm.hook_state",
    "mixer.hook_ssm_write": "ssm.hook_write",
    "mixer.hook_ssm_out": "hook_ssm_out",
}
DELTA = {
    "linear_attn.hook_q": "ssm.hook_q",
    "linear_attn.hook_k": "ssm.hook_k",
    "linear_attn.hook_v": "ssm.hook_v",
    "linear_attn.hook_beta": "ssm.hook_beta",
    "linear_attn.hook_recurrence_out": "ssm.hook_y",
    "linear_attn.hook_ssm_out": "hook_ssm_out",
}
KINDS = (({"ssm.hook_v", "ssm.hook_dt"}, MAMBA2), ({"ssm.hook_v", "ssm.hook_beta"}, DELTA))
"""The points by which a layer's kind is known, and its other names."""


def table_name(name: str, points: Iterable[str]) -> str:
    """The table's name for an alias; any other name as it is.

    Args:
        name: as it was given.
        points: the names that the model has.
    """
    match = re.fullmatch(r"(blocks\.\d+)\.(.+)", name)
    if match is None:
        return name
    block, suffix = match.groups()
    known = {point.split(".", 2)[2] for point in points if point.startswith("blocks.")}
    for marks, aliases in KINDS:
        if suffix in aliases and suffix not in known and marks <= known:
            return f"{block}.{aliases[suffix]}"
    return name
