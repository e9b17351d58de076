"""The weights of a checkpoint with a LoRA adapter in them, read from both sets of files; no model is made.

W + scale · B · A (Hu et al. 2021, "LoRA", arXiv 2106.09685, section 4.1), scale = α / r, or α / √r where the adapter is
rank-stabilised (Kalajdzievski 2023, arXiv 2312.03732): what PEFT's ``merge_and_unload`` makes of the model.

How it fails: `CheckpointError` for any other kind of adapter (DoRA, biases, whole modules that were saved with it),
naming the setting or the tensor: half of one is never read.
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from hybridlens.adapters import ADAPTER, WEIGHTS
from hybridlens.checkpoint_files import CheckpointFiles, opening
from hybridlens.errors import CheckpointError
from hybridlens.projections import floating
from hybridlens.weights.finite import is_finite
from hybridlens.weights.sources import Tensors

_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_PLAIN = {
    "peft_type": ("LORA",), "use_dora": (False, None), "bias": ("none", None), "lora_bias": (False, None),
    "modules_to_save": (None, []), "fan_in_fan_out": (False, None), "layer_replication": (None,),
    "target_parameters": (None, []), "trainable_token_indices": (None, {}), "alora_invocation_tokens": (None,),
    "use_qalora": (False, None), "use_bdlora": (None,), "velora_config": (None,), "monteclora_config": (None,),
    "arrow_config": (None,), "kasa_config": (None,),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),  # others change the base's weights
}  # fmt: skip
"""Settings under which an adapter is two matrices a module, and what they then are."""


_ASIDE = (
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "lora_dropout", "task_type", "inference_mode", "revision",
    "base_model_name_or_path", "auto_mapping", "peft_version", "megatron_config", "megatron_core", "loftq_config",
    "eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "ensure_weight_tying", "runtime_config",
)  # fmt: skip
"""Settings that are read here, or say how an adapter was trained."""


class _Pair(NamedTuple):
    A: Tensor
    """[rank d_in], float32."""
    B: Tensor
    """[d_out rank], times the scale."""


class MergedTensors:
    """The weights of a model's files with those of an adapter added.

    Args:
        base: the model's.
        files: the adapter's.
        model: whose weights they are, itself without any.

    Raises:
        CheckpointError: it is not LoRA's two matrices alone, or fits another model.
    """

    def __init__(self, base: Tensors, files: CheckpointFiles, model: Any) -> None:
        self.base, self.source = base, files.source
        settings: dict[str, Any] = files.json(ADAPTER) or {}
        for name, plain in _PLAIN.items():
            if name in settings and settings[name] not in plain:
                raise CheckpointError(
                    f"the adapter '{self.source}' has {name} {settings[name]!r}, which cannot be read as weights; open "
                    "the model with hl.load(…, merge=True), whose lens has them"
                )
        if unknown := [name for name, value in settings.items() if value and name not in {*_PLAIN, *_ASIDE}]:
            raise CheckpointError(
                f"the adapter '{self.source}' has {unknown[0]} {settings[unknown[0]]!r:.80}, of which nothing is known "
                "here; open the model with hl.load(…, merge=True), whose lens has the weights if PEFT knows it"
            )
        self._pairs = self._read(files, settings, set(model.state_dict()))
        for name, _ in model.named_modules():
            if targeted(settings, name) and f"{name}.weight" not in self._pairs:
                raise CheckpointError(
                    f"the adapter '{self.source}' holds no matrices for {name}, which its {ADAPTER} names; it is "
                    "damaged, or of another model"
                )
        ties: dict[str, str] = getattr(model, "_tied_weights_keys", None) or {}
        tied = [name for pair in ties.items() for name in pair if name in self._pairs]
        if tied and model.config.tie_word_embeddings:
            raise CheckpointError(
                f"the adapter '{self.source}' is on {tied[0]}, which is the embedding and the unembedding: merged into "
                "the one it would change the other; open the model with hl.load, which follows it"
            )

    def _read(self, files: CheckpointFiles, settings: dict[str, Any], own: set[str]) -> dict[str, _Pair]:
        held: dict[str, dict[str, Tensor]] = {}
        with (
            opening(f"'{self.source}': {WEIGHTS} cannot be read"),
            safe_open(str(files.path(WEIGHTS)), framework="pt") as stream,
        ):
            for name in stream.keys():  # noqa: SIM118 (it is no mapping)
                match = _NAME.fullmatch(name)
                weight = f"{match['module']}.weight" if match else name
                if match is None or weight not in own or not self.base.has(weight):
                    raise CheckpointError(
                        f"the adapter '{self.source}' holds {name}, for which the model has no place as a matrix; open "
                        "the model with hl.load(…, merge=True), whose lens has the weights if it fits"
                    )
                tensor = floating(name, stream.get_tensor(name)).float()
                if not is_finite(tensor):
                    raise CheckpointError(
                        f"the adapter '{self.source}': {name} holds numbers that are infinite or none; fetch it again"
                    )
                held.setdefault(match["module"], {})[match["side"]] = tensor
        pairs: dict[str, _Pair] = {}
        for module, sides in held.items():
            shape = self.base.shape(f"{module}.weight")
            if set(sides) != {"A", "B"} or (sides["B"].shape[0], sides["A"].shape[1]) != shape:
                raise CheckpointError(
                    f"the adapter '{self.source}' does not fit {module}.weight of shape {list(shape)}"
                )
            pairs[f"{module}.weight"] = _Pair(sides["A"], sides["B"] * _scale(settings, module, len(sides["A"])))
        return pairs

    def has(self, name: str) -> bool:
        """See `Tensors`."""
        return self.base.has(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Tensors`."""
        return self.base.shape(name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """See `Tensors`; in float32 where the adapter adds to it."""
        tensor, pair = self.base.read(name, start, stop), self._pairs.get(name)
        return tensor if pair is None else torch.addmm(tensor.float(), pair.B[start:stop], pair.A)


def _scale(settings: dict[str, Any], module: str, rank: int) -> float:
    """What a module's B · A is multiplied by: its α may be its own."""
    alpha: Any = settings.get("lora_alpha", 8)
    patterns: dict[str, Any] = settings.get("alpha_pattern") or {}
    for pattern, own in patterns.items():  # as PEFT matches them, the first that fits
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = own
            break
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def targeted(settings: dict[str, Any], module: str) -> bool:
    """Whether an adapter is for a module, as PEFT matches names to its settings."""
    targets: Any = settings.get("target_modules") or ()
    if _named(settings.get("exclude_modules") or (), module) or not _named(targets, module):
        return False
    layers: Any = settings.get("layers_to_transform")
    if layers in (None, []) or isinstance(targets, str) or module in targets:
        return True
    patterns: Any = settings.get("layers_pattern") or r"[^.]*"
    patterns = [patterns] if isinstance(patterns, str) else patterns
    found = (re.match(rf"(?:.*?\.)?{pattern}\.(\d+)\.", module) for pattern in patterns)
    number = next((int(match[1]) for match in found if match), None)
    return number in layers if isinstance(layers, list) else number == layers


def _named(names: Any, module: str) -> bool:
    """Whether a pattern of the whole name, or a list of its last parts, is of a module."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)
