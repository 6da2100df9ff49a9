"""Operands in the universal form: weights as integer constants that are dequantized, inputs rounded to their grid.

What a composite cannot say (blocks, scales along two axes, codebooks, scales that are computed at run time or that differ
between the layers of a scan) stays plain arithmetic on the same integers.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from lowbit.core.checks import is_traced
from lowbit.core.qtensor import QTensor
from lowbit.core.rounding import cast_once
from lowbit.core.spec import Format, Spec
from lowbit.export.composites import Grid, dequantize, fake_quant, storage_dtype
from lowbit.interpret.epilogue import added_groups
from lowbit.interpret.inputs import quantized_input
from lowbit.interpret.layout import grouped_layout, layout_of
from lowbit.interpret.matmul import Matmul
from lowbit.plan.rows import Site
from lowbit.targets.target import INLINED_BYTES


def word(numbers: Format, bits: int | None = None) -> str:
    """Returns the composite's name of integers: ``i4``, ``ui8``; ``bits`` for a wider storage."""
    return f"{'i' if numbers.is_signed else 'ui'}{numbers.bits if bits is None else bits}"


def scalar_grid(spec: Spec, state: Mapping[str, Any]) -> Grid:
    """Returns the grid of a tensor that has one scale.

    Args:
        spec: of the tensor.
        state: ``scale`` and ``zero``, of one element each.
    """
    grid = array_grid(spec, state["scale"], state.get("zero"))
    assert grid is not None
    assert grid.axis is None
    return grid


def array_grid(spec: Spec, scale: Any, zero: Any, *, bits: int | None = None) -> Grid | None:
    """Returns the grid of an array, or None where a composite cannot say it.

    Args:
        spec: its description.
        scale: float array of the scale's shape, or a `QTensor` of it.
        zero: likewise, or None.
        bits: of a wider storage.
    """
    numbers = spec.format
    arrays = jax.tree.leaves((scale, zero))
    if not numbers.is_integer or numbers.low != int(numbers.low) or any(is_traced(x) for x in arrays):
        return None
    scales = np.asarray(scale.dequantize() if isinstance(scale, QTensor) else scale, np.float32)
    axes = [i for i, n in enumerate(scales.shape) if n != 1]
    if len(axes) > 1:
        return None
    zeros = np.zeros_like(scales) if zero is None else np.broadcast_to(np.asarray(zero, np.float32), scales.shape)
    dtype = word(numbers, bits)
    is_narrow = Grid(dtype, (1.0,), (0,), None, True).bounds == (numbers.low, numbers.high)
    points = tuple(int(z) for z in zeros.ravel())
    return Grid(dtype, tuple(float(s) for s in scales.ravel()), points, axes[0] if axes else None, is_narrow)


def weight_grid(q: QTensor) -> Grid | None:
    """Returns the grid of a weight's codes in their storage, or None where a composite cannot say it."""
    return None if q.groups else array_grid(q.spec, q.scale, q.zero, bits=stored_bits(q))


def stored_bits(q: QTensor) -> int:
    """Returns the bits of the constant that holds a weight's integers: 2, 4, 8 or 16; at least 8 of a small one."""
    bits = jnp.iinfo(storage_dtype(word(q.spec.format))).bits
    is_small = bits * math.prod(q.shape) <= 8 * INLINED_BYTES
    return max(bits, 8) if is_small else bits


def weight_value(q: QTensor, grid: Grid | None) -> Float[Array, "..."]:
    """Returns a weight in float32: ``quant.dequantize`` of its integers, or plain arithmetic without a grid."""
    if grid is None:
        return q.dequantize().astype(jnp.float32)
    return dequantize(q.unpacked_codes().astype(storage_dtype(grid.dtype)), grid)


def input_value(site: Site, state: Mapping[str, Any], x: Array) -> Float[Array, "..."]:
    """Returns an input on its grid, in float32: ``quant.fake_quant``, or plain arithmetic where there is no such grid."""
    spec = site.spec
    assert spec is not None
    grid = None if spec.dynamic else array_grid(spec, state["scale"], state.get("zero"))
    if grid is None or (grid.axis is not None and len(grid.scale) != x.shape[grid.axis]):
        return quantized_input(site, state, x).dequantize().astype(jnp.float32)
    return fake_quant(x.astype(jnp.float32), grid)


def is_blockwise(matmul: Matmul, right: Any) -> bool:
    """Returns whether the scale of a right operand varies along the contraction."""
    if not isinstance(right, QTensor):
        return False
    params = dict(matmul.params)["dimension_numbers"]
    contracted = params[0][1] if matmul.name == "dot_general" else params.rhs_spec[1:]
    return bool(right.groups) or any(right.scale_values.shape[i] != 1 for i in contracted)


def blockwise(matmul: Matmul, left: Any, right: QTensor, dtype: Any) -> Array:
    """Returns an operation on a weight with blocks: one dot per block in one batched dot, then scales and the sum.

    The numbers of `lowbit.interpret.arithmetic.integer_result` where the input is integers and a sum stays below 2**24.

    Args:
        matmul: the operation.
        left: float array, or a `QTensor` of levels.
        right: the weight.
        dtype: of the result.
    """
    if not isinstance(left, QTensor):
        ones = jnp.ones((1,) * left.ndim, jnp.float32)
        left = QTensor(left.astype(jnp.float32), ones, None, right.spec, str(left.dtype))
    assert layout_of(matmul, left, right) is None
    flat = grouped_layout(matmul, left, right)
    a, b = flat.grouped_operands()
    if right.spec.format.is_integer:
        b = b.astype(jnp.int16 if right.zero is not None else jnp.int8).astype(
            jnp.float32
        )  # moved now, not at run time
    batch = tuple(range(a.ndim - 2))
    dims = (((a.ndim - 1,), (b.ndim - 2,)), (batch, batch))
    parts = lax.dot_general(a, b, dims, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
    return flat.restore(added_groups(parts, flat.right_scale, flat.left_scale, dtype))


def in_float32(matmul: Matmul, left: Array, right: Array, dtype: Any) -> Array:
    """Returns an operation on float32 operands, accumulated in float32, cast once to ``dtype``."""
    return cast_once(matmul.bind(left, right, preferred_element_type=jnp.dtype(jnp.float32)), dtype)
