"""Devices that this machine lacks, pretended: tensors say that they are there, and refuse to meet those of another.

Inside ``with pretended():`` a tensor may be put on "mtia:0", "mtia:1", … (of PyTorch's kinds of devices one that no
kernel here asks for by name). Its numbers stay in this machine's memory and are computed there, to the bit as on the
CPU; but it says that it is on that device, what is computed from it is too, and an operation on tensors of two devices
raises `Apart`, as PyTorch's own would. Allowed are, as in PyTorch, moving, copying and gradients, a number (a tensor
without axes) of the CPU beside any, and indices of the CPU into any.

accelerate's own hooks run inside, so that a model is spread as it would be.
"""

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

KIND = "mtia"
CPU = torch.device("cpu")

FREE = {"copy_", "to", "grad", "backward"}  # between devices
INDEXING = {"__getitem__", "__setitem__", "index_put", "index_put_"}


class Apart(RuntimeError):
    """Tensors of two devices met in one operation."""


class _Places:
    """Where tensors say they are."""

    def get(self, tensor):
        return tensor.__dict__.get("_pretended", CPU) if tensor.device.type != "meta" else torch.device("meta")

    def put(self, tensor, place):
        if place.type == KIND:
            tensor._pretended = place
        else:
            tensor.__dict__.pop("_pretended", None)
        return tensor


PLACES = _Places()


def place_of(given):
    """A device from what may stand for one; None for what does not."""
    if isinstance(given, str):
        try:
            given = torch.device(given)
        except RuntimeError:
            return None
    return given if isinstance(given, torch.device) else None


class _Mode(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        owner = getattr(func, "__self__", None)
        if name == "__get__":
            attribute = getattr(owner, "__name__", "")
            out = func(*args, **kwargs)
            if attribute == "device":
                return PLACES.get(args[0])
            if isinstance(out, Tensor):
                return PLACES.put(out, PLACES.get(args[0]))
            if attribute == "is_cpu":
                return PLACES.get(args[0]).type == "cpu"
            return out
        if name == "__set__":
            out = func(*args, **kwargs)
            if getattr(owner, "__name__", "") == "data":
                PLACES.put(args[0], PLACES.get(args[1]))
            return out
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        asked, args, kwargs = self.asked(name, args, kwargs)
        if name.startswith("_foreach"):
            return self.each(name, func, args, kwargs)
        self.check(name, args, kwargs, tensors)
        if name == "numpy" and PLACES.get(args[0]).type == KIND:
            raise TypeError("can't convert a tensor of a pretended device to numpy")
        if name == "histc":  # of whole numbers where the device is not the CPU, which is what it is computed on
            args = (args[0].float(), *args[1:])
        out = func(*args, **kwargs)
        if name == "grad":  # each where its input is
            inputs = args[1] if len(args) > 1 else kwargs["inputs"]
            inputs = (inputs,) if isinstance(inputs, Tensor) else inputs
            return tuple(g if g is None else PLACES.put(g, PLACES.get(x)) for g, x in zip(out, inputs, strict=True))
        if asked is not None:
            place = asked
        elif name == "cpu":
            place = CPU
        elif name in ("copy_", "__setitem__"):
            place = PLACES.get(args[0])
        elif name == "type_as" or (name == "to" and len(args) > 1 and isinstance(args[1], Tensor)):
            place = PLACES.get(args[1])
        else:
            place = next((PLACES.get(t) for t in tensors if PLACES.get(t).type == KIND), CPU)
            if name in INDEXING:
                place = PLACES.get(args[0])
        moved = asked is not None or name in ("cpu", "to", "type_as")

        def tagged(leaf):
            if not isinstance(leaf, Tensor) or leaf.device.type == "meta":
                return leaf
            if any(leaf is tensor for tensor in tensors):
                if moved and PLACES.get(leaf) != place:  # "moved" to where its numbers are anyway: a tensor of its own
                    leaf = leaf.clone() if not isinstance(leaf, torch.nn.Parameter) else leaf.detach().clone()
                else:
                    return leaf
            return PLACES.put(leaf, place)

        return tree_map(tagged, out)

    def asked(self, name, args, kwargs):
        """The pretended or real device that a call asks for, and its arguments with the CPU in that place."""
        found = None
        if "device" in kwargs and kwargs["device"] is not None:
            found = place_of(kwargs["device"])
            if found is not None and found.type == KIND:
                kwargs["device"] = CPU
        if name == "to" and len(args) > 1 and (place := place_of(args[1])) is not None:
            found = place
            if place.type == KIND:
                args = (args[0], CPU, *args[2:])
        if name.startswith("new_") and found is None:
            found = PLACES.get(args[0])
            found = found if found.type == KIND else None
        return (found if found is None or found.type != "meta" else None), args, kwargs

    def each(self, name, func, args, kwargs):
        """An optimiser's operation on lists of tensors, which it sorts by devices first, and here cannot."""
        lists = [given for given in args if isinstance(given, (list, tuple)) and isinstance(given[0], Tensor)]
        for together in zip(*lists, strict=True):
            self.check(name, (), {}, together)
        out = func(*args, **kwargs)
        return out and type(out)(PLACES.put(one, PLACES.get(own)) for one, own in zip(out, lists[0], strict=True))

    def check(self, name, args, kwargs, tensors):
        if name in FREE:
            return
        if name in INDEXING:
            home = PLACES.get(args[0])
            rest = [t for t in tree_flatten((args[1:], kwargs))[0] if isinstance(t, Tensor)]
            wrong = [t for t in rest if PLACES.get(t) not in (home, CPU)]
            values = args[2:] if name == "__setitem__" else ()
            wrong += [v for v in values if isinstance(v, Tensor) and v.ndim and PLACES.get(v) != home]
            if wrong:
                raise Apart(f"{name}: a tensor on {home}, indexed by or given one on {PLACES.get(wrong[0])}")
            return
        places = {PLACES.get(t) for t in tensors if t.device.type != "meta" and (t.ndim or PLACES.get(t) != CPU)}
        if len(places) > 1:
            raise Apart(f"{name}: tensors on {' and '.join(sorted(map(str, places)))}")


@contextlib.contextmanager
def pretended():
    """Devices "mtia:0", "mtia:1", …, for the length of a block."""
    made: Any = torch.nn.Parameter.__new__

    def parameter(cls, data=None, requires_grad=True):
        out = made(cls, data, requires_grad)
        return out if data is None or data.is_meta else PLACES.put(out, PLACES.get(data))

    torch.nn.Parameter.__new__ = staticmethod(parameter)
    try:
        with _Mode():
            yield
    finally:
        torch.nn.Parameter.__new__ = staticmethod(made)
