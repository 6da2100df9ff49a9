"""Moments of an operation's input, row by row: what rounding with feedback, equalization and scaling read.

Sums are kept in float32, counts exactly. The order of batches changes a sum of ``n`` terms by at most ``n`` times the
unit roundoff, relative to the sum of magnitudes.
"""

import abc
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Shaped, UInt32

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
    """A sum over rows and the number of rows; finished, their quotient. Subclasses say what is summed.

    Attributes:
        most: about how many rows of a batch are taken, evenly spaced, where it has more; 0: all. An image has thousands of
            patches, of which neighbours say the same. Statistics with the same number take the same rows.
    """

    most: int = 0

    is_of_product = True
    is_exact = False

    def taken(self, x: Shaped[Array, "..."], operand: Operand) -> Float[Array, "matrix row inner"]:
        """Returns the rows of an operand that are summed over, float32."""
        rows = row_view(operand, type(self).__name__).rows(x)
        return rows[:, :: self.step(rows.shape[1])].astype(jnp.float32)

    def step(self, rows: int) -> int:
        """Returns how far apart the rows lie that are taken of so many: odd, to pass through all columns of an image of 2^n."""
        return rows // self.most | 1 if 0 < self.most < rows else 1

    @abc.abstractmethod
    def shape(self, matrices: int, inner: int) -> tuple[int, ...]:
        """Returns the shape of the sum, for inputs of ``matrices`` and ``K``."""

    @abc.abstractmethod
    def total(
        self, rows: Float[Array, "matrix row inner"], operand: Operand, beside: Array | None
    ) -> Float[Array, "..."]:
        """Returns the sum over the rows of one batch, float32."""

    def init(self, operand: Operand) -> State:
        """Returns the state: the sum, and the number of rows."""
        return jnp.zeros(self.shape(*row_view(operand, type(self).__name__).size), jnp.float32), no_count()

    def update(self, state: State, x: Shaped[Array, "..."], operand: Operand, *, beside: Array | None = None) -> State:
        rows = self.taken(x, operand)
        total, count = state
        return total + self.total(rows, operand, beside), counted(count, rows.shape[1])

    def merge(self, state: State, other: State) -> State:
        return state[0] + other[0], counted(state[1], other[1])

    def across(self, state: State, axis_names: tuple[str, ...]) -> State:
        return lax.psum(state[0], axis_names), count_across(state[1], axis_names)

    def finish(self, state: State) -> Float[Array, "..."]:
        return state[0] / as_float(state[1])


@dataclasses.dataclass(frozen=True)
class SecondMoment(RowSum):
    """A sum of outer products of rows: float32 ``[matrix, K, K]``. Matrices and ``K`` are those of the weight's view."""

    def shape(self, matrices: int, inner: int) -> tuple[int, ...]:
        return matrices, inner, inner


def _outer(
    rows: Float[Array, "matrix row inner"], others: Float[Array, "matrix row inner"]
) -> Float[Array, "matrix inner inner"]:
    return jnp.einsum("mrk,mrl->mkl", rows, others, precision=lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True)
class Gram(SecondMoment):
    """The second moment of an operation's input, ``H = X^T X / n`` over its ``n`` rows: float32 ``[matrix, K, K]``.

    Matrices and ``K`` are in the order of `lowbit.core.matrix.MatrixView` of the weight, so the mean squared error that a
    change ``D [K, N]`` of the weight makes in the result is ``tr(D^T H D)``. Products are taken in float32.
    """

    name = "gram"

    def total(self, rows: Float[Array, "matrix row inner"], operand: Operand, beside: Array | None) -> Array:
        return _outer(rows, rows)


@dataclasses.dataclass(frozen=True)
class Cross(SecondMoment):
    """The cross moment of an input as it is multiplied and as it is in float, ``X_q^T X / n``: float32 ``[matrix, K, K]``.

    The quantized input goes along the first axis: what `lowbit.solvers.target` takes beside `Gram`. Observed in float, the
    two are one.
    """

    name = "cross"
    beside = "float"

    def total(self, rows: Float[Array, "matrix row inner"], operand: Operand, beside: Array | None) -> Array:
        assert beside is not None
        return _outer(rows, self.taken(beside, operand))


