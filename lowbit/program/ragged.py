"""Products of rows by groups: ``lax.ragged_dot``, read as a loop over the groups.

Row ``i`` of the left operand meets the matrix of its group; rows behind the last group give zeros. Written out, every turn
multiplies all rows with the matrix of one group, a layer of stacked weights, and keeps the rows of that group. That is how XLA
computes it on a CPU too. Nothing is read of the other forms (groups along the contraction, which gradients have, or along a
batch axis; a group offset): they stay hidden products.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .eqn import Eqn


def is_read(eqn: Eqn) -> bool:
    """Returns whether a ragged product can be read: rows in groups, and matrices that one axis counts."""
    params = eqn.params
    numbers, rank = params["ragged_dot_dimension_numbers"], len(eqn.invars[2].aval.shape)
    (left, _), (batch, _) = numbers.dot_dimension_numbers
    rows, groups = numbers.lhs_ragged_dimensions, numbers.rhs_group_dimensions
    is_plain = len(eqn.invars) == 3 and params.get("group_offset") is None and params.get("out_sharding") is None
    return is_plain and len(rows) == len(groups) == 1 and rows[0] not in (*left, *batch) and rank in (1, 1 + len(batch))


def body(eqn: Eqn) -> Any:
    """Returns the closed jaxpr that a ragged product is read as: of its three operands."""
    params = eqn.params
    numbers = params["ragged_dot_dimension_numbers"]
    (left, right), (left_batch, right_batch) = numbers.dot_dimension_numbers
    axes = tuple(tuple(int(i) for i in axes) for axes in (left, right, left_batch, right_batch))
    row, group = int(numbers.lhs_ragged_dimensions[0]), int(numbers.rhs_group_dimensions[0])
    shapes = tuple(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars)
    return _traced(axes, row, group, params["precision"], jnp.dtype(eqn.outvars[0].aval.dtype), shapes)


@functools.lru_cache(maxsize=256)
def _traced(
    axes: tuple[tuple[int, ...], ...], row: int, group: int, precision: Any, dtype: Any, shapes: tuple[Any, ...]
) -> Any:
    left, right, left_batch, right_batch = axes
    right, right_batch = (tuple(i - (i > group) for i in each) for each in (right, right_batch))
    free = [i for i in range(len(shapes[0].shape)) if i not in (*left, *left_batch)]
    at = len(left_batch) + free.index(row)

    def run(x: Any, matrices: Any, sizes: Any) -> Any:
        ends = jnp.cumsum(sizes, axis=-1)
        bounds = (jnp.moveaxis(each, -1, 0) for each in (ends - sizes, ends))
        places = jnp.arange(x.shape[row], dtype=sizes.dtype)

        def turn(so_far: Any, of_group: Any) -> tuple[Any, None]:
            matrix, start, end = of_group
            product = lax.dot_general(
                x, matrix, ((left, right), (left_batch, right_batch)), precision, preferred_element_type=dtype
            )
            mine = (places >= start[..., None]) & (places < end[..., None])
            shape = [n if i < len(left_batch) and mine.ndim > 1 else 1 for i, n in enumerate(product.shape)]
            shape[at] = x.shape[row]
            return so_far + jnp.where(mine.reshape(shape), product, jnp.zeros((), dtype)), None

        out = jax.eval_shape(
            lambda x, m: lax.dot_general(x, m, ((left, right), (left_batch, right_batch))),
            x,
            jnp.moveaxis(matrices, group, 0)[0],
        )
        return lax.scan(turn, jnp.zeros(out.shape, dtype), (jnp.moveaxis(matrices, group, 0), *bounds))[0]

    return jax.make_jaxpr(run)(*shapes)
