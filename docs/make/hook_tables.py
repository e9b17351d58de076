"""The tables of hook points: every name, its shape, what it means, and which families have it.

Names, shapes and families are read off a lens of each family's small random model (`tests/models.py`); only what a name
means is written here, in `MEANINGS`, part by part and in the order in which the points of a layer fire.

How it fails: a point without a meaning, or a meaning without a point, raises `ValueError`, which names it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import NamedTuple

from module_lists import ROOT

MEANINGS: dict[str, dict[str, str]] = {
    "The model as a whole": {
        "hook_embed": "what enters block 0, multiplied as the family does it",
        "ln_final.hook_scale": "what the last norm divides by",
        "ln_final.hook_normalized": "the stream before the unembedding, without the norm's weight",
        "hook_logits": "the logits, multipliers and soft cap included",
    },
    "Every layer: `blocks.L.`": {
        "hook_resid_pre": "the residual stream that enters the layer",
        "ln1.hook_scale": "what the norm before the mixer divides by",
        "ln1.hook_normalized": "what it gives, without its weight",
        "hook_mixer_in": "what the mixer reads, where no norm stands before it",
        "hook_attn_out": "what attention writes, behind a norm after it; in a shared block, what its attention gives",
        "hook_ssm_out": "what the recurrence writes",
        "ln1_post.hook_scale": "what the norm behind the mixer divides by",
        "ln1_post.hook_normalized": "what it gives, without its weight",
        "hook_mixer_out": "what the mixer adds to the stream, whichever it is; of attention beside a recurrence, both",
        "hook_resid_mid": "the stream between mixer and MLP",
        "ln2.hook_scale": "what the norm before the MLP divides by",
        "ln2.hook_normalized": "what it gives, without its weight",
        "hook_mlp_in": "what the MLP reads, where no norm stands before it",
        "ln2_post.hook_scale": "what the norm behind the MLP divides by",
        "ln2_post.hook_normalized": "what it gives, without its weight",
        "hook_mlp_out": "what the MLP, or the mixture of experts, writes",
        "ln_attn.hook_scale": "what the norm before a shared block's attention divides by",
        "ln_attn.hook_normalized": "what that attention reads: stream and embedding, without the norm's weight",
        "ln_mlp.hook_scale": "what the norm before a shared block's MLP divides by",
        "ln_mlp.hook_normalized": "what that MLP reads, without the norm's weight",
        "hook_shared_out": "what a shared block adds to the input of the layer's mixer",
        "hook_resid_post": "the residual stream that leaves the layer",
    },
    "Attention: `blocks.L.attn.`": {
        "hook_q": "queries, before norm and rotary",
        "hook_gate": "the output gate, a sigmoid",
        "hook_kv_latent": "the latent that keys and values are made of",
        "hook_k_shared": "the part of a key that all heads share",
        "hook_k": "keys of the new tokens, before norm and rotary, by key/value head",
        "hook_v": "values of the new tokens, by key/value head",
        "hook_q_normed": "queries behind their norm",
        "hook_k_normed": "keys behind their norm",
        "hook_rot_q": "queries, rotary embedding applied",
        "hook_rot_k": "keys, rotary embedding applied",
        "hook_attn_scores": "scores, scaled, capped and masked, before the softmax",
        "hook_pattern": "attention weights, behind the softmax",
        "hook_z": "weights times values, by query head",
        "hook_z_gated": "the same behind the output gate",
        "hook_result": "what each head writes to the stream",
    },
    "Recurrences: `blocks.L.ssm.`": {
        "hook_input_gate": "what the input is multiplied by: RG-LRU's i, LFM2's B",
        "hook_recurrence_gate": "RG-LRU's r, which moves the decay",
        "hook_in": "what enters the convolution",
        "hook_conv": "what leaves it, behind its activation where the family has one",
        "hook_v": "what is written: Mamba-2's x, the delta rule's v; of LFM2 the value that its gates multiply",
        "hook_k": "where it is written: Mamba-2's B; the delta rule's key, a unit vector",
        "hook_q": "where it is read: Mamba-2's C; the delta rule's query, scaled",
        "hook_dt": "step sizes, behind the softplus and within their limits",
        "hook_B": "Mamba's B, behind its norm where it has one; in Zamba a head's",
        "hook_C": "Mamba's C, likewise",
        "hook_beta": "the delta rule's strength of writing",
        "hook_decay": "what the state before is multiplied by",
        "hook_recall": "what the decayed state gives at the key, and the delta rule takes away",
        "hook_write": "what is added to the state; an edit goes on to all later states",
        "hook_state": "the state after each token; an edited entry is read out there and goes on from there",
        "hook_y": "what is read out of the state, before norm and gate, with what passes it by",
        "hook_gate": "the output gate, behind its activation if it has one",
        "hook_normed": "the readout behind gate and norm, which the output projection reads",
        "hook_result": "what each recurrent head writes to the stream",
        "hook_pattern": "hidden attention: what each readout takes from each earlier write",
    },
    "MLPs: `blocks.L.mlp.`": {
        "hook_pre": "what the activation reads",
        "hook_pre_linear": "the linear branch, where there is a gate",
        "hook_post": "their product, or the activation, which the output projection reads",
        "hook_router_logits": "the router's logits",
        "hook_expert_weights": "the weights of the experts chosen",
        "hook_expert_indices": "which experts those are; an edit sends tokens to others",
        "hook_shared_out": "what the experts that all tokens use write",
    },
}
START = {"attn": "Attention: `blocks.L.attn.`", "ssm": "Recurrences: `blocks.L.ssm.`", "mlp": "MLPs: `blocks.L.mlp.`"}
"""The table of a point inside a part of a layer."""


class Kind(NamedTuple):
    """What a point is in some families: its axis letters, and whether it is lazy and read-only."""

    axes: tuple[str, ...]
    lazy: bool
    read_only: bool


Found = Mapping[tuple[str, str], Mapping[Kind, list[str]]]
"""(table, name) → kind → families."""


def found() -> Found:
    """What the families' small models have."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from models import ROWS, make  # type: ignore[import-not-found]

    from hybridlens import HybridLens

    points: dict[tuple[str, str], dict[Kind, list[str]]] = {}
    for family in ROWS:
        for name, spec in HybridLens(make(family)).hook_points.items():
            families = points.setdefault(place(name), {}).setdefault(
                Kind(tuple(spec.axes), spec.lazy, spec.read_only), []
            )
            if family not in families:
                families.append(family)
    return points


