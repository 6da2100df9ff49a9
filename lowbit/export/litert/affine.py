"""Factors and addends along some axes of what is on a grid, such as the normalization of an input, in one integer kernel.

LiteRT's own multiplication and addition round to a grid each, or stay in float. A depthwise convolution of one pixel rounds
once: its weights are the factors, 127 steps each of a scale of their own, its biases the addends in 32 bits.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowbit.core.checks import is_traced
from lowbit.export.composites import Grid, dequantize_p, fake_quant, fake_quant_p
from lowbit.interpret.integer.nodes import MOVES
from lowbit.program import primitives
from lowbit.program.read import Equation, Value

_STEPS = 127
_LIKE = primitives.CASTS | primitives.COPIES


@dataclasses.dataclass(frozen=True)
class Affine:
    """``x * gain + shift``, clipped; in integers if a grid follows, else as it was written.

    Attributes:
        x: the array.
        gain: factors, of the rank of ``x``, of length 1 along the axes they do not vary on; float64.
        shift: addends, likewise.
        written: makes it in float.
        bounds: ``max`` and ``min`` by numbers, in order.
    """

    x: Any
    gain: np.ndarray
    shift: np.ndarray
    written: Callable[[], Any]
    bounds: tuple[tuple[str, float], ...] = ()

    def plain(self) -> Any:
        """Its value in float."""
        return self.written()

    def quantized(self, grid: Grid) -> jax.Array:
        """Its value on a grid of one scale."""
        shape, gain, shift = self.x.shape, self.gain, self.shift
        varying = [i for i in range(len(shape)) if max(gain.shape[i], shift.shape[i]) > 1]
        first, last = min(varying), max(varying) + 1
        inner = shape[first:last]
        channels = math.prod(inner)

        def flat(a: np.ndarray) -> np.ndarray:
            return np.broadcast_to(a.reshape(a.shape[first:last]), inner).reshape(channels)

        batch, trail = shape[0] if first else 1, math.prod(shape[last:])
        x = self.x.reshape(batch, -1, channels, trail)
        x = jnp.swapaxes(x, 2, 3) if trail > 1 else x.reshape(batch, -1, 1, channels)
        y = lax.conv_general_dilated(
            x, _kernel(flat(gain)), (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=channels
        )  # fmt: skip
        y = y + jnp.asarray(flat(shift), jnp.float32)
        for name, bound in self.bounds:
            y = {"max": jnp.maximum, "min": jnp.minimum}[name](y, np.float32(bound))
        y = fake_quant(y, grid)
        return (jnp.swapaxes(y, 2, 3) if trail > 1 else y).reshape(shape)


def _kernel(gain: np.ndarray) -> jax.Array:
    scale = (np.abs(np.where(gain == 0, 1.0, gain)) / _STEPS).astype(np.float32)
    values = np.sign(gain).astype(np.float32) * _STEPS * scale
    grid = Grid("i8", tuple(map(float, scale)), (0,) * len(scale), axis=3)
    return fake_quant(jnp.asarray(values.reshape(1, 1, 1, -1)), grid)


def affine(
    equation: Equation, values: list[Any], env: Mapping[Value, Any], written: Callable[[], Any]
) -> Affine | None:
    """Returns the result of an equation as `Affine`, where it is one of something on a grid; else None.

    Args:
        equation: the equation.
        values: what it reads.
        env: what values are, in this body.
        written: makes the result in float.
    """
    name = equation.name
    if name not in ("add", "sub", "mul", "div", "max", "min") or len(values) != 2:
        return None
    constants = [_constant(read, value, env) for read, value in zip(equation.ins, values, strict=True)]
    if sum(c is None for c in constants) != 1:
        return None
    at = constants.index(None)
    x, constant = values[at], constants[1 - at]
    assert constant is not None
    if name in ("max", "min"):
        if not isinstance(x, Affine) or constant.size != 1:
            return None
        return dataclasses.replace(x, written=written, bounds=(*x.bounds, (name, float(constant.ravel()[0]))))
    if name == "div" and at == 1:
        return None
    if not isinstance(x, Affine):
        if constant.size == 1 or not isinstance(x, jax.Array) or not _is_on_grid(equation.ins[at], env):
            return None
        one = np.ones((1,) * x.ndim)
        x = Affine(x, one, 0.0 * one, written)
    if x.bounds:
        return None
    gain, shift = x.gain, x.shift
    if name in ("mul", "div"):
        factor = constant if name == "mul" else 1.0 / constant
        return Affine(x.x, gain * factor, shift * factor, written)
    if name == "sub":
        gain, shift, constant = (gain, shift, -constant) if at == 0 else (-gain, -shift, constant)
    return Affine(x.x, gain, shift + constant, written)


def _constant(read: Value, value: Any, env: Mapping[Value, Any]) -> np.ndarray | None:
    """A constant before it was spread, in float64; None of data."""
    maker = _maker(read, env)
    if maker is not None and maker.name in (*_LIKE, "broadcast_in_dim") and len(maker.ins) == 1:
        inner = _constant(maker.ins[0], env[maker.ins[0]], env)
        if inner is None or maker.name in _LIKE:
            return inner
        shape = [1] * len(maker.params["shape"])
        for axis, n in zip(maker.params["broadcast_dimensions"], inner.shape, strict=True):
            shape[axis] = n
        return inner.reshape(shape)
    if (
        isinstance(value, Affine)
        or is_traced(value)
        or not isinstance(value, jax.Array | np.ndarray | np.generic | float | int)
    ):
        return None
    return np.asarray(value, np.float64)


def _maker(read: Value, env: Mapping[Value, Any]) -> Equation | None:
    """The equation of this body that makes a value."""
    return read.source if read.source is not None and all(v in env for v in read.source.ins) else None


def _is_on_grid(read: Value, env: Mapping[Value, Any]) -> bool:
    maker = _maker(read, env)
    if maker is None:
        return False
    if maker.eqn.primitive in (fake_quant_p, dequantize_p):
        return True
    return maker.name in MOVES and not maker.ins[0].is_written and _is_on_grid(maker.ins[0], env)
