"""An operation of a packed model on a machine that is no CPU: the packed kernels of that machine, else XLA on integers."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Array

from lowbit.core.qtensor import QTensor
from lowbit.packed import native, native_calls, pallas_calls
from lowbit.plan.rows import Row, Site

from .arithmetic import result_dtype
from .operations import Operation
from .poison import poisoned
from .sides import weight_right
from .walk import plain


class Found(NamedTuple):
    """What became of an operation.

    Attributes:
        result: of the kernel; None where none can run it.
        how: the implementation's name.
        reason: what to say of it, or why there is none.
    """

    result: Array | None
    how: str
    reason: str


def kernel_result(
    platform: str,
    op: Operation,
    row: Row,
    values: Sequence[Any],
    states: Mapping[str, Any],
    implementation: str | None,
    quantized_input: Any,
) -> Found:
    """Returns the result of a platform's kernels, or why they cannot run the operation.

    Args:
        platform: of `lowbit_kernels.platforms`, not the CPU.
        op: the operation.
        row: its row in the plan.
        values: its operands.
        states: of its sites, by role.
        implementation: a name of `lowbit_kernels.implementations`, or None to choose.
        quantized_input: ``(site, state, x) -> QTensor``.
    """
    reason = _why_not(op, row, values)
    if reason is not None:
        return Found(None, "", reason)
    sides = weight_right(op.eqn, op.weight)
    (site, _), (x, weight) = sides.operands(*row.sites), sides.operands(*values)
    x, state, dtype = plain(x), states.get("input", {}), result_dtype(op.eqn)
    taken, is_static = x, site.spec is not None and (not site.spec.dynamic or bool(site.own_code))
    if site.spec is not None and not row.is_integer:  # levels that are no integers: x is rounded, then float
        taken, site = quantized_input(site, state, x).dequantize(), dataclasses.replace(site, spec=None)
    elif row.is_integer and not native_calls.can_take_input(site):
        taken = quantized_input(site, state, x)
        if (reason := native_calls.why_not_codes(sides.matmul, taken)) is not None:
            return Found(None, "", reason)
    numbers = dict(sides.matmul.params)["dimension_numbers"]
    call = pallas_calls.call_of(platform, numbers, taken, weight, site, state, dtype)
    if isinstance(call, str):
        return Found(None, "", call)
    name, reason = pallas_calls.chosen(call, implementation)
    if name is None:
        return Found(None, "", reason)
    result = pallas_calls.matmul(name, call, numbers, taken, weight, dtype)
    if row.is_integer and is_static:  # a dynamic row is NaN by its scale
        result = poisoned(sides.matmul, x, weight, result)
    return Found(sides.restore(result), name, reason)


def _why_not(op: Operation, row: Row, values: Sequence[Any]) -> str | None:
    site: Site | None = row.weight
    if site is None:
        return "both operands are computed: XLA's own integer product"
    if row.primitive == "conv_general_dilated":
        return "no packed convolution: XLA's own on integers, the weight unpacked"
    if (reason := native.why_not(row, site)) is not None:
        return reason
    sides = weight_right(op.eqn, op.weight)
    (x, _), (_, weight) = sides.operands(*op.eqn.invars), sides.operands(*values)
    if not isinstance(weight, native.NativeTensor) or not isinstance(weight, QTensor):
        return "the weight is cut, reversed or otherwise moved before use, out of the kernel's order"
    if 0 in x.aval.shape or 0 in op.eqn.outvars[0].aval.shape:
        return "nothing to compute"
    for dtype in (str(x.aval.dtype), str(result_dtype(op.eqn))):
        if dtype not in native_calls.FLOATS:
            return f"the kernels compute in {', '.join(native_calls.FLOATS)}, not in {dtype}"
    return None
