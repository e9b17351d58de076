"""Results as files: what is read back is what was written, tensors under their names, and damage is one line."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from jaxtyping import Float
from safetensors.torch import load, load_file, save_file
from torch import Tensor

from analyses.experiment.artefacts import Stored
from hybridlens.errors import InputError


@dataclass(frozen=True, eq=False)
class Part:
    """Inside another."""

    heads: Float[Tensor, "layer head"]


class Pair(NamedTuple):
    """Its fields have names, which a plain tuple's places have not."""

    first: Float[Tensor, "any"]
    second: Float[Tensor, "other"]


@dataclass(frozen=True, eq=False)
class Whole(Stored):
    """Tensors at several depths beside plain values."""

    scores: Float[Tensor, "layer head"]
    part: Part
    by_layer: dict[str, Tensor]
    pair: Pair
    words: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Readable(Stored, text=True):
    """Numbers that people may want to read."""

    scores: Float[Tensor, "layer head"]


@dataclass(frozen=True)
class Numbers(Stored):
    """Without a tensor."""

    loss: float
    others: tuple[float, ...]


@dataclass(frozen=True)
class ReadableNumbers(Stored, text=True):
    """Likewise, to be read."""

    loss: float
    others: tuple[float, ...]


def whole() -> Whole:
    """With a number that JSON has no word for, and one that is no round one."""
    scores = torch.tensor([[0.1, float("nan")], [float("-inf"), 1e-30]])
    pair = Pair(torch.rand(3), torch.rand(0))
    return Whole(scores, Part(torch.rand(2, 2)), {"3": torch.randn(4, dtype=torch.complex64)}, pair, ("a", "ü"))


def test_what_is_read_is_what_was_written(tmp_path):
    """Bit for bit."""
    held = whole()
    read = Whole.load(held.save(tmp_path / "whole.safetensors"))
    torch.testing.assert_close(read.scores, held.scores, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(read.part.heads, held.part.heads)
    assert torch.equal(read.by_layer["3"], held.by_layer["3"])
    assert torch.equal(read.pair.first, held.pair.first)
    assert torch.equal(read.pair.second, held.pair.second)
    assert read.words == held.words


def test_tensors_have_the_names_of_their_fields(tmp_path):
    """For whoever opens the file without this package."""
    path = whole().save(tmp_path / "whole.safetensors")
    assert sorted(load_file(path)) == ["by_layer.3", "pair.first", "pair.second", "part.heads", "scores"]


def test_another_number_in_the_file_is_noticed(tmp_path):
    """A tensor that somebody changed, or a disk: it keeps its shape, so nothing but the digest can tell."""
    path = whole().save(tmp_path / "whole.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    load(bytes(data))
    with pytest.raises(InputError, match=r"is a damaged Whole \(its values do not match their digest\)"):
        Whole.load(path)
    tensors = load_file(whole().save(path))
    save_file(tensors, path)
    with pytest.raises(InputError, match="is not a saved Whole"):
        Whole.load(path)


def test_fields_may_share_their_tensor_or_parts_of_it(tmp_path):
    held, scores = whole(), torch.rand(2, 2)
    shared = Whole(scores, Part(scores), {"row": scores[1], "same": scores}, Pair(scores[0], torch.rand(0)), ())
    read = Whole.load(shared.save(tmp_path / "shared.safetensors"))
    for found, expected in ((read.scores, scores), (read.part.heads, scores), (read.by_layer["row"], scores[1])):
        assert torch.equal(found, expected)
    assert torch.equal(read.pair.first, scores[0])
    empty = Whole(torch.rand(0, 3), Part(torch.rand(0, 3)), {}, held.pair, ())
    assert Whole.load(empty.save(tmp_path / "empty.safetensors")).scores.shape == (0, 3)


@pytest.mark.parametrize("cls", [Numbers, ReadableNumbers])
def test_plain_numbers_that_are_not_finite(tmp_path, cls):
    held = cls(float("nan"), (float("inf"), float("-inf"), 0.1))
    read = cls.load(held.save(tmp_path / "numbers"))
    assert read.loss != read.loss
    assert read.others == held.others


def test_numbers_as_text(tmp_path):
    """NaN is null there, every other number stands as it is."""
    held = Readable(torch.tensor([[0.1, float("nan")], [1e-30, -3.0]]))
    read = Readable.load(held.save(tmp_path / "scores.json"))
    torch.testing.assert_close(read.scores, held.scores, rtol=0, atol=0, equal_nan=True)
    text = (tmp_path / "scores.json").read_text()
    (tmp_path / "scores.json").write_text(text.replace("-3.0", "-2.0"))
    with pytest.raises(InputError, match="do not match their digest"):
        Readable.load(tmp_path / "scores.json")


def test_infinities_as_text(tmp_path):
    """JSON has no number for them: they stand as words."""
    held = Readable(torch.tensor([[float("inf"), float("-inf")]]))
    read = Readable.load(held.save(tmp_path / "scores.json"))
    assert torch.equal(read.scores, held.scores)
