"""Operations that read many elements for one: dots, convolutions, reductions, windows. One accumulator, nested loops."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import numpy as np

from . import types
from .emit import Emitter, Expr, Rule
from .graph import Value
from .index import Index
from .movement import Indices, inside, undilated


def _accumulate(emitter: Emitter, value: Value, a: Expr, x: Expr, y: Expr, count: int) -> None:
    """Adds a product to the accumulator; plainly where it cannot overflow."""
    reach = math.prod(max(-low, high) for low, high in (types.limits(u.dtype) for u in value.ins))
    if types.suffix(value.dtype) == "i32" and reach * count < 2**31:
        cast = "(int32_t)" if types.suffix(value.ins[0].dtype) != "i32" else ""
        emitter.line(f"{a.text} += {cast}{x.text} * {y.text};")
        return
    product = Expr(emitter.call("mul", value.dtype, [x, y]))
    emitter.line(f"{a.text} = {emitter.call('add', value.dtype, [a, product])};")


def _check(value: Value) -> None:
    if any(types.bits(u.dtype) == 1 for u in (value, *value.ins)):
        raise ValueError(f"the C form cannot hold {value.name!r} of booleans: convert to int32 first")
    if types.bits(value.dtype) < 8:
        raise ValueError(f"the C form cannot hold {value.name!r} into {value.dtype}: sum in int32")


def _dot(emitter: Emitter, value: Value, indices: Indices) -> Expr:
    _check(value)
    (contracted, batches) = value.params["dimension_numbers"]
    left, right = value.ins
    a = emitter.variable(value.dtype, Expr("0"))
    count = math.prod(left.shape[d] for d in contracted[0])
    with ExitStack() as loops:
        summed = [loops.enter_context(emitter.counted("k", left.shape[d])) for d in contracted[0]]
        free = iter(indices[len(batches[0]) :])
        places = []
        for u, own, batch in zip((left, right), contracted, batches, strict=True):
            known = dict(zip(batch, indices, strict=False)) | dict(zip(own, summed, strict=True))
            places.append(emitter.emit(u, tuple(known[d] if d in known else next(free) for d in range(len(u.shape)))))
        _accumulate(emitter, value, a, places[0], places[1], count)
    return a


def _convolution(emitter: Emitter, value: Value, indices: Indices) -> Expr:
    _check(value)
    params, (x, kernel) = value.params, value.ins
    numbers = params["dimension_numbers"]
    if params["batch_group_count"] != 1:
        raise ValueError("the C form cannot hold a convolution with batch_group_count: use feature_group_count")
    channel, each = indices[numbers.out_spec[1]], kernel.shape[numbers.rhs_spec[1]]
    group = channel.divided(kernel.shape[numbers.rhs_spec[0]] // params["feature_group_count"])[0]
    a = emitter.variable(value.dtype, Expr("0"))
    at_x, at_kernel = [Index()] * len(x.shape), [Index()] * len(x.shape)
    at_x[numbers.lhs_spec[0]], at_kernel[numbers.rhs_spec[0]] = indices[numbers.out_spec[0]], channel
    with ExitStack() as loops:
        for i, (x_dim, kernel_dim, out_dim) in enumerate(
            zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)
        ):
            tap = loops.enter_context(emitter.counted("w", kernel.shape[kernel_dim]))
            at = indices[out_dim] * params["window_strides"][i] + tap * params["rhs_dilation"][i]
            at = at - params["padding"][i][0]
            conditions = inside(at, (x.shape[x_dim] - 1) * params["lhs_dilation"][i] + 1)
            condition, at = undilated(at, params["lhs_dilation"][i])
            loops.enter_context(emitter.guarded([text for text, _ in (*conditions, *condition)]))
            at_x[x_dim], at_kernel[kernel_dim] = at, tap
        part = loops.enter_context(emitter.counted("c", each))
        at_x[numbers.lhs_spec[1]], at_kernel[numbers.rhs_spec[1]] = group * each + part, part
        parts = emitter.emit(x, tuple(at_x)), emitter.emit(kernel, tuple(at_kernel))
        _accumulate(emitter, value, a, *parts, kernel.size // kernel.shape[numbers.rhs_spec[0]])
    return a


def _start(word: str, dtype: np.dtype) -> int:
    low, high = types.limits(dtype)
    return {"sum": 0, "prod": 1, "max": low, "min": high, "and": -1 if types.is_signed(dtype) else high, "or": 0}[word]


def _joined(emitter: Emitter, word: str, value: Value, a: Expr, x: Expr) -> str:
    """The accumulator and one more element."""
    if word in ("and", "or"):
        return f"({types.c_type(value.dtype)})({a.text} {'&' if word == 'and' else '|'} {x.text})"
    if types.bits(value.dtype) < 8 and word in ("sum", "prod"):
        raise ValueError(f"the C form cannot hold {value.name!r} of {value.dtype}: convert to int32 first")
    return emitter.call({"sum": "add", "prod": "mul"}.get(word, word), value.dtype, [a, x])


def _reduction(word: str) -> Rule:
    def rule(emitter: Emitter, value: Value, indices: Indices) -> Expr:
        (x,) = value.ins
        axes = value.params["axes"]
        a = emitter.variable(value.dtype, Expr(types.literal(_start(word, value.dtype), value.dtype)))
        kept = iter(indices)
        with ExitStack() as loops:
            at = [
                loops.enter_context(emitter.counted("k", n)) if d in axes else next(kept) for d, n in enumerate(x.shape)
            ]
            emitter.line(f"{a.text} = {_joined(emitter, word, value, a, emitter.emit(x, tuple(at)))};")
        return a

    return rule


def _window(word: str) -> Rule:
    def rule(emitter: Emitter, value: Value, indices: Indices) -> Expr:
        x, params = value.ins[0], value.params
        a = emitter.variable(value.dtype, Expr(types.literal(_start(word, value.dtype), value.dtype)))
        at: list[Index] = []
        with ExitStack() as loops:
            for i, n in enumerate(x.shape):
                tap = loops.enter_context(emitter.counted("w", params["window_dimensions"][i]))
                index = indices[i] * params["window_strides"][i] + tap * params["window_dilation"][i]
                index = index - params["padding"][i][0]
                conditions = inside(index, (n - 1) * params["base_dilation"][i] + 1)
                condition, index = undilated(index, params["base_dilation"][i])
                loops.enter_context(emitter.guarded([text for text, _ in (*conditions, *condition)]))
                at.append(index)
            emitter.line(f"{a.text} = {_joined(emitter, word, value, a, emitter.emit(x, tuple(at)))};")
        return a

    return rule


_WORDS: Sequence[str] = ("sum", "prod", "max", "min", "and", "or")
RULES: Mapping[str, Rule] = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    **{f"reduce_{word}": _reduction(word) for word in _WORDS},
    **{f"reduce_window_{word}": _window(word) for word in ("sum", "max", "min")},
}
