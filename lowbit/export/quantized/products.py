"""Dots and convolutions on quantized operands, in the shapes that compilers of quantized types compute in integers.

StableHLO's own lowering of quantized types takes integers where an image is ``(batch, height, width, channels)`` and a kernel
``(height, width, channels, out)``; any other convolution it dequantizes first. Right operands have no zero points, and both
have one storage width: narrower weights are widened, as integers.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int8

from lowbit.core.qtensor import QTensor
from lowbit.export.lowering import is_depthwise
from lowbit.export.universal.dense import Dense
from lowbit.export.universal.values import stored_bits
from lowbit.interpret.arithmetic import right_to_result
from lowbit.interpret.integer.compute import left_to_result
from lowbit.interpret.matmul import Matmul
from lowbit.program.eqn import Eqn

from . import operations
from .types import QuantType


class Operand(NamedTuple):
    """Integers, or plain floats, and their type.

    Attributes:
        x: int8, or float32 where there is no type.
        type: of quantized ones.
    """

    x: Array
    type: QuantType | None


def weight_type(q: QTensor) -> QuantType | None:
    """Returns the type of a weight, 8 bits wide, or None where there is none: scales along two axes, blocks, zero points."""
    scale, numbers = q.scale_values, q.spec.format
    axes = [i for i, n in enumerate(scale.shape) if n != 1]
    if q.groups or q.zero is not None or len(axes) > 1 or not numbers.is_integer or numbers.low != int(numbers.low):
        return None
    scales = tuple(float(s) for s in scale.ravel())
    return QuantType(
        8, int(numbers.low), int(numbers.high), scales, (0,) * len(scales), axes[0] if axes else None
    )  # fmt: skip


def weight_operand(q: QTensor) -> tuple[Int8[Array, "..."], QuantType] | None:
    """Returns a weight in 8 bits, stored in its own, and its type; None where it has none."""
    wide = weight_type(q)
    if wide is None:
        return None
    narrow = dataclasses.replace(wide, bits=min(stored_bits(q), 8))
    return operations.stored(q.unpacked_codes(), narrow), wide


def _without_zero(of: QuantType) -> QuantType:
    """The type of the same integers without their zero point, which a constant then takes out of the sum.

    The lowering of types with a zero point sums the weights at run time. IREE then stores them twice (277 kB for a dot with 131
    kB of 4-bit weights), or, behind a barrier, rejects some shapes.
    """
    return dataclasses.replace(of, zero=(0,), low=-128, high=127)


def sum_type(left: QuantType, right: QuantType, axis: int) -> QuantType:
    """Returns the type of a sum of products: scales multiplied.

    Args:
        left: of the left operand, one scale.
        right: of the right operand.
        axis: of the result, of the right operand's scales.
    """
    scale = tuple(left.scale[0] * s for s in right.scale)
    return QuantType.accumulator(scale, None if right.axis is None else axis)


Finish = Callable[[Array, QuantType | None], Array]
"""What is done to an accumulator of a type, or to a float result, before its axes are put in order."""


def integers(acc: Array, of: QuantType | None) -> Array:
    """Returns the accumulator as it is."""
    del of
    return acc


def product(
    eqn: Eqn, operands: Sequence[Operand], weight: QTensor | None, at: int, finish: Finish = integers
) -> Array | None:
    """Returns the int32 accumulator of an operation, zero points taken out; a float result of a float operand.

    Args:
        eqn: the dot or convolution.
        operands: what depends on data, in order.
        weight: the other operand, if there is one, with codes that may be traced.
        at: which operand the weight is.
        finish: is given the accumulator.

    Returns:
        None where quantized types cannot say it, or compilers compute it wrongly.
    """
    if eqn.primitive.name == "conv_general_dilated":
        return None if weight is None or at == 0 else _convolution(eqn, operands[0], weight, finish)
    numbers = eqn.params["dimension_numbers"]
    if weight is None:
        return _between(numbers, operands[0], operands[1], finish)
    dense = Dense.of(Matmul.of(eqn), operands[0].x.ndim, weight) if at == 1 else None
    taken = weight if dense is None else dense.weight
    right = weight_operand(taken)
    if right is None:
        return None
    right, codes = Operand(*right), taken.unpacked_codes()
    if dense is not None:
        x = dense.left(operands[0].x)
        flat = (((x.ndim - 1,), (0,)), ((), ()))
        return dense.restore(finish(*_dot(flat, Operand(x, operands[0].type), right, codes)))
    if at == 1:
        return finish(*_dot(numbers, operands[0], right, codes))
    (lc, rc), (lb, rb) = numbers
    y = finish(
        *_dot(((rc, lc), (rb, lb)), operands[0], right)
    )  # weights are right operands: only those have scales along an axis
    free = weight.ndim - len(lc) - len(lb)
    batch = tuple(range(len(lb)))
    return jnp.transpose(y, (*batch, *range(y.ndim - free, y.ndim), *range(len(lb), y.ndim - free)))


def _dot(numbers: Any, left: Operand, right: Operand, codes: Array | None = None) -> tuple[Array, QuantType | None]:
    """A dot and its type; ``codes`` are the integers of a constant right operand."""
    assert right.type is not None
    (_, rc), (_, rb) = numbers
    position = 0
    if right.type.axis is not None:
        free = [i for i in range(right.x.ndim) if i not in (*rc, *rb)]
        rank = left.x.ndim - len(rc) + len(free)
        axis = right.type.axis
        position = rb.index(axis) if axis in rb else rank - len(free) + free.index(axis)
    if left.type is None:
        return operations.dot(left.x, right.x, numbers, (None, right.type), None), None
    to, zero = sum_type(left.type, right.type, position), left.type.zero[0]
    if codes is None or not zero:
        return operations.dot(left.x, right.x, numbers, (left.type, right.type), to), to
    acc = operations.dot(left.x, right.x, numbers, (_without_zero(left.type), right.type), to)
    sums = jnp.sum(codes.astype(jnp.int32), axis=tuple(rc), keepdims=True)
    return operations.plus(acc, to, -zero * right_to_result(numbers, sums, left.x.ndim)), to


def _between(numbers: Any, left: Operand, right: Operand, finish: Finish) -> Array:
    """Two activations: the right one's zero point costs a sum of the left one."""
    assert left.type is not None
    assert right.type is not None
    (lc, _), _ = numbers
    zero = right.type.zero[0]
    acc, of = _dot(numbers, left, Operand(right.x, _without_zero(right.type)))
    if not zero:
        return finish(acc, of)
    steps = left.x.astype(jnp.int32) - jnp.int32(left.type.zero[0])
    sums = jnp.sum(steps, axis=tuple(lc), keepdims=True)
    return finish(acc - jnp.int32(zero) * left_to_result(numbers, sums, right.x.ndim), of)


