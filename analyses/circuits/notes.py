"""What is to be known of circuits from weights: gates at rest, norms folded in, layers that are no writers.

How it fails: pure; a model that needs no note has none.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from hybridlens.config import LensConfig


def notes_of(
    cfg: LensConfig, writers: Sequence[int], gate_error: Float[Tensor, "attn_layer head"] | None
) -> tuple[str, ...]:
    """The notes of a model's circuits, a sentence each.

    Args:
        cfg: the model's.
        writers: its recurrent layers that are taken for writers.
        gate_error: see `gates`; None where not measured.
    """
    found: list[str] = []
    if any(attention.gated for attention in cfg.attentions):
        found.append(f"OV circuits have output gates at rest, at their value for input 0; {_off(cfg, gate_error)}.")
    if any(attention.qk_norm for attention in cfg.attentions):
        found.append(
            "QK circuits have the weights of the norms of queries and keys folded in; the scales of these norms, one "
            "positive number a token and head, take no part."
        )
    left_out = [layer for layer in cfg.ssm_layers if layer not in writers]
    if left_out:
        which = f"layer {left_out[0]}" if len(left_out) == 1 else f"layers {', '.join(map(str, left_out))}"
        found.append(
            f"Recurrent {which} pass nothing on at rest and are no writers here; on real text they are measured."
        )
    return tuple(found)


def _off(cfg: LensConfig, gate_error: Float[Tensor, "attn_layer head"] | None) -> str:
    if gate_error is None:
        return "how far that is off was not measured"
    gated = [index for index, attention in enumerate(cfg.attentions) if attention.gated]
    low, high = float(gate_error[gated].min()), float(gate_error[gated].max())
    spread = f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"
    return f"on real activations that misses {spread} of the spread of what heads write"
