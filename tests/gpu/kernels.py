"""The scan kernels on this device against float64, forward and backward, and against the plain code's time.

The float64 truth is a plain loop over time and its adjoint, written here. On a CPU the kernels run in Triton's
interpreter, a few tokens long.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from gpu.rows import Rows, off, timed
from hybridlens.recurrences import Delta, DeltaTerms, Scalar, ScalarTerms, mamba_scan, scan
from hybridlens.recurrences.kernels import choice

BOUND = 2e-5
"""‖got − truth‖ ÷ ‖truth‖ in float32 of 512 tokens: 128 roundings' worth of 2⁻²³; sums over tokens add like √tokens."""


def bound(length: int) -> float:
    """What rounding leaves of a scan of so many tokens."""
    return BOUND * max(1.0, (length / 512) ** 0.5)


def main(rows: Rows, argument: str) -> None:
    """Every kernel at every length."""
    torch.manual_seed(0)
    lengths = (512, 2048, 8192, 32768) if rows.cuda else (66,)
    if not rows.cuda and find_spec("triton"):  # timing configurations needs a driver; any of them gives the same values
        import_module("triton.runtime.autotuner").Autotuner._bench = lambda *given, **named: [1.0, 1.0, 1.0]
    for length in lengths:
        with rows.check(f"linear scans of {length}"):
            linear(rows, length)
        with rows.check(f"selective scans of {length}"):
            selective(rows, length)
    for length in lengths[:3]:
        for kind in ("scalar", "delta"):
            with rows.check(f"{kind} recurrence of {length}"):
                matrix(rows, kind, length)


def names(rows: Rows, operation: str, length: int) -> list[str]:
    """The kernels that are there for an operation."""
    floats = frozenset({torch.float32})
    case = choice.Case(operation, "cuda", floats, length, 100, 16)
    found = [kernel for kernel in choice.KERNELS if kernel.fits(case) and choice.installed(kernel)]
    return [kernel.name for kernel in found]


@contextmanager
def forced(rows: Rows, name: str) -> Generator[None]:
    """Scans through a kernel: as a user chooses it on a GPU, by force on a CPU."""
    if rows.cuda or name == "torch":
        with choice.use_kernels(name):
            yield
        return
    kernel = next(kernel for kernel in choice.KERNELS if kernel.name == name)
    modules: tuple[Any, ...] = (scan, mamba_scan)
    real = scan.kernel_for

    def always(operation: str, *tensors: Tensor, steps: int, **rest: Any) -> choice.Kernel | None:
        has = kernel.linear if operation == "linear" else kernel.selective
        return kernel if has is not None and steps > 1 else None

    for module in modules:
        module.kernel_for = always
    try:
        yield
    finally:
        for module in modules:
            module.kernel_for = real


def loop(decay: Tensor, write: Tensor, state: Tensor, reverse: bool = False) -> Tensor:
    """h_t = a_t h_{t-1} + w_t over axis 1, or from the other end."""
    out = torch.empty_like(write)
    for t in range(write.shape[1])[:: -1 if reverse else 1]:
        torch.addcmul(write[:, t], decay[:, t], state, out=out[:, t])
        state = out[:, t]
    return out


def back(decay: Tensor, grad: Tensor) -> Tensor:
    """g_t = grad_t + a_{t+1} g_{t+1}."""
    later = torch.cat([decay[:, 1:], torch.zeros_like(decay[:, :1])], dim=1)
    return loop(later, grad, torch.zeros_like(grad[:, 0]), reverse=True)


