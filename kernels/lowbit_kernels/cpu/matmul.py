"""The native CPU matmul as an implementation: what it supports and how it is called."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lowbit_kernels import checks
from lowbit_kernels.cpu import library
from lowbit_kernels.cpu.arena import reshaped
from lowbit_kernels.cpu.prepare import PreparedMatrix, group_blocks, prepare, restore, stored_bits
from lowbit_kernels.cpu.tail import NO_TAIL, Results, Tail, given, scale_of, zero_of
from lowbit_kernels.matrix import PackedMatrix, merge_factors
from lowbit_kernels.numerics import StaticActivation
from lowbit_kernels.spec import Implementation, MatmulSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class CpuConfig:
    """Options of the native CPU kernels. Neither changes a result of integer activations.

    Attributes:
        isa: one of `library.ISAS`; None takes the environment variable LOWBIT_KERNELS_ISA, else the best of the machine.
        threads: at most so many threads, 1 or more; None takes XLA's pool.
    """

    isa: str | None = None
    threads: int | None = None


def supports(spec: MatmulSpec) -> str | None:
    """None where the native library runs `spec`, else the reason."""
    if spec.platform != "cpu":
        return f"runs on CPUs, not on {spec.platform}"
    if library.status().reason:
        return library.status().reason
    return None


def cost(spec: MatmulSpec) -> str:
    """What to know when this implementation runs."""
    isa = library.status().isas[0] if library.status().isas else ""
    if spec.prepared != "cpu":
        return f"{isa}; reorders the weight in every call: prepare() it once"
    if spec.factors and spec.activation == "float":
        return f"{isa}; writes the weight out as 8-bit codes in every call: integer scales of groups are for integer activations"
    return isa


def candidates(spec: MatmulSpec) -> tuple[CpuConfig, ...]:
    """Configurations worth timing: fewer threads, where the work of one call is small."""
    return tuple(CpuConfig(threads=n) for n in (1, 2, 4, 8) if n <= (os.cpu_count() or 1))


def run(x: Array, matrix: PackedMatrix | PreparedMatrix, activation: object, out_dtype: str, config: object) -> Array:
    """See `Implementation.run`."""
    native = "bfloat16" if out_dtype == "bfloat16" else "float32"
    return call(x, matrix, activation, native, config, NO_TAIL).value.astype(out_dtype)


def call(
    x: Array,
    matrix: PackedMatrix | PreparedMatrix,
    activation: object,
    native: str,
    config: object,
    tail: Tail,
    *,
    x_columns: bool = False,
    y_columns: bool = False,
    keeps_nan: bool = False,
) -> Results:
    """The native call; `native` is float32 or bfloat16. In columns, x is `(K, M)` and the results are `(N, M)`."""
    config = check_config(config)
    if activation is None and matrix.factors is not None:  # the weight-only kernel has no integer sums to multiply
        matrix = merge_factors(restore(matrix) if isinstance(matrix, PreparedMatrix) else matrix)
    if isinstance(matrix, PackedMatrix):
        matrix = prepare(matrix)
    if x.dtype == jnp.float16:
        x = x.astype(jnp.float32)
    static = activation if isinstance(activation, StaticActivation) else None
    scale = None if static is None else reshaped(scale_of(static), (-1,))
    zero = None if static is None else zero_of(static)
    if static is not None and matrix.column_sums is None:
        raise ValueError("static activations need a matrix prepared with column_sums=True")
    kind = 0 if activation is None else 1 if static is None else 2
    rows, length = x.shape[::-1] if x_columns else x.shape
    columns = rows * length * x.dtype.itemsize if x_columns else 0
    shape = (matrix.out, rows) if y_columns else (rows, matrix.out)
    empty = (matrix.out, 0) if y_columns else (0, matrix.out)
    results = [
        *tail.results(native, shape, empty, (rows,), (0,)),
        jax.ShapeDtypeStruct((scratch_bytes(rows, length, matrix.group, matrix.bits, kind) + columns,), jnp.uint8),
    ]
    steps, next_scale, next_zero = tail.operands()
    book = matrix.codebook if activation is None else None
    operands, bits, places = given(
        [x, (scale, 1), (zero, 1), matrix.blocks, matrix.scales, (matrix.zeros, 2),
         (matrix.column_sums if static is not None else None, 4), (book, 8), (matrix.factors, 16), (steps, 32),
         (next_scale, 64), (next_zero, 64), None, (tail.residual, 128)]
    )  # fmt: skip
    config = (
        bits, kind, -128 if static is None else static.lo, 127 if static is None else static.hi, stored_bits(matrix.bits),
        1 << (matrix.bits - 1) if matrix.signed else 0, length, matrix.group, x_columns, y_columns, keeps_nan,
        *tail.bounds(), library.isa_number(config.isa), 0 if config.threads is None else config.threads, *places,
    )  # fmt: skip
    call = jax.ffi.ffi_call(library.TARGETS["LowbitMatmulCall"], results, vmap_method="expand_dims")
    y, codes, marks, _ = call(*operands, config=np.asarray(config, np.int64), **tail.attributes())
    return Results(y, codes, marks)


def check_config(config: object) -> CpuConfig:
    """`config`, or the default.

    Raises:
        ValueError: it is another implementation's, or its values are out of range.
    """
    if config is None:
        config = CpuConfig()
    if not isinstance(config, CpuConfig):
        raise ValueError(f"implementation 'cpu' takes config=CpuConfig(...), got {type(config).__name__}")
    if config.threads is not None:
        checks.integer("CpuConfig.threads", config.threads, 1)
    if config.isa is not None:
        library.isa_number(config.isa)
    return config


def scratch_bytes(rows: int, length: int, group: int, bits: int, kind: int) -> int:
    """Bytes the kernel works in: codes, sums per row and group, and a scale per row (`Scratch` in cpp/core/matmul.h)."""
    groups = -(-length // group)
    _, total = group_blocks(length, group, bits)
    span = 4 * (8 // stored_bits(bits))
    padded = -(-rows // 16) * 16
    width = -(-total * span // 64) * 64 + 64
    element = 4 if kind == 0 else 1
    terms = -(-length // 32) * 32 * 3 * 2 if kind == 0 else 0
    return 64 + padded * (width * element + terms) + 2 * padded * groups * 4 + padded * 4


IMPLEMENTATION = Implementation("cpu", supports, run, cost, CpuConfig, candidates)
