"""The layers of Bamba under the names of the hook points, by plain loops in float64.

Nothing of hybridlens is used here.
"""

from hf_capture import attention, dense_mlp, residual
from hf_matrix_states import mamba2


def bamba_layer(got, model, layer):
    """Attention or Mamba-2, and an MLP."""
    home, block = f"model.layers.{layer}", f"blocks.{layer}"
    out = residual(got, model, layer, "input_layernorm", "pre_ff_layernorm", "feed_forward")
    out |= dense_mlp(got, f"{home}.feed_forward", block)
    if f"{home}.self_attn" in got.attention:
        return out | attention(got, model, f"{home}.self_attn", block, rotary=True)
    mine = mamba2(got, model, f"{home}.mamba", model.config.mamba_n_groups)
    return out | {f"{block}.{name}": value for name, value in mine.items()}
