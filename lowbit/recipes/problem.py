"""A weight on the host as matrices filled up to few shapes, and the programs that search its scales and round it."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lowbit.core.grid import Grid, nearest_levels
from lowbit.core.matrix import MatrixView, ScaleView
from lowbit.core.qtensor import QTensor
from lowbit.core.rounding import SMALLEST_SCALE, rounded_product
from lowbit.core.scales import scale_of_zeros, stored_scale
from lowbit.core.spec import Operand, Spec
from lowbit.formats.integer import Integer
from lowbit.solvers.factor import Factor
from lowbit.solvers.shapes import filled, group_sums, over_matrices, padded

from .recipe import Solver

_SMALLEST, _LARGEST, _LARGEST_UNEVEN = 0.4, 1.1, 1.6
"""Multiples of the full range between which scales are tried; smaller for 2 and 3 bits of heavy tails never was better.

Where levels are not evenly spaced, the largest value may lie best on the second largest level: up to 1.6, nvfp4 loses 10 % less on
normal weights, signed nf4 2 %.
"""


@dataclasses.dataclass(frozen=True)
class Problem:
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
        parts: into how many groups of neighbouring outputs every matrix is cut: each counts as a matrix above.
    """

    spec: Spec
    operand: Operand
    w: np.ndarray
    group: np.ndarray
    scales: ScaleView
    index: np.ndarray
    own: np.ndarray
    zero: np.ndarray | None
    parts: int = 1

    @classmethod
    def of(
        cls, spec: Spec, view: MatrixView, stack: int, weight: Any, scale: Any, zero: Any, parts: int = 1
    ) -> "Problem":
        """Returns the problem of a leaf; see `lowbit.recipes.solve.solve`."""
        group, scales = view.groups(spec, stack)
        shape = scales.scale_shape
        index = np.asarray(scales.matrices(np.arange(int(np.prod(shape))).reshape(shape)))
        operand = Operand(view.shape, contract=view.contract, stack=stack)
        w = np.asarray(view.matrices(np.asarray(weight).astype(np.float32)))
        point = None if zero is None else np.asarray(scales.matrices(np.asarray(zero, np.float32)))
        own = np.asarray(scales.matrices(np.asarray(scale_values(scale))))
        whole = cls(spec, operand, w, np.asarray(group), scales, index, own, point, parts)
        point = None if point is None else whole.cut(point)
        return dataclasses.replace(whole, w=whole.cut(w), index=whole.cut(index), own=whole.cut(own), zero=point)

    def cut(self, x: np.ndarray) -> np.ndarray:
        """Returns ``[matrix, ..., N]`` with its groups of outputs as matrices."""
        if self.parts == 1:
            return x
        matrices, rows, columns = x.shape
        apart = x.reshape(matrices, rows, self.parts, columns // self.parts)
        return np.moveaxis(apart, 2, 1).reshape(matrices * self.parts, rows, -1)

    def joined(self, x: np.ndarray) -> np.ndarray:
        """Returns groups of outputs as the matrices that they are of."""
        if self.parts == 1:
            return x
        count, rows, columns = x.shape
        apart = x.reshape(count // self.parts, self.parts, rows, columns)
        return np.moveaxis(apart, 1, 2).reshape(count // self.parts, rows, -1)

    @property
    def size(self) -> tuple[int, int, int]:
        """The shape that it is filled up to."""
        return padded(self.w.shape)

    def full(self, x: np.ndarray) -> np.ndarray:
        """Returns an array of the weight's shape, filled up."""
        return filled(x, self.size)

    def square(self, x: np.ndarray) -> np.ndarray:
        """Returns ``[matrix, K, K]``, filled up."""
        matrices, inner, _ = self.size
        return filled(x, (matrices, inner, inner))

    def grouped(self, x: np.ndarray, value: float) -> np.ndarray:
        """Returns ``[matrix, group, N]``, filled up with a value."""
        matrices, _, columns = self.size
        return filled(x, (matrices, x.shape[1], columns), value)

    @property
    def rows(self) -> np.ndarray:
        """The group of every row, filled up."""
        return filled(self.group, self.size[1:2])

    @property
    def runs(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows in the order of their groups, and where each group begins in it."""
        order = np.argsort(self.group, kind="stable")
        return order, np.searchsorted(self.group[order], np.arange(self.index.shape[1]))

    @property
    def numbers(self) -> tuple[Any, np.ndarray | None]:
        """The format, and bounds of levels as data where it is an integer."""
        number_format = self.spec.format
        if type(number_format) is not Integer:
            return number_format, None
        return Integer(8, signed=number_format.signed), np.array([number_format.low, number_format.high], np.float32)

    def searched(self, solver: Solver, aimed: np.ndarray, known: Factor | None) -> Any:
        """The scales with the least weighed error among multiples of the full range, as they are stored; shared ones together."""
        matrices, groups, columns = self.index.shape
        order, starts = self.runs
        if groups == 1:
            local = np.abs(self.w).max(axis=1, keepdims=True)
        else:
            local = np.maximum.reduceat(np.abs(self.w[:, order]), starts, axis=1)
        count = int(np.prod(self.scales.scale_shape))
        reach = np.zeros(count, np.float32)
        np.maximum.at(reach, self.index, local)
        extent = np.float32(1.0 / self.spec.format.reach)
        whole = np.where(reach == 0, np.float32(scale_of_zeros(self.spec)), np.maximum(reach * extent, SMALLEST_SCALE))
        weighs = self.weighs(solver, known)
        largest = _LARGEST if self.spec.format.is_integer else _LARGEST_UNEVEN
        tried = np.linspace(_SMALLEST, largest, solver.steps, dtype=np.float32)
        if self.spec.has_signed_scales:  # the levels that reach further are turned to the side that needs them
            tried = np.concatenate([tried, -tried])
        numbers, bounds = self.numbers
        is_tied = self.scales.is_tied
        by_group = np.asarray(
            _searched(
                jnp.asarray(self.full(aimed)), jnp.asarray(weighs), jnp.asarray(self.grouped(whole[self.index], 1.0)),
                jnp.asarray(self.rows), tried, bounds, numbers=numbers, spec=_shared(self.spec), is_tied=is_tied,
            )
        )  # fmt: skip
        by_group = by_group[..., :matrices, :groups, :columns]
        if is_tied:
            losses = np.zeros((len(tried), count))
            for total, loss in zip(losses, by_group / self.energy(aimed, np.asarray(weighs)), strict=True):
                np.add.at(total, self.index, loss)
            losses[self.clips(whole, count, tried)] = np.inf
            multiple = tried[np.argmin(losses, axis=0)]
        else:
            multiple = np.zeros(count, np.float32)
            multiple[self.index] = by_group
        shape = self.scales.scale_shape
        return stored(jnp.asarray((whole * multiple).reshape(shape)), self.spec, self.operand)

    def clips(self, whole: np.ndarray, count: int, tried: np.ndarray) -> np.ndarray:
        """Returns which multiples clip some output too much, ``[tried, scale]``: by more energy than rounding on the whole range costs it.

        What calibration inputs say of an entry is not enough to clip it by: one weight a hundred times the others, whose input the
        others predict, carries the outliers that a transformer makes for a few tokens and needs.
        """
        order, starts = self.runs
        sizes = np.diff(np.append(starts, self.group.size))[None, :, None]
        reach, step = (x[self.index] for x in (whole * self.spec.format.reach, whole))
        magnitude = np.abs(self.w[:, order])
        is_clipped = np.zeros((len(tried), count), bool)
        for at, multiple in zip(is_clipped, np.abs(tried), strict=True):
            over = np.maximum(magnitude - multiple * np.repeat(reach, sizes.ravel(), axis=1), 0.0)
            lost = np.add.reduceat(np.square(over), starts, axis=1)
            np.logical_or.at(at, self.index, lost > sizes * np.square(step) / 12)
        return is_clipped

    def energy(self, w: np.ndarray, weighs: np.ndarray) -> np.ndarray:
        """Returns what every output is worth in the search of a scale that outputs share, ``[matrix, 1, N]``: its own power.

        Its error counts relative to that: an output that calibration inputs hardly move would else be clipped away.
        """
        matrices, inner, _ = self.w.shape
        power = np.sum(weighs[:matrices, :inner, None] * np.square(w), axis=1, keepdims=True)
        return np.where(power > 0, power, 1.0)

    def weighs(self, solver: Solver, known: Factor | None) -> Any:
        """Returns what an error of every row counts, ``[matrix, K]``, filled up: zeros without inputs."""
        if known is not None and solver.value in ("conditional", "diagonal"):
            return known.variance if solver.value == "conditional" else jnp.diagonal(known.damped, axis1=1, axis2=2)
        return filled(np.ones(self.w.shape[:2], np.float32), self.size[:2])

    def on_own_grid(self, solver: Solver, aimed: np.ndarray, known: Factor | None) -> tuple[np.ndarray, "Problem"]:
        """Returns the scales ``[matrix, group, N]`` that a solver chooses itself, and the problem with its zero points."""
        numbers, bounds = self.numbers
        zero = None if self.zero is None else jnp.asarray(self.grouped(self.zero, 0.0))
        own_grid = _gridded(
            solver, jnp.asarray(self.full(aimed)), jnp.asarray(self.weighs(solver, known)),
            jnp.asarray(self.grouped(self.own, 1.0)), zero, jnp.asarray(self.rows), bounds,
            numbers=numbers, spec=_shared(self.spec),
        )  # fmt: skip
        matrices, groups, columns = self.index.shape
        scale, zero = (None if x is None else np.asarray(x)[:matrices, :groups, :columns] for x in own_grid)
        assert scale is not None
        return scale, dataclasses.replace(self, zero=zero)

    def rounded(
        self, solver: Solver, aimed: np.ndarray, known: Factor | None, now: np.ndarray, *, is_free: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns levels, and scales ``[matrix, group, N]``, starting from scales of that shape."""
        if known is None:
            return self.nearest(aimed, now), now
        numbers, bounds = self.numbers
        zero = None if self.zero is None else jnp.asarray(self.grouped(self.zero, 0.0))
        levels, scales = _rounded(
            solver, jnp.asarray(self.full(aimed)), jnp.asarray(self.grouped(now, 1.0)), known, zero,
            jnp.asarray(self.rows), bounds, numbers=numbers, spec=_shared(self.spec) if is_free else None,
        )  # fmt: skip
        matrices, inner, columns = self.w.shape
        return np.asarray(levels)[:matrices, :inner, :columns], np.asarray(scales)[:matrices, :, :columns]

    def nearest(self, x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Returns the nearest level of every entry, as `lowbit.core.grid.nearest_levels` on the host where it is an integer."""
        numbers = self.spec.format
        rows = scale[:, self.group]
        zero = None if self.zero is None else self.zero[:, self.group]
        if type(numbers) is not Integer:
            return np.asarray(_nearest(x, rows, zero, numbers=numbers))
        shift = np.float32(0) if zero is None else zero
        place = np.clip(x * (np.float32(1) / rows), np.float32(numbers.low) - shift, np.float32(numbers.high) - shift)
        return np.rint(place) + shift

    def values(self, levels: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Returns ``(level - zero) * scale``, rounded once; float32."""
        shift = np.float32(0) if self.zero is None else self.zero[:, self.group]
        return (levels - shift) * scale[:, self.group]

    def clipped(self, scale: np.ndarray) -> float:
        """Returns the share of entries beyond the range."""
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


def scale_values(scale: Any) -> Any:
    """Returns scales as numbers, also where they are themselves quantized."""
    return scale.dequantize() if isinstance(scale, QTensor) else scale


stored = jax.jit(stored_scale, static_argnums=(1, 2))
"""`stored_scale`, compiled."""


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

    def loss(multiple: Array) -> Array:
        scale: Any = whole * multiple
        scale = stored_scale(scale, spec, None) if spec.scale.spec is None else scale
        rows = scale[:, group]
        grid = Grid(scale, None, group, numbers, bounds)
        off = rounded_product(grid.nearest_levels(w, rows, None), rows) - w
        return over_matrices(lambda x: group_sums(x, group, count), value[:, :, None] * jnp.square(off))

    if is_tied:
        return jax.lax.map(loss, tried)

    def better(best: tuple[Array, Array], multiple: Array) -> tuple[tuple[Array, Array], None]:
        least, kept = best
        now = loss(multiple)
        return (jnp.minimum(least, now), jnp.where(now < least, multiple, kept)), None

    start = jnp.full(whole.shape, jnp.inf), jnp.ones(whole.shape)
    (_, multiple), _ = jax.lax.scan(better, start, tried)
    return multiple


@functools.partial(jax.jit, static_argnames=("numbers",))
def _nearest(x: Array, rows: Array, zero: Array | None, *, numbers: Any) -> Array:
    return nearest_levels(x, rows, zero, numbers)


def encoded(numbers: Any, levels: np.ndarray) -> Array:
    """Returns the codes of levels, as the format stores them."""
    return (
        jnp.asarray(levels.astype(np.int8 if numbers.is_signed else np.uint8))
        if _is_byte(numbers)
        else _codes(levels, numbers)
    )


def _is_byte(numbers: Any) -> bool:
    return type(numbers) is Integer and numbers.bits <= 8


@functools.partial(jax.jit, static_argnums=(1,))
def _codes(levels: Array, numbers: Any) -> Array:
    return numbers.encode(levels)


@functools.partial(jax.jit, static_argnames=("solver", "numbers", "spec"))
def _gridded(
    solver: Solver, aimed: Array, value: Array, scale: Array, zero: Array | None, group: Array, bounds: Any, *,
    numbers: Any, spec: Spec,
) -> tuple[Array, Array | None]:  # fmt: skip
    def one(w: Array, value: Array, scale: Array, zero: Array | None) -> tuple[Array, Array | None]:
        grid = solver.grid(w, value, Grid(scale, zero, group, numbers, bounds), lambda s: stored_scale(s, spec, None))
        return grid.scale, grid.zero

    return over_matrices(one, aimed, value, scale, zero)


@functools.partial(jax.jit, static_argnames=("solver", "numbers", "spec"))
def _rounded(
    solver: Solver, aimed: Array, scale: Array, known: Factor, zero: Array | None, group: Array, bounds: Any, *,
    numbers: Any, spec: Spec | None,
) -> tuple[Array, Array]:  # fmt: skip
    store = None if spec is None else (lambda s: stored_scale(s, spec, None))

    def one(w: Array, scale: Array, known: Any, zero: Array | None) -> tuple[Array, Array]:
        grid = Grid(scale, zero, group, numbers, bounds)
        levels = solver.round(w, known, grid)
        if solver.rounds:
            levels, grid = solver.polished(w, levels, known, grid, store)
        return levels, grid.scale

    return over_matrices(one, aimed, scale, known, zero)
