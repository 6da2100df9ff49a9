"""An operation's input as rows ``[.., K]``: what its weight, read as ``[K, N]``, is multiplied by.

Matrices and ``K`` are in the order of `lowbit.core.matrix.MatrixView` of the weight, so that ``rows @ matrices`` is the
operation: of a dot the axes that are contracted, of a convolution the patches that its kernel meets.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Shaped

from .spec import Operand


@dataclasses.dataclass(frozen=True)
class Window:
    """How a convolution cuts patches out of its input, as `jax.lax.conv_general_dilated` says it.

    Attributes:
        image: the axes of the input: examples, channels, then the spatial ones.
        kernel: the lengths of the kernel.
        strides: of the window.
        padding: before and after, per spatial axis; negative ones crop.
        image_dilation: of a transposed convolution, its stride.
        kernel_dilation: the distance between the kernel's elements.
        feature_groups: parts of the channels that do not meet.
    """

    image: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    image_dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    feature_groups: int = 1

    def patches(self, x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        """Returns ``[example, feature group, channel, *kernel, *position]``."""
        canonical = jnp.transpose(x, self.image)
        patches = lax.conv_general_dilated_patches(
            canonical,
            filter_shape=self.kernel,
            window_strides=self.strides,
            padding=self.padding,
            lhs_dilation=self.image_dilation,
            rhs_dilation=self.kernel_dilation,
            precision=lax.Precision.HIGHEST,
        )
        examples, _, *positions = patches.shape
        channels = canonical.shape[1] // self.feature_groups
        return patches.reshape(examples, self.feature_groups, channels, *self.kernel, *positions)


@dataclasses.dataclass(frozen=True)
class RowView:
    """How an operand is read as ``[matrix, row, K]``.

    Attributes:
        batch: its axes that are matrices of their own.
        contract: its contracted axes; of a convolution none: they are those of the patches.
        parts: the lengths that every one of ``batch``, then of the contracted axes, is made of: the axes of the leaf.
        batch_order: the order of the parts of ``batch`` in the leaf.
        order: the order of the parts of the contracted axes in the leaf.
        window: of a convolution.
        flipped: which parts of the contracted axes, counted in one row, the weight has in reversed order.
    """

    batch: tuple[int, ...]
    contract: tuple[int, ...]
    parts: tuple[tuple[int, ...], ...]
    batch_order: tuple[int, ...]
    order: tuple[int, ...]
    window: Window | None = None
    flipped: tuple[int, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """``(matrices, K)``."""
        count = len(self.batch)
        matrices, inner = (
            math.prod(n for part in parts for n in part) for parts in (self.parts[:count], self.parts[count:])
        )
        return matrices * (1 if self.window is None else self.window.feature_groups), inner

    def rows(self, x: Shaped[Array, "..."]) -> Shaped[Array, "matrix row inner"]:
        """Returns the values of an operand as ``[matrix, row, K]``, in its own dtype."""
        batch, inner, parts, batch_order = self.batch, self.contract, self.parts, self.batch_order
        if self.window is not None:
            x = self.window.patches(x)
            batch, inner, batch_order = (1,), tuple(range(2, 2 + len(parts))), (0,)
            parts = ((self.window.feature_groups,), *parts)
        cut_in = dict(zip((*batch, *inner), parts, strict=True))
        shape: list[Any] = []
        places: list[range] = []
        for axis, n in enumerate(x.shape):
            lengths = cut_in.get(axis, (n,))
            places.append(range(len(shape), len(shape) + len(lengths)))
            shape += lengths
        free = [axis for axis in range(x.ndim) if axis not in cut_in]
        outer, rows, columns = ([i for axis in axes for i in places[axis]] for axes in (batch, free, inner))
        cut = x.reshape(shape)
        cut = jnp.flip(cut, [columns[i] for i in self.flipped]) if self.flipped else cut
        moved = jnp.transpose(cut, (*(outer[i] for i in batch_order), *rows, *(columns[i] for i in self.order)))
        matrices, length = self.size
        return moved.reshape(matrices, math.prod(x.shape[axis] for axis in free), length)


@dataclasses.dataclass(frozen=True)
class ResultView:
    """How the result of an operation is read as ``[matrix, row, N]``, row by row beside those of its input.

    Columns are those of one matrix, in the order of the result.

    Attributes:
        batch: its axes that are matrices of their own.
        rows: its axes that are rows.
        parts: the lengths that every one of ``batch`` is made of: the axes of the leaf.
        batch_order: the order of the parts in the leaf.
        channels: of a convolution, the axis whose parts are matrices of their own; else None.
        feature_groups: those parts.
    """

    batch: tuple[int, ...]
    rows: tuple[int, ...]
    parts: tuple[tuple[int, ...], ...]
    batch_order: tuple[int, ...]
    channels: int | None = None
    feature_groups: int = 1

    def matrices(self, y: Shaped[Array, "..."]) -> Shaped[Array, "matrix row columns"]:
        """Returns a result as ``[matrix, row, N]``."""
        columns = [i for i in range(y.ndim) if i not in (*self.batch, *self.rows)]
        count = math.prod(y.shape[i] for i in self.rows)
        if self.channels is not None:
            moved = jnp.transpose(y, (*self.rows, self.channels))
            return jnp.moveaxis(moved.reshape(count, self.feature_groups, -1), 1, 0)
        moved = jnp.transpose(y, (*self.batch, *self.rows, *columns))
        parts = [n for part in self.parts for n in part]
        cut = moved.reshape(*parts, count, -1)
        cut = jnp.transpose(cut, (*self.batch_order, len(parts), len(parts) + 1))
        return cut.reshape(math.prod(parts), count, -1)


@dataclasses.dataclass(frozen=True)
class Observed(Operand):
    """An operand with all that is known where it is looked at: real shapes, and how it is read as rows.

    Attributes:
        rows: how; None where it is no input of a product (indices, results, weights).
        results: how the result is read beside them.
    """

    rows: RowView | None = None
    results: ResultView | None = None


def row_view(operand: Operand, name: str) -> RowView:
    """Returns how an operand is read as rows.

    Args:
        operand: as a statistic gets it.
        name: of the statistic, for the error.

    Raises:
        TypeError: for an operand that is not read as rows.
    """
    view: Any = getattr(operand, "rows", None)
    if view is None:
        raise TypeError(
            f"{name} reads an input as rows of a matrix; a {operand.dtype} operand {operand.shape} has none here"
        )
    return view


def order_of(axes: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the permutation that sorts ``axes``, stable."""
    return tuple(int(i) for i in np.argsort(axes, kind="stable"))
