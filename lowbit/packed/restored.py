"""Weights out of the order of the kernels, in float: what is differentiated, where a kernel reads that order alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

import lowbit_kernels

from .native import NativeTensor


def dequantized(weight: NativeTensor) -> Array | None:
    """Returns a weight out of its order for a CPU's kernels, where its axes are now; None where it is in no such order."""
    matrix = weight.matrix
    if len(weight.axes) != weight.ndim:  # still with its layers
        return None
    if isinstance(matrix, lowbit_kernels.PreparedConv):
        values = lowbit_kernels.dequantize_conv(matrix)
    elif isinstance(matrix, lowbit_kernels.PreparedMatrix):
        one: Callable[[Any], Array] = lambda m: lowbit_kernels.dequantize_matrix(lowbit_kernels.restore(m))  # noqa: E731
        values = jax.vmap(one)(matrix) if weight.batch else one(matrix)
    else:
        return matrix if isinstance(matrix, jax.Array) else None
    lengths = {axis: n for atoms in weight.axes for axis, n in atoms}
    first = [i for i in (*weight.batch, *weight.contract) if i in lengths]
    order = [*first, *sorted(i for i in lengths if i not in first)]
    now = [order.index(axis) for atoms in weight.axes for axis, _ in atoms]
    values = jnp.transpose(values.reshape([lengths[i] for i in order]), now)
    return values.reshape(weight.shape).astype(weight.dtype)
