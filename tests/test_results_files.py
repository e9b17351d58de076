"""Files of a run and what they say of it: written whole, read back, weights and versions among them."""

import os
from pathlib import Path

import pytest
import torch
from small_runs import snapshot

from hybridlens.errors import ResultsError
from hybridlens.results import environment, hash_json, hash_weights, read_run, write_atomic, write_json

RECORD = {
    "format": 4, "fingerprint": "f", "status": "complete", "created": "2025-01-01T00:00:00+00:00",
    "finished": "2025-01-01T00:00:01+00:00", "model": "tiny", "arguments": {"lengths": [64]}, "seed": 0,
    "max_score": 5.0, "config_hash": "c", "weights_hash": "w", "job": "niah", "command": "hybridlens niah",
    "facts": {"n_heads": 4}, "growing": None, "compared": {"--seed": 0},
    "sessions": [{"started": "2025-01-01T00:00:00+00:00", "command": "hybridlens niah", "settings": {"batch_size": 8},
                  "environment": {"python": "3.11.7", "platform": "x", "machine": "y", "cpus": 2,
                                  "packages": {"torch": "2.13.0", "einops": None}}}],
    "damaged": [], "artefacts": {"report.html": {"depends": "d", "digest": "e"}},
}  # fmt: skip
"""As format 4 was first written, for a run without cells."""


def test_a_record_of_this_format_is_read_and_a_wrong_one_is_none(tmp_path: Path) -> None:
    """The values come back as they were; one of a wrong type, even if signed, is no record."""
    path = tmp_path / "run.json"
    write_json(path, {**RECORD, "digest": hash_json(RECORD)})
    left_out = {"settled": {}, "remarks": [], "cells": None, "cells_done": None, "finding": []}
    assert read_run(tmp_path).record == RECORD | left_out
    for change in ({"seed": "0"}, {"sessions": [{}]}, {"status": "done"}, {"damaged": None}):
        wrong = RECORD | change
        write_json(path, {**wrong, "digest": hash_json(wrong)})
        with pytest.raises(ResultsError, match=r"run\.json cannot be read; give a folder"):
            read_run(tmp_path)


def test_atomic_writes_leave_the_old_file_when_they_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fails after the data was written and before the rename: the old bytes stay, no part file."""
    path = tmp_path / "file.json"
    write_json(path, {"a": "é"})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResultsError, match=r"file\.json' cannot be used \(No space left on device\); make room"):
        write_atomic(path, b"new")
    assert snapshot(tmp_path) == {"file.json": '{\n  "a": "é"\n}\n'.encode()}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})


def test_weights_hash_sees_every_bit(tmp_path: Path) -> None:
    """Values, names, shapes and dtypes each change the digest; the order of the names does not."""
    from safetensors.torch import save_file

    a, b = torch.arange(6.0), torch.ones((), dtype=torch.bfloat16)
    digests = [
        hash_weights({"a": a, "b": b}),
        hash_weights({"a": a, "c": b}),
        hash_weights({"a": a.view(2, 3), "b": b}),
        hash_weights({"a": a.to(torch.float64), "b": b}),
        hash_weights({"a": torch.nextafter(a, a + 1), "b": b}),
    ]
    assert len(set(digests)) == 5
    assert hash_weights({"b": b, "a": a}) == digests[0]
    with pytest.raises(ResultsError, match=r"no \*\.safetensors file in"):
        hash_weights(tmp_path)
    save_file({"a": a}, tmp_path / "model.safetensors")
    first = hash_weights(tmp_path)
    save_file({"a": a + 1}, tmp_path / "model.safetensors")
    assert len({first, hash_weights(tmp_path)}) == 2


def test_environment_names_every_version() -> None:
    """A run can only be run again if its versions are known; the numbers come from the installed packages."""
    packages = environment()["packages"]
    import transformers

    assert packages["transformers"] == transformers.__version__
    assert [name for name, version in packages.items() if version is None and name != "hybridlens"] == []
