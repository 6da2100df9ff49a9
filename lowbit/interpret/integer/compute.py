"""Integer arithmetic that several kinds of nodes share: codes in, codes out. No float anywhere; constants come in.

A linear node computes an int32 accumulator, then ``code = clamp(rounded(multiplier * (accumulator + bias)) + offset)``.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Int32, Integer

from lowbit.core.checks import is_traced
from lowbit.core.spec import Spec
from lowbit.interpret.arithmetic import right_to_result
from lowbit.interpret.matmul import Matmul
from lowbit.interpret.sums import contracted_size, exact_sum
from lowbit.program.read import Equation

from .fixed import Rounding

CodeArray = Integer[Array, "..."]


def code_dtype(spec: Spec) -> Any:
    """Returns the dtype of a grid's codes."""
    return jnp.dtype(jnp.int16 if spec.format.bits > 8 else jnp.int8)


def clamped(x: Int32[Array, "..."], c: Mapping[str, Any], dtype: DTypeLike) -> CodeArray:
    """Returns codes within the node's bounds."""
    return jnp.minimum(jnp.maximum(x, c["low"]), c["high"]).astype(dtype)


def linear(acc: Int32[Array, "..."], c: Mapping[str, Any], rounding: Rounding, dtype: DTypeLike) -> CodeArray:
    """Returns the codes of an accumulator: bias, multiplier, offset, bounds."""
    return clamped(rounding.multiply(acc + c["bias"], c["multiplier"], c["shift"]) + c["offset"], c, dtype)


def multiply_pair(
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
    """Returns `multiply_pair` of a primitive and its parameters."""
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


def square_root(x: Int32[Array, "..."]) -> Int32[Array, "..."]:
    """Returns the integer square root of ``0 <= x < 2**30``, bit by bit."""
    root = jnp.zeros_like(x)
    for bit in reversed(range(15)):
        trial = root | (1 << bit)
        root = jnp.where(trial * trial <= x, trial, root)
    return root


def divided(rest: Array, by: Array, steps: int, bits: int) -> tuple[Array, Array]:
    """Returns ``(rest << steps * bits)`` divided by ``by``, some bits at a time, and what is left; ``by << bits`` fits 32 bits.

    Example:
        >>> [int(x) for x in divided(jnp.int32(5), jnp.int32(7), 4, 4)]
        [46811, 3]
    """
    quotient = jnp.zeros_like(rest)
    for _ in range(steps):
        rest = rest << bits
        digit = lax.div(rest, by)
        quotient, rest = (quotient << bits) + digit, rest - digit * by
    return quotient, rest
