"""The real kernels, run on the CPU by Triton's interpreter and compiled for GPUs that need not be there.

Run by `test_scan_kernels.py` in a process of its own, since TRITON_INTERPRET has to be set before triton is
imported. Prints one JSON line: for every kernel whose packages are installed, the largest deviation of values and
gradients from a plain loop in float64, as a share of the largest value.

How it fails: the interpreter runs a kernel's arithmetic, not its threads; a race, or a fault of the compiler, would
not show. `compile` shows that the compiler accepts the kernels, and no more.
"""

import json
import sys
from importlib.util import find_spec

import torch

from hybridlens.recurrences.kernels import libraries

LENGTHS = (2, 66)


def loop(decay, write, state, reverse):
    states = []
    order = range(decay.shape[1])
    for t in reversed(order) if reverse else order:
        state = decay[:, t] * state + write[:, t]
        states.append(state)
    return torch.stack(states[::-1] if reverse else states, 1)


def off(got, want):
    got, want = got.detach().double(), want.detach()
    return float((got - want).abs().max() / want.abs().max())


def linear(kernel):
    worst = 0.0
    for length in LENGTHS:
        torch.manual_seed(length)
        decay, write, initial = torch.rand(2, length, 37), torch.randn(2, length, 37), torch.randn(2, 37)
        decay[:, ::7] *= -1  # no family has such, an edit may
        decay[:, [0, length // 2]] = 0
        decay[:, -1] = 1
        decay[1, 0] = 0.9
        for reverse in (False, True):
            want = loop(decay.double(), write.double(), initial.double(), reverse)
            worst = max(worst, off(kernel(decay, write, initial, reverse), want))
    return worst


def selective_case(length, dtype):
    torch.manual_seed(length)
    dt, x = torch.rand(2, length, 35), torch.randn(2, length, 35)
    B, C = torch.randn(2, length, 5), torch.randn(2, length, 5)
    dt[:, length // 2] = 0
    A, initial = -torch.rand(35, 5) * 4, torch.randn(2, 35, 5)
    return [dt.to(dtype), A, B.to(dtype), C.to(dtype), x.to(dtype), initial]


def exact(dt, A, B, C, x, initial):
    states = loop(torch.exp(dt[..., None] * A), (dt * x)[..., None] * B[:, :, None], initial, False)
    return (states * C[:, :, None]).sum(-1), states[:, -1]


def selective(kernel):
    worst = 0.0
    for length in (2, 17):  # one piece; four whole pieces and a rest
        inputs = [t.requires_grad_() for t in selective_case(length, torch.float32)]
        truth = [t.detach().double().requires_grad_() for t in inputs]
        got, want = kernel(*inputs), exact(*truth)
        weights = [torch.randn_like(t) for t in got]
        to_got = torch.autograd.grad(sum((t * w).sum() for t, w in zip(got, weights, strict=True)), inputs)
        to_want = torch.autograd.grad(sum((t * w).sum() for t, w in zip(want, weights, strict=True)), truth)
        pairs = zip((*got, *to_got), (*want, *to_want), strict=True)
        worst = max(worst, *(off(a, b) for a, b in pairs))
    return worst


def half(kernel, dtype, readout):
    """Against the plain code for the same low-precision inputs, relative in norm.

    The interpreter cuts off where a GPU rounds to bfloat16, so with bfloat16 inputs C and y are float32 here, and
    the rounding before the readout is looked at in float16.
    """
    from hybridlens.recurrences import mamba_scan as selective

    inputs = selective_case(40, dtype)
    inputs[3] = inputs[3].to(readout)
    got, want = kernel(*inputs), selective.selective_scan(*inputs)
    return max(float((a.float() - b.float()).norm() / b.float().norm()) for a, b in zip(got, want, strict=True))


def compiles():
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from hybridlens.recurrences.kernels import triton_scans as ours

    sizes = {}
    for chip in (80, 90):
        for dtype in ("fp32", "bf16"):
            for kernel, constants, given in (
                (ours._linear, {"REVERSE": True, "BT": ours.TILE, "BC": ours.CHANNELS}, ()),
                (ours._selective_forward, {"BC": ours.CHANNELS, "BN": 16}, ("dt", "B", "C", "x", "y")),
                (ours._selective_backward, {"BC": ours.CHANNELS, "BN": 16}, ("dt", "B", "C", "x", "grad_y")),
            ):
                numbers = ("steps", "stretch", "channels", "width")
                kinds = {
                    name: "constexpr"
                    if name in constants
                    else "i32"
                    if name in numbers
                    else f"*{dtype if name in given else 'fp32'}"
                    for name in kernel.arg_names
                }
                built = triton.compile(
                    ASTSource(fn=kernel, signature=kinds, constexprs=constants), target=GPUTarget("cuda", chip, 32)
                )
                sizes[f"{kernel.fn.__name__} {dtype} sm_{chip}"] = len(built.asm["cubin"])
    return sizes


def interpret():
    from triton.runtime import autotuner

    # The timing of configurations needs a driver; any of them gives the same values.
    autotuner.Autotuner._bench = lambda self, *args, **kwargs: [1.0, 1.0, 1.0]
    found = {
        "triton linear": linear(libraries.triton_linear),
        "triton selective": selective(libraries.triton_selective),
        "triton selective bfloat16": half(libraries.triton_selective, torch.bfloat16, torch.float32),
        "triton selective float16": half(libraries.triton_selective, torch.float16, torch.float16),
    }
    if find_spec("accelerated_scan"):
        found["accelerated-scan"] = linear(libraries.accelerated_scan)
    if find_spec("fla"):
        found["flash-linear-attention"] = linear(libraries.flash_linear_attention)
    return found


if __name__ == "__main__":
    print(json.dumps(compiles() if sys.argv[1:] == ["compile"] else interpret()))
