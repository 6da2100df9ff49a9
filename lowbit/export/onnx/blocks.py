"""Weights with a scale per block of the contraction: one product per block, scaled and summed, becomes one product.

The universal form writes ``sum_g s_g (x_g @ w_g)``, which compilers without such weights run well. ONNX has the weights:
``x @ DequantizeLinear(w, s, block_size)``, and ONNX Runtime a kernel for it.
"""

from typing import NamedTuple

import numpy as np

from . import movement
from .graph import Graph, Quantized, Value
from .movement import operand


class _Sum(NamedTuple):
    """What a sum over blocks is made of."""

    product: Value
    scale: np.ndarray


def join_blocks(g: Graph, value: Value) -> None:
    """Writes a sum over blocks as one product, in place; any other Add stays."""
    total = _sum(value)
    if total is None:
        return
    left, right = operand(total.product), operand(total.product, 1)
    q, (groups, *batch, rows, block) = right.quantized, left.shape
    if q is None or any(n != 1 for n in batch) or q.codes.shape[:-2] != (groups, *batch):
        return
    rank, columns = len(left.shape), q.codes.shape[-1]
    scale = np.broadcast_to(q.scale * total.scale, q.codes.shape)
    weight = Quantized(q.codes, scale, q.zero).moved(lambda a: a.reshape(groups * block, columns))
    x = movement.transpose(g, left, [*range(1, rank - 1), 0, rank - 1])
    x = movement.reshape(g, x, (*batch, rows, groups * block))
    x = movement.reshape(g, x, (1,) * (len(value.shape) - 2) + (rows, groups * block))
    value.node = g.node("MatMul", [x, g.quantized(weight)], value.shape, value.dtype).node


def _sum(value: Value) -> _Sum | None:
    """The product and the scales, where an Add sums every block once."""
    leaves: list[Value] = []
    stack = [value]
    while stack:
        x = stack.pop()
        if x.op == "Add":
            assert x.node is not None
            stack += [v for v in x.node.inputs if v is not None]
        elif x.op == "Slice":
            leaves.append(x)
        else:
            return None
    whole = operand(leaves[0])
    starts = [operand(x, 1).array for x in leaves]
    is_all = all(operand(x) is whole and x.shape == (1, *whole.shape[1:]) for x in leaves)
    is_all = is_all and all(s is not None and s.shape == (1,) for s in starts)
    if not is_all or sorted(int(s[0]) for s in starts if s is not None) != list(range(whole.shape[0])):
        return None
    scale, product = np.ones((), np.float32), whole
    while product.op == "Mul":
        scales = [x.array for x in (operand(product), operand(product, 1))]
        known = next((x for x in scales if x is not None), None)
        if known is None:
            return None
        scale = scale * known
        product = operand(product, 1 if scales[0] is not None else 0)
    if product.op != "MatMul" or len(product.shape) < 3 or any(n != 1 for n in scale.shape[:-1][-1:]):
        return None
    return _Sum(product, scale)
