"""How the scales of two operands meet the result of a dot or convolution.

A scale that stays out of the contraction is shaped to the result; with one that varies along it, the operation is a sum over
groups, cut out of the one view of weights and inputs (`lowbit.core.matrix`, `lowbit.core.rows`).
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lowbit.core.matrix import MatrixView
from lowbit.core.qtensor import QTensor
from lowbit.core.rows import RowView, Window, order_of
from lowbit.core.spec import Spec

from .matmul import Matmul


@dataclasses.dataclass(frozen=True)
class Scales:
    """Both scales, broadcasting against the result."""

    left_scale: Float[Array, "..."]
    right_scale: Float[Array, "..."]


def reach_of(q: QTensor) -> float:
    """Returns the largest magnitude of ``level - zero``."""
    return reach_of_spec(q.spec)


def reach_of_spec(spec: Spec) -> float:
    """Returns the largest magnitude of ``level - zero`` that a spec allows."""
    numbers = spec.merged.format
    return max(abs(numbers.low), abs(numbers.high)) if spec.symmetric else numbers.high - numbers.low


def layout_of(matmul: Matmul, lhs: QTensor, rhs: QTensor) -> Scales | None:
    """Returns the scales shaped to the result, or None where a scale varies along the contraction (groups)."""
    params = dict(matmul.params)
    left, right = lhs.scale_values, rhs.scale_values
    if matmul.name == "dot_general":
        (lc, rc), (lb, rb) = params["dimension_numbers"]
        if any(left.shape[i] != 1 for i in lc) or any(right.shape[i] != 1 for i in rc) or lhs.groups or rhs.groups:
            return None
        left_free = [i for i in range(left.ndim) if i not in (*lc, *lb)]
        right_free = [i for i in range(right.ndim) if i not in (*rc, *rb)]
        out_left = jnp.transpose(left, [*lb, *left_free, *lc])
        out_right = jnp.transpose(right, [*rb, *right_free, *rc])
        batch = len(lb)
        return Scales(
            out_left.reshape([*out_left.shape[: batch + len(left_free)], *[1] * len(right_free)]),
            out_right.reshape(
                [*out_right.shape[:batch], *[1] * len(left_free), *out_right.shape[batch : batch + len(right_free)]]
            ),
        )
    numbers = params["dimension_numbers"]
    if lhs.groups or rhs.groups or any(right.shape[i] != 1 for i in numbers.rhs_spec[1:]):
        return None
    if any(left.shape[i] != 1 for i in numbers.lhs_spec[1:]):
        raise ValueError(
            f"a convolution's input scale may differ between examples only, got the scale {left.shape}; "
            f"use a<bits>/tensor or a<bits>/dynamic"
        )
    rank = lhs.ndim
    out_left, out_right = [1] * rank, [1] * rank
    out_left[numbers.out_spec[0]] = left.shape[numbers.lhs_spec[0]]
    out_right[numbers.out_spec[1]] = right.shape[numbers.rhs_spec[0]]
    batches = params["batch_group_count"]
    if batches > 1 and left.size > 1:  # every group of examples makes output channels of its own
        channels = rhs.shape[numbers.rhs_spec[0]] // batches
        left = jnp.repeat(left.reshape(batches, -1), channels, axis=0)  # (channel, example)
        out_left[numbers.out_spec[0]], out_left[numbers.out_spec[1]] = left.shape[1], left.shape[0]
        left = left if numbers.out_spec[1] < numbers.out_spec[0] else left.T
    return Scales(left.reshape(out_left), right.reshape(out_right))


@dataclasses.dataclass(frozen=True)
class Layout:
    """A dot in the form ``[batch, rows, K] x [batch, K, columns]``, K in the weight's leaf order, cut in groups.

    Attributes:
        left: float32 integers ``(batch, rows, K)``, K padded to whole groups.
        right: float32 integers ``(batch, K, columns)``.
        group: elements of K per group.
        right_scale: ``(group, batch, 1, columns)``.
        left_scale: broadcasts to ``(batch, rows, columns)``.
        left_reach: the largest magnitude of an element of ``left``.
        right_reach: of ``right``.
        is_wide: whether the left operand has 16 bits.
        shape: of the result, batch, rows and columns spread out.
        order: the transposition from there to the operation's result.
    """

    left: Float[Array, "batch rows k"]
    right: Float[Array, "batch k columns"]
    group: int
    right_scale: Float[Array, "group batch one columns"]
    left_scale: Float[Array, "..."]
    left_reach: float
    right_reach: float
    is_wide: bool
    shape: tuple[int, ...]
    order: tuple[int, ...]

    def grouped_operands(self) -> tuple[Array, Array]:
        """Returns both operands with the groups first: ``(group, batch, rows, k)``, ``(group, batch, k, columns)``."""
        b, m, k = self.left.shape
        n = self.right.shape[-1]
        left = self.left.reshape(b, m, k // self.group, self.group)
        right = self.right.reshape(b, k // self.group, self.group, n)
        return jnp.moveaxis(left, 2, 0), jnp.moveaxis(right, 1, 0)

    def restore(self, out: Array) -> Array:
        """Returns the result in the operation's own layout."""
        return jnp.transpose(out.reshape(self.shape), self.order)


