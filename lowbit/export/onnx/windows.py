"""Reductions, and pooling."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import movement
from .arithmetic import Handler, scalar
from .graph import Graph, Value
from .movement import elementwise, operand


def reduced(g: Graph, op: str, x: Value, axes: Sequence[int], dtype: Any = None) -> Value:
    """Returns a reduction that keeps its axes, below the transpose of ``x``."""
    dtype = x.dtype if dtype is None else dtype
    how = movement.taken_apart(g, x)
    if how is not None and how.perm is not None:
        return movement.transpose(g, reduced(g, op, how.source, [how.perm[i] for i in axes], dtype), how.perm)
    axes = sorted(axes)
    shape = [1 if i in axes else n for i, n in enumerate(x.shape)]
    return g.node(op, [x, g.constant(np.array(axes, np.int64))], shape, dtype, keepdims=1)


def _reduce(op: str) -> Handler:
    def handler(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
        return movement.reshape(g, reduced(g, op, inputs[0], params["axes"]), out.shape)

    return handler


def _reduce_logical(op: str) -> Handler:
    """Of booleans: as integers, which ONNX reduces."""

    def handler(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
        x = inputs[0]
        if x.dtype != np.bool_:
            raise ValueError(f"the primitive {op} of {x.dtype} has no ONNX form")
        wide = elementwise(g, "Cast", [x], x.shape, np.int32, to="int32")
        wide = movement.reshape(g, reduced(g, op, wide, params["axes"]), out.shape)
        return elementwise(g, "Cast", [wide], out.shape, np.bool_, to="bool")

    return handler


def _arg(op: str) -> Handler:
    def handler(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
        (axis,) = params["axes"]
        shape = [1 if i == axis else n for i, n in enumerate(inputs[0].shape)]
        index = g.node(op, inputs, shape, np.int64, axis=axis, keepdims=1)
        return elementwise(g, "Cast", [movement.reshape(g, index, out.shape)], out.shape, out.dtype, to=str(out.dtype))

    return handler


def cumulative_sum(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
    """Returns the running sum along one axis."""
    axis = g.constant(np.array(params["axis"], np.int64))
    return g.node("CumSum", [inputs[0], axis], out.shape, out.dtype, reverse=int(params["reverse"]))


def _window(op: str) -> Handler:
    def handler(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
        x = inputs[0]
        if any(d != 1 for d in params["base_dilation"]) or any(n < 0 for pads in params["padding"] for n in pads):
            raise ValueError("a pooling window with base dilation or negative padding has no ONNX form")
        moving = [i for i in range(len(x.shape)) if _is_moving(params, i)]
        if not moving:
            return x
        rest = [i for i in range(len(x.shape)) if i not in moving]
        # Batch and channels first, as ONNX counts: of the axes that stay, the last one is the channels.
        perm = [*rest, *moving]
        inner = movement.transpose(g, x, perm)
        sizes = [inner.shape[i] for i in range(len(rest))]
        lead = [math.prod(sizes[:-1]), sizes[-1]] if sizes else [1, 1]
        inner = movement.reshape(g, inner, [*lead, *inner.shape[len(rest) :]])
        window = [params["window_dimensions"][i] for i in moving]
        attributes: dict[str, Any] = {
            "kernel_shape": window,
            "strides": [params["window_strides"][i] for i in moving],
            "pads": [params["padding"][i][side] for side in (0, 1) for i in moving],
        }
        if any(params["window_dilation"][i] != 1 for i in moving):  # QLinearAveragePool knows no such attribute
            attributes["dilations"] = [params["window_dilation"][i] for i in moving]
        shape = [*lead, *(out.shape[i] for i in moving)]
        result = pooled(g, op, inner, shape, attributes)
        result = movement.reshape(g, result, [*sizes, *shape[2:]])
        return movement.transpose(g, result, np.argsort(perm).tolist())

    return handler


def pooled(g: Graph, op: str, x: Value, shape: Sequence[int], attributes: Mapping[str, Any]) -> Value:
    """Returns a pooling of ``x``, batch and channels first; of sums, the average times its count."""
    if op == "MaxPool":
        if movement.is_dequantized(x) and operand(x).dtype.itemsize == 1 and operand(x).dtype.kind in "iu":
            return movement.dequantized_like(g, x, pooled(g, op, operand(x), shape, attributes))
        return g.node("MaxPool", [x], shape, x.dtype, **attributes)
    result = g.node("AveragePool", [x], shape, x.dtype, count_include_pad=1, **attributes)
    count = scalar(g, math.prod(attributes["kernel_shape"]), x.dtype)
    return elementwise(g, "Mul", [result, count], shape, x.dtype)


def _is_moving(params: Mapping[str, Any], axis: int) -> bool:
    names = ("window_dimensions", "window_strides", "window_dilation")
    return any(params[name][axis] != 1 for name in names) or tuple(params["padding"][axis]) != (0, 0)


HANDLERS: Mapping[str, Handler] = {
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_prod": _reduce("ReduceProd"),
    "reduce_and": _reduce_logical("ReduceMin"),
    "reduce_or": _reduce_logical("ReduceMax"),
    "argmax": _arg("ArgMax"),
    "argmin": _arg("ArgMin"),
    "cumsum": cumulative_sum,
    "reduce_window_max": _window("MaxPool"),
    "reduce_window_sum": _window("AveragePool"),
}
"""By primitive."""
