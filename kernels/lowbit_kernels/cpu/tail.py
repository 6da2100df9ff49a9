"""What follows a product inside a native call, as operands and attributes of the call (`TailCall` in cpp/core/calls.h)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lowbit_kernels.cpu.arena import TYPES, Placed, reshaped
from lowbit_kernels.numerics import StaticActivation

KINDS = ("add", "mul", "max", "min")  # numbers shared with enum Step in cpp/core/problem.h
RESIDUAL = "residual"  # the sum with an array in the shape of the result: kResidualKind there
MOST_STEPS = 8


class Results(NamedTuple):
    """Results of a native call; those that were not asked for have no elements."""

    value: Array
    codes: Array
    marks: Array


class Tail(NamedTuple):
    """Steps, and the grid of the codes that are emitted.

    Attributes:
        kinds: of `KINDS`, or `RESIDUAL`.
        numbers: of each step the one number that all channels have, or None where they have a row of the table.
        table: float32 `(rows, tiles, 16)`, or None without rows.
        emit: grid of the codes, or None.
        keep: the float value is a result.
        by_channel: marks of a convolution say which channels are NaN (`fused.py`).
        residual: float32 as the results are stored, where `RESIDUAL` is among the kinds.
    """

    kinds: tuple[str, ...]
    numbers: tuple[float | None, ...]
    table: Any
    emit: StaticActivation | None
    keep: bool
    by_channel: bool = False
    residual: Any = None

    def operands(self) -> tuple[Any, Any, Any]:
        """steps, next_scale, next_zero; None of what the call does without."""
        if self.emit is None:
            return self.table, None, None
        return self.table, reshaped(scale_of(self.emit), (1,)), zero_of(self.emit)

    def attributes(self) -> dict[str, Any]:
        """kinds, numbers."""
        ones = [number is not None for number in self.numbers]
        number = {kind: i for i, kind in enumerate(KINDS)} | {RESIDUAL: len(KINDS)}
        kinds = [number[kind] + len(KINDS) * one for kind, one in zip(self.kinds, ones, strict=True)]
        numbers = [0.0 if number is None else number for number in self.numbers]
        return {"kinds": np.asarray(kinds, np.int64), "numbers": np.asarray(numbers, np.float32)}

    def bounds(self) -> tuple[int, int]:
        """next_lo, next_hi."""
        return (-128, 127) if self.emit is None else (self.emit.lo, self.emit.hi)

    def results(self, native: str, shape: Any, empty: Any, rows: Any, no_rows: Any) -> list[jax.ShapeDtypeStruct]:
        """value, codes, marks: of `shape` and `rows` where asked for, else of `empty` and `no_rows`."""
        wide = self.emit is not None and self.emit.hi > 127
        return [
            jax.ShapeDtypeStruct(shape if self.keep else empty, native),
            jax.ShapeDtypeStruct(empty if self.emit is None else shape, jnp.uint8 if wide else jnp.int8),
            jax.ShapeDtypeStruct(no_rows if self.emit is None else rows, jnp.float32),
        ]


NO_TAIL = Tail((), (), None, None, keep=True)


def grouped(table: Array, groups: int) -> Array:
    """`(.., O)` to `(.., tiles, 16)`: each group's channels fill whole tiles."""
    lead, out = table.shape[:-1], table.shape[-1] // groups
    tiles = -(-out // 16)
    table = jnp.pad(table.reshape(*lead, groups, out), [(0, 0)] * (len(lead) + 1) + [(0, tiles * 16 - out)])
    return table.reshape(*lead, groups * tiles, 16)


def scale_of(activation: StaticActivation) -> Any:
    """The scale in float32, as it lies where it is placed in an arena."""
    scale = activation.scale
    return scale if isinstance(scale, Placed) and scale.dtype == jnp.float32 else jnp.asarray(scale).astype(jnp.float32)


def zero_of(activation: StaticActivation) -> Any:
    """`(1,)`, float32 as it is, else int32: a cast would be an operation of its own in every call."""
    zero = activation.zero
    if isinstance(zero, Placed) and zero.dtype in (jnp.float32, jnp.int32):
        return zero.reshape(1)
    zero = jnp.asarray(zero)
    return jnp.reshape(zero if zero.dtype == jnp.float32 else zero.astype(jnp.int32), (1,))


def given(operands: list[Any]) -> tuple[list[Array], int, tuple[int, ...]]:
    """The operands that a call has, the bits of those it may do without, and where those lie that are placed in an arena.

    The arena of the latter, the same for all, is one more operand, the last. Of each: its position among `operands`, where it
    begins, its type, its rank and its shape.
    """
    arrays, bits, places, arena = [], 0, [], None
    for slot, operand in enumerate(operands):
        array, bit = operand if isinstance(operand, tuple) else (operand, 0)
        if array is None:
            continue
        bits |= bit
        if isinstance(array, Placed) and (arena is None or arena is array.arena):
            arena = array.arena
            places += [slot, array.offset, TYPES.index(array.dtype.name), array.ndim, *array.shape]
        else:
            arrays.append(array.array() if isinstance(array, Placed) else array)
    return arrays if arena is None else [*arrays, arena], bits, tuple(places)
