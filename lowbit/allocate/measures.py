"""How far a result is from the float one, and losses that need no labels."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def floats(result: Any) -> list[Array]:
    """Returns the float arrays of a result.

    Raises:
        ValueError: if there is none.
    """
    leaves = [jnp.asarray(x, jnp.float32) for x in jax.tree.leaves(result) if jnp.issubdtype(x.dtype, jnp.floating)]
    if not leaves:
        raise ValueError("fn has no float result to measure: pass loss=")
    return leaves


def mse(right: Any, other: Any) -> Array:
    """Returns the mean squared difference of two results, over all their float elements."""
    pairs = list(zip(floats(right), floats(other), strict=True))
    return sum(jnp.sum(jnp.square(a - b)) for a, b in pairs) / jnp.float32(sum(a.size for a, _ in pairs))


def kl(right: Any, other: Any) -> Array:
    """Returns the mean divergence ``sum p (log p - log q)`` of the classes along the last axis of the first float array."""
    p, q = (jax.nn.log_softmax(floats(x)[0], axis=-1) for x in (right, other))
    return jnp.mean(jnp.sum(jnp.exp(p) * (p - q), axis=-1))


@functools.lru_cache(maxsize=8)
def drawn_loss(kind: str) -> Callable[[Array, Any], Array]:
    """Returns a loss ``(key, result)`` whose squared gradient is, on the mean over keys, what a small change of the result costs.

    ``"mse"``: the result times random signs, ``E (g . dy)^2 = |J dy|^2``. ``"kl"``: the likelihood of classes drawn from the
    model's own distribution, whose squared gradient is the Fisher information.
    """

    def loss(key: Array, result: Any) -> Array:
        if kind == "mse":
            signed = [jnp.sum(x * jax.random.rademacher(key, x.shape, jnp.float32)) for x in floats(result)]
            return sum(signed, jnp.zeros(()))
        logits = floats(result)[0]
        classes = jax.random.categorical(key, jax.lax.stop_gradient(logits), axis=-1)
        return -jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), classes[..., None], axis=-1))

    return loss
