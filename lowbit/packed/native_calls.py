"""Operations on prepared weights: what the native kernels are called with, and how a dot is brought into their form."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from lowbit.core.qtensor import QTensor
from lowbit.core.spec import Channel
from lowbit.formats.integer import Integer
from lowbit.formats.signs import Ternary
from lowbit.plan.rows import Site
from lowbit_kernels import StaticActivation, fused_conv, fused_matmul, prepare_steps, quant_matmul
from lowbit_kernels.cpu.library import adds_residuals

from .native import NativeTensor, Order

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


def dot_of(dimension_numbers: Any, rank: int, weight: NativeTensor | Order) -> Dot | None:
    """Returns how a dot_general meets a prepared weight on its right, or None where it was prepared for another one.

    Args:
        dimension_numbers: of the dot_general.
        rank: of the input.
        weight: the right operand.
    """
    (lc, rc), (lb, rb) = dimension_numbers
    if isinstance(weight, NativeTensor) and len(weight.axes) != weight.ndim:
        return None  # still with its layers

    def ordered(left: Sequence[int], right: Sequence[int]) -> tuple[list[tuple[int, int]], tuple[int, ...]]:
        pairs = sorted(zip(left, right, strict=True), key=lambda pair: weight.axes[pair[1]])
        return pairs, tuple(axis for _, i in pairs for axis, _ in weight.axes[i])

    contracted, inner = ordered(lc, rc)
    batch, outer = ordered(lb, rb)
    if inner != weight.contract or outer != weight.batch:
        return None
    rows = tuple(i for i in range(rank) if i not in (*lc, *lb))
    columns = tuple(axis for i in range(len(weight.axes)) if i not in (*rc, *rb) for axis, _ in weight.axes[i])
    at = [batch.index(pair) for pair in zip(lb, rb, strict=True)]
    free = len(weight.axes) - len(rc) - len(rb)
    order = (*at, *range(len(lb), len(lb) + len(rows) + free))
    return Dot(tuple(batch), rows, tuple(i for i, _ in contracted), columns, order)


class Results(NamedTuple):
    """Of a product and what follows it.

    Attributes:
        value: the result, or None where only codes are asked for.
        codes: on the next operation's grid, in the shape of the result; None where none are asked for.
        marks: with codes, of the shape of the result without its channels: the grid's scale, NaN where a channel is NaN.
    """

    value: Any
    codes: Any
    marks: Any


@dataclasses.dataclass(frozen=True)
class Product:
    """A dot or convolution of an input with a prepared weight: all that is no array. Hashable.

    Attributes:
        name: of the primitive.
        params: of the primitive, as sorted items; the weight is on the right.
        activation: ``"float"``, ``"dynamic"`` (int8 by row, or by example of a convolution) or ``"static"``.
        lo: the smallest code of a static grid.
        hi: the largest.
        shape: of the result.
        dtype: of the result.
    """

    name: str
    params: tuple[tuple[str, Any], ...]
    activation: str
    lo: int
    hi: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def is_dot(self) -> bool:
        """Whether it is a dot."""
        return self.name == "dot_general"


def product_of(matmul: Any, site: Site, x: Any, weight: NativeTensor | Order, dtype: Any) -> Product:
    """Returns the description of an operation.

    Args:
        matmul: a `lowbit.interpret.arithmetic.Matmul`, its weight on the right.
        site: the input's site.
        x: the input, or its shape.
        weight: the prepared weight.
        dtype: of the result.
    """
    spec, params = site.spec, dict(matmul.params)
    is_static = spec is not None and not spec.dynamic
    if matmul.name == "dot_general":
        (lc, rc), (lb, rb) = params["dimension_numbers"]
        left = [x.shape[i] for i in (*lb, *(i for i in range(len(x.shape)) if i not in (*lc, *lb)))]
        shape = (*left, *(_length(weight, i) for i in range(len(weight.axes)) if i not in (*rc, *rb)))
    else:
        kernel = jax.ShapeDtypeStruct([_length(weight, i) for i in range(len(weight.axes))], "float32")
        shape = jax.eval_shape(matmul.bind, jax.ShapeDtypeStruct(x.shape, "float32"), kernel).shape
    return Product(
        matmul.name,
        matmul.params,
        "float" if spec is None else "static" if is_static else "dynamic",
        int(spec.format.low) if is_static and spec is not None else -128,
        int(spec.format.high) if is_static and spec is not None else 127,
        tuple(shape),
        jnp.dtype(dtype).name,
    )


def _length(weight: NativeTensor | Order, axis: int) -> int:
    return math.prod(n for _, n in weight.axes[axis])


class Grid(NamedTuple):
    """A static grid: ``scale`` float32, one or one a row of the input (`Results.marks`), and ``zero``."""

    scale: Array
    zero: Array


def grid_of(site: Site, state: Any) -> Grid | None:
    """Returns the grid of an input's site, None where it has no static one."""
    if site.spec is None or site.spec.dynamic:
        return None
    zero = state.get("zero")
    # As it is stored: a cast would be an operation of its own in every call.
    zero = jnp.zeros((), jnp.int32) if zero is None else zero.reshape(())
    return Grid(state["scale"].reshape(()), zero)


