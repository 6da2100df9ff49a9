"""The Hopper matmul as an implementation: what it supports, its options, and how the kernel is called.

The kernel wants the weight K-minor, `(N, K)`. `run` transposes the canonical bytes in every call; `prepare` does
it once and `matmul` takes what it returns. The speed of either on a device has not been measured.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

from lowbit_kernels.layout import unpack_codes
from lowbit_kernels.matrix import PackedMatrix, check_matrix
from lowbit_kernels.numerics import FLOAT_MAX, TINY, quantize_dynamic, rounded_product
from lowbit_kernels.spec import Implementation, MatmulSpec

FIRST_JAX = (0, 11)
LENGTHS = (256, 128, 64)  # codes along K in a step, the widest first
CHANNELS = 64  # rows of one wgmma
FEW_ROWS = 16  # up to here a matmul only waits for its weight
MULTIPROCESSORS = 132  # of an H100 or H200
STAGE_BYTES = 100 << 10  # of shared memory in flight: two blocks fit the 227 KB of a multiprocessor
FP8_MAX = 448.0  # the largest e4m3
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KMinorMatrix:
    """A packed matrix in the kernel's order.

    Attributes:
        weight: `(N, K)` int4 (codes of at most 4 bits; two a byte on the device) or int8.
        scales: `(G, N)` float32.
    """

    weight: Any
    scales: Any


def supports(spec: MatmulSpec) -> str | None:
    """None where the kernel runs `spec`, else the reason."""
    if spec.platform not in ("gpu", "interpret"):
        return f"runs on Hopper GPUs, the default platform is {spec.platform} (GpuConfig(interpret=True) interprets)"
    if spec.factors:
        return "takes float scales of groups, not integer ones"
    if jax.__version_info__[:2] < FIRST_JAX:
        return f"needs jax 0.11 or newer (Python 3.12), this is jax {jax.__version__}"
    if spec.platform == "gpu":
        capability = getattr(jax.devices("gpu")[0], "compute_capability", "unknown")
        if capability != "9.0":
            return f"is written for compute capability 9.0 (Hopper), this GPU has {capability}"
        if spec.groups == 1 and spec.bits == 8 and spec.activation == "float" and spec.rows <= FEW_ROWS:
            return "XLA fuses the conversion of 8-bit codes with one scale a channel into its own matmul"
    if spec.affine or spec.codebook or not spec.signed:
        return "reads signed codes without zero points or a codebook"
    if spec.activation == "static":
        return "static activations have a zero point, which needs column sums; pass activation='int8'"
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
    return f"{wider}transposes the weight in every call (pallas.gpu.prepare does it once); speed not measured"


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
        ValueError: zero points, a codebook or unsigned codes.
    """
    check_matrix(packed)
    if packed.zeros is not None or packed.codebook is not None or not packed.signed:
        raise ValueError("pallas.gpu.prepare: takes signed codes without zero points or a codebook")
    if packed.bits == 4 and packed.length % 2 == 0:  # the bytes are int4 pairs already
        pairs = lax.bitcast_convert_type(packed.codes.T, jnp.int4)
        weight = pairs.reshape(packed.shape[1], packed.length)
    else:
        codes = unpack_codes(packed.codes, packed.bits, packed.length, axis=0)
        weight = codes.T.astype(jnp.int4 if packed.bits <= 4 else jnp.int8)
    return KMinorMatrix(weight, packed.scales.astype(jnp.float32))


def matmul(
    x: Float[Array, "rows in"],
    matrix: KMinorMatrix,
    *,
    activation: str | None = None,
    config: GpuConfig = GpuConfig(),
) -> Float32[Array, "rows out"]:
    """`x @ W` in float32.

    Args:
        x: float32 (split into three bfloat16 terms that add up to it, as three times the rows), bfloat16 or float16.
        matrix: from `prepare`.
        activation: None: products are exact, sums are float32. "int8": the contract of `numerics.py`, to the last
            bit. "fp8": each row in e4m3 with the scale `absmax / 448`, rounded to nearest even by the cast; products with
            codes of at most 4 bits are exact, and their sums have the precision of the tensor cores' fp8 accumulator,
            which is less than float32's and not specified; a row with an infinity or NaN gives NaN.
        config: see `GpuConfig`.

    Raises:
        ValueError: shapes or options that do not fit the kernel; the message names both.
    """
    rows, length = x.shape
    out, groups = matrix.weight.shape[0], matrix.scales.shape[0]
    if matrix.weight.shape[1] != length:
        raise ValueError(f"x must have shape (M, K) with K = {matrix.weight.shape[1]}, got {x.shape}")
    if activation not in (None, "int8", "fp8"):
        raise ValueError(f'activation must be None, "int8" or "fp8", got {activation!r}')
    if activation == "fp8" and matrix.weight.dtype != jnp.int4:
        raise ValueError("fp8 activations take codes of at most 4 bits: e4m3 does not hold every int8")
    scale = None
    if activation == "int8":
        x, scale = quantize_dynamic(x)
    elif activation == "fp8":
        x, scale = quantize_fp8(x)
    elif x.dtype == jnp.float32:
        x = _terms(x)
    tiles = _tiles(x, matrix, length // groups, config)
    padded = jnp.pad(x, ((0, -x.shape[0] % tiles.rows), (0, 0)))
    from lowbit_kernels.pallas import gpu_kernel  # needs jax 0.11

    call = gpu_kernel.interpreted if config.interpret else gpu_kernel.matmul
    total = call(padded, matrix.weight, matrix.scales, tiles)
    total = (total[0] if tiles.split == 1 else jnp.sum(total, axis=0))[:, : x.shape[0]]
    if x.shape[0] != rows:
        total = jnp.sum(total.reshape(out, -1, rows), axis=1)
    total = total.T
    return total if scale is None else rounded_product(total, scale[:, None])


def quantize_fp8(x: Float[Array, "rows in"]) -> tuple[Array, Float32[Array, " rows"]]:
    """e4m3 codes of each row and the row's scale, `absmax * float32(1/448)`; zero and non-finite rows as in int8."""
    x = x.astype(jnp.float32)
    absmax = jnp.max(jnp.abs(x), axis=-1)
    scale = jnp.maximum(absmax * jnp.float32(1 / FP8_MAX), jnp.float32(TINY))
    scale = jnp.where(absmax == 0, jnp.ones_like(scale), scale)
    scale = jnp.where(jnp.isfinite(absmax), scale, jnp.full_like(scale, jnp.nan))
    codes = lax.clamp(-FP8_MAX, x * (1 / scale)[:, None], FP8_MAX)
    codes = jnp.where(jnp.isnan(codes), jnp.zeros_like(codes), codes)
    return codes.astype(jnp.float8_e4m3fn), scale


def run(x: Array, packed: PackedMatrix, activation: Any, out_dtype: str, config: object) -> Array:
    """See `Implementation.run`. Traces for a GPU wherever it is called, unless `config` asks for the interpreter."""
    config = GpuConfig() if config is None else config
    if not isinstance(config, GpuConfig):
        raise ValueError(f"implementation 'mosaic_gpu' takes config=GpuConfig(...), got {type(config).__name__}")
    return matmul(x, prepare(packed), activation=activation, config=config).astype(out_dtype)


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


IMPLEMENTATION = Implementation("mosaic_gpu", supports, run, cost, GpuConfig, candidates)
