"""A kernel on arrays that `jit` spreads over devices: each device runs it on its part of the weight, which nothing gathers.

XLA cannot split a custom call by itself and would gather its operands. `jax.experimental.custom_partitioning` tells it how:

    columns     W (K, N / p)     x whole                y (M, N / p): nothing is exchanged
    rows        W (K / p, N)     x (M, K / p)           y summed over devices
    batch       x (M / p, K)     W whole                y (M / p, N)

Rows keep every bit of integer activations: the scale of a dynamic row is the largest of all devices'; one group is summed
in int32; of several groups, devices exchange the scaled sums, which each adds for its columns in ascending order. Weight-only
sums are float, in any order. A device holds whole groups, or the weight of that operation is gathered.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, NamedSharding, PartitionSpec, reshard
from jaxtyping import Array

from lowbit_kernels.matrix import PackedMatrix
from lowbit_kernels.numerics import (
    StaticActivation,
    activation_codes,
    largest_of_rows,
    quantize_static,
    rounded_product,
    scale_of_largest,
)
from lowbit_kernels.pallas.gpu import KMinorMatrix
from lowbit_kernels.platforms import has_devices


class Run(NamedTuple):
    """An implementation's `run` with its configuration; hashable.

    Attributes:
        function: `Implementation.run`.
        config: of the implementation.
    """

    function: Callable[..., Array]
    config: Any

    def __call__(self, x: Array, packed: PackedMatrix | KMinorMatrix, activation: Any, out_dtype: str) -> Array:
        """Returns the result on the arrays of one device."""
        return self.function(x, packed, activation, out_dtype, self.config)


@dataclasses.dataclass(frozen=True)
class Static:
    """What of a call is no array; hashable.

    Attributes:
        run: the implementation.
        bits, signed, length, group: of the weight.
        affine: it has zero points.
        is_minor: its codes are `(N, K)`, in the order of Hopper's kernel, and the table beside its scales is of sums.
        activation: None, "int8", or (lo, hi) of a static grid.
        is_by_row: the static scale is one a row.
        out_dtype: of the result.
    """

    run: Run
    bits: int
    signed: bool
    length: int
    group: int
    affine: bool
    is_minor: bool
    activation: Any
    is_by_row: bool
    out_dtype: str

    @property
    def groups(self) -> int:
        """Scales along K."""
        return math.ceil(self.length / self.group)

    def parts(self, count: int) -> bool:
        """Whether K divides into so many parts of whole groups and whole bytes."""
        length = self.length // count
        fits = self.length % count == 0 and (length * self.bits) % 8 == 0
        if self.groups == 1:
            return fits
        return fits and length % self.group == 0 and self.group * self.bits % 8 == 0


def matmul(run: Run, x: Array, packed: PackedMatrix | KMinorMatrix, activation: Any, out_dtype: str) -> Array:
    """`run(x, packed, activation, out_dtype)`, partitioned where a program runs on several devices.

    Args:
        run: of an implementation; hashable, equal where it does the same.
        x: `(M, K)` floats or codes.
        packed: the weight.
        activation: None, "int8" or a `StaticActivation`.
        out_dtype: of the result.
    """
    if getattr(run.config, "is_ordered", False) or not has_devices():
        return run(x, packed, activation, out_dtype)
    is_static = isinstance(activation, StaticActivation)
    scale, zero = (activation.scale, activation.zero) if is_static else (1.0, 0)
    static = Static(
        run, packed.bits, packed.signed, packed.length, packed.group, packed.zeros is not None,
        isinstance(packed, KMinorMatrix), (activation.lo, activation.hi) if is_static else activation,
        jnp.ndim(scale) > 0, out_dtype,
    )  # fmt: skip
    zeros = packed.sums if isinstance(packed, KMinorMatrix) else packed.zeros
    zeros = jnp.zeros_like(packed.scales, jnp.int8) if zeros is None else zeros
    operands = (x, packed.codes, packed.scales, zeros, jnp.asarray(scale, jnp.float32), jnp.asarray(zero, jnp.int32))
    mesh = getattr(getattr(jax.typeof(packed.codes), "sharding", None), "mesh", None)
    if mesh is not None and not mesh.empty and AxisType.Explicit in mesh.axis_types:
        return _explicit(static, mesh, operands)
    return _mapped(static)(*operands)


def _explicit(static: Static, mesh: Any, operands: tuple[Array, ...]) -> Array:
    """The call where shardings are part of types: they say how it is split."""
    parts = _parts(static, mesh, [jax.typeof(x) for x in operands])
    moved = [reshard(x, NamedSharding(mesh, spec)) for x, spec in zip(operands, parts.operands, strict=True)]
    return jax.shard_map(
        parts.function, mesh=mesh, in_specs=parts.operands, out_specs=parts.result, check_vma=False
    )(*moved)  # fmt: skip


class _Parts(NamedTuple):
    """How a call is split: what each device runs, and how operands and result lie."""

    function: Callable[..., Array]
    operands: tuple[PartitionSpec, ...]
    result: PartitionSpec


def _parts(static: Static, mesh: Any, shapes: Any) -> _Parts:
    rows, inner, columns = _axes(static, mesh, shapes)
    groups = inner if static.groups > 1 else None
    table = PartitionSpec(groups, columns)
    codes = PartitionSpec(columns, inner) if static.is_minor else PartitionSpec(inner, columns)
    scale = PartitionSpec(rows) if static.is_by_row else PartitionSpec()
    operands = (PartitionSpec(rows, inner), codes, table, table, scale, PartitionSpec())
    if inner is None:
        return _Parts(functools.partial(_local, static), operands, PartitionSpec(rows, columns))
    names = inner if isinstance(inner, tuple) else (inner,)
    length = static.length // math.prod(mesh.shape[name] for name in names)
    local = dataclasses.replace(static, length=length, group=min(static.group, length))
    function = functools.partial(_summed, static, local, names)
    return _Parts(function, operands, PartitionSpec(rows, columns))


@functools.lru_cache(maxsize=512)
def _mapped(static: Static) -> Callable[..., Array]:
    """The call: partitioned, and under `vmap`, of which there is no partition, as it is."""
    whole = jax.custom_batching.custom_vmap(_partitioned(static))

    @whole.def_vmap
    def _(axis_size: int, in_batched: Any, *args: Any) -> tuple[Array, bool]:
        axes = tuple(0 if batched else None for batched in in_batched)
        return jax.vmap(functools.partial(_local, static), axes, axis_size=axis_size)(*args), True

    return whole


def _partitioned(static: Static) -> Callable[..., Array]:
    call: Any = custom_partitioning(functools.partial(_local, static))

    def infer(mesh: Any, shapes: Any, result: Any) -> NamedSharding:
        return NamedSharding(mesh, _parts(static, mesh, shapes).result)

    def partition(mesh: Any, shapes: Any, result: Any) -> Any:
        parts = _parts(static, mesh, shapes)
        lie = tuple(NamedSharding(mesh, spec) for spec in parts.operands)
        return mesh, parts.function, NamedSharding(mesh, parts.result), lie

    call.def_partition(partition=partition, infer_sharding_from_operands=infer, **_rule(static))
    return call


def _rule(static: Static) -> dict[str, Any]:
    """How axes of operands correspond, for Shardy. K is bytes of codes, and groups of bytes; where it is not, it stays whole."""
    per_byte = 8 // static.bits if 8 % static.bits == 0 and static.length * static.bits % 8 == 0 else 0
    if per_byte and static.groups == 1:
        sizes, inner, group = {"p": per_byte}, ["k", "p"], "o"
    elif per_byte and static.parts(static.groups):
        sizes, inner, group = {"r": static.group // per_byte, "p": per_byte}, ["g", "r", "p"], "g"
    else:
        sizes, inner, group = {}, ["k"], "g"
    sizes = {name: size for name, size in sizes.items() if size > 1}
    inner = [name for name in inner if name in ("k", "g") or name in sizes]
    codes = [name for name in inner if name != "p"] if per_byte else ["b"]
    row = "m" if static.is_by_row else ""
    weight = f"n {_factors(codes)}" if static.is_minor else f"{_factors(codes)} n"
    rule = f"m {_factors(inner)}, {weight}, {group} n, {group} n, {row}, -> m n"
    return {"sharding_rule": rule, **sizes}


def _factors(names: list[str]) -> str:
    return f"({' '.join(names)})" if len(names) > 1 else names[0]


def _axes(static: Static, mesh: Any, shapes: Any) -> tuple[Any, Any, Any]:
    """The mesh axes of rows, of K and of columns that the operands' shardings ask for and the call can have."""

    def axis(shape: Any, index: int) -> Any:
        spec = getattr(shape.sharding, "spec", None) or ()
        return spec[index] if index < len(spec) else None

    x, codes = shapes[0], shapes[1]
    rows, columns, inner = axis(x, 0), axis(codes, 1 - static.is_minor), axis(codes, int(static.is_minor))
    if inner is not None:
        names = inner if isinstance(inner, tuple) else (inner,)
        inner = inner if static.parts(math.prod(mesh.shape[name] for name in names)) else None
    taken = {n for each in (columns, inner) if each is not None for n in (each if isinstance(each, tuple) else (each,))}
    names = rows if isinstance(rows, tuple) else (rows,)
    return (None if taken & set(names) else rows), inner, columns


