"""What the gradients of quantizers are compared with: their papers' equations in float64 numpy, over one grid of values.

Steps are powers of two, so that ``x / s`` is exact and a tie or a bound is one in both arithmetics.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.core.quantizer import Quantizer
from lowbit.core.spec import Operand

S = 0.25
"""The step of most cases."""

# In steps: levels, ties, half a step beyond both ends of 4 and of 2 bits, just inside and far out.
STEPS = np.array([
    -40.0, -9.0, -8.75, -8.5, -8.25, -8.0, -7.75, -7.5, -4.0, -2.5, -2.0, -1.5, -1.25, -1.0, -0.5, -0.125, 0.0, 0.125, 0.5,
    0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.25, 3.5, 3.75, 6.5, 7.0, 7.25, 7.5, 7.75, 14.75, 15.0, 15.5, 16.0, 40.0,
])  # fmt: skip


def rng():
    return np.random.default_rng(0)


def pulled(quantizer: Quantizer, learn, x, g, fixed=None, *, is_weight=True, train=False):
    """The gradients of ``sum(g * fake(x))``: to ``x``, and to every learned leaf; and the value."""
    operand = Operand(x.shape, contract=(x.ndim - 1,), is_weight=is_weight)

    @jax.jit
    def run(learn, x):
        state = {"learn": learn, "fixed": {k: jnp.asarray(v, jnp.float32) for k, v in (fixed or {}).items()}}
        if train:
            q = quantizer.train(state, x, operand, key=jax.random.key(1), step=jnp.int32(0))
        else:
            q = quantizer.quantize(state, x, operand)
        return q.dequantize()

    learn = {name: jnp.asarray(value, jnp.float32) for name, value in learn.items()}
    value, pull = jax.vjp(run, learn, jnp.asarray(x, jnp.float32))
    to_learn, to_x = pull(jnp.asarray(g, jnp.float32))
    return np.asarray(to_x), {name: np.asarray(v) for name, v in to_learn.items()}, np.asarray(value)


def close(got, want, terms=1.0):
    """Equal up to the rounding of a sum of ``terms`` products, each of a few roundings."""
    want = np.asarray(want, np.float64)
    bound = 16 * 2.0**-24 * np.maximum(np.abs(want), terms)
    assert (np.abs(np.asarray(got, np.float64) - want) <= bound).all(), (got, want)


def rows(scale=S):
    """Two rows, one the other's mirror image, so that a channel has its own sum."""
    return np.stack([STEPS, -STEPS]) * scale


@dataclasses.dataclass(frozen=True)
class Grid:
    """A signed or unsigned grid with a step and an integer zero point: what the papers' equations run over."""

    low: int
    high: int
    zero: int = 0

    @property
    def ends(self):
        return self.low - self.zero, self.high - self.zero


GRIDS = {
    ("w4", True): Grid(-8, 7),
    ("w4/tensor", True): Grid(-8, 7),
    ("w4/narrow", True): Grid(-7, 7),
    ("w4/affine", True): Grid(-8, 7, -3),
    ("wuint4", True): Grid(0, 15),
    ("a4", False): Grid(-8, 7, -3),
    ("a4/sym", False): Grid(-8, 7),
    ("auint4", False): Grid(0, 15, 0),
    ("a2", False): Grid(-2, 1, -1),
}


def summed(x, per_row):
    """A sum over what shares a step: a row, or everything."""
    return x.sum(1, keepdims=True) if per_row else x.sum(keepdims=True)


def case_of(factory, text, is_weight):
    grid = GRIDS[text, is_weight]
    quantizers = factory(text)
    q = quantizers.weight if is_weight else quantizers.input
    per_row = is_weight and "tensor" not in text
    shape = (2, 1) if per_row else (1, 1)
    fixed = {} if q.spec.symmetric else {"zero": np.full(shape, grid.zero, np.float32)}
    x, g = rows(), rng().normal(size=(2, STEPS.size))
    return q, grid, per_row, shape, fixed, x, g


def check_round_to_nearest(factory, text, is_weight):
    """Krishnamoorthi, 2018, Eq. (15): the gradient passes on [x_min, x_max], ends included; in training too."""
    q, grid, _, shape, fixed, x, g = case_of(factory, text, is_weight)
    low, high = grid.ends
    inside = (x / S >= low) & (x / S <= high)
    for train in (False, True):
        to_x, _, _ = pulled(q, {}, x, g, {"scale": np.full(shape, S), **fixed}, is_weight=is_weight, train=train)
        close(to_x, g * inside)


def check_straight_through_everywhere(q):
    """The papers' training section: as it came, inside and outside, and none through the scale."""
    x, g = rows(), rng().normal(size=(2, STEPS.size))
    operand = Operand(x.shape, contract=(1,))
    fixed = q.init(operand, {"values": jnp.asarray(x, jnp.float32)}, jax.random.key(0))["fixed"]
    for train in (False, True):
        close(pulled(q, {}, x, g, fixed, train=train)[0], g)
