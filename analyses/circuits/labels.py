"""What results call metrics, writers and scores, what these mean, and what is to be known of a model's.

How it fails: a head that the model has not raises `ValueError`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from analyses.circuits.results import Head, HeadCircuits
from hybridlens.config import LensConfig
from hybridlens.viz.words import DASH

MEANING = {
    "copying": "1: all eigenvalues are positive, so what the head looks at becomes more likely next; −1: less likely.",
    "copying_share": "Of a sample of tokens: for how many the head raises the token's own logit more than any other's.",
    "matching": "1: a query looks for keys of its own token; −1: for any but its own. Mean over distances.",
    "matching_share": "Of a sample of tokens: for how many the query's own token has the highest score as a key.",
    "previous": "Attention to the token just before, when all tokens are alike and only distance counts.",
    "induction": "Highest over earlier writers: how much of the writer is about the token before × its K-composition "
    "with the head beyond chance, or beyond its other writers × the head's copying; 0 where a factor is not above 0.",
    "induction_match": "Like matching, with keys made by that writer: 1 looks for tokens that follow its equal.",
    "retrieval": "High where the head finds what followed an equal token and copies it; what is below 0 counts as 0.",
}
"""Metric -> what its values mean."""


def titled(metric: str) -> str:
    """A metric's name in words."""
    return metric.replace("_", " ")


def number(value: float) -> str:
    """A score in a table: "0.873", "−0.051", "0"; three digits after the point, or that it is less."""
    if not math.isfinite(value):
        return DASH
    if 0 < abs(value) < 0.0005:
        return "under 0.0005" if value > 0 else "over −0.0005"
    return f"{value:.3f}".replace("-", "−") if value else "0"


def writer_of(circuits: HeadCircuits, head: Head) -> str:
    """The writer through which a head inducts; a dash where there is none."""
    place = int(circuits.at(circuits.induction_writer, head))
    return DASH if place < 0 else circuits.writers[place]


def notes_of(
    cfg: LensConfig, writers: Sequence[int], gate_error: Float[Tensor, "attn_layer head"] | None
) -> tuple[str, ...]:
    """The notes of a model's circuits, a sentence each; `writers` are the recurrent layers that are taken for such."""
    found: list[str] = []
    gated = [index for index, attention in enumerate(cfg.attentions) if attention.gated]
    if gated:
        off = _off(gate_error, gated, "that")
        found.append(f"OV circuits have output gates at rest, at their value for input 0; {off}.")
    behind = [index for index, attention in enumerate(cfg.attentions) if attention.normed_after]
    if behind:
        off = _off(gate_error, behind, "one scale for all tokens")
        found.append(
            "OV circuits have the weight of the norm behind attention in them; its scale, one positive number a token "
            f"that all heads of a layer share, takes no part; {off}."
        )
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


def _off(gate_error: Float[Tensor, "attn_layer head"] | None, layers: list[int], what: str) -> str:
    """How much something leaves out of what the heads of some attention layers write, so far as it was measured."""
    if gate_error is None:
        return "how far that is off was not measured"
    missed = spread(gate_error[layers], "{:.2f}".format)
    return f"on real activations {what} misses {missed} of the spread of what heads write"


def spread(values: Tensor, form: Callable[[float], str]) -> str:
    """The least and the largest of some values, "0.12 to 0.34"; one where both read the same."""
    return " to ".join(dict.fromkeys(form(float(end)) for end in values.aminmax()))
