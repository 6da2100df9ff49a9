"""Operations on prepared weights: what the native kernels are called with, and how a dot is brought into their form."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

import lowbit_kernels
from lowbit.core.qtensor import QTensor
from lowbit.core.spec import Channel, Spec
from lowbit.formats.integer import Integer
from lowbit.formats.signs import Ternary
from lowbit.plan.rows import Site

from .native import NativeTensor

FLOATS = ("float32", "bfloat16", "float16")
"""Dtypes of inputs and results that the kernels take."""


class Dot(NamedTuple):
    """How a dot meets a prepared weight.

    Attributes:
        batch: pairs of batch axes of input and weight, in the order of the weight as prepared.
        rows: the other axes of the input that are not contracted.
        contract: the contracted axes of the input, in the kernel's order.
        columns: the axes of the weight as prepared that are free, as the result has them.
        order: the transposition from ``(batch, rows, columns)`` to the result.
    """

    batch: tuple[tuple[int, int], ...]
    rows: tuple[int, ...]
    contract: tuple[int, ...]
    columns: tuple[int, ...]
    order: tuple[int, ...]


def dot_of(dimension_numbers: Any, rank: int, weight: NativeTensor) -> Dot | None:
    """Returns how a dot_general meets a prepared weight on its right, or None where it was prepared for another one.

    Args:
        dimension_numbers: of the dot_general.
        rank: of the input.
        weight: the right operand.
    """
    (lc, rc), (lb, rb) = dimension_numbers
    if len(weight.axes) != weight.ndim:
        return None  # still with its layers

    def ordered(left: Sequence[int], right: Sequence[int]) -> tuple[list[tuple[int, int]], tuple[int, ...]]:
        pairs = sorted(zip(left, right, strict=True), key=lambda pair: weight.axes[pair[1]])
        return pairs, tuple(axis for _, i in pairs for axis, _ in weight.axes[i])

    contracted, inner = ordered(lc, rc)
    batch, outer = ordered(lb, rb)
    if inner != weight.contract or outer != weight.batch:
        return None
    rows = tuple(i for i in range(rank) if i not in (*lc, *lb))
    columns = tuple(axis for i in range(weight.ndim) if i not in (*rc, *rb) for axis, _ in weight.axes[i])
    at = [batch.index(pair) for pair in zip(lb, rb, strict=True)]
    free = weight.ndim - len(rc) - len(rb)
    order = (*at, *range(len(lb), len(lb) + len(rows) + free))
    return Dot(tuple(batch), rows, tuple(i for i, _ in contracted), columns, order)


def matmul(
    dimension_numbers: Any, x: Array | QTensor, weight: NativeTensor, site: Site, state: Any, dtype: Any
) -> Array:
    """Returns a dot of float inputs with a native weight, as the kernels do it.

    Args:
        dimension_numbers: of the dot_general; `dot_of` has nothing against it.
        x: the left operand: float, or on its grid already, where `why_not_codes` has nothing against it.
        weight: the right operand.
        site: the left operand's site: how it is quantized, if at all.
        state: its scale and zero point where static.
        dtype: of the result.
    """
    dot = dot_of(dimension_numbers, x.ndim, weight)
    assert dot is not None
    (_, rc), (_, rb) = dimension_numbers
    free = [i for i in range(weight.ndim) if i not in (*rc, *rb)]
    batch, rows = ([x.shape[i] for i in axes] for axes in ([i for i, _ in dot.batch], dot.rows))
    shape = [*batch, *rows, *(weight.shape[i] for i in free)]
    if 0 in shape:
        return jnp.transpose(jnp.zeros(shape, dtype), dot.order)
    outer = [*(i for i, _ in dot.batch), *dot.rows]

    def in_rows(x: Array) -> Array:
        return jnp.transpose(x, [*outer, *dot.contract]).reshape(math.prod(batch), math.prod(rows), -1)

    if isinstance(x, QTensor):
        wide = [1 if i in dot.contract else n for i, n in enumerate(x.shape)]
        scale = x.scale_values if x.scale_values.size == 1 else jnp.broadcast_to(x.scale_values, wide)
        flat, scales = in_rows(x.encode().codes), scale.reshape(()) if scale.size == 1 else in_rows(scale)[..., 0]
    else:
        flat, scales = in_rows(x), None

    def product(x_rows: Array, matrix: Any, scale: Array | None) -> Array:
        activation = _static(x.spec, scale, x.zero) if isinstance(x, QTensor) else _activation(site, state)
        return lowbit_kernels.quant_matmul(x_rows, matrix, activation=activation, out_dtype=dtype, implementation="cpu")

    along = 0 if scales is not None and scales.ndim else None
    if weight.batch:
        out = jax.vmap(product, (0, 0, along))(flat, weight.matrix, scales)
    else:
        out = product(flat[0], weight.matrix, scales if along is None or scales is None else scales[0])
    # The columns come as the weight was prepared, and go as the dot has them.
    lengths = {axis: n for group in weight.axes for axis, n in group}
    prepared = sorted(dot.columns)
    out = out.reshape(math.prod(batch) * math.prod(rows), *(lengths[axis] for axis in prepared))
    out = jnp.transpose(out, [0, *(1 + prepared.index(axis) for axis in dot.columns)])
    return jnp.transpose(out.reshape(shape), dot.order)


def is_plain_conv(params: Any) -> bool:
    """Returns whether a convolution's parameters are those the kernel has: NHWC by HWIO, nothing dilated on the left."""
    numbers = params["dimension_numbers"]
    nhwc, hwio = (0, 3, 1, 2), (3, 2, 0, 1)
    return (
        (tuple(numbers.lhs_spec), tuple(numbers.rhs_spec), tuple(numbers.out_spec)) == (nhwc, hwio, nhwc)
        and all(d == 1 for d in params["lhs_dilation"])
        and all(low >= 0 and high >= 0 for low, high in params["padding"])
        and params["batch_group_count"] == 1
    )


