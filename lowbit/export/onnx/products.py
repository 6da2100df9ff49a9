"""Matrix products and convolutions, in ONNX's layouts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from . import movement
from .arithmetic import Handler
from .graph import Graph, Value


def dot_general(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
    """Returns ``dot_general`` as MatMul: batch axes first, then rows of the left, columns of the right operand."""
    left, right = inputs
    _check_float("dot_general", inputs)
    (lc, rc), (lb, rb) = params["dimension_numbers"]
    lf = [i for i in range(len(left.shape)) if i not in (*lc, *lb)]
    rf = [i for i in range(len(right.shape)) if i not in (*rc, *rb)]
    batch = [left.shape[i] for i in lb]
    rows, columns = [left.shape[i] for i in lf], [right.shape[i] for i in rf]
    depth = math.prod(left.shape[i] for i in lc)
    a = movement.reshape(g, movement.transpose(g, left, [*lb, *lf, *lc]), [*batch, math.prod(rows), depth])
    b = movement.reshape(g, movement.transpose(g, right, [*rb, *rc, *rf]), [*batch, depth, math.prod(columns)])
    product = g.node("MatMul", [a, b], [*batch, math.prod(rows), math.prod(columns)], out.dtype)
    return movement.reshape(g, product, out.shape)


def convolution(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
    """Returns a convolution, channels first.

    Raises:
        ValueError: for what ONNX's Conv is not: transposed, without a window, negative padding, groups of the batch.
    """
    x, kernel = inputs
    _check_float("conv_general_dilated", inputs)
    numbers = params["dimension_numbers"]
    count = len(x.shape) - 2
    reasons = {
        "an input dilation (a transposed convolution)": any(d != 1 for d in params["lhs_dilation"]),
        "batch groups": params["batch_group_count"] != 1,
        "negative padding": any(n < 0 for pads in params["padding"] for n in pads),
        "no window": count < 1,
    }
    if refused := [reason for reason, is_so in reasons.items() if is_so]:
        raise ValueError(f"the primitive conv_general_dilated with {refused[0]} has no ONNX form here")
    x = movement.transpose(g, x, numbers.lhs_spec)
    kernel = movement.transpose(g, kernel, numbers.rhs_spec)
    result = g.node(
        "Conv",
        [x, kernel],
        [out.shape[i] for i in numbers.out_spec],
        out.dtype,
        kernel_shape=list(kernel.shape[2:]),
        strides=list(params["window_strides"]),
        pads=[pads[side] for side in (0, 1) for pads in params["padding"]],
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
    )
    back = [0] * len(x.shape)
    for i, axis in enumerate(numbers.out_spec):
        back[axis] = i
    return movement.transpose(g, result, back)


def _check_float(name: str, inputs: Sequence[Value]) -> None:
    for x in inputs:
        if x.dtype.kind != "f":
            raise ValueError(
                f"the primitive {name} of {x.dtype} operands is not written: the form multiplies dequantized values"
            )


HANDLERS: Mapping[str, Handler] = {"dot_general": dot_general, "conv_general_dilated": convolution}
"""By primitive."""
