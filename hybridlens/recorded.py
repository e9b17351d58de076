"""A piece of work on tensors, recorded once and done again without any Python of its own.

On a GPU the record is a CUDA graph: the launches of all kernels, sent as one. Elsewhere it is the list of PyTorch's own
operations, done one by one, which says the same and shows whether a piece of work can be recorded at all. Either way
the same tensors are read and written each time: what is to change between two runs is written into them.

How it fails: work that reads a value of a tensor to decide what comes next, or makes a tensor whose size hangs on one,
cannot be recorded, and raises `InputError` with the operation and the place that asked for it.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from hybridlens.errors import InputError

Work = Callable[[], Tensor]
"""Reads and writes tensors that it holds; what it returns is one of its own making."""

READS = (
    "_local_scalar_dense", "item", "nonzero", "nonzero_numpy", "is_nonzero", "equal", "masked_select", "unique",
    "_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount",
)  # fmt: skip
"""Operations that give the host a value, or whose result's size hangs on one."""

TAKEN = (Tensor.tolist, Tensor.numpy, Tensor.__array__)
"""What gives the host all values of a tensor that is there, by no operation."""


def record(work: Work, device: torch.device) -> Work:
    """What does again, on the same tensors, what `work` does.

    On a GPU `work` is not done meanwhile, and must have been done before; elsewhere it is done once.

    Raises:
        InputError: it reads a value.
    """
    return _graph(work, device) if device.type == "cuda" else _listed(work)


def reads(func: Any, args: tuple[Any, ...]) -> str | None:
    """The name of an operation if it gives the host a value, or hangs a size on one; else None."""
    name = str(func).split(".")[1] if "." in str(func) else str(func)
    if name in READS:
        return name
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        masks = any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        return f"{name} by a mask" if masks else None
    if name == "repeat_interleave" and "Tensor" in str(func).split(".")[-1]:
        return "repeat_interleave by a tensor"
    return None


def refused(why: str, place: str) -> InputError:
    """The error for work that cannot be recorded."""
    return InputError(
        f"a decode step cannot be captured: {why} ({place}); leave capture out, or edit with tensor operations alone"
    )


def _graph(work: Work, device: torch.device) -> Work:
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.device(device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            out = work()
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise refused(said[:160], "while its launches were recorded") from error

    def again() -> Tensor:
        graph.replay()
        return out

    return again


class _Ref(NamedTuple):
    """What an operation of the list gave."""

    number: int


class _Step(NamedTuple):
    """One operation of the list."""

    func: Any
    arguments: list[Any]
    """Flat; tensors that the work made are `_Ref`s."""
    spec: Any
    gives: tuple[int, ...]
    """Numbers of the tensors that come out."""


class _Recorder(TorchDispatchMode):
    """Writes down every operation while it is done."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[_Step] = []
        self.numbers: dict[int, int] = {}
        self.kept: list[Tensor] = []
        """So that no number is that of two tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        what = reads(func, args)
        if what is not None:
            raise refused(f"{what} waits for the device", _place())
        if func is torch.ops.aten.lift_fresh.default:  # a constant of the work: each time anew, as it was
            func, args = torch.ops.aten.clone.default, (args[0].clone(),)
        flat, spec = tree_flatten((args, kwargs or {}))
        taken = [self._taken(value) for value in flat]
        out = func(*args, **(kwargs or {}))
        gives: list[int] = []
        for value in tree_flatten(out)[0]:
            if isinstance(value, Tensor):
                self.numbers[id(value)] = len(self.kept)
                gives.append(len(self.kept))
                self.kept.append(value)
        self.steps.append(_Step(func, taken, spec, tuple(gives)))
        return out

    def _taken(self, value: Any) -> Any:
        return _Ref(self.numbers[id(value)]) if isinstance(value, Tensor) and id(value) in self.numbers else value


class _Taking(TorchFunctionMode):
    """Refuses what no dispatch mode sees."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in TAKEN:
            raise refused(f"{func.__name__} waits for the device", _place())
        return func(*args, **(kwargs or {}))


def _listed(work: Work) -> Work:
    with _Recorder() as recorder, _Taking():
        out = work()
    steps, last = recorder.steps, recorder.numbers[id(out)]

    def again() -> Tensor:
        made: dict[int, Tensor] = {}
        for func, arguments, spec, gives in steps:
            flat = [made[value.number] if isinstance(value, _Ref) else value for value in arguments]
            args, kwargs = tree_unflatten(flat, spec)
            found = func(*args, **kwargs)
            if gives:
                tensors = [value for value in tree_flatten(found)[0] if isinstance(value, Tensor)]
                made.update(zip(gives, tensors, strict=True))
        return made[last]

    return again


def _place() -> str:
    """The innermost line outside PyTorch that led here."""
    for frame in reversed(traceback.extract_stack()):
        if "/torch/" not in frame.filename and not frame.filename.endswith("recorded.py"):
            return f"{'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno}"
    return "unknown place"
