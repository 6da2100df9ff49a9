"""Axes by name: where those of a value go through transposes, broadcasts and axes of length 1."""

import jax.numpy as jnp

from . import primitives
from .read import Equation, Value

Label = int | str
"""An axis: of the root by its number, or one that is summed over, ``"~0"`` and on."""
Labels = tuple[Label | None, ...]
"""Of the axes of a value; None of those of length 1."""


def stripped(value: Value, labels: Labels) -> tuple[Value, Labels]:
    """Returns what a value is a movement of, and the labels of its axes: transposes, axes of length 1, casts of floats."""
    while (source := value.source) is not None and source.ins and len(source.outs) == 1:
        inner, name = source.ins[0], source.name
        if name == "transpose":
            order = source.params["permutation"]
            labels = tuple(labels[order.index(i)] for i in range(len(order)))
        elif name == "broadcast_in_dim":
            dims = source.params["broadcast_dimensions"]
            labels = tuple(None if n != value.shape[d] else labels[d] for n, d in zip(inner.shape, dims, strict=True))
        elif name in ("reshape", "squeeze"):
            longer = [[i for i, n in enumerate(v.shape) if n != 1] for v in (inner, value)]
            if [inner.shape[i] for i in longer[0]] != [value.shape[i] for i in longer[1]]:
                break
            moved = {i: labels[j] for i, j in zip(*longer, strict=True)}
            labels = tuple(moved.get(i) for i in range(len(inner.shape)))
        elif name not in primitives.SAME | primitives.VARYING and not is_widened(source):
            break
        value = inner
    return value, labels


def is_widened(equation: Equation) -> bool:
    """Returns whether an equation casts floats to floats."""
    if equation.name != "convert_element_type":
        return False
    return all(jnp.issubdtype(v.dtype, jnp.floating) for v in (equation.ins[0], equation.outs[0]))


def rooted(value: Value, *, has_ones: bool = False) -> Labels:
    """Returns the labels of a root's own axes; ``has_ones``: of those of length 1 too."""
    return tuple(None if n == 1 and not has_ones else i for i, n in enumerate(value.shape))
