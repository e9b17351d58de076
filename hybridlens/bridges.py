"""The Hugging Face model inside a TransformerLens bridge.

A bridge puts modules of its own into the model that it opens: in the place of each layer, projection and norm stands a
component that holds the original. Here the model is put together again of the originals: every module that holds a
component, and no other, is copied without its weights, which stay the bridge's, and its components are exchanged for
what they hold. The bridge goes on as it was; hooks on it do not act in the other, and a weight that is changed in
place is changed in both.

How it fails: `CheckpointError` for what is no bridge, one whose model is not in this process, one whose weights were
processed (folded or centred, as in compatibility mode), which are not the model's any more, a bias put upon the
unembedding, and a module that a bridge has given another way of running.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from torch import nn

from hybridlens.errors import CheckpointError
from hybridlens.peers import GeneralizedComponent, TransformerBridge


class Unwrapped(NamedTuple):
    """What a bridge was made of."""

    hf_model: Any
    tokenizer: Any


def unwrapped(bridge: Any) -> Unwrapped:
    """The model that a bridge was made of, its weights shared, and the tokenizer.

    Raises:
        CheckpointError: see the module.
    """
    if not isinstance(bridge, TransformerBridge):
        raise CheckpointError(
            f"a {type(bridge).__name__} was given, expected a TransformerBridge of TransformerLens; HybridLens(model, "
            "tokenizer) opens a Hugging Face model"
        )
    if getattr(bridge, "compatibility_mode", False) or getattr(bridge, "_weights_processed", False):
        raise CheckpointError(
            "the bridge's weights were processed (compatibility mode, folded norms, centred weights), so they are not "
            "the model's; give a bridge as boot_transformers makes it"
        )
    try:
        model = bridge.original_model
    except AttributeError as error:
        raise CheckpointError(f"the bridge holds no model of this process: {error}") from error
    made = _original(model, {})
    _unbiased(made)
    return Unwrapped(made, bridge.tokenizer)


def _unbiased(model: Any) -> None:
    """Take the bias of zeros off the unembedding that a bridge puts upon it, in this copy alone.

    Raises:
        CheckpointError: it is not of zeros any more.
    """
    head: nn.Module = model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    if bias is None:
        return
    if bool(bias.detach().any()):
        raise CheckpointError(
            "the bridge's unembedding was given a bias (b_U), which the model has not; set it to zeros"
        )
    plain = _copied(head, cast(dict[str, nn.Module | None], head.__dict__["_modules"]))
    plain.__dict__["_parameters"] = {**head.__dict__["_parameters"], "bias": None}
    plain.__dict__["_buffers"] = {name: held for name, held in head.__dict__["_buffers"].items() if name != "bias"}
    model.set_output_embeddings(plain)


def _copied(module: nn.Module, parts: dict[str, nn.Module | None]) -> nn.Module:
    """A module with other parts, and otherwise the very same weights, buffers and hooks."""
    copied: nn.Module = type(module).__new__(type(module))
    copied.__dict__.update(module.__dict__)
    copied.__dict__["_modules"] = parts
    return copied


def _original(module: nn.Module, made: dict[int, nn.Module]) -> nn.Module | None:
    """The module without components in it: itself where there were none; None for a place that the model leaves empty.

    Args:
        module: of the bridge's model.
        made: modules that were gone through before, by their identity.
    """
    if isinstance(module, GeneralizedComponent):
        held = module.original_component
        return None if held is None else _original(held, made)
    if id(module) in made:
        return made[id(module)]
    own = cast(dict[str, nn.Module | None], module.__dict__["_modules"])
    parts = {name: None if part is None else _original(part, made) for name, part in own.items()}
    if "forward" in module.__dict__ and "_hf_hook" not in module.__dict__:
        raise CheckpointError(f"the bridge runs a {type(module).__name__} in its own way; open the model by itself")
    if all(part is own[name] for name, part in parts.items()):
        made[id(module)] = module
        return module
    made[id(module)] = _copied(module, parts)
    return made[id(module)]
