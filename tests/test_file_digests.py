"""Digests of large files are kept, and never outlive a change of the file.

Expected digests are hashlib's over the whole contents, at each step.
"""

import hashlib
import os

import pytest
import torch

from hybridlens.results import file_digests as kept
from hybridlens.results import hash_weights, provenance
from hybridlens.results.file_digests import file_digests


@pytest.fixture
def reads(tmp_path, monkeypatch):
    """The files that were read; what was kept is in a folder of the test's own, and files count as settled at once."""
    monkeypatch.setenv("HYBRIDLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "SETTLED", -1.0)
    found, real = [], kept._read
    monkeypatch.setattr(kept, "_read", lambda file, advance: (found.append(file.name), real(file, advance))[1])
    return found


def right(files):
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert file_digests(files) == digests
    return digests


def write(file, held):
    file.write_bytes(held)
    return file


def test_a_file_is_read_once_until_it_changes(tmp_path, reads):
    """Written anew, replaced by another of the same size, and edited in place with its time set back."""
    files = [write(tmp_path / name, name.encode() * 1000) for name in "ab"]
    first = right(files)
    assert sorted(reads) == ["a", "b"]
    assert right(files) == first
    assert len(reads) == 2
    before = files[0].stat()
    with files[0].open("r+b") as stream:
        stream.write(b"X")
    os.utime(files[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert right(files)[0] != first[0]
    write(tmp_path / "c", b"c" * 1000).replace(files[1])
    assert right(files)[1] != first[1]
    assert reads[2:] == ["a", "b"]


def test_what_changed_just_now_is_not_kept(tmp_path, reads, monkeypatch):
    """Within the grain of the clock it could change again unseen."""
    monkeypatch.setattr(kept, "SETTLED", 60.0)
    files = [write(tmp_path / "a", b"a")]
    right(files)
    right(files)
    assert reads == ["a", "a"]
    assert not (tmp_path / "cache").exists()


def test_names_in_the_cache_of_the_hub_are_believed_until_the_file_changes(tmp_path, reads):
    """A link, as snapshots hold them, to a file that is named for what it holds."""
    held = b"weights" * 100
    blob = tmp_path / "blobs" / hashlib.sha256(held).hexdigest()
    blob.parent.mkdir()
    write(blob, held)
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    right([link])
    assert reads == []
    write(blob, held + b"!")
    right([link])
    assert reads == [blob.name]


def test_what_cannot_be_kept_or_is_damaged_is_read_again(tmp_path, reads, monkeypatch):
    files = [write(tmp_path / "a", b"a" * 10)]
    right(files)
    (entry,) = (tmp_path / "cache" / "digests").iterdir()
    for damage in ("{", "[]", '{"sha256": "0", "stamp": [1]}'):
        entry.write_text(damage)
        right(files)
    assert len(reads) == 4
    monkeypatch.setenv("HYBRIDLENS_CACHE", str(write(tmp_path / "no folder", b"")))
    right(files)
    right(files)
    assert len(reads) == 6


def test_large_weights_count_with_their_files_digests(tmp_path, reads, monkeypatch):
    """Other than small ones, which are hashed as ever; both see every byte, and only the files that are named."""
    for name in ("one", "two"):
        write(tmp_path / f"{name}.safetensors", name.encode() * 10)
    small = hash_weights(tmp_path)
    assert reads == []
    monkeypatch.setattr(provenance, "LARGE", 10)
    large = hash_weights(tmp_path)
    assert hash_weights(tmp_path) == large != small
    assert len(reads) == 2
    names = ["one.safetensors", "two.safetensors"]
    assert hash_weights(tmp_path, names) == large
    assert hash_weights(tmp_path, names[:1]) != large
    write(tmp_path / "two.safetensors", b"twp" * 10)
    assert hash_weights(tmp_path) != large


def test_large_models_in_memory_are_hashed_side_by_side(monkeypatch):
    """Every bit, name and shape counts, as of small ones; the order in which they are given does not."""
    first = torch.arange(6.0)
    held = {"a": first, "b": first.to(torch.bfloat16)}
    small = hash_weights(held)
    monkeypatch.setattr(provenance, "LARGE", 10)
    changes = ({"a": first.view(2, 3)}, {"a": torch.nextafter(first, first + 1)}, {"c": first}, {"b": first})
    digests = {hash_weights(held), *(hash_weights({**held, **change}) for change in changes), small}
    assert len(digests) == 6
    assert hash_weights(dict(reversed(held.items()))) in digests
