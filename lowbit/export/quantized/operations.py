"""StableHLO operations on quantized types, as one JAX primitive between arrays of integers.

To JAX a quantized array is its integers, int8 or int32. The lowering gives each operand its type by ``bitcast_convert``,
which changes no bit, writes the operation, and takes the type off its result. `lowbit.export.quantized.settle` then
removes the casts that meet. For export only: the primitive has no derivative and no batching rule.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jaxlib.mlir import ir  # noqa: TID251 - public jax cannot write an operation of another dialect's types
from jaxtyping import Array, Float, Int8, Int32, Integer

from lowbit.export.stablehlo import load_quantized_types

from .types import QuantType

typed_p = Primitive("quant_typed")
"""Parameters: ``op``, an operation of StableHLO; ``ins`` and ``out``, types of operands and result, None for plain ones;
``shape`` and ``dtype`` of the result as an array; ``attributes``, pairs of a name and MLIR's text."""

typed_p.def_abstract_eval(lambda *xs, op, ins, out, shape, dtype, attributes: ShapedArray(shape, jnp.dtype(dtype)))


def _lowered(ctx: Any, *xs: Any, op: str, ins: Any, out: Any, shape: Any, dtype: Any, attributes: Any) -> list[Any]:
    load_quantized_types(ctx.module_context.context)
    operands = [_cast(x, _typed(x.type, quant)) if quant else x for x, quant in zip(xs, ins, strict=True)]
    plain = ir.RankedTensorType.get(shape, ir.Type.parse(_WORDS[dtype.name]))
    parsed = {name: ir.Attribute.parse(text) for name, text in attributes}
    operation = ir.Operation.create(op, [_typed(plain, out) if out else plain], operands, parsed)
    return [_cast(operation.result, plain) if out else operation.result]


_WORDS = {"int2": "i2", "int4": "i4", "int8": "i8", "int32": "i32", "float32": "f32"}


def _typed(array: Any, quant: QuantType) -> Any:
    return ir.RankedTensorType.get(ir.RankedTensorType(array).shape, ir.Type.parse(str(quant)))


def _cast(x: Any, to: Any) -> Any:
    return ir.Operation.create("stablehlo.bitcast_convert", [to], [x]).result


mlir.register_lowering(typed_p, _lowered)


def _bind(
    op: str, xs: Sequence[Array], ins: Sequence[QuantType | None], out: QuantType | None, shape: Sequence[int],
    dtype: Any = None, **attributes: str,
) -> Array:  # fmt: skip
    dtype = jnp.dtype({8: jnp.int8, 32: jnp.int32}[out.bits] if out else dtype)
    return typed_p.bind(
        *xs, op=f"stablehlo.{op}", ins=tuple(ins), out=out, shape=tuple(shape), dtype=dtype,
        attributes=tuple(attributes.items()),
    )  # fmt: skip


def quantize(x: Float[Array, "..."], to: QuantType) -> Int8[Array, "..."]:
    """Returns float32 values as integers of a type: ``uniform_quantize``."""
    return _bind("uniform_quantize", [x], [None], to, x.shape)


def requantize(x: Integer[Array, "..."], of: QuantType, to: QuantType) -> Integer[Array, "..."]:
    """Returns integers of one type as those of another: ``uniform_quantize``."""
    return _bind("uniform_quantize", [x], [of], to, x.shape)


def stored(codes: Integer[Array, "..."], of: QuantType) -> Int8[Array, "..."]:
    """Returns the integers of a constant that is stored in a type of 2, 4 or 8 bits, in 8 bits.

    Widened as integers, not by ``uniform_quantize`` between two types of one scale: IREE 3.13 rejects that of 4-bit constants
    ("failed to legalize operation 'vector.maskedload'").
    """
    dtype = f"int{of.bits}"
    return _bind("bitcast_convert", [codes.astype(dtype)], [of], None, codes.shape, dtype).astype(jnp.int8)


def dequantize(x: Integer[Array, "..."], of: QuantType) -> Float[Array, "..."]:
    """Returns the float32 values of integers: ``uniform_dequantize``."""
    return _bind("uniform_dequantize", [x], [of], None, x.shape, jnp.float32)


