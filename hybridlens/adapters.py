"""Adapters of PEFT: where they are, on a model, merged into it, and what a lens cannot run.

An adapter is followed by running its layers, which PEFT puts into the model's places, or merged into the weights, by
PEFT itself; one of the two for all of it. What of PEFT is no layer in a place of the model (prompts of its own, layers
that are replicated, adapters that are switched on by what the prompt holds) would act only in part: it is refused.

How it fails: `CheckpointError` in one line: PEFT is missing, the files are, the kind of adapter is one of those, or its
files and the model do not have exactly each other's tensors, of which PEFT would put on a part.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, cast

from safetensors import safe_open
from torch import Tensor, nn

from hybridlens.boundary_words import shown
from hybridlens.checkpoint_files import INDEX, SINGLE, CheckpointFiles, is_here, opening
from hybridlens.errors import CheckpointError, InputError
from hybridlens.hub import CONFIG, is_hub_id

ADAPTER = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
NOWHERE = {"subfolder": ".no-adapter"}
"""``adapter_kwargs`` with which transformers finds no adapter beside a model; it would take it, or not, by itself."""

_WHOLE = ("XLORA", "POLY", "ADAPTION_PROMPT")
"""Kinds that do more than exchange layers for layers."""

_SHARED = ("vblora_vector_bank", "prompt_encoder")
"""What PEFT has in several places of a model and in one of a file."""


class Opened(NamedTuple):
    """What a name stands for: a model's files, and those of the adapter that goes on it."""

    model: CheckpointFiles
    adapter: CheckpointFiles | None


def found(
    held: CheckpointFiles, adapter: object, merge: bool, base: Callable[[str, str | None], CheckpointFiles]
) -> Opened:
    """The files of a model and of the adapter on it.

    Args:
        held: what was opened: a model, an adapter, or both in one folder.
        adapter: the folder or hub id of one to put on it; False for none; None for what lies there.
        merge: asked for with it.
        base: opens the model that an adapter names as its own, at the revision that it names.

    Raises:
        CheckpointError: there is none to merge, or its files cannot be used.
    """
    names = held.names()
    alone = CONFIG not in names or (ADAPTER in names and not any(map(_holds_model, names)))
    if adapter is False and not alone:
        there = None
    elif adapter is None or adapter is False:
        there = held if ADAPTER in names else None
    elif isinstance(adapter, (str, Path)) and (is_here(adapter) or is_hub_id(str(adapter))):
        there = CheckpointFiles(adapter)
    else:
        raise CheckpointError(f"adapter {shown(adapter)} given, expected a folder or hub id of one, or False for none")
    if there is None:
        if merge:
            raise CheckpointError(f"merge=True given, but '{held.source}' holds no adapter ({ADAPTER}); give adapter=")
        return Opened(held, None)
    settings = _settings(there)
    if there is not held or not alone:
        return Opened(held, there)
    if adapter is False:
        raise CheckpointError(f"'{held.source}' is an adapter alone; give its base model, or leave adapter=False out")
    named = settings.get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise CheckpointError(
            f"'{held.source}' is an adapter whose {ADAPTER} names no base model; give hl.load(base, adapter=…)"
        )
    if not (is_here(named) or is_hub_id(named)):
        raise CheckpointError(
            f"'{held.source}' is an adapter of '{named}', which is neither a folder here nor a hub id; give "
            "hl.load(base, adapter=…) with the folder that its base model is in now"
        )
    revision = settings.get("revision")
    if revision is not None and not isinstance(revision, str):
        raise CheckpointError(f"'{held.source}': {ADAPTER} has revision {shown(revision)}, expected a text or null")
    model = base(named, None if is_here(named) else revision or None)
    if CONFIG not in model.names():
        raise CheckpointError(
            f"'{held.source}' is an adapter of '{named}', which holds no model ({CONFIG}); give "
            "hl.load(base, adapter=…)"
        )
    return Opened(model, there)


