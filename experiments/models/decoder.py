"""A transformer decoder's layers for one new token: what a language model spends its time on when it writes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Sizes(NamedTuple):
    """Of the decoder, in elements; `context` is the number of tokens already in the cache."""

    layers: int = 12
    width: int = 1024
    hidden: int = 4096
    heads: int = 16
    context: int = 128


def init(key: Array, sizes: Sizes) -> list[dict[str, Any]]:
    """Returns random float32 weights, a dict a layer: q, k, v, out `(width, width)`, up `(width, hidden)`, down."""
    d, f = sizes.width, sizes.hidden
    shapes = {"q": (d, d), "k": (d, d), "v": (d, d), "out": (d, d), "up": (d, f), "down": (f, d)}
    keys = jax.random.split(key, sizes.layers)
    return [
        {
            name: jax.random.normal(jax.random.fold_in(layer, i), shape) / jnp.sqrt(jnp.float32(shape[0]))
            for i, (name, shape) in enumerate(shapes.items())
        }
        for layer in keys
    ]


def decode(
    params: list[dict[str, Any]],
    x: Float[Array, "1 width"],
    keys: Float[Array, "layers heads context size"],
    values: Float[Array, "layers heads context size"],
) -> Float[Array, "1 width"]:
    """Returns the last layer's output for one token that attends to the cache and to itself.

    Pre-norm, without embedding and output head; the new keys and values are used and not returned.
    """
    heads = keys.shape[1]
    for layer, past_keys, past_values in zip(params, keys, values, strict=True):
        h = _normed(x)
        q, k, v = (jnp.reshape(h @ layer[name], (heads, -1)) for name in "qkv")
        all_keys = jnp.concatenate([past_keys, k[:, None]], axis=1)
        all_values = jnp.concatenate([past_values, v[:, None]], axis=1)
        scores = jnp.einsum("hd,hcd->hc", q, all_keys) / jnp.sqrt(jnp.float32(q.shape[1]))
        mixed = jnp.einsum("hc,hcd->hd", jax.nn.softmax(scores, axis=-1), all_values)
        x = x + jnp.reshape(mixed, (1, -1)) @ layer["out"]
        x = x + jax.nn.gelu(_normed(x) @ layer["up"]) @ layer["down"]
    return x


def _normed(x: Float[Array, "1 width"]) -> Float[Array, "1 width"]:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
