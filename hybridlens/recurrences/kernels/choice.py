"""Which kernel runs a scan: the libraries as data, and the choice among them.

On a GPU a scan written in torch is a loop of small launches. `choose` takes the first kernel of
`KERNELS` that fits the tensors and is installed; None stands for the plain code of `hybridlens.recurrences.scan`,
which is what always runs on a CPU, for a single token (one multiply-add) and in float64. Nothing is
imported until it is chosen. `use_kernels` sets the choice for a block of code.

How it fails: a library that is installed but cannot be imported (built for another torch, say) is left
out with one warning, unless it was asked for by name, which raises. Kernels agree with the plain code
to float32 rounding, so writing a value back unchanged keeps every bit only under `use_kernels("torch")`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from hybridlens.errors import InputError, UnknownNameError, closest
from hybridlens.recurrences.kernels import libraries


class Case(NamedTuple):
    """What there is to scan, as far as a kernel may care."""

    operation: str
    """"linear": states from decays and writes; "selective": Mamba's readout and last state."""
    device: str
    """The type of the device: "cuda", "cpu"."""
    dtypes: frozenset[torch.dtype]
    """Those of all arguments."""
    steps: int
    """Tokens."""
    elements: int
    """Of the largest argument."""
    states: int = 1
    """State entries a channel ("selective" only)."""


class Kernel(NamedTuple):
    """One way to run a scan in few launches. Both functions are described in `triton_scans`."""

    name: str
    """What `use_kernels` takes, and the package's own name."""
    modules: tuple[str, ...]
    """What has to be importable, most particular last."""
    linear: Callable[[Tensor, Tensor, Tensor, bool], Tensor] | None = None
    selective: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    devices: tuple[str, ...] = ("cuda",)
    dtypes: frozenset[torch.dtype] = frozenset({torch.float32, torch.bfloat16, torch.float16})
    most_elements: int = 2**31 - 1
    """Of one tensor: these kernels count in 32 bits."""
    most_states: int = 256

    def fits(self, case: Case) -> bool:
        """Whether this kernel can run the case, installed or not."""
        has = self.linear if case.operation == "linear" else self.selective
        return (
            has is not None
            and case.device in self.devices
            and case.dtypes <= self.dtypes
            and case.steps > 1
            and 0 < case.elements <= self.most_elements
            and case.states <= self.most_states
        )


KERNELS = (
    Kernel("mamba-ssm", ("selective_scan_cuda", "mamba_ssm.ops.selective_scan_interface"),
           selective=libraries.mamba_ssm),
    Kernel("accelerated-scan", ("triton", "accelerated_scan.scalar"), linear=libraries.accelerated_scan),
    Kernel("flash-linear-attention", ("triton", "fla.ops.hgrn"), linear=libraries.flash_linear_attention),
    Kernel("triton", ("triton", "hybridlens.recurrences.kernels.triton_scans"),
           linear=libraries.triton_linear, selective=libraries.triton_selective, most_elements=2**62),
)  # fmt: skip
"""In the order in which they are preferred. For linear scans accelerated-scan comes first since it works in parallel
over time and takes a decay as it is; flash-linear-attention's fused kernel takes one step after the other and wants its
logarithm. "triton" is this project's own, for when no library fits."""

_wanted: ContextVar[str] = ContextVar("hybridlens_scan_kernels", default="auto")
_importable: dict[str, bool] = {}


def wanted() -> str:
    """What `use_kernels` last set in this context: "auto", "torch" or a kernel's name."""
    return _wanted.get()


@contextmanager
def use_kernels(name: str) -> Generator[None]:
    """Choose the kernels for the scans inside a `with` block, and for the backward passes of those scans.

    Args:
        name: "auto", the first of `KERNELS` that is installed and fits; "torch", the plain code everywhere; or a
            kernel's name, which then runs wherever it fits, and the plain code elsewhere (on a CPU always).

    Raises:
        UnknownNameError: no kernel has that name.
        InputError: that kernel is not installed.
    """
    names = ["auto", "torch", *(kernel.name for kernel in KERNELS)]
    if name not in names:
        raise UnknownNameError(f"no scan kernel is called {name!r}; there are {', '.join(names)}{closest(name, names)}")
    for kernel in KERNELS:
        if kernel.name == name and not installed(kernel):
            raise InputError(
                f"scan kernel {name!r} was asked for, but {_missing(kernel)} is not installed; "
                f"install {name}, or ask for 'auto' or 'torch'"
            )
    token = _wanted.set(name)
    try:
        yield
    finally:
        _wanted.reset(token)


def choose(case: Case, name: str | None = None) -> Kernel | None:
    """The kernel to run a case with; None for the plain code.

    Args:
        case: what there is to scan.
        name: as in `use_kernels`; what that set if None.

    Raises:
        InputError: the kernel asked for by name is installed, fits and cannot be imported.
    """
    name = wanted() if name is None else name
    for kernel in KERNELS:
        asked = kernel.name == name
        if (asked or name == "auto") and kernel.fits(case) and installed(kernel) and _imports(kernel, asked):
            return kernel
    return None


def installed(kernel: Kernel) -> bool:
    """Whether every package that a kernel needs is there; imports none of them."""
    return _missing(kernel) is None


def _missing(kernel: Kernel) -> str | None:
    tops = (module.split(".")[0] for module in kernel.modules)
    return next((top for top in tops if find_spec(top) is None), None)


def _imports(kernel: Kernel, asked: bool) -> bool:
    """Import a kernel's modules, once: a failure is remembered."""
    if kernel.name in _importable and not asked:
        return _importable[kernel.name]
    try:
        for module in kernel.modules:
            import_module(module)
    except Exception as problem:  # whatever a broken build raises
        said = f"scan kernel {kernel.name!r} is installed but cannot be imported ({problem!r:.200})"
        if asked:
            raise InputError(f"{said}; mend that, or ask for 'auto' or 'torch'") from problem
        warnings.warn(f"{said}; another is used. use_kernels('torch') does without", RuntimeWarning, stacklevel=2)
        _importable[kernel.name] = False
        return False
    _importable[kernel.name] = True
    return True
