"""Operations of full-integer plans on the native kernels: int8 codes in, int8 codes out, one call each.

A product, its bias, the fixed-point multiplier, offset and bounds are one call, with a weight that is put into the kernels'
order once. The numbers are those of `lowbit.interpret.integer`, whose arithmetic the call repeats.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

import lowbit_kernels
from lowbit.core.qtensor import QTensor
from lowbit.core.spec import Spec
from lowbit.formats.integer import Integer
from lowbit.program.read import Equation
from lowbit_kernels.cpu import fixed
from lowbit_kernels.cpu.fixed import JOINS as JOINS
from lowbit_kernels.cpu.fixed import FloatGrid as FloatGrid
from lowbit_kernels.cpu.fixed import Join as Join

from .bits import unpack
from .native_calls import LAYOUTS

NUMBERS = ("bias", "multiplier", "shift", "offset", "low", "high")
"""What a linear step has beside its weight."""

MOST_SUMMED = 1 << 23
"""Products of two 8-bit codes that the kernels sum in 32 bits."""

Order = fixed.FixedMatrix | fixed.FixedConv
"""A weight in the kernels' order, and the numbers of its step."""


def status() -> str | None:
    """Returns why no operation can run on the native kernels, or None."""
    return fixed.supports()


def why_not(equation: Equation, weight: QTensor, numbers: Mapping[str, Any]) -> str | None:
    """Returns why an operation on 8-bit codes and a weight cannot run on the native kernels, or None if it can.

    Args:
        equation: the dot or convolution.
        weight: as it takes it.
        numbers: of its step.
    """
    shape, spec = equation.outs[0].shape, weight.spec
    if math.prod(shape) == 0 or math.prod(weight.shape) == 0:
        return "nothing to compute"
    if any(name not in numbers for name in NUMBERS) or "groups" in numbers:
        return "scales of groups, or sums of more than 32 bits"
    if not spec.format.is_integer or spec.format.bits > 8:
        return f"the kernels take weights of integers in 8 bits or less, not {spec.text}"
    kept = _kept(equation)
    if kept is None:
        return "the kernels take dots without batch axes"
    if any(_is_uneven(numbers[name], kept) for name in NUMBERS):
        return "its multipliers vary along more than its channels"
    if equation.name != "conv_general_dilated":
        return None if _summed(equation, weight) <= MOST_SUMMED else "its sums have more products than the kernels add"
    params = equation.eqn.params
    dims = params["dimension_numbers"]
    if (
        tuple(dims.lhs_spec) != tuple(dims.out_spec)
        or tuple(dims.lhs_spec) not in LAYOUTS
        or not equation.ins[0].is_data
    ):
        return f"the convolution kernels take and return {', '.join(LAYOUTS.values())}, the weight on the right"
    if params["batch_group_count"] != 1:
        return "the convolution kernels have no batch groups"
    return None if weight.zero is None else "the convolution kernels take weights without zero points"


def _summed(equation: Equation, weight: QTensor) -> int:
    return math.prod(weight.shape[i] for i in _contracted(equation)[1])


def _contracted(equation: Equation) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The contracted axes of a dot's input, and those of its weight."""
    left, right = equation.eqn.params["dimension_numbers"][0]
    return (left, right) if equation.ins[0].is_data else (right, left)


def free_axes(equation: Equation) -> tuple[int, ...]:
    """Returns the axes of a dot's weight that are the result's."""
    (of_left, of_right), (left, right) = equation.eqn.params["dimension_numbers"]
    held = (*of_right, *right) if equation.ins[0].is_data else (*of_left, *left)
    weight = equation.ins[1 if equation.ins[0].is_data else 0]
    return tuple(i for i in range(len(weight.shape)) if i not in held)


