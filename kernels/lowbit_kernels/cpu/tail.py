"""What follows a product inside a native call, as operands and attributes of the call (`TailCall` in cpp/core/calls.h)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lowbit_kernels.numerics import StaticActivation

KINDS = ("add", "mul", "max", "min")  # numbers shared with enum Step in cpp/core/problem.h
MOST_STEPS = 8


class Results(NamedTuple):
    """Results of a native call; those that were not asked for have no elements."""

    value: Array
    codes: Array
    marks: Array


class Tail(NamedTuple):
    """Steps, and the grid of the codes that are emitted.

    Attributes:
        kinds: of `KINDS`.
        table: float32 `(len(kinds), tiles, 16)`, or None without steps.
        emit: grid of the codes, or None.
        keep: the float value is a result.
    """

    kinds: tuple[str, ...]
    table: Any
    emit: StaticActivation | None
    keep: bool

    def operands(self, tiles: int) -> tuple[Array, Array, Array]:
        """steps, next_scale, next_zero."""
        table = jnp.zeros((0, tiles, 16), jnp.float32) if self.table is None else self.table
        scale, zero = (1.0, 0) if self.emit is None else (self.emit.scale, self.emit.zero)
        scale, zero = jnp.asarray(scale).astype(jnp.float32), jnp.asarray(zero).astype(jnp.int32)
        return table, jnp.reshape(scale, (1,)), jnp.reshape(zero, (1,))

    def attributes(self) -> dict[str, Any]:
        """kinds, next_lo, next_hi."""
        lo, hi = (-128, 127) if self.emit is None else (self.emit.lo, self.emit.hi)
        kinds = np.asarray([KINDS.index(kind) for kind in self.kinds], np.int64)
        return {"kinds": kinds, "next_lo": np.int64(lo), "next_hi": np.int64(hi)}

    def results(self, native: str, shape: Any, empty: Any, rows: Any, no_rows: Any) -> list[jax.ShapeDtypeStruct]:
        """value, codes, marks: of `shape` and `rows` where asked for, else of `empty` and `no_rows`."""
        wide = self.emit is not None and self.emit.hi > 127
        return [
            jax.ShapeDtypeStruct(shape if self.keep else empty, native),
            jax.ShapeDtypeStruct(empty if self.emit is None else shape, jnp.uint8 if wide else jnp.int8),
            jax.ShapeDtypeStruct(no_rows if self.emit is None else rows, jnp.float32),
        ]


NO_TAIL = Tail((), None, None, keep=True)


def grouped(table: Array, groups: int) -> Array:
    """`(.., O)` to `(.., tiles, 16)`: each group's channels fill whole tiles."""
    lead, out = table.shape[:-1], table.shape[-1] // groups
    tiles = -(-out // 16)
    table = jnp.pad(table.reshape(*lead, groups, out), [(0, 0)] * (len(lead) + 1) + [(0, tiles * 16 - out)])
    return table.reshape(*lead, groups * tiles, 16)
