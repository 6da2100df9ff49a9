"""Elementwise operators: arithmetic, comparisons, activations, casts."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax import lax

from . import movement
from .graph import INTEGERS, Graph, Quantized, Value, bits_of, compact
from .movement import elementwise, operand
from .softmax import softmax

Handler = Callable[[Graph, Sequence[Value], Mapping[str, Any], Any], Value]
"""``(graph, operands, parameters, abstract result) -> result`` of one primitive."""

_LARGEST = float(np.finfo(np.float32).max)


def number(x: Value) -> float | None:
    """Returns the one value of a constant, or None."""
    if x.array is None or (small := compact(x.array)).size != 1:
        return None
    return float(small.reshape(()))


def scalar(g: Graph, value: float | int, dtype: Any) -> Value:
    """Returns a constant without axes."""
    return g.constant(np.array(value, dtype))


def _same(name: str) -> Handler:
    def handler(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
        del params
        return elementwise(g, name, inputs, out.shape, out.dtype)

    return handler


def _chain(*names: str) -> Handler:
    def handler(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
        del params
        for name in names:
            inputs = [elementwise(g, name, inputs, out.shape, out.dtype)]
        return inputs[0]

    return handler


def _logical(name: str, bitwise: str) -> Handler:
    def handler(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
        del params
        return elementwise(g, name if out.dtype == np.bool_ else bitwise, inputs, out.shape, out.dtype)

    return handler


def multiply(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
    """Returns ``a * b``; of codes and a constant, the constant goes into their scale."""
    del params
    for a, b in (inputs, reversed(inputs)):
        if a.quantized is not None and b.array is not None and a.shape == tuple(out.shape):
            q = a.quantized
            scale = np.asarray(q.scale * b.array, np.float32)
            return g.quantized(dataclasses.replace(q, scale=np.broadcast_to(scale, q.codes.shape)))
        if number(b) == 1.0 and a.shape == tuple(out.shape) and np.dtype(out.dtype).kind == "f":
            return a
    for a, b in (inputs, reversed(inputs)):
        if (factor := number(b)) is not None and (mean := _mean(g, a, 1.0 / factor if factor else 0.0)) is not None:
            return mean
    return elementwise(g, "Mul", inputs, out.shape, out.dtype)


def divide(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
    """Returns ``a / b``; a sum divided by its count is a mean."""
    del params
    a, b = inputs
    divisor = number(b)
    if divisor is not None and (mean := _mean(g, a, divisor)) is not None:
        return mean
    if (weights := softmax(g, a, b)) is not None:
        return weights
    return elementwise(g, "Div", inputs, out.shape, out.dtype)


def _mean(g: Graph, x: Value, count: float) -> Value | None:
    """The mean, where ``x`` is a sum of so many elements, moved or not."""
    how = movement.taken_apart(g, x)
    inner = x if how is None else how.source
    if inner.op == "Mul" and operand(inner).op == "AveragePool":  # times its count: a window's sum
        n = number(operand(inner, 1))
        mean = operand(inner) if n is not None and abs(n - count) <= 1e-6 * n else None
        return mean if how is None or mean is None else how.again(g, mean)
    if inner.op != "ReduceSum" or inner.dtype.kind != "f":
        return None
    source = operand(inner)
    if abs(source.size / max(inner.size, 1) - count) > 1e-6 * count:
        return None
    axes = operand(inner, 1)
    assert axes.array is not None
    if len(source.shape) == 4 and axes.array.tolist() == [2, 3]:
        mean = g.node("GlobalAveragePool", [source], inner.shape, inner.dtype)
    else:
        mean = g.node("ReduceMean", [source, axes], inner.shape, inner.dtype, keepdims=1)
    return mean if how is None else how.again(g, mean)


def subtract(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
    """Returns ``a - b``; of codes that have scale one and no zero point, an integer constant becomes it."""
    del params
    a, b = inputs
    q = a.quantized
    if q is not None and q.zero is None and b.array is not None and np.all(q.scale == 1.0):
        zero = np.broadcast_to(b.array, q.codes.shape).astype(q.codes.dtype)
        if np.array_equal(zero.astype(np.float32), np.broadcast_to(b.array, q.codes.shape)):
            return g.quantized(Quantized(q.codes, q.scale, zero))
    return elementwise(g, "Sub", inputs, out.shape, out.dtype)


def maximum(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
    """Returns ``max(a, b)``; with zero, Relu."""
    del params
    is_float = np.dtype(out.dtype).kind == "f"
    for x, bound in (inputs, reversed(inputs)):
        if is_float and number(bound) == 0.0 and x.shape == tuple(out.shape):
            return elementwise(g, "Relu", [x], out.shape, out.dtype)
        if is_float and number(bound) == -np.inf and x.shape == tuple(out.shape):
            return x
    return elementwise(g, "Max", inputs, out.shape, out.dtype)


def minimum(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
    """Returns ``min(a, b)``; of a Relu and a constant, Clip."""
    del params
    for x, bound in (inputs, reversed(inputs)):
        if (high := number(bound)) is None or x.shape != tuple(out.shape) or np.dtype(out.dtype).kind != "f":
            continue
        how = movement.taken_apart(g, x)
        inner = x if how is None else how.source
        if inner.op == "Relu":
            clipped = _clip(g, operand(inner), 0.0, high)
            return clipped if how is None else how.again(g, clipped)
    return elementwise(g, "Min", inputs, out.shape, out.dtype)


def _clip(g: Graph, x: Value, low: float, high: float) -> Value:
    bounds = [scalar(g, low, x.dtype), scalar(g, high, x.dtype)]
    return elementwise(g, "Clip", [x, *bounds], x.shape, x.dtype)


def clamp(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
    """Returns ``min(max(x, low), high)``; nothing where the bounds are the largest finite values."""
    del params
    low, x, high = inputs
    bounds = number(low), number(high)
    if bounds[0] is not None and bounds[1] is not None and np.dtype(out.dtype).kind == "f":
        # What keeps XLA from fusing a product and a sum; other runtimes have no such habit.
        if bounds[0] <= -_LARGEST and bounds[1] >= _LARGEST:
            return x
        return _clip(g, x, bounds[0], bounds[1])
    return elementwise(g, "Min", [elementwise(g, "Max", [x, low], out.shape, out.dtype), high], out.shape, out.dtype)


def power(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
    """Returns ``x ** n``: products for integers up to four, Pow beyond."""
    x, n = inputs[0], int(params.get("y", 2))
    if n == 0:
        return g.constant(np.broadcast_to(np.ones((), out.dtype), out.shape))
    if abs(n) > 4:
        return elementwise(g, "Pow", [x, scalar(g, n, out.dtype)], out.shape, out.dtype)
    result = x
    for _ in range(abs(n) - 1):
        result = elementwise(g, "Mul", [result, x], out.shape, out.dtype)
    return result if n > 0 else elementwise(g, "Reciprocal", [result], out.shape, out.dtype)


def select(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
    """Returns ``where(which, cases[1], cases[0])``.

    Raises:
        ValueError: for more than two cases.
    """
    del params
    which, *cases = inputs
    if len(cases) != 2 or which.dtype != np.bool_:
        raise ValueError(f"the primitive select_n with {len(cases)} cases has no ONNX form here; use jnp.where")
    if which.shape == () and out.shape:
        which = movement.expand(g, movement.reshape(g, which, (1,) * len(out.shape)), out.shape)
    return elementwise(g, "Where", [which, cases[1], cases[0]], out.shape, out.dtype)


def compare(name: str, *, is_negated: bool = False) -> Handler:
    """Returns the handler of a comparison."""

    def handler(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
        del params
        result = elementwise(g, name, inputs, out.shape, np.bool_)
        return elementwise(g, "Not", [result], out.shape, np.bool_) if is_negated else result

    return handler


def round_to_integer(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
    """Returns ``round(x)``, ties to even or away from zero."""
    x = inputs[0]
    if params.get("rounding_method", 0) == lax.RoundingMethod.TO_NEAREST_EVEN:
        return elementwise(g, "Round", [x], out.shape, out.dtype)
    size = elementwise(g, "Abs", [x], out.shape, out.dtype)
    whole = elementwise(g, "Floor", [size], out.shape, out.dtype)  # abs(x) + 0.5 would round: take the fraction
    rest = elementwise(g, "Sub", [size, whole], out.shape, out.dtype)
    is_up = elementwise(g, "GreaterOrEqual", [rest, scalar(g, 0.5, out.dtype)], out.shape, np.bool_)
    step = elementwise(g, "Cast", [is_up], out.shape, out.dtype, to=str(np.dtype(out.dtype)))
    whole = elementwise(g, "Add", [whole, step], out.shape, out.dtype)
    return elementwise(g, "Mul", [elementwise(g, "Sign", [x], out.shape, out.dtype), whole], out.shape, out.dtype)


def convert(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
    """Returns ``x`` in another dtype; a narrow constant stays in its codes."""
    del params
    x = inputs[0]
    if x.dtype == out.dtype:
        return x
    if x.array is not None:
        codes = narrowed(x.array)
        return g.quantized(Quantized(codes, np.broadcast_to(np.ones((), np.float32), codes.shape), None))
    if x.quantized is not None and np.all(x.quantized.scale == 1.0):  # integers on their way to be multiplied
        return Value(x.shape, np.dtype(out.dtype), quantized=x.quantized)
    return elementwise(g, "Cast", [x], out.shape, out.dtype, to=str(np.dtype(out.dtype)))


def narrowed(codes: np.ndarray) -> np.ndarray:
    """Returns integers in 4 or 8 bits, if they fit; they may have been widened on the way.

    Example:
        >>> [str(narrowed(np.array(x, np.int16)).dtype) for x in ([-8, 7], [0, 9], [-1, 8], [300])]
        ['int4', 'uint4', 'int8', 'int16']
    """
    low, high = int(codes.min(initial=0)), int(codes.max(initial=0))
    bounds = {"i4": (-8, 7), "u4": (0, 15), "i8": (-128, 127), "u8": (0, 255)}
    word = next((word for word, (a, b) in bounds.items() if a <= low and high <= b), None)
    return codes if word is None or bits_of(codes.dtype) <= int(word[1:]) else codes.astype(INTEGERS[word])


def _with_constant(op: str, value: float, *, is_first: bool = False, then: str = "", before: str = "") -> Handler:
    """Functions that are another one and a constant: ``exp2``, ``log1p``, ``expm1``, ``erfc``."""

    def handler(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
        del params
        x = inputs[0]
        if before:
            x = elementwise(g, before, [x], out.shape, out.dtype)
        constant = scalar(g, value, out.dtype)
        x = elementwise(g, op, [constant, x] if is_first else [x, constant], out.shape, out.dtype)
        return elementwise(g, then, [x], out.shape, out.dtype) if then else x

    return handler


def is_finite(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
    """Returns ``abs(x) <= largest``: false for infinities and NaN."""
    del params
    x = inputs[0]
    size = elementwise(g, "Abs", [x], x.shape, x.dtype)
    return elementwise(g, "LessOrEqual", [size, scalar(g, float(np.finfo(x.dtype).max), x.dtype)], out.shape, np.bool_)


def remainder(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
    """Returns the remainder with the sign of the dividend."""
    del params
    return elementwise(g, "Mod", inputs, out.shape, out.dtype, fmod=1)


def through(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
    """Returns the operand: nothing is computed."""
    del g, params, out
    return inputs[0]


def reduce_precision(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
    """Returns the operand, where the precision is its own.

    Raises:
        ValueError: where it is not.
    """
    del g
    info = np.finfo(np.dtype(out.dtype))
    if (params["exponent_bits"], params["mantissa_bits"]) != (info.nexp, info.nmant):
        raise ValueError(f"the primitive reduce_precision of {out.dtype} has no ONNX form")
    return inputs[0]


HANDLERS: Mapping[str, Handler] = {
    "add": _same("Add"),
    "add_any": _same("Add"),
    "sub": subtract,
    "mul": multiply,
    "div": divide,
    "rem": remainder,
    "max": maximum,
    "min": minimum,
    "pow": _same("Pow"),
    "integer_pow": power,
    "square": power,
    "neg": _same("Neg"),
    "abs": _same("Abs"),
    "sign": _same("Sign"),
    "floor": _same("Floor"),
    "ceil": _same("Ceil"),
    "round": round_to_integer,
    "exp": _same("Exp"),
    "exp2": _with_constant("Pow", 2.0, is_first=True),
    "expm1": _with_constant("Sub", 1.0, before="Exp"),
    "log": _same("Log"),
    "log1p": _with_constant("Add", 1.0, then="Log"),
    "sin": _same("Sin"),
    "cos": _same("Cos"),
    "tan": _same("Tan"),
    "sinh": _same("Sinh"),
    "cosh": _same("Cosh"),
    "tanh": _same("Tanh"),
    "logistic": _same("Sigmoid"),
    "erf": _same("Erf"),
    "erfc": _with_constant("Sub", 1.0, is_first=True, before="Erf"),
    "sqrt": _same("Sqrt"),
    "rsqrt": _chain("Sqrt", "Reciprocal"),
    "select_n": select,
    "clamp": clamp,
    "eq": compare("Equal"),
    "ne": compare("Equal", is_negated=True),
    "lt": compare("Less"),
    "le": compare("LessOrEqual"),
    "gt": compare("Greater"),
    "ge": compare("GreaterOrEqual"),
    "and": _logical("And", "BitwiseAnd"),
    "or": _logical("Or", "BitwiseOr"),
    "xor": _logical("Xor", "BitwiseXor"),
    "not": _logical("Not", "BitwiseNot"),
    "is_finite": is_finite,
    "convert_element_type": convert,
    "reduce_precision": reduce_precision,
    "copy": through,
    "stop_gradient": through,
    "optimization_barrier": through,
}
"""By primitive."""
