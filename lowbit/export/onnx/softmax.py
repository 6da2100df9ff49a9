"""Softmax, as jax writes it: ``e / sum(e)`` with ``e = exp(x - max(x))``."""

from . import movement
from .graph import Graph, Value
from .movement import operand


def softmax(g: Graph, top: Value, bottom: Value) -> Value | None:
    """Returns ``top / bottom`` as one Softmax, below the movement of ``top``; None if it is none.

    Of codes it stays in parts: ONNX Runtime has a Softmax of bytes, and its table is two steps off.
    """
    how = movement.taken_apart(g, top)
    e = top if how is None else how.source
    total = _reduced(bottom, "ReduceSum", e)
    if e.op != "Exp" or total is None or operand(e).op != "Sub":
        return None
    x = operand(operand(e))
    largest = _reduced(operand(operand(e), 1), "ReduceMax", x)
    if largest is None or largest != total or movement.is_dequantized(x):
        return None
    result = g.node("Softmax", [x], x.shape, x.dtype, axis=total)
    return result if how is None else how.again(g, result)


def _reduced(x: Value, op: str, source: Value) -> int | None:
    """The axis of ``source`` along which ``x`` is its reduction, kept or broadcast; None if it is none."""
    while x.op in ("Expand", "Transpose", "Reshape"):
        x = operand(x)
    if x.op != op or operand(x) is not source:
        return None
    axes = operand(x, 1).array
    return int(axes[0]) if axes is not None and axes.size == 1 else None