def plus(acc: Int32[Array, "..."], of: QuantType, bias: Integer[Array | np.ndarray, "..."]) -> Int32[Array, "..."]:
    """Returns the sum of an accumulator and an integer constant of its own type.

    Args:
        acc: the accumulator.
        of: its type.
        bias: int32, broadcasts to ``acc``.
    """
    shape = [*(1,) * (acc.ndim - bias.ndim), *bias.shape]
    if of.axis is not None:
        bias = jnp.broadcast_to(bias, [acc.shape[i] if i == of.axis else n for i, n in enumerate(shape)])
        shape = [*bias.shape]
    axes = tuple(i for i, n in enumerate(shape) if n != 1 or i == of.axis)
    flat = jnp.asarray(bias, jnp.int32).reshape([shape[i] for i in axes])
    return plus_p.bind(acc, flat, of=of, axes=axes)


plus_p = Primitive("quant_plus")
"""Parameters: ``of``, the type of both operands; ``axes`` of the first one that the second one has."""

plus_p.def_abstract_eval(lambda acc, bias, *, of, axes: ShapedArray(acc.shape, acc.dtype))


def _lowered_plus(ctx: Any, acc: Any, bias: Any, *, of: QuantType, axes: Sequence[int]) -> list[Any]:
    load_quantized_types(ctx.module_context.context)
    small = QuantType.accumulator(of.scale, None if of.axis is None else axes.index(of.axis))
    wide = _typed(acc.type, of)
    operand = _cast(bias, _typed(bias.type, small))
    if ir.RankedTensorType(bias.type).shape != ir.RankedTensorType(acc.type).shape:
        spread = {"broadcast_dimensions": ir.Attribute.parse(_integers(axes))}
        operand = ir.Operation.create("stablehlo.broadcast_in_dim", [wide], [operand], spread).result
    total = ir.Operation.create("stablehlo.add", [wide], [_cast(acc, wide), operand]).result
    return [_cast(total, acc.type)]


mlir.register_lowering(plus_p, _lowered_plus)


def dot(
    left: Array, right: Int8[Array, "..."], numbers: Any, of: tuple[QuantType | None, QuantType], to: QuantType | None
) -> Array:
    """Returns ``dot_general`` on quantized operands; of a float left operand, in float32.

    Args:
        left: int8, or float32.
        right: int8.
        numbers: dimension numbers as jax has them.
        of: the operands' types.
        to: the result's type.
    """
    (lc, rc), (lb, rb) = numbers
    free = [[n for i, n in enumerate(x.shape) if i not in (*c, *b)] for x, c, b in ((left, lc, lb), (right, rc, rb))]
    shape = (*(left.shape[i] for i in lb), *free[0], *free[1])
    names = ("lhs_batching", "rhs_batching", "lhs_contracting", "rhs_contracting")
    text = ", ".join(f"{name}_dimensions = {list(axes)}" for name, axes in zip(names, (lb, rb, lc, rc), strict=True))
    return _bind(
        "dot_general", [left, right], of, to, shape, jnp.float32, dot_dimension_numbers=f"#stablehlo.dot<{text}>"
    )


def convolution(
    image: Array, kernel: Int8[Array, "..."], params: Mapping[str, Any], shape: Sequence[int],
    of: tuple[QuantType | None, QuantType], to: QuantType | None,
) -> Array:  # fmt: skip
    """Returns ``convolution`` on quantized operands; of a float image, in float32.

    Args:
        image: ``(batch, height, width, channels)``, int8 or float32.
        kernel: ``(height, width, channels, out)``, int8.
        params: strides, padding, dilation and groups, as jax's primitive has them.
        shape: of the result, ``(batch, height, width, out)``.
        of: the operands' types.
        to: the result's type.
    """
    pads = [list(pair) for pair in params["padding"]]
    return _bind(
        "convolution", [image, kernel], of, to, shape, jnp.float32,
        window_strides=_integers(params["window_strides"]),
        padding=f"dense<{pads}> : tensor<{len(pads)}x2xi64>",
        rhs_dilation=_integers(params["rhs_dilation"]),
        dimension_numbers="#stablehlo.conv<[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]>",
        feature_group_count=f"{params['feature_group_count']} : i64",
        batch_group_count="1 : i64",
    )  # fmt: skip


def _integers(values: Sequence[int]) -> str:
    return f"array<i64: {', '.join(map(str, values))}>" if len(values) else "array<i64>"


NAMES = frozenset((typed_p.name, plus_p.name))
"""What `lowbit.export.fold` must leave in the program."""
