"""Dots with weights whose scale differs between groups along the contraction, in integers.

The scales of an output channel are ``largest * M / 2**bits`` with integers ``M`` of up to 15 bits, a sign among them where scales have one: rounded by at most
``2**-bits`` of themselves and more for smaller ones, as the weight is. Every group is summed in int32, as a batch of one dot;
the sums times ``M`` are added as a long accumulator (`lowbit.interpret.integer.fixed.Long`). Integers add in any order, so
that every backend finds the same one.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from lowbit.core.qtensor import QTensor
from lowbit.core.rounding import nearest_even, rounded_product
from lowbit.interpret.arithmetic import right_to_result
from lowbit.interpret.layout import reach_of
from lowbit.interpret.matmul import Matmul
from lowbit.program.read import Equation

from . import compute
from .fixed import Long

_MOST_BITS, _LEAST_BITS = 15, 11


@dataclasses.dataclass(frozen=True)
class Grouped:
    """A dot as a batch of one dot per group.

    Attributes:
        operation: the batched dot, groups first in its result.
        axes: how many axes of the result count groups.
        cut: the axis of the left operand and that of the weight that are cut, or None where groups are whole axes.
        size: elements of a group along it.
        count: groups along it.
        left_rank: of the left operand, once cut.
        bits: of the integers that groups are multiplied by.
    """

    operation: Matmul
    axes: int
    cut: tuple[int, int] | None
    size: int
    count: int
    left_rank: int
    bits: int

    def operand(self, x: Array, which: int, fill: Array) -> Array:
        """Returns an operand (0: left, 1: the weight) cut into groups, the last one filled up."""
        if self.cut is None:
            return x
        axis = self.cut[which]
        pads = [(0, self.size * self.count - x.shape[axis] if i == axis else 0, 0) for i in range(x.ndim)]
        x = lax.pad(x, fill.astype(x.dtype), pads)
        return x.reshape(*x.shape[:axis], self.count, self.size, *x.shape[axis + 1 :])

    def spread(self, kept: Array) -> Array:
        """Returns what a weight has per group, scales or zero points, shaped to broadcast to the cut weight."""
        return kept if self.cut is None else jnp.expand_dims(kept, self.cut[1] + 1)

    def to_result(self, kept: Array) -> Array:
        """Returns what a cut weight has per group and channel, shaped to broadcast to the batched dot's result."""
        return right_to_result(dict(self.operation.params)["dimension_numbers"], kept, self.left_rank)

    @property
    def leading(self) -> tuple[int, ...]:
        """The axes of the batched result that count groups."""
        return tuple(range(self.axes))


def grouped(equation: Equation, weight: QTensor, reach: float, bits: int) -> Grouped | None:
    """Returns the form of a dot whose weight's scale varies along the contraction; None of other operations.

    Args:
        equation: the operation.
        weight: as it takes it.
        reach: the largest magnitude of the input's ``code - zero``.
        bits: of the input's codes.

    Raises:
        ValueError: where groups lie otherwise, or the sums of groups do not leave 11 bits to their scales.
    """
    operation = Matmul.of(equation.eqn)
    where = f"integer=True ({equation.source}): the weight {tuple(weight.shape)} has groups"
    is_dot = operation.name == "dot_general" and equation.ins[0].is_data
    (lc, rc), (lb, rb) = dict(operation.params)["dimension_numbers"] if is_dot else (((), ()), ((), ()))
    scale = weight.scale_values
    whole = [i for i in rc if scale.shape[i] == weight.shape[i] > 1]
    if not weight.groups and not whole:
        return None
    if not is_dot or len(weight.groups) > 1 or bits > 8:
        raise ValueError(f"{where}, which only a dot with 8-bit inputs on its left may have; use w<bits>/channel")
    left, right, size, count = None, None, 1, 1
    for axis, each in weight.groups:
        right, size = axis + weight.ndim, each
        if right not in rc:
            raise ValueError(f"{where} along an axis that is not contracted; use w<bits>/channel")
        left, count = lc[rc.index(right)], -(-weight.shape[right] // size)
    summed = size * math.prod(weight.shape[i] for i in rc if i != right and i not in whole)
    total = count * math.prod(weight.shape[i] for i in whole)
    largest = max(reach * reach_of(weight) * summed / 256 + 1, 256.0)
    most = _MOST_BITS - weight.spec.has_signed_scales  # the sign takes one
    width = min(most, int(math.log2(2.0**30 / (total * largest))))
    if width < _LEAST_BITS:
        raise ValueError(
            f"{where}: {total} of them leave {width} bits to their scales, and {_LEAST_BITS} are needed; use larger groups, "
            f"or fewer bits"
        )

    def moved(axes: Sequence[int], at: int | None) -> tuple[int, ...]:
        return tuple(a + (at is not None and a >= at) for a in axes)

    kept = [(a, b) for a, b in zip(lc, rc, strict=True) if b not in whole]
    alone = [lc[rc.index(i)] for i in whole]
    first = ([], []) if left is None or right is None else ([left], [right])
    contracted = moved([a for a, _ in kept], left), moved([b for _, b in kept], right)
    batch = (*first[0], *moved([*alone, *lb], left)), (*first[1], *moved([*whole, *rb], right))
    params = tuple((k, (contracted, batch) if k == "dimension_numbers" else v) for k, v in operation.params)
    cut = None if left is None or right is None else (left, right)
    rank = len(equation.ins[0].shape) + len(first[0])
    axes = len(first[0]) + len(whole)
    return Grouped(dataclasses.replace(operation, params=params), axes, cut, size, count, rank, width)


def multipliers(found: Grouped, weight: QTensor) -> tuple[Array, Array]:
    """Returns the integers ``M``, shaped to the batched result, and the largest scale over ``2**bits``, to the dot's."""
    scale = found.to_result(found.spread(weight.scale_values))
    largest = jnp.max(jnp.abs(scale), axis=found.leading)
    inverse = 1.0 / largest
    share = nearest_even(rounded_product(scale, inverse) * 2.0**found.bits)
    if weight.spec.has_signed_scales:
        return jnp.clip(share, -(2.0**found.bits), 2.0**found.bits).astype(jnp.int16), largest * 2.0**-found.bits
    return jnp.clip(share, 0.0, 2.0**found.bits).astype(jnp.uint16), largest * 2.0**-found.bits


def multiply_groups(
    found: Grouped, codes: Sequence[Array], zeros: Sequence[Array], reaches: Sequence[float], c: Mapping[str, Any], *,
    carried: bool,
) -> Long:  # fmt: skip
    """Returns the accumulator: arguments as `compute.multiply_pair`, zero points of the weight per group."""
    left, right = found.operand(codes[0], 0, zeros[0]), found.operand(codes[1], 1, jnp.int32(0))
    zero = zeros[1] if zeros[1].ndim == 0 else found.spread(zeros[1])
    sums = compute.product(found.operation, [left, right], [zeros[0], zero], reaches, carried=carried)
    by = c["groups"].astype(jnp.int32)
    high, low = ((part * by).sum(found.leading, dtype=jnp.int32) for part in (sums >> 8, sums & 255))
    return high, low
