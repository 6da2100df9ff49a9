"""The weight to aim at when the inputs are already rounded.

With float inputs ``X``, rounded inputs ``X_q`` and ``H = X_q X_q^T``, every solver that minimises
``|Q^T X_q - W^T X|^2`` minimises ``|(Q - W*)^T X_q|^2`` up to a constant, with
``W* = W + alpha (H + lambda I)^-1 X_q (X - X_q)^T W`` and ``alpha = 1``.

Reference: QEP (Arai, Ichikawa, 2025, https://arxiv.org/abs/2504.09629, Proposition 5.4, ``alpha = 1/2``), GPTAQ (Li et al.,
2025, https://arxiv.org/abs/2504.02692) and Qronos (Zhang et al., 2025, https://arxiv.org/abs/2505.11695) are this target
with GPTQ behind it; they differ in ``alpha`` and in damping.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


@jax.jit
def target(
    weight: Float[Array, "in out"],
    moment: Float[Array, "in in"],
    cross: Float[Array, "in in"],
    *,
    alpha: float | Array = 1.0,
    damping: float | Array = 0.01,
) -> Float[Array, "in out"]:
    """Returns ``W*``, float32.

    Args:
        weight: ``W``.
        moment: ``X_q X_q^T / n``.
        cross: ``X_q X^T / n``: rounded inputs along the first axis, float ones along the second.
        alpha: how much of the difference is taken back: 0 gives ``W``, 1 all of it; less where samples are few.
        damping: ``lambda``, as a share of the mean of the diagonal of ``moment`` over inputs that are not dead.
    """
    size = moment.shape[0]
    alive = jnp.maximum(jnp.sum(jnp.diagonal(moment) > 0), 1).astype(jnp.float32)
    mean = jnp.trace(moment) / alive
    damped = moment + (damping * mean + jnp.where(mean > 0, 0.0, 1.0)) * jnp.eye(size)
    moved = jnp.matmul(cross - moment, weight.astype(jnp.float32), precision=lax.Precision.HIGHEST)
    lower = jnp.linalg.cholesky(damped)
    solved = jax.scipy.linalg.cho_solve((lower, True), moved)
    return weight.astype(jnp.float32) + alpha * solved
