"""Bit patterns of floats, where only an order or a NaN is meant: `lowbit.core.extremes` as operators on the floats themselves.

ONNX has no bit cast before opset 26. A pattern is written as a node that no file has, one of `PATTERNS`, with the float it is
of; what follows is known by what it does:

    bits(x) & 0x7fffffff                          size(|x|): bits in the order of the floats
    bits(x) | bits(NaN)                           bits(NaN)
    select(mask, bits(a), bits(b))                bits(select(mask, a, b))
    max(size(x)), max(key(x))                     size(max x), key(max x)
    key(x) = bits(x) ^ ((bits(x) >> 31) & 0x7fffffff), where it is no NaN     integers in the order of the floats

A maximum of ONNX may pass a NaN over; no pattern but these has a form.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lowbit.program import primitives

from . import movement
from .arithmetic import Handler, number, select
from .graph import Graph, Value
from .movement import operand

_BITS, _SIZE, _KEY, _SIGN, _MASK = "_bits", "_size", "_key", "_sign", "_mask"
PATTERNS = (_BITS, _SIZE, _KEY, _SIGN, _MASK)
"""What is no operator: the pattern, that of a float which is not negative, the integer in the float's order, its sign in all bits,
and in all bits but the first."""

_MAGNITUDE = 0x7FFFFFFF
_MOVES = primitives.SHAPED | {"slice", "copy"}


def is_pattern(x: Value) -> bool:
    """Returns whether a value is a pattern."""
    return x.op in PATTERNS


def written(
    g: Graph, name: str, values: Sequence[Value], params: Mapping[str, Any], out: Any, handlers: Mapping[str, Handler]
) -> Value | None:
    """Returns what an equation makes of patterns, or a pattern of a float; None where that has no form.

    Args:
        g: where operators are written.
        name: of the primitive.
        values: operands, a pattern among them, or that of a bit cast.
        params: of the primitive.
        out: the abstract result.
        handlers: of the primitives that have a form.
    """
    x, *others = values
    if name == "bitcast_convert_type":
        if x.op in (_BITS, _SIZE):
            return operand(x) if out.dtype == operand(x).dtype else None
        is_whole = x.dtype == np.float32 and np.dtype(out.dtype).itemsize == 4
        return _pattern(g, _BITS, x, out.dtype) if is_whole else None
    if (name in _MOVES and x.op in (_BITS, _SIZE, _KEY)) or (name == "reduce_max" and x.op in (_SIZE, _KEY)):
        moved = handlers[name](g, [operand(x)], params, jax.ShapeDtypeStruct(out.shape, np.float32))
        return _pattern(g, x.op, moved, out.dtype)
    if name == "select_n":
        return _selected(g, values, params, out)
    if len(others) != 1:
        return None
    left, right = (x, others[0]) if is_pattern(x) else (others[0], x)
    constant = number(right)
    if name == "and" and constant == _MAGNITUDE:
        if left.op == _SIGN:
            return _pattern(g, _MASK, operand(left), out.dtype)
        return _pattern(g, _SIZE, _absolute(g, operand(left)), out.dtype) if left.op == _BITS else None
    if name == "or" and constant is not None and left.op in (_BITS, _SIZE):
        return _nan(g, int(constant), out)
    if name == "shift_right_arithmetic" and left is x and left.op in (_BITS, _KEY) and constant == 31:
        return _pattern(g, _SIGN, operand(left), out.dtype)
    if name == "xor" and {left.op, right.op} in ({_BITS, _MASK}, {_KEY, _MASK}) and operand(left) is operand(right):
        return _pattern(g, _KEY if _BITS in (left.op, right.op) else _BITS, operand(left), out.dtype)
    return None


def _pattern(g: Graph, op: str, x: Value, dtype: Any) -> Value:
    return g.node(op, [x], x.shape, dtype)


def _absolute(g: Graph, x: Value) -> Value:
    return movement.elementwise(g, "Abs", [x], x.shape, x.dtype)


def _nan(g: Graph, bits: int, out: Any) -> Value | None:
    """The pattern of NaN, whatever it was made of."""
    value = np.array(bits, np.uint32).view(np.float32)
    if not np.isnan(value):
        return None
    return _pattern(g, _BITS, g.constant(np.broadcast_to(value, out.shape)), out.dtype)


def _selected(g: Graph, values: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value | None:
    _, *cases = values
    if len(cases) != 2:
        return None
    if all(x.op in (_BITS, _SIZE) for x in cases):
        floats = [values[0], *map(operand, cases)]
        chosen = select(g, floats, params, jax.ShapeDtypeStruct(out.shape, np.float32))
        return _pattern(g, _BITS, chosen, out.dtype)
    key = next((x for x in cases if x.op == _KEY), None)
    is_of_nan = any(number(x) == _MAGNITUDE for x in cases)
    return key if is_of_nan else None
