"""What the source of a trace's block says that PyTorch would do without a word, read before the block runs.

``x = lens.blocks[2].output`` is no leaf, so ``x.grad`` is None, in nnsight of old as after a plain ``loss.backward()``:
gradients of what a trace read are had inside ``with loss.backward():``. Whether a block asks for one elsewhere can be
seen where the name is given a live value and nothing in the block makes it keep its gradient.

How it fails: `InputError`, naming the line. A block without a source, and a name that gets its value by way of a
function, are not looked into; PyTorch warns there.
"""

from __future__ import annotations

import ast

from hybridlens.errors import InputError
from hybridlens.habits import PAGE, TRACES

KEEPING = {"retain_grad", "requires_grad_"}
"""After these a tensor's ``.grad`` is what it is in PyTorch."""


def check_gradients(block: ast.With | ast.AsyncWith) -> None:
    """Refuse a gradient that would be None.

    Args:
        block: the ``with`` of a trace.

    Raises:
        InputError: for the first.
    """
    inside = [node for statement in block.body for node in ast.walk(statement)]
    if any(isinstance(node, ast.Attribute) and node.attr in KEEPING for node in inside):
        return
    live = {
        target.id
        for node in inside
        if isinstance(node, ast.Assign) and _is_live(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    served = {
        id(node)
        for within in inside
        if isinstance(within, ast.With) and any(_goes_back(item.context_expr) for item in within.items)
        for node in ast.walk(within)
    }
    for node in inside:
        if isinstance(node, ast.Attribute) and node.attr == "grad" and isinstance(node.ctx, ast.Load):
            named = isinstance(node.value, ast.Name) and node.value.id in live
            if id(node) not in served and (named or _is_live(node.value)):
                said = ast.unparse(node)
                raise InputError(
                    f"line {node.lineno} of the trace: {said} is None there, since gradients of what a trace read come "
                    f"inside `with loss.backward():`; type `with loss.backward():` and `{said}.save()` in its block; "
                    f"see {TRACES!r} in {PAGE}"
                )


def _goes_back(item: ast.expr) -> bool:
    return isinstance(item, ast.Call) and isinstance(item.func, ast.Attribute) and item.func.attr == "backward"


def _is_live(value: ast.expr) -> bool:
    """Whether an expression is the output or input of something, saved or a part of it."""
    while isinstance(value, ast.Subscript | ast.Call):
        if isinstance(value, ast.Call):
            if not (isinstance(value.func, ast.Attribute) and value.func.attr == "save"):
                return False
            value = value.func.value
        else:
            value = value.value
    return isinstance(value, ast.Attribute) and value.attr in ("output", "input")
