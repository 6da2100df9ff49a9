"""Operations written in the form that compilers get right. The numbers are the same; each form says what made it necessary."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lowbit.program import compat, primitives
from lowbit.program.eqn import Eqn


def rebind(eqn: Eqn, values: Sequence[Any]) -> list[Any]:
    """Returns the results of an equation, for export."""
    if is_depthwise(eqn):
        return [depthwise(eqn, *values)]
    if axes := _single_steps(eqn):
        return [_unstrided(eqn, values, axes)]
    return compat.rebind(eqn, values)


REWRITTEN = primitives.WINDOWED | {"div"}
"""What this file writes in its own way; divisions are found by `lowbit.export.fold`."""


def _single_steps(eqn: Eqn) -> dict[int, int]:
    """The axes of a windowed operation's result that have one element and yet a stride, and which stride that is."""
    if eqn.primitive.name not in primitives.WINDOWED:
        return {}
    strides, shape = eqn.params["window_strides"], eqn.outvars[0].aval.shape
    axes = range(len(shape))
    if eqn.primitive.name == "conv_general_dilated":
        axes = eqn.params["dimension_numbers"].out_spec[2:]
    return {axis: i for i, axis in enumerate(axes) if shape[axis] == 1 and strides[i] > 1}


def _unstrided(eqn: Eqn, values: Sequence[Any], axes: dict[int, int]) -> Any:
    """Returns a windowed operation with stride 1 along axes of which its result keeps the first element.

    IREE 3.13 rejects a window that steps along an axis of one step and leaves a rest ("'linalg.generic' op inferred input/output
    operand #1 has shape's dimension #1 to be 3, but found 2").
    """
    strides = [1 if i in axes.values() else n for i, n in enumerate(eqn.params["window_strides"])]
    (y,) = compat.rebind(eqn, values, window_strides=tuple(strides))
    for axis in axes:
        y = lax.slice_in_dim(y, 0, 1, axis=axis)
    return y


@functools.cache
def quotient(shape: tuple[int, ...], small: tuple[int, ...], axes: tuple[int, ...] | None) -> Any:
    """Returns the jaxpr of ``a / b`` in float32, ``b`` smaller than ``a``, as ``a * (1 / b)``.

    That is how XLA computes it on the CPU, so these are the bits of `lowbit.execute`; other compilers divide, and a third
    of the results differ in the last bit.

    Args:
        shape: of ``a``.
        small: of ``b``.
        axes: of ``a`` that those of ``b`` are; None where ``b`` has the rank of ``a``, or none.
    """

    def product(a, b):
        inverse = 1.0 / b
        return a * (inverse if axes is None else lax.broadcast_in_dim(inverse, shape, axes))

    return jax.make_jaxpr(product)(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in (shape, small)))


def is_depthwise(eqn: Eqn) -> bool:
    """Returns whether an equation is a convolution of every channel by itself, one result each."""
    if eqn.primitive.name != "conv_general_dilated":
        return False
    numbers, kernel = eqn.params["dimension_numbers"], eqn.invars[1].aval
    groups = eqn.params["feature_group_count"]
    is_single = kernel.shape[numbers.rhs_spec[1]] == 1 and kernel.shape[numbers.rhs_spec[0]] == groups
    return groups > 1 and is_single and eqn.params["batch_group_count"] == 1


def depthwise(eqn: Eqn, x: Any, kernel: Any) -> Any:
    """Returns a depthwise convolution as a sum of shifted products; exact in integers.

    IREE 3.13 accumulates ``stablehlo.convolution`` with one input and one output channel per group into memory that it
    did not clear, on every CPU target, in floats and integers: garbage, and no error.
    """
    params = eqn.params
    numbers = params["dimension_numbers"]
    out = eqn.outvars[0].aval
    spatial = range(2, x.ndim)
    pads = [(0, 0, 0)] * x.ndim
    for i, (before, after), dilation in zip(spatial, params["padding"], params["lhs_dilation"], strict=True):
        pads[numbers.lhs_spec[i]] = (before, after, dilation - 1)
    x = lax.pad(x, jnp.zeros((), x.dtype), pads).astype(out.dtype)
    x = jnp.transpose(x, [numbers.lhs_spec[numbers.out_spec.index(i)] for i in range(x.ndim)])  # laid out as the result
    kernel = jnp.transpose(kernel, numbers.rhs_spec).astype(out.dtype)  # (out, 1, *window)
    channel = [1] * x.ndim
    channel[numbers.out_spec[1]] = kernel.shape[0]
    total = None
    for offset in itertools.product(*(range(n) for n in kernel.shape[2:])):
        start, stop, step = [0] * x.ndim, list(x.shape), [1] * x.ndim
        for i, at, stride, dilation in zip(
            spatial, offset, params["window_strides"], params["rhs_dilation"], strict=True
        ):
            axis = numbers.out_spec[i]
            start[axis], step[axis] = at * dilation, stride
            stop[axis] = at * dilation + (out.shape[axis] - 1) * stride + 1
        weight = kernel[(slice(None), 0, *offset)].reshape(channel)
        product = lax.slice(x, start, stop, step) * weight
        total = product if total is None else total + product
    return total
