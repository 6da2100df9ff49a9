"""Movement primitives, and parts of arrays: slices, concatenation, padding, look-ups."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import movement
from .arithmetic import Handler, narrowed, scalar
from .graph import Graph, Quantized, Value, bits_of
from .movement import elementwise, operand
from .quantized import dequantized, layout

_END = np.iinfo(np.int64).max


def reshape(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
    """Returns a reshape, a squeeze or an expansion of axes."""
    x = inputs[0]
    if params.get("dimensions") is not None:
        x = movement.transpose(g, x, params["dimensions"])
    return movement.reshape(g, x, out.shape)


def transpose(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
    """Returns a transpose."""
    del out
    return movement.transpose(g, inputs[0], params["permutation"])


def broadcast(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
    """Returns ``broadcast_in_dim``."""
    return movement.broadcast_in_dim(g, inputs[0], out.shape, params["broadcast_dimensions"])


def sliced(g: Graph, x: Value, starts: Sequence[int], stops: Sequence[int], steps: Sequence[int]) -> Value:
    """Returns a strided slice, below the transpose of ``x``, of the codes of a quantized tensor."""
    cut = tuple(slice(*part) for part in zip(starts, stops, steps, strict=True))
    if x.array is not None:
        return g.constant(x.array[cut])
    if x.quantized is not None:
        return g.quantized(x.quantized.moved(lambda a: a[cut]))
    axes = [i for i, part in enumerate(cut) if part != slice(0, x.shape[i], 1)]
    if not axes:
        return x
    how = movement.taken_apart(g, x)
    if how is not None and how.perm is not None:
        at = np.argsort(how.perm)
        inner = [[part[i] for i in at] for part in (starts, stops, steps)]
        return movement.transpose(g, sliced(g, how.source, *inner), how.perm)
    if movement.is_dequantized(x):
        return movement.dequantized_like(g, x, sliced(g, operand(x), starts, stops, steps))
    if (first := _first_cut(x)) is not None:
        at = [[a + start for a, start in zip(first, part, strict=True)] for part in (starts, stops)]
        return sliced(g, operand(x), at[0], at[1], steps)
    shape = [len(range(n)[part]) for n, part in zip(x.shape, cut, strict=True)]
    where = [g.constant(np.array([part[i] for i in axes], np.int64)) for part in (starts, stops)]
    extra = [g.constant(np.array(part, np.int64)) for part in (axes, [steps[i] for i in axes])]
    return g.node("Slice", [x, *where, *extra], shape, x.dtype)


def _first_cut(x: Value) -> list[int] | None:
    """Where a slice without steps starts along every axis; None for anything else."""
    if x.op != "Slice" or x.node is None or len(x.node.inputs) != 5:
        return None
    starts, axes, steps = (operand(x, i).array for i in (1, 3, 4))
    if starts is None or axes is None or steps is None or (steps != 1).any():
        return None
    firsts = [0] * len(x.shape)
    for start, axis in zip(starts.tolist(), axes.tolist(), strict=True):
        firsts[axis] = start
    return firsts


def _slice(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
    del out
    x = inputs[0]
    steps = params["strides"] or [1] * len(x.shape)
    return sliced(g, x, params["start_indices"], params["limit_indices"], steps)


def reverse(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
    """Returns ``x`` backwards along some axes."""
    x, axes = inputs[0], tuple(int(i) for i in params["dimensions"])
    if x.quantized is not None:
        return g.quantized(x.quantized.moved(lambda a: np.flip(a, axes)))
    parts = [-1] * len(axes), [-_END] * len(axes), axes, [-1] * len(axes)
    return g.node("Slice", [x, *(g.constant(np.array(part, np.int64)) for part in parts)], out.shape, x.dtype)


def dynamic_slice(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
    """Returns a slice that starts where the data says, moved inside the array as XLA does."""
    x, *starts = inputs
    sizes = params["slice_sizes"]
    constants = [None if start.array is None else int(start.array) for start in starts]
    known = [s for s in constants if s is not None]
    if len(known) == len(starts):
        at = [min(max(s, 0), n - size) for s, n, size in zip(known, x.shape, sizes, strict=True)]
        return sliced(g, x, at, [a + size for a, size in zip(at, sizes, strict=True)], [1] * len(at))
    axes = [i for i, size in enumerate(sizes) if size != x.shape[i]]
    if not axes:
        return x
    parts = []
    for i in axes:
        start = elementwise(g, "Cast", [starts[i]], (), np.int64, to="int64")
        start = elementwise(g, "Max", [start, scalar(g, 0, np.int64)], (), np.int64)
        start = elementwise(g, "Min", [start, scalar(g, x.shape[i] - sizes[i], np.int64)], (), np.int64)
        parts.append(movement.reshape(g, start, (1,)))
    begin = parts[0] if len(parts) == 1 else g.node("Concat", parts, (len(parts),), np.int64, axis=0)
    stop = elementwise(g, "Add", [begin, g.constant(np.array([sizes[i] for i in axes]))], (len(axes),), np.int64)
    return g.node("Slice", [x, begin, stop, g.constant(np.array(axes, np.int64))], out.shape, x.dtype)


def concatenate(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
    """Returns arrays joined along an axis, below the transpose that all of them go through."""
    axis = params["dimension"]
    if all(x.quantized is not None for x in inputs):
        whole = [x.quantized for x in inputs if x.quantized is not None]
        if all(q.zero is None for q in whole):
            codes, scales = (np.concatenate([getattr(q, part) for q in whole], axis) for part in ("codes", "scale"))
            return g.quantized(type(whole[0])(codes, scales, None))
    apart = [movement.taken_apart(g, x) for x in inputs]
    first = next((how for how in apart if how is not None and how.perm is not None), None)
    if first is not None and first.perm is not None:
        sources = [
            how.source if how is not None and how.perm == first.perm else how_undone(g, x, first)
            for x, how in zip(inputs, apart, strict=True)
        ]
        if all(source is not None for source in sources):
            moved_sources = [source for source in sources if source is not None]
            inner = first.perm[axis]
            shape = list(moved_sources[0].shape)
            shape[inner] = sum(x.shape[inner] for x in moved_sources)
            return movement.transpose(g, _joined(g, moved_sources, shape, inner), first.perm)
    return _joined(g, inputs, out.shape, axis)


def _joined(g: Graph, parts: Sequence[Value], shape: Sequence[int], axis: int) -> Value:
    """Arrays joined along an axis; of arrays on one grid, their codes."""
    if not all(movement.is_dequantized(x) and movement.grid_of(x) == movement.grid_of(parts[0]) for x in parts):
        return g.node("Concat", parts, shape, parts[0].dtype, axis=axis)
    codes = [movement.operand(x) for x in parts]
    return movement.dequantized_like(g, parts[0], g.node("Concat", codes, shape, codes[0].dtype, axis=axis))


def how_undone(g: Graph, x: Value, how: movement.Moved) -> Value | None:
    """Returns a constant before the transpose of another value; None for a computed one."""
    if x.array is None or how.perm is None:
        return None
    return g.constant(np.transpose(x.array, np.argsort(how.perm)))


def pad(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
    """Returns padding with one value; negative padding cuts.

    Raises:
        ValueError: for padding between elements.
    """
    x, fill = inputs
    config = [tuple(map(int, part)) for part in params["padding_config"]]
    if any(inner for _, _, inner in config):
        raise ValueError("the primitive pad with padding between elements has no ONNX form here")
    starts = [max(-low, 0) for low, _, _ in config]
    stops = [n - max(-high, 0) for n, (_, high, _) in zip(x.shape, config, strict=True)]
    x = sliced(g, x, starts, stops, [1] * len(starts))
    return _padded(g, x, fill, [(max(low, 0), max(high, 0)) for low, high, _ in config], out)


def _padded(g: Graph, x: Value, fill: Value, pads: Sequence[tuple[int, int]], out: Any) -> Value:
    if not any(any(pair) for pair in pads):
        return x
    if x.quantized is not None and fill.array is not None and float(fill.array) == 0.0:
        return g.quantized(_padded_codes(x.quantized, pads))
    how = movement.taken_apart(g, x)
    if how is not None and how.perm is not None:
        at = np.argsort(how.perm)
        return movement.transpose(g, _padded(g, how.source, fill, [pads[i] for i in at], out), how.perm)
    shape = [n + low + high for n, (low, high) in zip(x.shape, pads, strict=True)]
    amounts = g.constant(np.array([pair[side] for side in (0, 1) for pair in pads], np.int64))
    if movement.is_dequantized(x) and fill.array is not None and float(fill.array) == 0.0:
        assert x.node is not None
        zero = x.node.inputs[2] if len(x.node.inputs) > 2 else None
        fill = scalar(g, 0, operand(x).dtype) if zero is None else movement.reshape(g, zero, ())
        padded = g.node("Pad", [operand(x), amounts, fill], shape, operand(x).dtype, mode="constant")
        return movement.dequantized_like(g, x, padded)
    return g.node("Pad", [x, amounts, fill], shape, x.dtype, mode="constant")


def _padded_codes(q: Quantized, pads: Sequence[tuple[int, int]]) -> Quantized:
    scale = np.pad(q.scale, pads, mode="edge")
    codes = np.pad(q.codes.astype(np.int32), pads)
    if q.zero is None:
        return Quantized(codes.astype(q.codes.dtype), scale, None)
    zero = np.pad(q.zero.astype(np.int32), pads, mode="edge")
    codes = np.where(np.pad(np.ones(q.codes.shape, bool), pads), codes, zero)
    return Quantized(codes.astype(q.codes.dtype), scale, zero.astype(q.zero.dtype))


def gather(g: Graph, inputs: Sequence[Value], params: Mapping[str, Any], out: Any) -> Value:
    """Returns a look-up along one axis, as ``table[indices]`` and ``jnp.take`` make it.

    8-bit codes are looked up before they are dequantized. 4-bit ones after: no runtime gathers them.

    Raises:
        ValueError: for every other gather.
    """
    table, indices = inputs
    numbers = params["dimension_numbers"]
    axis = numbers.start_index_map[0] if len(numbers.start_index_map) == 1 else -1
    sizes = [1 if i == axis else n for i, n in enumerate(table.shape)]
    count = len(indices.shape) - 1
    offsets = tuple(i + (count if i >= axis else 0) for i in range(len(table.shape) - 1))
    is_plain = (
        axis >= 0
        and list(params["slice_sizes"]) == sizes
        and tuple(numbers.collapsed_slice_dims) == (axis,)
        and not numbers.operand_batching_dims
        and tuple(numbers.offset_dims) == offsets
        and indices.shape[-1] == 1
    )
    if not is_plain:
        raise ValueError("the primitive gather is written for look-ups along one axis, as in table[indices], only")
    at = movement.reshape(g, indices, indices.shape[:-1])
    mode = getattr(params["mode"], "name", str(params["mode"]))
    inside = at
    if mode != "PROMISE_IN_BOUNDS":
        inside = elementwise(g, "Max", [at, scalar(g, 0, at.dtype)], at.shape, at.dtype)
        inside = elementwise(g, "Min", [inside, scalar(g, table.shape[axis] - 1, at.dtype)], at.shape, at.dtype)
    picked = _looked_up(g, table, inside, axis, out)
    if mode != "FILL_OR_DROP":
        return picked
    fill = params["fill_value"]
    if fill is None:
        fill = np.nan if picked.dtype.kind == "f" else np.iinfo(picked.dtype).min
    is_inside = elementwise(g, "Equal", [at, inside], at.shape, np.bool_)
    shape = (1,) * axis + at.shape + (1,) * (len(out.shape) - axis - len(at.shape))
    is_inside = movement.reshape(g, is_inside, shape)
    return elementwise(g, "Where", [is_inside, picked, scalar(g, fill, picked.dtype)], out.shape, out.dtype)


def _looked_up(g: Graph, table: Value, at: Value, axis: int, out: Any) -> Value:
    q = table.quantized
    if table.array is not None and bits_of(table.dtype) == 8 and table.dtype.kind in "iu":
        codes = narrowed(table.array)
        if codes.dtype != table.dtype:  # 4 bits in the file; no runtime gathers them
            table = g.node("Cast", [g.constant(codes)], table.shape, table.dtype, to=str(table.dtype))
    if q is None or bits_of(q.codes.dtype) < 8:
        return g.node("Gather", [table, at], out.shape, out.dtype, axis=axis)
    codes = g.node("Gather", [g.constant(q.codes), at], out.shape, q.codes.dtype, axis=axis)
    how = layout(q)
    if how.axis is None:
        return dequantized(g, codes, how)
    if how.block is None and how.axis != axis:
        moved = how.axis + (len(at.shape) - 1 if how.axis > axis else 0)
        return dequantized(g, codes, how._replace(axis=moved))
    if how.block is None and how.zero is None:  # a scale per row: looked up too
        shape = (1,) * axis + at.shape + (1,) * (len(out.shape) - axis - len(at.shape))
        rows = g.node("Gather", [g.constant(how.scale), at], at.shape, np.float32, axis=0)
        wide = elementwise(g, "Cast", [codes], out.shape, np.float32, to="float32")
        return elementwise(g, "Mul", [wide, movement.reshape(g, rows, shape)], out.shape, np.float32)
    return g.node("Gather", [table, at], out.shape, out.dtype, axis=axis)


HANDLERS: Mapping[str, Handler] = {
    "reshape": reshape,
    "squeeze": reshape,
    "transpose": transpose,
    "broadcast_in_dim": broadcast,
    "slice": _slice,
    "rev": reverse,
    "dynamic_slice": dynamic_slice,
    "concatenate": concatenate,
    "pad": pad,
    "gather": gather,
}
"""By primitive."""
