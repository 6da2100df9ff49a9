"""A traced function as one list of equations, and the values of everything in it that is not data."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from lowbit.interpret.trace import Trace
from lowbit.interpret.walk import plain, reevaluate
from lowbit.program import primitives, read
from lowbit.program.read import Value

_INLINED = ("jit", "remat", read.OF_DATA, read.LAYERS)


def flatten(traced: Trace) -> read.Program:
    """Returns the program of a trace: parameters are fixed, calls inlined, layers of a scan written out.

    Functions with their own gradient are kept, but those of data that have a `jax.custom_jvp`.
    A product that sums nothing, with constant integers, is one of elements: the mask of heads that a model closes over.
    """
    program = read.read(traced.jaxpr, fixed=traced.count, inlined=_INLINED)
    _spread(program.equations)
    return program


def _spread(equations: list[read.Equation]) -> None:
    for i in reversed(range(len(equations))):
        equation = equations[i]
        if equation.call == "scan" and equation.is_data and equation.loop is not None:
            _spread(equation.loop.equations)
        elif equation.name == "dot_general" and _is_of_elements(equation):
            products = read.spliced(partial(_elementwise, equation), equation.ins, equation.scope).equations
            for each in products:
                each.caller = equation
            products[-1].outs, equation.outs[0].source = equation.outs, products[-1]
            equations[i : i + 1] = products


def _is_of_elements(equation: read.Equation) -> bool:
    has_integers = any(not v.is_data and not jnp.issubdtype(v.dtype, jnp.floating) for v in equation.ins)
    return has_integers and not equation.params["dimension_numbers"][0][0]


def _elementwise(equation: read.Equation, left: Array, right: Array) -> Array:
    """The product of a dot that contracts nothing: axes of the batch, then those of the left, then those of the right."""
    out, (_, batches) = equation.outs[0], equation.params["dimension_numbers"]
    free = [[i for i in range(x.ndim) if i not in batch] for x, batch in zip((left, right), batches, strict=True)]
    left, right = (
        jnp.transpose(x, (*batch, *rest)) for x, batch, rest in zip((left, right), batches, free, strict=True)
    )
    left = left.reshape(*left.shape, *[1] * len(free[1]))
    right = right.reshape(*right.shape[: len(batches[1])], *[1] * len(free[0]), *right.shape[len(batches[1]) :])
    return jnp.broadcast_to(left.astype(out.dtype), out.shape) * jnp.broadcast_to(right.astype(out.dtype), out.shape)


class Constants:
    """The values of everything that is not data, computed when wanted, each once.

    Args:
        leaves: by input; quantized parameters may be `QTensor`.
    """

    def __init__(self, leaves: dict[Value, Any]):
        self.known: dict[Value, Any] = dict(leaves)

    @classmethod
    def of(cls, flat: read.Program, leaves: Sequence[Any]) -> "Constants":
        """Returns the constants of a program for its first inputs, the parameters; more values are passed over."""
        return cls(dict(zip(flat.inputs[: flat.count], leaves, strict=False)))

    def raw(self, var: Value) -> Any:
        """Returns the value; a quantized weight that has only been moved stays quantized."""
        if var not in self.known:
            if var.source is None:
                return var.value
            values = [self.raw(v) for v in var.source.ins]
            self.known.update(zip(var.source.outs, reevaluate(var.source.eqn, values), strict=True))
        return self.known[var]

    def value(self, var: Value) -> Array:
        """Returns the value as an array."""
        return jnp.asarray(plain(self.raw(var)))

    def small(self, var: Value) -> Array:
        """Returns the value before it was spread: of the same rank, of length 1 along the axes it does not vary on."""
        source = var.source
        if source is not None and source.name == "broadcast_in_dim":
            return self.small(source.ins[0]).reshape(small_shape(var))
        if source is not None and source.name in _LIKE:
            return reevaluate(source.eqn, [self.small(source.ins[0])])[0]
        return self.value(var)


_LIKE = primitives.CASTS | primitives.COPIES | {"neg"}


def small_shape(var: Value) -> tuple[int, ...]:
    """Returns the shape of `Constants.small`."""
    source = var.source
    if source is not None and source.name == "broadcast_in_dim":
        shape = [1] * len(var.shape)
        inner = small_shape(source.ins[0])
        for axis, n in zip(source.eqn.params["broadcast_dimensions"], inner, strict=True):
            shape[axis] = n
        return tuple(shape)
    if source is not None and source.name in _LIKE:
        return small_shape(source.ins[0])
    return var.shape
