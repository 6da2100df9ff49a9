"""NaN through an integer operation: what sums over one is NaN.

Integers cannot hold NaN, and a cast makes a number of it. So which results would have summed over a NaN is found beside the
integers, from the operands' levels, and written into the result: on every route of an ordinary plan, simulated or served.
Exported artifacts and full-integer plans leave it out: there NaN takes the code of the zero point.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

from lowbit.core.extremes import nan_where
from lowbit.core.qtensor import QTensor

from .matmul import Matmul


def poisoned(matmul: Matmul, lhs: QTensor | Array, rhs: QTensor | Array, result: Array) -> Array:
    """Returns ``result`` with NaN wherever it sums over a NaN of an operand.

    Args:
        matmul: a `lowbit.interpret.arithmetic.Matmul`.
        lhs: levels or floats; codes hold no NaN.
        rhs: likewise.
        result: of the operation.
    """
    left, right = _values(lhs), _values(rhs)
    if matmul.name == "dot_general":
        masks = _dot_masks(dict(matmul.params)["dimension_numbers"], left, right, lhs.ndim, rhs.ndim)
    else:
        masks = _conv_masks(dict(matmul.params), left, right, rhs.shape, result)
    for mask in masks:
        result = nan_where(mask, result)
    return result


def _values(operand: QTensor | Array) -> Array | None:
    """What may hold NaN of an operand, or None."""
    if not isinstance(operand, QTensor):
        return operand if jnp.issubdtype(operand.dtype, jnp.floating) else None
    return operand.codes if operand.stage == "levels" else None


def _dot_masks(dimension_numbers: Any, left: Array | None, right: Array | None, left_rank: int, right_rank: int):
    """One mask an operand, broadcasting to the result: its batch axes, then the left free axes, then the right ones."""
    (lc, rc), (lb, rb) = dimension_numbers
    if left is not None:
        free = [i for i in range(left_rank) if i not in (*lc, *lb)]
        has_nan = jnp.transpose(jnp.any(jnp.isnan(left), axis=tuple(lc), keepdims=True), [*lb, *free, *lc])
        shape = has_nan.shape[: len(lb) + len(free)]
        yield has_nan.reshape(*shape, *[1] * (right_rank - len(rc) - len(rb)))
    if right is not None:
        free = [i for i in range(right_rank) if i not in (*rc, *rb)]
        has_nan = jnp.transpose(jnp.any(jnp.isnan(right), axis=tuple(rc), keepdims=True), [*rb, *free, *rc])
        batch, last = has_nan.shape[: len(rb)], has_nan.shape[len(rb) : len(rb) + len(free)]
        yield has_nan.reshape(*batch, *[1] * (left_rank - len(lc) - len(lb)), *last)


def _conv_masks(params: Any, left: Array | None, right: Array | None, kernel: tuple[int, ...], result: Array):
    numbers = params["dimension_numbers"]
    if left is not None:
        is_nan = jnp.isnan(left)
        yield lax.cond(  # windows are looked at only where there is a NaN at all
            jnp.any(is_nan),
            lambda x: _windows(params, x, kernel, result),
            lambda x: jnp.zeros(result.shape, bool),
            is_nan,
        )
    if right is not None:
        has_nan = jnp.any(jnp.isnan(right), axis=tuple(numbers.rhs_spec[1:]))
        shape = [1] * result.ndim
        shape[numbers.out_spec[1]] = has_nan.shape[0]
        yield has_nan.reshape(shape)


def _windows(params: Any, is_nan: Bool[Array, "..."], kernel: tuple[int, ...], result: Array) -> Bool[Array, "..."]:
    """Which results of a convolution have a marked value in their window: the convolution of the marks with ones.

    One mark stands for the channels that a result sums over, so that the ones are a window and no more.
    """
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    channel = numbers.lhs_spec[1]
    out = result.shape[numbers.out_spec[1]]
    shape = list(is_nan.shape)
    shape[channel : channel + 1] = [groups, shape[channel] // groups]
    marks = jnp.any(is_nan.reshape(shape), axis=channel + 1).astype(jnp.float32)
    many = params["batch_group_count"]
    ones = list(kernel)
    ones[numbers.rhs_spec[0]], ones[numbers.rhs_spec[1]] = groups * many, 1
    names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers")
    settings = {name: params[name] for name in (*names, "feature_group_count", "batch_group_count")}
    has_marks = lax.conv_general_dilated(marks, jnp.ones(ones, jnp.float32), **settings) > 0
    return jnp.repeat(has_marks, out // (groups * many), axis=numbers.out_spec[1])
