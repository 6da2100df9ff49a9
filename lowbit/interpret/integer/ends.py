"""The float arithmetic of a full-integer program: an argument's codes at its entry, a result's values at its exit."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array

from lowbit.core.qtensor import quantize_with
from lowbit.core.rounding import cast_once, rounded_product
from lowbit.core.spec import Spec


def quantized(x: Array, grid: Mapping[str, Any], spec: Spec, *, is_named: bool = True) -> Array:
    """Returns codes of an argument: the only float arithmetic at the entry, a composite ``lowbit.quantize`` if named."""

    def quantize(x: Array, scale: Array, zero: Array) -> Array:
        shape = (1,) * x.ndim
        level = zero.astype(jnp.float32).reshape(shape)
        return quantize_with(x, spec, scale.reshape(shape), level, tuple(x.shape)).encode().codes

    named = lax.composite(quantize, name="lowbit.quantize") if is_named else quantize
    return named(x, grid["scale"], grid["zero"])


def dequantized(codes: Array, grid: Mapping[str, Any], dtype: DTypeLike, *, is_named: bool = True) -> Array:
    """Returns the values of codes: the only float arithmetic at the exit, a composite ``lowbit.dequantize`` if named."""

    def dequantize(codes: Array, scale: Array, zero: Array) -> Array:
        levels = (codes.astype(jnp.int32) - zero).astype(jnp.float32)
        return cast_once(rounded_product(levels, scale), dtype)

    named = lax.composite(dequantize, name="lowbit.dequantize") if is_named else dequantize
    return named(codes, grid["scale"], grid["zero"])
