"""Where accelerate is to put a model that `load` opens with a device_map, and where it put it.

What fits nowhere else it leaves on the disk, in the checkpoint's own files where they hold weights as the model has
them, else in a folder that has to be given; each pass reads such weights anew, which is said when the model is opened.

How it fails: a place that cannot be, no folder where one is needed, and a full disk are one `CheckpointError` each.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any, cast

from hybridlens.boundary_words import shown
from hybridlens.devices import usable, weights_once
from hybridlens.display import size
from hybridlens.errors import CheckpointError, OffloadedWarning

FULL = ("No space left on device", "Disk quota exceeded", "File too large")
"""How Python, and the library that writes safetensors, say that a disk is full."""


def check_placing(device_map: Any, max_memory: Any, offload_folder: str | Path | None) -> dict[str, Any]:
    """What of a map's options was given, for transformers.

    Raises:
        CheckpointError: an option without a map, a budget that is no table of places here, or a folder that is a file.
    """
    given = {"max_memory": max_memory, "offload_folder": offload_folder}
    given = {option: value for option, value in given.items() if value is not None}
    if given and device_map is None:
        raise CheckpointError(f"{min(given)} given without device_map, whose it is; give device_map='auto' too")
    if max_memory is not None:
        if not isinstance(max_memory, Mapping):
            raise CheckpointError(
                f"max_memory = {shown(max_memory)} given, expected the most of each place: {{0: '20GB', 'cpu': '60GB'}}"
            )
        given["max_memory"] = held = dict(cast(Mapping[Any, Any], max_memory))  # accelerate writes to what it is given
        for place, most in held.items():
            if isinstance(place, int):
                usable(f"cuda:{place}", "max_memory's GPU")
            if not isinstance(most, Real | str):
                raise CheckpointError(
                    f"max_memory[{place!r}] = {shown(most)} given, expected bytes, or text like '20GB'"
                )
    if offload_folder is not None and Path(offload_folder).exists() and not Path(offload_folder).is_dir():
        raise CheckpointError(f"offload_folder '{offload_folder}' is a file, expected a folder")
    return given


@contextmanager
def placing(source: str, offload_folder: str | Path | None) -> Generator[None]:
    """While transformers opens a model: what goes wrong with the folder of what is moved out, in our words."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split())
        if offload_folder is None and "offload_folder" in said:
            raise CheckpointError(
                f"'{source}' does not fit into the memory that device_map may use, and its files hold its weights in "
                "another form than the model has; give offload_folder=, a folder for those that are moved out, or more "
                "memory (max_memory)"
            ) from error
        if offload_folder is not None and any(words in said for words in FULL):
            raise CheckpointError(
                f"'{source}': what is moved out does not fit on the disk of offload_folder '{offload_folder}' "
                f"({said[:200]}); free some of it, or give a folder on another disk"
            ) from error
        raise


def warn_of_offloading(model: Any, source: str) -> None:
    """Say how much of a model that was opened is read anew in each pass, and from where."""
    found: dict[str, int] = {}
    places = cast(Mapping[str, Any], getattr(model, "hf_device_map", {}))
    whole = 0
    for name, weight in weights_once(model):
        whole += weight.nbytes
        if weight.device.type != "meta":
            continue
        inside = (part for part in places if part == "" or name == part or name.startswith(f"{part}."))
        place = str(places[max(inside, key=len)]) if places else "elsewhere"
        found[place] = found.get(place, 0) + weight.nbytes
    if not found:
        return
    words = {"disk": "on the disk", "cpu": "in host memory"}
    parts = " and ".join(f"{size(part)} {words.get(place, place)}" for place, part in found.items())
    warnings.warn(
        f"'{source}' is opened with {parts}, of {size(whole)} in all, which each pass brings in anew, slowly; more "
        "memory (max_memory) or a narrower dtype keeps more at hand",
        OffloadedWarning,
        stacklevel=4,
    )
