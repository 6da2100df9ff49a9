"""GPTQ: round row by row, each correcting what the rows before it did wrong.

Reference: Frantar, Ashkboos, Hoefler, Alistarh, GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers, 2023, https://arxiv.org/abs/2210.17323, Algorithm 1, as LDLQ (Chee et al., QuIP, 2023,
https://arxiv.org/abs/2307.13304, Theorem 6 shows that both are the same).

Differs from the paper: scales are given beforehand (static groups), so that any order of rows is served without a
permutation at run time, and the result does not depend on the block size; rows go by falling ``H_kk``.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lowbit.core.grid import Grid
from lowbit.core.rounding import rounded_product

from .factor import Factor

_BLOCK = 128
"""Rows whose corrections are summed one by one; those of earlier rows come from one product per block."""


def gptq(weight: Float[Array, "in out"], known: Factor, grid: Grid) -> Float[Array, "in out"]:
    """Returns the levels of ``weight``, rounded in the order of ``known``: float32, zero point included.

    ``level_k = nearest(w_k + sum_{j < k} (w_j - q_j) V_jk / V_kk)``, ``q`` the values already rounded.

    Args:
        weight: float32. Another target than the weight (see `lowbit.solvers.target`) is rounded the same way.
        known: from `lowbit.solvers.factor.factor`.
        grid: scales, zero points and format.
    """
    return _gptq(weight.astype(jnp.float32), known, grid)


@jax.jit
def _gptq(weight: Array, known: Factor, grid: Grid) -> Array:
    size, columns = weight.shape
    length = min(_BLOCK, size)
    blocks = -(-size // length)
    end = blocks * length - size
    ordered = jnp.pad(weight[known.order], ((0, end), (0, 0)))
    groups = jnp.pad(grid.group[known.order], (0, end))
    feedback = jnp.pad(known.feedback, ((0, end), (0, end)))
    multiply = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)

    def one_block(errors: Array, block: Array) -> tuple[Array, Array]:
        first = block * length
        rows = lax.dynamic_slice_in_dim(ordered, first, length)
        group = lax.dynamic_slice_in_dim(groups, first, length)
        across = lax.dynamic_slice_in_dim(feedback, first, length, axis=1)
        within = lax.dynamic_slice_in_dim(across, first, length)
        moved = rows + multiply(across.T, errors)  # errors of this block and later ones are still zero
        scale = grid.scale[group]
        zero = None if grid.zero is None else grid.zero[group]

        def one_row(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            own, levels = state
            target = moved[i] + multiply(within[:, i], own)
            z = None if zero is None else zero[i]
            level = grid.nearest_levels(target, scale[i], z)
            value = rounded_product(level if z is None else level - z, scale[i])
            return own.at[i].set(rows[i] - value), levels.at[i].set(level)

        empty = jnp.zeros((length, columns), jnp.float32)
        own, levels = lax.fori_loop(0, length, one_row, (empty, empty))
        return lax.dynamic_update_slice_in_dim(errors, own, first, axis=0), levels

    start = jnp.zeros((blocks * length, columns), jnp.float32)
    _, levels = lax.scan(one_block, start, jnp.arange(blocks))
    levels = levels.reshape(blocks * length, columns)[:size]
    return jnp.zeros_like(weight).at[known.order].set(levels)