def _kept(equation: Equation) -> tuple[int, ...] | None:
    """The axes of the result that are the weight's; None of a dot with batch axes."""
    if equation.name == "conv_general_dilated":
        return (equation.eqn.params["dimension_numbers"].out_spec[1],)
    _, (batch, _) = equation.eqn.params["dimension_numbers"]
    if batch:
        return None
    is_left = equation.ins[0].is_data
    rank, of_x, contracted = len(equation.outs[0].shape), equation.ins[0 if is_left else 1], _contracted(equation)[0]
    rows = len(of_x.shape) - len(contracted)
    return tuple(range(rows, rank)) if is_left else tuple(range(rank - rows))


def _is_uneven(x: Any, kept: Sequence[int]) -> bool:
    return x.size != 1 and any(n != 1 for i, n in enumerate(x.shape) if i not in kept)


def order_of(equation: Equation, weight: QTensor, numbers: Mapping[str, Any], zero: Array, rounding: str) -> Order:
    """Returns a weight, and the numbers of its step, in the kernels' order. `why_not` has nothing against it.

    Args:
        equation: the dot or convolution.
        weight: as it takes it.
        numbers: of its step.
        zero: the zero point of its input.
        rounding: its name.
    """
    kept = _kept(equation)
    assert kept is not None
    held = {name: numbers[name] for name in NUMBERS}
    if equation.name == "conv_general_dilated":
        out, inputs, *spatial = equation.eqn.params["dimension_numbers"].rhs_spec
        axes, groups = (*spatial, inputs, out), equation.eqn.params["feature_group_count"]
        return _conv(weight, held, zero, axes, groups, kept, rounding)
    return _matrix(weight, held, zero, tuple(_contracted(equation)[1]), kept, rounding)


def _rescale(numbers: Mapping[str, Any], zero: Array, lengths: tuple[int, ...], kept: tuple[int, ...]) -> fixed.Rescale:
    def flat(x: Array) -> Array:
        if x.size == 1:
            return x.reshape(())
        return jnp.broadcast_to(x.reshape([x.shape[i] for i in kept]), lengths).reshape(-1)

    return fixed.Rescale(**{name: flat(x) for name, x in numbers.items()}, zero=zero.reshape(()))


def _bits_of(weight: QTensor) -> int:
    return (
        weight.spec.format.bits if type(weight.spec.format) is Integer else 8
    )  # others may hold codes beyond their bits


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _matrix(
    weight: QTensor, numbers: Any, zero: Array, contracted: tuple[int, ...], kept: tuple[int, ...], rounding: str
) -> fixed.FixedMatrix:
    q = unpack(weight).encode()
    free = tuple(i for i in range(q.ndim) if i not in contracted)

    def matrix(x: Array, count: int) -> Array:
        return jnp.transpose(x, (*contracted, *free)).reshape(count, -1)

    length = math.prod(q.shape[i] for i in contracted)
    codes, zeros = matrix(q.codes, length), None
    if q.zero is not None:
        shape = [1 if i in contracted else n for i, n in enumerate(q.shape)]
        zeros = matrix(jnp.broadcast_to(q.zero, shape), 1).astype(codes.dtype)
    packed = lowbit_kernels.pack_matrix(
        codes,
        jnp.ones((1, codes.shape[1]), jnp.float32),
        bits=_bits_of(weight),
        signed=codes.dtype == jnp.int8,
        zeros=zeros,
    )
    rescale = _rescale(numbers, zero, tuple(q.shape[i] for i in free), kept)
    return fixed.prepare_fixed(packed, rescale, rounding)


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _conv(
    weight: QTensor, numbers: Any, zero: Array, axes: tuple[int, ...], groups: int, kept: tuple[int, ...], rounding: str
) -> fixed.FixedConv:
    codes = jnp.transpose(unpack(weight).encode().codes, axes)
    out = codes.shape[-1]
    packed = lowbit_kernels.pack_conv(
        codes, jnp.ones(out, jnp.float32), bits=_bits_of(weight), signed=codes.dtype == jnp.int8,
        layout="HWIO" if codes.ndim == 4 else "WIO",
    )  # fmt: skip
    return fixed.prepare_fixed_conv(packed, _rescale(numbers, zero, (out,), kept), rounding, feature_group_count=groups)