def _local(static: Static, x: Array, codes: Array, scales: Array, zeros: Array, scale: Array, zero: Array) -> Array:
    """The call on one device's arrays: its columns, all of K."""
    return static.run(x, _packed(static, codes, scales, zeros), _activation(static, scale, zero), static.out_dtype)


def _packed(static: Static, codes: Array, scales: Array, zeros: Array) -> PackedMatrix | KMinorMatrix:
    if static.is_minor:
        return KMinorMatrix(
            codes=codes, scales=scales, sums=zeros, bits=static.bits, length=static.length, group=static.group
        )  # fmt: skip
    return PackedMatrix(
        codes=codes, scales=scales, zeros=zeros if static.affine else None, bits=static.bits, signed=static.signed,
        length=static.length, group=static.group,
    )  # fmt: skip


def _activation(static: Static, scale: Array, zero: Array) -> Any:
    if not isinstance(static.activation, tuple):
        return static.activation
    lo, hi = static.activation
    return StaticActivation(scale, zero, lo, hi)


def _summed(
    whole: Static, local: Static, names: tuple[str, ...], x: Array, codes: Array, scales: Array, zeros: Array,
    scale: Array, zero: Array,
) -> Array:  # fmt: skip
    """The call where K is split over the mesh axes `names`."""
    if local.activation is None:
        packed = _packed(local, codes, scales, zeros)
        return lax.psum(local.run(x, packed, None, "float32"), names).astype(whole.out_dtype)
    if local.activation == "int8":
        scale = scale_of_largest(lax.pmax(largest_of_rows(x), names))
        x, zero, lo, hi = quantize_static(x, StaticActivation(scale)), jnp.zeros((), jnp.int32), -128, 127
    else:
        lo, hi = local.activation
        x, zero, scale = activation_codes(x, _activation(local, scale, zero))
    if x.dtype == jnp.uint8:
        x, zero, lo, hi = lax.bitcast_convert_type(x ^ jnp.uint8(128), jnp.int8), zero - 128, lo - 128, hi - 128
    is_whole = local.is_minor and whole.groups == 1  # the sums of codes are those of all devices: taken out once
    grid = StaticActivation(jnp.ones((), jnp.float32), jnp.zeros_like(zero) if is_whole else zero, lo, hi)
    if whole.groups == 1:
        sums = lax.psum(local.run(x, _packed(local, codes, scales, zeros), grid, "int32"), names)
        sums = sums - zero * zeros if is_whole else sums
        total = rounded_product(sums.astype(jnp.float32), scales[0].astype(jnp.float32))
    else:
        total = _in_order(local, names, x, codes, scales, zeros, grid)
    return rounded_product(total, scale[:, None] if scale.ndim else scale).astype(whole.out_dtype)