def grouped_layout(matmul: Matmul, lhs: QTensor, rhs: QTensor) -> Layout:
    """Returns the canonical form of an operation whose right operand has groups along the contraction.

    Both operands are read by the views of `lowbit.core.matrix` and `lowbit.core.rows`; what is added here is a whole number
    of groups, and a scale for each.

    Raises:
        ValueError: where the left operand's scale varies along the contraction too, or only the left one's does.
    """
    rows, matrix = _views(matmul, lhs, rhs)
    left, numbers = rows.rows(lhs.centered()), dict(matmul.params)["dimension_numbers"]
    reaches, is_wide = (reach_of(lhs), reach_of(rhs)), lhs.spec.format.bits > 8
    if matmul.name == "dot_general":
        (lc, _), (lb, _) = numbers
        kept = [1 if i in lc else n for i, n in enumerate(lhs.shape)]
        flat = dataclasses.replace(rows, parts=(*rows.parts[: len(lb)], *[(1,)] * len(lc)))
        row_scale = flat.rows(jnp.broadcast_to(lhs.scale_values, kept))
        right, scale, group, last = _in_groups(rhs, matrix)
        free = [n for i, n in enumerate(lhs.shape) if i not in (*lc, *lb)]
        shape = (*(lhs.shape[i] for i in lb), *free, *(rhs.shape[i] for i in matrix.free))
        left, order = _pad_k(left, last, group), tuple(range(len(shape)))
        return Layout(left, right, group, scale, row_scale, *reaches, is_wide, shape, order)
    right, scale, group, last = _in_groups(rhs, matrix)
    n, positions = lhs.shape[numbers.lhs_spec[0]], _positions(matmul, lhs, rhs)
    left = _pad_k(left, last, group)
    row_scale = jnp.broadcast_to(lhs.scale_values.reshape(-1, 1), (n, math.prod(positions))).reshape(1, -1, 1)
    shape = (matrix.feature_groups, n, *positions, matrix.size[2])
    # (group, n, positions, columns) -> n, (group columns), positions in the order of out_spec
    order = (1, 0, 2 + len(positions), *range(2, 2 + len(positions)))
    out_spec = tuple(numbers.out_spec)
    return _ConvLayout(left, right, group, scale, row_scale, *reaches, is_wide, shape, order, out_spec)