JOIN_NUMBERS = ("left", "right", "shift", "offset", "low", "high")
"""What a sum, maximum or minimum of two tensors has."""


def why_not_joined(numbers: Mapping[str, Any]) -> str | None:
    """Returns why a sum cannot be part of the call that makes one of its operands, or None if it can."""
    is_one = all(name in numbers and numbers[name].size == 1 for name in JOIN_NUMBERS)
    return None if is_one else "its multipliers vary along channels"


@functools.partial(jax.jit, static_argnums=2)
def join_order(numbers: Mapping[str, Any], zeros: Sequence[Array], at: int) -> Array:
    """Returns the numbers of a sum in the order that the kernels read.

    Args:
        numbers: of its step; others may be among them.
        zeros: the zero points of its operands.
        at: the operand that the call makes, 0 or 1.
    """
    names = JOIN_NUMBERS if at == 0 else ("right", "left", *JOIN_NUMBERS[2:])
    parts = [*(numbers[name] for name in names), zeros[at], zeros[1 - at]]
    return jnp.stack([x.reshape(()).astype(jnp.int32) for x in parts])


def takes_floats(equation: Equation, spec: Spec) -> bool:
    """Returns whether the call puts an input that is float on its grid itself.

    Args:
        equation: the operation.
        spec: of the input's grid.
    """
    return type(spec.format) is Integer and (equation.name == "dot_general" or not _has_gaps(equation))


def _has_gaps(equation: Equation) -> bool:
    """Whether a convolution has zeros between positions, or a padding that cuts."""
    params = equation.eqn.params
    return any(d != 1 for d in params["lhs_dilation"]) or any(n < 0 for pair in params["padding"] for n in pair)


def result(
    equation: Equation,
    codes: Array,
    zero: Array,
    order: Order,
    *,
    grid: FloatGrid | None = None,
    join: Join | None = None,
) -> Array:
    """Returns the codes of an operation, or of what joins them.

    Args:
        equation: the dot or convolution.
        codes: of its input, int8; or float32 with ``grid``.
        zero: their zero point.
        order: of its weight.
        grid: of a float input that `takes_floats`.
        join: what they are joined with.
    """
    params = equation.eqn.params
    if isinstance(order, fixed.FixedConv):
        dims, pads, inside = params["dimension_numbers"], params["padding"], params["lhs_dilation"]
        if _has_gaps(equation):
            config = [(0, 0, 0)] * codes.ndim
            for axis, (low, high), d in zip(dims.lhs_spec[2:], pads, inside, strict=True):
                config[axis] = (min(low, 0), min(high, 0), d - 1)
            codes = lax.pad(codes, zero.reshape(()).astype(codes.dtype), config)
            pads = tuple((max(low, 0), max(high, 0)) for low, high in pads)
        return fixed.fixed_conv(
            codes, order, strides=tuple(params["window_strides"]), padding=tuple(pads),
            rhs_dilation=tuple(params["rhs_dilation"]), layout=LAYOUTS[tuple(dims.lhs_spec)], join=join, grid=grid,
        )  # fmt: skip
    contracted = tuple(_contracted(equation)[0])
    rows = tuple(i for i in range(codes.ndim) if i not in contracted)
    flat = jnp.transpose(codes, (*rows, *contracted)).reshape(math.prod(codes.shape[i] for i in rows), -1)
    shape, is_left = equation.outs[0].shape, equation.ins[0].is_data
    if join is not None:
        other = join.other.reshape(flat.shape[0], -1) if is_left else join.other.reshape(-1, flat.shape[0]).T
        join = join._replace(other=other)
    product = fixed.fixed_matmul(flat, order, join=join, grid=grid)
    return (product if is_left else product.T).reshape(shape)
