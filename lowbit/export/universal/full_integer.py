"""The universal form of a full-integer plan: every integer node as the float operation it stands for, then its grid.

A packed full-integer model holds no float parameter. The floats written here are those of its integers: a multiplier is
the weight's scale (a factor absorbed from a batch norm stays in it), a bias is its steps times the accumulator's scale. A
compiler that quantizes them again finds the same integers.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lowbit.core.qtensor import QTensor
from lowbit.export.composites import Grid, dequantize, fake_quant, quantize
from lowbit.interpret.integer import run
from lowbit.interpret.integer.contraction import groups_of, result_scale
from lowbit.interpret.integer.fixed import rounding_named
from lowbit.interpret.integer.flat import Constants
from lowbit.interpret.integer.grouped import Grouped, multipliers
from lowbit.interpret.integer.interpretations import specs_of
from lowbit.interpret.integer.kind import Movement
from lowbit.interpret.integer.nodes import Node, Placement
from lowbit.interpret.integer.ops import kind_named
from lowbit.interpret.integer.ops.lookup import picking
from lowbit.interpret.integer.plans import program_for
from lowbit.interpret.integer.run import Arithmetic
from lowbit.interpret.matmul import Matmul
from lowbit.interpret.trace import Trace
from lowbit.packed.trees import Dropped, QParams
from lowbit.plan.rows import Plan
from lowbit.program import compat
from lowbit.program.read import Value

from .dense import Dense
from .values import in_float32, scalar_grid, weight_grid, weight_value

_ONE = 2.0**-20
"""How far a factor may be from 1 and still be left out: multipliers are float32 numbers."""


def results(plan: Plan, traced: Trace, qparams: QParams, *, has_integer_io: bool) -> list[Any]:
    """Returns the flat results of a call.

    Args:
        plan: the plan.
        traced: of the call on ``qparams``.
        qparams: unpacked; codes may be traced, everything else is values.
        has_integer_io: whether arguments are codes, and results shall be.

    Raises:
        ValueError: where a node depends on a parameter that a packed model does not hold.
    """
    program = program_for(plan, traced)
    known, sites = Constants.of(program.flat, traced.leaves), plan.grids()
    grids = {path: scalar_grid(site.spec, qparams.sites[path]) for path, site in sites.items() if site.spec is not None}

    def enter(var: Value, x: Any) -> Any:
        grid = grids[program.grids[var]]
        return dequantize(x, grid) if has_integer_io else fake_quant(x.astype(jnp.float32), grid)

    def leave(var: Value, x: Any) -> Any:
        return quantize(x, grids[program.grids[var]]) if has_integer_io else x.astype(var.dtype)

    return run.results(program, traced, known, _Maker(plan, program, qparams, known, grids), enter, leave)


class _Maker:
    """What a node makes in float32, on its grid.

    Args:
        plan: the plan.
        program: its integer form.
        qparams: unpacked.
        known: values of what is neither data nor dropped.
        grids: by path.
    """

    def __init__(self, plan: Plan, program: Placement, qparams: QParams, known: Constants, grids: Mapping[str, Grid]):
        self.plan, self.program, self.qparams, self.known, self.grids = plan, program, qparams, known, grids
        self.sites = plan.grids()
        rounding = rounding_named(plan.rounding)
        self.arithmetic = Arithmetic(program, specs_of(plan), rounding, qparams.sites, {}, known, carried=False)

    def __call__(self, node: Node, values: Sequence[Array]) -> list[Any]:
        kind = kind_named(node.kind)
        if isinstance(kind, Movement):
            return kind.moved(node, values, jnp.float32(0.0), self.known.value)
        grid = self.grid(node.out)
        if not node.equations:
            codes = self.qparams.sites[node.path]["codes"]
            return [jnp.broadcast_to(dequantize(codes, grid), node.out.shape)]
        bits = self.grid(node.ins[0]).bits if kind.reads_grids else 0
        if kind.needs_codes(bits=bits, is_known=self.is_known(node)):
            codes = [quantize(x, self.grid(v)) for x, v in zip(values, node.ins, strict=True)]
            return [dequantize(x, grid) for x in self.arithmetic(node, codes)]
        return [fake_quant(self.value(node, values), grid)]

    def grid(self, var: Value) -> Grid:
        """The grid of a value."""
        return self.grids[self.program.grids[var]]

    def is_known(self, node: Node) -> bool:
        """Whether a packed model holds all that a node's definition takes."""
        results = {v for e in node.equations for v in e.outs}
        ins = [v for e in node.equations for v in e.ins if v not in results and not v.is_data]
        return not any(isinstance(self.known.raw(v), Dropped) for v in ins)

    def value(self, node: Node, values: Sequence[Array]) -> Array:
        """The value of a node before it is rounded to its grid."""
        weight = weight_of(node, self.plan, self.qparams, self.known)
        if weight is not None and not kind_named(node.kind).reads_grids:
            table = weight_value(weight, weight_grid(weight))
            equation, at = node.equations[0], picking(node, values, self.known.value)
            changes = kind_named(node.kind).changes(equation)
            return compat.rebind(equation.eqn, [table, *at], **changes)[0].astype(jnp.float32)
        if weight is not None:
            return self.clipped(node, self.weighted(node, values[0], weight))
        if self.is_known(node):
            xs = [x.astype(v.dtype) for v, x in zip(node.ins, values, strict=True)]
            return self.defined(node, xs).astype(jnp.float32)
        return self.clipped(node, self.rebuilt(node, values))

    def defined(self, node: Node, values: Sequence[Array]) -> Array:
        """The node's own equations: a relu is a maximum, which compilers fuse, not the selection that has a gradient."""
        env: dict[Value, Any] = dict(zip(node.ins, values, strict=True))
        for equation in node.equations:
            operands = [env[v] if v in env else self.known.value(v) for v in equation.ins]
            env.update(zip(equation.outs, compat.rebind(equation.eqn, operands), strict=True))
        return env[node.out]

    def steps(self, node: Node) -> tuple[np.ndarray, np.ndarray]:
        """The value of one step of the accumulator, and the addend, in float64, shaped to the result."""
        c = {name: np.asarray(x, np.float64) for name, x in self.qparams.sites[node.path].items() if name in _FIXED}
        grid = self.grid(node.out)
        out = np.float64(grid.scale[0])
        step = c["multiplier"] * 2.0 ** (-31.0 - c["shift"]) * out
        bias = c["bias"] + 256.0 * c.get("bias_high", 0.0)
        return np.asarray(step), np.asarray(bias * step + (c["offset"] - grid.zero_point[0]) * out)

    def weighted(self, node: Node, x: Array, weight: QTensor) -> Array:
        """A dot or convolution with a weight, absorbed factors in the weight's scale, and its bias."""
        equation, rank = node.equations[0], len(node.out.shape)
        at = 0 if equation.ins[1].is_data else 1
        step, addend = self.steps(node)
        x_scale = np.float64(self.grid(node.ins[0]).scale[0])
        groups = self.groups(node, weight)
        unit = result_scale(equation, weight) if groups is None else multipliers(groups, weight)[1]
        factor = np.asarray(step / (np.asarray(unit, np.float64) * x_scale))
        matmul = Matmul.of(equation.eqn)
        dense = Dense.of(matmul, x.ndim, weight) if at == 1 and groups is None else None
        if dense is not None:
            flat, shift = dense.flat(factor, rank), dense.flat(addend, rank)
            if flat is not None and shift is not None:
                y, flat = _product(dense.product, dense.left(x), dense.weight, flat, 1, (1, -1))
                return dense.restore(_affine(y, flat, shift))
        y, factor = _product(
            functools.partial(in_float32, matmul, dtype=jnp.float32), x, weight, factor, at, _channel(node, weight)
        )
        return _affine(y, factor, addend)

    def groups(self, node: Node, weight: QTensor) -> Grouped | None:
        """How a dot's weight is cut into groups, if it is."""
        spec = self.sites[self.program.grids[node.ins[0]]].spec
        assert spec is not None
        return groups_of(node, weight, spec)

    def rebuilt(self, node: Node, values: Sequence[Array]) -> Array:
        """A linear node whose parameters are dropped: its sum, times its factor, plus its addend."""
        step, addend = self.steps(node)
        scales = [np.float64(self.grid(v).scale[0]) for v in node.ins if v in self.program.grids]
        if node.op is not None:
            left, right = values
            y, unit = in_float32(Matmul.of(node.equations[0].eqn), left, right, jnp.float32), scales[0] * scales[1]
        else:
            bits = self.grid(node.ins[0]).bits
            y, unit = kind_named(node.kind).rebuild(node, values, scales, self.known, bits)
        return _affine(y, np.asarray(step / unit), addend)

    def clipped(self, node: Node, y: Array) -> Array:
        """Bounds that are tighter than the grid's own."""
        grid, c = self.grid(node.out), self.qparams.sites[node.path]
        low, high = int(c["low"]), int(c["high"])
        zero, scale = grid.zero_point[0], np.float32(grid.scale[0])
        if low > grid.bounds[0]:
            y = jnp.maximum(y, np.float32(low - zero) * scale)
        if high < grid.bounds[1]:
            y = jnp.minimum(y, np.float32(high - zero) * scale)
        return y


