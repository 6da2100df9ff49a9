"""Data for the kernel tests: heavy-tailed, distinct per argument, in float32."""

import jax
import jax.numpy as jnp
import numpy as np

from lowbit_kernels import PackedMatrix, StaticActivation, code_range, pack_matrix
from lowbit_kernels.shapes import MatmulShape

NF4 = np.array(
    [-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0],
    np.float32,
)  # fmt: skip
ACTIVATIONS = {
    "dynamic": "int8",
    "signed": StaticActivation(jnp.float32(0.031), jnp.int32(-7), -128, 127),
    "unsigned": StaticActivation(jnp.float32(0.023), jnp.int32(101), 0, 255),
    "narrow": StaticActivation(jnp.float32(0.29), jnp.int32(2), -8, 7),
}


def matrix(seed: int, shape: MatmulShape, bits: int, *, signed: bool, affine: bool, bf16: bool = False) -> PackedMatrix:
    rng = np.random.default_rng(seed)
    low, high = code_range(bits, signed)
    groups = -(-shape.length // shape.group)
    zeros = None
    if affine:
        zeros = jnp.asarray(rng.integers(low, high + 1, (groups, shape.out)), jnp.int8 if signed else jnp.uint8)
    return pack_matrix(
        jnp.asarray(rng.integers(low, high + 1, (shape.length, shape.out))),
        jnp.asarray(rng.standard_t(3, (groups, shape.out)) * 0.1, jnp.bfloat16 if bf16 else jnp.float32),
        bits=bits,
        group=shape.group,
        zeros=zeros,
        signed=signed,
    )


def inputs(seed: int, shape: MatmulShape, dtype: str = "float32") -> jax.Array:
    rng = np.random.default_rng(seed + 1000)
    return jnp.asarray(rng.standard_t(3, (shape.rows, shape.length)), jnp.float32).astype(dtype)


def float_bound(x: jax.Array, weights: jax.Array) -> np.ndarray:
    """`4 eps sqrt(K) |x| @ |W|` in float64: the error of a float32 sum of K products, in any order."""
    magnitude = np.abs(np.asarray(x, np.float64)) @ np.abs(np.asarray(weights, np.float64))
    return 4 * np.finfo(np.float32).eps * np.sqrt(x.shape[-1]) * magnitude + 1e-30
