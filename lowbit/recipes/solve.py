"""One weight: from its float values and its inputs' moments to levels and scales, one compiled program for many shapes.

Weights are read as matrices and filled up to few shapes (`lowbit.solvers.shapes`), and the bounds of integers are data, so
that a network compiles a handful of programs once, whatever its widths.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from lowbit.core.grid import Grid
from lowbit.core.matrix import MatrixView, ScaleView
from lowbit.core.qtensor import QTensor
from lowbit.core.rounding import SMALLEST_SCALE, rounded_product
from lowbit.core.scales import scale_of_zeros, stored_scale
from lowbit.core.spec import Operand, Spec
from lowbit.formats.integer import Integer
from lowbit.solvers.factor import Factor, factor
from lowbit.solvers.shapes import filled, padded
from lowbit.solvers.target import target

from .inputs import Inputs
from .recipe import Solver

_SMALLEST, _LARGEST = 0.4, 1.1
"""Multiples of the full range between which scales are tried; smaller for 2 and 3 bits of heavy tails never was better."""


@dataclasses.dataclass(frozen=True)
class Solved:
    """What became of a weight. With a target (`lowbit.recipes.inputs`), errors are those against the target.

    Attributes:
        codes: as the format stores them, of the leaf's shape.
        values: on the grid, of the leaf's shape and dtype.
        scale: as it is stored: an array of the scale's shape, or a `QTensor`.
        shift: what a bias must add, ``[matrix, out]``; None where no bias takes means back.
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
    shift: Any
    error: float
    nearest: float
    power: float
    noise: float
    size: float
    clipped: float
    loose: float
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
    """
    problem = _Problem.of(spec, view, stack, weight, scale, zero)
    solver = solver.chosen(spec.format, problem.w.shape[1:])
    aimed, known = problem.w, None
    empty, definite = np.zeros(len(problem.w), bool), np.ones(len(problem.w), bool)
    damped, loose = None, 0.0
    if inputs is not None:
        moment, cross = inputs.centered()
        known = _factors(jnp.asarray(problem.square(moment)), solver.damping, solver.order)
        matrices, inner = problem.w.shape[:2]
        damped = np.asarray(known.damped)[:matrices, :inner, :inner]
        definite = np.asarray(_is_definite(known))[:matrices]
        empty = np.all(np.einsum("mkk->mk", inputs.moment) <= 0, axis=1)
        loose = _loose(known, solver.damping, matrices, inner)
        if cross is not None:
            found = _aimed(
                *(jnp.asarray(x) for x in (problem.full(problem.w), problem.square(moment), problem.square(cross))),
                solver.alpha,
                solver.ridge,
            )
            aimed = np.asarray(found)[:matrices, :inner, : problem.w.shape[2]]
    own = problem.own
    if is_free and zero is None and solver.value != "none":
        scale = problem.searched(solver, aimed, known, solver.value)
    free = is_free and not problem.scales.is_tied and spec.scale.spec is None
    levels, found, nearest, plain, rounded = problem.rounded(solver, aimed, known, _values(scale), is_free=free)
    if free:  # an output that a solver made worse keeps the nearest
        worse = ~(_lost(aimed, rounded, damped) <= _lost(aimed, nearest, damped))[:, None]
        levels, found = np.where(worse, plain, levels), np.where(worse, own, found)
        rounded = np.where(worse, nearest, rounded)
        scale = _stored(jnp.asarray(problem.scales.scale(found)), spec, problem.operand)
    norm = None if inputs is None else moment
    return Solved(
        codes=jnp.asarray(spec.format.encode(view.leaf(jnp.asarray(levels)))),
        values=jnp.asarray(view.leaf(rounded)).astype(weight.dtype),
        scale=scale,
        shift=None if inputs is None else inputs.shift(problem.w, rounded),
        error=float(np.sum(_lost(aimed, rounded, norm))),
        nearest=float(np.sum(_lost(aimed, nearest, norm))),
        power=float(np.sum(_lost(aimed, np.zeros_like(aimed), norm))),
        noise=float(np.sum(np.square(problem.w - rounded, dtype=np.float64))),
        size=float(np.sum(np.square(problem.w, dtype=np.float64))),
        clipped=problem.clipped(found),
        loose=loose,
        is_definite=definite,
        is_empty=empty,
    )


@dataclasses.dataclass(frozen=True)
class _Problem:
    """One weight on the host, and how it is filled up.

    Attributes:
        spec: of the weight.
        operand: of the leaf.
        w: ``[matrix, K, N]``.
        group: of every row.
        scales: how scales are read.
        index: which scale an entry ``[matrix, group, N]`` has, in the order of the scale's leaf.
        own: scales of the quantizer's own grid, ``[matrix, group, N]``.
        zero: its zero points, or None.
    """

    spec: Spec
    operand: Operand
    w: np.ndarray
    group: np.ndarray
    scales: ScaleView
    index: np.ndarray
    own: np.ndarray
    zero: np.ndarray | None

    @classmethod
    def of(cls, spec: Spec, view: MatrixView, stack: int, weight: Any, scale: Any, zero: Any) -> "_Problem":
        group, scales = view.groups(spec, stack)
        shape = scales.scale_shape
        index = scales.matrices(np.arange(int(np.prod(shape))).reshape(shape))
        operand = Operand(view.shape, contract=view.contract, stack=stack)
        w = view.matrices(np.asarray(weight).astype(np.float32))
        point = None if zero is None else scales.matrices(np.asarray(zero, np.float32))
        return cls(
            spec, operand, w, np.asarray(group), scales, index, scales.matrices(np.asarray(_values(scale))), point
        )

    @property
    def size(self) -> tuple[int, int, int]:
        return padded(self.w.shape)

    def full(self, x: np.ndarray) -> np.ndarray:
        return filled(x, self.size)

    def square(self, x: np.ndarray) -> np.ndarray:
        matrices, inner, _ = self.size
        return filled(x, (matrices, inner, inner))

    def grouped(self, x: np.ndarray, value: float) -> np.ndarray:
        matrices, _, columns = self.size
        return filled(x, (matrices, x.shape[1], columns), value)

    @property
    def rows(self) -> np.ndarray:
        return filled(self.group, self.size[1:2])

    @property
    def numbers(self) -> tuple[Any, np.ndarray | None]:
        """The format, and bounds of levels as data where it is an integer."""
        found = self.spec.format
        if type(found) is not Integer:
            return found, None
        return Integer(8, signed=found.signed), np.array([found.low, found.high], np.float32)

    def searched(self, solver: Solver, aimed: np.ndarray, known: Factor | None, value: str) -> Any:
        """The scales with the least weighed error among multiples of the full range, as they are stored; shared ones together."""
        matrices, groups, columns = self.index.shape
        order = np.argsort(self.group, kind="stable")
        starts = np.searchsorted(self.group[order], np.arange(groups))
        local = np.maximum.reduceat(np.abs(self.w[:, order]), starts, axis=1)
        count = int(np.prod(self.scales.scale_shape))
        reach = np.zeros(count, np.float32)
        np.maximum.at(reach, self.index, local)
        extent = np.float32(1.0 / self.spec.format.reach)
        whole = np.where(reach == 0, np.float32(scale_of_zeros(self.spec)), np.maximum(reach * extent, SMALLEST_SCALE))
        _, inner, _ = self.size
        weighs = np.ones((self.size[0], inner), np.float32)
        if known is not None and value != "ones":
            weighs = known.variance if value == "conditional" else jnp.diagonal(known.damped, axis1=1, axis2=2)
        tried = np.linspace(_SMALLEST, _LARGEST, solver.steps, dtype=np.float32)
        if self.spec.has_signed_scales:  # the levels that reach further are turned to the side that needs them
            tried = np.concatenate([tried, -tried])
        numbers, bounds = self.numbers
        is_tied = self.scales.is_tied
        found = np.asarray(
            _searched(
                jnp.asarray(self.full(aimed)), jnp.asarray(weighs), jnp.asarray(self.grouped(whole[self.index], 1.0)),
                jnp.asarray(self.rows), tried, bounds, numbers=numbers, spec=_shared(self.spec), is_tied=is_tied,
            )
        )  # fmt: skip
        found = found[..., :matrices, :groups, :columns]
        if is_tied:
            losses = np.zeros((len(tried), count))
            for i, loss in enumerate(found):
                np.add.at(losses[i], self.index, loss)
            multiple = tried[np.argmin(losses, axis=0)]
        else:
            multiple = np.zeros(count, np.float32)
            multiple[self.index] = found
        shape = self.scales.scale_shape
        return _stored(jnp.asarray((whole * multiple).reshape(shape)), self.spec, self.operand)

    def rounded(
        self, solver: Solver, aimed: np.ndarray, known: Factor | None, scale: Any, *, is_free: bool
    ) -> tuple[np.ndarray, ...]:
        """Returns levels, scales ``[matrix, group, N]``, values of the nearest levels on the own grid, those levels, values."""
        numbers, bounds = self.numbers
        now = self.scales.matrices(np.asarray(scale))
        zero = None if self.zero is None else jnp.asarray(self.grouped(self.zero, 0.0))
        given = [self.full(aimed), self.full(self.w), self.grouped(now, 1.0), self.grouped(self.own, 1.0)]
        levels, found, nearest, plain, values = _rounded(
            solver, *(jnp.asarray(x) for x in given), known, zero, jnp.asarray(self.rows), bounds,
            numbers=numbers, spec=_shared(self.spec) if is_free else None,
        )  # fmt: skip
        matrices, inner, columns = self.w.shape
        kept = [np.asarray(x)[:matrices, :inner, :columns] for x in (levels, nearest, plain, values)]
        scales = np.asarray(found)[:matrices, :, :columns]
        return kept[0], scales, kept[1], kept[2], kept[3]

    def clipped(self, scale: np.ndarray) -> float:
        if not self.spec.format.is_integer:
            return 0.0
        place = self.w * (1.0 / scale[:, self.group])
        shift = 0.0 if self.zero is None else self.zero[:, self.group]
        low, high = self.spec.format.low - shift, self.spec.format.high - shift
        return float(np.mean((place > high + 0.5) | (place < low - 0.5)))


def _shared(spec: Spec) -> Spec:
    """The spec as far as scales depend on it: the same for integers of every width."""
    if type(spec.format) is not Integer:
        return spec
    return dataclasses.replace(spec, format=Integer(8, signed=spec.format.signed, narrow=spec.format.narrow))


def _values(scale: Any) -> Any:
    return scale.dequantize() if isinstance(scale, QTensor) else scale


_stored = jax.jit(stored_scale, static_argnums=(1, 2))


def _lost(weight: np.ndarray, rounded: np.ndarray, moment: np.ndarray | None) -> np.ndarray:
    """Squared error of every output, ``[matrix, N]``: of results in the norm of ``H``; without, of the weight itself."""
    off = rounded - weight
    return np.sum(off * (off if moment is None else moment @ off), axis=1)


@functools.partial(jax.jit, static_argnames=("damping", "order"))
def _factors(moment: Array, damping: float, order: str) -> Factor:
    return jax.vmap(lambda h: factor(h, damping=damping, order=order))(moment)


@jax.jit
def _aimed(weight: Array, moment: Array, cross: Array, alpha: Any, ridge: Any) -> Array:
    return jax.vmap(lambda w, h, c: target(w, h, c, alpha=alpha, damping=ridge))(weight, moment, cross)


@functools.partial(jax.jit, static_argnames=("numbers", "spec", "is_tied"))
def _searched(
    w: Array,
    value: Array,
    whole: Array,
    group: Array,
    tried: Array,
    bounds: Any,
    *,
    numbers: Any,
    spec: Spec,
    is_tied: bool,
) -> Array:
    """Losses ``[tried, matrix, group, N]`` where scales are shared, else the best multiples ``[matrix, group, N]``."""
    count = whole.shape[1]
    total = jax.vmap(lambda x: jax.ops.segment_sum(x, group, count))

    def loss(multiple: Array) -> Array:
        scale = whole * multiple
        scale = stored_scale(scale, spec, None) if spec.scale.spec is None else scale
        rows = scale[:, group]
        grid = Grid(scale, None, group, numbers, bounds)
        off = rounded_product(grid.nearest_levels(w, rows, None), rows) - w
        return total(value[:, :, None] * jnp.square(off))

    if is_tied:
        return jax.lax.map(loss, tried)

    def better(best: tuple[Array, Array], multiple: Array) -> tuple[tuple[Array, Array], None]:
        least, kept = best
        now = loss(multiple)
        return (jnp.minimum(least, now), jnp.where(now < least, multiple, kept)), None

    start = jnp.full(whole.shape, jnp.inf), jnp.ones(whole.shape)
    (_, multiple), _ = jax.lax.scan(better, start, tried)
    return multiple


@functools.partial(jax.jit, static_argnames=("solver", "numbers", "spec"))
def _rounded(
    solver: Solver, aimed: Array, weight: Array, scale: Array, own: Array, known: Factor | None, zero: Array | None,
    group: Array, bounds: Any, *, numbers: Any, spec: Spec | None,
) -> tuple[Array, ...]:  # fmt: skip
    store = None if spec is None else (lambda s: stored_scale(s, spec, None))

    def one(w: Array, plain: Array, scale: Array, own: Array, known: Any, zero: Array | None) -> tuple[Array, ...]:
        grid, before = (Grid(s, zero, group, numbers, bounds) for s in (scale, own))
        levels = grid.levels(w) if known is None else solver.round(w, known, grid)
        if solver.rounds and known is not None:
            levels, grid = solver.polished(w, levels, known, grid, store)
        nearest = before.levels(plain)
        return levels, grid.scale, before.values(nearest), nearest, grid.values(levels)

    axes = (0, 0, 0, 0, None if known is None else 0, None if zero is None else 0)
    return jax.vmap(one, in_axes=axes)(aimed, weight, scale, own, known, zero)


@jax.jit
def _is_definite(known: Factor) -> Array:
    return jnp.all(jnp.isfinite(known.feedback), axis=(1, 2)) & jnp.all(known.variance > 0, axis=1)


def _loose(known: Factor, damping: float, matrices: int, inner: int) -> float:
    """The share of inputs whose variance, later ones known, is hardly more than the damping."""
    dead, variance = (np.asarray(x)[:matrices, :inner] for x in (known.is_dead, known.variance))
    mean = np.mean(np.einsum("mkk->mk", np.asarray(known.damped)[:matrices, :inner, :inner]), axis=1, keepdims=True)
    return float(np.mean((variance < 2.0 * damping * mean) & ~dead))
