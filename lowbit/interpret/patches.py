"""A convolution of int8 codes as products of its windows with the kernel, for compilers without an integer convolution.

XLA for GPUs has none. A window's codes lie side by side (im2col), 8 bits each, and meet the kernel in an int8 product. Not the
rows of `lowbit.core.rows`: the order of ``K`` is the product's own, taps before channels, so that windows are cut by strided
slices of int8 and padded with the zero point, where the patches of jax are a float convolution padded with 0.
"""

import itertools
import math
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int32

from lowbit.core.qtensor import QTensor


def why_not_patches(params: Any, lhs: QTensor, rhs: QTensor) -> str | None:
    """Returns why a convolution has no such form, or None.

    Args:
        params: of the conv_general_dilated.
        lhs: int8 codes.
        rhs: int8 codes.
    """
    if params["batch_group_count"] != 1:
        return "batch groups"
    if any(q.zero is not None and q.zero.size != 1 for q in (lhs, rhs)):
        return "zero points of channels"
    return None


def patch_sums(params: Any, lhs: QTensor, rhs: QTensor) -> Int32[Array, "..."]:
    """Returns the int32 accumulator of a convolution, of codes less their zero points.

    Args:
        params: of the conv_general_dilated; `why_not_patches` has nothing against it.
        lhs: int8 codes, one zero point or none; outside of it they are the zero point.
        rhs: likewise.
    """
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    rank = lhs.ndim
    zero = jnp.zeros((), jnp.int32) if lhs.zero is None else lhs.zero.reshape(()).astype(jnp.int32)
    x = jnp.transpose(lhs.codes, (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1]))
    w = jnp.transpose(rhs.codes, (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0]))
    pads = [(low, high, d - 1) for (low, high), d in zip(params["padding"], params["lhs_dilation"], strict=True)]
    x = lax.pad(x, zero.astype(x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    window, (inputs, out) = w.shape[:-2], w.shape[-2:]
    strides, dilation = params["window_strides"], params["rhs_dilation"]
    sizes = [
        max((n - (k - 1) * d - 1) // s + 1, 0) for n, k, d, s in zip(x.shape[1:-1], window, dilation, strides, strict=True)
    ]  # fmt: skip
    taps = []
    for tap in itertools.product(*(range(k) for k in window)):
        first = [t * d for t, d in zip(tap, dilation, strict=True)]
        last = [f + (n - 1) * s + 1 for f, n, s in zip(first, sizes, strides, strict=True)]
        taps.append(lax.slice(x, [0, *first, 0], [x.shape[0], *last, x.shape[-1]], [1, *strides, 1]))
    patches = jnp.stack(taps, axis=-2)  # batch, positions, taps, channels
    rows, count = math.prod(patches.shape[: rank - 1]), math.prod(window)
    left = jnp.moveaxis(patches.reshape(rows, count, groups, inputs), 2, 0).reshape(groups, rows, count * inputs)
    right = jnp.moveaxis(w.reshape(count * inputs, groups, out // groups), 1, 0)
    total = lax.dot_general(left, right, (((2,), (1,)), ((0,), (0,))), preferred_element_type=jnp.int32)
    total = total - zero * jnp.sum(right, axis=1, keepdims=True, dtype=jnp.int32)
    if rhs.zero is not None:
        of_weight = rhs.zero.reshape(()).astype(jnp.int32)
        steps = jnp.sum(left, axis=2, keepdims=True, dtype=jnp.int32) - zero * (count * inputs)
        total = total - of_weight * steps
    result = jnp.moveaxis(total, 0, 1).reshape(x.shape[0], *sizes, out)
    order = [0] * rank
    for place, axis in enumerate((numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1])):
        order[axis] = place
    return jnp.transpose(result, order)
