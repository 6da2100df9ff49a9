"""From the integer accumulator to the result: one function, shared by simulation, execution and export.

``f = sum over groups, in order, of (float(acc[g]) * weight_scale[g])``, then ``y = f * input_scale``: float32, every
operation rounded once, the groups added in ascending order. Zero points are inside the accumulator, exactly.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int32

from lowbit.core.rounding import cast_once, rounded_product, unfused

Accumulator = Sequence[tuple[Int32[Array, "..."], float]]
"""Integers and powers of two: the accumulator is the sum of ``integer * power`` (two parts for 16-bit inputs)."""


def to_float(accumulator: Accumulator) -> Float[Array, "..."]:
    """Returns the accumulator in float32, rounded to nearest even; high parts first."""
    total = None
    for part, power in accumulator:
        value = part.astype(jnp.float32)
        value = value if power == 1.0 else value * jnp.float32(power)  # a power of two: exact
        total = value if total is None else unfused(total + value)
    assert total is not None
    return total


def scaled(
    accumulator: Accumulator, first: Float[Array, "..."], second: Float[Array, "..."], dtype: DTypeLike
) -> Array:
    """Returns ``accumulator * first * second`` in float32, cast once to ``dtype``; scales broadcast to the result.

    Args:
        accumulator: int32 parts of the result's shape.
        first: the weight's (right operand's) scale.
        second: the input's (left operand's) scale.
        dtype: of the result.
    """
    return scaled_sum(to_float(accumulator), first, second, dtype)


def scaled_sum(
    value: Float[Array, "..."], first: Float[Array, "..."], second: Float[Array, "..."], dtype: DTypeLike
) -> Array:
    """Returns `scaled` of an accumulator that is in float32 already; differentiable."""
    return cast_once(rounded_product(rounded_product(value, first), second), dtype)


def scaled_groups(
    accumulate: Callable[[Any], Accumulator],
    group_scales: Float[Array, "group ..."],
    second: Float[Array, "..."],
    dtype: DTypeLike,
) -> Array:
    """Returns the grouped result: groups scaled one by one and added in ascending order, then ``second``.

    Args:
        accumulate: ``group index -> accumulator`` of one group.
        group_scales: the weight's scales, groups first, the rest broadcasting to the result.
        second: the input's scale.
        dtype: of the result.
    """

    def one(group):
        scale = lax.dynamic_index_in_dim(group_scales, group, keepdims=False)
        return rounded_product(to_float(accumulate(group)), scale)

    def add(total, group):
        return unfused(total + one(group)), None

    groups = jnp.arange(1, group_scales.shape[0])
    total, _ = lax.scan(add, one(jnp.zeros((), groups.dtype)), groups)
    return cast_once(rounded_product(total, second), dtype)


_UNROLLED = 64
"""Groups up to here are added in a straight line, more in a loop: the same additions in the same order."""


def scaled_groups_at_once(
    accumulator: Accumulator, group_scales: Float[Array, "group ..."], second: Float[Array, "..."], dtype: DTypeLike
) -> Array:
    """Returns `scaled_groups` of accumulators computed for all groups by one batched operation: what is exported.

    Args:
        accumulator: of all groups, groups first.
        group_scales: the weight's scales, groups first, the rest broadcasting to the result.
        second: the input's scale.
        dtype: of the result.
    """
    return added_groups(to_float(accumulator), group_scales, second, dtype)


def added_groups(
    values: Float[Array, "group ..."],
    group_scales: Float[Array, "group ..."],
    second: Float[Array, "..."],
    dtype: DTypeLike,
) -> Array:
    """Returns `scaled_groups_at_once` of accumulators in float32."""
    parts = rounded_product(values, group_scales)
    if len(parts) <= _UNROLLED:
        total = functools.reduce(lambda total, part: unfused(total + part), [parts[i] for i in range(len(parts))])
    else:
        total, _ = lax.scan(lambda total, part: (unfused(total + part), None), parts[0], parts[1:])
    return cast_once(rounded_product(total, second), dtype)