def put_on(model: Any, files: CheckpointFiles, merge: bool) -> Any:
    """A model with an adapter on it, or in its weights: the same object, its layers or weights exchanged.

    Raises:
        CheckpointError: PEFT is missing, or the adapter cannot be put on this model, or not all of it, or not
            followed; or parts of the model are kept elsewhere (offloaded).
    """
    if find_spec("peft") is None:
        raise CheckpointError(
            f"'{files.source}' holds an adapter ({ADAPTER}), and PEFT, which runs it, is not installed; pip install "
            "peft, or give adapter=False for the model without it"
        )
    import peft

    if files.path(WEIGHTS) is None:
        raise _no_weights(files)
    if any(weight.is_meta for weight in model.parameters()):  # PEFT would move it all, and write its files anew
        raise CheckpointError(
            f"the adapter '{files.source}' cannot be put on a model that is kept elsewhere in part (offloaded); give "
            "more memory (max_memory), or save the merged model and give that"
        )
    _check_rows(model, files)
    with opening(f"the adapter '{files.source}' cannot be put on the model"):
        given: dict[str, Any] = {"model_id": str(files.folder), "adapter_name": "default", "torch_device": "cpu"}
        adapted: Any = peft.PeftModel.from_pretrained(model, **given, use_safetensors=True).eval()
        report: Any = adapted.load_adapter(**given)  # once more, for what it says of itself
    _check_kinds(adapted)
    _check_whole(files, adapted.peft_config["default"], report)
    if not merge:
        return without_wrapper(adapted)
    base = adapted.get_base_model()
    if base.config.tie_word_embeddings and _around(base.get_input_embeddings(), base.get_output_embeddings()):
        raise CheckpointError(
            f"the adapter '{files.source}' is on an embedding that is also the unembedding (tie_word_embeddings): "
            "merged into the one it would change the other; leave merge out, and it is followed"
        )
    with opening(f"the adapter '{files.source}' cannot be merged"):
        return adapted.merge_and_unload(safe_merge=True)


def _check_rows(model: Any, files: CheckpointFiles) -> None:
    """Refuse an adapter for a vocabulary of another size: its rows are not all in its file.

    Raises:
        CheckpointError: saying both sizes.
    """
    ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    rows = {f"base_model.model.{name}": len(part.weight) for name, part in model.named_modules() if id(part) in ends}
    with (
        opening(f"'{files.source}': {WEIGHTS} cannot be read"),
        safe_open(str(files.path(WEIGHTS)), framework="pt") as stream,
    ):
        for name in stream.keys():  # noqa: SIM118 (it is no mapping)
            has, asked = stream.get_slice(name).get_shape()[0], rows.get(name.removesuffix(".weight"))
            if asked not in (None, has):
                raise CheckpointError(
                    f"the adapter '{files.source}' is for a vocabulary of {has} tokens ({name}), and the model has "
                    f"{asked}; put it on yourself, model.resize_token_embeddings({has}) first, and give HybridLens the "
                    "PEFT model"
                )


