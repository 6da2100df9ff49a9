"""The triangular factor of a second moment: what every sequential rounding reads.

For a weight ``W [K, N]`` whose inputs have the second moment ``H = X X^T / n`` (``[K, K]``), the squared error of the
output of a rounded weight ``Q`` is ``tr((Q - W)^T H (Q - W))``. With ``H = V V^T``, ``V`` upper triangular, it is
``sum_k c_k |(Q - W)_k + sum_{j < k} (Q - W)_j V_jk / V_kk|^2`` with ``c_k = V_kk^2``, the variance of input ``k`` given
all later ones: rounding in the order of ``k`` can cancel, at every row, what the rows before it did wrong.

Reference: Frantar et al., GPTQ, 2023, https://arxiv.org/abs/2210.17323, section 3.3, in the form of Chee et al., QuIP,
2023, https://arxiv.org/abs/2307.13304, section 3 (LDLQ): the same numbers without the inverse of ``H``.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lowbit.core.checks import is_traced

ORDERS = ("natural", "diagonal", "reversed")
"""In which order rows are rounded: as they are; largest ``H_kk`` first; from the end."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Factor:
    """``H`` with damping, in the order in which rows are rounded.

    Attributes:
        order: the row of ``W`` that is rounded first, second, ...
        feedback: ``V_jk / V_kk`` above the diagonal, zero elsewhere; in that order.
        variance: ``c``, of every row of ``W``, in its own order.
        damped: ``H`` with damping, in its own order.
        is_dead: rows whose input was zero throughout; their weight is rounded to nearest.
    """

    # `Any`: as a pytree it also holds what `jax.vmap` puts in place of arrays; several factors have an axis in front.
    order: "Int[Array, '*matrix in'] | Any"
    feedback: "Float[Array, '*matrix in in'] | Any"
    variance: "Float[Array, '*matrix in'] | Any"
    damped: "Float[Array, '*matrix in in'] | Any"
    is_dead: "Bool[Array, '*matrix in'] | Any"


def factor(
    moment: Float[Array, "in in"], *, damping: float = 0.01, order: str = "diagonal", name: str = "the operation"
) -> Factor:
    """Returns the factor of a second moment.

    Args:
        moment: ``H``, symmetric, positive semidefinite, float32.
        damping: added to the diagonal, as a share of its mean over inputs that are not dead.
        order: one of `ORDERS`.
        name: of the operation, for errors.

    Raises:
        ValueError: for another order or damping; where values are known, for ``H`` with NaN, without any input, or not
            positive definite with this damping.
    """
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    if not 0.0 <= damping:
        raise ValueError(f"damping must be zero or positive, got {damping}")
    factored = _factor(moment, damping, order)
    if not is_traced(factored.variance):
        _check(moment, factored, damping, name)
    return factored


@jax.jit(static_argnames=("order",))
def _factor(moment: Array, damping: Array | float, order: str) -> Factor:
    size = moment.shape[0]
    diagonal = jnp.diagonal(moment)
    is_dead = diagonal <= 0
    alive = jnp.maximum(jnp.sum(~is_dead), 1).astype(jnp.float32)
    mean = jnp.sum(jnp.where(is_dead, 0.0, diagonal)) / alive
    fill = jnp.where(is_dead, jnp.where(mean > 0, mean, 1.0), 0.0)
    apart = jnp.where(is_dead[:, None] | is_dead[None, :], 0.0, 0.5 * (moment + moment.T))
    damped = apart + jnp.diag(fill + damping * mean)
    permutation = {
        "natural": lambda: jnp.arange(size),
        "reversed": lambda: jnp.arange(size)[::-1],
        "diagonal": lambda: jnp.argsort(-jnp.diagonal(damped), stable=True),
    }[order]()
    ordered = damped[permutation][:, permutation]
    lower = jnp.linalg.cholesky(ordered[::-1, ::-1])
    upper = lower[::-1, ::-1]
    pivots = jnp.diagonal(upper)
    feedback = jnp.triu(upper / pivots[None, :], 1)
    variance = jnp.zeros(size, jnp.float32).at[permutation].set(jnp.square(pivots))
    return Factor(permutation, feedback, variance, damped, is_dead)


def _check(moment: Array, found: Factor, damping: float, name: str) -> None:
    if not bool(jnp.all(jnp.isfinite(moment))):
        raise ValueError(f"{name}: the second moment of its inputs holds NaN or infinity: a batch did")
    if bool(jnp.all(found.is_dead)):
        raise ValueError(f"{name}: its inputs were zero in every batch; calibrate with inputs that reach it")
    if not bool(jnp.all(jnp.isfinite(found.feedback))) or not bool(jnp.all(found.variance > 0)):
        least = float(jnp.linalg.eigvalsh(found.damped)[0])
        raise ValueError(
            f"{name}: the second moment of its inputs is not positive definite with a damping of {damping:g} (least "
            f"eigenvalue {least:.3g}): give more calibration samples, or a larger damping"
        )


def error(
    weight: Float[Array, "in out"], rounded: Float[Array, "in out"], moment: Float[Array, "in in"]
) -> Float[Array, " out"]:
    """Returns ``(q - w)^T H (q - w)`` of every output: the mean squared error of its results; float32."""
    off = rounded - weight
    return jnp.sum(off * jnp.matmul(moment, off, precision=jax.lax.Precision.HIGHEST), axis=0)