def _in_order(
    local: Static, names: tuple[str, ...], x: Array, codes: Array, scales: Array, zeros: Array, grid: StaticActivation
) -> Array:
    """The scaled sums of all devices' groups, added in ascending order: each device adds a part of the columns."""
    groups, out = scales.shape
    one = dataclasses.replace(local, length=local.group)

    def sums(x: Array, codes: Array, scales: Array, zeros: Array) -> Array:
        packed = _packed(one, codes, scales[None], zeros[None])
        return local.run(x, packed, grid, "int32")

    parts = x.reshape(x.shape[0], groups, local.group).swapaxes(0, 1)
    each = codes.reshape(out, groups, -1).swapaxes(0, 1) if local.is_minor else codes.reshape(groups, -1, out)
    terms = jax.vmap(sums)(parts, each, scales, zeros).astype(jnp.float32)
    terms = rounded_product(terms, scales.astype(jnp.float32)[:, None, :])
    count = lax.psum(1, names)
    is_even = out % count == 0
    if is_even:
        terms = lax.all_to_all(terms, names, split_axis=2, concat_axis=0, tiled=True)
    else:
        terms = lax.all_gather(terms, names, axis=0, tiled=True)
    total, _ = lax.scan(lambda total, term: (total + term, None), terms[0], terms[1:])
    return lax.all_gather(total, names, axis=1, tiled=True) if is_even else total
