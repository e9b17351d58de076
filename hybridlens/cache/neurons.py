"""What single neurons of dense MLPs, and single experts of mixtures, added to the stream.

A neuron adds its activation (``mlp.hook_post``) times a row of the MLP's last map; a norm behind the MLP is gone
through with its scale as it was. Along a few directions that is made without the [… neuron d_model] in between.

How it fails: a mixture's neurons are at no hook point, since each expert runs on its own tokens alone: they are
refused, and its experts are told apart instead. An adapter on the last map is gone through, at the price of the whole
map.
"""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlens.cache.held import Held, kept_axis, taken
from hybridlens.cache.scaling import Through
from hybridlens.devices import execution_device
from hybridlens.errors import InputError
from hybridlens.mlps import HookedMlp, Mixture
from hybridlens.peers import Slice
from hybridlens.writes import bias_points, expert_points, experts_add


def has_neurons(held: Held, layer: int) -> bool:
    """Whether a layer has a dense MLP that writes to the stream."""
    return isinstance(held.block(layer).parts.get("mlp"), HookedMlp)


def is_mixture(held: Held, layer: int) -> bool:
    """Whether a layer has a mixture of experts that writes to the stream."""
    return isinstance(held.block(layer).parts.get("mlp"), Mixture)


def check_neurons(held: Held, layer: int) -> HookedMlp:
    """The dense MLP of a layer.

    Raises:
        InputError: it has none, saying which layers have.
    """
    mlp = held.block(layer).parts.get("mlp")
    if isinstance(mlp, HookedMlp):
        return mlp
    layers = ", ".join(str(i) for i in range(held.n_layers) if has_neurons(held, i))
    has = f"layers {layers} have a dense MLP" if layers else "no layer has a dense MLP"
    if isinstance(mlp, Mixture):
        raise InputError(
            f"layer {layer} is a mixture of {mlp.cfg.n_experts} experts, whose neurons are at no hook point; {has}, "
            "and get_full_resid_decomposition tells experts apart"
        )
    raise InputError(f"layer {layer} has no MLP that writes to the stream; {has}")


def chosen_neurons(held: Held, layer: int, neurons: Slice) -> list[int]:
    """The numbers of the neurons of a layer that are meant.

    Raises:
        InputError: the layer has no such neurons.
    """
    every = torch.arange(check_neurons(held, layer).cfg.d_mlp)
    return taken(every, kept_axis(neurons), 0, f"neuron_slice (of layer {layer})").tolist()


def neuron_points(held: Held, layer: int) -> list[str]:
    """The hook points that hold what `added_by_neurons` needs."""
    points = ("mlp.hook_post", *bias_points(held.block(layer), "mlp"))
    return [f"blocks.{layer}.{point}" for point in points]


def added_by_neurons(
    held: Held, layer: int, neurons: Slice, pos: Slice, then: Through
) -> Float[Tensor, "batch pos neuron output"]:
    """What each of some neurons of a layer added at some positions.

    Args:
        held: the cache.
        layer: which.
        neurons: which neurons.
        pos: which positions.
        then: what is done to what they added.

    Raises:
        InputError: the layer has no neurons, or not these.
        NotCachedError: their activations were not kept.
    """
    mlp, block = check_neurons(held, layer), held.block(layer)
    numbers = torch.tensor(chosen_neurons(held, layer, neurons), dtype=torch.long)
    held.need(neuron_points(held, layer), "neurons")
    post = held.rows(f"blocks.{layer}.mlp.hook_post", pos)
    factors = post[..., numbers.to(post.device)]
    rows = mlp.parts.down.rows(numbers, mlp.cfg.d_mlp)
    after = block.branches[block.number_of("mlp") - 1].norm_after
    if after is not None:
        behind = Through(after, held.rows(neuron_points(held, layer)[1], pos))
        rows, factors = behind.rows(rows.float()), behind.over(factors.float())
    rows = then.rows(rows).to(factors.device)
    dtype = post.dtype if then.onto is None else torch.promote_types(post.dtype, then.onto.dtype)
    return (then.over(factors)[..., None] * rows).to(dtype)


def expert_labels(held: Held, layer: int) -> list[str]:
    """Of a mixture's experts, in order: ``L1E0``, …, and ``L1_shared_expert`` where all tokens go to one."""
    cfg = cast(Mixture, held.block(layer).parts["mlp"]).cfg
    labels = [f"L{layer}E{expert}" for expert in range(cfg.n_experts or 0)]
    return [*labels, f"L{layer}_shared_expert"] if cfg.shared_expert else labels


def added_by_experts(
    held: Held, layer: int, pos: Slice, then: Through
) -> tuple[Float[Tensor, "entry batch pos output"], list[str]]:
    """What each expert of a mixture added at some positions, 0 where a token was not sent to it, and the labels.

    Raises:
        NotCachedError: what it is computed from was not kept, saying what.
    """
    block, labels = held.block(layer), expert_labels(held, layer)
    names = {point: f"blocks.{layer}.{point}" for point in expert_points(block)}
    held.need(names.values(), f"experts of layer {layer}")
    seen = {point: held.rows(name, pos) for point, name in names.items()}
    home = execution_device(block.parts["mlp"], seen["hook_mlp_out"].device)
    out = seen["hook_mlp_out"]
    lead = out.shape[:2]
    width = out.shape[-1] if then.onto is None else then.onto.shape[-1]
    total = torch.zeros(len(labels), lead.numel(), width, device=out.device)
    for expert, tokens, one in experts_add(block, {point: value.to(home) for point, value in seen.items()}):
        place = len(labels) - 1 if expert is None else expert
        alone = torch.zeros(lead.numel(), one.shape[-1], device=out.device)
        alone[tokens if isinstance(tokens, slice) else tokens.to(out.device)] = one.to(out.device)
        total[place] = then(alone.unflatten(0, lead)).flatten(0, 1)
    return total.unflatten(1, lead), labels