@dataclasses.dataclass(frozen=True)
class GuidedGram(SecondMoment):
    """The second moment with every row weighted by its squared gradient, ``X^T diag(mean_J g^2) X / n``, for every group ``J`` of outputs.

    ``g`` is the gradient of the loss by the operation's result: rows that matter to the loss count for more. Groups are of neighbouring
    outputs, output ``j`` of ``N`` in group ``floor(j groups / N)``, with a matrix each: float32 ``[matrix * group, K, K]``.

    Attributes:
        groups: of outputs.

    Reference: Kim et al., GuidedQuant, 2025, https://arxiv.org/abs/2505.07004, Eqs. (6) and (7).
    """

    groups: int = 1

    name = "guided_gram"
    beside = "gradient"

    def __post_init__(self):
        if self.groups < 1:
            raise ValueError(f"groups must be at least 1, got {self.groups}")

    def shape(self, matrices: int, inner: int) -> tuple[int, ...]:
        return matrices * self.groups, inner, inner

    def total(self, rows: Float[Array, "matrix row inner"], operand: Operand, beside: Array | None) -> Array:
        results = getattr(operand, "results", None)
        assert beside is not None
        assert results is not None  # there is one wherever there are rows
        squares = jnp.square(results.matrices(beside.astype(jnp.float32)))
        squares = squares[:, :: self.step(squares.shape[1])]
        if self.groups == 1:
            return _outer(rows * jnp.mean(squares, axis=2)[..., None], rows)
        member = jax.nn.one_hot(groups_of(squares.shape[2], self.groups), self.groups)
        slope = squares @ (member / jnp.maximum(jnp.sum(member, axis=0), 1.0))
        moments = jnp.einsum("mrg,mrk,mrl->mgkl", slope, rows, rows, precision=lax.Precision.HIGHEST)
        return moments.reshape(-1, *moments.shape[2:])


def groups_of(outputs: int, groups: int) -> Int[np.ndarray, " out"]:
    """Returns the group of every output of `GuidedGram`."""
    return np.arange(outputs) * groups // outputs


@dataclasses.dataclass(frozen=True)
class ChannelMean(RowSum):
    """The mean of every entry of an operation's input rows: float32 ``[matrix, K]``."""

    name = "channel_mean"

    def shape(self, matrices: int, inner: int) -> tuple[int, ...]:
        return matrices, inner

    def total(self, rows: Float[Array, "matrix row inner"], operand: Operand, beside: Array | None) -> Array:
        return jnp.sum(rows, axis=1)


@dataclasses.dataclass(frozen=True)
class FloatMean(RowSum):
    """The mean of every entry of an operation's input rows in the float model: float32 ``[matrix, K]``."""

    name = "float_mean"
    beside = "float"

    def shape(self, matrices: int, inner: int) -> tuple[int, ...]:
        return matrices, inner

    def total(self, rows: Float[Array, "matrix row inner"], operand: Operand, beside: Array | None) -> Array:
        assert beside is not None
        return jnp.sum(self.taken(beside, operand), axis=1)


@dataclasses.dataclass(frozen=True)
class Tokens(RowSum):
    """How many of an operation's input rows hold anything but zeros: float32 ``[matrix]``, exact below 2^24 a matrix."""

    name = "tokens"

    def shape(self, matrices: int, inner: int) -> tuple[int, ...]:
        return (matrices,)

    def total(self, rows: Float[Array, "matrix row inner"], operand: Operand, beside: Array | None) -> Array:
        return jnp.sum(jnp.any(rows != 0, axis=2), axis=1, dtype=jnp.float32)

    def finish(self, state: State) -> Float[Array, " matrix"]:
        return state[0]


@dataclasses.dataclass(frozen=True)
class ChannelMax(Statistic):
    """The largest magnitude of every entry of an operation's input rows: float32 ``[matrix, K]``, exact."""

    name = "channel_max"
    is_of_product = True

    def init(self, operand: Operand) -> State:
        return jnp.zeros(row_view(operand, type(self).__name__).size, jnp.float32)

    def update(self, state: State, x: Shaped[Array, "..."], operand: Operand, *, beside: Array | None = None) -> State:
        rows = row_view(operand, type(self).__name__).rows(x).astype(jnp.float32)
        return larger(state, largest_magnitude(rows, axis=1)) if rows.shape[1] else state

    def merge(self, state: State, other: State) -> State:
        return larger(state, other)

    def across(self, state: State, axis_names: tuple[str, ...]) -> State:
        return lax.pmax(state, axis_names)
