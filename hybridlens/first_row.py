"""``lens.blocks[2].output[0]``, which is the stream in nnsight and would be the first row of the batch here.

Layers of Hugging Face's give a tuple whose first is the stream, and nnsight's users take that out of habit. A lens's
layer gives the stream itself, of which ``[0]`` is one row without its batch axis: edits would reach that row alone, and
what is read have an axis less, without a word. So the output, and the input, of a layer look at the code that asked for
them, and refuse where the next it does is to take ``[0]``.

How it fails: `HookFunctionError`, with what to type for the stream and for the row. Where the tensor has a name of its
own first (``x = lens.blocks[2].output``, then ``x[0]``), nothing is known of it, and PyTorch's rows are meant.
"""

from __future__ import annotations

import dis
from functools import lru_cache
from types import CodeType, FrameType

from hybridlens.elsewhere import typed_here
from hybridlens.errors import HookFunctionError
from hybridlens.habits import TRACES, Habit
from hybridlens.hook_points import HookPoint

TAKING = {"BINARY_SUBSCR", "STORE_SUBSCR", "DELETE_SUBSCR", "COPY"}
"""What Python does after it has put the index beside the tensor; the last in ``x[0] += y``."""


def refuse_first(asking: FrameType, point: HookPoint, side: str) -> None:
    """Refuse to hand a layer's stream out to code that goes on with ``[0]``.

    Args:
        asking: the frame that asks for it.
        point: the hook point of the stream.
        side: what of the layer was asked for, "output" or "input".

    Raises:
        HookFunctionError: it does.
    """
    if not _takes_first(asking.f_code, asking.f_lasti):
        return
    stream = f"lens.blocks[{str(point.name).split('.')[1]}].{side}"
    habit = Habit(stream, TRACES, f"{stream}[:1] for the first row of the batch")
    raise HookFunctionError(
        f"{stream} is the stream itself [{' '.join(point.axes)}] and no tuple, so [0] would be its first row alone; "
        f"{typed_here(habit)}"
    )


@lru_cache(maxsize=1024)
def _takes_first(code: CodeType, at: int) -> bool:
    """Whether ``[0]`` comes right behind the instruction at an offset."""
    later = [one for one in dis.get_instructions(code) if one.offset > at][:2]
    if len(later) < 2 or not later[0].opname.startswith("LOAD_") or type(later[0].argval) is not int:
        return False
    return later[0].argval == 0 and (later[1].opname in TAKING or later[1].argrepr == "[]")
