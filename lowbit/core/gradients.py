"""Gradient rules that change a gradient and leave the value alone."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .qtensor import Nearest


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def scale_gradient(x: Float[Array, "..."], factor: float) -> Float[Array, "..."]:
    """Returns ``x``; its gradient is multiplied by ``factor``.

    Example:
        >>> float(jax.grad(lambda x: scale_gradient(x, 0.25))(3.0))
        0.25
    """
    return x


@scale_gradient.defjvp
def _(factor, primals, tangents):
    (x,), (t,) = primals, tangents
    return x, t * factor


@jax.custom_jvp
def _straight_through(x, value):
    return value


_straight_through.defjvps(lambda tangent, _, x, value: tangent, None)


def straight_through(x: Float[Array, "..."], value: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns ``value``, to the last bit, with the gradient of ``x``.

    Unlike ``x + stop_gradient(value - x)``, which rounds twice and may miss ``value`` by one last bit.

    Example:
        >>> float(jax.grad(lambda x: 3.0 * straight_through(x, jnp.round(x)))(jnp.array(0.7)))
        3.0
    """
    return _straight_through(x, lax.stop_gradient(value))


def inclusive(nearest: Nearest, *, slack: float = 2.0**-20) -> Nearest:
    """Returns ``nearest`` whose gradient also passes on the bounds, and not beyond them.

    Strict masks (LSQ) freeze the largest weight of every block under an absmax scale: it lies on the bound.
    The rule is Krishnamoorthi, 2018, arXiv 1806.08342, Eq. (15), and TensorFlow's fake quantization, whose range is the
    one nudged to the zero point: exactly ``[low - zero, high - zero]`` in levels.

    Args:
        nearest: as of a format.
        slack: of a bound's magnitude, relative: what ``absmax * (1 / scale)`` may exceed it by in float32.

    Example:
        >>> from lowbit.formats.integer import Integer
        >>> def loss(x, rule):
        ...     return jnp.sum(rule(x, -8.0, 7.0))
        >>> jax.grad(loss)(jnp.array([6.9, 7.0, 7.1]), inclusive(Integer(4).nearest)).tolist()
        [1.0, 1.0, 0.0]
    """

    def masked(x: Array, low: Array | float, high: Array | float) -> Array:
        low, high = jnp.asarray(low, x.dtype), jnp.asarray(high, x.dtype)
        inside = (x >= low - slack * jnp.abs(low)) & (x <= high + slack * jnp.abs(high))
        value = nearest(lax.stop_gradient(x), lax.stop_gradient(low), lax.stop_gradient(high))
        return straight_through(jnp.where(inside, x, jnp.where(x < low, low, high)), value)

    return masked


def unmasked(nearest: Nearest) -> Nearest:
    """Returns ``nearest`` whose gradient passes straight through everywhere, beyond the bounds too.

    Reference: Bengio, Leonard, Courville, Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
    Computation, 2013, https://arxiv.org/abs/1308.3432.

    Example:
        >>> from lowbit.formats.integer import Integer
        >>> def loss(x):
        ...     return jnp.sum(unmasked(Integer(4).nearest)(x, -8.0, 7.0))
        >>> jax.grad(loss)(jnp.array([2.4, 7.0, 99.0])).tolist()
        [1.0, 1.0, 1.0]
    """

    def through(x: Array, low: Array | float, high: Array | float) -> Array:
        return straight_through(x, nearest(lax.stop_gradient(x), low, high))

    return through


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _element_wise(x, level, delta):
    return level


def _element_wise_fwd(x, level, delta):
    return level, x - level


def _element_wise_bwd(delta, error, g):
    return g * (1.0 + delta * jnp.sign(g) * error), None


_element_wise.defvjp(_element_wise_fwd, _element_wise_bwd)


def element_wise(nearest: Nearest, delta: float) -> Nearest:
    """Returns ``nearest`` with element-wise gradient scaling (EWGS) in place of the straight-through gradient.

    ``g_x = g (1 + delta sign(g) (x - level))`` within the bounds; outside, the gradient goes to the bound.

    Reference: Lee, Kim, Ham, Network Quantization with Element-wise Gradient Scaling, CVPR 2021,
    https://arxiv.org/abs/2104.00903, Eq. (7). There ``x`` runs over [0, 1]; here over levels, so that ``delta`` is the
    paper's divided by the number of steps of the grid.

    Example:
        >>> from lowbit.formats.integer import Integer
        >>> def loss(x):
        ...     return jnp.sum(element_wise(Integer(4).nearest, 0.5)(x, -8.0, 7.0))
        >>> jax.grad(loss)(jnp.array([2.0, 2.25, 9.0])).tolist()
        [1.0, 1.125, 0.0]
    """

    def scaled(x: Array, low: Array | float, high: Array | float) -> Array:
        low, high = jnp.asarray(low, x.dtype), jnp.asarray(high, x.dtype)
        clipped = jnp.where(x <= low, low, jnp.where(x >= high, high, x))
        value = nearest(lax.stop_gradient(x), lax.stop_gradient(low), lax.stop_gradient(high))
        return _element_wise(clipped, value, delta)

    return scaled
