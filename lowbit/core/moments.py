"""Moments of an operation's input, row by row: what rounding with feedback, equalization and scaling read.

Sums are kept in float32, counts exactly. The order of batches changes a sum of ``n`` terms by at most ``n`` times the
unit roundoff, relative to the sum of magnitudes.
"""

import abc
import dataclasses

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Shaped, UInt32

from .extremes import larger, largest_magnitude
from .rows import row_view
from .spec import Operand
from .statistics import State, Statistic

Tally = UInt32[Array, " two"]
"""A count beyond 2**32: the high and the low word."""


def no_count() -> Tally:
    """Returns a count of nothing."""
    return jnp.zeros(2, jnp.uint32)


def counted(count: Tally, more: int | Tally) -> Tally:
    """Returns a count and ``more``, exactly."""
    other = jnp.asarray([more >> 32, more & 0xFFFFFFFF], jnp.uint32) if isinstance(more, int) else more
    low = count[1] + other[1]
    return jnp.stack([count[0] + other[0] + (low < count[1]).astype(jnp.uint32), low])


def count_across(count: Tally, axis_names: tuple[str, ...]) -> Tally:
    """Returns the sum of the counts of all devices along mesh axes: exact, of halves of words that cannot carry."""
    halves = jnp.stack([count[0], count[1] >> 16, count[1] & 0xFFFF])
    high, middle, low = lax.psum(halves, axis_names)
    middle = middle + (low >> 16)
    return jnp.stack([high + (middle >> 16), (middle << 16) | (low & 0xFFFF)])


def as_float(count: Tally) -> Float[Array, ""]:
    """Returns a count in float32, at least 1: what a mean divides by."""
    return jnp.maximum(count[0].astype(jnp.float32) * 2.0**32 + count[1].astype(jnp.float32), 1.0)


@dataclasses.dataclass(frozen=True)
class RowSum(Statistic):
    """A sum over rows and the number of rows; finished, their quotient. Subclasses say what is summed."""

    @property
    def is_of_product(self) -> bool:
        return True

    @abc.abstractmethod
    def shape(self, matrices: int, inner: int) -> tuple[int, ...]:
        """Returns the shape of the sum, for inputs of ``matrices`` and ``K``."""

    @abc.abstractmethod
    def total(self, rows: Float[Array, "matrix row inner"]) -> Float[Array, "..."]:
        """Returns the sum over the rows of one batch, float32."""

    def init(self, operand: Operand) -> State:
        """Returns the state: the sum, and the number of rows."""
        return jnp.zeros(self.shape(*row_view(operand, type(self).__name__).size), jnp.float32), no_count()

    def update(self, state: State, x: Shaped[Array, "..."], operand: Operand) -> State:
        rows = row_view(operand, type(self).__name__).rows(x).astype(jnp.float32)
        total, count = state
        return total + self.total(rows), counted(count, rows.shape[1])

    def merge(self, state: State, other: State) -> State:
        return state[0] + other[0], counted(state[1], other[1])

    def across(self, state: State, axis_names: tuple[str, ...]) -> State:
        return lax.psum(state[0], axis_names), count_across(state[1], axis_names)

    def finish(self, state: State) -> Float[Array, "..."]:
        return state[0] / as_float(state[1])


@dataclasses.dataclass(frozen=True)
class Gram(RowSum):
    """The second moment of an operation's input, ``H = X^T X / n`` over its ``n`` rows: float32 ``[matrix, K, K]``.

    Matrices and ``K`` are in the order of `lowbit.core.matrix.MatrixView` of the weight, so the mean squared error that a
    change ``D [K, N]`` of the weight makes in the result is ``tr(D^T H D)``. Products are taken in float32.
    """

    @property
    def name(self) -> str:
        return "gram"

    def shape(self, matrices: int, inner: int) -> tuple[int, ...]:
        return matrices, inner, inner

    def total(self, rows: Float[Array, "matrix row inner"]) -> Float[Array, "matrix inner inner"]:
        return jnp.einsum("mrk,mrl->mkl", rows, rows, precision=lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True)
class ChannelMean(RowSum):
    """The mean of every entry of an operation's input rows: float32 ``[matrix, K]``."""

    @property
    def name(self) -> str:
        return "channel_mean"

    def shape(self, matrices: int, inner: int) -> tuple[int, ...]:
        return matrices, inner

    def total(self, rows: Float[Array, "matrix row inner"]) -> Float[Array, "matrix inner"]:
        return jnp.sum(rows, axis=1)


@dataclasses.dataclass(frozen=True)
class ChannelMax(Statistic):
    """The largest magnitude of every entry of an operation's input rows: float32 ``[matrix, K]``, exact."""

    @property
    def name(self) -> str:
        return "channel_max"

    @property
    def is_of_product(self) -> bool:
        return True

    def init(self, operand: Operand) -> State:
        return jnp.zeros(row_view(operand, type(self).__name__).size, jnp.float32)

    def update(self, state: State, x: Shaped[Array, "..."], operand: Operand) -> State:
        rows = row_view(operand, type(self).__name__).rows(x).astype(jnp.float32)
        return larger(state, largest_magnitude(rows, axis=1)) if rows.shape[1] else state

    def merge(self, state: State, other: State) -> State:
        return larger(state, other)

    def across(self, state: State, axis_names: tuple[str, ...]) -> State:
        return lax.pmax(state, axis_names)