def _views(matmul: Matmul, lhs: QTensor, rhs: QTensor) -> tuple[RowView, MatrixView]:
    """How the left operand is read as rows and the right one as matrices, K in the leaf order of the right one."""
    params = dict(matmul.params)
    numbers = params["dimension_numbers"]
    if matmul.name == "dot_general":
        (lc, rc), (lb, rb) = numbers
        left_scale = lhs.scale_values
        if any(left_scale.shape[i] != 1 for i in lc) or lhs.groups:
            raise ValueError(
                f"the left operand's scale {left_scale.shape} varies along the contraction; only a weight (the right "
                f"operand) may have groups there: use /tensor or /dynamic for the input"
            )
        pairs = sorted(zip(lc, rc, strict=True), key=lambda pair: pair[1])
        contract = tuple(pair[0] for pair in pairs)
        parts = tuple((lhs.shape[i],) for i in (*lb, *contract))
        rows = RowView(tuple(lb), contract, parts, tuple(range(len(lb))), tuple(range(len(lc))))
        return rows, MatrixView(tuple(rhs.shape), tuple(pair[1] for pair in pairs), tuple(rb))
    if params["batch_group_count"] != 1:
        raise ValueError("a convolution with batch groups cannot have group scales; use /channel")
    if any(lhs.scale_values.shape[i] != 1 for i in numbers.lhs_spec[1:]):
        raise ValueError("a convolution's input scale may differ between examples only: use a<bits>/tensor or /dynamic")
    contract = tuple(numbers.rhs_spec[1:])
    window = Window(
        tuple(numbers.lhs_spec),
        tuple(rhs.shape[i] for i in contract[1:]),
        params["window_strides"],
        params["padding"],
        params["lhs_dilation"],
        params["rhs_dilation"],
        params["feature_group_count"],
    )
    rows = RowView((), (), tuple((rhs.shape[i],) for i in contract), (), order_of(contract), window)
    return rows, MatrixView(tuple(rhs.shape), tuple(sorted(contract)), (), window.feature_groups)


def _positions(matmul: Matmul, lhs: QTensor, rhs: QTensor) -> list[int]:
    """The lengths of the result's spatial axes."""
    codes = [jax.ShapeDtypeStruct(q.shape, jnp.float32) for q in (lhs, rhs)]
    spec = dict(matmul.params)["dimension_numbers"].out_spec
    shape = jax.eval_shape(matmul.bind, *codes).shape
    return [shape[i] for i in spec[2:]]


def _pad_k(left: Array, last: int, group: int) -> Array:
    """Pads every run of ``last`` elements of K to whole groups."""
    extra = -last % group
    if not extra:
        return left
    b, m, k = left.shape
    left = jnp.pad(left.reshape(b, m, k // last, last), ((0, 0), (0, 0), (0, 0), (0, extra)))
    return left.reshape(b, m, -1)


def _in_groups(q: QTensor, view: MatrixView) -> tuple[Array, Array, int, int]:
    """The right operand as ``(batch, K, columns)``, its scale as ``(group, batch, 1, columns)``, the group, the last axis."""
    groups = dict(q.groups)
    last = next((i for i in reversed(view.contract) if q.shape[i] > 1), view.contract[-1])
    group = groups.get(last - q.ndim, q.shape[last] if q.scale_values.shape[last] == 1 else 1)
    if any(i - q.ndim in groups for i in (*view.contract, *view.batch) if i != last):
        raise ValueError(f"groups lie within the last contracted axis; got the scale {q.scale_values.shape}")

    def matrices(x: Array, inner: tuple[int, int] | None = None) -> Any:
        return dataclasses.replace(view, shape=tuple(x.shape)).matrices(x, inner)

    extra = -q.shape[last] % group
    right = matrices(jnp.pad(q.centered(), [(0, extra if i == last else 0) for i in range(q.ndim)]))
    scale = q.scale_values
    for axis, size in q.groups:
        position = axis + q.ndim
        if position != last:
            scale = jnp.repeat(scale, size, axis=position)
            scale = lax.slice_in_dim(scale, 0, q.shape[position], axis=position)
    shape = [scale.shape[i] if i == last else q.shape[i] for i in range(q.ndim)]
    scale = matrices(jnp.broadcast_to(scale, shape), (-1, 1))
    return right, jnp.moveaxis(scale, 1, 0), group, q.shape[last]


@dataclasses.dataclass(frozen=True)
class _ConvLayout(Layout):
    out_spec: tuple[int, ...] = ()

    def restore(self, out: Array) -> Array:
        n, feature_groups, columns, *positions = (self.shape[i] for i in self.order)
        out = jnp.transpose(out.reshape(self.shape), self.order).reshape(n, feature_groups * columns, *positions)
        inverse = [self.out_spec.index(i) for i in range(out.ndim)]
        return jnp.transpose(out, inverse)