def _convolution(eqn: Eqn, image: Operand, kernel: QTensor, finish: Finish) -> Array | None:
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    count = len(params["window_strides"])
    if params["batch_group_count"] != 1 or count not in (1, 2) or is_depthwise(eqn):
        return None
    order = (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0])
    moved = [jnp.transpose(a, order) for a in (kernel.unpacked_codes(), kernel.scale_values)]
    moved = [a if count == 2 else a[None] for a in moved]
    right = weight_operand(dataclasses.replace(kernel, codes=moved[0], scale=moved[1]))
    if right is None or right[1].axis not in (None, 3):
        return None
    x = jnp.transpose(image.x, (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1]))
    params = {name: params[name] for name in _WINDOW} | {"feature_group_count": params["feature_group_count"]}
    if count == 1:
        x = x[:, None]
        params |= {name: (fill, *params[name]) for name, fill in _WINDOW.items()}
    zero = 0 if image.type is None else image.type.zero[0]
    if zero or any(n != 1 for n in params["lhs_dilation"]):  # no lowering pads between elements with the zero point
        pads = [(*pair, n - 1) for pair, n in zip(params["padding"], params["lhs_dilation"], strict=True)]
        if any(any(pad) for pad in pads):
            x = lax.pad(x, jnp.asarray(zero, x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
        params |= {"padding": ((0, 0), (0, 0)), "lhs_dilation": (1, 1)}
    of = None if image.type is None else _without_zero(image.type)
    y, to, kept = _windowed(x, *right, of, params)
    if zero and to is not None:
        y = operations.plus(y, to, -zero * jnp.sum(moved[0].astype(jnp.int32), axis=(0, 1, 2)))
    y = finish(y[:, : kept[0], : kept[1]], to)
    y = y if count == 2 else y[:, 0]
    spec = (numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1])
    return jnp.transpose(y, [spec.index(i) for i in range(y.ndim)])


_WINDOW: dict[str, Any] = {"window_strides": 1, "padding": (0, 0), "lhs_dilation": 1, "rhs_dilation": 1}
"""Parameters by spatial axis, and what they are along an axis of one element."""


def _windowed(
    x: Array, kernel: Array, kernel_type: QuantType, of: QuantType | None, params: dict[str, Any]
) -> tuple[Array, QuantType | None, tuple[int, ...]]:
    """The convolution, its type, and the height and width that are kept of it.

    Along an axis with one result the stride is 1: see `lowbit.export.lowering`.
    """

    def shape(strides: Any) -> tuple[int, ...]:
        def convolved(a: Any, b: Any) -> Any:
            return lax.conv_general_dilated(
                a, b, strides, params["padding"], rhs_dilation=params["rhs_dilation"],
                dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=params["feature_group_count"],
                preferred_element_type=jnp.int32 if of is not None else None,
            )  # fmt: skip

        like = [jax.ShapeDtypeStruct(a.shape, jnp.int8 if of is not None else jnp.float32) for a in (x, kernel)]
        return jax.eval_shape(convolved, *like).shape

    kept = shape(params["window_strides"])
    strides = tuple(1 if n == 1 else s for n, s in zip(kept[1:3], params["window_strides"], strict=True))
    to = None if of is None else sum_type(of, kernel_type, 3)
    params = params | {"window_strides": strides}
    return operations.convolution(x, kernel, params, shape(strides), (of, kernel_type), to), to, kept[1:3]
