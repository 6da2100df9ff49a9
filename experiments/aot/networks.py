"""Networks in shapes of real layers, as pure functions, with the rules that they are quantized by.

No value matters: what is compiled depends on shapes. Sizes are such that no activation, and no cache in bytes as a chip pads it,
has as many elements as a weight.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

WIDTH = 1024


class Network(NamedTuple):
    """A function with parameters and arguments.

    Attributes:
        fn: of parameters and arguments.
        params: shapes of float arrays.
        args: shapes of its arguments.
    """

    fn: Callable[..., Any]
    params: Any
    args: tuple[Any, ...]


def _array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


def dense(dtype: str, rows: int = 24, width: int = WIDTH) -> Network:
    """Two layers of a feed-forward network."""
    params = {"up": _array(width, 4 * width), "down": _array(4 * width, width)}

    def fn(p: Any, x: Array) -> Array:
        up, down = (p[name].astype(x.dtype) for name in ("up", "down"))
        return jax.nn.gelu(x @ up) @ down

    return Network(fn, params, (_array(rows, width, dtype=dtype),))


def _layers(count: int, width: int) -> dict[str, jax.ShapeDtypeStruct]:
    sizes = {"qkv": (width, 3 * width), "out": (width, width), "up": (width, 4 * width), "down": (4 * width, width)}
    return {name: _array(count, *size) for name, size in sizes.items()} | {"gain": _array(count, 2, width)}


def _normed(x: Array, gain: Array) -> Array:
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + 1e-6) * gain).astype(x.dtype)


def _fed(p: Any, x: Array) -> Array:
    h = jax.nn.gelu(_normed(x, p["gain"][1]) @ p["up"].astype(x.dtype))
    return x + h @ p["down"].astype(x.dtype)


def transformer(dtype: str, tokens: int = 12, width: int = WIDTH, layers: int = 4, heads: int = 16) -> Network:
    """Blocks of attention and a feed-forward network, scanned over stacked layers: two sequences."""

    def block(x: Array, p: Any) -> tuple[Array, None]:
        qkv = _normed(x, p["gain"][0]) @ p["qkv"].astype(x.dtype)
        q, k, v = (part.reshape(*x.shape[:2], heads, -1) for part in jnp.split(qkv, 3, -1))
        scores = jnp.einsum("bthd,bshd->bhts", q, k) * (heads / width) ** 0.5
        mixed = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), v).reshape(x.shape)
        return _fed(p, x + mixed @ p["out"].astype(x.dtype)), None

    fn = lambda p, x: jax.lax.scan(block, x, p)[0]  # noqa: E731
    return Network(fn, _layers(layers, width), (_array(2, tokens, width, dtype=dtype),))


def convolutional(dtype: str, size: int = 20, width: int = 256) -> Network:
    """A convolution, a depthwise one, one of single positions, and a layer on their means: one image."""
    params = {
        "conv": _array(3, 3, width // 4, width),
        "depthwise": _array(3, 3, 1, width),
        "point": _array(1, 1, width, 2 * width),
        "head": _array(2 * width, 1024),
    }

    def conv(x: Array, kernel: Array, stride: int, groups: int = 1) -> Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x,
            kernel.astype(x.dtype),
            (stride, stride),
            "SAME",
            dimension_numbers=numbers,
            feature_group_count=groups,
        )

    def fn(p: Any, x: Array) -> Array:
        x = jax.nn.relu(conv(x, p["conv"], 2))
        x = jax.nn.relu(conv(x, p["depthwise"], 1, width))
        x = jax.nn.relu(conv(x, p["point"], 1))
        return x.mean((1, 2)) @ p["head"].astype(x.dtype)

    return Network(fn, params, (_array(1, size, size, width // 4, dtype=dtype),))


def decoding(
    dtype: str, sequences: int = 5, length: int = 200, width: int = WIDTH, layers: int = 4, heads: int = 16
) -> Network:
    """A step of a language model: a token of every sequence is looked up, and goes through layers with a cache to logits."""
    words = 5 * width
    params = {"words": _array(words, width), "layers": _layers(layers, width), "head": _array(width, words)}

    def block(x: Array, layer: Any) -> tuple[Array, Any]:
        p, keys, values, at = layer
        qkv = _normed(x, p["gain"][0]) @ p["qkv"].astype(x.dtype)
        q, k, v = (part.reshape(len(x), heads, -1) for part in jnp.split(qkv, 3, -1))
        keys, values = (
            jax.lax.dynamic_update_index_in_dim(cache, new, at, 1) for cache, new in ((keys, k), (values, v))
        )
        scores = jnp.einsum("bhd,bshd->bhs", q, keys) * (heads / width) ** 0.5
        scores = jnp.where(jnp.arange(keys.shape[1]) <= at, scores, -jnp.inf)
        mixed = jnp.einsum("bhs,bshd->bhd", jax.nn.softmax(scores), values).reshape(x.shape)
        return _fed(p, x + mixed @ p["out"].astype(x.dtype)), (keys, values)

    def fn(p: Any, tokens: Array, keys: Array, values: Array, at: Array) -> tuple[Array, Any]:
        x = p["words"][tokens].astype(keys.dtype)
        places = jnp.full((keys.shape[0],), at)
        x, caches = jax.lax.scan(block, x, (p["layers"], keys, values, places))
        return x @ p["head"].astype(x.dtype), caches

    cache = _array(layers, sequences, length, heads, width // heads, dtype=dtype)
    return Network(fn, params, (_array(sequences, dtype="int32"), cache, cache, _array(dtype="int32")))


class Case(NamedTuple):
    """A network, its dtype and its rules."""

    network: Callable[..., Network]
    rules: dict[str, Any]


CASES = {
    "dense w8,a8 float32": Case(functools.partial(dense, "float32"), {"**": "w8,a8"}),
    "dense w4/g128 bfloat16": Case(functools.partial(dense, "bfloat16"), {"**": "w4/g128"}),
    "scanned transformer w4,a8 bfloat16": Case(functools.partial(transformer, "bfloat16"), {"**": "w4,a8"}),
    "convolutional w8,a8 float32": Case(functools.partial(convolutional, "float32"), {"**": "w8,a8"}),
    "decoding w4/g128 bfloat16": Case(functools.partial(decoding, "bfloat16"), {"**": "w4/g128"}),
    "decoding w4/g128,a8/dynamic bfloat16": Case(
        functools.partial(decoding, "bfloat16"), {"words": "w4/g128", "**": "w4/g128,a8/dynamic"}
    ),
}
