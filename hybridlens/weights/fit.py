"""Whether a checkpoint's files hold what its configuration asks for, before any weight is read.

The files' names, shapes and dtypes are put through transformers' own loader with no memory behind them, so
that whatever it renames, joins or ties is judged by its rules, and what it would fill with random
numbers, or leave out, is found first.

How it fails: `CheckpointError` names the tensors that are missing, have no place, or are of another shape or kind of
number.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import transformers

from hybridlens.checkpoint_files import opening
from hybridlens.errors import CheckpointError, LeftOutWarning
from hybridlens.families.spec import Family
from hybridlens.weights.naming import Naming, in_files, written
from hybridlens.weights.sources import FileTensors, Stored

SHOWN = 3
"""Tensors that a message names; the others are counted."""

_COMPUTED = r"rotary_emb\.inv_freq$"
"""In old files; the model makes it of its configuration."""
_EXPERT = re.compile(r"^(.*\.experts)\.(\d+)\.(.+)$")


def check_fit(family: Family, config: Any, files: FileTensors) -> None:
    """Hold a checkpoint's files against its configuration.

    Raises:
        CheckpointError: a tensor is missing, surplus, of another shape, or no floating-point numbers; two that are
            to be tied differ; a file is missing or cannot be read.
    """
    stored = files.stored()
    for name, tensor in stored.items():
        tensor.check_kind(name)
    _check_experts(stored, files.source)
    model_class = getattr(transformers, family.architecture)
    held = {name: torch.empty(tensor.shape, device="meta") for name, tensor in stored.items()}
    with quietly(), opening(f"'{files.source}': the files do not fit config.json"):
        try:
            model, found = model_class.from_pretrained(
                None, config=config, state_dict=held, dtype=torch.float32, device_map={"": "meta"},
                ignore_mismatched_sizes=True, output_loading_info=True,
            )  # fmt: skip
        except RuntimeError as error:  # tensors that it joins do not fit each other; it does not say which
            _check_shapes(family, config, stored, files.source, error)
            raise
    if found["missing_keys"]:
        found = {**found, "missing_keys": _as_written(model, found["missing_keys"], stored)}
    naming = Naming(model, stored)  # the loader leaves some out without a word
    check_found(family, {**found, "unexpected_keys": naming.unused}, files.source)
    ties: Mapping[str, str] = getattr(model_class, "_tied_weights_keys", None) or {}
    for one, other in ties.items() if config.tie_word_embeddings else ():
        both = naming.stored(one), naming.stored(other)
        if both[0] in stored and both[1] in stored and not torch.equal(files.read(both[0]), files.read(both[1])):
            raise CheckpointError(
                f"'{files.source}': config.json ties {one} to {other} (tie_word_embeddings), but the files hold "
                "different numbers for them; set tie_word_embeddings to false or leave one out"
            )


def check_found(family: Family, found: Mapping[str, Any], source: str) -> None:
    """Refuse what transformers' loader reports (`output_loading_info`) when it is anything but nothing.

    Raises:
        CheckpointError: naming missing, surplus and wrongly shaped tensors.
    """
    if missing := sorted(found["missing_keys"]):
        raise CheckpointError(
            f"'{source}' holds no tensor {_listed(missing)}, which its configuration asks for; fetch it again, or mend "
            "config.json"
        )
    if wrong := sorted(found["mismatched_keys"]):
        name, has, asked = wrong[0]
        more = f" ({len(wrong) - 1} more are of other shapes)" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"'{source}': {name} has shape {list(has)}, but the configuration asks for {list(asked)}{more}"
        )
    surplus = [
        name
        for name in sorted(found["unexpected_keys"])
        if not any(re.search(spare, name) for spare in (*family.spare_tensors, _COMPUTED))
    ]
    if surplus:
        raise CheckpointError(
            f"'{source}' holds {_listed(surplus)}, for which its configuration has no place; it, or config.json, is of "
            "another model"
        )


def warn_of_spares(family: Family, files: FileTensors) -> None:
    """Say what a checkpoint holds beside the text model, and is left out."""
    spare = [name for name in files.names if any(re.search(pattern, name) for pattern in family.spare_tensors)]
    if spare:
        said = f"'{files.source}': left out, being no part of the text model: {_listed(sorted(spare))}"
        warnings.warn(said, LeftOutWarning, stacklevel=4)  # of the caller of `load`, behind its check


def meta_model(family: Family, config: Any, source: str) -> Any:
    """The model that a configuration describes, in evaluation mode, without memory for its weights.

    Raises:
        CheckpointError: transformers cannot make it.
    """
    with opening(f"'{source}': no model can be made as config.json says"), torch.device("meta"):
        return getattr(transformers, family.architecture)(config).eval()


def _check_shapes(family: Family, config: Any, stored: Mapping[str, Stored], source: str, error: RuntimeError) -> None:
    """Compare shapes with those of the files that the model itself would write."""
    for name, tensor in written(meta_model(family, config, source)).items():
        if name in stored and stored[name].shape != tuple(tensor.shape):
            has, asked = list(stored[name].shape), list(tensor.shape)
            raise CheckpointError(
                f"'{source}': {name} has shape {has}, but the configuration asks for {asked}"
            ) from error


def _as_written(model: Any, names: Iterable[str], stored: Mapping[str, Stored]) -> list[str]:
    """Tensors of the model that are missing, under the names that its files have for them."""
    found: list[str] = []
    for name in names:
        found += [part for part in in_files(model, name) if part not in stored] or [name]
    return found


def _check_experts(stored: Mapping[str, Stored], source: str) -> None:
    """Experts that the loader joins into one tensor in the order of their numbers, whatever those are."""
    groups: dict[tuple[str, str], dict[int, tuple[int, ...]]] = {}
    for name, tensor in stored.items():
        if match := _EXPERT.match(name):
            groups.setdefault((match[1], match[3]), {})[int(match[2])] = tensor.shape
    last: dict[str, int] = {}
    for (experts, _), shapes in groups.items():
        last[experts] = max(last.get(experts, 0), *shapes)
    for (experts, rest), shapes in groups.items():
        if gone := sorted(set(range(last[experts] + 1)) - set(shapes)):
            raise CheckpointError(
                f"'{source}' holds no tensor {experts}.{gone[0]}.{rest}, though it holds an expert {last[experts]}; "
                "fetch it again"
            )
        for expert, shape in shapes.items():
            if shape != shapes[0]:
                raise CheckpointError(
                    f"'{source}': {experts}.{expert}.{rest} has shape {list(shape)}, but that of expert 0 has "
                    f"{list(shapes[0])}"
                )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


@contextmanager
def quietly() -> Generator[None]:
    """Without transformers' own report and bars: what they say is said by us."""
    logging = cast(Any, transformers.logging)
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
