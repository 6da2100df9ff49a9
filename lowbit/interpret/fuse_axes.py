"""Where the channels of a product go when what follows it is moved: for `lowbit.interpret.fuse`."""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lowbit.program.read import Equation, Value

Marks = Callable[[Array], Array]
"""What a movement does to an array of the axes that are no channels."""


def varying(value: Value) -> set[int]:
    """Returns the axes along which a value may vary."""
    every = {i for i, n in enumerate(value.shape) if n != 1}
    source = value.source
    if source is None or source.name != "broadcast_in_dim":
        return every
    inner, where = source.ins[0], source.params["broadcast_dimensions"]
    return {where[i] for i in varying(inner)} & every


def moved(equation: Equation, channels: tuple[int, ...]) -> tuple[tuple[int, ...], Marks] | None:
    """Returns where a movement puts the channels, and what it does to an array of the other axes; None of others."""
    name, (value,), out = equation.name, equation.ins[:1] or (None,), equation.outs[0]
    if value is None or len(equation.ins) != 1 or value.dtype != out.dtype:
        return None
    rows = [i for i in range(value.ndim) if i not in channels]
    if name in ("copy", "convert_element_type"):
        return channels, lambda marks: marks
    if name == "transpose":
        order = equation.params["permutation"]
        kept = [rows.index(i) for i in order if i not in channels]
        return tuple(order.index(c) for c in channels), lambda marks: jnp.transpose(marks, kept)
    if (
        name == "squeeze"
        or name == "reshape"
        or (name == "broadcast_in_dim" and math.prod(out.shape) == math.prod(value.shape))
    ):
        split = _split(value.shape, out.shape, channels)
        if split is None:
            return None
        shape = out.shape[:split]
        return tuple(range(split, out.ndim)), lambda marks: jnp.reshape(marks, shape)
    return None


def is_widened(equation: Equation) -> bool:
    """Returns whether a ``pad`` puts nothing but zeros behind the last axis."""
    fill, (*others, (before, _, inside)) = equation.ins[1], equation.params["padding_config"]
    is_zero = fill.is_written and not fill.value and not np.signbit(fill.value)
    is_behind = before == inside == 0 and equation.outs[0].shape[-1] >= equation.ins[0].shape[-1]
    return is_zero and is_behind and not any(map(any, others))


def _split(shape: tuple[int, ...], out: tuple[int, ...], channels: tuple[int, ...]) -> int | None:
    """Of a reshape whose last axes are the channels: where they begin in the result."""
    if channels != tuple(range(len(shape) - len(channels), len(shape))):
        return None
    count, rows = math.prod(shape[i] for i in channels), math.prod(shape[: len(shape) - len(channels)])
    fits = [j for j in range(len(out)) if math.prod(out[j:]) == count and math.prod(out[:j]) == rows]
    return fits[-1] if fits else None


def flattened(equation: Equation, channels: tuple[int, ...]) -> tuple[tuple[int, ...], Marks] | None:
    """Returns, of a reshape that merges rows with the channels, the merged axis, and a mark for all that it holds."""
    if equation.name != "reshape" or len(equation.ins) != 1:
        return None
    value, out = equation.ins[0], equation.outs[0]
    if not out.shape or channels != (value.ndim - 1,) or 0 in value.shape:
        return None
    if _split(value.shape, out.shape, channels) is not None or out.shape[-1] % value.shape[-1]:
        return None
    lead, merged = out.shape[:-1], out.shape[-1] // value.shape[-1]
    if next((i for i in range(value.ndim) if math.prod(value.shape[i:]) == out.shape[-1]), None) is None:
        return None
    # The scale is one number, or NaN: the largest is NaN where any is.
    return (len(lead),), lambda marks: jnp.max(marks.reshape(*lead, merged), axis=-1)
