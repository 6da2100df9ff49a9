"""What a sum can absorb of the equations that follow it: factors, addends, relu and clips."""

import math

import jax.numpy as jnp

from lowbit.program import primitives
from lowbit.program.read import Equation, Value

from .flat import small_shape

_AFFINE = primitives.ADDITIONS | primitives.CASTS | primitives.COPIES | {"div", "mul", "neg"}


def is_float(var: Value) -> bool:
    """Returns whether a value is of floats."""
    return bool(jnp.issubdtype(var.dtype, jnp.floating))


def is_affine(equation: Equation, x: Value) -> bool:
    """Returns whether an equation is affine in ``x`` with constants, and keeps its shape."""
    if equation.name not in _AFFINE or equation.outs[0].shape != x.shape or not is_float(equation.outs[0]):
        return False
    if sum(v.is_data for v in equation.ins) != 1:
        return False
    return equation.name != "div" or equation.ins[0] is x


def bounds_of(equation: Equation, x: Value) -> list[tuple[str, Value]] | None:
    """Returns the bounds, ``("low" or "high", bound)``, of a clip of ``x`` by scalars; None of any other equation."""
    names = {"max": "low", "min": "high"}
    others = [v for v in equation.ins if v is not x]
    if not others or any(v.is_data or math.prod(small_shape(v)) != 1 for v in others):
        return None
    if not is_float(equation.outs[0]):
        return None
    if equation.name in names and len(others) == 1 and equation.outs[0].shape == x.shape:
        return [(names[equation.name], others[0])]
    if equation.name == "clamp" and equation.ins[1] is x:
        return [("low", equation.ins[0]), ("high", equation.ins[2])]
    return None


def channels(equation: Equation) -> frozenset[int]:
    """Returns the axes of the result of a dot or convolution that come from its weight."""
    numbers = equation.eqn.params["dimension_numbers"]
    if equation.name == "conv_general_dilated":
        return frozenset([numbers.out_spec[1]])
    at = 0 if equation.ins[1].is_data else 1
    (contracted, batch), rank = numbers, len(equation.outs[0].shape)
    free = len(equation.ins[at].shape) - len(contracted[at]) - len(batch[at])
    start = len(batch[at]) if at == 0 else rank - free
    return frozenset([*range(len(batch[at])), *range(start, start + free)])


def varying(var: Value) -> list[int]:
    """Returns the axes that a constant varies along: those that it was only spread over are left out."""
    return [axis for axis, n in enumerate(small_shape(var)) if n > 1]
