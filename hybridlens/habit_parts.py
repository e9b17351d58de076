"""What users type from habit as names of norms, attention, MLPs and recurrences; see `hybridlens.habits`."""

from __future__ import annotations

from hybridlens.habits import HOOKS, RUNNING, STATES, TRACES, WEIGHTS, Habit

_WRITTEN = "what a part writes has its point on the layer"


def _theirs(path: str) -> Habit:
    return Habit(f"lens.model.layers[{path}", TRACES, "Hugging Face's module, under the family's own names")


_NO_BIAS = Habit("lens.blocks[2].ln1.w", WEIGHTS, "root-mean-square norms have a weight and no bias")

NORM = {
    "eps": Habit("lens.cfg.eps", RUNNING),
    "weight": Habit("lens.blocks[2].ln1.w", WEIGHTS, "an offset of 1 included"),
    "b": _NO_BIAS,
    "bias": _NO_BIAS,
}
"""Names asked of a norm."""

ATTENTION = {
    **{name: _theirs(f"2].self_attn.{name}_proj") for name in ("q", "k", "v", "o")},
    **{f"{name}_proj": _theirs(f"2].self_attn.{name}_proj") for name in ("q", "k", "v", "o")},
    "W_QKV": Habit("lens.blocks[2].attn.W_Q", WEIGHTS, "W_K and W_V beside it"),
    "qkv": _theirs("2].self_attn.q_proj"),
    "OV": Habit("lens.OV[lens.attn_layers.index(2)]", WEIGHTS),
    "QK": Habit("lens.QK[lens.attn_layers.index(2)]", WEIGHTS),
    "mask": Habit("lens.blocks[2].attn.hook_attn_scores", HOOKS, "-inf where a query sees nothing"),
    "hook_in": Habit("lens.blocks[2].ln1.hook_normalized", HOOKS, "before the norm's weight"),
    "hook_out": Habit("lens.blocks[2].hook_attn_out", HOOKS, _WRITTEN),
    "hook_attn_out": Habit("lens.blocks[2].hook_attn_out", HOOKS, _WRITTEN),
}
"""Names asked of attention."""

MLP = {
    **{f"{name}_proj": _theirs(f"2].feed_forward.{name}_proj") for name in ("gate", "up", "down")},
    "act_fn": Habit("lens.cfg.act_fn", WEIGHTS, "its name"),
    "fc1": _theirs("2].feed_forward.up_proj"),
    "fc2": _theirs("2].feed_forward.down_proj"),
    "hook_pre": Habit("lens.blocks[2].mlp.hook_pre", HOOKS, "of a dense MLP; a mixture's experts have no points"),
    "hook_post": Habit("lens.blocks[2].mlp.hook_post", HOOKS, "of a dense MLP; a mixture's experts have no points"),
    "hook_pre_linear": Habit("lens.blocks[2].mlp.hook_pre_linear", HOOKS, "of a dense MLP with a gate"),
    "hook_in": Habit("lens.blocks[2].ln2.hook_normalized", HOOKS, "before the norm's weight"),
    "hook_out": Habit("lens.blocks[2].hook_mlp_out", HOOKS, _WRITTEN),
    "hook_mlp_out": Habit("lens.blocks[2].hook_mlp_out", HOOKS, _WRITTEN),
    "experts": _theirs("1].feed_forward.experts"),
    "gate": _theirs("1].feed_forward.router"),
    "router": _theirs("1].feed_forward.router"),
}
"""Names asked of an MLP."""

RECURRENCE = {
    **{name: _theirs(f"1].mamba.{name}") for name in ("in_proj", "x_proj", "dt_proj", "out_proj", "conv1d", "A_log")},
    "D": _theirs("1].mamba.D"),
    "A": Habit("lens.blocks[1].ssm.hook_decay", STATES, "exp(Δ A), what multiplies the state"),
    "W_delta": _theirs("1].mamba.dt_proj"),
    "hook_out": Habit("lens.blocks[1].hook_ssm_out", STATES, _WRITTEN),
    "hook_ssm_out": Habit("lens.blocks[1].hook_ssm_out", STATES, _WRITTEN),
    "hook_ssm_state": Habit("lens.blocks[1].ssm.hook_state", STATES),
    "hook_h": Habit("lens.blocks[1].ssm.hook_state", STATES, "of all positions"),
}
"""Names asked of a recurrence."""
