"""Integer arithmetic of every kind of node: codes in, codes out. No float anywhere; what `constants` makes comes in.

A linear node computes an int32 accumulator, then ``code = clamp(rounded(multiplier * (accumulator + bias)) + offset)``.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int32, Integer

from lowbit.core.checks import is_traced
from lowbit.core.spec import Spec
from lowbit.interpret.arithmetic import Matmul, right_to_result
from lowbit.interpret.layout import reach_of_spec as reach_of_spec
from lowbit.interpret.lookup import part
from lowbit.interpret.sums import contracted_size, exact_sum
from lowbit.program import compat
from lowbit.program.read import Equation

from .fixed import Rounding
from .nodes import Node

AFFINE_BITS = 12
"""An affine of one tensor accumulates in steps this many bits finer than its input's."""

SOFTMAX_BITS = 14
"""The exponentials of a softmax are integers up to 2**14; their quotients have 16 bits."""

NORM_BITS = 15
"""A normalized value, divided by the square root of the number of features, has 15 bits after the point."""

CodeArray = Integer[Array, "..."]


def code_dtype(spec: Spec) -> Any:
    """Returns the dtype of a grid's codes."""
    return jnp.dtype(jnp.int16 if spec.format.bits > 8 else jnp.int8)


def clamped(x: Int32[Array, "..."], c: Mapping[str, Any], dtype: Any) -> CodeArray:
    """Returns codes within the node's bounds."""
    return jnp.minimum(jnp.maximum(x, c["low"]), c["high"]).astype(dtype)


def linear(acc: Int32[Array, "..."], c: Mapping[str, Any], rounding: Rounding, dtype: Any) -> CodeArray:
    """Returns the codes of an accumulator: bias, multiplier, offset, bounds."""
    return clamped(rounding.multiply(acc + c["bias"], c["multiplier"], c["shift"]) + c["offset"], c, dtype)


def matmul(
    equation: Equation, codes: Sequence[CodeArray], zeros: Sequence[Array], reaches: Sequence[float], *, carried: bool
) -> Int32[Array, "..."]:
    """Returns the accumulator of a dot or convolution on two operands, zero points taken out.

    Args:
        equation: the operation.
        codes: of both operands.
        zeros: their int32 zero points: scalars, or of a dot's weight one per channel, of its rank.
        reaches: the largest magnitude of ``code - zero`` of each.
        carried: whether integers are carried in float32 (exactly) instead of multiplied as int8.
    """
    return product(Matmul.of(equation.eqn), codes, zeros, reaches, carried=carried)


def product(
    operation: Matmul, codes: Sequence[CodeArray], zeros: Sequence[Array], reaches: Sequence[float], *, carried: bool
) -> Int32[Array, "..."]:
    """Returns `matmul` of a primitive and its parameters."""
    if carried:
        left, right = ((c.astype(jnp.int32) - z).astype(jnp.float32) for c, z in zip(codes, zeros, strict=True))
        return exact_sum(operation, left, right, reaches[0] * reaches[1])
    left, right = codes
    if operation.name == "conv_general_dilated":
        return _convolution(operation, left, right, *zeros)
    numbers = dict(operation.params)["dimension_numbers"]
    (lc, rc), _ = numbers
    total = operation.accumulate_in(left, right, jnp.int32)
    sums = [
        jnp.sum(x.astype(jnp.int32), axis=tuple(axes), keepdims=True, dtype=jnp.int32)
        for x, axes in ((left, lc), (right, rc))
    ]
    of_left, of_right = left_to_result(numbers, sums[0], right.ndim), right_to_result(numbers, sums[1], left.ndim)
    count = jnp.int32(contracted_size(operation, left, right))
    zero = zeros[1] if zeros[1].ndim == 0 else right_to_result(numbers, zeros[1], left.ndim)
    return total - zeros[0] * of_right - zero * of_left + count * zeros[0] * zero


def left_to_result(dimension_numbers: Any, kept: Array, right_rank: int) -> Array:
    """Returns an array of the left operand's rank (contracted axes of size 1) shaped to broadcast to a dot's result."""
    (lc, rc), (lb, rb) = dimension_numbers
    free = [i for i in range(kept.ndim) if i not in (*lc, *lb)]
    out = jnp.transpose(kept, [*lb, *free, *lc])
    return out.reshape([*(kept.shape[i] for i in (*lb, *free)), *[1] * (right_rank - len(rc) - len(rb))])


