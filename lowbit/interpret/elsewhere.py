"""An operation of a packed model on a machine that is no CPU: the packed kernels of that machine, else XLA on integers."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from lowbit.core.qtensor import QTensor
from lowbit.packed import native, native_calls, pallas_calls
from lowbit.packed.platforms import PLATFORMS, by_platform
from lowbit.packed.trees import QParams
from lowbit.plan.rows import Row, Site

from .arithmetic import result_dtype
from .operations import Operation
from .poison import poisoned
from .sides import weight_right
from .trace import Trace
from .walk import plain


class Routed(NamedTuple):
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
) -> Routed:
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
    reason = _why_not(platform, op, row, values)
    if reason is not None:
        return Routed(None, "", reason)
    sides = weight_right(op.eqn, op.weight)
    (site, _), (x, weight) = sides.operands(*row.sites), sides.operands(*values)
    x, state, dtype = plain(x), states.get("input", {}), result_dtype(op.eqn)
    taken, is_static = x, site.spec is not None and (not site.spec.dynamic or bool(site.own_code))
    if site.spec is not None and not row.is_integer:  # levels that are no integers: x is rounded, then float
        taken, site = quantized_input(site, state, x).dequantize(), dataclasses.replace(site, spec=None)
    elif row.is_integer and not native_calls.can_take_input(site):
        taken = quantized_input(site, state, x)
        if (reason := native_calls.why_not_codes(sides.matmul, taken)) is not None:
            return Routed(None, "", reason)
    numbers = dict(sides.matmul.params)["dimension_numbers"]
    call = pallas_calls.call_of(platform, numbers, taken, weight, site, state, dtype)
    if isinstance(call, str):
        return Routed(None, "", call)
    name, reason = pallas_calls.chosen(call, implementation)
    if name is None:
        return Routed(None, "", reason)
    result = pallas_calls.call_pallas(name, call, numbers, taken, weight, dtype)
    if row.is_integer and is_static:  # a dynamic row is NaN by its scale
        result = poisoned(sides.matmul, x, weight, result)
    return Routed(sides.restore(result), name, reason)


CARRIED = "the same integers in XLA's float32"
_INTEGER = (
    "full-integer plans are XLA's own, codes by codes into int32: weights of fewer bits are unpacked in every call"
)


def integer_results(
    run: Any, traced: Trace, qparams: QParams, implementation: str | None, platform: str | None
) -> tuple[list[Any], str, str]:
    """Returns the flat results of a full-integer plan, how they are computed, and what to say of it.

    Args:
        run: ``(traced, qparams, carried=) -> results``.
        traced: of this call.
        qparams: packed.
        implementation: as in `lowbit.execute`.
        platform: as in `lowbit.execute`; None where it is known when lowered.
    """
    if implementation == "reference":
        return run(traced, qparams, carried=False), "reference", ""
    if platform == "cpu":
        return run(traced, qparams, carried=True), "carried", CARRIED
    if platform is not None:
        return run(traced, qparams, carried=False), "xla", _INTEGER

    def on(leaves: list[Any], qparams: QParams, *, carried: bool) -> list[Any]:
        return run(dataclasses.replace(traced, leaves=leaves), qparams, carried=carried)

    like = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in traced.jaxpr.out_avals]
    there = {name: functools.partial(on, carried=False) for name in PLATFORMS if name != "cpu"}
    return by_platform(there, functools.partial(on, carried=True), like, traced.leaves, qparams), "xla", _INTEGER


_CONVOLUTION = {True: "XLA's own on int8 codes", False: "an int8 product of windows (im2col) in XLA"}


def _why_not(platform: str, op: Operation, row: Row, values: Sequence[Any]) -> str | None:
    site: Site | None = row.weight
    if site is None:
        return "both operands are computed: XLA's own integer product"
    if row.primitive == "conv_general_dilated":
        how = _CONVOLUTION[platform.startswith("tpu")] if row.is_integer else "XLA's own in floats"
        return f"no packed convolution: {how}, the weight unpacked"
    if (reason := native.why_not(row, site)) is not None:
        return reason
    sides = weight_right(op.eqn, op.weight)
    (x, _), (_, weight) = sides.operands(*op.eqn.invars), sides.operands(*values)
    if not isinstance(weight, native.NativeTensor) or not isinstance(weight, QTensor):
        return native.MOVED
    if 0 in x.aval.shape or 0 in op.eqn.outvars[0].aval.shape:
        return "nothing to compute"
    for dtype in (str(x.aval.dtype), str(result_dtype(op.eqn))):
        if dtype not in native_calls.FLOATS:
            return f"the kernels compute in {', '.join(native_calls.FLOATS)}, not in {dtype}"
    return None
