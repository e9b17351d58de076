"""What the source of a trace's block says that cannot be meant, read before the block runs.

``x = lens.blocks[2].output`` is no leaf, so ``x.grad`` is None, in nnsight of old as after a plain ``loss.backward()``:
gradients of what a trace read are had inside ``with loss.backward():``. Whether a block asks for one elsewhere can be
seen where the name is given a live value and nothing in the block makes it keep its gradient.

And blocks that nnsight runs need a ``with`` each, or the inner one's lines would run twice.

How it fails: `InputError`, naming the line. A block without a source, and a name that gets its value by way of a
function, are not looked into; PyTorch warns there.
"""

from __future__ import annotations

import ast
from collections import Counter

from hybridlens.errors import InputError
from hybridlens.habits import PAGE, TRACES

KEEPING = {"retain_grad", "requires_grad_"}
"""After these a tensor's ``.grad`` is what it is in PyTorch."""


BLOCKS = {"trace", "scan", "session", "invoke"}
"""What opens a block that nnsight runs."""


def check(block: ast.With | ast.AsyncWith) -> None:
    """Refuse what cannot be meant.

    Args:
        block: the ``with`` of a trace or a session.

    Raises:
        InputError: for the first thing found.
    """
    opened = [ast.unparse(item.context_expr) for item in block.items if _calls(item.context_expr, BLOCKS)]
    if len(opened) > 1:
        raise InputError(
            f"line {block.lineno}: {opened[0]} and {opened[1]} are opened by one `with`; type `with {opened[1]}:` on a "
            "line of its own, inside the other block"
        )
    _check_gradients(block)


def _check_gradients(block: ast.With | ast.AsyncWith) -> None:
    """Refuse a gradient that would be None."""
    inside = [node for statement in block.body for node in ast.walk(statement)]
    if any(isinstance(node, ast.Attribute) and node.attr in KEEPING for node in inside):
        return
    bound = Counter(node.id for node in inside if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    live = Counter(
        target.id
        for node in inside
        if isinstance(node, ast.Assign) and _is_live(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    )
    served = {
        id(node)
        for within in inside
        if isinstance(within, ast.With) and any(_calls(item.context_expr, {"backward"}) for item in within.items)
        for node in ast.walk(within)
    }
    for node in inside:
        if isinstance(node, ast.Attribute) and node.attr == "grad" and isinstance(node.ctx, ast.Load):
            name = node.value.id if isinstance(node.value, ast.Name) else ""
            named = bool(live[name]) and live[name] == bound[name]  # it is nothing else anywhere
            if id(node) not in served and (named or _is_live(node.value)):
                said = ast.unparse(node)
                raise InputError(
                    f"line {node.lineno} of the trace: {said} is None there, since gradients of what a trace read come "
                    f"inside `with loss.backward():`; type `with loss.backward():` and `{said}.save()` in its block; "
                    f"see {TRACES!r} in {PAGE}"
                )


def _calls(item: ast.expr, names: set[str]) -> bool:
    return isinstance(item, ast.Call) and isinstance(item.func, ast.Attribute) and item.func.attr in names


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