def run(
    product: Product,
    x: Array,
    grid: Grid | None,
    weight: NativeTensor | Order,
    *,
    steps: Sequence[tuple[str, Any]] = (),
    residual: Array | None = None,
    emit: StaticActivation | None = None,
    keep: bool = True,
    keeps_nan: bool = True,
    is_plain: bool = False,
    by_channel: bool = False,
) -> Results:
    """Returns a product, what follows it and the codes of the next operation, by one native call.

    Args:
        product: what it is.
        x: the input: float, or codes that an earlier call emitted.
        grid: of a static input; with codes, its scale may be their marks.
        weight: prepared.
        steps: as of `lowbit_kernels.prepare_steps`, of channels in the order of the result; only where `channels` are found.
        residual: what a step adds, in the shape of the result; only where it `takes_residual`.
        emit: the next operation's grid.
        keep: whether the value is a result.
        keeps_nan: whether what sums over a NaN is NaN.
        is_plain: the value alone, of a dot differentiable, without a look for NaN on static grids.
        by_channel: marks, of a convolution of two dimensions, say which channels are NaN (`lowbit_kernels.fused`).
    """
    if product.is_dot:
        return _run_dot(
            product, x, grid, weight, steps, residual, emit, keep=keep, keeps_nan=keeps_nan, is_plain=is_plain
        )
    nan = keeps_nan and not is_plain
    return _run_conv(product, x, grid, weight, steps, residual, emit, keep=keep, keeps_nan=nan, by_channel=by_channel)


def channels_of(product: Product, weight: NativeTensor | Order) -> tuple[int, ...] | None:
    """Returns the axes of a result that are its channels, in order; None where steps cannot follow in the same call."""
    if product.dtype != "float32" or 0 in product.shape:
        return None
    rank, params = len(product.shape), dict(product.params)
    if not product.is_dot:
        return (params["dimension_numbers"].out_spec[1],)
    dot = dot_of(params["dimension_numbers"], _rank_of_input(product, weight), weight)
    if dot is None or weight.batch or dot.columns != tuple(sorted(dot.columns)):
        return None
    (_, rc), _ = params["dimension_numbers"]
    return tuple(range(rank - (len(weight.axes) - len(rc)), rank))


def takes_residual(product: Product, weight: NativeTensor | Order) -> bool:
    """Returns whether an array in the shape of a result, which has `channels_of`, lies as the call computes that."""
    if not product.is_dot or not adds_residuals():
        return adds_residuals()
    dot = dot_of(dict(product.params)["dimension_numbers"], _rank_of_input(product, weight), weight)
    return dot is not None and dot.order == tuple(range(len(dot.order)))


def _rank_of_input(product: Product, weight: NativeTensor | Order) -> int:
    (lc, rc), (_, rb) = dict(product.params)["dimension_numbers"]
    free = len(weight.axes) - len(rc) - len(rb)
    return len(product.shape) - free + len(lc)


def _activation_of(product: Product, grid: Grid | None, scale: Any) -> Any:
    if product.activation == "float":
        return None
    if product.activation == "dynamic":
        return "int8"
    assert grid is not None
    return StaticActivation(scale=scale, zero=grid.zero, lo=product.lo, hi=product.hi)


def _run_dot(product, x, grid, weight, steps, residual, emit, *, keep, keeps_nan, is_plain) -> Results:
    numbers = dict(product.params)["dimension_numbers"]
    dot = dot_of(numbers, x.ndim, weight)
    assert dot is not None
    if 0 in product.shape:
        return Results(jnp.zeros(product.shape, product.dtype), None, None)
    outer = [*(i for i, _ in dot.batch), *dot.rows]
    batch, rows = [x.shape[i] for i, _ in dot.batch], [x.shape[i] for i in outer]
    scale = None if grid is None else grid.scale
    scale = scale.reshape(-1) if scale is not None and scale.ndim else scale
    if weight.batch or is_plain:
        assert not steps
        assert emit is None
        flat = jnp.transpose(x, [*outer, *dot.contract]).reshape(math.prod(batch), math.prod(rows[len(batch) :]), -1)
        scales = None if scale is None or not scale.ndim else scale.reshape(flat.shape[:2])

        def one(part: Array, matrix: Any, scales: Any) -> Array:
            activation = _activation_of(product, grid, scale if scales is None else scales)
            if is_plain:
                return quant_matmul(part, matrix, activation=activation, out_dtype=product.dtype, implementation="cpu")
            return fused_matmul(part, matrix, activation=activation, keeps_nan=keeps_nan, implementation="cpu").value

        mapped = jax.vmap(one, (0, 0 if weight.batch else None, None if scales is None else 0))
        value = (
            mapped(flat, weight.matrix, scales)
            if weight.batch
            else one(flat[0], weight.matrix, None if scales is None else scales[0])
        )
        return Results(_placed(value, product, dot, weight, rows).astype(product.dtype), None, None)
    is_columns = x.ndim == 2 and dot.rows == (1,)  # W.T @ x: the kernel reads it as it lies
    flat = x if is_columns else jnp.transpose(x, [*outer, *dot.contract]).reshape(math.prod(rows), -1)
    results = fused_matmul(
        flat,
        weight.matrix,
        activation=_activation_of(product, grid, scale),
        steps=prepare_steps(steps, weight.matrix.shape[1]) if steps else None,
        residual=None if residual is None else residual.reshape(math.prod(rows), -1),
        emit=emit,
        keep=keep,
        keeps_nan=keeps_nan,
        x_columns=is_columns,
        implementation="cpu",
    )
    value, codes = (None if a is None else _placed(a, product, dot, weight, rows) for a in results[:2])
    value = None if value is None else value.astype(product.dtype)
    return Results(value, codes, None if results.marks is None else results.marks.reshape(rows))


