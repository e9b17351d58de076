"""`get_act_name`: the hook point that a shorthand stands for, as TransformerLens has it, of recurrences too.

``get_act_name("z", 2)`` is ``blocks.2.attn.hook_z``, and ``get_act_name("state", 1)`` ``blocks.1.ssm.hook_state``.
TransformerLens knows the parts of attention and MLPs; `OF_PART` has the names that only one other part has, in any
family. Whether a model has the point is the model's to say: ``name in lens.hook_points``.

How it fails: a gate is attention's or a recurrence's, so a layer's gate without its part raises `UnknownNameError`.
"""

from __future__ import annotations

from hybridlens.errors import UnknownNameError
from hybridlens.peers import get_act_name as theirs

OF_PART = {
    "attn": ("k_normed", "k_shared", "kv_latent", "q_normed", "z_gated"),
    "ssm": (
        "B", "C", "beta", "conv", "decay", "dt", "in", "input_gate", "normed", "recall", "recurrence_gate", "state",
        "write", "x", "y",
    ),
    "mlp": ("expert_indices", "expert_weights", "router_logits"),
}  # fmt: skip
"""Names that TransformerLens has not, by the part of a layer that alone has them."""
_PARTS = {name: part for part, names in OF_PART.items() for name in names}


def get_act_name(name: str, layer: int | str | None = None, layer_type: str | None = None) -> str:
    """The name of a hook point.

    Args:
        name: a shorthand, as in ``cache[name, layer]``; a full name is given back.
        layer: of a point that every layer has; None for one of the whole model.
        layer_type: the part of the layer ("attn", "ssm", "mlp", "ln1", …), where the name does not say it.

    Raises:
        UnknownNameError: ``gate`` without the part that it is of.
    """
    found: str = theirs(name, layer, layer_type)
    start, _, point = found.rpartition(".hook_")
    if not start.startswith("blocks.") or start.count(".") != 1:
        return found
    if point == "gate":
        raise UnknownNameError(
            f"gate of layer {start[7:]} was asked for, which is attention's or a recurrence's; give the part, as in "
            f"get_act_name('gate', {start[7:]}, 'ssm')"
        )
    return f"{start}.{_PARTS[point]}.hook_{point}" if point in _PARTS else found
