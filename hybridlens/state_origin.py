"""Of which model a state is: its architecture in one line, and whether another model may go on from it.

How it fails: a state that does not fit raises `InputError` with one line: what it is of, what the model is, how to mend
it. Two models of one architecture are told apart by their weights (`fingerprint`), where both are known.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hybridlens.config import LensConfig
from hybridlens.errors import InputError
from hybridlens.state import HybridState


def signature(cfg: LensConfig) -> str:
    """The architecture in one line: whose states fit whom.

    For the families of hybridlens 0.1.0 it is what that version wrote.
    """
    shapes = {"x".join(map(str, r.state_shape[1:])) or str(len(r.state_shape)) for r in cfg.recurrences} or {"0"}
    wide = (r.d_conv_channels if len(r.state_shape) > 2 and r.d_conv else r.d_channels for r in cfg.recurrences)
    channels = {str(width) for width in wide} or {"0"}
    windows = sorted({str(window) for window in cfg.windows}) or [str(cfg.window)]
    latents = {f"latent{a.latent.d_latent}+{a.latent.d_shared}" for a in cfg.attentions if a.latent is not None}
    kinds = [kind[0] for kind in cfg.layer_types]
    for layer, window in enumerate(cfg.windows):
        kinds[layer] = "w" if window is not None else kinds[layer]
    return (
        f"{cfg.family}:{cfg.n_layers}x{cfg.d_model}:{cfg.n_kv_heads}x{cfg.d_head}{''.join(sorted(latents))}"
        f":{'/'.join(sorted(channels))}x{'/'.join(sorted(shapes))}x{cfg.d_conv}:{'/'.join(windows)}:" + "".join(kinds)
    )


def check_state(
    state: HybridState, batch: int, model: str, weights: str, dtype: torch.dtype, devices: Sequence[torch.device]
) -> None:
    """Refuse a state that a pass cannot go on from.

    Args:
        state: what was read before.
        batch: rows of tokens that are to be read.
        model: the `signature` of the model that is to read them.
        weights: the fingerprint of its weights; empty where it is not known.
        dtype: of its weights.
        devices: where each layer computes.

    Raises:
        InputError: a state of another model, of other weights or another number of rows, or whose tensors are not of
            the model's dtype or not where its layers compute.
    """
    if state.model != model:
        raise InputError(f"the state is of a model {state.model}, but this model is {model}")
    if state.weights and weights and state.weights != weights:
        raise InputError(
            "the state was made by other weights than the model has now; read the prompt again with this model"
        )
    if state.batch != batch:
        raise InputError(f"the state holds {state.batch} rows, but {batch} rows of tokens were given")
    for held, device in zip(state.layers, devices, strict=True):
        for memory in held.values():
            name, tensor = next(iter(memory.tensors().items()))  # keys, the convolution's inputs, or a state alone
            held_as = torch.float32 if name == "recurrent" else dtype
            if (tensor.dtype, tensor.device) != (held_as, device):
                raise InputError(
                    f"the state is {tensor.dtype} on {tensor.device}, but the model is {dtype} on "
                    f"{device}; read the prompt again with this model, or move the state with state.to(lens)"
                )
