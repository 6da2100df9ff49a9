"""A product of two computed operands on the native kernels: attention's. Both are quantized in the call."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jaxtyping import Array

from lowbit.core.meshes import explicit_mesh
from lowbit.core.qtensor import QTensor
from lowbit.packed import native, native_calls, pair_calls
from lowbit.plan.rows import Row

from .arithmetic import Matmul, float_result, result_dtype
from .inputs import quantized_input
from .operations import Operation
from .walk import plain

States = Mapping[str, Any]


def pair_result(
    op: Operation, row: Row, values: Sequence[Any], states: States, *, keeps_nan: bool
) -> tuple[Array | None, str | None]:
    """Returns the result of an operation without a weight on the native kernels and None, or None and why they cannot run it.

    The derivative is that of the product of the dequantized operands, as of products with weights.

    Args:
        op: the operation.
        row: its row of the plan.
        values: its operands.
        states: of its sites, by role.
        keeps_nan: whether what sums over a NaN is NaN.
    """
    if (reason := _why_not(op, row, values)) is not None:
        return None, reason
    matmul, dtype = Matmul.of(op.eqn), result_dtype(op.eqn)

    def native_call(operands: list[Array], states: States) -> Array:
        numbers = dict(matmul.params)["dimension_numbers"]
        return pair_calls.run(operands, numbers, row.sites, states, keeps_nan=keeps_nan).astype(dtype)

    def backward(given: Any, gradient: Array) -> Any:
        served = [
            quantized_input(site, given[1].get(site.role, {}), x).dequantize()
            for site, x in zip(row.sites, given[0], strict=True)
        ]
        (moved,) = jax.vjp(lambda pair: float_result(matmul, *pair, dtype), served)[1](gradient)
        return [g.astype(x.dtype) for g, x in zip(moved, given[0], strict=True)], None

    run = jax.custom_vjp(native_call)
    run.defvjp(lambda *given: (run(*given), given), backward)
    return run([plain(x) for x in values], {role: dict(state) for role, state in states.items()}), None


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
    length = 1
    for i in lc:
        length *= avals[0].shape[i]
    if not 1 <= length <= pair_calls.MOST_SUMMED:
        return f"a sum of {length} products does not fit in int32" if length else "there is nothing to sum"
    arrays = [plain(x) for x in values]
    if explicit_mesh(arrays) is not None or any(getattr(jax.typeof(x), "vma", None) for x in arrays):
        return "its operands are spread over devices"
    return None
