"""Products of two computed operands, and convolutions, on machines with an 8-bit matrix unit: int8 by int8 into int32.

Zero points are taken out of the sums afterwards, so that no operand is widened before the product:

    sum (l - z_l) (r - z_r)  =  sum l r  -  z_l sum r  -  z_r sum l  +  K z_l z_r        int32, exact: it wraps to the result
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Int32

from lowbit.core.qtensor import QTensor

from .arithmetic import integer_result, integer_sums, right_to_result
from .epilogue import scaled
from .layout import layout_of
from .matmul import Matmul
from .patches import patch_sums, why_not_patches


def int8_result(matmul: Matmul, lhs: QTensor, rhs: QTensor, dtype: DTypeLike, *, platform: str) -> Array:
    """Returns `integer_result`, the same bits, by products of 8-bit operands where there are such.

    Args:
        matmul: a dot_general or convolution.
        lhs: codes or levels of an integer format.
        rhs: likewise.
        dtype: of the result.
        platform: what it is traced for: a GPU has no integer convolution, and computes products of windows.
    """
    layout = layout_of(matmul, lhs, rhs)
    if layout is None or max(q.spec.format.bits for q in (lhs, rhs)) > 8:
        return integer_result(matmul, lhs, rhs, dtype, carried=False)
    lhs, rhs, params = _signed(lhs.encode()), _signed(rhs.encode()), dict(matmul.params)
    is_conv = matmul.name == "conv_general_dilated" and not platform.startswith("tpu")
    has_patches = is_conv and why_not_patches(params, lhs, rhs) is None
    sums = patch_sums(params, lhs, rhs) if has_patches else int8_sums(matmul, lhs, rhs)
    return scaled([(sums, 1.0)], layout.right_scale, layout.left_scale, dtype)


def _signed(q: QTensor) -> QTensor:
    """Codes as int8, those from 0 to 255 moved by 128 together with their zero point."""
    if q.codes.dtype != jnp.uint8:
        return q
    codes = lax.bitcast_convert_type(q.codes ^ jnp.uint8(128), jnp.int8)
    zero = jnp.zeros((1,) * q.ndim, jnp.int32) if q.zero is None else q.zero.astype(jnp.int32)
    return dataclasses.replace(q, codes=codes, zero=zero - 128)


def int8_sums(matmul: Matmul, lhs: QTensor, rhs: QTensor) -> Int32[Array, "..."]:
    """Returns the accumulator of int8 codes; a convolution by a weight with zero points is computed in int32.

    Args:
        matmul: a dot_general or convolution.
        lhs: int8 codes, with zero points that do not vary along what is contracted, or without.
        rhs: likewise.
    """
    one_zero = lhs.zero is None or lhs.zero.size == 1
    if matmul.name != "dot_general" or (rhs.zero is None and one_zero):
        return integer_sums(matmul, lhs, rhs)
    numbers = dict(matmul.params)["dimension_numbers"]
    (lc, rc), _ = numbers
    total = matmul.accumulate_in(lhs.codes, rhs.codes, jnp.int32)
    left = None if lhs.zero is None else _left_to_result(numbers, lhs.zero.astype(jnp.int32), rhs.ndim)
    right = None if rhs.zero is None else right_to_result(numbers, rhs.zero.astype(jnp.int32), lhs.ndim)
    if left is not None:
        sums = jnp.sum(rhs.codes, axis=tuple(rc), keepdims=True, dtype=jnp.int32)
        total = total - left * right_to_result(numbers, sums, lhs.ndim)
    if right is not None:
        sums = jnp.sum(lhs.codes, axis=tuple(lc), keepdims=True, dtype=jnp.int32)
        total = total - right * _left_to_result(numbers, sums, rhs.ndim)
    if left is not None and right is not None:
        total = total + left * right * math.prod(lhs.shape[i] for i in lc)
    return total


def _left_to_result(dimension_numbers: Any, kept: Array, right_rank: int) -> Array:
    """An array of the left operand's rank (contracted axes of size 1), shaped to broadcast to a dot's result."""
    (lc, rc), (lb, _) = dimension_numbers
    free = [i for i in range(kept.ndim) if i not in (*lc, *lb)]
    out = jnp.transpose(kept, [*lb, *free, *lc])
    return out.reshape([*(kept.shape[i] for i in (*lb, *free)), *[1] * (right_rank - len(lb) - len(rc))])
