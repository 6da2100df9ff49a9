"""A product of two arrays of activations, both quantized in the native call: attention's, and whatever else has no weight."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lowbit_kernels import checks
from lowbit_kernels.cpu import library
from lowbit_kernels.cpu.arena import reshaped
from lowbit_kernels.cpu.matmul import check_config
from lowbit_kernels.cpu.tail import given, scale_of, zero_of
from lowbit_kernels.numerics import StaticActivation, check_activation

MOST_SUMMED = 33025
"""Products of two codes less their zero points, 255 * 255 at most, that int32 sums (`kMostPairs` in cpp/core/pair.cpp)."""

Numbers = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]
"""Dimension numbers of `lax.dot_general`: contracted axes of either operand, batch axes of either."""

Grid = StaticActivation | None
"""Of an operand: calibrated; None is int8 with a scale a row of the left one, a column of the right one."""


def quant_product(
    x: Array, w: Array, numbers: Numbers, left: Grid, right: Grid, *, keeps_nan: bool = False, config: object = None
) -> Array:
    """`lax.dot_general(x, w, numbers)` of both on their grids, `(batch, rows, columns)` in float32: one native call.

    y = (sum_k (q_x - z_x) (q_w - z_w)) * s_w * s_x, the sum in int32, exact; then float32, each product rounded once.

    Args:
        x: floats. Axes along which a row lies side by side last, and one axis of rows, are read where they are; others are
            moved first.
        w: floats; the same, of its columns, or with an axis of columns last.
        numbers: contracted and batch axes.
        left: grid of x.
        right: grid of w.
        keeps_nan: of static grids: what sums over a NaN is NaN. Otherwise it takes the code of 0.0; a dynamic row always is.
        config: a `CpuConfig`, or None.

    Returns:
        Float32: batch axes, then those of x, then those of w that are not contracted.

    Raises:
        ValueError: shapes or grids that do not fit, or more than `MOST_SUMMED` products a sum.
        TypeError: what is no array, no grid or no flag.
        NotImplementedError: the native library is not there.
    """
    x, w = checks.array("quant_product: x", x), checks.array("quant_product: w", w)
    checks.flag("quant_product: keeps_nan", keeps_nan)
    if library.status().reason:
        raise NotImplementedError(f"quant_product: {library.status().reason}")
    (lc, rc), (lb, rb) = _checked(numbers, x, w)
    for name, array, grid in (("x", x, left), ("w", w, right)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"quant_product: {name} must be floats, got {array.dtype}")
        if grid is not None:
            checks.instance(f"quant_product: the grid of {name}", grid, StaticActivation, "StaticActivation")
            check_activation(grid, ())
    config = check_config(config)
    batch = tuple(x.shape[i] for i in lb)
    rows, columns = ([n for i, n in enumerate(a.shape) if i not in (*c, *b)] for a, c, b in ((x, lc, lb), (w, rc, rb)))
    length = math.prod(x.shape[i] for i in lc)
    if not 1 <= length <= MOST_SUMMED:
        raise ValueError(f"quant_product: a sum has 1 to {MOST_SUMMED} products, got {length}")
    x, (x_outer, x_inner, x_row, x_step) = _laid(x.astype(jnp.float32), lb, lc)
    w, w_strides = _laid(w.astype(jnp.float32), rb, rc)
    if x_step != 1:
        x, (x_outer, x_inner, x_row, _) = _moved(x, lb, lc)
    if 1 not in w_strides[2:]:
        w, w_strides = _moved(w, rb, rc)
    outer, inner = (1, 1, *batch)[-2:] if len(batch) < 3 else (1, math.prod(batch))
    shape = (outer, inner, math.prod(rows), math.prod(columns))
    operands, bits, places = given(
        [x, w, *((None if left is None else f(left), 1) for f in (_scale, zero_of)),
         *((None if right is None else f(right), 2) for f in (_scale, zero_of))]
    )  # fmt: skip
    bounds = [(-128, 127) if g is None else (g.lo, g.hi) for g in (left, right)]
    numbers_of = (
        bits, length, x_outer, x_inner, x_row, *w_strides, *bounds[0], *bounds[1], left is None, right is None, keeps_nan,
        library.isa_number(config.isa), 0 if config.threads is None else config.threads, *places,
    )  # fmt: skip
    call = jax.ffi.ffi_call(
        library.TARGETS["LowbitPairCall"], jax.ShapeDtypeStruct(shape, jnp.float32), vmap_method="sequential"
    )
    return call(*operands, config=np.asarray(numbers_of, np.int64)).reshape(*batch, *rows, *columns)


def _scale(grid: StaticActivation) -> Any:
    return reshaped(scale_of(grid), (1,))


def _checked(numbers: Any, x: Array, w: Array) -> Numbers:
    """`numbers`, or the error that says what of them does not fit."""
    try:
        ((lc, rc), (lb, rb)) = numbers
        found = tuple(map(int, lc)), tuple(map(int, rc)), tuple(map(int, lb)), tuple(map(int, rb))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"quant_product: numbers must be ((lhs, rhs), (lhs batch, rhs batch)), got {numbers!r:.80}"
        ) from error
    lc, rc, lb, rb = found
    for name, a, own in (("x", x, (*lc, *lb)), ("w", w, (*rc, *rb))):
        if len(set(own)) != len(own) or not all(0 <= i < a.ndim for i in own):
            raise ValueError(f"quant_product: axes {own} are not different axes of {name}, {a.shape}")
    for a, b in ((lc, rc), (lb, rb)):
        lengths = [x.shape[i] for i in a], [w.shape[i] for i in b]
        if lengths[0] != lengths[1]:
            raise ValueError(f"quant_product: axes {a} of x, {x.shape}, and {b} of w, {w.shape}, differ in length")
    return (lc, rc), (lb, rb)


def _laid(a: Array, batch: tuple[int, ...], contract: tuple[int, ...]) -> tuple[Array, tuple[int, ...]]:
    """The array, and how far apart two batch axes, the others and the contracted ones lie; moved where they are several."""
    free = [i for i in range(a.ndim) if i not in (*batch, *contract)]
    if len(batch) > 2 or len(free) != 1 or len(contract) != 1:
        return _moved(a, batch, contract)
    stride = [math.prod(a.shape[i + 1 :]) for i in range(a.ndim)]
    return a, (*[0] * (2 - len(batch)), *(stride[i] for i in (*batch, *free, *contract)))


def _moved(a: Array, batch: tuple[int, ...], contract: tuple[int, ...]) -> tuple[Array, tuple[int, ...]]:
    """The array as `(batch, others, contracted)`."""
    free = [i for i in range(a.ndim) if i not in (*batch, *contract)]
    rows, length = (math.prod(a.shape[i] for i in axes) for axes in (free, contract))
    sizes = [a.shape[i] for i in batch]
    inner = sizes[-1] if len(sizes) == 2 else math.prod(sizes)
    moved = jnp.transpose(a, [*batch, *free, *contract])
    return moved, (inner * rows * length, rows * length, length, 1)
