"""The quantized form of a full-integer plan: its integer arithmetic, dots, convolutions and rescaling on quantized types.

What is typed: arguments and results, weights, dots and convolutions with their int32 accumulators, integer biases, and every
way from an accumulator back to a grid, which is ``uniform_quantize``. Between those, integers: tables, movements, the sums of
softmax and normalizations are the plan's own. So accumulators are exactly the plan's, and rescaling alone rounds otherwise.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int8, Int32

from lowbit.core.qtensor import QTensor
from lowbit.export.universal.full_integer import weight_of
from lowbit.export.universal.values import scalar_grid
from lowbit.interpret.integer import compute, run
from lowbit.interpret.integer.contraction import result_scale
from lowbit.interpret.integer.fixed import rounding_named
from lowbit.interpret.integer.flat import Constants
from lowbit.interpret.integer.interpretations import specs_of
from lowbit.interpret.integer.joined import Joined
from lowbit.interpret.integer.kind import Movement
from lowbit.interpret.integer.linear import Linear
from lowbit.interpret.integer.nodes import Node, Placement
from lowbit.interpret.integer.ops import kind_named
from lowbit.interpret.integer.plans import program_for
from lowbit.interpret.integer.run import Arithmetic
from lowbit.interpret.trace import Trace
from lowbit.packed.trees import QParams
from lowbit.plan.rows import Plan
from lowbit.program.read import Value

from . import operations
from .products import Operand, product, weight_operand
from .types import QuantType

_ONE = 2.0**-20
"""How far a step may be from the product of two scales and still be it: multipliers are float32 numbers."""

_LEAST = 2.0**-40
"""What a multiplier of 0 becomes, of which no type is: no int32 sum reaches half a step with it."""


def results(plan: Plan, traced: Trace, qparams: QParams, *, has_integer_io: bool) -> list[Any]:
    """Returns the flat results of a call.

    Args:
        plan: the plan.
        traced: of the call on ``qparams``.
        qparams: unpacked; codes may be traced, everything else is values.
        has_integer_io: whether arguments are codes, and results shall be.
    """
    program = program_for(plan, traced)
    known = Constants.of(program.flat, traced.leaves)
    arithmetic = _Typed(plan, program, qparams, known)

    def enter(var: Value, x: Any) -> Any:
        return x if has_integer_io else operations.quantize(x.astype(jnp.float32), arithmetic.type(var))

    def leave(var: Value, x: Any) -> Any:
        return x if has_integer_io else operations.dequantize(x, arithmetic.type(var)).astype(var.dtype)

    return run.results(program, traced, known, arithmetic, enter, leave)


def boundary(plan: Plan, qparams: QParams, grids: Sequence[str]) -> list[QuantType | None]:
    """Returns the types of arguments or results by the paths of their grids; None where there is none."""
    return [_grid(plan, qparams, path) if path else None for path in grids]


def _grid(plan: Plan, qparams: QParams, path: str) -> QuantType:
    spec = plan.grids()[path].spec
    assert spec is not None
    grid = QuantType.of(scalar_grid(spec, qparams.sites[path]))
    if not grid.has_zero_inside:
        raise ValueError(
            f"no quantized type describes the grid of {path}: its zero point {grid.zero[0]} lies outside {grid.low} to "
            f"{grid.high}; leave the targets of quantized types out, or calibrate a range that has 0 in it"
        )
    return grid


class _Typed(Arithmetic):
    """The arithmetic of `lowbit.execute`, linear operations on quantized types.

    Args:
        plan: the plan.
        program: its integer form.
        qparams: unpacked.
        known: values of what is neither data nor dropped.
    """

    def __init__(self, plan: Plan, program: Placement, qparams: QParams, known: Constants):
        specs = specs_of(plan)
        self.plain: dict[str, QTensor] = {}
        rounding = rounding_named(plan.rounding)
        super().__init__(program, specs, rounding, qparams.sites, self.plain, known, carried=False)
        self.plan, self.qparams = plan, qparams
        self.grids = {path: _grid(plan, qparams, path) for path in specs}
        self.tight: dict[Value, QuantType] = {}

    def type(self, var: Value) -> QuantType:
        """The type of a value: its grid, with the bounds of what made it."""
        return self.tight.get(var, self.grids[self.program.grids[var]])

    def __call__(self, node: Node, codes: Sequence[Any]) -> list[Any]:
        c, kind = self.numbers.get(node.path, {}), kind_named(node.kind)
        if isinstance(kind, Linear):
            acc, scale = self.sum(node, kind, codes, c)
            return [self.rescaled(node, acc, scale, c)]
        if isinstance(kind, Joined):
            acc = kind.accumulate(self.taken(node, codes))
            step = self.grid(node).scale[0] * 2.0 ** -float(np.asarray(c["shift"]))
            return [self.narrowed(node, acc, QuantType.accumulator((step,)), c)]
        if (
            isinstance(kind, Movement) and not kind.joins
        ):  # padding is the zero point, which lies between any bounds of a type
            self.tight.update(dict.fromkeys(node.outs, self.type(node.ins[0])))
        return super().__call__(node, codes)

    def grid(self, node: Node) -> QuantType:
        """The type of a node's grid."""
        return self.grids[self.program.grids[node.out]]

    def sum(
        self, node: Node, kind: Linear, codes: Sequence[Any], c: Mapping[str, Any]
    ) -> tuple[Int32[Array, "..."], np.ndarray]:
        """The accumulator of a linear node, and the value of one of its steps, which broadcasts to it."""
        step = self.step(node, c)
        if node.op is None:
            return kind.accumulate(self.taken(node, codes)), step
        equation, weight = node.equations[0], weight_of(node, self.plan, self.qparams, self.known)
        operands = [Operand(x, self.type(v)) for x, v in zip(codes, node.ins, strict=True)]
        scale = np.asarray(math.prod(self.type(v).scale[0] for v in node.ins))
        at = 0 if equation.ins[1].is_data else 1
        if weight is not None:
            scale = scale * np.asarray(result_scale(equation, weight), np.float64)
        acc = product(equation.eqn, operands, weight, at)
        if acc is None:  # no type has it: scales along two axes of a weight with batches, three spatial axes
            if weight is not None:
                typed = weight_operand(weight)
                plain = weight.unpacked_codes().astype(jnp.int8) if typed is None else typed[0]
                self.plain[node.path] = dataclasses.replace(weight, codes=plain)
            acc = kind.accumulate(self.taken(node, codes))
        is_same = bool(np.all(np.abs(step - scale) <= _ONE * scale))
        return acc, np.asarray(scale if is_same else step)

    def step(self, node: Node, c: Mapping[str, Any]) -> np.ndarray:
        """The value of one step of the accumulator with all that the node absorbs."""
        multiplier = np.asarray(c["multiplier"], np.float64) * 2.0 ** (-31.0 - np.asarray(c["shift"], np.float64))
        return np.asarray(np.where(multiplier == 0.0, _LEAST, multiplier) * self.grid(node).scale[0])

    def rescaled(self, node: Node, acc: Array, step: np.ndarray, c: Mapping[str, Any]) -> Int8[Array, "..."]:
        """The codes of an accumulator: bias, ``uniform_quantize``, bounds."""
        bias, beyond = np.asarray(c["bias"]), np.asarray(c["offset"]) - self.grid(node).zero[0]
        if bool(np.any(beyond)):  # a bias of more steps than the accumulator has: the plan's own arithmetic
            return compute.linear(acc, c, self.rounding, jnp.int8)
        if bool(np.any(step < 0.0)):
            sign = np.sign(step).astype(np.int32)
            acc, bias, step = acc * jnp.asarray(sign), bias * sign, np.abs(step)
        acc, step, bias, restore = _one_axis(acc, step, bias)
        axes = [i for i, n in enumerate(step.shape) if n != 1]
        of = QuantType.accumulator(tuple(step.ravel().tolist()), axes[0] if axes else None)
        if bool(np.any(bias)):
            acc = operations.plus(acc, of, bias)
        return restore(self.narrowed(node, acc, of, c))

    def narrowed(self, node: Node, acc: Array, of: QuantType, c: Mapping[str, Any]) -> Int8[Array, "..."]:
        """The codes of an accumulator between the node's bounds."""
        low, high = int(np.asarray(c["low"])), int(np.asarray(c["high"]))
        grid = self.grid(node)
        tight = grid.between(low, high)
        if tight.has_zero_inside:
            self.tight[node.out] = tight
            return operations.requantize(acc, of, tight)
        codes = operations.requantize(acc, of, grid)
        return jnp.clip(codes, jnp.int8(low), jnp.int8(high))


def _one_axis(acc: Array, step: np.ndarray, bias: np.ndarray) -> tuple[Array, np.ndarray, np.ndarray, Any]:
    """The same with steps that differ along one axis at most, and what brings the result back.

    A type has scales along one axis: axes along which steps differ are moved to the end and joined.
    """
    step, bias = (x.reshape((1,) * (acc.ndim - x.ndim) + x.shape) for x in (step, bias))
    varying = [i for i, n in enumerate(step.shape) if n != 1]
    if len(varying) <= 1:
        return acc, step, bias, lambda y: y
    rest = [i for i in range(acc.ndim) if i not in varying]
    order, inner = [*rest, *varying], [acc.shape[i] for i in varying]
    step, bias = (
        np.broadcast_to(x, [acc.shape[i] if i in varying else n for i, n in enumerate(x.shape)]) for x in (step, bias)
    )

    def joined(x: Any) -> Any:
        return x.transpose(order).reshape(*(x.shape[i] for i in rest), -1)

    def restored(y: Array) -> Array:
        return y.reshape(*y.shape[:-1], *inner).transpose([order.index(i) for i in range(acc.ndim)])

    return joined(acc), joined(step), joined(bias), restored
