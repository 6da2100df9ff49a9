"""`replay`: one operation of a plan, alone."""

from typing import Any

from jaxtyping import Array

from lowbit.interpret.operate import compute
from lowbit.plan.rows import Row


def replay(row: Row, left: Any, right: Any) -> Array:
    """Returns what an operation makes of two operands: strides, padding, dilation, groups and dimensions as traced.

    Operands are as the operation reads them, of one layer where the row is inside a scan over layers (`jax.vmap` runs all
    of them); the batch may have another size than the plan was bound with. A `QTensor` on either side is computed as
    `lowbit.simulate` does. It is differentiable and works under jit and vmap.

    Args:
        row: of a plan from `lowbit.bind`.
        left: the first operand; of a look-up, the table.
        right: the second; of a look-up, its indices as the operation reads them (a tuple where it reads several).

    Returns:
        The result, in the operation's own dtype.

    Raises:
        ValueError: for a row that was read from a file, or an operand of another rank than the operation's.

    Example:
        >>> import jax.numpy as jnp
        >>> from lowbit.interpret.bind import bind
        >>> params = {"w": jnp.arange(6.0).reshape(2, 3)}
        >>> plan = bind(lambda p, x: jnp.tanh(p["w"] @ x), {}, params, jnp.ones(3))
        >>> replay(plan["w"], params["w"], jnp.ones(3)).tolist()
        [3.0, 12.0]
    """
    if not isinstance(row, Row):
        raise TypeError(f"row must be a row of a plan, such as plan['head/kernel'], got {type(row).__name__}")
    operation = row.operation
    if operation is None:
        raise ValueError(f"{row.path}: this row was read from a file, which does not hold what was traced: bind again")
    indices = right if isinstance(right, tuple) else (right,)
    given = (left, *indices) if operation.is_lookup else (left, right)
    for i, (value, var) in enumerate(zip(given, operation.eqn.invars, strict=False)):
        name, shape = ("right" if i else "left"), tuple(getattr(value, "shape", ()))
        if len(shape) != len(var.aval.shape):
            raise ValueError(
                f"{row.path}: {name} must have {len(var.aval.shape)} axes, as the operation reads it (when bound it was "
                f"{tuple(var.aval.shape)}), got {tuple(shape)}"
            )
    if len(given) != len(operation.eqn.invars):
        raise ValueError(f"{row.path}: it reads {len(operation.eqn.invars) - 1} indices, got {len(indices)}")
    return compute(operation, left, indices if operation.is_lookup else right)