def _placed(out: Array, product: Product, dot: Dot, weight: NativeTensor | Order, rows: Sequence[int]) -> Array:
    """The columns come as the weight was prepared, and go as the dot has them."""
    lengths = {axis: n for group in weight.axes for axis, n in group}
    prepared = sorted(dot.columns)
    if tuple(prepared) != dot.columns:
        out = out.reshape(math.prod(rows), *(lengths[axis] for axis in prepared))
        out = jnp.transpose(out, [0, *(1 + prepared.index(axis) for axis in dot.columns)])
    shape = [product.shape[dot.order.index(i)] for i in range(len(dot.order))]
    return jnp.transpose(out.reshape(shape), dot.order)


LAYOUTS = {(0, 3, 1, 2): "NHWC", (0, 1, 2, 3): "NCHW", (0, 2, 1): "NWC", (0, 1, 2): "NCW"}
"""Of the axes of an image: where its batch, its channels and its positions are."""


def why_not_conv(params: Any, weight: NativeTensor) -> str | None:
    """Returns why the kernels do not take a convolution, whatever its operands hold, or None."""
    numbers = params["dimension_numbers"]
    if tuple(numbers.lhs_spec) != tuple(numbers.out_spec) or tuple(numbers.lhs_spec) not in LAYOUTS:
        return f"the convolution kernels take and return {', '.join(LAYOUTS.values())}"
    out, inputs, *spatial = numbers.rhs_spec
    given = tuple(atom[0] for i in (*spatial, inputs, out) for atom in weight.axes[i])
    if given != tuple(i for i in weight.contract if any(i == a for g in weight.axes for a, _ in g)):
        return "the kernel was moved since it was prepared, or another operation that shares it has another layout"
    if params["batch_group_count"] != 1:
        return "the convolution kernels have no batch groups"
    return None


def _run_conv(product, x, grid, weight, steps, residual, emit, *, keep, keeps_nan, by_channel) -> Results:
    params = dict(product.params)
    layout = LAYOUTS[tuple(params["dimension_numbers"].lhs_spec)]
    groups = params["feature_group_count"]
    pads, dilations, zero = params["padding"], params["lhs_dilation"], jnp.zeros((), x.dtype)
    if any(d != 1 for d in dilations) or any(n < 0 for pair in pads for n in pair):
        # What is put between positions, of a transposed convolution, is 0.0; what a negative padding cuts is cut.
        config = [(0, 0, 0)] * x.ndim
        for axis, (low, high), d in zip(params["dimension_numbers"].lhs_spec[2:], pads, dilations, strict=True):
            config[axis] = (min(low, 0), min(high, 0), d - 1)
        x = lax.pad(x, zero, config)
        pads = tuple((max(low, 0), max(high, 0)) for low, high in pads)
    out = product.shape[params["dimension_numbers"].out_spec[1]]
    is_depthwise = weight.matrix.depthwise
    results = fused_conv(
        x,
        weight.matrix,
        activation=_activation_of(product, grid, None if grid is None else grid.scale),
        steps=prepare_steps(steps, out, feature_group_count=1 if is_depthwise else groups) if steps else None,
        residual=residual,
        emit=emit,
        keep=keep,
        by_channel=by_channel,
        keeps_nan=keeps_nan,
        implementation="cpu",
        strides=tuple(params["window_strides"]),
        padding=pads,
        rhs_dilation=tuple(params["rhs_dilation"]),
        feature_group_count=groups,
        layout=layout,
    )
    value = None if results.value is None else results.value.astype(product.dtype)
    return Results(value, results.codes, results.marks)


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
