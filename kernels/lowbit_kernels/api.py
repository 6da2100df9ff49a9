"""`quant_matmul` and `explain`: the checks, the choice of implementation, and the gradients.

STABLE: both signatures.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int32, Integer, Num

from lowbit_kernels import checks, sharded, tuning
from lowbit_kernels.checks import CODES, FLOATS
from lowbit_kernels.cpu.prepare import PreparedMatrix, check_prepared, restore
from lowbit_kernels.implementations import report, select, select_sums
from lowbit_kernels.matrix import PackedMatrix, check_matrix, dequantize_matrix, levels_matrix, merge_factors
from lowbit_kernels.numerics import StaticActivation, activation_codes, check_activation, quantize_fp8, rounded_product
from lowbit_kernels.pallas import gpu
from lowbit_kernels.pallas.gpu import KMinorMatrix
from lowbit_kernels.platforms import INTERPRETERS, default_platform, platform_named
from lowbit_kernels.spec import Implementation, MatmulSpec

Weights = PackedMatrix | PreparedMatrix | KMinorMatrix
Activation = StaticActivation | str | None


def quant_matmul(
    x: Num[Array, "*batch in"],
    packed: Weights,
    *,
    activation: Activation = None,
    out_dtype: Any = None,
    implementation: str | None = None,
    config: Any = None,
    platform: str | None = None,
) -> Float[Array, "*batch out"]:
    """`x @ W` for packed low-bit weights `W` of shape `(K, N)`.

    With `activation` None the activations stay float and are summed in float32, in any order (error at most
    `c * eps * sqrt(K)` of `|x| @ |W|`). Otherwise both operands are integers, the sum over K is exact in int32 per
    group, and the result is the same to the last bit in every implementation (`numerics.py` says each operation).

    Args:
        x: `(..., K)` float32, bfloat16 or float16; or int8/uint8 codes with a `StaticActivation` that says their grid.
        packed: a `PackedMatrix`, or the same `prepare`d once for the CPU kernels, or by `pallas.gpu.prepare` for Hopper's.
        activation: None, "int8" (dynamic: symmetric, one scale per row), "fp8" (the same in float8_e4m3fn), or a
            `StaticActivation`. "fp8" rounds x and then sums in float32, as None does.
        out_dtype: of the result, cast once at the end; default x's dtype, float32 for codes.
        implementation: None takes the first that can run (`explain` says which); a name runs or raises.
        config: an implementation's own options, for instance `CpuConfig`; needs `implementation`. None takes what was
            measured for this shape (`tuning.lookup`), else the implementation's heuristic.
        platform: what the call is traced for (`platforms.PLATFORMS`, or `INTERPRETERS` to run its kernels in Pallas'
            interpreter); None is the default platform. `platforms.by_platform` chooses when lowering.

    Returns:
        `(..., N)` of `out_dtype`.

    Differentiable in `x`, in `packed.scales` and in `StaticActivation.scale`; rounding passes gradients straight
    through, and a value clipped by a static grid passes none. Works under `jit`, `vmap` (also over stacked weights)
    and inside `shard_map`, where a split over K is the caller's `psum`.

    Raises:
        ValueError: shapes, dtypes or options that do not fit; the message names both sides.
        TypeError: what is no array, no packed matrix or no dtype.
        NotImplementedError: the named implementation cannot run this; the message says why.

    >>> from lowbit_kernels import pack_matrix
    >>> w = pack_matrix(jnp.array([[1, -2], [3, 4]]), jnp.array([[0.5, 2.0]]), bits=4)
    >>> quant_matmul(jnp.array([[1.0, 1.0]]), w).tolist()
    [[2.0, 4.0]]
    """
    x = checks.array("quant_matmul: x", x)
    spec = matmul_spec(x, packed, activation, out_dtype, platform)
    if config is not None and implementation is None:
        raise ValueError("config belongs to one implementation: pass its name as `implementation`")
    if (elsewhere := getattr(config, "platform", None)) is not None:
        spec = dataclasses.replace(spec, platform=elsewhere)
    chosen = select(spec, implementation)
    config = _config(chosen, spec) if config is None else config
    rows = x.reshape(spec.rows, x.shape[-1])
    if spec.rows == 0:
        return jnp.zeros((*x.shape[:-1], packed.shape[1]), spec.out_dtype)
    if isinstance(activation, StaticActivation):
        scale = jnp.asarray(activation.scale, jnp.float32)
        activation = dataclasses.replace(
            activation, scale=scale.reshape(-1) if scale.ndim else scale, zero=jnp.asarray(activation.zero, jnp.int32)
        )
    call = _Call(chosen.name, spec.out_dtype, config, spec, activation if isinstance(activation, str) else None)
    traced = activation if isinstance(activation, StaticActivation) else None
    result: Array = _matmul(call, rows, packed, traced)
    return jnp.reshape(result, (*x.shape[:-1], packed.shape[1]))


def quant_sums(
    codes: Integer[Array, "*batch in"],
    packed: Weights,
    *,
    zero: Any = 0,
    implementation: str | None = None,
    platform: str | None = None,
) -> Int32[Array, "*batch out"]:
    """`sum_k (codes - zero) * (q_w - z_w)`, the int32 sums that `quant_matmul` scales, exact: for what scales in integers.

    Args:
        codes: `(..., K)` int8 or uint8.
        packed: a weight of one group, `group = K`; its scales are not read.
        zero: zero point of the codes.
        implementation: None takes the first that can; a name runs or raises.
        platform: as in `quant_matmul`.

    Raises:
        ValueError: shapes, dtypes or options that do not fit.
        TypeError: what is no array, no packed matrix or no number.
        NotImplementedError: the named implementation cannot run this, or gives no sums.

    >>> from lowbit_kernels import pack_matrix
    >>> w = pack_matrix(jnp.array([[1, -2], [3, 4]]), jnp.ones((1, 2)), bits=4)
    >>> quant_sums(jnp.array([[1, 10]], jnp.int8), w, zero=1).tolist()
    [[27, 36]]
    """
    codes = checks.array("quant_sums: codes", codes, "code")
    check_weights(packed)
    checks.number("quant_sums: zero", zero, is_integer=True)
    if codes.shape[-1:] != packed.shape[:1]:
        raise ValueError(f"quant_sums: codes must have shape (..., K) with K = {packed.shape[0]}, got {codes.shape}")
    if packed.groups > 1:
        raise ValueError(f"quant_sums: packed must be a weight of one group, got {packed.groups} groups")
    lo, hi = (0, 255) if codes.dtype == jnp.uint8 else (-128, 127)
    grid = StaticActivation(jnp.ones((), jnp.float32), jnp.asarray(zero, jnp.int32), lo, hi)
    spec = matmul_spec(codes, packed, grid, "float32", platform)
    chosen = select_sums(spec, implementation)
    if packed.factors is not None or (chosen.name != spec.prepared and spec.prepared):
        packed = merge_factors(canonical(packed))
    rows = codes.reshape(spec.rows, codes.shape[-1])
    result = chosen.run(rows, packed, grid, "int32", _config(chosen, spec))
    return result.reshape(*codes.shape[:-1], packed.shape[1])


def explain(
    x: Num[Array, "*batch in"] | jax.ShapeDtypeStruct,
    packed: Weights,
    *,
    activation: Activation = None,
    out_dtype: Any = None,
    implementation: str | None = None,
    platform: str | None = None,
) -> str:
    """Text that says which implementation `quant_matmul` runs for these arguments and why the others do not.

    Reads shapes and dtypes only: `x` may be a `jax.ShapeDtypeStruct`.

    Raises:
        ValueError: as `quant_matmul`.
        TypeError: as `quant_matmul`.
        NotImplementedError: the named implementation cannot run this.
    """
    checks.described("explain: x", x)
    return report(matmul_spec(x, packed, activation, out_dtype, platform), implementation)


def _config(chosen: Implementation, spec: MatmulSpec) -> Any:
    """What was measured for a spec, or what asks for the interpreter."""
    if spec.platform in INTERPRETERS:
        return chosen.config(interpret=True) if hasattr(chosen.config, "interpret") and chosen.config else None
    return tuning.lookup(chosen, spec)


def matmul_spec(
    x: Any, packed: Weights, activation: Activation, out_dtype: Any, platform: str | None = None
) -> MatmulSpec:
    """The static description of a call, after checking that its parts fit together."""
    check_weights(packed)
    length, out = packed.shape
    if len(x.shape) < 1 or x.shape[-1] != length:
        raise ValueError(
            f"x must have shape (..., K) with K = {length} of the packed matrix {packed.shape}, got {x.shape}"
        )
    name = x.dtype.name
    if name not in FLOATS + CODES:
        raise ValueError(f"x must be one of {FLOATS + CODES}, got {name}")
    if name in CODES and not isinstance(activation, StaticActivation):
        raise ValueError(f"x holds {name} codes: pass their grid as activation=StaticActivation(scale, zero, lo, hi)")
    if isinstance(activation, StaticActivation):
        check_activation(activation, x.shape[:-1])
        if (name == "uint8" and activation.lo < 0) or (name == "int8" and activation.hi > 127):
            raise ValueError(f"x holds {name} codes but StaticActivation says [{activation.lo}, {activation.hi}]")
        kind = "static"
    elif activation is None or (isinstance(activation, str) and activation == "fp8"):
        kind = "float"  # e4m3 codes are exact in any dtype of x, so that every implementation takes them
    elif isinstance(activation, str) and activation == "int8":
        kind = "dynamic"
    else:
        got = checks.kind_of(activation)
        raise ValueError(f'activation must be None, "int8", "fp8" or a StaticActivation, got {got}')
    if kind != "float":
        _check_integers(packed)
    if out_dtype is None:
        out_dtype = x.dtype if name in FLOATS else jnp.float32
    out_name = checks.float_dtype("out_dtype", out_dtype)
    return MatmulSpec(
        rows=int(np.prod(x.shape[:-1], dtype=np.int64)),
        length=length,
        out=out,
        bits=packed.bits,
        signed=packed.signed,
        group=packed.group,
        groups=packed.groups,
        affine=packed.zeros is not None,
        codebook=0 if packed.codebook is None else 1 << packed.bits,
        factors=packed.factors is not None,
        scale_dtype=packed.scales.dtype.name,
        x_dtype=name,
        out_dtype=out_name,
        activation=kind,
        prepared="cpu"
        if isinstance(packed, PreparedMatrix)
        else "mosaic_gpu"
        if isinstance(packed, KMinorMatrix)
        else None,
        platform=default_platform() if platform is None else platform_named(platform),
    )


def check_weights(packed: Any) -> None:
    """Raises ValueError or TypeError where `packed` is no packed matrix, or one whose fields do not fit together."""
    kinds = (PackedMatrix, PreparedMatrix, KMinorMatrix)
    checks.instance("packed", packed, kinds, "pack_matrix or prepare")
    if isinstance(packed, PreparedMatrix):
        check_prepared(packed)
    elif isinstance(packed, PackedMatrix):
        check_matrix(packed)


def _check_integers(packed: Weights) -> None:
    """Raises ValueError where the sums are not integers that fit in int32, whatever the codes are."""
    if packed.codebook is not None:
        raise ValueError("a codebook's levels are not integers: pass activation=None with codebook weights")
    if packed.factors is not None:
        if packed.length * 128 * 255 >= 1 << 31:
            raise ValueError(
                f"{packed.length} inputs with integer scales of groups can sum above int32; at most 65793 can"
            )
        return
    most = largest_group(packed.bits, signed=packed.signed, affine=packed.zeros is not None)
    if packed.group > most:
        raise ValueError(
            f"a group of {packed.group} codes of {packed.bits} bits can sum above int32; "
            f"at most {most} codes can share a scale: use smaller groups"
        )


def largest_group(bits: int, *, signed: bool, affine: bool) -> int:
    """How many products of 8-bit activations and codes of a width always fit in int32: what may share a scale.

    >>> largest_group(8, signed=True, affine=False), largest_group(4, signed=True, affine=True)
    (65793, 526344)
    """
    bits = checks.integer("largest_group: bits", bits, 1, 8)
    checks.flag("largest_group: signed", signed)
    checks.flag("largest_group: affine", affine)
    levels = 1 << bits if affine or not signed else 1 << (bits - 1)
    return ((1 << 31) - 1) // (levels * 255)


class _Call(NamedTuple):
    """The static half of a call: hashable, what custom_vjp does not differentiate."""

    name: str
    out_dtype: str
    config: Any
    spec: MatmulSpec
    activation: str | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _matmul(call: _Call, x: Array, packed: Weights, static: StaticActivation | None) -> Array:
    chosen = select(call.spec, call.name)
    if chosen.name != call.spec.prepared:
        packed = canonical(packed)
    if isinstance(packed, PackedMatrix) and packed.factors is not None and chosen.name != "cpu":
        packed = merge_factors(packed)
    if call.activation == "fp8":
        codes, scale = quantize_fp8(x)
        result = chosen.run(codes.astype(x.dtype), packed, None, "float32", call.config)
        return rounded_product(result, scale[:, None]).astype(call.out_dtype)
    activation = call.activation if static is None else static
    if chosen.sums and chosen.name != "xla" and isinstance(packed, PackedMatrix | KMinorMatrix):
        return sharded.matmul(sharded.Run(chosen.run, call.config), x, packed, activation, call.out_dtype)
    return chosen.run(x, packed, activation, call.out_dtype, call.config)


def canonical(packed: Weights) -> PackedMatrix:
    """Returns a packed matrix in its canonical order, whatever machine it was prepared for."""
    if isinstance(packed, PreparedMatrix):
        return restore(packed)
    return gpu.restore(packed) if isinstance(packed, KMinorMatrix) else packed


def _forward(call: _Call, x: Array, packed: Weights, static: StaticActivation | None):
    return _matmul(call, x, packed, static), (x, packed, static)


def _backward(call: _Call, residuals, grad: Array):
    x, weights, static = residuals
    packed = merge_factors(canonical(weights))
    grad = grad.astype(jnp.float32)
    dx = jnp.dot(grad, dequantize_matrix(packed).T, precision=lax.Precision.HIGHEST)
    activation = call.activation if static is None else static
    codes = x
    if activation is None:
        steps, scale = x.astype(jnp.float32), jnp.ones((), jnp.float32)
    elif activation == "fp8":
        codes, scale = quantize_fp8(x)
        steps = codes.astype(jnp.float32)
    else:
        codes, zero, scale = activation_codes(x, activation)
        steps = (codes.astype(jnp.int32) - zero).astype(jnp.float32)
    rows = scale[:, None] if scale.ndim else scale
    d_scales = _scales_gradient(steps * rows, packed, grad)
    d_static = None
    if static is not None:
        slope = steps
        if not jnp.issubdtype(x.dtype, jnp.integer):
            inside = jnp.logical_and(codes > static.lo, codes < static.hi)
            inside = inside | (jnp.abs(x.astype(jnp.float32) / rows - steps) <= 0.5)
            slope = steps - jnp.where(inside, x.astype(jnp.float32) / rows, 0.0)
            product, dx = dx * slope, jnp.where(inside, dx, 0.0)
        else:
            product = dx * slope
        d_scale = jnp.sum(product, axis=1) if scale.ndim else jnp.sum(product)
        d_static = dataclasses.replace(static, scale=d_scale, zero=_no_gradient(static.zero))
    d_x = dx.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else _no_gradient(x)
    d_packed = jax.tree.map(lambda leaf: jnp.zeros_like(leaf) if _is_float(leaf) else _no_gradient(leaf), weights)
    if isinstance(weights, PreparedMatrix):
        blocks = jnp.pad(d_scales, ((0, 0), (0, weights.scales.shape[0] * 16 - weights.out)))
        d_scales = blocks.reshape(packed.groups, -1, 16).swapaxes(0, 1)
    d_packed = dataclasses.replace(d_packed, scales=d_scales.astype(weights.scales.dtype))
    return d_x, d_packed, d_static


def _scales_gradient(x: Array, packed: PackedMatrix, grad: Array) -> Array:
    """`dL/ds[g, n] = sum_m grad[m, n] * sum over k in g of x[m, k] * level[k, n]`, as `(x^T grad) * level` summed by group."""
    products = jnp.dot(x.T, grad, precision=lax.Precision.HIGHEST) * levels_matrix(packed).astype(jnp.float32)
    short = packed.groups * packed.group - packed.length
    products = jnp.pad(products, ((0, short), (0, 0)))
    return jnp.sum(products.reshape(packed.groups, packed.group, -1), axis=1)


def _is_float(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _no_gradient(leaf: Array) -> np.ndarray:
    return np.zeros(leaf.shape, jax.dtypes.float0)


_matmul.defvjp(_forward, _backward)
