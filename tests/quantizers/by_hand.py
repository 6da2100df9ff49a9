"""Quantizers on values of one row, whose levels and gradients are worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.core.metrics import mean_squared_error
from lowbit.core.spec import Operand

KEY = jax.random.key(0)


def row(values):
    """One row of inputs or weights, contracted along the last axis."""
    return jnp.asarray([values], jnp.float32)


def operand_of(x, *, is_weight=True):
    return Operand(tuple(x.shape), contract=(x.ndim - 1,), is_weight=is_weight)


def gradients(quantizer, learn, x, fixed=None, *, is_weight=True):
    """fake, its gradient to every value (of the sum), and to every learned leaf by value."""
    operand = operand_of(x, is_weight=is_weight)

    def fake(learn, x):
        return quantizer.fake({"learn": learn, "fixed": fixed or {}}, x, operand)

    by_leaf = jax.jacrev(fake)(learn, x) if learn else {}
    to_x = jax.grad(lambda x: fake(learn, x).sum())(x)
    return fake(learn, x)[0], to_x[0], {k: v.reshape(x.shape[1], -1)[:, 0] for k, v in by_leaf.items()}


def started(q, x):
    """What the quantizer makes of one row that it starts on."""
    return q.fake(q.init(operand_of(x), {"values": x}, KEY), x, operand_of(x))[0]


NORMAL = jax.random.normal(jax.random.key(7), (1, 2**18))
SAMPLING = 0.01
"""Standard error of a mean squared error of 2**18 normals: below sqrt(2 / 2**18) / 0.3; four of them."""


def check_error_on_normal_weights(q, error):
    """The reference value for N(0, 1), up to sampling."""
    operand = operand_of(NORMAL)
    fake = q.fake(q.init(operand, {"values": NORMAL}, KEY), NORMAL, operand)
    np.testing.assert_allclose(mean_squared_error(NORMAL, fake), error, rtol=SAMPLING)