def _check_whole(files: CheckpointFiles, config: Any, report: Any) -> None:
    """Refuse an adapter of which PEFT left something out, or made something up.

    Args:
        files: the adapter's.
        config: its settings, as PEFT has them.
        report: what PEFT says of its weights: those that the model has and the file has not, and the other way round.

    Raises:
        CheckpointError: naming the first.
    """
    unknown = [name for name, value in (files.json(ADAPTER) or {}).items() if value and not hasattr(config, name)]
    if unknown:
        raise CheckpointError(
            f"the adapter '{files.source}' has {unknown[0]} in its {ADAPTER}, which the PEFT here does not know; pip "
            "install -U peft"
        )
    lost = [name for name in report.missing_keys if not any(shared in name for shared in _SHARED)]
    for names, said in (
        (lost, f"holds no {{}}, which its {ADAPTER} asks for; it is damaged, or of another model"),
        (report.unexpected_keys, "holds {}, for which the model has no place; it is of another model"),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            name = min(names).removeprefix("base_model.model.").replace(".default", "")
            raise CheckpointError(f"the adapter '{files.source}' {said.format(name + more)}")


def without_wrapper(model: Any) -> Any:
    """The model with PEFT's layers in it that a PEFT model runs; any other as it is.

    Raises:
        CheckpointError: its adapter is more than layers in the model's places, or is on norms.
    """
    peft: Any = sys.modules.get("peft")
    if peft is None:
        return model
    if isinstance(model, peft.PeftModel):
        _check_kinds(model)
        model = model.get_base_model()
    for name, part in model.named_modules():
        if type(part).__name__ == "LNTuningLayer":  # which shows nothing of the norm inside, not even its epsilon
            raise CheckpointError(
                f"an adapter (LNTuningLayer) stands around {name}, a norm, which a lens reads and does not call; merge "
                "it (hl.load(…, merge=True) or model.merge_and_unload())"
            )
    return model


def _check_kinds(model: Any) -> None:
    """Refuse kinds of adapters of which a lens would run a part.

    Raises:
        CheckpointError: naming it.
    """
    for name, config in model.peft_config.items():
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        whole = config.is_prompt_learning or kind.upper() in _WHOLE
        marks = ("alora_invocation_tokens", "layer_replication")
        mark = next((mark for mark in marks if getattr(config, mark, None)), None)
        if whole or mark:
            said = f"with {mark}" if mark else "which is no layer in the model's places"
            raise CheckpointError(
                f"the adapter {shown(name)} is a {kind} {said}: a lens would run it in part; merge it where PEFT can "
                "(merge_and_unload) and open the merged model, or use one of LoRA's kind"
            )


def switches(model: nn.Module) -> str:
    """Which adapters of a model are on, and how strongly: it changes what it computes and no weight. Empty for none."""
    tuners: Any = sys.modules.get("peft.tuners.tuners_utils")
    if tuners is None:
        return ""
    kinds = (tuners.BaseTunerLayer, sys.modules["peft.utils.other"].AuxiliaryTrainingWrapper)
    layers: list[Any] = [part for part in model.modules() if isinstance(part, kinds)]
    marks = ("active_adapters", "disable_adapters", "merged", "scaling")
    return ";".join(" ".join(str(getattr(layer, mark, "")) for mark in marks) for layer in layers)


def check_places(model: nn.Module, called: Callable[[nn.Module], bool]) -> None:
    """Refuse adapters around modules whose weights a lens reads without calling them.

    Args:
        model: with or without adapters.
        called: whether a lens calls a module as it stands there, or reads its weight as `effective` gives it; linear
            maps and embeddings are found anew at each call.

    Raises:
        InputError: naming the first.
    """
    tuners: Any = sys.modules.get("peft.tuners.tuners_utils")
    if tuners is None:
        return
    other: Any = sys.modules["peft.utils.other"]
    passed = "."
    for name, part in model.named_modules():
        layer: Any = part
        if name.startswith(passed) or not isinstance(part, (tuners.BaseTunerLayer, other.AuxiliaryTrainingWrapper)):
            continue
        inside, idle = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer.original_module, False
        if isinstance(part, tuners.BaseTunerLayer):
            idle = bool(layer.merged) is not bool(layer.disable_adapters)
        if not (idle or called(part) or isinstance(inside, (nn.Linear, nn.Embedding))):
            raise InputError(
                f"an adapter ({type(part).__name__}) stands around {name}, a {type(inside).__name__}, which this lens "
                "does not call as a whole; open the model anew with HybridLens, or merge it (hl.load(…, merge=True) or "
                "model.merge_and_unload())"
            )
        passed = f"{name}."


def effective(module: nn.Module) -> Tensor:
    """The weight that a module computes with, what adapters of single parameters add to it included.

    Raises:
        InputError: an adapter of another kind stands around it, or one that is merged and switched off.
    """
    layers: Any = sys.modules.get("peft.tuners.lora.layer")
    added: list[Tensor] = []
    held: Any = module
    while layers is not None and isinstance(held, layers.ParamWrapper):
        if held.merged and held.disable_adapters:
            raise InputError("an adapter is merged and switched off; unmerge it (model.unmerge_adapter())")
        if not held.merged and not held.disable_adapters and held.parameter_name == "weight":
            added += [held.get_delta_weight(one) for one in held.active_adapters if one in held.lora_A]
        held = held.base_layer
    weight = cast(Tensor, held.weight)
    for more in added:
        weight = weight + more.to(weight.dtype)
    return weight


def _around(*modules: nn.Module) -> bool:
    """Whether an adapter stands around one of the modules."""
    tuners: Any = sys.modules["peft.tuners.tuners_utils"]
    return any(isinstance(module, tuners.BaseTunerLayer) for module in modules)


def _holds_model(name: str) -> bool:
    """Whether a file is of a model's weights; some trainers leave the model's config.json beside an adapter alone."""
    return name in (SINGLE, INDEX) or name.startswith("pytorch_model")


def _settings(files: CheckpointFiles) -> dict[str, Any]:
    settings = files.json(ADAPTER)
    if settings is None:
        raise CheckpointError(f"'{files.source}' holds no adapter ({ADAPTER})")
    if WEIGHTS not in files.names():
        raise _no_weights(files)
    return settings


def _no_weights(files: CheckpointFiles) -> CheckpointError:
    pickles = [name for name in files.names() if name.startswith("adapter_model.") and name != WEIGHTS]
    said = f"pickled adapter weights ({pickles[0]}), which can run code when they are read" if pickles else "no weights"
    return CheckpointError(
        f"'{files.source}' holds an adapter ({ADAPTER}) and {said}, expected {WEIGHTS}; save it anew with PEFT's "
        "save_pretrained, or give adapter=False for the model without it"
    )
