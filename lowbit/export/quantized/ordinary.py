"""The quantized form of a plan that quantizes operands: dots and convolutions on quantized types, floats between them.

A weight-only operation takes its float input and a quantized weight, which StableHLO calls hybrid.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from lowbit.core.checks import is_traced
from lowbit.core.qtensor import QTensor
from lowbit.core.rounding import cast_once
from lowbit.export.codes import walked
from lowbit.export.universal.values import array_grid, in_float32
from lowbit.interpret.arithmetic import result_dtype
from lowbit.interpret.matmul import Matmul
from lowbit.interpret.operations import Operation
from lowbit.interpret.trace import Trace
from lowbit.interpret.walk import plain
from lowbit.packed.trees import QParams
from lowbit.plan.rows import Plan, Row, Site

from . import operations
from .products import Operand, product, weight_operand
from .types import QuantType


def results(plan: Plan, traced: Trace, qparams: QParams) -> list[Any]:
    """Returns the flat results of a call.

    Args:
        plan: the plan.
        traced: of the call on ``qparams``.
        qparams: unpacked; codes may be traced, scales are values.

    Raises:
        ValueError: for an operand that no quantized type describes.
    """
    return walked(plan, traced, qparams, _result)


def _result(op: Operation, row: Row, values: list[Any], states: Mapping[str, Any]) -> Array:
    operands: list[Operand] = []
    weight, at = None, 0
    for i, (site, value) in enumerate(zip(row.sites, values, strict=True)):
        is_computed = site.kind in ("derived", "constant") and site.spec is not None
        value = states[site.role] if is_computed else value
        if isinstance(value, QTensor):
            if any(is_traced(x) for x in (value.scale, value.zero) if x is not None):
                raise _no_type(row, site, "its scales differ between the turns of a scan")
            weight, at = value, i
        else:
            operands.append(_operand(row, site, states.get(site.role, {}), plain(value)))
    y = product(op.eqn, operands, weight, at, _value)
    if y is None:  # as floats, the weight still of its type
        floats = [_value(x, of) for x, of in operands]
        if weight is not None:
            right = weight_operand(weight)
            if right is None:
                raise _no_type(
                    row, row.sites[at], f"{weight.spec.text} has scales along two axes, blocks, or zero points"
                )
            floats.insert(at, operations.dequantize(*right))
        y = in_float32(Matmul.of(op.eqn), floats[0], floats[1], jnp.float32)
    return cast_once(y, result_dtype(op.eqn))


def _operand(row: Row, site: Site, state: Mapping[str, Any], x: Array) -> Operand:
    x = x.astype(jnp.float32)
    if site.spec is None:
        return Operand(x, None)
    grid = (
        None if any(is_traced(v) for v in state.values()) else array_grid(site.spec, state["scale"], state.get("zero"))
    )
    if grid is None or grid.axis is not None:
        raise _no_type(row, site, "its scales differ between examples or between the turns of a scan")
    of = QuantType.of(grid)
    if not of.has_zero_inside:
        raise _no_type(row, site, f"its zero point {of.zero[0]} lies outside its integers")
    return Operand(operations.quantize(x, of), of)


def _value(x: Array, of: QuantType | None) -> Array:
    return x if of is None else operations.dequantize(x, of)


def _no_type(row: Row, site: Site, why: str) -> ValueError:
    return ValueError(
        f"no quantized type describes the {site.role} of {row.path} ({row.source}): {why}; leave the targets of quantized "
        f"types out, or give it one scale per tensor or output channel"
    )
