"""The Hopper matmul as an implementation: what it supports, its options, and how the kernel is called.

The kernel wants the weight K-minor, `(N, K)`. `run` transposes the canonical bytes in every call; `prepare` does
it once and `matmul` takes what it returns. The speed of either on a device has not been measured.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32, Real

from lowbit_kernels.layout import pack_codes, unpack_codes
from lowbit_kernels.matrix import PackedMatrix, check_matrix
from lowbit_kernels.numerics import (
    FLOAT_MAX,
    StaticActivation,
    activation_codes,
    quantize_dynamic,
    quantize_fp8,
    rounded_product,
)
from lowbit_kernels.platforms import compute_capability
from lowbit_kernels.spec import Implementation, MatmulSpec

FIRST_JAX = (0, 11)
LENGTHS = (256, 128, 64)  # codes along K in a step, the widest first
CHANNELS = 64  # rows of one wgmma
FEW_ROWS = 16  # up to here a matmul only waits for its weight
MULTIPROCESSORS = 132  # of an H100 or H200
STAGE_BYTES = 100 << 10  # of shared memory in flight: two blocks fit the 227 KB of a multiprocessor
FLOAT32_TERMS = 3  # 24 significant bits, 8 to a bfloat16


@dataclasses.dataclass(frozen=True, kw_only=True)
class GpuConfig:
    """Options of the Hopper kernel. None takes the heuristic's; only `split` changes a float result (its order of sums).

    Attributes:
        rows: rows of x in a block, a multiple of 8 to 256.
        length: codes along K in a step: 64, 128 or 256, whole groups.
        stages: steps in flight, 1 or more.
        split: parts of K summed apart, for float activations: integer ones have one order.
        via_smem: converted weights go through shared memory; None does so where registers cannot (groups of 32 with
            8-bit activations) and in the interpreter, which knows no operand in registers.
        interpret: run in the GPU interpreter with race detection, on any platform: slow, for tests.
    """

    rows: int | None = None
    length: int | None = None
    stages: int | None = None
    split: int | None = None
    via_smem: bool | None = None
    interpret: bool = False

    @property
    def platform(self) -> str | None:
        """Where the kernel is asked to run, if not on the default platform."""
        return "interpret" if self.interpret else None

    @property
    def is_ordered(self) -> bool:
        """Whether a call has effects in an order, as the interpreter's have: it cannot be split over devices."""
        return self.interpret


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class KMinorMatrix:
    """A packed matrix in the kernel's order: rows of an output channel, K innermost.

    Attributes:
        codes: uint8 `(N, K / 2)`, two codes a byte, the even one low (codes of at most 4 bits), or `(N, K)`, a code a byte.
        scales: `(G, N)` float32.
        sums: int32 `(G, N)`: the codes of a group added up, which a zero point of the activations multiplies.
        bits: of the logical code, 1 to 8; stored in 4 or 8.
        length, group: as in `PackedMatrix`.
    """

    codes: Any
    scales: Any
    sums: Any
    bits: int = dataclasses.field(metadata={"static": True})
    length: int = dataclasses.field(metadata={"static": True})
    group: int = dataclasses.field(metadata={"static": True})

    zeros = codebook = factors = None
    signed = True

    @property
    def shape(self) -> tuple[int, int]:
        """`(K, N)`, in codes."""
        return self.length, self.codes.shape[-2]

    @property
    def groups(self) -> int:
        """G, the number of scales along K."""
        return -(-self.length // self.group)

    @property
    def weight(self) -> Array:
        """The codes as the kernel reads them: `(N, K)` int4 (two a byte on the device) or int8."""
        if self.bits > 4:
            return lax.bitcast_convert_type(self.codes, jnp.int8)
        return lax.bitcast_convert_type(self.codes, jnp.int4).reshape(self.codes.shape[0], self.length)


def supports(spec: MatmulSpec) -> str | None:
    """None where the kernel runs `spec`, else the reason."""
    if spec.platform not in ("cuda", "cuda-interpreter", "interpret"):
        return f"runs on Hopper GPUs, not on {spec.platform} (GpuConfig(interpret=True) interprets)"
    if spec.factors:
        return "takes float scales of groups, not integer ones"
    if jax.__version_info__[:2] < FIRST_JAX:
        return f"needs jax 0.11 or newer (Python 3.12), this is jax {jax.__version__}"
    if spec.platform == "cuda":
        capability = compute_capability()
        if capability is None:
            return "is written for Hopper, and no GPU is here or described (jax.sharding.use_abstract_mesh, an AbstractDevice)"
        if capability != "9.0":
            return f"is written for compute capability 9.0 (Hopper), this GPU has {capability}"
        if spec.groups == 1 and spec.bits == 8 and spec.activation == "float" and spec.rows <= FEW_ROWS:
            return "XLA fuses the conversion of 8-bit codes with one scale a channel into its own matmul"
    if spec.affine or spec.codebook or not spec.signed:
        return "reads signed codes without zero points or a codebook"
    if spec.rows == 0 or spec.out == 0 or spec.out % CHANNELS:
        return f"N must be a multiple of {CHANNELS}, and M at least 1, got N = {spec.out}, M = {spec.rows}"
    if not _lengths(spec.length, spec.group, spec.groups):
        return (
            f"K must be a multiple of 64 in groups of 32, 64, 128 or 256 or with one scale a channel, "
            f"got K = {spec.length}, group {spec.group}"
        )
    return None


def cost(spec: MatmulSpec) -> str:
    """What to know when this implementation runs."""
    wider = "" if spec.bits in (4, 8) else f"widens codes of {spec.bits} bits to {4 if spec.bits < 4 else 8}; "
    again = "" if spec.prepared == "mosaic_gpu" else "transposes the weight in every call: prepare it once; "
    return f"{wider}{again}speed not measured"


def candidates(spec: MatmulSpec) -> tuple[GpuConfig, ...]:
    """Configurations worth timing; none changes an integer result."""
    splits = (1, 2, 4) if spec.activation == "float" and spec.rows <= 4 * FEW_ROWS else (1,)
    return tuple(
        GpuConfig(rows=rows, length=length, stages=stages, split=split)
        for rows in sorted({_block_rows(spec.rows), min(64, _block_rows(spec.rows))})
        for length in _lengths(spec.length, spec.group, spec.groups)
        for stages in (3, 4, 6)
        for split in splits
        if spec.length // length % split == 0
    )


def prepare(packed: PackedMatrix) -> KMinorMatrix:
    """`packed` in the kernel's order, made once at load time. Pure; the same numbers.

    Raises:
        ValueError: zero points, a codebook, unsigned codes or an odd K.
    """
    check_matrix(packed)
    if reason := why_not_prepare(packed):
        raise ValueError(f"pallas.gpu.prepare: {reason}")
    stored, codes = 4 if packed.bits <= 4 else 8, packed.codes
    levels = unpack_codes(codes, packed.bits, packed.length, axis=0)
    if packed.bits != stored:
        codes = pack_codes(levels, stored)
    short = packed.groups * packed.group - packed.length
    parts = jnp.pad(levels, ((0, short), (0, 0))).reshape(packed.groups, packed.group, -1)
    return KMinorMatrix(
        codes=codes.T,
        scales=packed.scales.astype(jnp.float32),
        sums=jnp.sum(parts, axis=1, dtype=jnp.int32),
        bits=packed.bits,
        length=packed.length,
        group=packed.group,
    )


def why_not_prepare(packed: PackedMatrix) -> str | None:
    """Why a matrix has no such order, or None."""
    if packed.zeros is not None or packed.codebook is not None or not packed.signed or packed.factors is not None:
        return "takes signed codes without zero points, a codebook or integer scales"
    return f"K must be even, got {packed.length}" if packed.length % 2 else None


def restore(matrix: KMinorMatrix) -> PackedMatrix:
    """The inverse of `prepare`, up to the scales' dtype and the stored bits: codes of 3 bits come back in 4."""
    return PackedMatrix(
        codes=matrix.codes.T,
        scales=matrix.scales,
        bits=4 if matrix.bits <= 4 else 8,
        length=matrix.length,
        group=matrix.group,
    )


def matmul(
    x: Real[Array, "rows in"],
    matrix: KMinorMatrix,
    *,
    activation: StaticActivation | str | None = None,
    config: GpuConfig = GpuConfig(),
    is_scaled: bool = True,
) -> Real[Array, "rows out"]:
    """`x @ W` in float32.

    Args:
        x: int8 or uint8 codes of a static activation, or float32 (split into three bfloat16 terms that add up to it, as three times the rows), bfloat16 or float16.
        matrix: from `prepare`.
        activation: None: products are exact, sums are float32. "int8": the contract of `numerics.py`, to the last
            bit, and so with a static one. "fp8": each row in e4m3 with the scale `absmax / 448`, rounded to nearest even by the cast; products with
            codes of at most 4 bits are exact, and their sums have the precision of the tensor cores' fp8 accumulator,
            which is less than float32's and not specified; a row with an infinity or NaN gives NaN.
        config: see `GpuConfig`.
        is_scaled: False gives the int32 sums themselves, of a static activation and one group.

    Raises:
        ValueError: shapes or options that do not fit the kernel; the message names both.
    """
    rows, length = x.shape
    out, groups = matrix.weight.shape[0], matrix.scales.shape[0]
    if matrix.weight.shape[1] != length:
        raise ValueError(f"x must have shape (M, K) with K = {matrix.weight.shape[1]}, got {x.shape}")
    if activation not in (None, "int8", "fp8") and not isinstance(activation, StaticActivation):
        raise ValueError(f'activation must be None, "int8" or "fp8", or a StaticActivation, got {activation!r}')
    if activation == "fp8" and matrix.weight.dtype != jnp.int4:
        raise ValueError("fp8 activations take codes of at most 4 bits: e4m3 does not hold every int8")
    scale = offsets = None
    if isinstance(activation, StaticActivation):
        x, zero, scale = activation_codes(x, activation)
        if x.dtype == jnp.uint8:
            x, zero = lax.bitcast_convert_type(x ^ jnp.uint8(128), jnp.int8), zero - 128
        offsets, scale = zero * matrix.sums, jnp.broadcast_to(scale, (rows,))
    elif activation == "int8":
        x, scale = quantize_dynamic(x)
    elif activation == "fp8":
        x, scale = quantize_fp8(x)
    elif x.dtype == jnp.float32:
        x = _terms(x)
    tiles = _tiles(x, matrix, length // groups, config)
    padded = jnp.pad(x, ((0, -x.shape[0] % tiles.rows), (0, 0)))
    from lowbit_kernels.pallas import gpu_kernel  # needs jax 0.11

    call = gpu_kernel.interpreted if config.interpret else gpu_kernel.matmul
    total = call(padded, matrix.weight, matrix.scales if is_scaled else None, tiles, offsets)
    total = (total[0] if tiles.split == 1 else jnp.sum(total, axis=0))[:, : x.shape[0]]
    if x.shape[0] != rows:
        total = jnp.sum(total.reshape(out, -1, rows), axis=1)
    total = total.T
    return total if scale is None or not is_scaled else rounded_product(total, scale[:, None])


def run(x: Array, packed: PackedMatrix | KMinorMatrix, activation: Any, out_dtype: str, config: object) -> Array:
    """See `Implementation.run`. Traces for a GPU wherever it is called, unless `config` asks for the interpreter."""
    config = GpuConfig() if config is None else config
    if not isinstance(config, GpuConfig):
        raise ValueError(f"implementation 'mosaic_gpu' takes config=GpuConfig(...), got {type(config).__name__}")
    matrix = packed if isinstance(packed, KMinorMatrix) else prepare(packed)
    is_scaled = out_dtype != "int32"
    return matmul(x, matrix, activation=activation, config=config, is_scaled=is_scaled).astype(out_dtype)


def _terms(x: Float32[Array, "rows in"]) -> Array:
    """bfloat16 `(3 * rows, in)`: the terms of each row one block after the other; a row that is not finite has one."""
    terms = []
    for _ in range(FLOAT32_TERMS):
        # reduce_precision, because XLA may drop a cast to bfloat16 and back
        term = lax.reduce_precision(lax.clamp(-FLOAT_MAX, x, FLOAT_MAX), exponent_bits=8, mantissa_bits=7)
        terms.append(jnp.where(jnp.isfinite(x), term, x).astype(jnp.bfloat16))
        x = jnp.where(jnp.isfinite(x), x - term, jnp.zeros_like(x))
    return jnp.concatenate(terms)


def _lengths(length: int, group: int, groups: int) -> tuple[int, ...]:
    """Step lengths that hold whole groups and divide K, the widest first; groups are 32 or more."""
    if groups > 1 and (group < 32 or length % group):
        return ()
    return tuple(each for each in LENGTHS if length % each == 0 and (groups == 1 or each % group == 0))


def _block_rows(rows: int) -> int:
    """8 to 128: the next power of two, since one block reads the weight once for all its rows."""
    return min(128, max(8, 1 << (rows - 1).bit_length()))


def _tiles(x: Array, matrix: KMinorMatrix, group: int, config: GpuConfig) -> Any:
    """The tiles of a call: the configuration's, and where it has None the heuristic's."""
    from lowbit_kernels.pallas import gpu_kernel

    (count, length), (groups, out) = x.shape, matrix.scales.shape
    lengths = _lengths(length, group, groups)
    if not lengths or out % CHANNELS:
        raise ValueError(f"the kernel has no tiles for K = {length}, N = {out}, group {group}; see supports()")
    rows = _block_rows(count) if config.rows is None else config.rows
    if not 8 <= rows <= 256 or rows % 8:
        raise ValueError(f"GpuConfig.rows must be a multiple of 8 from 8 to 256, got {rows}")
    is_float = x.dtype not in (jnp.int8, jnp.float8_e4m3fn)
    step = config.length
    if step is None:
        step = next((each for each in lengths if each <= 128 or rows <= FEW_ROWS), lengths[-1])
    if step not in lengths:
        raise ValueError(f"GpuConfig.length must be one of {lengths} for K = {length}, group {group}, got {step}")
    steps = length // step
    split = config.split
    if split is None:
        blocks = out // CHANNELS * -(-count // rows)
        wanted = 2 * MULTIPROCESSORS // blocks if is_float and rows <= 4 * FEW_ROWS else 1
        split = max(n for n in (1, 2, 4, 8) if n == 1 or (n <= wanted and steps % n == 0 and steps // n >= 4))
    if split < 1 or steps % split or (split > 1 and x.dtype == jnp.int8):
        raise ValueError(
            f"GpuConfig.split must divide {steps} steps, and be 1 for int8 activations (one order of sums), got {split}"
        )
    bits = 4 if matrix.weight.dtype == jnp.int4 else 8
    stage = step * (CHANNELS * bits // 8 + rows * x.dtype.itemsize) + 4 * CHANNELS * max(1, step // group)
    stages = config.stages
    if stages is None:
        stages = max(2, min(6, STAGE_BYTES // stage))
    span = step if groups == 1 else group
    needs_smem = span * x.dtype.itemsize == 32 and matrix.weight.dtype == jnp.int4
    return gpu_kernel.Tiles(
        out=CHANNELS,
        rows=rows,
        length=step,
        group=span,
        stages=stages,
        split=split,
        via_smem=config.interpret or needs_smem if config.via_smem is None else config.via_smem,
    )


IMPLEMENTATION = Implementation("mosaic_gpu", supports, run, cost, GpuConfig, candidates, sums=True)
