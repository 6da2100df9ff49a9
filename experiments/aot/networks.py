"""Networks in shapes of real layers, as pure functions, with the rules that they are quantized by.

No value matters: what is compiled depends on shapes. Sizes are such that no activation has as many elements as a weight.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

WIDTH, HIDDEN = 1024, 4096


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


def dense(dtype: str, rows: int = 24) -> Network:
    """Two layers of a feed-forward network."""
    params = {"up": _array(WIDTH, HIDDEN), "down": _array(HIDDEN, WIDTH)}

    def fn(p: Any, x: Array) -> Array:
        up, down = (p[name].astype(x.dtype) for name in ("up", "down"))
        return jax.nn.gelu(x @ up) @ down

    return Network(fn, params, (_array(rows, WIDTH, dtype=dtype),))


class Case(NamedTuple):
    """A network, its dtype and its rules."""

    network: Callable[[], Network]
    rules: dict[str, Any]


CASES = {
    "dense w8,a8 float32": Case(functools.partial(dense, "float32"), {"**": "w8,a8"}),
    "dense w4/g128 bfloat16": Case(functools.partial(dense, "bfloat16"), {"**": "w4/g128"}),
}
