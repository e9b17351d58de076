"""The ready sweeps: every place of one kind, by layer and what else it has, under one name each.

`SWEEPS` lists them: residual streams, outputs of mixers and MLPs, and what recurrences hold, by position; what
attention's heads hold, by head; router logits, by expert.

``z_by_position`` and the like go over heads and positions; where a recurrence has heads, ``write_by_head`` and the like
go over those and positions, and where it has channels, ``write_by_channel`` and the like over positions and blocks of
channels. A sweep goes over the layers that have both its hook point and its axes.

An expert's weight is patched as its router logit, at all positions. `hook_expert_weights` is ordered by rank, so that
an entry of it belongs to no one expert. The model sees only differences of router logits: where the two runs' logits
differ by the same amount for all experts, patching one of them alone moves its weight all the same.

How it fails: a model without what a sweep is of (experts, say) raises one line that names the sweeps it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, overload

from analyses.experiment.per_prompt import PerPrompt, Prompts
from analyses.patching.metrics import MetricLike
from analyses.patching.results import PatchResult
from analyses.patching.running import activation_patch
from hybridlens.display import Displayed
from hybridlens.errors import UnknownNameError
from hybridlens.model import HybridLens
from hybridlens.shapes import AXES
from hybridlens.tokens import TokensLike


@dataclass(frozen=True)
class Sweep(Displayed):
    """One kind of place, in every layer that has it.

    Attributes:
        name: what it is called.
        point: the hook point, without the layer.
        over: axes that are gone over besides layers.
        words: what it shows, for reports.
    """

    name: str
    point: str
    over: tuple[str, ...]
    words: str

    def summary(self) -> str:
        """What it goes over."""
        axes = "".join(f" × {AXES[letter]}" for letter in self.over)
        return f"{self.name}: {self.words} ({self.point}, layer{axes})"

    def hooks(self, lens: HybridLens) -> list[str]:
        """The hook points of a model that have its axes; none where it lacks them."""
        specs = (lens.hook_points.get(f"blocks.{layer}.{self.point}") for layer in range(lens.cfg.n_layers))
        return [spec.name for spec in specs if spec is not None and set(self.over) <= set(spec.axes)]


_OF_HEADS = {
    "q": ("hook_q", "h", "queries"),
    "k": ("hook_k", "g", "keys"),
    "v": ("hook_v", "g", "values"),
    "z": ("hook_z", "h", "outputs of heads"),
    "pattern": ("hook_pattern", "h", "attention patterns"),
    "q_normed": ("hook_q_normed", "h", "queries after their norm"),
    "k_normed": ("hook_k_normed", "g", "keys after their norm"),
    "attn_gate": ("hook_gate", "h", "output gates of heads"),
    "z_gated": ("hook_z_gated", "h", "gated outputs of heads"),
}
"""Sweep -> point of attention, the axis of its heads, words."""

_RECURRENT = {
    "write": ("hook_write", "cs", "what is written into recurrent states"),
    "state": ("hook_state", "cs", "recurrent states"),
    "decay": ("hook_decay", "cs", "what recurrent states are multiplied by"),
    "conv": ("hook_conv", "c", "what leaves the recurrent layers' convolution"),
    "gate": ("hook_gate", "c", "the recurrent layers' output gate"),
    "y": ("hook_y", "cs", "what is read out of recurrent states"),
    "dt": ("hook_dt", "cs", "the recurrent layers' step sizes"),
    "ssm_v": ("hook_v", "s", "the values that are written into recurrent states"),
    "ssm_k": ("hook_k", "s", "where recurrent states are written"),
    "ssm_q": ("hook_q", "s", "where recurrent states are read"),
    "beta": ("hook_beta", "s", "how strongly recurrent states are written"),
    "recall": ("hook_recall", "s", "what recurrent states held where they are written"),
}
"""Sweep -> point of a recurrence, the axes of its parts (channels or heads, by the kind of state), words."""


def _listed() -> list[Sweep]:
    out = [
        Sweep("resid_pre", "hook_resid_pre", ("p",), "residual stream entering a layer"),
        Sweep("resid_mid", "hook_resid_mid", ("p",), "residual stream between mixer and MLP"),
        Sweep("resid_post", "hook_resid_post", ("p",), "residual stream leaving a layer"),
        Sweep("mixer_out", "hook_mixer_out", ("p",), "what attention or recurrence writes"),
        Sweep("attn_out", "hook_attn_out", ("p",), "what attention writes"),
        Sweep("ssm_out", "hook_ssm_out", ("p",), "what recurrent layers write"),
        Sweep("mlp_out", "hook_mlp_out", ("p",), "what MLPs write"),
    ]
    for name, (point, axis, words) in _OF_HEADS.items():
        out.append(Sweep(name, f"attn.{point}", (axis,), words))
        out.append(Sweep(f"{name}_by_position", f"attn.{point}", (axis, "p"), f"{words}, by position"))
    for name, (point, axes, words) in _RECURRENT.items():
        out.append(Sweep(name, f"ssm.{point}", ("p",), words))
        if "c" in axes:
            out.append(Sweep(f"{name}_by_channel", f"ssm.{point}", ("p", "c"), f"{words}, by block of channels"))
        if "s" in axes:
            out.append(Sweep(f"{name}_by_head", f"ssm.{point}", ("s", "p"), f"{words}, by recurrent head"))
    out.append(Sweep("router", "mlp.hook_router_logits", ("x",), "router logits of experts"))
    out.append(Sweep("shared_out", "mlp.hook_shared_out", ("p",), "what the expert that all tokens go to writes"))
    return out


SWEEPS: dict[str, Sweep] = {sweep.name: sweep for sweep in _listed()}
"""The ready sweeps by name."""


def sweep_of(lens: HybridLens, name: str) -> Sweep:
    """A sweep that a model has the hook points for.

    Raises:
        UnknownNameError: there is no such sweep, or the model has nothing of the kind.
    """
    if name in SWEEPS and SWEEPS[name].hooks(lens):
        return SWEEPS[name]
    has = ", ".join(known for known, sweep in SWEEPS.items() if sweep.hooks(lens))
    if name in SWEEPS:
        by = " and ".join(AXES[letter] for letter in SWEEPS[name].over)
        raise UnknownNameError(
            f"sweep {name!r} goes over {SWEEPS[name].point} by {by}, which this model lacks; it has {has}"
        )
    raise UnknownNameError(f"sweep {name!r} does not exist; this model has {has}")


@overload
def sweep(
    lens: HybridLens, name: str, clean: Prompts, corrupt: Any, metric: Any, **options: Any
) -> PerPrompt[PatchResult]: ...


@overload
def sweep(
    lens: HybridLens, name: str, clean: TokensLike, corrupt: TokensLike, metric: MetricLike, **options: Any
) -> PatchResult: ...


def sweep(
    lens: HybridLens, name: str, clean: Any, corrupt: Any, metric: Any, **options: Any
) -> PatchResult | PerPrompt[PatchResult]:
    """Run a ready sweep.

    Args:
        lens: the model.
        name: one of `SWEEPS`.
        clean: the prompt whose behaviour is explained, or a list of prompts, of which each has a result.
        corrupt: another of the same number of tokens; of a list, one for each.
        metric: what is measured; of a list, one for all or for each.
        options: `direction`, `batch_size`, `memory` and `skip_positions` of `activation_patch`.

    Raises:
        UnknownNameError: there is no such sweep, or the model has nothing of the kind.
        InputError: what `activation_patch` refuses.
    """
    wanted = sweep_of(lens, name)
    return activation_patch(lens, clean, corrupt, metric, wanted.hooks(lens), wanted.over, **options)
