"""Masks of a softmax: where it does not read, as one predicate."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from lowbit.program import read
from lowbit.program.axes import Labels, rooted
from lowbit.program.canonical import MASKED, Atom
from lowbit.program.constants import full_value, is_integral
from lowbit.program.read import Equation, Loop, Value


@dataclasses.dataclass(frozen=True)
class Mask:
    """One factor of the exponentials of a softmax that is 0 or 1.

    Attributes:
        value: what decides.
        labels: of its axes.
        is_negated: whether it is 1 where the value is false.
        kind: ``where``: the value is a predicate; ``added``: a constant, added before, that is 0 or `MASKED` or less;
            ``integral``: integers that are 0 or 1, multiplied by something huge and added.
    """

    value: Value
    labels: Labels
    is_negated: bool
    kind: str


def mask_of(atom: Atom, exponent: float, inner: Atom | None) -> Mask | None:
    """Returns the mask that a factor of exponentials is; None of others.

    Args:
        atom: the factor.
        exponent: of it.
        inner: of ``exp`` of one atom, that atom.

    Raises:
        ValueError: for a constant that masks and biases at once.
    """
    if atom.kind == "where":
        predicate, labels, is_negated = atom.content
        return Mask(predicate, labels, is_negated, "where") if is_integral(predicate) else None
    if inner is None:
        return None
    if inner.kind == "integral":
        value, labels = inner.content
        return Mask(value, labels, exponent < 0, "integral") if abs(exponent) >= -MASKED else None
    if inner.kind != "constant":
        return None
    value, labels = inner.content
    number = full_value(value)
    if number is None or not bool(np.any(number * exponent <= MASKED)):
        return None
    if not bool(np.all((number * exponent <= MASKED) | (number == 0))):
        raise ValueError(
            f"the constant added in front of a softmax masks (it holds {float(np.min(number))}) and biases at once; add the "
            f"bias alone, and mask by another sum or by jnp.where"
        )
    return Mask(value, labels, False, "added")


def kept(masks: Sequence[Mask], x: Value, scope: Loop | None) -> tuple[list[Equation], Value]:
    """Returns the equations, over data, that compute where a softmax reads ``x``, and the predicate; it broadcasts to ``x``.

    Args:
        masks: at least one.
        x: the scores, in the axes of the softmax.
        scope: the loop it is in.
    """
    own = rooted(x, has_ones=True)

    def shown(value: Any, mask: Mask) -> Any:
        real = [label for label, n in zip(mask.labels, value.shape, strict=True) if n > 1]
        value = lax.reshape(value, [n for n in value.shape if n > 1]) if 1 in value.shape else value
        order = sorted(range(len(real)), key=lambda i: own.index(real[i]))
        value = value if order == sorted(order) else lax.transpose(value, order)
        value = value if not real else lax.reshape(value, [n if i in real else 1 for i, n in enumerate(x.shape)])
        if mask.kind == "added":
            return value > MASKED
        if mask.kind == "integral" and value.dtype != jnp.bool_:
            value = value > 0
        return lax.bitwise_not(value) if mask.is_negated else value

    def both(*values: Any) -> Any:
        one = shown(values[0], masks[0])
        for value, mask in zip(values[1:], masks[1:], strict=True):
            one = jnp.logical_and(one, shown(value, mask))
        return one

    program = read.spliced(both, [mask.value for mask in masks], scope)
    return [e for e in program.equations if e.is_data], program.outs[0]


def moved(
    value: Value, labels: Labels, wanted: Labels, like: Value, scope: Loop | None
) -> tuple[list[Equation], Value]:
    """Returns the equations that put a value's axes where they are wanted, and the result.

    Args:
        value: the value.
        labels: of its axes.
        wanted: the same labels in another order, and axes of length 1.
        like: has the shape and dtype of the result.
        scope: the loop it is in.
    """
    real = [label for label in labels if label is not None]
    order = [real.index(label) for label in wanted if label is not None]
    sizes = tuple(n for n, label in zip(value.shape, labels, strict=True) if label is not None)

    def move(x: Any) -> Any:
        x = x if x.shape == sizes else lax.reshape(x, sizes)
        x = x if order == sorted(order) else lax.transpose(x, order)
        x = x if x.shape == like.shape else lax.reshape(x, like.shape)
        return x if x.dtype == like.dtype else lax.convert_element_type(x, like.dtype)

    program = read.spliced(move, [value], scope)
    return program.equations, program.outs[0]
