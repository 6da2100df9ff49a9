"""One weight: from its float values and its inputs' moments to levels and scales, one compiled program for many shapes.

Weights are read as matrices and filled up to few shapes (`lowbit.solvers.shapes`), and the bounds of integers are data, so
that a network compiles a handful of programs once, whatever its widths.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from lowbit.core.matrix import MatrixView
from lowbit.core.spec import Spec
from lowbit.solvers.factor import Factor, factor
from lowbit.solvers.shapes import over_matrices
from lowbit.solvers.target import target

from .inputs import Inputs
from .problem import Problem, encoded, scale_values, stored
from .recipe import Remainder, Solver


@dataclasses.dataclass(frozen=True)
class Solved:
    """What became of a weight. With a target (`lowbit.recipes.inputs`), errors are those against the target.

    Attributes:
        codes: as the format stores them, of the leaf's shape.
        values: on the grid, of the leaf's shape and dtype.
        scale: as it is stored: an array of the scale's shape, or a `QTensor`.
        zero: integer-valued float32 of the scale's shape, or None.
        taken: parameters that take back a part of what is left, by name.
        shift: what a bias must add, ``[matrix, out]``; None where no bias takes means back.
        error: mean squared error of the operation's results, ``tr(D^T H D)``, where a bias takes means back without that of
            means; of the weight itself without ``H``.
        nearest: the same of rounding to nearest on the quantizer's own scale.
        power: mean square of the results, ``tr(W^T H W)``, in the same units.
        noise: squared error of the weight. Of both, what ``taken`` takes back is taken off.
        size: sum of squares of the weight.
        clipped: share of entries beyond the range.
        loose: share of directions that only the damping holds: calibration says nothing of them.
        few: share of directions that no row can have had, where there were fewer rows than inputs.
        is_definite: per matrix, whether the second moment could be factored.
        is_empty: per matrix, whether it has seen no input.
    """

    codes: Shaped[Array, "..."]
    values: Float[Array, "..."]
    scale: Any
    zero: Any
    taken: dict[str, Any]
    shift: Any
    error: float
    nearest: float
    power: float
    noise: float
    size: float
    clipped: float
    loose: float
    few: float
    is_definite: Any
    is_empty: Any


def solve(
    solver: Solver,
    spec: Spec,
    view: MatrixView,
    stack: int,
    weight: Float[Array, "..."],
    inputs: Inputs | None,
    scale: Any,
    zero: Float[Array, "..."] | None,
    *,
    is_free: bool,
    remainder: Remainder | None = None,
    own: Mapping[str, Any] | None = None,
) -> Solved:
    """Returns levels and scales of one weight. Not under jit.

    Args:
        solver: how.
        spec: of the weight.
        view: the weight as matrices.
        stack: leading axes of the leaf that count layers.
        weight: the leaf.
        inputs: moments, or None: every input counts alike.
        scale: of the quantizer's own grid, as it is stored.
        zero: its zero points, or None.
        is_free: whether scales may change.
        remainder: what takes back a part of what is left, or None.
        own: its parameters of this weight; nothing is taken back where there are none.
    """
    inputs = None if inputs is None else inputs.for_outputs(*view.size[::2])
    parts = 1 if inputs is None else len(inputs.moment) // view.size[0]
    problem = Problem.of(spec, view, stack, weight, scale, zero, parts)
    aimed, known = problem.w, None
    empty, definite = np.zeros(len(problem.w), bool), np.ones(len(problem.w), bool)
    norm, extra, moment, loose = None, None, None, 0.0
    if inputs is not None:
        moment, cross = inputs.centered()
        norm = jnp.asarray(problem.square(moment))
        known, is_definite = _factors(norm, solver.damping, solver.order)
        matrices, inner = problem.w.shape[:2]
        extra = jnp.diagonal(known.damped, axis1=1, axis2=2) - jnp.diagonal(norm, axis1=1, axis2=2)
        definite = np.asarray(is_definite)[:matrices]
        empty = np.all(np.einsum("mkk->mk", inputs.moment) <= 0, axis=1)
        loose = _loose(known, solver.damping, matrices, inner)
        if cross is not None:
            target = _aimed(
                jnp.asarray(problem.full(problem.w)),
                norm,
                jnp.asarray(problem.square(cross)),
                solver.alpha,
                solver.ridge,
            )
            aimed = np.asarray(target)[:matrices, :inner, : problem.w.shape[2]]
    plain = problem.nearest(problem.w, problem.own)
    nearest = problem.values(plain, problem.own)
    free = is_free and not problem.scales.is_tied and spec.scale.spec is None
    start, gridded = problem.own, problem
    has_own_grid = free and solver.has_own_grid
    if has_own_grid:
        start, gridded = problem.on_own_grid(solver, aimed, known)
    elif is_free and zero is None and solver.value != "none":
        scale = problem.searched(solver, aimed, known)
        start = problem.cut(np.asarray(problem.scales.matrices(np.asarray(scale_values(scale)))))
    levels, scales = plain, start
    if known is not None or start is not problem.own:
        levels, scales = gridded.rounded(solver, aimed, known, start, is_free=free)
    rounded = gridded.values(levels, scales)
    (lost, of_nearest, power), more = _lost(problem, [rounded - aimed, nearest - aimed, aimed], norm, extra)
    if free and not has_own_grid:  # an output that a solver made worse keeps the nearest
        worse = ~(lost + more[0] <= of_nearest + more[1])[:, None]
        lost = np.where(worse[:, 0], of_nearest, lost)
        levels, scales = np.where(worse, plain, levels), np.where(worse, problem.own, scales)
        rounded = np.where(worse, nearest, rounded)
    if free:
        scale = stored(jnp.asarray(problem.scales.scale(problem.joined(scales))), spec, problem.operand)
        zero = None if gridded.zero is None else jnp.asarray(problem.scales.scale(problem.joined(gridded.zero)))
    taken, back = {}, rounded
    if remainder is not None and own:
        taken, more = remainder.taken(own, aimed - rounded, moment)
        back = rounded + more
        ((lost,), _) = _lost(problem, [back - aimed], norm, extra)
    return Solved(
        codes=encoded(spec.format, np.asarray(view.leaf(problem.joined(levels)))),
        values=jnp.asarray(view.leaf(problem.joined(rounded)).astype(weight.dtype)),
        scale=scale,
        zero=zero,
        taken=taken,
        shift=None if inputs is None else inputs.shift(problem.w, back),
        error=float(np.sum(lost)),
        nearest=float(np.sum(of_nearest)),
        power=float(np.sum(power)),
        noise=float(np.sum(np.square(problem.w - back, dtype=np.float64))),
        size=float(np.sum(np.square(problem.w, dtype=np.float64))),
        clipped=gridded.clipped(scales),
        loose=loose,
        few=0.0 if inputs is None else inputs.few,
        is_definite=definite,
        is_empty=empty.reshape(view.size[0], parts).all(axis=1),
    )


def _lost(problem: Problem, offs: list[np.ndarray], moment: Any, extra: Any) -> tuple[np.ndarray, np.ndarray]:
    """Squared sizes of several changes of a weight by output, ``[change, matrix, N]``, and what the damping adds.

    In the norm of ``H``, and by ``extra`` on its diagonal; without ``H`` of the weight itself, and zeros.
    """
    if moment is None:
        squares = np.stack([np.sum(np.square(off), axis=1) for off in offs])
        return squares, np.zeros_like(squares)
    matrices, _, columns = offs[0].shape
    sizes = _in_norm(jnp.asarray(np.concatenate([problem.full(off) for off in offs], axis=2)), moment, extra)
    apart = np.asarray(sizes).reshape(len(moment), 2, len(offs), -1)
    squares, more = (apart[:matrices, i, :, :columns].swapaxes(0, 1) for i in range(2))
    return squares, more


@jax.jit
def _in_norm(off: Array, moment: Array, extra: Array) -> Array:
    """One product for all changes, which stand beside each other."""

    def one(off: Array, moment: Array, extra: Array) -> Array:
        squares = jnp.sum(off * jnp.matmul(moment, off, precision=jax.lax.Precision.HIGHEST), axis=0)
        return jnp.stack([squares, jnp.matmul(extra, jnp.square(off), precision=jax.lax.Precision.HIGHEST)])

    return over_matrices(one, off, moment, extra)


@functools.partial(jax.jit, static_argnames=("damping", "order"))
def _factors(moment: Array, damping: float, order: str) -> tuple[Factor, Array]:
    """The factors, and which of them there are."""
    known = over_matrices(lambda h: factor(h, damping=damping, order=order), moment)
    is_definite = jnp.all(jnp.isfinite(known.feedback), axis=(1, 2)) & jnp.all(known.variance > 0, axis=1)
    return known, is_definite


@jax.jit
def _aimed(weight: Array, moment: Array, cross: Array, alpha: Any, ridge: Any) -> Array:
    return over_matrices(lambda w, h, c: target(w, h, c, alpha=alpha, damping=ridge), weight, moment, cross)


def _loose(known: Factor, damping: float, matrices: int, inner: int) -> float:
    """The share of inputs whose variance, later ones known, is hardly more than the damping."""
    dead, variance = (np.asarray(x)[:matrices, :inner] for x in (known.is_dead, known.variance))
    mean = np.mean(np.einsum("mkk->mk", np.asarray(known.damped)[:matrices, :inner, :inner]), axis=1, keepdims=True)
    return float(np.mean((variance < 2.0 * damping * mean) & ~dead))