def weight_of(node: Node, plan: Plan, qparams: QParams, known: Constants) -> QTensor | None:
    """Returns the weight of an operation, as it takes it; None of a node that has none."""
    if node.op is None or (site := plan[node.path].weight) is None:
        return None
    if site.kind != "leaf":
        return qparams.sites[node.path]["weight"]
    return known.raw(next(v for v in node.equations[0].ins if not v.is_data))


_UNIT = np.ones(())
_FIXED = ("multiplier", "shift", "bias", "bias_high", "offset")


def _affine(y: Array, factor: np.ndarray, addend: np.ndarray) -> Array:
    if bool(np.any(np.abs(factor - 1.0) > _ONE)):
        y = y * _aligned(factor, y.ndim)
    return y + _aligned(addend, y.ndim) if bool(np.any(addend)) else y


def _aligned(x: np.ndarray, rank: int) -> Array:
    """A constant in float32, of the rank of a result."""
    return jnp.asarray(x.reshape((1,) * (rank - x.ndim) + x.shape), jnp.float32)


def _product(
    multiply: Callable[..., Array],
    x: Array,
    weight: QTensor,
    factor: np.ndarray,
    at: int,
    channel: tuple[int | None, int],
) -> tuple[Array, np.ndarray]:
    """The product with a weight, and the factor that its scale could not take.

    Args:
        multiply: of two float operands.
        x: the input.
        weight: the weight.
        factor: wanted; broadcasts to the result.
        at: which operand the weight is.
        channel: the weight's axis of output channels, None where there is no single one, and that of the result, from its
            end.
    """
    grid = weight_grid(weight)
    if bool(np.all(np.abs(factor - 1.0) <= _ONE)):
        factor = _UNIT
    elif grid is not None and (scaled := absorbed(weight, grid, factor, *channel)) is not None:
        grid, factor = scaled, _UNIT
    operands = [x]
    operands.insert(at, weight_value(weight, grid))
    return multiply(*operands), factor


