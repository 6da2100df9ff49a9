"""How the scales of two operands meet the result of a dot or convolution."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lowbit.core.qtensor import QTensor
from lowbit.core.spec import Spec


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


def layout_of(matmul: Any, lhs: QTensor, rhs: QTensor) -> Scales | None:
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


def grouped_layout(matmul: Any, lhs: QTensor, rhs: QTensor) -> Layout:
    """Returns the canonical form of an operation whose right operand has groups along the contraction.

    Raises:
        ValueError: where the left operand's scale varies along the contraction too, or only the left one's does.
    """
    params = dict(matmul.params)
    if matmul.name == "dot_general":
        (lc, rc), (lb, rb) = params["dimension_numbers"]
        left_scale, left = lhs.scale_values, lhs.centered()
        if any(left_scale.shape[i] != 1 for i in lc) or lhs.groups:
            raise ValueError(
                f"the left operand's scale {left_scale.shape} varies along the contraction; only a weight (the right "
                f"operand) may have groups there: use /tensor or /dynamic for the input"
            )
        left_free = [i for i in range(left.ndim) if i not in (*lc, *lb)]
        right_free = [i for i in range(rhs.ndim) if i not in (*rc, *rb)]
        pairs = sorted(zip(lc, rc, strict=True), key=lambda pair: pair[1])
        lc, rc = [p[0] for p in pairs], [p[1] for p in pairs]
        dims = [left.shape[i] for i in lb], [left.shape[i] for i in left_free], [rhs.shape[i] for i in right_free]
        batch, rows, columns = (math.prod(d) for d in dims)
        left = jnp.transpose(left, [*lb, *left_free, *lc]).reshape(batch, rows, -1)
        row_scale = jnp.transpose(jnp.broadcast_to(left_scale, _kept(lhs.shape, lc)), [*lb, *left_free, *lc])
        order = tuple(range(sum(len(d) for d in dims)))
        shape = tuple(n for d in dims for n in d)
        left_out = row_scale.reshape(batch, rows, 1)
        right, scale, group, last = _contract_first(rhs, rb, rc, right_free, batch, columns)
    else:
        return _conv_layout(matmul, lhs, rhs)
    left = _pad_k(left, last, group)
    is_wide = lhs.spec.format.bits > 8
    return Layout(left, right, group, scale, left_out, reach_of(lhs), reach_of(rhs), is_wide, shape, order)


def _kept(shape, contracted) -> list[int]:
    return [1 if i in contracted else n for i, n in enumerate(shape)]


def _pad_k(left: Array, last: int, group: int) -> Array:
    """Pads every run of ``last`` elements of K to whole groups."""
    extra = -last % group
    if not extra:
        return left
    b, m, k = left.shape
    left = jnp.pad(left.reshape(b, m, k // last, last), ((0, 0), (0, 0), (0, 0), (0, extra)))
    return left.reshape(b, m, -1)


def _contract_first(q: QTensor, batch_axes, contracted, free, batch: int, columns: int):
    """The right operand as ``(batch, K, columns)``, its scale as ``(group, batch, 1, columns)``, the group, the last axis."""
    groups = dict(q.groups)
    last = next((i for i in reversed(contracted) if q.shape[i] > 1), contracted[-1])
    group = groups.get(last - q.ndim, q.shape[last] if q.scale_values.shape[last] == 1 else 1)
    if any(i - q.ndim in groups for i in (*contracted, *batch_axes) if i != last):
        raise ValueError(f"groups lie within the last contracted axis; got the scale {q.scale_values.shape}")
    order = [*batch_axes, *contracted, *free]
    values = q.centered()
    extra = -q.shape[last] % group
    values = jnp.pad(values, [(0, extra if i == last else 0) for i in range(q.ndim)])
    right = jnp.transpose(values, order).reshape(batch, -1, columns)
    scale = q.scale_values
    for axis, size in q.groups:
        position = axis + q.ndim
        if position != last:
            scale = jnp.repeat(scale, size, axis=position)
            scale = lax.slice_in_dim(scale, 0, q.shape[position], axis=position)
    shape = [scale.shape[i] if i == last else q.shape[i] for i in range(q.ndim)]
    scale = jnp.transpose(jnp.broadcast_to(scale, shape), order).reshape(batch, -1, 1, columns)
    return right, jnp.moveaxis(scale, 1, 0), group, q.shape[last]


def _conv_layout(matmul: Any, lhs: QTensor, rhs: QTensor) -> Layout:
    """A convolution as a dot over patches, in the kernel's order: spatial axes and input channels as the leaf has them."""
    params = dict(matmul.params)
    numbers = params["dimension_numbers"]
    if params["batch_group_count"] != 1:
        raise ValueError("a convolution with batch groups cannot have group scales; use /channel")
    if any(lhs.scale_values.shape[i] != 1 for i in numbers.lhs_spec[1:]):
        raise ValueError("a convolution's input scale may differ between examples only: use a<bits>/tensor or /dynamic")
    feature_groups = params["feature_group_count"]
    spatial = len(numbers.lhs_spec) - 2
    kernel = [rhs.shape[i] for i in numbers.rhs_spec[2:]]
    canonical = jnp.transpose(lhs.centered(), numbers.lhs_spec)
    patches = lax.conv_general_dilated_patches(
        canonical,
        filter_shape=kernel,
        window_strides=params["window_strides"],
        padding=params["padding"],
        lhs_dilation=params["lhs_dilation"],
        rhs_dilation=params["rhs_dilation"],
        precision=lax.Precision.HIGHEST,
    )
    n, _, *positions = patches.shape
    inputs = canonical.shape[1] // feature_groups
    patches = patches.reshape(n, feature_groups, inputs, *kernel, *positions)
    # the kernel's contracted axes in leaf order, each found among (inputs, *kernel)
    contracted = sorted(numbers.rhs_spec[1:])
    source = {numbers.rhs_spec[1]: 2, **{axis: 3 + i for i, axis in enumerate(numbers.rhs_spec[2:])}}
    rows = [0, *range(3 + spatial, 3 + 2 * spatial)]
    left = jnp.transpose(patches, [1, *rows, *(source[i] for i in contracted)])
    left = left.reshape(feature_groups, n * math.prod(positions), -1)
    out_axis = numbers.rhs_spec[0]
    columns = rhs.shape[out_axis] // feature_groups
    right, scale, group, last = _contract_first(rhs, [], contracted, [out_axis], 1, rhs.shape[out_axis])
    k = right.shape[1]
    right = jnp.moveaxis(right.reshape(k, feature_groups, columns), 0, 1)
    groups = scale.shape[0]
    scale = jnp.moveaxis(scale.reshape(groups, 1, feature_groups, columns), 1, 2)
    left = _pad_k(left, last, group)
    shape = (feature_groups, n, *positions, columns)
    # (group, n, positions, columns) -> n, (group columns), positions in the order of out_spec
    merged = [1, 0, 2 + spatial, *range(2, 2 + spatial)]
    left_scale = jnp.broadcast_to(lhs.scale_values.reshape(-1, 1), (n, math.prod(positions))).reshape(1, -1, 1)
    return _ConvLayout(
        left, right, group, scale, left_scale, reach_of(lhs), reach_of(rhs),
        lhs.spec.format.bits > 8, shape, tuple(merged), tuple(numbers.out_spec),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _ConvLayout(Layout):
    out_spec: tuple[int, ...] = ()

    def restore(self, out: Array) -> Array:
        n, feature_groups, columns, *positions = (self.shape[i] for i in self.order)
        out = jnp.transpose(out.reshape(self.shape), self.order).reshape(n, feature_groups * columns, *positions)
        inverse = [self.out_spec.index(i) for i in range(out.ndim)]
        return jnp.transpose(out, inverse)
