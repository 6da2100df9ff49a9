"""A product, what follows it, and the next operation's quantization in one call, without changing a number.

    value = x @ W                                   as `quant_matmul` or `quant_conv` gives it, float32
    for each step, in order:
        "add"   value = value + operand             float32, rounded once
        "mul"   value = value * operand             the same, then saturated (`rounded_product`)
        "max"   value = max(value, operand)         NaN wins, 0.0 is above -0.0, as in XLA
        "min"   value = min(value, operand)
        "residual"  value = value + residual    an array of the call, in the shape of the value; once, without an operand (None).
                                        With fewer channels, which are last, zeros follow them
    codes = clip(nearest_even(value * (1 / s)) + z, lo, hi)         `quantize_static` on the grid `emit`
    marks = s, or NaN in a row whose value has a NaN

The native call does these operations in this order, in registers; everything else does them as separate operations.
Both give the same bits. A code cannot say NaN, so a row (an output position of a convolution) carries a mark: give
`marks` as the scale of the next call's `StaticActivation`, and what sums over a NaN is NaN there as well. A consumer with
feature groups, depthwise above all, sums over some channels of a position and a mark speaks of all: for such a one, marks are
`by_channel`, `(2 + ceil(channels / 32), batch, height, width)`. The first plane is those above; where that is NaN, the second
is `s`, and the others, as uint32, have a bit for every channel, from the lowest on, set where it is NaN. Elsewhere those planes
hold anything: the native call does not write them.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Num

from lowbit_kernels import checks, tuning
from lowbit_kernels.api import Activation, Weights, canonical, matmul_spec, quant_matmul
from lowbit_kernels.conv import PackedConv, channel_marks, conv_call, run_conv
from lowbit_kernels.cpu import conv as cpu_conv
from lowbit_kernels.cpu import matmul as cpu_matmul
from lowbit_kernels.cpu.conv import PreparedConv
from lowbit_kernels.cpu.tail import NO_TAIL, RESIDUAL, Tail
from lowbit_kernels.implementations import select
from lowbit_kernels.numerics import StaticActivation, check_activation, nan_where, quantize_static
from lowbit_kernels.pallas.gpu import KMinorMatrix
from lowbit_kernels.steps import Steps, apply_steps, check_kinds


class Fused(NamedTuple):
    """Results of a fused call.

    Attributes:
        value: float32 after the steps, or None where `keep` was False.
        codes: int8, or uint8 where `emit.hi > 127`, in the shape of the value; None without `emit`.
        marks: float32, one a row: `emit.scale`, or NaN where the row's value has a NaN; or planes of them; None without `emit`.
    """

    value: Any
    codes: Any
    marks: Any


def fused_matmul(
    x: Num[Array, "*batch in"],
    packed: Weights,
    *,
    activation: Activation = None,
    steps: Steps | None = None,
    residual: Any = None,
    emit: StaticActivation | None = None,
    keep: bool = True,
    keeps_nan: bool = False,
    x_columns: bool = False,
    y_columns: bool = False,
    implementation: str | None = None,
    config: Any = None,
) -> Fused:
    """`quant_matmul` to float32, then `steps`, then codes on the grid `emit`: on a CPU one call.

    Args:
        x: as in `quant_matmul`: floats, or codes on the grid of a `StaticActivation`. A previous call's codes come with
            `StaticActivation(marks, zero, lo, hi)`.
        packed: a `PackedMatrix`, or better the same `prepare`d once.
        activation: as in `quant_matmul`, but not "fp8".
        steps: of `prepare_steps`, or None.
        residual: float32 in the shape of the value, where the steps have one.
        emit: grid of the codes, one scale and zero, or None to emit none.
        keep: the float value is a result; False only with `emit`.
        keeps_nan: of float x on a static grid: a row with NaN gives NaN (a dynamic one always does). Otherwise NaN takes
            the code of 0.0.
        x_columns: x is `(K, M)`: `W.T @ x` of a left-hand weight, without a transpose before the call.
        y_columns: results are `(N, M)`: without one after it.
        implementation: None for the native call where it can run, else the operations one by one; "cpu" runs the native
            call or raises; another name of `quant_matmul` runs that, and the operations one by one.
        config: as in `quant_matmul`.

    Returns:
        `Fused`: the value and codes `(..., N)` and marks `(...)`, or `(N, M)` and `(M,)` with `y_columns`.

    Works under `jit` and `vmap` (over anything, stacked weights included). Not differentiable.

    Raises:
        ValueError: shapes, dtypes or options that do not fit.
        TypeError: what is no array, no packed matrix, no steps or no flag.
        NotImplementedError: the named implementation cannot run this; the message says why.
    """
    x = checks.array("fused_matmul: x", x)
    for name, flag in {"x_columns": x_columns, "y_columns": y_columns, "keeps_nan": keeps_nan}.items():
        checks.flag(f"fused_matmul: {name}", flag)
    if x_columns and x.ndim != 2:
        raise ValueError(f"fused_matmul: x_columns takes x of shape (K, M), got {x.shape}")
    if y_columns and x.ndim != 2:
        raise ValueError(f"fused_matmul: y_columns takes x of rank 2, got {x.shape}")
    if isinstance(activation, str) and activation == "fp8":
        raise ValueError("fused_matmul: activation 'fp8' has no fused call; use quant_matmul")
    rows = jax.ShapeDtypeStruct(x.shape[::-1], x.dtype) if x_columns else x
    spec = matmul_spec(rows, packed, activation, "float32")
    _check_tail("fused_matmul", steps, emit, packed.shape[1], 1, keep=keep)
    out = (packed.shape[1],)
    shape = (*out, rows.shape[0]) if y_columns else (*rows.shape[:-1], *out)
    _check_residual("fused_matmul", steps, residual, shape, may_have_fewer=not y_columns)
    chosen = select(spec, implementation)
    if chosen.name != "cpu":
        value = quant_matmul(
            x.T if x_columns else x, packed, activation=activation, out_dtype="float32",
            implementation=implementation, config=config,
        )  # fmt: skip
        if keeps_nan and jnp.issubdtype(x.dtype, jnp.floating) and isinstance(activation, StaticActivation):
            has_nan = jnp.any(jnp.isnan(x), axis=0 if x_columns else -1)[..., None]
            value = nan_where(has_nan, value)
        residual = residual.T if residual is not None and y_columns else residual
        return _one_by_one(value, steps, residual, emit, keep=keep, columns=y_columns)
    if isinstance(packed, KMinorMatrix):
        packed = canonical(packed)
    config = tuning.lookup(chosen, spec) if config is None else config
    if isinstance(activation, StaticActivation) and jnp.ndim(activation.scale):
        activation = dataclasses.replace(activation, scale=jnp.reshape(activation.scale, (-1,)))
    flat = x if x_columns else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    stored = residual if residual is None or y_columns else residual.reshape(-1, residual.shape[-1])
    results = cpu_matmul.call(
        flat, packed, activation, "float32", config, _tail(steps, stored, emit, keep=keep), x_columns=x_columns, y_columns=y_columns,
        keeps_nan=keeps_nan,
    )  # fmt: skip
    lead = () if x_columns or y_columns else x.shape[:-1]

    def unflatten(array: Array, tail: tuple[int, ...]) -> Array:
        return array if x_columns or y_columns else array.reshape(*lead, *tail)

    return Fused(
        value=unflatten(results.value, out) if keep else None,
        codes=None if emit is None else unflatten(results.codes, out),
        marks=None if emit is None else unflatten(results.marks, ()),
    )


def fused_conv(
    x: Num[Array, "..."],
    packed: PackedConv | PreparedConv,
    *,
    activation: StaticActivation | str,
    steps: Steps | None = None,
    residual: Any = None,
    emit: StaticActivation | None = None,
    keep: bool = True,
    by_channel: bool = False,
    implementation: str | None = None,
    config: Any = None,
    **geometry: Any,
) -> Fused:
    """`quant_conv` to float32, then `steps` (one number an output channel), then codes on the grid `emit`.

    Args:
        x: as in `quant_conv`.
        packed: as in `quant_conv`.
        activation: as in `quant_conv`; with codes of an earlier call, its scale may be their `marks`.
        steps: of `prepare_steps(.., feature_group_count=..)` with the convolution's groups (1 for depthwise), or None.
        residual: float32 in the shape of the value, where the steps have one.
        emit: as in `fused_matmul`.
        keep: as in `fused_matmul`.
        by_channel: marks say which channels are NaN; of two dimensions only.
        implementation: as in `quant_conv`; "cpu" is one call.
        config: as in `quant_conv`.
        **geometry: strides, padding, rhs_dilation, feature_group_count, layout, keeps_nan, as in `quant_conv`.

    Returns:
        `Fused`: value and codes in the layout of x; marks `(batch, height, width)` (`(batch, width)` in one dimension).

    Raises:
        ValueError: what does not fit together.
        TypeError: what is no array, no packed convolution, no steps, no integer or no flag.
        NotImplementedError: the named implementation cannot run this.
    """
    call, x, shape, layout = conv_call(
        x, packed, activation=activation, out_dtype="float32", implementation=implementation, config=config, **geometry
    )  # fmt: skip
    checks.flag("fused_conv: by_channel", by_channel)
    if by_channel and layout.flat:
        raise ValueError("fused_conv: marks are by_channel of two dimensions only")
    groups = call.groups
    if groups > 1 and cpu_conv.is_depthwise(packed.kernel, groups, packed.bits, signed=packed.signed):
        groups = 1
    _check_tail("fused_conv", steps, emit, packed.kernel[3], groups, keep=keep)
    stored = (shape[0], shape[3], *shape[1:3]) if call.y_channels_first else shape
    seen = tuple(n for i, n in enumerate(stored) if not layout.flat or i != layout.height)
    _check_residual("fused_conv", steps, residual, seen, may_have_fewer=not call.y_channels_first)
    residual = None if residual is None else residual.reshape(*stored[:-1], residual.shape[-1])
    if call.name != "cpu":
        value = run_conv(call, x, packed, activation, shape, NO_TAIL).value
        if call.y_channels_first:
            value = jnp.moveaxis(value, 1, -1)
            residual = None if residual is None else jnp.moveaxis(residual, 1, -1)
        fused = _one_by_one(value, steps, residual, emit, keep=keep, columns=False, by_channel=by_channel)
        if call.y_channels_first:
            first = lambda a: None if a is None else jnp.moveaxis(a, -1, 1)  # noqa: E731
            fused = Fused(first(fused.value), first(fused.codes), fused.marks)
    else:
        tail = _tail(steps, residual, emit, keep=keep)._replace(by_channel=by_channel)
        results = run_conv(call, x, packed, activation, shape, tail)
        fused = Fused(
            results.value if keep else None,
            None if emit is None else results.codes,
            None if emit is None else results.marks,
        )
    if not layout.flat:
        return fused
    squeeze = lambda a, axis: None if a is None else lax.squeeze(a, (axis,))  # noqa: E731
    return Fused(squeeze(fused.value, layout.height), squeeze(fused.codes, layout.height), squeeze(fused.marks, 1))


def _tail(steps: Steps | None, residual: Any, emit: StaticActivation | None, *, keep: bool) -> Tail:
    if steps is None:
        return Tail((), (), None, emit, keep)
    return Tail(steps.kinds, steps.numbers, steps.table, emit, keep, residual=residual)


def _check_tail(name: str, steps: Steps | None, emit: Any, out: int, groups: int, *, keep: bool) -> None:
    """Raises ValueError or TypeError where the steps or the grid do not fit a result of `out` channels."""
    checks.flag(f"{name}: keep", keep)
    if steps is not None:
        checks.instance(f"{name}: steps", steps, Steps, "prepare_steps")
        check_kinds(steps)
        if (steps.out, steps.groups) != (out, groups):
            raise ValueError(
                f"{name}: the steps are for {steps.out} channels in {steps.groups} groups, the result has {out} in {groups}: "
                "call prepare_steps with these"
            )
        tiles = groups * -(-(out // groups) // 16)
        rows, table = sum(number is None for number in steps.numbers), steps.table
        if table is not None:
            checks.described("Steps.table", table)
        got = "none" if table is None else f"{table.dtype} {table.shape}"
        if got != (f"float32 {(rows, tiles, 16)}" if rows else "none"):
            raise ValueError(f"{name}: Steps.table must be float32 {(rows, tiles, 16)}, got {got}")
    if emit is None:
        if not keep:
            raise ValueError(f"{name}: keep=False leaves no result; pass emit")
        return
    checks.instance(f"{name}: emit", emit, StaticActivation, "StaticActivation(scale, zero, lo, hi)")
    checks.number("StaticActivation.scale", emit.scale)
    if jnp.shape(emit.scale) != ():
        raise ValueError(f"{name}: emit must be a StaticActivation with one scale, got {jnp.shape(emit.scale)}")
    check_activation(emit, ())


def _check_residual(
    name: str, steps: Steps | None, residual: Any, shape: tuple[int, ...], *, may_have_fewer: bool
) -> None:
    """Raises ValueError or TypeError where an array that is added is not what the steps say."""
    count = 0 if steps is None else steps.kinds.count(RESIDUAL)
    if count != (residual is not None):
        raise ValueError(f"{name}: {count} of the steps are 'residual', and residual is {checks.kind_of(residual)}")
    if residual is None:
        return
    checks.described(f"{name}: residual", residual)
    fits = residual.shape == shape or (
        may_have_fewer and residual.shape[:-1] == shape[:-1] and residual.shape[-1] < shape[-1]
    )
    if residual.dtype.name != "float32" or not fits:
        raise ValueError(f"{name}: residual must be float32 {shape}, got {residual.dtype} {residual.shape}")


def _one_by_one(
    value: Array,
    steps: Steps | None,
    residual: Any,
    emit: StaticActivation | None,
    *,
    keep: bool,
    columns: bool,
    by_channel: bool = False,
) -> Fused:
    """The operations after a product, each by itself."""
    if steps is not None:
        value = apply_steps(value, steps, residual)
    codes = marks = None
    if emit is not None:
        scale = jnp.asarray(emit.scale, jnp.float32)
        codes = quantize_static(value, emit)
        marks = channel_marks(value, scale) if by_channel else nan_where(jnp.any(jnp.isnan(value), axis=-1), scale)
        codes = codes.T if columns else codes
    return Fused((value.T if columns else value) if keep else None, codes, marks)