def absorbed(weight: QTensor, grid: Grid, factor: np.ndarray, axis: int | None, position: int) -> Grid | None:
    """Returns the weight's grid with a factor in its scale, where both vary along its output channels alone; else None.

    Args:
        weight: the weight.
        grid: its grid.
        factor: broadcasts to the result, last axes first.
        axis: of the weight's output channels, or None where there is no single one.
        position: of the same axis in the result, from its end.
    """
    if axis is None or grid.axis not in (None, axis) or bool(np.any(factor <= 0.0)):
        return None
    n = weight.shape[axis]
    if factor.size != 1 and (factor.size != n or factor.ndim < -position or factor.shape[position] != n):
        return None
    scale = np.broadcast_to(np.asarray(grid.scale, np.float64), n) * np.broadcast_to(factor.ravel(), n)
    zero = tuple(int(z) for z in np.broadcast_to(np.asarray(grid.zero_point), n))
    return dataclasses.replace(grid, scale=tuple(float(np.float32(s)) for s in scale), zero_point=zero, axis=axis)


def _channel(node: Node, weight: QTensor) -> tuple[int | None, int]:
    """The weight's axis of output channels, where there is one, and that of the result, from its end."""
    equation, rank = node.equations[0], len(node.out.shape)
    numbers, at = equation.eqn.params["dimension_numbers"], 0 if equation.ins[1].is_data else 1
    if equation.name == "conv_general_dilated":
        return (numbers.rhs_spec[0], numbers.out_spec[1] - rank) if at == 1 else (None, 0)
    contracted, batch = numbers
    free = [i for i in range(weight.ndim) if i not in (*contracted[at], *batch[at])]
    if len(free) != 1:
        return None, 0
    return free[0], -1 if at == 1 else len(batch[0]) - rank