def conv(params: Any, x: Array | QTensor, weight: NativeTensor, site: Site, state: Any, dtype: Any) -> Array:
    """Returns a convolution of float inputs with a native weight, as the kernels do it.

    Args:
        params: of the conv_general_dilated; `is_plain_conv` holds.
        x: NHWC: float, or on its grid already.
        weight: HWIO.
        site: the input's site.
        state: its scale and zero point.
        dtype: of the result.
    """
    is_on_grid = isinstance(x, QTensor)
    return lowbit_kernels.quant_conv(
        x.encode().codes if is_on_grid else x,
        weight.matrix,
        activation=_static(x.spec, x.scale_values.reshape(()), x.zero) if is_on_grid else _activation(site, state),
        strides=tuple(params["window_strides"]),
        padding=tuple(params["padding"]),
        rhs_dilation=tuple(params["rhs_dilation"]),
        feature_group_count=params["feature_group_count"],
        out_dtype=dtype,
        implementation="cpu",
    )


def can_take_input(site: Site) -> bool:
    """Returns whether the kernels quantize this input themselves: float, static per tensor, or int8 per row."""
    spec = site.spec
    if spec is None:
        return True
    if site.own_code or type(spec.format) not in (Integer, Ternary):  # another format may round in its own way
        return False
    if not spec.dynamic:
        return spec.granularity.text == "tensor"
    is_plain = spec.format.name == "int8" and spec.symmetric and spec.scale.name == "float32"
    return is_plain and isinstance(spec.granularity, Channel)


def why_not_codes(matmul: Any, q: QTensor) -> str | None:
    """Returns why the kernels cannot take an input's codes, or None: they have one zero point, and a scale a row at most.

    Args:
        matmul: the operation, a `lowbit.interpret.arithmetic.Matmul`.
        q: its left operand.
    """
    scale = q.scale_values
    is_dot = matmul.name == "dot_general"
    along = dict(matmul.params)["dimension_numbers"][0][0] if is_dot else range(q.ndim)
    if q.groups or any(scale.shape[i] != 1 for i in along):
        return "the kernels take inputs with a scale per row" if is_dot else "the kernels take inputs with one scale"
    return None if q.zero is None or q.zero.size == 1 else "the kernels take inputs with one zero point"


def _activation(site: Site, state: Any) -> Any:
    spec = site.spec
    if spec is None or site.own_code:
        return None
    if spec.dynamic:
        return "int8"
    return _static(spec, state["scale"].reshape(()), state.get("zero"))


def _static(spec: Spec, scale: Any, zero: Array | None) -> Any:
    return lowbit_kernels.StaticActivation(
        scale=scale,
        zero=jnp.zeros((), jnp.int32) if zero is None else zero.reshape(()).astype(jnp.int32),
        lo=int(spec.format.low),
        hi=int(spec.format.high),
    )