def linear(rows: Rows, length: int) -> None:
    """Values and gradients of a narrow scan; the time of one of RecurrentGemma-2B's width."""
    width = 96 if rows.cuda else 37
    decay, write = torch.rand(2, length, width, device=rows.device), torch.randn(2, length, width, device=rows.device)
    decay = decay.sqrt().sqrt()  # most of them near 1, as trained ones
    decay[:, :: max(3, length // 7)] *= -1
    decay[:, length // 2] = 0
    initial, weight = torch.randn_like(write[:, 0]), torch.randn_like(write)
    a, w, h, g = (t.double() for t in (decay, write, initial, weight))
    states = loop(a, w, h)
    before, grads = torch.cat([h[:, None], states[:, :-1]], dim=1), back(a, g)
    truth = (states, grads * before, grads, a[:, 0] * grads[:, 0])
    big = torch.rand(1, length, 2560, device=rows.device), torch.randn(1, length, 2560, device=rows.device)
    plain = timed(lambda: under(rows, "torch", *big), rows.device, runs=1)
    moved = 3 * big[0].numel() * 4
    for name in names(rows, "linear", length):
        what = f"linear {name} {length} tokens"
        with rows.check(what):
            inputs = [t.clone().requires_grad_() for t in (decay, write, initial)]
            with forced(rows, name):
                got = scan.linear_scan(*inputs)
                found = (got, *torch.autograd.grad((got * weight).sum(), inputs))
            errors = [off(ours, want) for ours, want in zip(found, truth, strict=True)]
            about = ", ".join(f"{e:.1e}" for e in errors)
            rows.most(f"{what}: values and three gradients", max(errors), bound(length), about)
            if rows.cuda:  # the interpreter's time says nothing
                seconds = timed(lambda name=name: under(rows, name, *big), rows.device)
                rate = f"{seconds * 1e3:.3g} ms, plain {plain * 1e3:.3g} ms, {moved / seconds / 1e9:.0f} GB/s"
                rows.add(f"{what}, width 2560: times faster", f"{plain / seconds:.1f} ({rate})")


def under(rows: Rows, name: str, decay: Tensor, write: Tensor) -> Tensor:
    """One scan by a kernel."""
    with forced(rows, name), torch.no_grad():
        return scan.linear_scan(decay, write)


def selective(rows: Rows, length: int) -> None:
    """Mamba's: values, last state and six gradients; the time of one of Jamba-Mini's width."""
    width, states = (64, 16) if rows.cuda else (35, 5)
    given = selective_case(length, width, states, rows.device, torch.float32)
    weights = torch.randn(1, length, width, device=rows.device), torch.randn(1, width, states, device=rows.device)
    truth = selective_truth(*(t.double() for t in given), *(t.double() for t in weights))
    wide = 8192 if rows.cuda else 64
    big = selective_case(length, wide, states, rows.device, torch.bfloat16)
    plain = timed(lambda: selective_under(rows, "torch", big), rows.device, runs=1)
    for name in ["torch", *names(rows, "selective", length)]:
        what = f"selective {name} {length} tokens"
        with rows.check(what):
            inputs = [t.clone().requires_grad_() for t in given]
            with forced(rows, name):
                got = mamba_scan.selective_scan(*inputs)
                loss = sum((t * w).sum() for t, w in zip(got, weights, strict=True))
                found = (*got, *torch.autograd.grad(loss, inputs))
            errors = [off(ours, want) for ours, want in zip(found, truth, strict=True)]
            about = ", ".join(f"{e:.1e}" for e in errors)
            rows.most(f"{what}: y, state and six gradients", max(errors), bound(length), about)
            if name != "torch" and rows.cuda:  # the interpreter cuts off where a GPU rounds to bfloat16
                seconds = timed(lambda name=name: selective_under(rows, name, big), rows.device)
                about = f"{seconds * 1e3:.3g} ms, plain {plain * 1e3:.3g} ms"
                rows.add(f"{what}, width {wide} in bfloat16: times faster", f"{plain / seconds:.1f} ({about})")
                exact = selective_under(rows, "torch", big)
                apart = max(off(a, b) for a, b in zip(selective_under(rows, name, big), exact, strict=True))
                rows.most(f"{what}, width {wide} in bfloat16: off the plain code", apart, 2.0**-8)


def selective_case(length: int, width: int, states: int, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Δ, A, B, C, x and a state, with a token of Δ = 0."""
    dt, x = torch.rand(1, length, width, device=device) / 8, torch.randn(1, length, width, device=device)
    B, C = torch.randn(2, 1, length, states, device=device)
    dt[:, length // 2] = 0
    A, initial = -4 * torch.rand(width, states, device=device), torch.randn(1, width, states, device=device)
    return [dt.to(dtype), A, B.to(dtype), C.to(dtype), x.to(dtype), initial]


def selective_under(rows: Rows, name: str, given: list[Tensor]) -> tuple[Tensor, Tensor]:
    """One scan by a kernel."""
    with forced(rows, name), torch.no_grad():
        return mamba_scan.selective_scan(*given)


def selective_truth(
    dt: Tensor, A: Tensor, B: Tensor, C: Tensor, x: Tensor, initial: Tensor, to_y: Tensor, to_last: Tensor
) -> tuple[Tensor, ...]:
    """y, the last state, and the gradients with respect to every input of Σ to_y y + Σ to_last state."""
    decay, source = torch.exp(dt[..., None] * A), dt[..., None] * B[:, :, None]
    states = loop(decay, source * x[..., None], initial)
    grad = to_y[..., None] * C[:, :, None]
    grad[:, -1] += to_last
    g = back(decay, grad)
    before = torch.cat([initial[:, None], states[:, :-1]], dim=1)
    through = g * before * decay
    gx = g * x[..., None]
    to_dt = (through * A).sum(-1) + (gx * B[:, :, None]).sum(-1)
    to_A = (through * dt[..., None]).sum((0, 1))
    to_B, to_C = (gx * dt[..., None]).sum(2), (to_y[..., None] * states).sum(2)
    y = (states * C[:, :, None]).sum(-1)
    return y, states[:, -1], to_dt, to_A, to_B, to_C, (g * source).sum(-1), decay[:, 0] * g[:, 0]


def matrix(rows: Rows, kind: str, length: int) -> None:
    """Matrix states: the chunked form against the loop in float64, and its time at a real layer's width."""
    op, terms, initial = matrix_case(kind, length, (4, 16, 16), rows.device)
    exact = op.loop(type(terms)(*(None if t is None else t.double() for t in terms)), initial.double())
    with torch.no_grad():
        got = op.run(terms, initial)
    want = torch.einsum("bpsum,bpsm->bpsu", exact, terms.q.double())
    error = max(off(got.y, want), off(got.final, exact[:, -1]))
    rows.most(f"{kind} recurrence {length} tokens: y and state", error, 2 * bound(length))
    op, terms, initial = matrix_case(kind, length, (32, 128, 128) if rows.cuda else (4, 16, 16), rows.device)
    with torch.no_grad():
        seconds = timed(lambda: op.run(terms, initial), rows.device)
    rows.add(f"{kind} recurrence {length} tokens, 32 heads of 128 × 128", f"{seconds * 1e3:.3g} ms")


def matrix_case(kind: str, length: int, shape: tuple[int, int, int], device: str) -> tuple[Any, Any, Tensor]:
    """An operator, its terms and a state; addresses of length 1."""
    s, u, m = shape
    decay = 1 - torch.rand(1, length, s, device=device) ** 4
    v = torch.randn(1, length, s, u, device=device)
    k, q = torch.nn.functional.normalize(torch.randn(2, 1, length, s, m, device=device), dim=-1)
    strength = torch.rand(1, length, s, device=device)
    initial = torch.randn(1, s, u, m, device=device)
    if kind == "scalar":
        return Scalar(shape), ScalarTerms(decay, v, k, q, strength), initial
    return Delta(shape), DeltaTerms(decay, v, k, q, strength), initial