def place(name: str) -> tuple[str, str]:
    """The table that a point stands in, and its name there."""
    inside = re.sub(r"^blocks\.\d+\.", "", name)
    if inside == name:
        return next(iter(MEANINGS)), name
    part, _, point = inside.partition(".")
    return (START[part], point) if part in START else (list(MEANINGS)[1], inside)


def check(points: Found) -> None:
    """Every point has a meaning, and every meaning a point.

    Raises:
        ValueError: which has none.
    """
    said = {(table, name) for table, names in MEANINGS.items() for name in names}
    if lacking := sorted(set(points) - said):
        raise ValueError(f"docs/make/hook_tables.py says not what {lacking[0][1]!r} means ({lacking[0][0]})")
    if unknown := sorted(said - set(points)):
        raise ValueError(f"no family has {unknown[0][1]!r} ({unknown[0][0]}), of which docs/make/hook_tables.py speaks")


def tables(points: Found | None = None) -> str:
    """All tables, as Markdown.

    Raises:
        ValueError: see `check`.
    """
    from hybridlens.shapes import AXES

    points = found() if points is None else points
    check(points)
    every = {family for kinds in points.values() for families in kinds.values() for family in families}
    parts: list[str] = []
    for table, names in MEANINGS.items():
        rows = ["| name | shape | meaning | families |", "| --- | --- | --- | --- |"]
        for name, meaning in names.items():
            kinds = points[table, name]
            for kind, families in kinds.items():
                shape = "[" + ", ".join(AXES[axis] for axis in kind.axes) + "]"
                marks = (" *only when asked for*" if kind.lazy else "") + (" *read-only*" if kind.read_only else "")
                cells = (f"`{name}`", shape + marks, meaning, counted(families, every))
                rows.append(f"| {' | '.join(cells)} |")
        parts += [f"### {table}", "\n".join(rows)]
    return "\n\n".join(parts)


def counted(families: list[str], every: set[str]) -> str:
    """Families in few words: all of them, all but a few, or their names."""
    others = sorted(every - set(families))
    if not others:
        return "all"
    return f"all but {', '.join(others)}" if len(others) < min(7, len(families)) else ", ".join(families)
