"""A dot on the machines that are no CPU: which of `lowbit_kernels.implementations` runs it there, and its call."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

import lowbit_kernels
from lowbit.core.qtensor import QTensor
from lowbit.plan.rows import Site
from lowbit_kernels.api import matmul_spec
from lowbit_kernels.implementations import IMPLEMENTATIONS
from lowbit_kernels.spec import MatmulSpec

from .native import NativeTensor
from .native_calls import Dot, dot_of
from .platforms import matrix_on

OWN = {"cpu": "cpu", "tpu": "pallas_tpu", "cuda": "mosaic_gpu"}
"""The kernels of a platform, by their name in `lowbit_kernels.implementations`; others have none of their own."""


class Call(NamedTuple):
    """A dot in the kernels' form.

    Attributes:
        rows: the input, ``(batch, rows, K)``: floats, or codes.
        grid: of codes or of a static input; ``"int8"``; None where the input stays float. Its scale may be ``(batch, rows)``.
        matrix: of the weight; with a leading batch axis where the dot has one.
        spec: of one of its matmuls.
        note: what to say of the matrix.
    """

    rows: Array
    grid: Any
    matrix: Any
    spec: MatmulSpec
    note: str


def call_of(
    platform: str, dimension_numbers: Any, x: Array | QTensor, weight: NativeTensor, site: Site, state: Any, dtype: Any
) -> Call | str:
    """Returns a dot in the kernels' form, or why it has none.

    Args:
        platform: what it is traced for.
        dimension_numbers: of the dot_general, its weight on the right.
        x: the left operand: float, or on its grid, where `native_calls.why_not_codes` has nothing against it.
        weight: the right operand.
        site: the left operand's site.
        state: its scale and zero point where static.
        dtype: of the result.
    """
    dot = dot_of(dimension_numbers, x.ndim, weight)
    if dot is None:
        return "the weight is in the kernel's order of another operation that shares it, or was moved since"
    matrix, note = matrix_on(weight, platform)
    if matrix is None:
        return note
    batch, rows = ([x.shape[i] for i in axes] for axes in ([i for i, _ in dot.batch], dot.rows))
    outer = [*(i for i, _ in dot.batch), *dot.rows]

    def in_rows(x: Array) -> Array:
        return jnp.transpose(x, [*outer, *dot.contract]).reshape(math.prod(batch), math.prod(rows), -1)

    if isinstance(x, QTensor):
        wide = [1 if i in dot.contract else n for i, n in enumerate(x.shape)]
        scale = x.scale_values
        scale = scale.reshape(()) if scale.size == 1 else in_rows(jnp.broadcast_to(scale, wide))[..., 0]
        flat, grid = in_rows(x.encode().codes), _grid(x.spec, scale, x.zero)
    else:
        spec = site.spec
        grid = None if spec is None else "int8"
        if spec is not None and not spec.dynamic:
            grid = _grid(spec, state["scale"].reshape(()), state.get("zero"))
        flat = in_rows(x)
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), matrix) if weight.batch else matrix
    row = jax.ShapeDtypeStruct(flat.shape[1:], flat.dtype)
    return Call(flat, grid, matrix, matmul_spec(row, one, _one(grid), dtype, platform), note)


def _grid(spec: Any, scale: Array, zero: Array | None) -> lowbit_kernels.StaticActivation:
    return lowbit_kernels.StaticActivation(
        scale=scale,
        zero=jnp.zeros((), jnp.int32) if zero is None else zero.reshape(()).astype(jnp.int32),
        lo=int(spec.format.low),
        hi=int(spec.format.high),
    )


def _one(grid: Any) -> Any:
    """The grid of one matmul of a batch."""
    is_by_row = isinstance(grid, lowbit_kernels.StaticActivation) and jnp.ndim(grid.scale) > 0
    return dataclasses.replace(grid, scale=grid.scale[0]) if is_by_row else grid


def chosen(call: Call, implementation: str | None) -> tuple[str | None, str]:
    """Returns the name of the implementation that runs a call, and what to say of it; or None, and why.

    Args:
        call: of `call_of`.
        implementation: a name, or None for the first of the list that can.
    """
    reasons = {each.name: each.supports(call.spec) for each in IMPLEMENTATIONS}
    own = OWN.get(call.spec.platform.removesuffix("-interpreter"))
    name = implementation or next(name for name, reason in reasons.items() if reason is None)
    if reasons[name] is not None:
        return None, str(reasons[name])
    cost = next(each.cost(call.spec) for each in IMPLEMENTATIONS if each.name == name)
    better = "no kernel of lowbit's own for this platform" if own is None else f"{own} {reasons[own]}"
    return name, "; ".join(
        part for part in (better if name not in (own, implementation) else "", cost, call.note) if part
    )


def call_pallas(name: str, call: Call, dimension_numbers: Any, x: Any, weight: NativeTensor, dtype: Any) -> Array:
    """Returns the result of a dot, as an implementation computes it.

    Args:
        name: of `chosen`.
        call: of `call_of`.
        dimension_numbers: as there.
        x: as there.
        weight: as there.
        dtype: of the result.
    """
    dot = dot_of(dimension_numbers, x.ndim, weight)
    assert dot is not None
    scales = call.grid.scale if _one(call.grid) is not call.grid else None

    def product(rows: Array, matrix: Any, scale: Any) -> Array:
        grid = call.grid if scale is None else dataclasses.replace(call.grid, scale=scale)
        return lowbit_kernels.quant_matmul(
            rows, matrix, activation=grid, out_dtype=dtype, implementation=name, platform=call.spec.platform
        )

    if weight.batch:
        out = jax.vmap(product, (0, 0, None if scales is None else 0))(call.rows, call.matrix, scales)
    else:
        out = product(call.rows[0], call.matrix, None if scales is None else scales[0])
    return _placed(out, dot, [x.shape[i] for i in (*(i for i, _ in dot.batch), *dot.rows)], dimension_numbers, weight)


def _placed(out: Array, dot: Dot, outer: Sequence[int], dimension_numbers: Any, weight: NativeTensor) -> Array:
    """The columns come as the weight was prepared, and go as the dot has them."""
    (_, rc), (_, rb) = dimension_numbers
    lengths = {axis: n for group in weight.axes for axis, n in group}
    prepared = sorted(dot.columns)
    out = out.reshape(math.prod(outer), *(lengths[axis] for axis in prepared))
    out = jnp.transpose(out, [0, *(1 + prepared.index(axis) for axis in dot.columns)])
    free = [weight.shape[i] for i in range(weight.ndim) if i not in (*rc, *rb)]
    return jnp.transpose(out.reshape([*outer, *free]), dot.order)