def _convolution(
    operation: Matmul, left: CodeArray, kernel: CodeArray, zero: Array, kernel_zero: Array
) -> Int32[Array, "..."]:
    """Zero-point padding, then a convolution without padding; the zero point costs one sum of the kernel per channel.

    That of a kernel that is computed costs the sums of the windows: a second convolution, with ones.
    """
    params = dict(operation.params)
    numbers = params["dimension_numbers"]
    pads = [(0, 0, 0)] * left.ndim
    for axis, (before, after), dilation in zip(
        numbers.lhs_spec[2:], params["padding"], params["lhs_dilation"], strict=True
    ):
        pads[axis] = (before, after, dilation - 1)
    left = lax.pad(left, zero.astype(left.dtype), pads)
    plain = {"padding": ((0, 0),) * len(params["padding"]), "lhs_dilation": (1,) * len(params["padding"])}
    product = operation.accumulate_in(left, kernel, jnp.int32, **plain)
    sums = jnp.sum(kernel.astype(jnp.int32), axis=tuple(numbers.rhs_spec[1:]), dtype=jnp.int32)
    shape = [1] * left.ndim
    shape[numbers.out_spec[1]] = sums.shape[0]
    product = product - zero * sums.reshape(shape)
    if not is_traced(kernel_zero) and not np.any(np.asarray(kernel_zero)):
        return product
    windows = operation.accumulate_in(left, jnp.ones_like(kernel), jnp.int32, **plain)
    count = jnp.int32(math.prod(kernel.shape[i] for i in numbers.rhs_spec[1:]))
    return product - kernel_zero * (windows - count * zero)


def summed(equation: Equation, x: CodeArray, zero: Array) -> Int32[Array, "..."]:
    """Returns the sum over axes or windows of ``code - zero``; padding of windows adds nothing."""
    return compat.rebind(equation.eqn, [x.astype(jnp.int32) - zero])[0]


def joined(node: Node, codes: Sequence[CodeArray], zeros: Sequence[Array], c: Mapping[str, Any]) -> Int32[Array, "..."]:
    """Returns a sum, maximum or minimum of two tensors, in steps of the result's divided by ``2**shift``."""
    parts = [(x.astype(jnp.int32) - z) * c[name] for x, z, name in zip(codes, zeros, ("left", "right"), strict=True)]
    join = {"add": jnp.add, "max": jnp.maximum, "min": jnp.minimum}[node.kind]
    return join(*parts)


def added(
    node: Node, codes: Sequence[CodeArray], zeros: Sequence[Array], c: Mapping[str, Any], rounding: Rounding, dtype: Any
) -> CodeArray:
    """Returns the codes of a sum, maximum or minimum of two tensors: both rescaled by one power of two, rounded once."""
    return clamped(rounding.shift(joined(node, codes, zeros, c), c["shift"]) + c["offset"], c, dtype)


def looked_up(codes: CodeArray, c: Mapping[str, Any], low: int) -> CodeArray:
    """Returns table entries, by code."""
    return jnp.take(c["table"], codes.astype(jnp.int32) - low, axis=0, mode="clip")


def softmax(codes: CodeArray, c: Mapping[str, Any], axis: int, kept: Bool[Array, "..."] | None) -> Int32[Array, "..."]:
    """Returns softmax along ``axis`` in steps of 2**-16: a table of exponentials, an integer sum, an integer quotient.

    Where ``kept`` is false the result is 0; where it is false along a whole row, all of the row is alike, as in float.
    """
    wide = codes.astype(jnp.int32)
    if kept is not None:
        wide = jnp.where(kept, wide, jnp.iinfo(codes.dtype).min)
    below = jnp.max(wide, axis=axis, keepdims=True) - wide
    parts = jnp.take(c["table"], below, axis=0, mode="clip")
    if kept is not None:
        parts = jnp.where(kept | ~jnp.any(kept, axis=axis, keepdims=True), parts, 0)
    total = jnp.sum(parts, axis=axis, keepdims=True, dtype=jnp.int32)
    return lax.div((parts << 16) + (total >> 1), jnp.broadcast_to(total, parts.shape))


