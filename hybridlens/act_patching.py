"""TransformerLens' activation patching on layers of any kind: its functions, over the layers that have what is patched.

``from hybridlens import act_patching as patching`` stands in the place of ``from transformer_lens import patching``:
the same names (`get_act_patch_resid_pre`, `get_act_patch_attn_head_out_all_pos`, …), arguments and numbers. What is
done to each activation is TransformerLens' own (`generic_activation_patch`); where it goes through all layers and stops
at the first without heads, this goes through those that have the point. Results keep one entry for every layer, NaN
where a layer has none, so that an index is a layer's number; where keys and values are shared, `_every` has NaN for the
heads beyond. Beside theirs there are `get_act_patch_ssm_out` and `get_act_patch_mixer_out`.

How it fails: a point that no layer has raises `InputError`, and so does the patching of direct paths, which needs
inputs of heads apart from each other (`analyses.patching` has paths between any parts).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from hybridlens.errors import AbsentError, InputError, closest
from hybridlens.peers import patching as theirs
from hybridlens.tokens import TokensLike
from hybridlens.weight_front import WeightFront

Metric = Callable[[Tensor], Any]

HEAD_TYPES = ("out", "q", "k", "v", "pattern")
"""What `_every` has of each head, in order."""
POINTS = {
    "z": "attn.hook_z",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "pattern": "attn.hook_pattern",
}
"""Hook points of the names that are no `hook_…` of the block itself."""


def __getattr__(name: str) -> Any:
    """One of TransformerLens' functions, over the layers that have what it patches."""
    if name.startswith("get_act_patch_direct_path"):
        raise InputError(
            f"{name} patches the inputs of single heads, which a lens has no points for; "
            "analyses.patching.paths.path_patch goes along paths between any heads and parts"
        )
    found = getattr(theirs, name, None) if name.startswith("get_act_patch") else None
    if not isinstance(found, partial):
        if hasattr(theirs, name) and not name.startswith("_"):
            raise AbsentError(
                f"hybridlens.act_patching has no {name}; type from transformer_lens.patching import {name}"
            )
        near = closest(name, [there for there in dir(theirs) if there.startswith("get_act_patch")])
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{near}")
    fixed: dict[str, Any] = cast(Any, found).keywords
    return partial(patched, fixed["activation_name"], tuple(fixed["index_axis_names"]), fixed["patch_setter"])


def patched(
    activation: str,
    axes: Sequence[str],
    setter: Callable[..., Any],
    lens: WeightFront,
    corrupted_tokens: TokensLike,
    clean_cache: Any,
    patching_metric: Metric,
    **options: Any,
) -> Any:
    """One sweep.

    Args:
        activation: TransformerLens' short name of what is patched.
        axes: what is gone through: layers first, then "pos", "head", "head_index", "dest_pos", "src_pos".
        setter: what puts a part of the clean activation into the corrupted one.
        lens: the model.
        corrupted_tokens: of the run that is patched.
        clean_cache: of the run that is patched in.
        patching_metric: from logits to a number, or to one for each row where there is one row, as the metrics of
            `analyses.patching` are.
        options: TransformerLens' own (`reduce`, `baseline`, `return_index_df`).

    Returns:
        the metric for each patch [layer …], NaN where a layer has nothing to patch; with options that have
        TransformerLens give anything but a tensor, what it gives, a row for each patch that was made.

    Raises:
        InputError: no layer has such a point.
    """
    import pandas as pd

    cfg, point = lens.network.cfg, POINTS.get(activation, f"hook_{activation}")
    layers = [layer for layer in range(cfg.n_layers) if f"blocks.{layer}.{point}" in lens.network.points]
    if not layers:
        raise InputError(f"no layer of this {cfg.family} model has {point}, so there is nothing to patch")
    tokens = lens.to_tokens(corrupted_tokens)
    pos = tokens.shape[1]

    def heads(layer: int) -> int:
        attention = cfg.attention(layer)
        return attention.n_kv_heads if activation in ("k", "v") else attention.n_heads

    def sizes(layer: int) -> list[int]:
        return [pos if axis.endswith("pos") else heads(layer) for axis in axes[1:]]

    def measured(logits: Tensor) -> Any:
        value = patching_metric(logits)
        return value.reshape(()) if isinstance(value, Tensor) and value.numel() == 1 else value

    index = [(layer, *rest) for layer in layers for rest in itertools.product(*map(range, sizes(layer)))]
    table = pd.DataFrame(index, columns=list(axes))
    found = theirs.generic_activation_patch(
        cast(Any, lens), tokens, clean_cache, measured, setter, activation, index_df=table, **options
    )
    if not isinstance(found, Tensor):
        return found
    full = found.new_full((cfg.n_layers, *(max(many) for many in zip(*map(sizes, layers), strict=True))), torch.nan)
    full[tuple(torch.tensor(index).T)] = found
    return full


def get_act_patch_ssm_out(lens: WeightFront, corrupted_tokens: TokensLike, clean_cache: Any, metric: Metric) -> Tensor:
    """What each recurrent layer writes, patched at each position [layer pos]; NaN for layers without a recurrence."""
    setter = theirs.layer_pos_patch_setter
    return patched("ssm_out", ("layer", "pos"), setter, lens, corrupted_tokens, clean_cache, metric)


def get_act_patch_mixer_out(
    lens: WeightFront, corrupted_tokens: TokensLike, clean_cache: Any, metric: Metric
) -> Tensor:
    """What each layer's mixers write, attention or recurrence, patched at each position [layer pos]."""
    setter = theirs.layer_pos_patch_setter
    return patched("mixer_out", ("layer", "pos"), setter, lens, corrupted_tokens, clean_cache, metric)


def get_act_patch_block_every(
    lens: WeightFront, corrupted_tokens: TokensLike, clean_cache: Any, metric: Metric
) -> Tensor:
    """The stream, attention's write and MLPs' write, patched at each position [kind layer pos]."""
    sweeps = ("get_act_patch_resid_pre", "get_act_patch_attn_out", "get_act_patch_mlp_out")
    return torch.stack([__getattr__(name)(lens, corrupted_tokens, clean_cache, metric) for name in sweeps])


def get_act_patch_attn_head_all_pos_every(
    lens: WeightFront, corrupted_tokens: TokensLike, clean_cache: Any, metric: Metric
) -> Tensor:
    """Each head's output, query, key, value and pattern, at all positions at once [kind layer head]."""
    return _every("all_pos", lens, corrupted_tokens, clean_cache, metric)


def get_act_patch_attn_head_by_pos_every(
    lens: WeightFront, corrupted_tokens: TokensLike, clean_cache: Any, metric: Metric
) -> Tensor:
    """Each head's output, query, key, value and pattern, position by position [kind layer pos head]."""
    return _every("by_pos", lens, corrupted_tokens, clean_cache, metric)


def _every(which: str, lens: WeightFront, tokens: TokensLike, clean_cache: Any, metric: Metric) -> Tensor:
    found: list[Tensor] = []
    for kind in HEAD_TYPES:
        one: Tensor = __getattr__(f"get_act_patch_attn_head_{kind}_{which}")(lens, tokens, clean_cache, metric)
        if kind == "pattern" and which == "by_pos":
            one = one.transpose(1, 2)
        found.append(one)
    heads = max(one.shape[-1] for one in found)
    return torch.stack([torch.nn.functional.pad(one, (0, heads - one.shape[-1]), value=torch.nan) for one in found])
