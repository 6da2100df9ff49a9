"""The universal form of a plan that quantizes operands: every other equation as it is."""

from collections.abc import Mapping
from typing import Any

from lowbit.core.qtensor import QTensor
from lowbit.core.rounding import cast_once
from lowbit.export.codes import walked
from lowbit.interpret.arithmetic import result_dtype
from lowbit.interpret.inputs import quantized_input
from lowbit.interpret.lookup import lookup
from lowbit.interpret.matmul import Matmul
from lowbit.interpret.operations import Operation
from lowbit.interpret.trace import Trace
from lowbit.interpret.walk import plain
from lowbit.packed.trees import QParams
from lowbit.plan.rows import Plan, Row
from lowbit.program.compat import rebind

from .dense import Dense
from .values import blockwise, in_float32, input_value, is_blockwise, weight_grid, weight_value


def results(plan: Plan, traced: Trace, qparams: QParams) -> list[Any]:
    """Returns the flat results of a call: float operations on dequantized weights and rounded inputs.

    Args:
        plan: the plan.
        traced: of the call on ``qparams``.
        qparams: unpacked; codes may be traced, scales are values.
    """
    return walked(plan, traced, qparams, _result)


def _result(op: Operation, row: Row, values: list[Any], states: Mapping[str, Any]) -> Any:
    is_computed = [site.kind in ("derived", "constant") and site.spec is not None for site in row.sites]
    left, right = (
        states[site.role] if computed else v for site, computed, v in zip(row.sites, is_computed, values, strict=True)
    )
    if op.is_lookup:
        return lookup(op.eqn, left, right) if isinstance(left, QTensor) else op.rebind([left, right])
    matmul, dtype = Matmul.of(op.eqn), result_dtype(op.eqn)
    if is_blockwise(matmul, right):
        return blockwise(matmul, _levels(row, states, left), right, dtype)
    if isinstance(right, QTensor) and (dense := Dense.of(matmul, len(op.eqn.invars[0].aval.shape), right)):
        x = dense.left(_value(row, states, 0, left))
        y = dense.product(x, _cast(row, weight_value(dense.weight, weight_grid(dense.weight)), right.dtype))
        return cast_once(dense.restore(y), dtype)
    operands = [_value(row, states, i, v) for i, v in enumerate((left, right))]
    return in_float32(matmul, operands[0], operands[1], dtype) if row.is_integer else rebind(op.eqn, operands)[0]


def _value(row: Row, states: Mapping[str, Any], position: int, value: Any) -> Any:
    """An operand: float32 where the operation accumulates integers, else in its own dtype."""
    site = row.sites[position]
    if site.spec is None:
        return plain(value)
    if isinstance(value, QTensor):
        return _cast(row, weight_value(value, weight_grid(value)), value.dtype)
    return _cast(row, input_value(site, states.get(site.role, {}), value), value.dtype)


def _cast(row: Row, value: Any, dtype: Any) -> Any:
    return value if row.is_integer else cast_once(value, dtype)


def _levels(row: Row, states: Mapping[str, Any], x: Any) -> Any:
    """The input of a weight with blocks: levels where the operation accumulates integers, else values."""
    site, x = row.sites[0], plain(x)
    if site.spec is None:
        return x
    q = quantized_input(site, states.get(site.role, {}), x)
    return q if row.is_integer else q.dequantize()
