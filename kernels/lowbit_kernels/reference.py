"""The specification in plain jnp: slow and obvious. Every other implementation is tested against this file."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32, Num

from lowbit_kernels.matrix import PackedMatrix, dequantize_matrix, levels_matrix
from lowbit_kernels.numerics import StaticActivation, activation_codes, rounded_product, scale_groups


def matmul(
    x: Num[Array, "rows in"], packed: PackedMatrix, activation: str | StaticActivation | None
) -> Float32[Array, "rows out"]:
    """`x @ W` in float32: integer contract of `numerics.py`, or float with a float32 accumulator where `activation` is None."""
    if activation is None:
        weights = dequantize_matrix(packed)
        return jnp.dot(x.astype(jnp.float32), weights, precision=jax.lax.Precision.HIGHEST)
    codes, zero, scale = activation_codes(x, activation)
    total = scale_groups(group_sums(codes.astype(jnp.int32) - zero, packed), packed.scales)
    return rounded_product(total, scale[:, None] if scale.ndim else scale)


def group_sums(steps: Int32[Array, "rows in"], packed: PackedMatrix) -> Int32[Array, "groups rows out"]:
    """`acc[g, m, n] = sum over k in group g of steps[m, k] * (q_w - z_w)[k, n]`, exact in int32."""
    short = packed.groups * packed.group - packed.length
    steps = jnp.pad(steps, ((0, 0), (0, short)))
    levels = jnp.pad(levels_matrix(packed), ((0, short), (0, 0)))
    steps = steps.reshape(steps.shape[0], packed.groups, packed.group)
    levels = levels.reshape(packed.groups, packed.group, levels.shape[1])
    return jnp.einsum("mgk,gkn->gmn", steps, levels, preferred_element_type=jnp.int32)
