"""One weight: from its float values and its inputs' second moment to levels and scales, one compiled program per shape."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from lowbit.core import blocks as block_ops
from lowbit.core.extremes import largest_magnitude
from lowbit.core.grid import Grid, nearest_levels
from lowbit.core.matrix import MatrixView, ScaleView
from lowbit.core.qtensor import QTensor
from lowbit.core.rounding import SMALLEST_SCALE, rounded_product
from lowbit.core.scales import scale_of_zeros, stored_scale
from lowbit.core.spec import Operand, Spec
from lowbit.solvers.factor import Factor, error, factor

from .recipe import Solver

_SMALLEST, _LARGEST, _LARGEST_UNEVEN = 0.4, 1.1, 1.6
"""Multiples of the full range between which scales are tried; smaller for 2 and 3 bits of heavy tails never was better.

Where levels are not evenly spaced, the largest value may lie best on the second largest level: up to 1.6, nvfp4 loses 10 % less on
normal weights, signed nf4 2 %."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Solved:
    """What became of a weight.

    Attributes:
        codes: as the format stores them, of the leaf's shape.
        values: on the grid, of the leaf's shape and dtype.
        scale: as it is stored: an array of the scale's shape, or a `QTensor`.
        error: mean squared error of the operation's results, ``tr(D^T H D)``; of the weight itself without ``H``.
        nearest: the same of rounding to nearest on the quantizer's own scale.
        power: mean square of the results, ``tr(W^T H W)``, in the same units.
        noise: squared error of the weight.
        size: sum of squares of the weight.
        clipped: share of entries beyond the range.
        loose: share of directions that only the damping holds: calibration says nothing of them.
        is_definite: per matrix, whether the second moment could be factored.
        is_empty: per matrix, whether it has seen no input.
    """

    codes: Shaped[Array, "..."]
    values: Float[Array, "..."]
    scale: Any
    error: Float[Array, ""]
    nearest: Float[Array, ""]
    power: Float[Array, ""]
    noise: Float[Array, ""]
    size: Float[Array, ""]
    clipped: Float[Array, ""]
    loose: Float[Array, ""]
    is_definite: Any
    is_empty: Any


@functools.partial(jax.jit, static_argnames=("solver", "spec", "view", "stack", "is_free"))
def solve(
    solver: Solver,
    spec: Spec,
    view: MatrixView,
    stack: int,
    weight: Float[Array, "..."],
    moment: Float[Array, "matrix in in"] | None,
    scale: Any,
    zero: Float[Array, "..."] | None,
    *,
    is_free: bool,
) -> Solved:
    """Returns levels and scales of one weight.

    Args:
        solver: how.
        spec: of the weight.
        view: the weight as matrices.
        stack: leading axes of the leaf that count layers.
        weight: the leaf.
        moment: ``H`` of every matrix, or None: every input counts alike.
        scale: of the quantizer's own grid, as it is stored.
        zero: its zero points, or None.
        is_free: whether scales may change.
    """
    group, scales = view.groups(spec, stack)
    operand = Operand(view.shape, contract=view.contract, stack=stack)
    w = view.matrices(weight.astype(jnp.float32))
    matrices, inner, _ = view.size
    damping = solver.damping
    known = None if moment is None else jax.vmap(lambda h: factor(h, damping=damping, order=solver.order))(moment)
    is_searched = is_free and zero is None and solver.value != "none"
    own = Grid(_spread(scales, scale), None if zero is None else scales.matrices(zero), group, spec.format)
    if is_searched:
        value = jnp.ones((matrices, inner), jnp.float32)
        if known is not None and solver.value != "ones":
            value = known.variance if solver.value == "conditional" else jax.vmap(jnp.diagonal)(known.damped)
        scale = _searched(solver, spec, scales, group, w, value, operand)
    values = _values(scale)
    is_elementwise = spec.scale.spec is None
    store = (
        (lambda s: _values(stored_scale(s, spec, None))) if is_free and not scales.is_tied and is_elementwise else None
    )
    z = own.zero

    def one(w: Array, known: Any, scale: Array, zero: Array | None) -> tuple[Array, Array]:
        grid = Grid(scale, zero, group, spec.format)
        levels = grid.levels(w) if known is None else solver.round(w, known, grid)
        if solver.rounds and known is not None:
            levels, grid = solver.polished(w, levels, known, grid, store)
        return levels, grid.scale

    levels, found = jax.vmap(one, in_axes=(0, None if known is None else 0, 0, None if z is None else 0))(
        w, known, scales.matrices(values), z
    )

    axis = None if z is None else 0

    def nearest_of(w: Array, scale: Array, zero: Array | None) -> Array:
        return Grid(scale, zero, group, spec.format).levels(w)

    def values_of(levels: Array, scale: Array, zero: Array | None) -> Array:
        return Grid(scale, zero, group, spec.format).values(levels)

    at = jax.vmap(values_of, in_axes=(0, 0, axis))
    # Without inputs every entry counts alike: the error is the weight's own.
    damped = moment if known is None else known.damped
    lost = jax.vmap(
        lambda w, q, h: jnp.sum(jnp.square(q - w), axis=0) if h is None else error(w, q, h), (0, 0, _axis(moment))
    )
    plain = jax.vmap(nearest_of, in_axes=(0, 0, axis))(w, own.scale, z)
    rounded, nearest = at(levels, found, z), at(plain, own.scale, z)
    if store is not None:  # an output that a solver made worse keeps the nearest
        is_worse = ~(lost(w, rounded, damped) <= lost(w, nearest, damped))[:, None]
        levels, found = jnp.where(is_worse, plain, levels), jnp.where(is_worse, own.scale, found)
        rounded = jnp.where(is_worse, nearest, rounded)
        scale = stored_scale(scales.scale(found), spec, operand)
    place = w * (1.0 / found[:, group])
    shift = 0.0 if z is None else z[:, group]
    is_out = (place > spec.format.high - shift + 0.5) | (place < spec.format.low - shift - 0.5)
    return Solved(
        codes=spec.format.encode(view.leaf(levels)),
        values=view.leaf(rounded).astype(weight.dtype),
        scale=scale,
        error=jnp.sum(lost(w, rounded, moment)),
        nearest=jnp.sum(lost(w, nearest, moment)),
        power=jnp.sum(lost(w, jnp.zeros_like(w), moment)),
        noise=jnp.sum(jnp.square(w - rounded)),
        size=jnp.sum(jnp.square(w)),
        clipped=jnp.mean(is_out.astype(jnp.float32)) if spec.format.is_integer else jnp.zeros(()),
        loose=jnp.zeros(()) if known is None else _loose(known, damping),
        is_definite=jnp.ones(matrices, bool) if known is None else _is_definite(known),
        is_empty=jnp.zeros(matrices, bool) if known is None else jnp.all(known.is_dead, axis=1),
    )


