"""What a long computation has done so far, stage by stage, so that a killed one goes on.

A stage is a name and tensors. With a folder, each is written as it is finished, signed with what the computation is;
without one, nothing is written.

How it fails: a stage of another computation, or one that cannot be read whole, is made again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hybridlens.results.provenance import write_atomic

Stage = Callable[[], Mapping[str, Tensor]]


class Parts:
    """The stages of one computation.

    Args:
        folder: where finished stages are kept; None for nowhere.
        fingerprint: of all that changes a result.
    """

    def __init__(self, folder: Path | None, fingerprint: str) -> None:
        self.folder = folder
        self.fingerprint = fingerprint

    def take(self, name: str, make: Stage) -> dict[str, Tensor]:
        """The tensors of a stage: those stored, else those made now."""
        stored = self._read(name)
        if stored is not None:
            return stored
        made = {key: value.contiguous() for key, value in make().items()}
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self.folder / f"{name}.safetensors", save(made, {"fingerprint": self.fingerprint}))
        return made

    def clear(self) -> None:
        """Throw all stages away, once the result is written."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, name: str) -> dict[str, Tensor] | None:
        if self.folder is None:
            return None
        try:
            with safe_open(str(self.folder / f"{name}.safetensors"), framework="pt") as file:
                if (file.metadata() or {}).get("fingerprint") != self.fingerprint:
                    return None
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        except (OSError, SafetensorError):
            return None