def normalized(codes: CodeArray, c: Mapping[str, Any], node: Node, zero: Array) -> Int32[Array, "..."]:
    """Returns ``c / sqrt(sum c**2 + epsilon)`` along the axis, in steps of 2**-15.

    ``c`` is ``n * x - sum x`` of a layer norm and ``x`` of an RMS norm. Every row is shifted so that its squares, or
    the epsilon where that is larger, fill 30 bits; the square root has 15 bits.
    """
    axis = node.details["axis"]
    x = codes.astype(jnp.int32) - zero
    count = x.shape[axis]
    if node.details["is_centered"]:
        x = count * x - jnp.sum(x, axis=axis, keepdims=True, dtype=jnp.int32)
    most = jnp.max(jnp.abs(x), axis=axis, keepdims=True)
    width = norm_width(count)
    # most * 2**up has at most `width` bits, and the epsilon, of 24 bits, at most 29
    up = jnp.minimum(lax.clz(jnp.maximum(most, 1)) - (32 - width), (5 - c["epsilon_shift"]) >> 1)
    t = jnp.where(up >= 0, x << jnp.clip(up, 0, 31), _rounded_half(x, jnp.clip(-up, 1, 31)))
    power = jnp.sum(t * t, axis=axis, keepdims=True, dtype=jnp.int32)
    shift = 2 * up + c["epsilon_shift"]  # of the epsilon's 24 bits to the scale of the squares
    eps = jnp.where(shift >= 0, c["epsilon"] << jnp.clip(shift, 0, 31), c["epsilon"] >> jnp.clip(-shift, 0, 31))
    power = jnp.maximum(power + eps, 1)
    half = (lax.clz(power) - 2) >> 1  # power * 4**half lies in [2**28, 2**30)
    root = square_root(power << (2 * half))
    t = t << (half + NORM_BITS)
    bias = jnp.where(t < 0, -(root >> 1), root >> 1)
    return lax.div(t + bias, jnp.broadcast_to(root, t.shape))


def norm_width(count: int) -> int:
    """Returns the bits of the values whose ``count`` squares sum to less than 2**29."""
    return (29 - math.ceil(math.log2(max(count, 2)))) // 2


def _rounded_half(x: Array, k: Array) -> Array:
    return (x + (jnp.int32(1) << (k - 1))) >> k


def square_root(x: Int32[Array, "..."]) -> Int32[Array, "..."]:
    """Returns the integer square root of ``0 <= x < 2**30``, bit by bit."""
    root = jnp.zeros_like(x)
    for bit in reversed(range(15)):
        trial = root | (1 << bit)
        root = jnp.where(trial * trial <= x, trial, root)
    return root


NEAREST = {"mode": lax.GatherScatterMode.CLIP, "fill_value": None}
"""How rows are picked: an index out of range takes the nearest row; NaN, as jax fills by default, has no code."""


def picked(
    equation: Equation, table: CodeArray, indices: Sequence[Any], c: Mapping[str, Any], rounding: Rounding, dtype: Any
) -> CodeArray:
    """Returns what a look-up picks of a weight's codes on the result's grid: multipliers are one, or one per row."""
    rank = len(equation.outs[0].shape)
    is_one = c["multiplier"].size == 1
    q, right = (
        x.reshape((1,) * rank) if is_one else part(equation.eqn, x, indices, table.shape, **_nearest(equation))
        for x in (c["multiplier"], c["shift"])
    )
    codes = part(equation.eqn, table, indices, table.shape, **_nearest(equation))
    return clamped(rounding.multiply(codes.astype(jnp.int32), q, right) + c["offset"], c, dtype)


def _nearest(equation: Equation) -> dict[str, Any]:
    return NEAREST if equation.name == "gather" else {}


def moved(equation: Equation, codes: Array, zero: Array, rest: Sequence[Any]) -> list[Any]:
    """Returns a movement of codes, or of levels; padding is the zero point."""
    eqn = equation.eqn
    if equation.name == "pad":
        return [lax.pad(codes, zero.astype(codes.dtype), eqn.params["padding_config"])]
    if equation.name == "convert_element_type":
        return [codes]
    if equation.name == "gather":
        return compat.rebind(eqn, [codes, *rest], **NEAREST)
    return compat.rebind(eqn, [codes, *rest])
