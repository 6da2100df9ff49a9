"""Quantization: `lowbit.export.composites` as QuantizeLinear and DequantizeLinear.

ONNX divides by the scale where lowbit multiplies by its reciprocal: one code in some thousands is one step off, where the
quotient lies between two codes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lowbit.export.composites import Grid, storage_dtype

from . import movement
from .arithmetic import Handler, narrowed, number
from .graph import INTEGERS, Graph, Quantized, Value, bits_of, compact
from .movement import grid_of, is_dequantized, operand

_FEW = 64
"""Elements below which a constant stays in the width it has."""


class Layout(NamedTuple):
    """Scales in the shape that DequantizeLinear takes.

    Attributes:
        scale: a number, one per index of ``axis``, or of the codes' rank where blocked.
        zero: integers of the same shape, or None.
        axis: along which they differ, or None.
        block: elements per scale along ``axis``; None where every index has its own, and the other axes share.
    """

    scale: np.ndarray
    zero: np.ndarray | None
    axis: int | None
    block: int | None


def layout(q: Quantized) -> Layout:
    """Returns the shortest form of a constant's scales.

    Example:
        >>> scale = np.repeat(np.arange(6, dtype=np.float32).reshape(2, 3), 4, axis=0)
        >>> found = layout(Quantized(np.zeros((8, 3), np.int8), scale, None))
        >>> found.scale.shape, found.axis, found.block
        ((2, 3), 0, 4)
    """
    parts = [q.scale] if q.zero is None else [q.scale, q.zero]
    small = [compact(part) for part in parts]
    axes = [i for i in range(q.codes.ndim) if any(part.shape[i] > 1 for part in small)]
    if len(axes) > 1:
        axis, block = max(((i, _block(parts, i)) for i in axes), key=lambda found: found[1])
        if block > 1:
            small = [part.take(range(0, part.shape[axis], block), axis) for part in parts]
            return Layout(small[0], small[1] if len(small) > 1 else None, axis, block)
        return Layout(parts[0], parts[1] if len(parts) > 1 else None, axes[0], 1)
    shape = (q.codes.shape[axes[0]],) if axes else ()
    small = [np.broadcast_to(part.reshape(-1), shape) if axes else part.reshape(()) for part in small]
    return Layout(small[0], small[1] if len(small) > 1 else None, axes[0] if axes else None, None)


def _block(parts: Sequence[np.ndarray], axis: int) -> int:
    """The largest block along an axis inside which nothing changes."""
    size = parts[0].shape[axis]
    at: list[int] = []
    for part in parts:
        lines = np.moveaxis(part, axis, 0).reshape(size, -1)
        at += (np.flatnonzero((lines[1:] != lines[:-1]).any(1)) + 1).tolist()
    return math.gcd(*at) if at else size


def dequantized(g: Graph, codes: Value, how: Layout) -> Value:
    """Returns codes as float32."""
    inputs = [codes, g.constant(np.asarray(how.scale, np.float32))]
    zero = how.zero
    if zero is None and bits_of(codes.dtype) == 8:
        zero = np.zeros(how.scale.shape)  # ONNX Runtime 1.32 fuses Gemm and Conv only where zero points are written
    if zero is not None:
        zero = np.asarray(zero, codes.dtype)
        inputs.append(g.own_constant(zero) if zero.dtype == np.int8 else g.constant(zero))
    attributes = {} if how.axis is None else {"axis": how.axis}
    if how.block is not None:
        attributes["block_size"] = how.block
    return g.node("DequantizeLinear", inputs, codes.shape, np.float32, **attributes)


def _computed(grid: Grid) -> tuple[np.dtype, int]:
    """The type of computed codes, and what is added to a grid's own: unsigned bytes up to 8 bits.

    ONNX Runtime fuses signed ones on x86 only where it can turn every pair of Q and DQ into unsigned ones itself, and does
    not look through what stands between a pair.
    """
    if grid.bits <= 8:
        return INTEGERS["u8"], 128 if grid.is_signed else 0
    return INTEGERS["i16" if grid.is_signed else "u16"], 0


def _runtime(grid: Grid) -> Layout:
    dtype, shift = _computed(grid)
    zero = [z + shift for z in grid.zero_point]
    return _shared(grid, zero, dtype)


def _shared(grid: Grid, zero: Sequence[int], dtype: Any) -> Layout:
    is_one = grid.axis is None
    return Layout(
        np.asarray(grid.scale[0] if is_one else grid.scale, np.float32),
        np.asarray(zero[0] if is_one else zero, dtype),
        grid.axis,
        None,
    )


def _codes(g: Graph, x: Value, grid: Grid) -> Value:
    """``x`` on a grid, as computed codes; bounds that the type does not have itself are clipped there, in integers."""
    if grid.axis is None and (moved := movement.taken_apart(g, x)) is not None:
        return moved.again(g, _codes(g, moved.source, grid))
    dtype, shift = _computed(grid)
    low, high = grid.bounds
    if grid.axis is None:
        x, low, high = _clipped_later(x, grid, low, high)
    how = _runtime(grid)
    is_there = is_dequantized(x) and grid_of(x) == [g.constant(how.scale), g.constant(how.zero)]
    codes = operand(x) if is_there else _quantize_linear(g, x, how, dtype)
    info = np.iinfo(dtype)
    low, high = low + shift, high + shift
    if (low, high) == (info.min, info.max):
        return codes
    bounds = [g.constant(np.array(bound, dtype)) for bound in (low, high)]
    return g.node("Clip", [codes, *bounds], x.shape, dtype)


def _quantize_linear(g: Graph, x: Value, how: Layout, dtype: Any) -> Value:
    assert how.zero is not None
    attributes = {} if how.axis is None else {"axis": how.axis}
    return g.node("QuantizeLinear", [x, g.constant(how.scale), g.constant(how.zero)], x.shape, dtype, **attributes)


def _clipped_later(x: Value, grid: Grid, low: int, high: int) -> tuple[Value, int, int]:
    """What is quantized, and its bounds: a clip before the rounding is the same clip of the codes behind it.

    Runtimes fuse ``conv, relu, quantize`` where the zero point is the lowest code, so that saturation is the relu. Elsewhere
    the relu goes into the codes, and they fuse ``conv, quantize``.
    """

    def level(bound: float) -> int:
        scaled = np.float32(bound) * (np.float32(1.0) / np.float32(grid.scale[0]))
        steps = np.clip(scaled, grid.bounds[0] - zero, grid.bounds[1] - zero)
        return int(np.round(steps)) + zero

    zero = grid.zero_point[0]
    dtype, shift = _computed(grid)
    if x.op == "Relu":
        saturates = zero + shift == np.iinfo(dtype).min
        return (x, low, high) if saturates else (operand(x), max(low, zero), high)
    if x.op == "Clip" and x.dtype.kind == "f":
        bounds = number(operand(x, 1)), number(operand(x, 2))
        if bounds[0] is not None and bounds[1] is not None:
            return operand(x), max(low, level(bounds[0])), min(high, level(bounds[1]))
    return x, low, high


def _on_grid(values: np.ndarray, grid: Grid) -> Quantized:
    """A constant on a grid, by the arithmetic of `lowbit.export.composites`."""
    scale, zero = _spread(grid, values.shape)
    low, high = grid.bounds
    inverse = np.float32(1.0) / scale
    steps = np.round(np.clip(values.astype(np.float32) * inverse, low - zero, high - zero))
    return Quantized((steps + zero).astype(storage_dtype(grid.dtype)), scale, _or_none(zero, grid))


def _spread(grid: Grid, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    inner = [1] * len(shape)
    if grid.axis is not None:
        inner[grid.axis] = len(grid.scale)
    arrays = np.asarray(grid.scale, np.float32), np.asarray(grid.zero_point, np.float32)
    scale, zero = (np.broadcast_to(a.reshape(inner), shape) for a in arrays)
    return scale, zero


def _or_none(zero: np.ndarray, grid: Grid) -> np.ndarray | None:
    if not any(grid.zero_point):
        return None
    small = compact(zero).astype(storage_dtype(grid.dtype))
    return np.broadcast_to(small, zero.shape)


def dequantize(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
    """Returns codes as float32; a constant stays codes."""
    del out
    x, grid = inputs[0], Grid(**params)
    if x.array is not None:
        scale, zero = _spread(grid, x.shape)
        codes = x.array if any(grid.zero_point) or x.size < _FEW else narrowed(x.array)
        return g.quantized(Quantized(codes, scale, _or_none(zero, grid)))
    values = dequantized(g, x, _shared(grid, grid.zero_point, x.dtype))
    dtype, _ = _computed(grid)
    how = _runtime(grid)
    return values if x.dtype == dtype else dequantized(g, _quantize_linear(g, values, how, dtype), how)


def fake_quant(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
    """Returns ``x`` rounded to a grid."""
    del out
    x, grid = inputs[0], Grid(**params)
    values = x.array if x.quantized is None else x.quantized.values()
    if values is not None:
        return g.quantized(_on_grid(values, grid))
    return dequantized(g, _codes(g, x, grid), _runtime(grid))


def quantize(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
    """Returns the codes of ``x``; computed ones of less than 8 bits as bytes."""
    x, grid = inputs[0], Grid(**params)
    values = x.array if x.quantized is None else x.quantized.values()
    if values is not None:
        return g.constant(_on_grid(values, grid).codes)
    codes, dtype = _codes(g, x, grid), np.dtype(out.dtype)
    if bits_of(dtype) < 8:
        dtype = INTEGERS["i8" if grid.is_signed else "u8"]
    if codes.dtype == dtype:
        return codes
    how = _shared(grid, grid.zero_point, dtype)
    values = dequantized(g, codes, _runtime(grid))
    if grid.axis is None and (moved := movement.taken_apart(g, values)) is not None:
        return moved.again(g, _quantize_linear(g, moved.source, how, dtype))
    return _quantize_linear(g, values, how, dtype)


HANDLERS: Mapping[str, Handler] = {
    "quant_dequantize": dequantize,
    "quant_fake_quant": fake_quant,
    "quant_quantize": quantize,
}
"""By primitive."""
