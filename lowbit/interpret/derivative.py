"""The derivative of a served operation: that of the product of its operands' values, on every route alike.

A kernel, and a sum of integers, has none of its own, or zero. So the value is the route's, and the derivative that of what
`lowbit.simulate` differentiates with round to nearest: the operation on dequantized operands, and straight through the
rounding of an input within its range, the ends included.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lowbit.core.gradients import inclusive
from lowbit.interpret.trace import Args, Kwargs
from lowbit.packed.native import NativeTensor
from lowbit.packed.restored import dequantized
from lowbit.plan.rows import Row
from lowbit.program.compat import rebind

from .inputs import quantized_input
from .operations import Operation
from .walk import plain

Product = Callable[[Args, Kwargs], Any]
"""``(operands, states) -> result``."""


def differentiable(op: Operation, row: Row, product: Product, values: Sequence[Any], states: Mapping[str, Any]) -> Any:
    """Returns the result of an operation that is no look-up, with its derivative.

    Args:
        op: the operation.
        row: its row of the plan.
        product: what computes it; what it is given is all that it computes with.
        values: the operands; weights as the walk brings them.
        states: of its sites, by role.
    """
    return _with_derivative(product, functools.partial(_in_float, op, row), list(values), dict(states))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _with_derivative(product: Product, in_float: Product, values: list[Any], states: dict[str, Any]) -> Any:
    return product(values, states)


@_with_derivative.defjvp
def _(product, in_float, primals, tangents):
    _, tangent = jax.jvp(in_float, primals, tangents)
    return _with_derivative(product, in_float, *primals), tangent


def _in_float(op: Operation, row: Row, values: Sequence[Any], states: Mapping[str, Any]) -> Array:
    """The operation on dequantized operands: what its route reads of a weight may be the kernels' order alone."""
    operands = []
    for site, value in zip(row.sites, values, strict=True):
        if site.spec is None or site.is_weight:
            held = dequantized(value) if isinstance(value, NativeTensor) else None
            operands.append(plain(value) if held is None else held)
        else:
            nearest = inclusive(site.spec.format.nearest)
            state = states.get(site.role, {})
            operands.append(quantized_input(site, state, plain(value), nearest=nearest).dequantize())
    return rebind(op.eqn, operands)[0]


def without_derivative(what: str, value: Any) -> Any:
    """Returns ``value``, whose floats may not be differentiated: a ValueError says so in place of a gradient of zero.

    Args:
        what: the error's text.
        value: a tree of arrays.
    """
    return jax.tree.map(lambda x: _refusing(what, x) if jnp.issubdtype(x.dtype, jnp.inexact) else x, value)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _refusing(what: str, value: Any) -> Any:
    return value


@_refusing.defjvp
def _(what, primals, tangents):
    raise ValueError(what)
