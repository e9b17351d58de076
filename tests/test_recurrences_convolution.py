"""The causal convolution: what it remembers, piece by piece, and that padding is not remembered."""

import pytest
import torch
from recurrence_cases import near

from hybridlens.errors import InputError
from hybridlens.recurrences import Diagonal, DiagonalTerms, causal_convolution


def drawn(length, bias=True):
    draw = torch.Generator().manual_seed(length)
    x, held = torch.randn(2, length, 3, generator=draw), torch.randn(2, 3, 3, generator=draw)
    weight = torch.randn(3, 1, 4, generator=draw)
    return x, held, weight, torch.randn(3, generator=draw) if bias else None


def plain(x, held, weight, bias):
    inputs = torch.cat([held, x], 1).double()
    y = sum(inputs[:, j : j + x.shape[1]] * weight[:, 0, j].double() for j in range(4))
    return y if bias is None else y + bias.double()


@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_sum_of_taps(length, bias):
    """With and without gradients, which run a single token in two ways, and from nothing held."""
    x, held, weight, b = drawn(length, bias)
    for start in (held, None):
        want = plain(x, torch.zeros_like(held) if start is None else start, weight, b)
        with torch.no_grad():
            y, conv = causal_convolution(x, start, weight, b, None)
        near(y, want, 8)
        near(causal_convolution(x, start, weight, b, None)[0], want, 8)
        assert torch.equal(conv, torch.cat([torch.zeros_like(held) if start is None else start, x], 1)[:, -3:])


def test_pieces_are_the_whole_and_padding_is_not_remembered():
    x, held, weight, bias = drawn(9)
    whole, end = causal_convolution(x, held, weight, bias, None)
    parts, state = [], held
    for piece in x.split([1, 2, 6], 1):
        y, state = causal_convolution(piece, state, weight, bias, None)
        parts.append(y)
    near(torch.cat(parts, 1), whole, 16)
    assert torch.equal(state, end)
    lengths = torch.tensor([2, 9])
    _, ragged = causal_convolution(x, held, weight, bias, torch.arange(9) < lengths[:, None])
    assert torch.equal(ragged[0], torch.cat([held, x[:, :2]], 1)[0, -3:])
    assert torch.equal(ragged[1], end[1])


def test_hidden_attention_without_a_source_is_refused_in_one_line():
    with pytest.raises(InputError, match="without `source`; give what") as refused:
        Diagonal((2,)).hidden_attention(DiagonalTerms(torch.rand(1, 3, 2), torch.rand(1, 3, 2)))
    assert "\n" not in str(refused.value)
