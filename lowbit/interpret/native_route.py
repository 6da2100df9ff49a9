"""An operation on the native kernels: whether it can run there, and its result."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lowbit.core.qtensor import QTensor
from lowbit.packed import native, native_calls, product
from lowbit.plan.rows import Row

from .arithmetic import result_dtype
from .inputs import quantized_input
from .matmul import Matmul
from .operations import Operation
from .poison import poisoned
from .sides import weight_right
from .walk import plain

UNPREPARED = "the weight is not in the kernels' order: call lowbit.prepare(plan, qparams) before jax.jit"

FLOAT_CONV = "a float convolution has no kernel; its weight is dequantized once"


def native_result(
    op: Operation,
    row: Row,
    values: Sequence[Any],
    states: Mapping[str, Any],
    prepared: frozenset[str],
    *,
    keeps_nan: bool,
    is_fused: bool,
) -> tuple[Any, str | None]:
    """Returns the result of an operation on the native kernels and None, or None and why they cannot run it.

    Args:
        op: the operation.
        row: its row of the plan.
        values: its operands; weights as the walk brings them.
        states: of its sites, by role.
        prepared: keys of the weights that are in the kernels' order.
        keeps_nan: whether what sums over a NaN is NaN.
        is_fused: whether the result is an equation that `lowbit.interpret.fuse` takes.
    """
    reason = _why_not(op, row, values, prepared)
    if reason is not None:
        return None, reason
    sides = weight_right(op.eqn, op.weight)
    (site, _), (x, weight) = sides.operands(*row.sites), sides.operands(*values)
    x, state = plain(x), states.get("input", {})
    dtype, is_own = result_dtype(op.eqn), bool(site.own_code)
    if site.spec is not None and not row.is_integer:  # levels that are no integers: x is rounded, then float
        x, site = quantized_input(site, state, x).dequantize(), dataclasses.replace(site, spec=None)
    elif is_own:
        q = quantized_input(site, state, x)
        reason = native_calls.why_not_codes(sides.matmul, q)
        if reason is not None:
            return None, reason
        call = native_calls.product_of(sides.matmul, site, q, weight, dtype)
        call = dataclasses.replace(call, activation="static", lo=int(q.spec.format.low), hi=int(q.spec.format.high))
        result = native_calls.run(call, q.encode().codes, _grid_of_codes(sides.matmul, q), weight, is_plain=True).value
        return sides.restore(poisoned(sides.matmul, x, weight, result) if keeps_nan else result), None
    call, grid = native_calls.product_of(sides.matmul, site, x, weight, dtype), native_calls.grid_of(site, state)
    if is_fused and not getattr(jax.typeof(x), "vma", None):
        return sides.restore(product.bound(call, x, grid, weight, keeps_nan=keeps_nan)), None
    result = native_calls.run(call, x, grid, weight, is_plain=True).value
    if keeps_nan and call.activation == "static":
        result = poisoned(sides.matmul, x, weight, result)
    return sides.restore(result), None


def _grid_of_codes(matmul: Matmul, q: QTensor) -> native_calls.Grid:
    """The grid of an input that its own code put on it: one scale, or one a row of a dot."""
    zero = jnp.zeros((), jnp.int32) if q.zero is None else q.zero.reshape(()).astype(jnp.int32)
    scale: Array = q.scale_values
    if scale.size == 1:
        return native_calls.Grid(scale.reshape(()), zero)
    (lc, _), (lb, _) = dict(matmul.params)["dimension_numbers"]
    rows = [i for i in range(q.ndim) if i not in (*lc, *lb)]
    scale = jnp.broadcast_to(scale, [1 if i in lc else n for i, n in enumerate(q.shape)])
    return native_calls.Grid(jnp.transpose(scale, [*lb, *rows, *lc]).reshape([q.shape[i] for i in (*lb, *rows)]), zero)


def float_weight(value: Any) -> Array | None:
    """Returns a weight that is dequantized already, for float convolutions; None of another."""
    is_held = isinstance(value, native.NativeTensor) and isinstance(value.matrix, jax.Array)
    if not is_held or tuple(atom for axis in value.axes for atom in axis) != _atoms(value.shape):
        return None
    return value.matrix if value.matrix.shape == value.shape else None


def _atoms(shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
    return tuple((i, n) for i, n in enumerate(shape) if n != 1)


def _why_not(op: Operation, row: Row, values: Sequence[Any], prepared: frozenset[str]) -> str | None:
    site = row.weight
    if site is None:
        return "both operands are computed"
    if (reason := native.status()) is not None:
        return reason
    if (reason := native.why_not(row, site)) is not None:
        return reason
    if site.key not in prepared:
        return UNPREPARED
    sides = weight_right(op.eqn, op.weight)
    (x, _), (_, weight) = sides.operands(*op.eqn.invars), sides.operands(*values)
    params = dict(sides.matmul.params)
    if not isinstance(weight, native.NativeTensor):
        return native.MOVED
    for dtype in (str(x.aval.dtype), str(result_dtype(op.eqn))):
        if dtype not in native_calls.FLOATS:
            return f"the kernels compute in {', '.join(native_calls.FLOATS)}, not in {dtype}"
    if sides.matmul.name == "conv_general_dilated":
        if not row.is_integer:
            return FLOAT_CONV
        if (reason := native_calls.why_not_conv(params, weight)) is not None:
            return reason
    elif native_calls.dot_of(params["dimension_numbers"], len(x.aval.shape), weight) is None:
        return "the weight is in the kernel's order of another operation that shares it, or was moved since"
    if not row.is_integer:
        return None
    inputs = sides.operands(*row.sites)[0]
    if native_calls.can_take_input(inputs) or inputs.own_code:  # codes that its own code makes are looked at later
        return None
    return "this input is quantized outside the kernel"
