"""Coordinate descent on codes, and the best scales for given codes: what follows any rounding and never makes it worse.

``tr((Q - W)^T H (Q - W))`` is quadratic in one row of ``Q`` with the others fixed: its minimum over the grid is the
nearest value to ``q_k - [H (Q - W)]_k / H_kk``. With the levels fixed it is quadratic in the scales of an output:
``min_s |diag(levels) B s - w|_H`` with ``B`` the membership of rows in groups, a small linear system per output.

Reference: Hastie, Tibshirani, Friedman, The Elements of Statistical Learning, 2009, section 3.8.6 (coordinate descent);
the alternation with scales is that of LNQ (Kim et al., GuidedQuant, 2025, https://arxiv.org/abs/2505.07004, Algorithm 1),
whose codebooks are free where scales are here.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lowbit.core.grid import Grid
from lowbit.core.rounding import rounded_product

from .shapes import group_sums

_BLOCK = 32
"""Rows between two products with the whole moment: a sweep of 1024 x 1024 takes 19 ms of a core, in blocks of 128 rows 36."""


@jax.jit(static_argnames=("sweeps",))
def descend(
    weight: Float[Array, "in out"],
    levels: Float[Array, "in out"],
    moment: Float[Array, "in in"],
    grid: Grid,
    *,
    sweeps: int = 1,
) -> Float[Array, "in out"]:
    """Returns levels whose error is at most that of ``levels``, after ``sweeps`` passes over the rows.

    Args:
        weight: the target, float32.
        levels: where to start, zero point included.
        moment: ``H``, damped: its diagonal must be positive.
        grid: scales, zero points and format.
        sweeps: passes over all rows.
    """
    size = weight.shape[0]
    length = min(_BLOCK, size)
    blocks = -(-size // length)
    end = blocks * length - size
    multiply = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    wide = jnp.pad(moment, ((0, end), (0, end))) + jnp.diag(jnp.pad(jnp.zeros(size), (0, end), constant_values=1.0))
    target = jnp.pad(weight.astype(jnp.float32), ((0, end), (0, 0)))
    groups = jnp.pad(grid.group, (0, end))

    def one_block(block: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        off, levels = state
        first = block * length
        rows = lax.dynamic_slice_in_dim(wide, first, length)
        within = lax.dynamic_slice_in_dim(rows, first, length, axis=1)
        slope = multiply(rows, off)
        here = lax.dynamic_slice_in_dim(target, first, length)
        group = lax.dynamic_slice_in_dim(groups, first, length)
        own = lax.dynamic_slice_in_dim(off, first, length)
        kept = lax.dynamic_slice_in_dim(levels, first, length)
        scale = grid.scale[group]
        zero = None if grid.zero is None else grid.zero[group]

        def one_row(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            own, moved, kept = state
            steep = slope[i] + multiply(within[i], moved)
            z = None if zero is None else zero[i]
            curve = within[i, i]
            best = here[i] + own[i] - steep / curve
            level = grid.nearest_levels(best, scale[i], z)
            off = rounded_product(level if z is None else level - z, scale[i]) - here[i]
            step = off - own[i]
            is_better = step * (2.0 * steep + curve * step) < 0  # rounding errors must not make it worse
            step = jnp.where(is_better, step, 0.0)
            level = jnp.where(is_better, level, kept[i])
            return own.at[i].add(step), moved.at[i].add(step), kept.at[i].set(level)

        own, _, kept = lax.fori_loop(0, length, one_row, (own, jnp.zeros_like(own), kept))
        return (
            lax.dynamic_update_slice_in_dim(off, own, first, axis=0),
            lax.dynamic_update_slice_in_dim(levels, kept, first, axis=0),
        )

    start = jnp.pad(levels, ((0, end), (0, 0)))
    off = jnp.pad(grid.values(levels), ((0, end), (0, 0))) - target

    def sweep(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        return lax.fori_loop(0, blocks, one_block, state)

    _, levels = lax.fori_loop(0, sweeps, sweep, (off, start))
    return levels[:size]


@jax.jit
def refit(
    weight: Float[Array, "in out"],
    levels: Float[Array, "in out"],
    moment: Float[Array, "in in"],
    grid: Grid,
    pulled: Float[Array, "in out"] | None = None,
) -> Grid:
    """Returns the grid with the scales that are best for ``levels``: least squares in the norm of ``H``, per output.

    ``(B^T L H L B) s = B^T L H w`` with ``L`` the centered levels of the output. A scale is kept where the system says
    nothing about it (all its levels are zero) or where the new one would change sign or leave the finite range.

    Args:
        weight: the target, float32.
        levels: zero point included.
        moment: ``H``.
        grid: its scales are replaced; zero points and format stay.
        pulled: ``H w``, where it is known; it does not change from round to round.
    """
    multiply = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    count = grid.scale.shape[0]
    centered = levels if grid.zero is None else levels - grid.zero[grid.group]
    pulled = multiply(moment, weight.astype(jnp.float32)) if pulled is None else pulled
    right = group_sums(centered * pulled, grid.group, count)

    def one_group(group: Array) -> Array:
        member = jnp.where((grid.group == group)[:, None], centered, 0.0)
        return group_sums(centered * multiply(moment, member), grid.group, count)

    if count == 1:  # a quotient: no linear system to compile
        own = jnp.sum(centered * multiply(moment, centered), axis=0, keepdims=True)
        scale = (right + (1e-6 * own + 1e-30) * grid.scale) / (own + (1e-6 * own + 1e-30))
    else:
        system = jnp.moveaxis(lax.map(one_group, jnp.arange(count)), 2, 0)  # [out, group, group]
        size = jnp.trace(system, axis1=1, axis2=2) / count
        steady = system + (1e-6 * size + 1e-30)[:, None, None] * jnp.eye(count)
        # The damping pulls to the scale that is there, not to zero.
        pull = right.T + (1e-6 * size + 1e-30)[:, None] * grid.scale.T
        scale = jnp.linalg.solve(steady, pull[..., None])[..., 0].T
    is_known = group_sums(jnp.square(centered), grid.group, count) > 0
    ratio = scale / grid.scale
    is_good = is_known & jnp.isfinite(ratio) & (ratio > 0.25) & (ratio < 4.0)
    return dataclasses.replace(grid, scale=jnp.where(is_good, scale, grid.scale))
