"""The ready sweeps: every place of one kind, by layer and what else it has, under one name each.

=========================================================  =====================================  ====================
names                                                      hook points                            layer ×
=========================================================  =====================================  ====================
resid_pre, resid_mid, resid_post                           hook_resid_pre, …                      position
mixer_out, attn_out, ssm_out, mlp_out                      hook_mixer_out, …                      position
q, z, pattern                                              attn.hook_q, …                         head
k, v                                                       attn.hook_k, attn.hook_v               shared head
write, state, decay, conv, gate                            ssm.hook_write, …                      position
router                                                     mlp.hook_router_logits                 expert
=========================================================  =====================================  ====================

``z_by_position`` and the like go over heads and positions, ``write_by_channel`` and the like over positions and blocks
of channels. `SWEEPS` lists all of them.

An expert's weight is patched as its router logit, at all positions. `hook_expert_weights` is ordered by rank, so that
an entry of it belongs to no one expert. The model sees only differences of router logits: where the two runs' logits
differ by the same amount for all experts, patching one of them alone moves its weight all the same.

How it fails: a model without what a sweep is of (experts, say) raises one line that names the sweeps it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from analyses.patching.metrics import MetricLike
from analyses.patching.results import PatchResult
from analyses.patching.running import activation_patch
from hybridlens.errors import UnknownNameError
from hybridlens.model import HybridLens
from hybridlens.tokens import TokensLike


@dataclass(frozen=True)
class Sweep:
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

    def hooks(self, lens: HybridLens) -> list[str]:
        """The hook points of a model; none where it lacks them."""
        names = (f"blocks.{layer}.{self.point}" for layer in range(lens.cfg.n_layers))
        return [name for name in names if name in lens.hook_dict]


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
    heads = {"q": ("h", "queries"), "k": ("g", "keys"), "v": ("g", "values")}
    heads |= {"z": ("h", "outputs of heads"), "pattern": ("h", "attention patterns")}
    for name, (axis, words) in heads.items():
        out.append(Sweep(name, f"attn.hook_{name}", (axis,), words))
        out.append(Sweep(f"{name}_by_position", f"attn.hook_{name}", (axis, "p"), f"{words}, by position"))
    recurrent = {
        "write": "what is written into recurrent states",
        "state": "recurrent states",
        "decay": "what recurrent states are multiplied by",
        "conv": "what leaves the recurrent layers' convolution",
        "gate": "the recurrent layers' output gate",
    }
    for name, words in recurrent.items():
        out.append(Sweep(name, f"ssm.hook_{name}", ("p",), words))
        out.append(Sweep(f"{name}_by_channel", f"ssm.hook_{name}", ("p", "c"), f"{words}, by block of channels"))
    out.append(Sweep("router", "mlp.hook_router_logits", ("x",), "router logits of experts"))
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
        raise UnknownNameError(f"sweep {name!r} goes over {SWEEPS[name].point}, which this model lacks; it has {has}")
    raise UnknownNameError(f"sweep {name!r} does not exist; this model has {has}")


def sweep(
    lens: HybridLens, name: str, clean: TokensLike, corrupt: TokensLike, metric: MetricLike, **options: Any
) -> PatchResult:
    """Run a ready sweep.

    Args:
        lens: the model.
        name: one of `SWEEPS`.
        clean: the prompt whose behaviour is explained.
        corrupt: another of the same number of tokens.
        metric: what is measured.
        options: `direction`, `batch_size`, `memory` and `skip_positions` of `activation_patch`.

    Raises:
        UnknownNameError: there is no such sweep, or the model has nothing of the kind.
        InputError: what `activation_patch` refuses.
    """
    wanted = sweep_of(lens, name)
    return activation_patch(lens, clean, corrupt, metric, wanted.hooks(lens), wanted.over, **options)
