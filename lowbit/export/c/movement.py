"""Operations that change where elements are: an index for an index, nothing is copied."""

from collections.abc import Mapping, Sequence

import numpy as np
from jax import lax

from . import types
from .emit import Emitter, Expr, Rule
from .graph import Value, collapsed
from .index import Atom, Index, flat
from .simplify import bounds

Indices = tuple[Index, ...]
_INT = np.dtype(np.int32)


def _broadcast(emitter: Emitter, value: Value, indices: Indices) -> Expr:
    (x,) = value.ins
    dims = value.params["broadcast_dimensions"]
    return emitter.emit(x, tuple(Index() if n == 1 else indices[d] for d, n in zip(dims, x.shape, strict=True)))


def _reshaped(emitter: Emitter, value: Value, indices: Indices) -> Expr:
    (x,) = value.ins
    if value.name == "reshape" and value.params.get("dimensions") is not None:
        raise ValueError("the C form cannot hold a reshape that also permutes: transpose first")
    longer = [i for i, n in zip(indices, value.shape, strict=True) if n != 1]
    if [n for n in x.shape if n != 1] == [n for n in value.shape if n != 1]:
        rest = iter(longer)
        return emitter.emit(x, tuple(Index() if n == 1 else next(rest) for n in x.shape))
    return emitter.emit_flat(x, flat(indices, value.shape))


def _transposed(emitter: Emitter, value: Value, indices: Indices) -> Expr:
    by_axis = dict(zip(value.params["permutation"], indices, strict=True))
    return emitter.emit(value.ins[0], tuple(by_axis[i] for i in range(len(indices))))


def _sliced(emitter: Emitter, value: Value, indices: Indices) -> Expr:
    starts = value.params["start_indices"]
    strides = value.params["strides"] or (1,) * len(starts)
    return emitter.emit(
        value.ins[0], tuple(i * step + start for i, start, step in zip(indices, starts, strides, strict=True))
    )


def _reversed(emitter: Emitter, value: Value, indices: Indices) -> Expr:
    flipped = value.params["dimensions"]
    return emitter.emit(
        value.ins[0],
        tuple(
            Index((), n - 1) - i if d in flipped else i
            for d, (i, n) in enumerate(zip(indices, value.shape, strict=True))
        ),
    )


def inside(index: Index, count: int) -> list[tuple[str, int]]:
    """Returns the conditions for an index to be from 0 to ``count``: only those that may fail."""
    conditions = []
    if index.low < 0:
        conditions.append((f"{index.operand} >= 0", index.level))
    if index.high >= count:
        conditions.append((f"{index.operand} < {count}", index.level))
    return conditions


def undilated(index: Index, step: int) -> tuple[list[tuple[str, int]], Index]:
    """Returns the condition for an index to be a multiple of ``step``, and the quotient."""
    if step == 1:
        return [], index
    quotient, rest = index.divided(step)
    if rest == Index():
        return [], quotient
    return [(f"{rest.operand} == 0", rest.level)], quotient


def _padded(emitter: Emitter, value: Value, indices: Indices) -> Expr:
    x, fill = value.ins
    conditions, inner = [], []
    pads = [(int(low), int(gap)) for low, _, gap in value.params["padding_config"]]  # numpy integers, of jnp.pad
    for index, n, (low, gap) in zip(indices, x.shape, pads, strict=True):
        index = index - low
        if gap:
            conditions += [(f"{index.operand} >= 0", index.level)] if index.low < 0 else []
            condition, index = undilated(index, gap + 1)
            conditions += condition
            conditions += [(f"{index.operand} < {n}", index.level)] if index.high >= n else []
        else:
            conditions += inside(index, n)
        inner.append(index)
    other = emitter.emit(fill, ())
    return emitter.chosen(conditions, lambda: emitter.emit(x, tuple(inner)), other, value.dtype)


