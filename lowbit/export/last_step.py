"""How far an output may move where a target rounds the inputs of the last operations in its own way.

A target whose kernels round otherwise may put a value that lies in the middle between two codes on the other one. An output
of an ordinary plan has no grid whose steps could be counted. Its unit is what one step of the last operations' inputs makes:
the input's scale times the largest sum of magnitudes of the weights of one output channel, if every input of the channel
lands on the other code.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from lowbit.interpret.integer.flat import flatten
from lowbit.interpret.trace import Trace
from lowbit.packed.bits import unpack
from lowbit.packed.trees import QParams
from lowbit.plan.rows import Plan
from lowbit.program import primitives, read
from lowbit.program.constants import written_value
from lowbit.program.read import Equation, Value

_KEPT = primitives.MOVES | primitives.EXTREMES | {"clamp", "max", "min", "neg", "select_n"}
"""No result moves further than the operand that moves furthest."""


def last_steps(plan: Plan, traced: Trace, qparams: QParams) -> list[float | None]:
    """Returns, per flat output, what one step of the last operations' inputs moves it by at most.

    None where that is not known: where an operation between two activations, one with float inputs or with scales of run
    time, a loop, or a function that is not linear in pieces comes after the last grid.

    Args:
        plan: an ordinary plan.
        traced: of the exported call on ``qparams``.
        qparams: packed.
    """
    return _Reader(plan, traced, qparams, flatten(traced)).found


class _Reader:
    def __init__(self, plan: Plan, traced: Trace, qparams: QParams, flat: read.Program):
        self.operations = traced.inventory.by_address
        self.rows = {row.path: row for row in plan.rows}
        self.qparams, self.weights = qparams, qparams.weights()
        known: dict[Value, float | None] = {}
        for equation in flat.equations:  # in order, so that no chain is walked twice
            steps = self.equation(equation, [0.0 if not v.is_data else known.get(v, 0.0) for v in equation.ins])
            known |= dict.fromkeys(equation.outs, steps)
        self.found = [known.get(v, 0.0) for v in flat.outs]

    def equation(self, equation: Equation, given: list[float | None]) -> float | None:
        """What the results of an equation may move by."""
        if not any(v.is_data for v in equation.ins):
            return 0.0
        if equation.address in self.operations:
            return self.operation(self.operations[equation.address].path)
        moved = [x for x in given if x is not None]
        if len(moved) != len(given) or equation.call is not None:
            return None
        name = equation.name
        if name in primitives.ADDITIONS:
            return sum(moved)
        if name in _KEPT:
            return max(moved, default=0.0)
        if name == "reduce_sum":
            return moved[0] * math.prod(equation.ins[0].shape[i] for i in equation.eqn.params["axes"])
        if name in ("mul", "div"):
            return _scaled(equation, moved)
        return 0.0 if not any(moved) else None

    def operation(self, path: str) -> float | None:
        """What an operation's results move by where all its inputs move by a step."""
        row = self.rows[path]
        weight, inputs = row.weight, [site for site in row.sites if not site.is_weight]
        if weight is None or row.primitive == "gather" or len(inputs) != 1 or inputs[0].spec is None:
            return None if row.primitive != "gather" else 0.0
        q = self.weights.get(weight.key, self.weights.get(path))
        state = self.qparams.sites.get(path, {}).get(inputs[0].role, {})
        if q is None or "scale" not in state or inputs[0].spec.dynamic:
            return None
        values = np.abs(np.asarray(unpack(q).dequantize(), np.float64))
        largest = values.sum(axis=tuple(weight.operand.contract)).max(initial=0.0)
        return float(largest * np.max(np.asarray(state["scale"], np.float64)))


def _scaled(equation: Equation, moved: list[float]) -> float | None:
    """A product with, or a quotient by, written constants."""
    constants: list[Any] = [written_value(v) for v in equation.ins if not v.is_data]
    if len(constants) != 1 or constants[0] is None or not jnp.issubdtype(constants[0].dtype, jnp.floating):
        return None if any(moved) else 0.0
    magnitude = np.abs(np.asarray(constants[0], np.float64))
    if equation.name == "mul":
        return max(moved) * float(magnitude.max(initial=0.0))
    least = float(magnitude.min(initial=np.inf))
    return None if not equation.ins[0].is_data or least == 0.0 else max(moved) / least