def _axis(moment: Any) -> int | None:
    """Returns the axis of matrices of what may be absent."""
    return None if moment is None else 0


def _is_definite(known: Factor) -> Array:
    return jnp.all(jnp.isfinite(known.feedback), axis=(1, 2)) & jnp.all(known.variance > 0, axis=1)


def _loose(known: Factor, damping: float) -> Array:
    """The share of inputs whose variance, later ones known, is hardly more than the damping."""
    mean = jnp.mean(jax.vmap(jnp.diagonal)(known.damped), axis=1, keepdims=True)
    is_loose = (known.variance < 2.0 * damping * mean) & ~known.is_dead
    return jnp.mean(is_loose.astype(jnp.float32))


def _values(scale: Any) -> Array:
    return scale.dequantize() if isinstance(scale, QTensor) else scale


def _spread(scales: ScaleView, scale: Any) -> Array:
    return scales.matrices(_values(scale))


def _searched(
    solver: Solver, spec: Spec, scales: ScaleView, group: Array, w: Array, value: Array, operand: Operand
) -> Any:
    """The scales with the least weighed error among multiples of the full range, as they are stored; shared ones together."""
    blocks = scales.blocks
    reach = block_ops.reduce_blocks(scales.view.leaf(w), blocks, largest_magnitude)
    full = jnp.where(
        reach == 0, scale_of_zeros(spec), jnp.maximum(reach * np.float32(1.0 / spec.format.reach), SMALLEST_SCALE)
    )
    count = math.prod(scales.scale_shape[i] for i in scales.view.contract)
    one = jax.vmap(lambda x: jax.ops.segment_sum(x, group, count))

    def loss(multiple: Array) -> Array:
        scale = full * multiple
        scale = _values(stored_scale(scale, spec, operand)) if spec.scale.spec is None else scale
        rows = scales.matrices(scale)[:, group]
        off = rounded_product(nearest_levels(w, rows, None, spec.format), rows) - w
        return scales.total(one(value[:, :, None] * jnp.square(off)))

    def better(best: tuple[Array, Array], multiple: Array) -> tuple[tuple[Array, Array], None]:
        least, kept = best
        now = loss(multiple)
        return (jnp.minimum(least, now), jnp.where(now < least, multiple, kept)), None

    largest = _LARGEST if spec.format.is_integer else _LARGEST_UNEVEN
    tried = jnp.linspace(_SMALLEST, largest, solver.steps, dtype=jnp.float32)
    if spec.has_signed_scales:  # the levels that reach further are turned to the side that needs them
        tried = jnp.concatenate([tried, -tried])
    start = jnp.full(full.shape, jnp.inf), jnp.ones(full.shape)
    (_, multiple), _ = jax.lax.scan(better, start, tried)
    return stored_scale(full * multiple, spec, operand)