def _concatenated(emitter: Emitter, value: Value, indices: Indices) -> Expr:
    axis = value.params["dimension"]
    starts = [0]
    for x in value.ins:
        starts.append(starts[-1] + x.shape[axis])

    def part(i: int) -> Expr:
        index = indices[axis]
        if i < len(value.ins) - 1 and index.low >= starts[i + 1]:
            return part(i + 1)

        def here() -> Expr:
            return emitter.emit(value.ins[i], (*indices[:axis], index - starts[i], *indices[axis + 1 :]))

        if i == len(value.ins) - 1 or index.high < starts[i + 1]:
            return here()
        result = emitter.variable(value.dtype, Expr(types.literal(0, value.dtype)))
        with emitter.guarded([f"{index.operand} < {starts[i + 1]}"]):
            emitter.line(f"{result.text} = {here().text};")
        with emitter.guarded([f"{index.operand} >= {starts[i + 1]}"]):
            emitter.line(f"{result.text} = {part(i + 1).text};")
        return result

    return part(0)


def _turned(emitter: Emitter, value: Value, indices: Indices) -> Expr:
    assert value.loop is not None
    return emitter.emit(value.ins[0], (emitter.turn(value.loop), *indices))


def _start(emitter: Emitter, x: Value, indices: Indices, most: int) -> Index:
    """A start index that the program computes, kept between 0 and ``most`` as XLA does."""
    if most == 0:
        return Index()
    expr = emitter.emit(x, indices)
    low, high = bounds(x)
    if high > most:
        limit = Expr(types.literal(most, x.dtype))
        expr = Expr(emitter.call("min", x.dtype, [expr, limit]), expr.level)
    if low < 0:
        expr = Expr(emitter.call("max", x.dtype, [expr, Expr("0")]), expr.level)
    if types.suffix(x.dtype) not in ("i8", "i16", "i32"):
        expr = Expr(f"(int32_t){expr.text}", expr.level)
    expr = emitter.temporary(expr, _INT)
    return Index.of(Atom(expr.text, 0, most, expr.level))


def _room(x: Value, axis: int, size: int) -> int:
    """The largest start of ``size`` elements of an axis; 0 where a constant is the same all along it, wherever one begins."""
    if x.array is not None and collapsed(x.array).shape[axis] == 1:
        return 0
    return x.shape[axis] - size


def _gathered(emitter: Emitter, value: Value, indices: Indices) -> Expr:
    x, starts = value.ins
    numbers, sizes = value.params["dimension_numbers"], value.params["slice_sizes"]
    if value.params["mode"] == lax.GatherScatterMode.FILL_OR_DROP:
        raise ValueError("the C form cannot hold a gather that fills what is out of bounds: use mode='clip'")
    batch = [i for d, i in enumerate(indices) if d not in numbers.offset_dims]
    places = [Index()] * len(x.shape)
    for operand_dim, starts_dim in zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True):
        places[operand_dim] = batch[starts_dim]
    kept = [d for d in range(len(x.shape)) if d not in (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)]
    for d, where in zip(kept, numbers.offset_dims, strict=True):
        places[d] = indices[where]
    for k, d in enumerate(numbers.start_index_map):
        places[d] = places[d] + _start(emitter, starts, (*batch, Index((), k)), _room(x, d, sizes[d]))
    return emitter.emit(x, tuple(places))


def _dynamic(emitter: Emitter, value: Value, indices: Indices) -> Expr:
    x, *starts = value.ins
    return emitter.emit(
        x,
        tuple(
            i + _start(emitter, s, (), _room(x, d, n))
            for d, (i, s, n) in enumerate(zip(indices, starts, value.shape, strict=True))
        ),
    )


def _updated(emitter: Emitter, value: Value, indices: Indices) -> Expr:
    x, update, *starts = value.ins
    inner: Sequence[Index] = [
        i - _start(emitter, s, (), whole - n)
        for i, s, whole, n in zip(indices, starts, x.shape, update.shape, strict=True)
    ]
    conditions = [c for i, n in zip(inner, update.shape, strict=True) for c in inside(i, n)]
    return emitter.chosen(conditions, lambda: emitter.emit(update, tuple(inner)), emitter.emit(x, indices), value.dtype)


RULES: Mapping[str, Rule] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshaped,
    "squeeze": _reshaped,
    "transpose": _transposed,
    "slice": _sliced,
    "rev": _reversed,
    "pad": _padded,
    "concatenate": _concatenated,
    "turn": _turned,
    "gather": _gathered,
    "dynamic_slice": _dynamic,
    "dynamic_update_slice": _updated,
}
