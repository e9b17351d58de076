"""How far two ways to one number may lie apart: as far as rounding takes them, on any processor, and no further.

    bound = 4 · √steps · eps(dtype) · scale

`steps` counts the rounded operations that stand behind a number. Roundings have no common sign, so n of them add up
like √n: Higham and Mary (2019, "A new approach to probabilistic rounding error analysis", theorem 2.4) bound the
relative error of n operations by λ √n u with probability 1 - 2n exp(-λ²/2). u = eps / 2 is the unit roundoff; λ = 8
leaves a chance of 1e-13 a number. The worst case, n u, is never met, and a bound that allowed it would see no faults.

`scale` is the size of what was rounded: the largest magnitude of all expected values, since an element near 0 is a
difference of terms as large as the others. A number that is itself a difference of larger ones (the change of a logit,
a tensor of nothing but such changes) has lost more, and its test names their size.

`dtype` is the precision in which the numbers were made: that of the less precise side. A Python number says nothing of
it and counts as float64, so a test that reads `float(tensor)`, or `.item()`, names the tensor's dtype.

How it fails: a wrong formula is wrong by far more than this; one that is wrong by less (an epsilon of 1e-12 left out)
has to be tested in float64. Infinities have to stand at the same places, and NaN nowhere unless `equal_nan`.

Other bounds stay where they are and say why: sampling errors in standard errors, a reading of a figure in its pixels.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

Values = torch.Tensor | np.ndarray | Sequence | float

# A few operations in a row on each element: means of few, percentages, a norm, a product and its factors.
FEW = 8
# One layer of a model of tests/models.py: eight sums in a row (norm, projections, convolution, scan or softmax, gate,
# output) of 32 terms.
LAYER = 256
# The whole of such a model, four layers; also anything read after the first of them.
FORWARD = 4 * LAYER
# There and back, a gradient: each product is met once forwards and twice backwards.
GRADIENT = 3 * FORWARD
# The whole of an embedded model: eight layers, eight sums of 128 terms in each.
EMBEDDED = 8 * 8 * 128

# The whole of a model of tests/random_lens.py: weights of attention made five times as large, and so scores 25 times. A
# softmax hands on a quarter of an error of its scores, at the most, so errors are six times as large: √steps is.
LOUD = 6**2 * FORWARD

FACTOR = 4


def bound(scale: float, steps: int = FEW, dtype: torch.dtype = torch.float32) -> float:
    """The largest difference that rounding explains, between numbers of size `scale` made in `steps` operations."""
    return FACTOR * math.sqrt(steps) * torch.finfo(dtype).eps * scale


def near(
    actual: Values,
    expected: Values,
    steps: int = FEW,
    *,
    scale: float | None = None,
    extra: float = 0.0,
    dtype: torch.dtype | None = None,
    equal_nan: bool = False,
) -> bool:
    """Whether rounding explains every difference: `close` as a question. For the contrary, `apart` says more."""
    return _verdict(actual, expected, steps, scale, extra, dtype, equal_nan) is None


def close(
    actual: Values,
    expected: Values,
    steps: int = FEW,
    *,
    scale: float | None = None,
    extra: float = 0.0,
    dtype: torch.dtype | None = None,
    equal_nan: bool = False,
    what: object = "",
) -> None:
    """Asserts `near`; the message names `what` was compared, the worst element, and the bound.

    Args:
        actual: Tensor, array, number or nested sequence of numbers.
        expected: The same in shape; a number stands for itself only, never for a whole tensor.
        steps: Rounded operations behind each number, one of the names above or a count of the test's own.
        scale: Size of what was rounded, where that is more than the largest expected value.
        extra: What the expected values themselves leave open, beside rounding: that of a difference quotient, say.
        dtype: Precision in which the numbers were made, where their own does not say. Without it, two tensors have to
            be of one dtype.
        equal_nan: NaN may stand where NaN is expected.
        what: Words for the message.
    """
    __tracebackhide__ = True
    verdict = _verdict(actual, expected, steps, scale, extra, dtype, equal_nan)
    assert verdict is None, f"{what}: {verdict}" if what else verdict


def quotient(size: float, step: float, dtype: torch.dtype = torch.float32) -> float:
    """What rounding leaves in a central difference quotient of a function of this size.

    Both sides go through almost the same numbers, so their roundings differ by less than a whole model's: a layer's is
    taken. It is divided by the step.
    """
    return bound(size, LAYER, dtype) / step


def apart(actual: Values, expected: Values, steps: int = FORWARD, *, dtype: torch.dtype | None = None) -> bool:
    """Whether something differs by ten times what rounding explains: an effect, on any processor.

    So does what is finite on one side alone: an edit that takes a decay beyond 1 leaves no number.
    """
    ours, theirs, made = _pair(actual, expected, dtype)
    finite = ours.isfinite()
    if not torch.equal(finite, theirs.isfinite()):
        return True
    return float((ours[finite] - theirs[finite]).abs().max()) > 10 * bound(max(_size(ours), _size(theirs)), steps, made)


def written(actual: Values, expected: Values, digits: int = 4) -> None:
    """Asserts that numbers written with so many significant digits are within half a unit of the last, each of them."""
    __tracebackhide__ = True
    ours, theirs, _ = _pair(actual, expected, None)
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=5.01 * 10.0**-digits, atol=1e-30)


def tied(margin: float | None, scale: float, steps: int = FORWARD) -> bool:
    """Whether another processor may choose another token: two logits of size `scale` nearer than rounding tells."""
    return margin is not None and margin < 2 * bound(scale, steps)


def _pair(
    actual: Values, expected: Values, dtype: torch.dtype | None
) -> tuple[torch.Tensor, torch.Tensor, torch.dtype]:
    """Both in float64, and the dtype in which they were made."""
    sides = [
        value.detach().cpu() if isinstance(value, torch.Tensor) else torch.as_tensor(np.asarray(value))
        for value in (actual, expected)
    ]
    if any(x.is_complex() for x in sides):
        raise TypeError("complex numbers given, real ones expected: compare their real and imaginary parts")
    made = [x.dtype for x in sides if x.dtype.is_floating_point]
    coarsest = max(made, key=lambda one: torch.finfo(one).eps, default=torch.float64)
    return sides[0].double(), sides[1].double(), dtype or coarsest


def _size(values: torch.Tensor) -> float:
    finite = values[values.isfinite()].abs()
    return float(finite.max()) if finite.numel() else 0.0


def _verdict(
    actual: Values,
    expected: Values,
    steps: int,
    scale: float | None,
    extra: float,
    dtype: torch.dtype | None,
    equal_nan: bool,
) -> str | None:
    """None, or how the two differ by more than rounding."""
    ours, theirs, made = _pair(actual, expected, dtype)
    if ours.shape != theirs.shape:
        return f"shape {list(ours.shape)} given, {list(theirs.shape)} expected"
    both = isinstance(actual, torch.Tensor) and isinstance(expected, torch.Tensor)
    if dtype is None and both and actual.dtype != expected.dtype:
        return f"{actual.dtype} given, {expected.dtype} expected"
    wrong = ~(ours.isfinite() & theirs.isfinite()) & (ours != theirs)
    if equal_nan:
        wrong &= ~(ours.isnan() & theirs.isnan())
    if bool(wrong.any()):
        at = wrong.nonzero()[0].tolist()
        return f"at {at}: {float(ours[*at])} given, {float(theirs[*at])} expected"
    allowed = bound(max(_size(theirs), scale or 0.0), steps, made) + extra
    difference = torch.where(ours.isfinite() & theirs.isfinite(), (ours - theirs).abs(), 0.0)
    if not difference.numel() or float(difference.max()) <= allowed:
        return None
    at = [int(i) for i in np.unravel_index(int(difference.argmax()), difference.shape)]
    return (
        f"at {at}: {float(ours[*at]):.9g} given, {float(theirs[*at]):.9g} expected, "
        f"{float(difference.max()):.2e} apart where {allowed:.2e} is allowed ({steps} steps of {made})"
    )
