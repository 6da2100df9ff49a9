"""A product of two computed operands on the native kernels: attention's. Both are quantized in the call."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jaxtyping import Array

from lowbit.core.meshes import explicit_mesh
from lowbit.core.qtensor import QTensor
from lowbit.packed import native, native_calls, pair_calls
from lowbit.plan.rows import Row

from .arithmetic import result_dtype
from .matmul import Matmul
from .operations import Operation
from .walk import plain

States = Mapping[str, Any]


def pair_result(
    op: Operation, row: Row, values: Sequence[Any], states: States, *, keeps_nan: bool
) -> tuple[Array | None, str | None]:
    """Returns the result of an operation without a weight on the native kernels and None, or None and why they cannot run it.

    Args:
        op: the operation.
        row: its row of the plan.
        values: its operands.
        states: of its sites, by role.
        keeps_nan: whether what sums over a NaN is NaN.
    """
    if (reason := _why_not(op, row, values)) is not None:
        return None, reason
    numbers = dict(Matmul.of(op.eqn).params)["dimension_numbers"]
    result = pair_calls.run([plain(x) for x in values], numbers, row.sites, states, keeps_nan=keeps_nan)
    return result.astype(result_dtype(op.eqn)), None


def _why_not(op: Operation, row: Row, values: Sequence[Any]) -> str | None:
    if row.primitive != "dot_general" or not row.is_integer or op.is_lookup:
        return "both operands are computed, and the native kernels take dots of integers of those"
    if any(isinstance(x, QTensor) for x in values):
        return "both operands are computed, one from weights alone"
    if (reason := native.status()) is not None:
        return reason
    avals = [v.aval for v in op.eqn.invars]
    for dtype in (*(str(aval.dtype) for aval in avals), str(result_dtype(op.eqn))):
        if dtype not in native_calls.FLOATS:
            return f"the kernels compute in {', '.join(native_calls.FLOATS)}, not in {dtype}"
    if not all(pair_calls.can_take(site) for site in row.sites):
        return "an operand is quantized outside the kernel"
    (lc, _), _ = op.eqn.params["dimension_numbers"]
    length = math.prod(avals[0].shape[i] for i in lc)
    if not 1 <= length <= pair_calls.MOST_SUMMED:
        return f"a sum of {length} products does not fit in int32" if length else "there is nothing to sum"
    arrays = [plain(x) for x in values]
    if explicit_mesh(arrays) is not None or any(getattr(jax.typeof(x), "vma", None) for x in arrays):
        return "its operands are spread over devices"
    return None
